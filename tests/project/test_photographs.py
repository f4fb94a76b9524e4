"""The table of free photographs, and the program that makes the folder of photographs; no network is used."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import sys

import pytest
from helpers.places import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT))

from benchmarks import photographs  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402

TABLE = json.loads(photographs.TABLE.read_text(encoding="utf-8"))
# Stands for apt-get and dpkg-deb: "downloads" an empty package "moors", and "extracts" the file ./picture to it.
APT_GET = """#!/bin/sh
case "$*" in
*indextargets*) echo mirror ;;
*missing*) echo "E: Unable to locate package missing" >&2; exit 100 ;;
*download*) : > moors_1_all.deb ;;
esac
"""
DPKG_DEB = '#!/bin/sh\nmkdir -p "$3" && cp "$PICTURE" "$3/moor.tga"\n'


def make_resource(version, files, flags=0):
    """Returns the bytes of a Qt resource file with one folder "moor" that has `files`, {name: content}."""
    texts = ["moor", *files]
    names = [struct.pack(">HI", len(text), 0) + text.encode("utf-16-be") for text in texts]
    starts = [sum(map(len, names[:number])) for number in range(len(names))]
    data = [struct.pack(">I", len(content)) + content for content in files.values()]
    time = b"" if version < 2 else bytes(8)
    tree = struct.pack(">IHII", 0, photographs.IS_FOLDER, 1, 1) + time
    tree += struct.pack(">IHII", starts[0], photographs.IS_FOLDER, len(files), 2) + time
    for number, start in enumerate(starts[1:]):
        tree += struct.pack(">IHHHI", start, flags, 0, 0, sum(map(len, data[:number]))) + time
    blocks = [tree, b"".join(data), b"".join(names)]
    offsets = [20, 20 + len(blocks[0]), 20 + len(blocks[0]) + len(blocks[1])]
    return struct.pack(">4s4I", b"qres", version, *offsets) + b"".join(blocks)


def test_table_lists_free_photographs_with_unique_names_and_digests():
    rows = TABLE["photographs"]
    assert {row["licence"] for row in rows} == {"public domain", "CC0-1.0"}
    assert {row["package"] for row in rows} == TABLE["suites"].keys()
    for field, form in (("file", r"[a-z0-9-]+\.png"), ("sha256", "[0-9a-f]{64}")):
        values = [row[field] for row in rows]
        assert len(set(values)) == len(values) and all(re.fullmatch(form, value) for value in values)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_resource_reader_returns_each_file_and_refuses_others(version):
    files = {"heath.webp": b"purple", "bog.webp": b"brown and wet"}
    content = make_resource(version, files)
    assert {name: photographs.read_resource(content, f"moor/{name}") for name in files} == files
    for damaged, path in ((content, "moor"), (content, "moor/fen.webp"), (b"PNG" + bytes(40), "moor/bog.webp")):
        with pytest.raises(UserError):
            photographs.read_resource(damaged, path)
    with pytest.raises(UserError, match="compressed"):
        photographs.read_resource(make_resource(version, files, flags=1), "moor/heath.webp")


class TestWritePhotographs:
    @pytest.fixture
    def table(self, tmp_path, monkeypatch):
        """A table of two rows with the same file of a made package, and programs that stand for Debian's."""
        picture = io.BytesIO()
        Image.new("RGB", (2560, 1000), (90, 60, 120)).save(picture, "TGA")
        (tmp_path / "picture").write_bytes(picture.getvalue())
        for name, text in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
            (tmp_path / name).write_text(text, encoding="utf-8")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PICTURE", str(tmp_path / "picture"))
        monkeypatch.setattr(photographs, "TABLE", tmp_path / "table.json")
        row = {"package": "moors", "path": "moor.tga", "sha256": hashlib.sha256(picture.getvalue()).hexdigest()}
        table = {"suites": {"moors": "trixie"}}
        table["photographs"] = [{**row, "file": "heath.png"}, {**row, "file": "bog.png", "held_out": True}]
        photographs.TABLE.write_text(json.dumps(table), encoding="utf-8")
        return table

    def test_photographs_are_shrunk_and_held_out_ones_become_test(self, table, tmp_path):
        photographs.write_photographs(tmp_path / "made")
        files = sorted(path for path in (tmp_path / "made").rglob("*") if path.is_file())
        assert files == [tmp_path / "made" / "test" / "bog.png", tmp_path / "made" / "train" / "heath.png"]
        assert {Image.open(file).size for file in files} == {(1280, 500)}

    def test_photograph_with_a_wrong_digest_leaves_no_folder(self, table, tmp_path):
        table["photographs"][1]["sha256"] = "0" * 64
        photographs.TABLE.write_text(json.dumps(table), encoding="utf-8")
        with pytest.raises(UserError, match="SHA-256"):
            photographs.write_photographs(tmp_path / "made")
        assert not (tmp_path / "made").exists()

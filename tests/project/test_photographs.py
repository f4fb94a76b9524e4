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


class TestTable:
    def test_every_photograph_is_public_domain_or_cc0(self):
        assert {row["licence"] for row in TABLE["photographs"]} == {"public domain", "CC0-1.0"}

    def test_a_hundred_photographs_remain_to_train_on_beside_those_held_out(self):
        held_out = sum(row.get("held_out", False) for row in TABLE["photographs"])
        assert held_out >= 24 and len(TABLE["photographs"]) - held_out >= 100

    def test_names_and_digests_are_unique_and_well_formed(self):
        for field, form in (("file", r"[a-z0-9-]+\.png"), ("sha256", "[0-9a-f]{64}")):
            values = [row[field] for row in TABLE["photographs"]]
            assert len(set(values)) == len(values)
            assert all(re.fullmatch(form, value) for value in values)

    def test_rows_have_all_fields_and_a_package_with_a_suite(self):
        fields = {"file", "package", "path", "author", "source", "licence", "sha256"}
        for row in TABLE["photographs"]:
            assert fields <= row.keys() <= fields | {"resource", "held_out"}
            assert row["path"].endswith(".rcc") == ("resource" in row)
        assert {row["package"] for row in TABLE["photographs"]} == TABLE["suites"].keys()


class TestReadResource:
    @pytest.mark.parametrize("version", [1, 2, 3])
    def test_each_file_of_a_folder_is_read(self, version):
        files = {"heath.webp": b"purple", "bog.webp": b"brown and wet"}
        content = make_resource(version, files)
        assert {name: photographs.read_resource(content, f"moor/{name}") for name in files} == files

    @pytest.mark.parametrize("path", ["heath.webp", "moor/bog.webp", "moor", "moor/heath.webp/more"])
    def test_a_path_without_a_file_is_refused(self, path):
        with pytest.raises(UserError, match=path):
            photographs.read_resource(make_resource(2, {"heath.webp": b"purple"}), path)

    def test_a_compressed_file_is_refused(self):
        with pytest.raises(UserError, match="compressed"):
            photographs.read_resource(make_resource(2, {"heath.webp": b"purple"}, flags=1), "moor/heath.webp")

    @pytest.mark.parametrize("content", [b"", b"PNG" + bytes(40)])
    def test_another_kind_of_file_is_refused(self, content):
        with pytest.raises(UserError, match="no Qt resource file"):
            photographs.read_resource(content, "moor/heath.webp")


class TestReadPhotograph:
    @pytest.mark.parametrize("resource", [False, True])
    def test_only_a_file_with_the_right_digest_is_accepted(self, resource, tmp_path):
        (tmp_path / "moors").mkdir()
        row = {"package": "moors", "path": "picture", "sha256": hashlib.sha256(b"purple").hexdigest()}
        row |= {"resource": "moor/heath.webp"} if resource else {}
        for content in (b"purple", b"brown"):
            stored = make_resource(2, {"heath.webp": content}) if resource else content
            (tmp_path / "moors" / "picture").write_bytes(stored)
            if content == b"purple":
                assert photographs.read_photograph(row, tmp_path) == content
            else:
                with pytest.raises(UserError, match="SHA-256"):
                    photographs.read_photograph(row, tmp_path)

    def test_a_file_that_the_package_lacks_is_named(self, tmp_path):
        with pytest.raises(UserError, match="heath.jpg of the package moors"):
            photographs.read_photograph({"package": "moors", "path": "heath.jpg"}, tmp_path)


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

    def test_photographs_held_out_are_apart_and_all_are_shrunk(self, table, tmp_path):
        photographs.write_photographs(tmp_path / "made")
        files = sorted(path for path in (tmp_path / "made").rglob("*") if path.is_file())
        assert files == [tmp_path / "made" / "test" / "bog.png", tmp_path / "made" / "train" / "heath.png"]
        assert {Image.open(file).size for file in files} == {(1280, 500)}

    def test_a_file_with_another_digest_leaves_no_folder(self, table, tmp_path):
        table["photographs"][1]["sha256"] = "0" * 64
        photographs.TABLE.write_text(json.dumps(table), encoding="utf-8")
        with pytest.raises(UserError, match="SHA-256"):
            photographs.write_photographs(tmp_path / "made")
        assert not (tmp_path / "made").exists()

    def test_a_package_that_is_not_to_be_had_is_named(self, table, tmp_path):
        photographs.TABLE.write_text(json.dumps({**table, "suites": {"missing": "trixie"}}), encoding="utf-8")
        with pytest.raises(UserError, match="Unable to locate package missing"):
            photographs.write_photographs(tmp_path / "made")

    def test_a_machine_without_apt_get_is_told_so(self, table, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
        with pytest.raises(UserError, match="cannot run apt-get"):
            photographs.write_photographs(tmp_path / "made")

    def test_an_existing_folder_stays_unchanged(self, table, tmp_path):
        (tmp_path / "made").mkdir()
        with pytest.raises(UserError, match="new folder"):
            photographs.write_photographs(tmp_path / "made")
        assert not list((tmp_path / "made").iterdir())

"""Makes a folder of photographs that are in the public domain or under CC0, from packages of Debian.

    python benchmarks/photographs.py FOLDER

`photographs.json` lists the photographs: the package and the path in it, the author and the source as far as the
package states them, the licence, and the SHA-256 of the file in the package. FOLDER/train gets the photographs to train
on, and FOLDER/test those that are held out: no model is trained on them. Each photograph becomes a PNG file whose
longer side has 1280 pixels at most.

The program needs Debian's apt-get and dpkg-deb and downloads some 200 MB from the mirror that apt-get uses. It neither
installs packages nor changes apt-get's settings.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pathlib
import shutil
import struct
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, run_text  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.runtime.process import run_program  # noqa: E402

TABLE = ROOT / "benchmarks" / "photographs.json"
# The longer side of the written photographs, in pixels, at most.
LARGEST = 1280
# The public keys of Debian's releases, a file of Debian's package debian-archive-keyring.
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# A bit in an entry of a Qt resource file.
IS_FOLDER = 2


def download_packages(suites: Mapping[str, str], folder: pathlib.Path) -> None:
    """Downloads packages of Debian and extracts each package's files to `folder`/PACKAGE.

    Args:
        suites: the release of Debian that each package is taken from, {package: suite}.
        folder: an existing folder; apt-get's lists and the packages are written to it, too.

    Raises:
        UserError: if apt-get is missing or has no mirror of Debian, or if a package cannot be downloaded.
    """
    form = ["--format", "$(REPO_URI)", "Label: Debian", "Identifier: Packages"]
    mirrors = run_text(["apt-get", "indextargets", *form]).split()
    if not mirrors:
        raise UserError("apt-get has no mirror of Debian; run this program in a container of Debian")
    lines = [f"deb [signed-by={KEYS}] {mirrors[0]} {suite} main\n" for suite in sorted(set(suites.values()))]
    (folder / "sources.list").write_text("".join(lines), encoding="utf-8")
    for name in ("lists", "cache"):
        (folder / name / "partial").mkdir(parents=True)
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
        "APT::Update::Error-Mode": "any",
    }
    apt = ["apt-get", "-qq", *(f"-o{option}={value}" for option, value in options.items())]
    run_text([*apt, "update"])
    run_text([*apt, "download", *(f"{package}/{suite}" for package, suite in suites.items())], folder)
    for package in suites:
        for archive in folder.glob(f"{package}_*.deb"):
            run_text(["dpkg-deb", "--extract", str(archive), str(folder / package)])


def read_resource(content: bytes, path: str) -> bytes:
    """Returns the file at `path` ("folder/name.webp") in a Qt resource file (.rcc), which has the bytes `content`.

    A resource file has a tree of entries, a block of data and a block of names. All numbers are big-endian.

    Raises:
        UserError: if `content` is no resource file or has no file at `path`, or if the file there is compressed.
    """
    magic, version, tree, data, names = struct.unpack_from(">4s4I", content.ljust(20, b"\0"))
    if magic != b"qres":
        raise UserError("the file is no Qt resource file, because it does not begin with qres")
    # Since version 2, an entry ends with a time of 8 bytes.
    length = 14 if version < 2 else 22

    def read_name(entry: int) -> str:
        start = names + struct.unpack_from(">I", content, entry)[0]
        end = start + 6 + 2 * struct.unpack_from(">H", content, start)[0]
        return content[start + 6 : end].decode("utf-16-be")

    entry = tree
    for part in path.split("/"):
        flags, count, first = struct.unpack_from(">HII", content, entry + 4)
        entries = [tree + length * number for number in range(first, first + count)] if flags & IS_FOLDER else []
        matches = [child for child in entries if read_name(child) == part]
        if not matches:
            raise UserError(f"the Qt resource file has no file {path}")
        entry = matches[0]
    flags, start = struct.unpack_from(">H4xI", content, entry + 4)
    if flags:
        raise UserError(f"{path} in the Qt resource file is compressed or a folder; only plain files can be read")
    size = struct.unpack_from(">I", content, data + start)[0]
    return content[data + start + 4 : data + start + 4 + size]


def read_photograph(photograph: Mapping[str, Any], folder: pathlib.Path) -> bytes:
    """Returns the bytes of the file of a photograph, a row of photographs.json, from `folder`/PACKAGE.

    Raises:
        UserError: if the package has no such file, or if the SHA-256 of the file is not the one of the row.
    """
    name = f"{photograph['path']} of the package {photograph['package']}"
    try:
        content = (folder / photograph["package"] / photograph["path"]).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from error
    if "resource" in photograph:
        content = read_resource(content, photograph["resource"])
        name = f"{photograph['resource']} in {name}"
    digest = hashlib.sha256(content).hexdigest()
    if digest != photograph["sha256"]:
        raise UserError(f"{name} is another file: its SHA-256 is {digest} instead of {photograph['sha256']}")
    return content


def write_photographs(folder: pathlib.Path) -> None:
    """Makes the new folder `folder` with the subfolders train and test, whose PNG files are named in photographs.json.

    Raises:
        UserError: if the folder exists, or for each reason of `download_packages` and `read_photograph`.
    """
    from PIL import Image

    if folder.exists():
        raise UserError(f"{folder} exists; name a new folder")
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        print(f"Downloads {len(table['suites'])} packages of Debian")
        download_packages(table["suites"], scratch)
        for photograph in table["photographs"]:
            image = Image.open(io.BytesIO(read_photograph(photograph, scratch))).convert("RGB")
            image.thumbnail((LARGEST, LARGEST))
            split = scratch / "photographs" / ("test" if photograph.get("held_out") else "train")
            split.mkdir(parents=True, exist_ok=True)
            image.save(split / photograph["file"])
        shutil.move(scratch / "photographs", folder)
    counts = [f"{len(list(split.iterdir()))} in {split}" for split in (folder / "train", folder / "test")]
    print(f"Photographs: {', '.join(counts)}")


def main() -> int:
    """Runs the program `photographs.py`, which makes a folder of free photographs; returns status 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=pathlib.Path, help="a new folder for the photographs")
    write_photographs(parser.parse_args().folder)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

"""Makes a folder of photographs that are in the public domain or under CC0, from packages of Debian.

    python benchmarks/photographs.py FOLDER
    python benchmarks/photographs.py FOLDER --crops CROPS

`photographs.json` lists the photographs: the package and the path in it, the author and the source as far as the
package states them, the licence, and the SHA-256 of the file in the package. FOLDER/train gets the photographs to train
on, and FOLDER/test those that are held out: no model is trained on them. Each photograph becomes a PNG file whose
longer side has 1280 pixels at most.

With --crops, the program makes the folder CROPS of an existing FOLDER: square crops of 64 x 64 pixels, at random scale,
for `python train.py --data folder:CROPS`. Half of them have changed colours (`change_colours`). The splits train and
val show different photographs of FOLDER/train, and the split test shows those of FOLDER/test.

The program needs Debian's apt-get and dpkg-deb and downloads some 200 MB from the mirror that apt-get uses. It neither
installs packages nor changes apt-get's settings.
"""

import argparse
import hashlib
import io
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, run_text
from tfdecouple.errors import UserError
from tfdecouple.storage.files import read_json
from tfdecouple.system.process import run_program

TABLE = ROOT / "benchmarks" / "photographs.json"
# The longer side of the written photographs, in pixels, at most.
LARGEST = 1280
# The public keys of Debian's releases, a file of Debian's package debian-archive-keyring.
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Side of a crop in pixels, and number of crops in each split.
SIDE, CROPS = 64, {"train": 16384, "val": 512, "test": 1000}
# One of this many photographs of FOLDER/train is for validation.
VALIDATION = 20
# Weights of red, green and blue in the luminance of a pixel.
LUMINANCE = np.array([0.299, 0.587, 0.114])


def download_packages(suites: Mapping[str, str], folder: pathlib.Path) -> None:
    """Downloads packages of Debian and extracts each package's files to `folder`/PACKAGE; UserError if one fails.

    `suites` is the release of Debian that each package is taken from, {package: suite}.
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


def list_resources(content: bytes) -> Iterator[bytes]:
    """Yields the files in a Qt resource file (.rcc), which has the bytes `content`; UserError for another file.

    The third number of the header is the place of the files, each after its size. All numbers are big-endian, in 4
    bytes. What follows the files is taken for files, too.
    """
    if not content.startswith(b"qres"):
        raise UserError("the file is no Qt resource file, because it does not begin with qres")
    place = int.from_bytes(content[12:16])
    while place < len(content):
        size = int.from_bytes(content[place : place + 4])
        yield content[place + 4 : place + 4 + size]
        place += 4 + size


def read_photograph(photograph: Mapping[str, Any], folder: pathlib.Path) -> bytes:
    """Returns the bytes of a photograph (a row of photographs.json) in `folder`/PACKAGE; UserError for other bytes."""
    name = f"{photograph['path']} of the package {photograph['package']}"
    try:
        content = (folder / photograph["package"] / photograph["path"]).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from error
    for file in list_resources(content) if "resource" in photograph else [content]:
        if hashlib.sha256(file).hexdigest() == photograph["sha256"]:
            return file
    raise UserError(f"{name} has no photograph with the SHA-256 {photograph['sha256']}")


def write_photographs(folder: pathlib.Path) -> None:
    """Makes a new folder with the sub-folders train and test, whose PNG files are named in photographs.json."""
    if folder.exists():
        raise UserError(f"{folder} exists; name a new folder")
    table = read_json(TABLE)
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


def change_colours(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes gamma, exposure, white balance, saturation, contrast and shift of an image at random.

    `pixels` and the result are uint8 `[height, width, 3]`.
    """
    x = (pixels / 255) ** np.exp(rng.normal(0, 0.3)) * np.exp(rng.normal(0, 0.25) + rng.normal(0, 0.15, 3))
    grey = (x @ LUMINANCE)[..., None]
    x = grey + (x - grey) * np.exp(rng.normal(0, 0.4))
    x = 0.45 + (x - 0.45) * np.exp(rng.normal(0, 0.3)) + rng.normal(0, 0.08, 3)
    return np.clip(x * 255 + 0.5, 0, 255).astype(np.uint8)


def cut_crop(image: Any, rng: np.random.Generator) -> np.ndarray:
    """Returns a random square of a Pillow image, shrunk to uint8 `[SIDE, SIDE, 3]`; its scale is log-uniform."""
    least = min(image.size)
    side = min(least, int(np.exp(rng.uniform(np.log(SIDE), np.log(least + 1)))))
    left, top = (rng.integers(0, length - side + 1) for length in image.size)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, box))


def write_crops(photographs: pathlib.Path, out: pathlib.Path) -> None:
    """Makes the new folder `out` with crops of the photographs in a folder that `write_photographs` made."""
    if out.exists():
        raise UserError(f"{out} exists; name a new folder")
    files = {split: sorted((photographs / split).glob("*.png")) for split in ("train", "test")}
    if not all(files.values()):
        raise UserError(f"{photographs} has no photographs in train and test; run this program without --crops first")
    files["val"] = files["train"][::VALIDATION]
    files["train"] = [file for file in files["train"] if file not in files["val"]]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        for split, count in CROPS.items():
            images = [Image.open(file) for file in files[split]]
            folder = pathlib.Path(name) / "crops" / split
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = cut_crop(images[number % len(images)], rng)
                pixels = change_colours(pixels, rng) if rng.random() < 0.5 else pixels
                Image.fromarray(pixels).save(folder / f"{number:05}.png")
        (pathlib.Path(name) / "crops").rename(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=pathlib.Path, help="the folder of the photographs")
    parser.add_argument("--crops", metavar="CROPS", type=pathlib.Path, help="a new folder for crops of FOLDER")
    options = parser.parse_args()
    if options.crops:
        write_crops(options.folder, options.crops)
    else:
        write_photographs(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

"""Trains the small model with which `tfdecouple doctor` checks machines, and writes the model to a new folder.

    python benchmarks/doctor_model.py DIR

This program made `tfdecouple/doctor/model/`. The training images are crops of the bundled photographs that are in the
public domain or under CC0, as scikit-image describes them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tfdecouple.config import Config, DataConfig
from tfdecouple.doctor import checks
from tfdecouple.errors import UserError
from tfdecouple.runtime.process import run_program, start_tensorflow

# Names of these photographs.
FREE = ("astronaut", "chelsea", "coffee", "rocket")


def train_small_model(folder: pathlib.Path) -> None:
    """Writes config, best weights and summary of the model, test images and this CPU's results to a new folder."""
    from tfdecouple.storage.files import write_json, write_text
    from tfdecouple.training import train

    config = checks.load_small_config()
    if folder.exists():
        raise UserError(f"{folder} exists; name a new folder")
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        unseen = _write_free_crops(config, scratch / "images")
        data = DataConfig(source=f"folder:{scratch / 'images'}")
        train(dataclasses.replace(config, data=data), scratch / "run")
        (folder / "checkpoints").mkdir(parents=True)
        for path in (scratch / "run" / "checkpoints").glob("best*"):
            shutil.copy(path, folder / "checkpoints")
        summary = json.loads((scratch / "run" / "summary.json").read_text(encoding="utf-8"))
    write_json(folder / "summary.json", {**summary, "data": f"crops of {', '.join(FREE)}, of scikit-image"})
    write_text(folder / "config.json", config.to_json())
    first = unseen[: checks.IMAGES]
    numbers: dict[str, Any] = checks.compute_numbers("CPU:0", first, folder)
    numbers["gradient"] = checks.compute_gradient("CPU:0", first, folder=folder)
    np.savez_compressed(folder / checks.NUMBERS, images=unseen, **numbers)


def _write_free_crops(config: Config, folder: pathlib.Path) -> np.ndarray:
    """Writes crops of the photographs in FREE as PNG files for each split; returns test crops, uint8 `[n, h, w, 3]`."""
    from PIL import Image

    from tfdecouple.data.batches import load_images
    from tfdecouple.data.sources import open_source

    source = open_source(config.data, config.model.image_shape)
    for split in ("train", "validation", "test"):
        images, labels = map(np.asarray, load_images(source, split, source.sizes[split]))
        is_free = np.isin(labels, [source.label_names.index(name) for name in FREE])
        (folder / split).mkdir(parents=True)
        for number, image in enumerate(images[is_free]):
            Image.fromarray(image).save(folder / split / f"{number:05}.png")
    return images[is_free][: checks.PHOTOGRAPHS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=pathlib.Path, help="a new folder for the model")
    folder = parser.parse_args().folder
    start_tensorflow()
    train_small_model(folder)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

"""Functions that commands share: they choose images for a run's model, and write results as PNG and JSON files."""

import argparse
import contextlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tfdecouple.config import Config
from tfdecouple.data.image_file import read_image
from tfdecouple.data.sources import choose_user_crop
from tfdecouple.data.splits import Source
from tfdecouple.errors import DataError, UserError
from tfdecouple.metrics.drawn_images import draw_image_indices, pair_images, read_drawn_images
from tfdecouple.runs.opened_run import Run
from tfdecouple.storage.files import write_bytes, write_json


class Images(NamedTuple):
    """Images for a model, with `facts` for a JSON file, and a `note` on data set and run for the caption of a picture.

    `pixels`, uint8 `[n, height, width, channels]`, are quantised to the bits of the model. `labels` are the labels,
    int32 `[n]`, for a model with labels; otherwise None.
    """

    pixels: np.ndarray
    facts: dict[str, Any]
    note: str
    labels: np.ndarray | None = None


def open_data(run: Run, options: argparse.Namespace) -> Source:
    """Opens the data set of --data and --data-dir, by default the run's, loads split --split, returns the `Source`."""
    choose_split(run.config, options)
    source = run.open_source(options.data, options.data_dir, options.download)
    source.open_split(options.split)
    return source


def choose_split(config: Config, options: argparse.Namespace) -> None:
    """Sets --split if the user did not: "all" for a folder without splits that no training has used, else "test"."""
    if options.split is None:
        folder, trained = (
            pathlib.Path(name.removeprefix("folder:")).expanduser() for name in (options.data or "", config.data.source)
        )
        is_folder = (options.data or "").startswith("folder:") and not (folder / "train").is_dir()
        options.split = "all" if is_folder and folder.resolve() != trained.resolve() else "test"


def choose_images(run: Run, options: argparse.Namespace, source: Source | None = None) -> Images:
    """Draws at most --count images of split --split, with seed --seed, from `source`, by default from --data."""
    source, split = source or open_data(run, options), options.split
    indices = draw_image_indices(source, split, options.count, options.seed)
    return _make_images(run, source, split, indices, *read_drawn_images(run.model, source, split, indices))


def _make_images(
    run: Run, source: Source, split: str, indices: np.ndarray, pixels: np.ndarray, labels: np.ndarray
) -> Images:
    run.require_labels(source)
    names = get_label_names(source, labels)
    facts = {"data": source.title, "split": split, "indices": indices.tolist(), "labels": names}
    labels_of_model = labels if run.config.model.has_labels else None
    return Images(pixels, facts, f"Images: {source.title}, {split}. {run.note()}", labels_of_model)


def get_label_names(source: Source, labels: np.ndarray) -> list[str | None]:
    """Returns a list with the name of each image's label, None for an image without one; `labels` are int `[n]`."""
    return [source.label_names[label] if 0 <= label < len(source.label_names) else None for label in labels]


def read_image_files(run: Run, paths: list[str]) -> Images:
    """Reads the image files at `paths`, cropped and resized to the model's size; DataError if one cannot be read."""
    crop = choose_user_crop(run.config.data)
    images = np.stack([read_image(path, run.config.model.image_shape, crop) for path in paths])
    pixels = np.asarray(run.model.quantizer.quantize_pixels(images))
    return Images(pixels, {"files": list(paths)}, f"Own images. {run.note()}")


def choose_pairs(run: Run, options: argparse.Namespace, pairings: tuple[str, ...]) -> dict[str, tuple[Images, ...]]:
    """Draws at most --count pairs of images of --split for each pairing; returns {pairing: (first, second images)}.

    With --pairing auto, labelled images are paired in all ways in `pairings`, such as "within" a label and "across"
    labels, and other images as "any". If the user names files, the result is {"pairs": ...} of these files. UserError
    is raised if the pairing needs labels and there are none, DataError if no two images make a pair.
    """
    if options.files:
        return {"pairs": (read_image_files(run, options.files[::2]), read_image_files(run, options.files[1::2]))}
    source, split = open_data(run, options), options.split
    by_label = options.pairing != "any" and len(source.label_names) > 1
    # More images are drawn than the pairs need, so that most labels have several images.
    size = max(500, 8 * options.count) if by_label else 2 * options.count
    pool = draw_image_indices(source, split, size, options.seed)
    images, labels = read_drawn_images(run.model, source, split, pool)
    has_labels = len(set(labels[labels >= 0].tolist())) > 1
    how = "any" if options.pairing == "auto" else options.pairing
    if how != "any" and not has_labels:
        raise UserError(f"--pairing {how} needs images of several labels, but {split} of {source.title} has none")
    chosen = {}
    for pairing in pairings if options.pairing == "auto" and has_labels else (how,):
        pairs = pair_images(labels, pairing, options.count)
        if len(pairs):
            chosen[pairing] = tuple(_make_images(run, source, split, pool[i], images[i], labels[i]) for i in pairs.T)
    if not chosen:
        pairing = f"no two images for --pairing {options.pairing}"
        raise DataError(f"{split} of {source.title} has {pairing}; take another --split, --data or --pairing")
    return chosen


def write_picture(path: pathlib.Path, picture: Image.Image | None, facts: dict[str, Any]) -> None:
    """Writes a picture (None: only facts) to `path` as PNG, then `facts` as JSON, so that the JSON means complete."""
    with name_unwritable_path(path):
        if picture is not None:
            picture.save(buffer := io.BytesIO(), "PNG")
            write_bytes(path, buffer.getvalue())
        write_json(path.with_suffix(".json"), facts)


@contextlib.contextmanager
def name_unwritable_path(path: pathlib.Path) -> Iterator[None]:
    """A context that converts an OSError to a UserError, whose message has `path` and advises to use --out."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another folder with --out") from error

"""Functions that the commands about a run share: they open the run, choose its images, and save pictures."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tfdecouple.data import Source, choose_user_crop, chosen_batches
from tfdecouple.data.image_file import read_image
from tfdecouple.errors import DataError, UserError, one_line
from tfdecouple.metrics import drawn_images as metric_images
from tfdecouple.runs.opened_run import Run
from tfdecouple.runs.run_folder import is_run_folder
from tfdecouple.runtime.progress import Counter
from tfdecouple.storage.files import write_bytes, write_json

PICTURES = "pictures"


class OpenedRun(Run):
    """An opened run, with the text and the values about it in every picture and JSON file."""

    def encode_z(self, images: np.ndarray) -> np.ndarray:
        """Returns the posterior means of images, float32 `[n, d_z]`; v is not computed."""
        return np.asarray(self.model.posterior(images).mean())

    def encode_split(
        self, source: Source, split: str, indices: np.ndarray, title: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the posterior means of images of a split, float32 `[n, d_z]`, and their labels, int32 `[n]`.

        Args:
            source: the data set.
            split: the name of the split.
            indices: the indices of the images in ascending order, `[n]`, at least one.
            title: the text beside the progress, on standard error.
        """
        codes, labels, done = [], [], 0
        with Counter(title, len(indices)) as counter:
            for batch in chosen_batches(source, split, indices, batch_size=128):
                codes.append(self.encode_z(batch["image"]))
                labels.append(batch["label"])
                counter(done := done + len(batch["label"]))
        return np.concatenate(codes), np.concatenate(labels)

    def facts(self) -> dict[str, Any]:
        """Returns the values that identify the run in every JSON file: path, step, and whether weights are averaged."""
        return {"run": self.path, "step": self.step, "averaged": self.averaged}

    def note(self) -> str:
        """Returns the sentence about the run that ends every caption."""
        return f"Run {self.name}, update {self.step:,}{', averaged weights' if self.averaged else ''}."


@dataclasses.dataclass(frozen=True)
class Images:
    """The images that a command uses, with texts and values about them.

    Attributes:
        pixels: the images as the model sees them, uint8 `[n, height, width, channels]`.
        facts: the values for the JSON file: data set, split, indices and labels, or the files.
        note: the sentence about the data set in the caption.
        labels: the label of each image, int32 `[n]`, for a model that knows labels; otherwise None.
    """

    pixels: np.ndarray
    facts: dict[str, Any]
    note: str
    labels: np.ndarray | None = None


def open_run(options: argparse.Namespace, z_for: str = "") -> OpenedRun:
    """Returns the opened run of `--run`; `z_for` is the name of a command that needs z, such as "switch".

    Raises:
        UserError: where the run is missing or has no checkpoint, or its model has no z although `z_for` is given.
    """
    return OpenedRun.open(options.run, z_for)


def open_data(run: OpenedRun, options: argparse.Namespace) -> Source:
    """Returns the run's data set, or the data set of `--data` and `--data-dir`.

    Raises:
        DataError: where data are missing, or the data set lacks the split `--split`.
    """
    source = run.open_source(options.data, options.data_dir, options.download)
    source.split(options.split)
    return source


def draw_indices(source: Source, split: str, count: int, seed: int) -> np.ndarray:
    """Returns `count` different indices of a split, drawn with the seed; all indices if the split has fewer images."""
    return metric_images.draw_indices(source, split, min(count, source.sizes[split]), seed)


def load_by_index(source: Source, split: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images of a split, uint8 `[n, height, width, channels]`, and their labels, int32 `[n]`.

    The indices, `[n]`, at least one, may be in any order and repeated.

    Raises:
        DataError: where an image cannot be read.
    """
    batches = list(chosen_batches(source, split, indices, batch_size=256))
    images, labels, ordered = (np.concatenate([batch[key] for batch in batches]) for key in ("image", "label", "index"))
    order = np.searchsorted(ordered, indices)
    return images[order], labels[order]


def draw_images(run: OpenedRun, options: argparse.Namespace, source: Source | None = None) -> Images:
    """Returns `--count` images of `--split` drawn with `--seed`; all images if the split has fewer.

    The images are from `source`, or from the data set that `open_data` returns.

    Raises:
        DataError: where data are missing, the split is unknown, or an image is unreadable.
    """
    source = source or open_data(run, options)
    indices = draw_indices(source, options.split, options.count, options.seed)
    return describe_images(run, source, options.split, indices, *load_by_index(source, options.split, indices))


def describe_images(
    run: OpenedRun, source: Source, split: str, indices: np.ndarray, pixels: np.ndarray, labels: np.ndarray
) -> Images:
    """Returns quantised images of a split, with the values about them for the JSON file."""
    run.require_labels(source)
    facts = {
        "data": source.title,
        "split": split,
        "indices": indices.tolist(),
        "labels": name_labels(source, labels),
    }
    quantized = np.asarray(run.model.quantize_images(pixels))
    return Images(quantized, facts, f"Images: {source.title}, {split}.", run.model.wanted_labels(labels))


def name_labels(source: Source, labels: np.ndarray) -> list[str | None]:
    """Returns the name of each image's label; None for an image without a label."""
    return [source.label_names[label] if 0 <= label < len(source.label_names) else None for label in labels]


def read_image_files(run: OpenedRun, paths: list[str], takes: str = "--pairs takes") -> Images:
    """Returns the images in files, of any size, cropped and resized as the images of a folder are.

    The text `takes` begins the advice at the end of an error, such as "--pairs takes image files".

    Raises:
        DataError: where a file is missing or no image.
    """
    crop = choose_user_crop(run.config.data)
    images = []
    for path in paths:
        if not pathlib.Path(path).exists():
            raise DataError(f"there is no image file {path}; {takes} the paths of image files")
        try:
            images.append(read_image(path, run.config.model.image_shape, crop))
        except DataError as error:
            # The message is made anew, because the advice of `read_image` is about folders of images.
            reason = one_line(error.__cause__ or error)
            raise DataError(f"cannot read the image {path}: {reason}; {takes} image files") from error
    pixels = np.asarray(run.model.quantize_images(np.stack(images)))
    return Images(pixels, {"files": list(paths)}, "Own images.")


def pair_labels(a: Images, b: Images) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the labels of the first and of the second images of pairs; None if `a` or `b` has no labels."""
    return None if a.labels is None or b.labels is None else (a.labels, b.labels)


def choose_pairs(
    run: OpenedRun, options: argparse.Namespace, pairings: tuple[str, ...]
) -> dict[str, tuple[Images, Images]]:
    """Returns by pairing the first and the second images of at most `--count` pairs, drawn from `--split`.

    The pairings are `pairings` for `--pairing auto` and images with labels. With `--pairs` the only pairing is "pairs",
    and the images are those in the files.

    Raises:
        DataError: where images are missing or unreadable, or no pair can be formed.
        UserError: where `--pairing` needs labels, and the images have fewer than two.
    """
    if options.pairs:
        return {"pairs": (read_image_files(run, options.pairs[::2]), read_image_files(run, options.pairs[1::2]))}
    source = open_data(run, options)
    by_label = options.pairing != "any" and len(source.label_names) > 1
    # The pool is large, so that it has enough images of each label for pairs within the label.
    size = max(500, 8 * options.count) if by_label else 2 * options.count
    pool = draw_indices(source, options.split, size, options.seed)
    images, labels = load_by_index(source, options.split, pool)
    has_labels = len(set(labels[labels >= 0].tolist())) > 1
    how = "any" if options.pairing == "auto" else options.pairing
    if how != "any" and not has_labels:
        raise UserError(
            f"--pairing {how} needs images of several labels, but {options.split} of {source.title} "
            "has none; use --pairing any"
        )
    chosen = {}
    for pairing in pairings if options.pairing == "auto" and has_labels else (how,):
        pairs = pair_up(labels, pairing, options.count)
        if len(pairs):
            first, second = (
                describe_images(run, source, options.split, pool[side], images[side], labels[side]) for side in pairs.T
            )
            chosen[pairing] = (first, second)
    if not chosen:
        raise DataError(
            f"{options.split} of {source.title} has no two images for --pairing {options.pairing}; take another "
            "--split, --data or --pairing"
        )
    return chosen


def pair_up(labels: np.ndarray, pairing: str, count: int) -> np.ndarray:
    """Returns at most `count` pairs of images, as indices into `labels`, int64 `[pairs, 2]`; each image at most once.

    The argument `pairing` is "within" (a label), "across" (labels) or "any". Pairs of all labels, int `[n]` with -1 for
    none, take turns, so that a few pairs show many labels.
    """
    if pairing == "any":
        return np.arange(len(labels) // 2 * 2).reshape(-1, 2)[:count]
    queues = [np.flatnonzero(labels == label).tolist() for label in dict.fromkeys(labels.tolist()) if label >= 0]
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count:
        queues = [queue for queue in queues if len(queue) > (pairing == "within")]
        if len(queues) < (1 if pairing == "within" else 2):
            break
        first, *others = queues
        if pairing == "within":
            pairs.append((first.pop(0), first.pop(0)))
            queues = [*others, first]
        else:
            second, *others = others
            pairs.append((first.pop(0), second.pop(0)))
            # The second label comes first in the next pair, so that over time each label meets many others.
            queues = [second, *others, first]
    return np.array(pairs, np.int64).reshape(-1, 2)


def find_results_folder(run: str, out: pathlib.Path | None, name: str) -> pathlib.Path:
    """Returns the folder for results of a run: `out` (--out) if given, otherwise RUN/NAME, such as RUN/pictures.

    For weights that are no folder it is ./NAME, or a new temporary folder if the working directory is not writable.
    """
    if out is not None:
        return out
    if is_run_folder(run):
        return pathlib.Path(run) / name
    if os.access(name if os.path.isdir(name) else os.curdir, os.W_OK):
        return pathlib.Path(name)
    return pathlib.Path(tempfile.mkdtemp(prefix="tfdecouple-")) / name


def save_picture(
    opened: OpenedRun, options: argparse.Namespace, name: str, picture: Image.Image | bytes, summary: str, **facts: Any
) -> None:
    """Writes NAME.png and NAME.json, with the command, the run and `facts`, and prints the path and the summary.

    Raises:
        UserError: where the files cannot be written.
    """
    facts = {"command": options.command, **opened.facts(), **facts}
    write_picture(find_results_folder(options.run, options.out, PICTURES) / f"{name}.png", picture, facts, summary)


def write_picture(path: pathlib.Path, picture: Image.Image | bytes, facts: dict[str, Any], summary: str) -> None:
    """Writes a picture (or the bytes of a PNG) and a JSON file beside it, and prints the path and the summary.

    Raises:
        UserError: where the files cannot be written.
    """
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        picture = buffer.getvalue()
    with name_unwritable(path):
        write_bytes(path, picture)
        write_json(path.with_suffix(".json"), facts)
    print(f"{path}: {summary}", flush=True)


@contextlib.contextmanager
def name_unwritable(path: pathlib.Path) -> Iterator[None]:
    """Turns errors of the system while a result is written into a UserError that names its path and `--out`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another folder with --out") from error

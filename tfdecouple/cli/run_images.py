"""Functions that the commands about a run share: they open the run, choose its images, and save pictures."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tfdecouple.data import Source, choose_user_crop
from tfdecouple.data.image_file import read_image
from tfdecouple.errors import DataError, UserError, one_line
from tfdecouple.metrics.drawn_images import draw_image_indices, read_drawn_images
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import Run
from tfdecouple.runs.run_folder import is_run_folder
from tfdecouple.storage.files import write_bytes, write_json

PICTURES = "pictures"


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


def open_data(run: Run, options: argparse.Namespace) -> Source:
    """Returns the run's data set, or the data set of `--data` and `--data-dir`."""
    source = run.open_source(options.data, options.data_dir, options.download)
    source.open_split(options.split)
    return source


def draw_images(run: Run, options: argparse.Namespace, source: Source | None = None) -> Images:
    """Returns `--count` images of `--split`, or all, drawn with `--seed` from `source` or what `open_data` returns."""
    source = source or open_data(run, options)
    indices = draw_image_indices(source, options.split, options.count, options.seed)
    return describe_images(
        run, source, options.split, indices, *read_drawn_images(run.model, source, options.split, indices)
    )


def describe_images(
    run: Run, source: Source, split: str, indices: np.ndarray, pixels: np.ndarray, labels: np.ndarray
) -> Images:
    """Returns quantised images of a split with the values about them for the JSON file."""
    run.require_labels(source)
    names = name_labels(source, labels)
    facts = {"data": source.title, "split": split, "indices": indices.tolist(), "labels": names}
    return Images(pixels, facts, f"Images: {source.title}, {split}.", run.model.drop_unused_labels(labels))


def name_labels(source: Source, labels: np.ndarray) -> list[str | None]:
    """Returns the name of each image's label; None for an image without a label."""
    return [source.label_names[label] if 0 <= label < len(source.label_names) else None for label in labels]


def read_image_files(run: Run, paths: list[str]) -> Images:
    """Returns the images in files, of any size, cropped and resized as the images of a folder are."""
    crop = choose_user_crop(run.config.data)
    images = []
    for path in paths:
        if not pathlib.Path(path).exists():
            raise DataError(f"there is no image file {path}")
        try:
            images.append(read_image(path, run.config.model.image_shape, crop))
        except DataError as error:
            # The message is made anew, because the advice of `read_image` is about folders of images.
            raise DataError(f"cannot read the image {path}: {one_line(error.__cause__ or error)}") from error
    pixels = np.asarray(run.model.quantize_images(np.stack(images)))
    return Images(pixels, {"files": list(paths)}, "Own images.")


def pair_labels(a: Images, b: Images) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the labels of the first and of the second images of pairs; None if `a` or `b` has no labels."""
    return None if a.labels is None or b.labels is None else (a.labels, b.labels)


def choose_pairs(run: Run, options: argparse.Namespace, pairings: tuple[str, ...]) -> dict[str, tuple[Images, Images]]:
    """Returns by pairing the first and the second images of at most `--count` pairs, drawn from `--split`.

    The pairings are `pairings` for `--pairing auto` and images with labels. Where the user names files, the only
    pairing is "pairs".
    """
    if options.files:
        return {"pairs": (read_image_files(run, options.files[::2]), read_image_files(run, options.files[1::2]))}
    source, split = open_data(run, options), options.split
    by_label = options.pairing != "any" and len(source.label_names) > 1
    # The pool is large, so that it has enough images of each label for pairs within the label.
    size = max(500, 8 * options.count) if by_label else 2 * options.count
    pool = draw_image_indices(source, split, size, options.seed)
    images, labels = read_drawn_images(run.model, source, split, pool)
    has_labels = len(set(labels[labels >= 0].tolist())) > 1
    how = "any" if options.pairing == "auto" else options.pairing
    if how != "any" and not has_labels:
        raise UserError(f"--pairing {how} needs images of several labels, but {split} of {source.title} has none")
    chosen = {}
    for pairing in pairings if options.pairing == "auto" and has_labels else (how,):
        pairs = pair_up(labels, pairing, options.count)
        if len(pairs):
            first, second = (
                describe_images(run, source, split, pool[side], images[side], labels[side]) for side in pairs.T
            )
            chosen[pairing] = (first, second)
    if not chosen:
        raise DataError(
            f"{split} of {source.title} has no two images for --pairing {options.pairing}; take another --split, "
            "--data or --pairing"
        )
    return chosen


def pair_up(labels: np.ndarray, pairing: str, count: int) -> np.ndarray:
    """Returns at most `count` pairs of images, as indices into `labels`, int64 `[pairs, 2]`; each image at most once.

    The argument `pairing` is "within" (a label), "across" (labels) or "any". Pairs of all labels, int `[n]` with -1 for
    none, take turns, so that a few pairs show many labels.
    """
    groups = [np.flatnonzero(labels == label).tolist() for label in dict.fromkeys(labels.tolist()) if label >= 0]
    if pairing == "any":
        groups = [list(range(len(labels)))]
    if pairing != "across":
        pairs = _take_turns(groups)
    elif groups:
        # Two images of a label follow each other and fall into two pairs, so that each label meets several others.
        images = [groups[0][0], *itertools.chain(*_take_turns([*groups[1:], groups[0][1:]]))]
        pairs = [pair for pair in zip(images[::2], images[1::2], strict=False) if labels[pair[0]] != labels[pair[1]]]
    else:
        pairs = []
    return np.array(pairs[:count], np.int64).reshape(-1, 2)


def _take_turns(groups: list[list[int]]) -> list[tuple[int, ...]]:
    """Returns pairs of neighbours within groups: the first pair of each group, then the second pairs, and so on."""
    pairs = (zip(group[::2], group[1::2], strict=False) for group in groups)
    return [pair for turn in itertools.zip_longest(*pairs) for pair in turn if pair]


def find_results_folder(run: str, out: pathlib.Path | None, name: str) -> pathlib.Path:
    """Returns the folder for results: `out` if given, else RUN/NAME, or ./NAME for weights that are no folder."""
    return out or (pathlib.Path(run) / name if is_run_folder(run) else pathlib.Path(name))


def save_picture(
    opened: Run, options: argparse.Namespace, name: str, picture: Image.Image | bytes, summary: str, **facts: Any
) -> None:
    """Writes NAME.png and NAME.json, with the command, the run and `facts`, and prints the path and the summary."""
    facts = {"command": options.command, **opened.facts(), **facts}
    write_picture(find_results_folder(options.run, options.out, PICTURES) / f"{name}.png", picture, facts, summary)


def write_picture(path: pathlib.Path, picture: Image.Image | bytes, facts: dict[str, Any], summary: str) -> None:
    """Writes a picture (or the bytes of a PNG) and a JSON file beside it, and prints the path and the summary."""
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


class OwnSizeResults:
    """The user's photographs at their own size, and the writer of results at this size.

    Attributes:
        small: the photographs shrunk to the model's size and quantised, uint8 `[n, height, width, channels]`.
    """

    def __init__(self, options: argparse.Namespace, model: DecoupledModel) -> None:
        from tfdecouple.visualization.full_size import read_photograph

        self._folder = find_results_folder(options.run, options.out, PICTURES)
        self._written: set[pathlib.Path] = set()
        shape = model.config.image_shape
        self._photographs = [read_photograph(path, shape[-1], options.max_side) for path in options.files]
        small = np.stack([photograph.shrink(shape) for photograph in self._photographs])
        self.small = np.asarray(model.quantize_images(small))

    def save(self, index: int, after: np.ndarray, change: str) -> None:
        """Writes a photograph with the change that the model made to its small copy, and prints the path of the file.

        `after` is the changed small copy; the name of the change follows the photograph's name in the file's name.
        """
        from tfdecouple.visualization.full_size import change_at_full_size

        photograph = self._photographs[index]
        pixels = change_at_full_size(photograph.pixels, self.small[index], after)
        content, suffix = photograph.encode_file(pixels)
        name = f"{pathlib.PurePath(photograph.path).stem}-{change}"
        # A number is added, because photographs in several folders may have the same name.
        path, number = self._folder / f"{name}{suffix}", 1
        while path in self._written:
            number += 1
            path = self._folder / f"{name}-{number}{suffix}"
        self._written.add(path)
        with name_unwritable(path):
            write_bytes(path, content)
        print(f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels", flush=True)

"""Functions that commands share: they choose images for a run's model, and write results as PNG and JSON files."""

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
from tfdecouple.errors import DataError, UserError, make_printable, one_line
from tfdecouple.metrics.drawn_images import draw_image_indices, read_drawn_images
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.opened_run import Run
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.storage.files import write_bytes, write_json

# Name of the sub-folder of a run folder into which commands write pictures.
PICTURES = "pictures"


@dataclasses.dataclass(frozen=True)
class Images:
    """Images for a model, with facts about these images for a JSON file and for the caption of a picture.

    Attributes:
        pixels: the images, quantised to the bits of the model, uint8 `[n, height, width, channels]`.
        facts: the values for the JSON file: data set, split, indices and labels; or the paths of the user's files.
        note: the sentence for the caption that names the data set.
        labels: the label of each image, int32 `[n]`, for a model with labels; otherwise None.
    """

    pixels: np.ndarray
    facts: dict[str, Any]
    note: str
    labels: np.ndarray | None = None


def open_data(run: Run, options: argparse.Namespace) -> Source:
    """Opens the data set of --data and --data-dir, by default the run's, loads split --split, returns the `Source`."""
    source = run.open_source(options.data, options.data_dir, options.download)
    source.open_split(options.split)
    return source


def choose_images(run: Run, options: argparse.Namespace, source: Source | None = None) -> Images:
    """Draws at most --count images of split --split, with seed --seed, from `source`, by default from --data."""
    source = source or open_data(run, options)
    indices = draw_image_indices(source, options.split, options.count, options.seed)
    pixels, labels = read_drawn_images(run.model, source, options.split, indices)
    return _make_images(run, source, options.split, indices, pixels, labels)


def _make_images(
    run: Run, source: Source, split: str, indices: np.ndarray, pixels: np.ndarray, labels: np.ndarray
) -> Images:
    run.require_labels(source)
    names = get_label_names(source, labels)
    facts = {"data": source.title, "split": split, "indices": indices.tolist(), "labels": names}
    return Images(pixels, facts, f"Images: {source.title}, {split}.", run.model.drop_unused_labels(labels))


def get_label_names(source: Source, labels: np.ndarray) -> list[str | None]:
    """Returns a list with the name of each image's label, None for an image without one; `labels` are int `[n]`."""
    return [source.label_names[label] if 0 <= label < len(source.label_names) else None for label in labels]


def read_image_files(run: Run, paths: list[str]) -> Images:
    """Reads the image files at `paths`, cropped and resized to the model's size; DataError if one cannot be read."""
    crop = choose_user_crop(run.config.data)
    images = []
    for path in paths:
        try:
            images.append(read_image(path, run.config.model.image_shape, crop))
        except DataError as error:
            # The message of `read_image` advises on data sets in folders, so only its cause is shown.
            raise DataError(f"cannot read the image {path}: {one_line(error.__cause__ or error)}") from error
    pixels = np.asarray(run.model.quantize_images(np.stack(images)))
    return Images(pixels, {"files": list(paths)}, "Own images.")


def get_pair_labels(a: Images, b: Images) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the labels of `a`, the first images of pairs, and of `b`, the second; None if one has no labels."""
    return None if a.labels is None or b.labels is None else (a.labels, b.labels)


def choose_pairs(run: Run, options: argparse.Namespace, pairings: tuple[str, ...]) -> dict[str, tuple[Images, Images]]:
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
            first, second = (_make_images(run, source, split, pool[i], images[i], labels[i]) for i in pairs.T)
            chosen[pairing] = (first, second)
    if not chosen:
        raise DataError(
            f"{split} of {source.title} has no two images for --pairing {options.pairing}; take another --split, "
            "--data or --pairing"
        )
    return chosen


def pair_images(labels: np.ndarray, pairing: str, count: int) -> np.ndarray:
    """Returns at most `count` pairs of indices of images, int64 `[pairs, 2]`; each image is in one pair at most.

    The labels are int `[n]`, -1 for an image without a label. `pairing` is "within", for pairs with equal labels;
    "across", for pairs with different labels; or "any". The pairs alternate between labels, to show many labels.
    """
    groups = [np.flatnonzero(labels == label).tolist() for label in dict.fromkeys(labels.tolist()) if label >= 0]
    if pairing == "any":
        groups = [list(range(len(labels)))]
    if pairing != "across":
        pairs = _alternate_groups(groups)
    elif groups:
        # `images` begins with one image of the first label, two of the second, two of the third, and so on. So the
        # first and second image, the third and fourth, and so on, have different labels.
        images = [groups[0][0], *itertools.chain(*_alternate_groups([*groups[1:], groups[0][1:]]))]
        pairs = [pair for pair in zip(images[::2], images[1::2], strict=False) if labels[pair[0]] != labels[pair[1]]]
    else:
        pairs = []
    return np.array(pairs[:count], np.int64).reshape(-1, 2)


def _alternate_groups(groups: list[list[int]]) -> list[tuple[int, ...]]:
    pairs = (zip(group[::2], group[1::2], strict=False) for group in groups)
    return [pair for turn in itertools.zip_longest(*pairs) for pair in turn if pair]


def find_results_folder(run: str, out: pathlib.Path | None, name: str) -> pathlib.Path:
    """Returns the folder for results: `out` unless None, else RUN/`name`, or ./`name` if `run` is not a run folder."""
    return out or (pathlib.Path(run) / name if RunFolder(run).is_folder else pathlib.Path(name))


def save_picture(
    opened: Run, options: argparse.Namespace, name: str, picture: Image.Image | bytes, summary: str, **facts: Any
) -> None:
    """Writes a picture as `name`.png, and the command, the run and `facts` as `name`.json; prints path and summary."""
    facts = {"command": options.command, **opened.facts(), **facts}
    path = find_results_folder(options.run, options.out, PICTURES) / f"{name}.png"
    write_picture(path, picture, facts)
    # The summary can have names from untrusted files.
    print(make_printable(f"{path}: {summary}"), flush=True)


def write_picture(path: pathlib.Path, picture: Image.Image | bytes | None, facts: dict[str, Any]) -> None:
    """Writes a picture (Pillow's, PNG bytes or None) to `path`, then `facts` as JSON, so that JSON means complete."""
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        picture = buffer.getvalue()
    with name_unwritable_path(path):
        if picture is not None:
            write_bytes(path, picture)
        write_json(path.with_suffix(".json"), facts)


@contextlib.contextmanager
def name_unwritable_path(path: pathlib.Path) -> Iterator[None]:
    """A context that converts an OSError to a UserError, whose message has `path` and advises to use --out."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another folder with --out") from error


class OwnSizeResults:
    """Applies to the user's full-size photographs the changes that the model made to small copies; writes the results.

    Attributes:
        names: the photographs' file names, without folders and endings.
        small: the photographs, reduced to the model's size and quantised, uint8 `[n, height, width, channels]`.
    """

    def __init__(self, options: argparse.Namespace, model: DecoupledModel) -> None:
        from tfdecouple.visualization.full_size import read_photograph

        self._folder = find_results_folder(options.run, options.out, PICTURES)
        self.names = [pathlib.PurePath(path).stem for path in options.files]
        self._written: set[pathlib.Path] = set()
        shape = model.config.image_shape
        self._photographs = [read_photograph(path, shape[-1], options.max_side) for path in options.files]
        small = np.stack([photograph.shrink_photograph(shape) for photograph in self._photographs])
        self.small = np.asarray(model.quantize_images(small))

    def save_photograph(self, index: int, after: np.ndarray, change: str) -> None:
        """Applies the change from `small[index]` to `after` to photograph `index`; writes the result, prints its path.

        `after` is uint8 `[height, width, channels]` of the model's size. With `change` "z-of-b", a.jpg becomes
        a-z-of-b.jpg.
        """
        from tfdecouple.visualization.full_size import change_at_full_size

        photograph = self._photographs[index]
        pixels = change_at_full_size(photograph.pixels, self.small[index], after)
        content, suffix = photograph.encode_photograph(pixels)
        name = f"{self.names[index]}-{change}"
        # A number is appended to the name if a photograph from another folder has the same name.
        path, number = self._folder / f"{name}{suffix}", 1
        while path in self._written:
            number += 1
            path = self._folder / f"{name}-{number}{suffix}"
        self._written.add(path)
        with name_unwritable_path(path):
            write_bytes(path, content)
        print(f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels", flush=True)

"""From the arguments of a command to the model, the images and the pairs that it works on."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import Any

import numpy as np

from tfdecouple.data import Source, chosen_batches, crop_of_own_images
from tfdecouple.data.image_file import read_image
from tfdecouple.errors import DataError, UserError, one_line
from tfdecouple.metrics.drawn_images import drawn_indices as drawn_exactly
from tfdecouple.runs import Run
from tfdecouple.runtime.progress import Counter


class OpenedRun(Run):
    """A run as commands take it, with what they say of it."""

    def z_of(self, images: np.ndarray) -> np.ndarray:
        """Returns the posterior means of images, float32 `[n, d_z]`, without the work for v."""
        return np.asarray(self.model.posterior(images).mean())

    def z_and_labels(self, source: Source, split: str, indices: np.ndarray, said: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the posterior means of images of a split, float32 `[n, d_z]`, and their labels, int32 `[n]`.

        Args:
            source: the data set.
            split: its split.
            indices: in ascending order, `[n]`, at least one.
            said: beside the progress, on standard error.
        """
        codes, labels, done = [], [], 0
        with Counter(said, len(indices)) as counter:
            for batch in chosen_batches(source, split, indices, batch_size=128):
                codes.append(self.z_of(batch["image"]))
                labels.append(batch["label"])
                counter(done := done + len(batch["label"]))
        return np.concatenate(codes), np.concatenate(labels)

    def facts(self) -> dict[str, Any]:
        """Returns what every JSON file says of the run."""
        return {"run": self.path, "step": self.step, "averaged": self.averaged}

    def note(self) -> str:
        """Returns the sentence that ends every caption."""
        return f"Run {self.name}, update {self.step:,}{', averaged weights' if self.averaged else ''}."


@dataclasses.dataclass(frozen=True)
class Images:
    """Images that a command works on.

    Attributes:
        pixels: as the model sees them, uint8 `[n, height, width, channels]`.
        facts: what the JSON file says of them: data set, split, indices and labels, or the files.
        note: what the caption says of where they come from, a sentence.
        labels: of each, int32 `[n]`, for a model that knows labels; else None.
    """

    pixels: np.ndarray
    facts: dict[str, Any]
    note: str
    labels: np.ndarray | None = None


def open_run(options: argparse.Namespace, z_for: str = "") -> OpenedRun:
    """Opens the run that `--run` names.

    Args:
        options: of the command.
        z_for: what needs z, such as "switch"; empty where a model without z will do.

    Raises:
        RunError: where there is no such run, or no checkpoint in it yet.
        UserError: for a model without z, where it is needed.
    """
    return OpenedRun.open(options.run, z_for)


def open_data(run: OpenedRun, options: argparse.Namespace) -> Source:
    """Opens the run's data set, or that of `--data` and `--data-dir`, and looks whether it has `--split`.

    Raises:
        DataError: for missing data or an unknown split.
    """
    source = run.open_source(options.data, options.data_dir, options.download)
    source.split(options.split)
    return source


def drawn_indices(source: Source, split: str, count: int, seed: int) -> np.ndarray:
    """Returns `count` different indices of a split, or all where there are fewer, drawn with the seed."""
    return drawn_exactly(source, split, min(count, source.sizes[split]), seed)


def load_chosen(source: Source, split: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns images by their indices.

    Args:
        source: the data set.
        split: its split.
        indices: `[n]`, at least one; repetition is allowed.

    Returns:
        uint8 `[n, height, width, channels]` and their labels, int32 `[n]`, in the order of `indices`.

    Raises:
        DataError: where an image cannot be read.
    """
    batches = list(chosen_batches(source, split, indices, batch_size=256))
    images, labels, found = (np.concatenate([batch[name] for batch in batches]) for name in ("image", "label", "index"))
    order = np.searchsorted(found, indices)
    return images[order], labels[order]


def drawn_images(run: OpenedRun, options: argparse.Namespace) -> Images:
    """Returns `--count` images of `--split`, drawn with `--seed`, or all where there are fewer.

    Raises:
        DataError: for missing data, an unknown split or an unreadable image.
    """
    source = open_data(run, options)
    indices = drawn_indices(source, options.split, options.count, options.seed)
    pixels, labels = load_chosen(source, options.split, indices)
    return _of_source(run, source, options.split, indices, pixels, labels)


def _of_source(
    run: OpenedRun, source: Source, split: str, indices: np.ndarray, pixels: np.ndarray, labels: np.ndarray
) -> Images:
    facts = {
        "data": source.title,
        "split": split,
        "indices": indices.tolist(),
        "labels": label_names(source, labels),
    }
    seen = np.asarray(run.model.quantize_images(pixels))
    run.require_labels(source)
    return Images(seen, facts, f"Images: {source.title}, {split}.", run.model.wanted_labels(labels))


def label_names(source: Source, labels: np.ndarray) -> list[str | None]:
    """Returns the names of labels, None for none."""
    return [source.label_names[label] if 0 <= label < len(source.label_names) else None for label in labels]


def own_images(run: OpenedRun, paths: list[str], takes: str = "--pairs takes") -> Images:
    """Reads image files of any size, cropped and resized as the images of a folder are.

    Args:
        run: the run.
        paths: of the files.
        takes: for messages, whose argument they are.

    Raises:
        DataError: where a file is missing or no image.
    """
    crop = crop_of_own_images(run.config.data)
    images = []
    for path in paths:
        if not pathlib.Path(path).exists():
            raise DataError(f"there is no image file {path}; {takes} the paths of image files")
        try:
            images.append(read_image(path, run.config.model.image_shape, crop))
        except DataError as error:
            # Its advice is for folders.
            reason = one_line(error.__cause__ or error)
            raise DataError(f"cannot read the image {path}: {reason}; {takes} image files") from error
    pixels = np.asarray(run.model.quantize_images(np.stack(images)))
    return Images(pixels, {"files": list(paths)}, "Own images.")


def labels_of_pair(a: Images, b: Images) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the labels of the first and of the second images; None where they have none that the model knows."""
    return None if a.labels is None or b.labels is None else (a.labels, b.labels)


def image_pairs(run: OpenedRun, options: argparse.Namespace, hows: tuple[str, ...]) -> dict[str, tuple[Images, Images]]:
    """Returns the pairs that `--pairs` names, or that are drawn from `--split`.

    Args:
        run: the run.
        options: of the command.
        hows: the pairings to make where the user names none and there are labels: "within", "across" or both.

    Returns:
        By the pairing ("pairs" for own images), the first and the second images of `--count` pairs, or of as many as
        there are.

    Raises:
        DataError: for images that are missing or cannot be read, or too few for a pair.
        UserError: for a pairing by label where there are no labels or just one.
    """
    if options.pairs:
        return {"pairs": (own_images(run, options.pairs[::2]), own_images(run, options.pairs[1::2]))}
    source = open_data(run, options)
    by_label = options.pairing in (None, "within", "across") and len(source.label_names) > 1
    # A choice among many more images than are needed: enough of each label for pairs within it.
    enough = max(500, 8 * options.count) if by_label else 2 * options.count
    pool = drawn_indices(source, options.split, enough, options.seed)
    images, labels = load_chosen(source, options.split, pool)
    labelled = len(set(labels[labels >= 0].tolist())) > 1
    if options.pairing in ("within", "across") and not labelled:
        raise UserError(
            f"--pairing {options.pairing} needs images of several labels, but {options.split} of {source.title} "
            "has none; use --pairing any"
        )
    made = {}
    for how in (options.pairing,) if options.pairing else hows if labelled else ("any",):
        pairs = pair_up(labels, how, options.count)
        if len(pairs):
            first, second = (
                _of_source(run, source, options.split, pool[chosen], images[chosen], labels[chosen])
                for chosen in pairs.T
            )
            made[how] = (first, second)
    if not made:
        asked = f" for --pairing {options.pairing}" if options.pairing else ""
        raise DataError(
            f"{options.split} of {source.title} has no two images{asked}; take another --split, --data or --pairing"
        )
    return made


def pair_up(labels: np.ndarray, how: str, count: int) -> np.ndarray:
    """Pairs images by their labels, each image at most once.

    Args:
        labels: int `[n]`, -1 for none.
        how: "within" a label, "across" labels or "any".
        count: the most pairs.

    Returns:
        Indices into `labels`, int64 `[pairs, 2]`. The labels take turns, so that a few pairs show many of them.
    """
    indices = np.arange(len(labels))
    if how == "any":
        return indices[: len(indices) // 2 * 2].reshape(-1, 2)[:count]
    ring = [indices[labels == label].tolist() for label in dict.fromkeys(labels.tolist()) if label >= 0]
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count:
        if how == "within":
            ring = [queue for queue in ring if len(queue) > 1]
            if not ring:
                break
            first, *rest = ring
            pairs.append((first.pop(0), first.pop(0)))
            ring = [*rest, first]
        else:
            ring = [queue for queue in ring if queue]
            if len(ring) < 2:
                break
            first, second, *rest = ring
            pairs.append((first.pop(0), second.pop(0)))
            # The second label comes first in the next pair: over time, neighbours of all kinds meet.
            ring = [second, *rest, first]
    return np.array(pairs, np.int64).reshape(-1, 2)

"""What commands share that make pictures of a run: open the run, choose images for its model, and write results."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tfdecouple.cli.options import DataSet, PairOptions, Sizes
from tfdecouple.errors import DataError, make_printable
from tfdecouple.storage.files import Facts
from tfdecouple.system import process

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from tfdecouple.config import Config
    from tfdecouple.data.sources import Source
    from tfdecouple.runs.opened_run import Run
    from tfdecouple.visualization.full_size import UserPhotograph


class Images(NamedTuple):
    """Images for a model, uint8 `[n, height, width, channels]`, and their labels, int32 `[n]`, None without labels.

    `facts` on the images are for a JSON file, and the `note` on data set and run is for the caption of a picture.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    facts: Facts
    note: str


class Pairs(NamedTuple):
    """All pairs of a picture, with `facts` for a JSON file, among them "pairing" and "count", and a caption's `note`.

    `parts` yields tuples of first images, second images, the labels of both or None, and a user's two photographs, if
    these are to be changed at their own size, too.
    """

    parts: Iterable[tuple[np.ndarray, np.ndarray, Sequence[np.ndarray | None], list[UserPhotograph]]]
    facts: Facts
    note: str


@dataclasses.dataclass(frozen=True)
class Results:
    """Writes results into the folder `path`; the JSON file of a picture also has `facts` on the command and the run."""

    path: pathlib.Path
    facts: Facts
    photographs: set[pathlib.Path] = dataclasses.field(default_factory=set)  # written so far

    def write(self, name: str, picture: Image.Image, summary: str, facts: Facts) -> None:
        """Writes a picture as NAME.png and `facts` as NAME.json, and prints the path with the summary."""
        path = self.path / f"{name}.png"
        write_picture(path, picture, {**self.facts, **facts})
        # The summary can have names from untrusted files.
        print(make_printable(f"{path}: {summary}"), flush=True)

    def write_photograph(
        self, photograph: UserPhotograph, before: np.ndarray, after: np.ndarray, change: str, unlimited: bool
    ) -> None:
        """Writes a photograph at its own size, changed as from `before` to `after`, and prints its path.

        `before` is the photograph at the model's size, uint8 `[height, width, channels]`, like `after`. With `change`
        "z-of-b", a.jpg becomes a-z-of-b.jpg; a number follows where photographs of different folders have one name.
        """
        from tfdecouple.visualization.full_size import find_result_name

        name, number = self.path / find_result_name(photograph.path), 1
        path = name.with_stem(f"{name.stem}-{change}")
        while path in self.photographs:
            path = name.with_stem(f"{name.stem}-{change}-{(number := number + 1)}")
        self.photographs.add(path)
        notes = photograph.write_changed(path, before, after, unlimited)
        size = f"{photograph.pixels.shape[1]} x {photograph.pixels.shape[0]} pixels"
        print(f"{path}: {'; '.join((size, *map(''.join, notes.items())))}", flush=True)


def open_run(command: str, run: str, out: pathlib.Path | None, needs_z: bool = False) -> tuple[Run, Results]:
    """Starts TensorFlow, opens a run for a command that draws pictures, and returns the run and the results' folder."""
    process.start_tensorflow()
    from tfdecouple.runs.opened_run import Run
    from tfdecouple.runs.run_folder import PICTURES

    opened = Run.open(run, z_for=command if needs_z else "")
    facts = {"command": command, **opened.facts()}
    return opened, Results(opened.folder.find_results_folder(PICTURES, out), facts)


def open_data(opened: Run, source: DataSet, default: str | None = None) -> tuple[Source, str]:
    """Opens a data set and a split, by default `default`, or the split of `choose_split`; returns both."""
    split = source.split or default or choose_split(opened.config, source)
    data = opened.open_source(source.data, source.data_dir, source.download)
    data.open_split(split)
    return data, split


def choose_split(config: Config, source: DataSet) -> str:
    """Returns the chosen split; by default "all" for a folder without splits that no training has used, or "test"."""
    data = source.data or ""
    folder, trained = (pathlib.Path(name.removeprefix("folder:")).expanduser() for name in (data, config.data.source))
    is_folder = data.startswith("folder:") and not (folder / "train").is_dir()
    return source.split or ("all" if is_folder and folder.resolve() != trained.resolve() else "test")


def read_images(opened: Run, source: Source, split: str, indices: np.ndarray) -> Images:
    """Reads the images of a split with `indices`."""
    from tfdecouple.data.drawn_images import read_drawn_images

    return _make_images(opened, source, split, indices, *read_drawn_images(opened.model, source, split, indices))


def _make_images(
    opened: Run, source: Source, split: str, indices: np.ndarray, pixels: np.ndarray, labels: np.ndarray
) -> Images:
    opened.require_labels(source)
    names = get_label_names(source, labels)
    facts = {"data": source.title, "split": split, "indices": indices.tolist(), "labels": names}
    note = f"Images: {source.title}, {split}. {opened.note()}"
    return Images(pixels, labels if opened.config.model.has_labels else None, facts, note)


def get_label_names(source: Source, labels: np.ndarray) -> list[str | None]:
    """Returns a list with the name of each image's label, None for an image without one; `labels` are int `[n]`."""
    return [source.label_names[label] if 0 <= label < len(source.label_names) else None for label in labels]


def choose_pairs(
    opened: Run, files: Sequence[pathlib.Path], options: PairOptions, pairings: Sequence[str], count: int
) -> list[Pairs]:
    """Returns the pairs of a user's photographs `files`, each read when it is needed, or pairs of a data set.

    From the data set, at most `options.count`, or else `count`, pairs are drawn for each pairing: for images of several
    labels those in `pairings`, such as "within" a label and "across" labels, for other images "any". DataError is
    raised if no two images make a pair.
    """
    if files:
        both = files[::2], files[1::2]
        read = (read_photographs(opened, pair, options) for pair in zip(*both, strict=True))
        parts = ((pixels[:1], pixels[1:], (None, None), photographs) for photographs, pixels in read)
        first, second = ({"files": list(map(str, side))} for side in both)
        facts = {"pairing": "pairs", "count": len(both[0]), "first": first, "second": second}
        return [Pairs(parts, facts, f"Own images. {opened.note()}")]
    from tfdecouple.data.drawn_images import draw_image_indices, pair_images, read_drawn_images

    count = options.count or count
    data, split = open_data(opened, options)
    # More images are drawn than the pairs need, so that most labels have several images.
    most = max(500, 8 * count) if len(data.label_names) > 1 else 2 * count
    pool = draw_image_indices(data, split, most, options.seed)
    pixels, labels = read_drawn_images(opened.model, data, split, pool)
    chosen = []
    for way in pairings if len(set(labels[labels >= 0].tolist())) > 1 else ["any"]:
        if len(pairs := pair_images(labels, way, count)):
            a, b = (_make_images(opened, data, split, pool[side], pixels[side], labels[side]) for side in pairs.T)
            facts = {"pairing": way, "count": len(pairs), "first": a.facts, "second": b.facts, "seed": options.seed}
            chosen.append(Pairs([(a.pixels, b.pixels, (a.labels, b.labels), [])], facts, a.note))
    if not chosen:
        raise DataError(f"{split} of {data.title} has no two images for a pair; take another --split")
    return chosen


def read_photographs(
    opened: Run, paths: Sequence[pathlib.Path], sizes: Sizes
) -> tuple[list[UserPhotograph], np.ndarray]:
    """Reads a user's photographs; returns them, and their pixels at the model's size, uint8 `[n, height, width, c]`.

    With --size own the whole photograph is reduced to the model's size; with --size model its middle, and the list is
    empty. DataError is raised if a photograph cannot be read.
    """
    import numpy as np

    from tfdecouple.data.image_file import read_image
    from tfdecouple.data.sources import choose_user_crop
    from tfdecouple.visualization.full_size import read_photograph
    from tfdecouple.visualization.guided_filter import shrink_photograph

    shape, photographs = opened.config.model.image_shape, []
    if sizes.size == "own":
        photographs = [read_photograph(str(path), shape[-1], sizes.max_side) for path in paths]
        images = [shrink_photograph(photograph.pixels, *shape[:2]) for photograph in photographs]
    else:
        crop = choose_user_crop(opened.config.data)
        images = [read_image(str(path), shape, crop) for path in paths]
    return photographs, np.asarray(opened.model.quantizer.quantize_pixels(np.stack(images)))


def write_picture(path: pathlib.Path, picture: Image.Image | None, facts: Facts) -> None:
    """Writes a picture (None: only facts) to `path` as PNG, then `facts` as JSON, which shows that both are whole."""
    from tfdecouple.storage.files import write_bytes, write_json

    if picture is not None:
        picture.save(buffer := io.BytesIO(), "PNG")
        write_bytes(path, buffer.getvalue())
    write_json(path.with_suffix(".json"), facts)

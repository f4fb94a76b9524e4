"""How well the model tells other images from those of the run, by each of its scores."""

from __future__ import annotations

import argparse
import dataclasses
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tfdecouple.cli.measures.base import Evaluation, Measure, Result, draws
from tfdecouple.data.sources import find_kind, kinds_listed
from tfdecouple.errors import DataError, UserError, nearest
from tfdecouple.runtime.extras import require

if TYPE_CHECKING:
    import numpy as np

    from tfdecouple.data import Source
    from tfdecouple.metrics.outliers import Batch, Scored

# Images that are made, not read: by name, what they are.
MADE = {
    "noise": "uniform noise",
    "constant": "images of one colour each",
    "permuted": "the run's images with their pixels in another order",
}
_LABEL = "label:"


class Outliers(Measure):
    """Scores of the images of --split against those of other images."""

    name = "outliers"
    order = 35

    def __init__(self, options: argparse.Namespace):
        super().__init__(options)
        # The other data sets by what --outliers calls them; opened in `prepare`.
        self._opened: dict[str, Source] = {}

    @classmethod
    def add_options(cls, group: Any) -> None:
        """Adds --outliers."""
        group.add_argument(
            "--outliers",
            nargs="+",
            default=[],
            metavar="SOURCE",
            help=f"also how well the model tells outliers: images of other data ({kinds_listed()}), {', '.join(MADE)}, "
            f"or {_LABEL}NAME, those of one label against the rest",
        )

    def check(self) -> None:
        """Refuses what is no source of images.

        Raises:
            UserError: with the nearest name.
        """
        for source in self.options.outliers:
            if source in MADE or source.startswith(_LABEL) or find_kind(source):
                continue
            raise UserError(
                f"--outliers has {source!r}{nearest(source, MADE)}; there are {', '.join(MADE)}, {_LABEL}NAME, and "
                f"{kinds_listed()}"
            )

    def prepare(self) -> None:
        """Opens the other data sets.

        Raises:
            UserError: without what draws the plot.
        """
        require("matplotlib", what="--outliers")
        from tfdecouple.data import open_source
        from tfdecouple.data.sources import with_source
        from tfdecouple.runs import load_config

        options, config = self.options, load_config(self.options.run)
        for name in options.outliers:
            if name in MADE or name.startswith(_LABEL):
                continue
            data = with_source(config.data, name)
            if options.data_dir:
                data = dataclasses.replace(data, data_dir=options.data_dir)
            source = open_source(data, config.model.image_shape, download=options.download)
            source.split(options.split)
            self._opened[name] = source

    def measure(self, evaluation: Evaluation) -> Result:
        """Scores all images once, and judges each score by each kind of outliers.

        Raises:
            DataError: for a label that all images have, or none.
        """
        from tfdecouple.metrics.outliers import CODEC, SCORES, Scorer, detections
        from tfdecouple.runtime.progress import Counter

        options = self.options
        names = list(dict.fromkeys(options.outliers))
        label_of = {name: _label(evaluation.source, name) for name in names if name.startswith(_LABEL)}
        scorer = Scorer(evaluation.opened.model, options.samples, options.seed)
        with Counter(f"scores of {options.split}", evaluation.count) as counter:
            known = scorer.all_of(_plain(evaluation.batches()), options.split, counter)
        compared, sizes, scored = {}, {}, {}
        for name in names:
            rest = known
            if name in label_of:
                chosen = known["label"] == label_of[name]
                if chosen.all() or not chosen.any():
                    raise DataError(
                        f"--outliers {name}: {chosen.sum()} of {len(chosen)} images have the label; it needs some with "
                        "it and some without"
                    )
                rest = {score: values[~chosen] for score, values in known.items()}
                scored[name] = {score: values[chosen] for score, values in known.items()}
            else:
                with Counter(f"scores of {name}", evaluation.count) as counter:
                    scored[name] = scorer.all_of(self._batches(evaluation, name), name, counter)
            compared[name] = detections(rest, scored[name], options.seed)
            sizes[name] = len(scored[name]["index"]), len(rest["index"])
        values = {
            "images": evaluation.count,
            "samples": options.samples,
            "codec": CODEC,
            "scores": {name: meaning for name, meaning in SCORES.items() if name in known},
            "outliers": {
                name: {"what": self._title(name), "images": outliers, "known_images": rest, "detection": compared[name]}
                for name, (outliers, rest) in sizes.items()
            },
            # Those of a label are among the known ones, whose labels stand beside them.
            "per_image": {
                name: _rows(each) for name, each in {options.split: known, **scored}.items() if name not in label_of
            },
        }
        return Result(values, _lines(compared, sizes, options), _picture(known, scored, evaluation, options))

    def _title(self, name: str) -> str:
        if name in self._opened:
            return f"{self._opened[name].title}, {self.options.split}"
        return MADE.get(name, "images of that label, against the rest")

    def _batches(self, evaluation: Evaluation, name: str) -> Iterator[Batch]:
        """Yields outliers in batches of the size of the run's images, as many as these where there are."""
        from tfdecouple.cli.opening import drawn_indices
        from tfdecouple.data import evaluation_batches
        from tfdecouple.metrics.outliers import constant_images, noise_images, permuted

        options, size = self.options, min(evaluation.batch_size, evaluation.count)
        if name in self._opened:
            source = self._opened[name]
            indices = drawn_indices(source, options.split, evaluation.count, options.seed)
            with source.guard():
                yield from _plain(evaluation_batches(source, options.split, batch_size=size, indices=indices))
        elif name == "permuted":
            for batch in _plain(evaluation.batches()):
                yield {**batch, "image": permuted(batch["image"], batch["index"], options.seed)}
        else:
            import numpy as np

            make = noise_images if name == "noise" else constant_images
            shape = evaluation.opened.config.model.image_shape
            # Batch by batch: all at once would fill the memory.
            for start in range(0, evaluation.count, size):
                index = np.arange(start, start + size)
                image = make(shape, index, options.seed)
                yield {"image": image, "index": index, "weight": index < evaluation.count}


def _plain(batches: Any) -> Iterator[Batch]:
    yield from batches.as_numpy_iterator()


def _label(source: Source, name: str) -> int:
    """Returns the number of a label.

    Raises:
        UserError: where the source has no such label.
    """
    wanted = name.removeprefix(_LABEL)
    if wanted not in source.label_names:
        listed = ", ".join(source.label_names[:20]) or "none"
        raise UserError(
            f"--outliers has {name!r}, but {source.title} has no such label{nearest(wanted, source.label_names)}; it "
            f"has {listed}"
        )
    return source.label_names.index(wanted)


def _rows(scored: Scored) -> dict[str, list[Any]]:
    """Returns the scores of each image as plain numbers, of as many digits as float32 has."""
    return {
        name: [float(f"{value:.7g}") for value in values] if values.dtype.kind == "f" else values.tolist()
        for name, values in scored.items()
    }


def _lines(compared: dict[str, Any], sizes: dict[str, tuple[int, int]], options: Any) -> list[str]:
    from tfdecouple.metrics.outliers import SCORES

    lines = [f"outliers: how well each score tells them, {draws(options.samples)} an image, intervals of 95 %"]
    for name, found in compared.items():
        outliers, known = sizes[name]
        lines.append(f"    {name} ({outliers:,} images), against {known:,} of {options.split}")
        lines.append(f"        {'score':34}{'AUROC':>24}{'false positives at 95 %':>30}")
        for score, each in found.items():
            low, high = each["auroc_interval"]
            area = f"{each['auroc']:.3f} [{low:.3f}, {high:.3f}]"
            low, high = (100 * end for end in each["false_positives_interval"])
            share = f"{100 * each['false_positives']:.1f} % [{low:.1f}, {high:.1f}]"
            lines.append(f"        {SCORES[score]:34}{area:>24}{share:>30}")
    if any(each["auroc"] < 0.5 for found in compared.values() for each in found.values()):
        lines.append("    an AUROC below 0.5: by that score outliers are the more usual images")
    return lines


def _picture(known: Scored, scored: dict[str, Scored], evaluation: Evaluation, options: Any) -> Any:
    from PIL import Image

    from tfdecouple.metrics.outliers import SCORES
    from tfdecouple.visualization.plots import COLOURS, histogram_figure, png

    # Images of a label are some of the filled histogram's; more lines than colours cannot be told apart.
    others = {who: each for who, each in scored.items() if not who.startswith(_LABEL)} or scored
    shown = {options.split: known, **dict(list(others.items())[: len(COLOURS)])}
    panels: dict[str, dict[str, np.ndarray]] = {
        meaning: {who: each[score] for who, each in shown.items()}
        for score, meaning in SCORES.items()
        if score in known
    }
    what = f"Scores of {evaluation.source.title}, {options.split}, and of other images"
    title = f"{what}; the last bins hold what is beyond\n{evaluation.opened.note()}"
    return Image.open(io.BytesIO(png(histogram_figure(panels, title))))

"""`python -m tfdecouple evaluate`: measures a run, prints a table and keeps each result as a JSON file."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import RunError, UserError, one_line
from tfdecouple.metrics.base import Metric, Result
from tfdecouple.metrics.bits_per_dim import BitsPerDim, ImportanceWeighted
from tfdecouple.metrics.classification import Classification, LabelSamples
from tfdecouple.metrics.frechet import FrechetDistance
from tfdecouple.metrics.image_statistics import ImageStatistics
from tfdecouple.metrics.latent_use import UseOfZ
from tfdecouple.metrics.outliers import Outliers
from tfdecouple.metrics.probe import LinearProbe
from tfdecouple.runtime.process import start_tensorflow, was_interrupted

if TYPE_CHECKING:
    import tensorflow as tf

    from tfdecouple.cli.run_images import OpenedRun
    from tfdecouple.data import Source

# In the order of options, measuring and output; what takes longer comes later.
METRICS: list[type[Metric]] = [
    BitsPerDim,
    ImportanceWeighted,
    UseOfZ,
    ImageStatistics,
    Classification,
    Outliers,
    LinearProbe,
    LabelSamples,
    FrechetDistance,
]
# A line for each evaluation of test images: whoever chooses by them measures no new images.
TEST_EVALUATIONS = "test_evaluations.log"

_DETAILS = """\
Bits/dim is always measured; the options
add to it. The best weights so far are taken. Each result is a JSON file in the
folder --out; RUN/evaluation/test_evaluations.log has a line for each evaluation of
test images, wherever results go: choose between models by --split validation."""

_EPILOG = """\
examples:
  python -m tfdecouple evaluate --run runs/quickstart
      bits/dim (the ELBO) on the test split
  python -m tfdecouple evaluate --run runs/quickstart --split validation --importance 64 --images 100
      also the importance-weighted bound over 64 draws, on 100 validation images
  python -m tfdecouple evaluate --run runs/quickstart --latent-use
      also whether z is used: its KL, what it knows of the image, what another image's z costs
"""


def add_parser(commands: Any) -> None:
    """Adds the command to the sub-parsers of `python -m tfdecouple`."""
    parser = arguments.command(commands, "evaluate", "measure bits/dim of a run, and more", _DETAILS)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    arguments.add_run_alone(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=pathlib.Path,
        help="folder of results; default RUN/evaluation, or ./evaluation where RUN is no folder",
    )
    arguments.add_data(parser)
    parser.add_argument(
        "--images", type=int, default=0, metavar="N", help="N images, drawn with --seed (default 0: all; see --probe)"
    )
    what = parser.add_argument_group("what to measure")
    for measure in METRICS:
        measure.add_options(what)
    how = parser.add_argument_group("how")
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of all draws (default 0)")
    how.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images at once: memory and speed depend on it, no result (default the run's)",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command.

    Args:
        options: what the parser of `add_parser` returns.

    Returns:
        The exit status.

    Raises:
        KeyboardInterrupt: saying what is kept, where it was interrupted.
        UserError: in one line, for whatever the user can mend.
    """
    for name, least in {"images": 0, "batch_size": 1, "seed": 0}.items():
        arguments.at_least(options, name, least)
    if options.seed >= 2**31:
        raise UserError(f"--seed is {options.seed}; it must be below 2**31")
    measures = [measure(options) for measure in METRICS]
    for measure in measures:
        measure.check()
    start_tensorflow()
    import tensorflow as tf

    wanted = [measure for measure in measures if measure.is_wanted()]
    try:
        for measure in wanted:
            measure.prepare()
        needing = [measure.option for measure in wanted if measure.needs_z]
        evaluation = Evaluation(options, needing[0] if needing else "")
        # Before the first measure: a look at the test images is counted and takes its time.
        for measure in wanted:
            if measure.needs_classes and not evaluation.opened.config.model.has_classes:
                raise UserError(
                    f"{measure.option} needs a model that knows labels, and that of {evaluation.opened.path} knows none"
                )
        return _Command(evaluation, wanted).run()
    except tf.errors.ResourceExhaustedError as error:
        raise RunError(f"out of memory; try a smaller --batch-size ({one_line(error, first=True)})") from error


class Evaluation:
    """What is measured: a run's model, the images of a split that are wanted, and the devices.

    Attributes:
        opened: the run.
        source: the data set.
        size: how many images --split has.
        count: how many of them are wanted.
        batch_size: images at once.
        strategy: all GPUs where there are several, else TensorFlow's default.

    Args:
        options: of the command.
        needs_z: the option that needs z; empty where none does.

    Raises:
        UserError: for a run or images that cannot be opened, a model without z where it is needed, or images whose
            labels are not those that the model knows.
    """

    def __init__(self, options: argparse.Namespace, needs_z: str = ""):
        import tensorflow as tf

        from tfdecouple.cli.run_images import open_data, open_run
        from tfdecouple.training.strategy import strategy_over

        self.options = options
        gpus = tuple(gpu.name.partition("device:")[2] for gpu in tf.config.list_logical_devices("GPU"))
        self.strategy = strategy_over(gpus) if len(gpus) > 1 else tf.distribute.get_strategy()
        with self.strategy.scope():
            self.opened: OpenedRun = open_run(options, needs_z)
        self.source: Source = open_data(self.opened, options)
        self.opened.require_labels(self.source)
        self.size = self.source.sizes[options.split]
        # Where not all are wanted they are drawn, since folders are sorted by class.
        self.count = min(options.images or self.size, self.size)
        self.batch_size: int = options.batch_size or self.opened.config.training.evaluation_batch_size

    def batches(self) -> tf.data.Dataset:
        """Returns batches of all images, or of those drawn, as `tfdecouple.data.evaluation_batches` does."""
        from tfdecouple.data import evaluation_batches
        from tfdecouple.data.batches import even_batch
        from tfdecouple.data.labels import with_known_labels
        from tfdecouple.metrics.drawn_images import drawn_indices

        options = self.options
        size = even_batch(self.batch_size, self.count, self.strategy.num_replicas_in_sync)
        indices = None
        if self.count < self.size:
            indices = drawn_indices(self.source, options.split, self.count, options.seed)
        batches = evaluation_batches(self.source, options.split, batch_size=size, indices=indices)
        return with_known_labels(batches, self.source, self.opened.config.model)


class _Command:
    """The order of things: what is measured is printed and written, one after the other."""

    def __init__(self, evaluation: Evaluation, measures: list[Metric]):
        options = evaluation.options
        self.evaluation, self.options, self.measures = evaluation, options, measures
        self.opened, self.source = evaluation.opened, evaluation.source
        self.size, self.count = evaluation.size, evaluation.count
        from tfdecouple.cli.output import results_folder

        self.out: pathlib.Path = results_folder(options.run, options.out, "evaluation")
        self.test_evaluations: int | None = None
        self.kept: list[str] = []

    def run(self) -> int:
        """Measures, prints and writes; what was measured is kept if a later one fails.

        Returns:
            The exit status.

        Raises:
            KeyboardInterrupt: saying what is kept, where it was interrupted.
        """
        try:
            with self.source.guard():
                for number, measure in enumerate(self.measures):
                    result = measure.measure(self.evaluation)
                    if number == 0:
                        with writing_to(self.out):
                            self.out.mkdir(parents=True, exist_ok=True)
                        # Counted when the first figure is there to be seen, and before it is shown.
                        if self.options.split == "test" or not all(each.on_split for each in self.measures):
                            self.test_evaluations = count_test_evaluation(self.options.run, self.out, self.source)
                        self._introduce()
                    self._keep(measure, result)
        except (KeyboardInterrupt, Exception) as error:
            if not was_interrupted(error):
                raise
            kept = f"kept in {self.out}: {', '.join(self.kept)}" if self.kept else "nothing was measured yet"
            raise KeyboardInterrupt(kept) from error
        print(f"\nresults: {self.out}")
        return 0

    def _introduce(self) -> None:
        from tfdecouple.metrics import note_on_grey

        weights = "averaged weights" if self.opened.averaged else "weights"
        described = self.source.descriptions[self.options.split]
        print(f"{self.options.run}: {weights} of step {self.opened.step}, seed {self.options.seed}")
        drawn = "" if self.count == self.size else ", drawn"
        print(f"{self.source.title}, {self.options.split} ({described}): {self.count:,} of {self.size:,} images{drawn}")
        for note in self.source.notes:
            print(note)
        first = next(self.evaluation.batches().as_numpy_iterator())
        if grey := note_on_grey(first["image"][first["weight"] > 0]):
            print(grey)
        if self.test_evaluations is not None:
            print(f"evaluations of these test images, with this one: {self.test_evaluations}")

    def _keep(self, measure: Metric, result: Result) -> None:
        """Prints a result and writes it down with all that it depends on."""
        from tfdecouple.storage.files import write_bytes, write_json

        stated = {
            "command": "evaluate",
            "run": self.opened.path,
            "step": self.opened.step,
            "averaged_weights": self.opened.averaged,
            "data": self.source.title,
            "source": self.source.name,
            "seed": self.options.seed,
        }
        name = measure.name
        if measure.on_split:
            name = f"{name}-{self.options.split}"
            stated |= {
                "split": self.options.split,
                "split_description": self.source.descriptions[self.options.split],
                "split_images": self.size,
            }
        if self.test_evaluations is not None:
            stated["test_evaluations"] = self.test_evaluations
        if result.picture is not None:
            # Before the figures that it belongs to: whoever finds these finds all.
            picture = io.BytesIO()
            result.picture.save(picture, "PNG")
            with writing_to(self.out):
                write_bytes(self.out / f"{name}.png", picture.getvalue())
        print("\n" + "\n".join(result.lines), flush=True)
        with writing_to(self.out):
            write_json(self.out / f"{name}.json", {**stated, **result.values})
        self.kept.append(f"{name}.json")


def count_test_evaluation(run: str | pathlib.Path, out: pathlib.Path, source: Source) -> int:
    """Adds a line to the log of evaluations of test images, and returns how many lines it has of this data set.

    Args:
        run: whose `evaluation` has the log, wherever results go.
        out: has it where the run is no folder, or may not be written.
        source: the data set.

    Raises:
        RunError: where the log cannot be written.
    """
    from tfdecouple.runs.run_folder import is_folder

    own = pathlib.Path(run) / "evaluation"
    place = own if is_folder(run) and os.access(own if own.exists() else own.parent, os.W_OK) else out
    line = json.dumps(f"{source.name}: {source.title}, test ({source.descriptions['test']})") + "\n"
    with writing_to(place, advice=""):
        place.mkdir(parents=True, exist_ok=True)
        with (place / TEST_EVALUATIONS).open("a+", encoding="utf-8") as file:
            file.write(line)
            file.seek(0)
            return sum(each == line for each in file)


@contextlib.contextmanager
def writing_to(folder: pathlib.Path, advice: str = "; choose another --out") -> Iterator[None]:
    """Turns an error of the file system into one line, which ends with the advice.

    Raises:
        RunError: where a file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to the folder {folder}: {error.strerror or error}{advice}") from error

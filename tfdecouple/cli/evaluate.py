"""The command `evaluate`, which computes metrics of a run, prints them and writes each as a JSON file."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from tfdecouple.cli.options import DataSet, Folder, RunName, Seed, within
from tfdecouple.errors import UserError
from tfdecouple.metrics.metric import Metric, Option
from tfdecouple.registry import METRICS
from tfdecouple.storage.files import Facts
from tfdecouple.system import process
from tfdecouple.system.requirements import require_packages

if TYPE_CHECKING:
    import tensorflow as tf


def _annotate_option(option: Option) -> Parameter:
    return within(option.least, text=option.help) if option.kind in (int, float) else Parameter(help=option.help)


# The options of all metrics, as a dataclass.
MetricOptions = dataclasses.make_dataclass(
    "MetricOptions",
    [
        (name, Annotated[option.kind, _annotate_option(option)], option.default)
        for metric in METRICS.values()
        for name, option in metric.added_options.items()
    ],
    # Without a module of its own, the class counts as built into Python, whose fields are no options.
    namespace={"__module__": __name__},
)
_MEASURED = Parameter(
    name="*",
    group=Group(
        "What to measure",
        help="Bits/dim is always measured, and these options add metrics. Each result is printed, and written as a "
        "JSON file into --out. To choose between models use --split validation: evaluations of test images are "
        "counted in RUN/evaluation/test_evaluations.log.",
    ),
)


def evaluate(
    *,
    run: RunName = "photographs",
    out: Folder | None = None,
    source: DataSet = DataSet(),
    images: Annotated[int, within(0)] = 0,
    seed: Seed = 0,
    batch_size: Annotated[int | None, within(1)] = None,
    measured: Annotated[MetricOptions, _MEASURED] = MetricOptions(),  # type: ignore[valid-type]  # noqa: B008
) -> None:
    """Measure bits/dim and other metrics of a run.

    Args:
        out: folder for the results; default RUN/evaluation, or ./evaluation where RUN is no folder.
        images: number of images, drawn with --seed; 0 for all, see --probe.
        batch_size: images at once: changes memory and speed only; default the run's.
    """
    options = types.SimpleNamespace(run=run, images=images, seed=seed, batch_size=batch_size)
    vars(options).update(vars(source) | vars(measured))
    metrics = [metric for metric in (kind(options) for kind in METRICS.values()) if metric.is_requested()]
    for metric in metrics:
        if metric.needs_plots:
            require_packages("matplotlib", what=metric.option)
    process.start_tensorflow()
    from tfdecouple.cli.results import choose_split, name_unwritable_path, write_picture
    from tfdecouple.runs.run_folder import EVALUATION, RunFolder

    folder = RunFolder(run)
    out = folder.find_results_folder(EVALUATION, out)
    files: list[str] = []
    try:
        config = folder.read_config()
        options.split = choose_split(config, source)
        for metric in metrics:
            metric.prepare_inputs(config)
        evaluation = Evaluation(options, metrics)
        with evaluation.source.guard():
            for metric in metrics:
                result = metric.compute(evaluation)
                if not files:
                    with name_unwritable_path(out):
                        out.mkdir(parents=True, exist_ok=True)
                        # Test images count as evaluated from the first result on; a failure before it does not count.
                        if "test" in [metric.split for metric in metrics]:
                            data = evaluation.source
                            title = f"{data.name}: {data.title}, test ({data.descriptions['test']})"
                            evaluation.test_evaluations = folder.count_test_evaluation(title, out)
                    print(evaluation.describe_inputs())
                print("\n" + "\n".join(result.lines), flush=True)
                name = f"{metric.name}-{metric.split}"
                write_picture(out / f"{name}.png", result.picture, evaluation.describe_metric(metric) | result.values)
                files.append(f"{name}.json")
    except (KeyboardInterrupt, Exception) as error:
        if not process.was_interrupted(error):
            raise
        text = f"kept in {out}: {', '.join(files)}" if files else "nothing was measured yet"
        raise KeyboardInterrupt(text) from error
    print(f"\nresults: {out}")


class Evaluation:
    """The run, the images and the devices that all metrics of the command `evaluate` share.

    Attributes:
        options: the options of the command.
        strategy: a `tf.distribute` strategy: over all GPUs if the machine has several, else TensorFlow's default.
        opened, source: the opened run, with its model and config, and the opened data set.
        size, count: the number of images in the split `--split`, and of these that are evaluated.
        batch_size: the number of images in a batch, before it is rounded to a multiple of the number of devices.
        test_evaluations: the count of evaluations on test images, with this one; None if it uses no test images.
    """

    test_evaluations: int | None = None

    def __init__(self, options: Any, metrics: Sequence[Metric]):
        import tensorflow as tf

        from tfdecouple.runs.opened_run import Run
        from tfdecouple.training.workers import get_mirrored_strategy

        self.options = options
        gpus = tuple(gpu.name.partition("device:")[2] for gpu in tf.config.list_logical_devices("GPU"))
        self.strategy = get_mirrored_strategy(gpus) if len(gpus) > 1 else tf.distribute.get_strategy()
        with self.strategy.scope():
            self.opened = Run.open(options.run, next((metric.option for metric in metrics if metric.needs_z), ""))
        model = self.opened.config.model
        for metric in metrics:
            if metric.needs_labels and not model.has_labels:
                raise UserError(f"{metric.option} needs a model with labels; that of {options.run} has none")
            if metric.needs_posterior and model.has_label_codes:
                raise UserError(
                    f"{metric.option} needs z of an image, and z of this model is a function of the label "
                    "(model.prior is 'classes'); --classify measures what z knows of the label"
                )
        self.source = self.opened.open_source(options.data, options.data_dir, options.download)
        self.source.open_split(options.split)
        self.opened.require_labels(self.source)
        self.size = self.source.sizes[options.split]
        self.count = min(options.images or self.size, self.size)
        self.batch_size: int = options.batch_size or self.opened.config.training.evaluation_batch_size

    def make_image_batches(self) -> tf.data.Dataset:
        """Returns a dataset of batches of the images to evaluate: dicts with "image", "label", "index" and "weight"."""
        from tfdecouple.data.batches import make_evaluation_batches, round_batch_size
        from tfdecouple.data.drawn_images import draw_image_indices
        from tfdecouple.data.labels import check_batch_labels

        options = self.options
        size = round_batch_size(self.batch_size, self.count, self.strategy.num_replicas_in_sync)
        # A part of a split is drawn at random, because the first images of a folder often share a label.
        drawn = self.count < self.size
        indices = draw_image_indices(self.source, options.split, self.count, options.seed) if drawn else None
        batches = make_evaluation_batches(self.source, options.split, batch_size=size, indices=indices)
        return check_batch_labels(batches, self.source, self.opened.config.model)

    def describe_inputs(self) -> str:
        """Returns lines of text on the run, the images and, if there are any, the evaluations on test images."""
        split, averaged = self.options.split, "averaged " if self.opened.averaged else ""
        images = f"{self.count:,} of {self.size:,} images{', drawn' if self.count < self.size else ''}"
        lines = [
            f"{self.options.run}: {averaged}weights of step {self.opened.step}, seed {self.options.seed}",
            f"{self.source.title}, {split} ({self.source.descriptions[split]}): {images}",
        ]
        if self.test_evaluations is not None:
            lines.append(f"evaluations of these test images, with this one: {self.test_evaluations}")
        return "\n".join(lines)

    def describe_metric(self, metric: Metric) -> Facts:
        """Returns facts on the run and the images of a metric for its JSON file."""
        opened, source, splits = self.opened, self.source, metric.split.split("+")
        facts = {"command": "evaluate", "run": opened.folder.run, "step": opened.step}
        facts |= {"averaged_weights": opened.averaged, "seed": self.options.seed}
        facts |= {"data": source.title, "source": source.name, "split": metric.split}
        facts["split_description"] = "+".join(source.descriptions[split] for split in splits)
        facts["split_images"] = sum(source.sizes[split] for split in splits)
        return facts if self.test_evaluations is None else {**facts, "test_evaluations": self.test_evaluations}

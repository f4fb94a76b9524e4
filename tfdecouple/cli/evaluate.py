"""The command `evaluate`, which computes metrics of a run, prints them and writes each as a JSON file."""

from __future__ import annotations

import dataclasses
import types
from typing import Annotated

from cyclopts import Group, Parameter

from tfdecouple.cli.options import DataSet, Folder, RunName, Seed, within
from tfdecouple.metrics.metric import Evaluation, Option
from tfdecouple.registry import METRICS
from tfdecouple.system import process
from tfdecouple.system.requirements import require_packages


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
    import tensorflow as tf

    from tfdecouple.cli.results import choose_split, write_picture
    from tfdecouple.runs.run_folder import EVALUATION, RunFolder
    from tfdecouple.training.workers import get_mirrored_strategy

    folder = RunFolder(run)
    out = folder.find_results_folder(EVALUATION, out)
    files: list[str] = []
    try:
        config = folder.read_config()
        options.split = choose_split(config, source)
        for metric in metrics:
            metric.prepare_inputs(config)
        gpus = tuple(gpu.name.partition("device:")[2] for gpu in tf.config.list_logical_devices("GPU"))
        strategy = get_mirrored_strategy(gpus) if len(gpus) > 1 else tf.distribute.get_strategy()
        evaluation = Evaluation(options, metrics, strategy)
        with evaluation.source.guard():
            for metric in metrics:
                result = metric.compute(evaluation)
                if not files:
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

"""`python -m tfdecouple evaluate`: measures a run, prints a table and keeps each result as a JSON file."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tfdecouple.cli import options as arguments
from tfdecouple.errors import ConfigError, RunError, one_line
from tfdecouple.runtime.process import start_tensorflow

if TYPE_CHECKING:
    # TensorFlow is imported when a run is measured, not where `--help` is answered.
    import tensorflow as tf

    from tfdecouple.cli.opening import OpenedRun
    from tfdecouple.data import Source
    from tfdecouple.metrics.bounds import Bound, BoundEvaluator
    from tfdecouple.metrics.estimate import Estimate
    from tfdecouple.metrics.latent_use import LatentUse

LOOKS = "looks.json"

# Instead of a file of --frechet: the Inception network of FID in the cache folder.
_INCEPTION = "inception"

# What a linear probe takes unless told otherwise, of training and of test images: so many, and of so many colour
# values, at most. The time of a fit goes with these.
_PROBE_IMAGES, _PROBE_VALUES = 10_000, 2**26
# Fewer are too few to fit anything on.
_PROBE_LEAST = 10

# Dimensions of z that the table lists; the file has them all.
_LISTED = 12

_DETAILS = """\
Bits/dim is always measured; the options
add to it. The best weights so far are taken. Each result is a JSON file in the
folder --out; looks.json there counts how often test images were looked at: choose
between models by --split validation."""

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
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder; it may still be training")
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, help="folder of results; default RUN/evaluation")
    arguments.add_data(parser)
    parser.add_argument(
        "--images", type=int, default=0, metavar="N", help="N images, drawn with --seed (default 0: all; see --probe)"
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--samples", type=int, default=1, metavar="K", help="draws per image for ELBO and use of z (default 1)"
    )
    what.add_argument(
        "--importance",
        type=int,
        default=0,
        metavar="K",
        help="also the importance-weighted bound over K draws per image, a tighter one (default 0: none)",
    )
    what.add_argument("--latent-use", action="store_true", help="also whether z is used")
    what.add_argument(
        "--probe", action="store_true", help="also linear classifiers of z, v and pixels on test images; needs labels"
    )
    what.add_argument(
        "--probe-images",
        type=int,
        default=0,
        metavar="N",
        help="training images for them, drawn (default 0: as --images, else at most 10000, fewer where they are large)",
    )
    what.add_argument(
        "--frechet",
        metavar="EXTRACTOR",
        help="also the Frechet distance by an ONNX or Keras file; inception: FID, whose network --download fetches",
    )
    what.add_argument(
        "--trust",
        action="store_true",
        help="the extractor may be a Keras file (.keras), which can run code: only where you know where it comes from",
    )
    what.add_argument(
        "--frechet-images",
        type=int,
        default=10_000,
        metavar="N",
        help="samples, and test images to compare them with, for the Frechet distance (default 10000)",
    )
    what.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="of these samples' local code v (default 1)"
    )
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
        The exit status: 0, or 130 where it was interrupted.

    Raises:
        UserError: in one line, for whatever the user can mend.
    """
    _check(options)
    start_tensorflow()
    import tensorflow as tf

    try:
        return _Evaluation(options).run()
    except tf.errors.ResourceExhaustedError as error:
        raise RunError(f"out of memory; try a smaller --batch-size ({one_line(error, first=True)})") from error


def _check(options: argparse.Namespace) -> None:
    """Refuses values out of range before anything is loaded.

    Raises:
        ConfigError: naming the option.
    """
    least = {
        "images": 0,
        "samples": 1,
        "importance": 0,
        "batch_size": 1,
        "seed": 0,
        "probe_images": 0,
        "frechet_images": 2,
    }
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least {bound}")
    if options.seed >= 2**31:
        raise ConfigError(f"--seed is {options.seed}; it must be below 2**31")
    if not (math.isfinite(options.temperature) and options.temperature >= 0):
        raise ConfigError(f"--temperature is {options.temperature}; it must be a number, at least 0")
    if options.frechet not in (None, _INCEPTION) and not pathlib.Path(options.frechet).exists():
        raise ConfigError(
            f"--frechet: there is no file {options.frechet}; give the file of a feature extractor, or {_INCEPTION}"
        )
    if str(options.frechet).endswith(".keras") and not options.trust:
        raise ConfigError(
            f"--frechet {options.frechet}: a Keras file can run code; give --trust where you know where it comes from, "
            "or take an ONNX file"
        )


class _Evaluation:
    """The run, the images, and the order of things."""

    def __init__(self, options: argparse.Namespace):
        from tfdecouple.cli.opening import open_data, open_run

        self.options = options
        # First of all: it is a matter of seconds to see that it is missing, and of hours to come to it.
        self.extractor = _extractor(options)
        self.strategy = _strategy()
        with self.strategy.scope():
            self.opened: OpenedRun = open_run(options, "--latent-use" if options.latent_use else "")
        self.source: Source = open_data(self.opened, options)
        self.size = self.source.sizes[options.split]
        # Where not all are wanted they are drawn, since folders are sorted by class.
        self.count = min(options.images or self.size, self.size)
        self.batch_size: int = options.batch_size or self.opened.config.training.evaluation_batch_size
        self.out: pathlib.Path = options.out or pathlib.Path(options.run) / "evaluation"
        self.looks: int | None = None
        self.kept: list[str] = []

    def run(self) -> int:
        """Measures, prints and writes, one thing after the other: what was measured is kept if a later one fails.

        Returns:
            The exit status.
        """
        try:
            self._measure()
        except KeyboardInterrupt:
            kept = f"kept in {self.out}: {', '.join(self.kept)}" if self.kept else "nothing was measured yet"
            _say(f"error: interrupted; {kept}")
            return 130
        print(f"\nresults: {self.out}")
        return 0

    def _measure(self) -> None:
        options = self.options
        with self.source.guard():
            bound = self._bound("ELBO", options.samples)
            # Counted when the first figure is there to be seen, and before it is shown.
            if options.split == "test" or options.probe or options.frechet:
                self.looks = self._count_look()
            self._introduce()
            self._keep(f"bits_per_dim-{options.split}", bound.to_dict(), _bound_lines(bound))
            if options.importance:
                bound = self._bound("importance-weighted", options.importance)
                self._keep(f"importance-{options.split}", bound.to_dict(), _bound_lines(bound))
            if options.latent_use:
                use = self._latent_use()
                self._keep(f"latent_use-{options.split}", use.to_dict(), _latent_lines(use))
            if options.probe:
                self._keep_report("probe", self._probe())
            if self.extractor:
                self._keep_report("frechet", self._frechet(self.extractor))

    # --- measuring ---

    def _batches(self) -> tf.data.Dataset:
        """Returns batches of all images, or of those drawn."""
        from tfdecouple.cli.opening import drawn_indices
        from tfdecouple.data import evaluation_batches

        options, replicas = self.options, self.strategy.num_replicas_in_sync
        size = math.ceil(min(self.batch_size, self.count) / replicas) * replicas
        indices = None
        if self.count < self.size:
            indices = drawn_indices(self.source, options.split, self.count, options.seed)
        return evaluation_batches(self.source, options.split, batch_size=size, indices=indices)

    def _bound(self, bound: str, k: int) -> Bound:
        from tfdecouple.metrics.bounds import BoundEvaluator
        from tfdecouple.runtime.progress import Counter

        # Few images and many draws fill a batch together.
        at_once = max(1, min(k, self.batch_size // self.count))
        evaluator: BoundEvaluator = BoundEvaluator(self.opened.model, self.strategy, at_once)
        with Counter(f"{bound}, {_draws(k)} an image", self.count) as counter:
            return evaluator(
                self._batches(),
                bound=bound,
                k=k,
                split=self.options.split,
                averaged_weights=self.opened.averaged,
                seed=self.options.seed,
                on_batch=counter,
            )

    def _latent_use(self) -> LatentUse:
        from tfdecouple.metrics.latent_use import measure_latent_use
        from tfdecouple.runtime.progress import Counter

        samples = self.options.samples
        with Counter("use of z", self.count * (1 + samples)) as counter:
            return measure_latent_use(
                self.opened.model,
                self._batches(),
                split=self.options.split,
                averaged_weights=self.opened.averaged,
                samples=samples,
                seed=self.options.seed,
                on_batch=counter,
            )

    def _probe(self) -> dict[str, Any]:
        from tfdecouple.metrics.probe import linear_probe

        sizes, asked = self.source.sizes, self.options.images
        fitting = min(_PROBE_IMAGES, _PROBE_VALUES // math.prod(self.opened.config.model.image_shape))
        of_train = max(asked, _PROBE_LEAST) if asked else fitting
        return linear_probe(
            self.opened.model,
            self.source,
            train_images=self.options.probe_images or min(sizes["train"], of_train),
            test_images=min(asked or fitting, sizes["test"]),
            seed=self.options.seed,
            batch_size=self.batch_size,
            say=_say,
        )

    def _frechet(self, extractor: pathlib.Path) -> dict[str, Any]:
        from tfdecouple.metrics.frechet import frechet_report

        return frechet_report(
            self.opened.model,
            self.source,
            extractor,
            count=self.options.frechet_images,
            trust=self.options.trust,
            reference=min(self.options.frechet_images, self.source.sizes["test"]),
            temperature=self.options.temperature,
            seed=self.options.seed,
            batch_size=self.batch_size,
            say=_say,
        )

    # --- saying and keeping ---

    def _introduce(self) -> None:
        weights = "averaged weights" if self.opened.averaged else "weights"
        described = self.source.descriptions[self.options.split]
        print(f"{self.options.run}: {weights} of step {self.opened.step}, seed {self.options.seed}")
        drawn = "" if self.count == self.size else ", drawn"
        print(f"{self.source.title}, {self.options.split} ({described}): {self.count:,} of {self.size:,} images{drawn}")
        if self.looks is not None:
            times = "for the first time" if self.looks == 1 else f"{self.looks} times"
            print(f"these test images were looked at {times}, by the count of {self.out / LOOKS}")

    def _keep_report(self, name: str, report: dict[str, Any]) -> None:
        text = report.pop("text")
        if "confusion" in report:
            from tfdecouple.storage.files import write_bytes
            from tfdecouple.visualization.confusion import confusion_picture

            # Before the figures that it belongs to: whoever finds these finds all.
            picture = io.BytesIO()
            confusion_picture(report, self.source.label_names).save(picture, "PNG")
            with _writing_to(self.out):
                write_bytes(self.out / f"{name}.png", picture.getvalue())
        self._keep(name, report, text.splitlines() if isinstance(text, str) else list(text))

    def _keep(self, name: str, values: dict[str, Any], lines: list[str]) -> None:
        """Prints a result and writes it down with all that it depends on."""
        from tfdecouple.storage.files import write_json

        print("\n" + "\n".join(lines), flush=True)
        stated = {
            "command": "evaluate",
            "run": self.opened.path,
            "step": self.opened.step,
            "averaged_weights": self.opened.averaged,
            "data": self.source.title,
            "source": self.source.name,
            "seed": self.options.seed,
        }
        if name not in ("probe", "frechet"):
            stated |= {
                "split": self.options.split,
                "split_description": self.source.descriptions[self.options.split],
                "split_images": self.size,
            }
        if self.looks is not None:
            stated["looks_at_test"] = self.looks
        with _writing_to(self.out):
            write_json(self.out / f"{name}.json", _plain({**stated, **values}))
        self.kept.append(f"{name}.json")

    def _count_look(self) -> int:
        """Counts this look at the test images, and returns how many there were with it.

        Raises:
            RunError: where the count cannot be read or written.
        """
        from tfdecouple.storage.files import write_json
        from tfdecouple.storage.locks import locked

        path = self.out / LOOKS
        key = f"{self.source.name}: {self.source.title}, test ({self.source.descriptions['test']})"
        with _writing_to(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            # Two evaluations at a time must not count as one.
            with locked(self.out / ".looks.lock", wait=True):
                try:
                    looks = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
                    count = int(looks.get(key, 0)) + 1
                except (ValueError, TypeError, AttributeError) as error:
                    raise RunError(
                        f"{path} is no count of looks at the test images ({error}); move it away to count anew"
                    ) from error
                write_json(path, {**looks, key: count})
        return count


def _extractor(options: argparse.Namespace) -> pathlib.Path | None:
    """Returns the file of --frechet, fetched where it is that of FID, is missing and --download is given."""
    if options.frechet != _INCEPTION:
        return pathlib.Path(options.frechet) if options.frechet else None
    from tfdecouple.metrics.inception import find_inception

    return find_inception(options.download, _say)


def _strategy() -> tf.distribute.Strategy:
    """Returns all GPUs where there are several, else TensorFlow's default."""
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    return tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()


@contextlib.contextmanager
def _writing_to(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write to the folder {folder}: {error.strerror or error}; choose another --out"
        ) from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    """Returns a value without NaN and infinities, which JSON does not know: null stands for them."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _draws(k: int) -> str:
    return f"{k} draw{'s' if k > 1 else ''}"


def _with_error(mean: float, error: float, digits: int) -> str:
    known = f" ± {error:.{digits}f}" if math.isfinite(error) else ""
    return f"{mean:.{digits}f}{known}"


def _estimated(estimate: Estimate, digits: int) -> str:
    return _with_error(estimate.mean, estimate.standard_error, digits)


def _bound_lines(bound: Bound) -> list[str]:
    figure = _with_error(bound.bits_per_dim, bound.standard_error, 4)
    name = bound.bound if bound.bound == "ELBO" else f"{bound.bound} bound"
    lines = [f"{figure} bits/dim: {name}, {_draws(bound.k)} an image, {bound.images:,} images"]
    if bound.bound == "ELBO":
        for part in ("reconstruction", "kl", "dequantization"):
            lines.append(f"    {part:15} {_estimated(getattr(bound, part), 2):>22} nats an image")
    else:
        lines.append(f"    {_estimated(bound.gain, 4)} below the ELBO over the same draws")
        lines.append(f"    {bound.effective_draws:.2f} effective draws of {bound.k}")
    return lines


def _latent_lines(use: LatentUse) -> list[str]:
    dimensions = len(use.mean_variance)
    method = "exact" if use.kl_method == "exact" else f"Monte Carlo, {_draws(use.samples)} an image"
    costs = _estimated(use.shuffling_costs, 4)
    lines = [
        f"use of z: {dimensions} numbers, {use.prior} prior, {use.images:,} images",
        f"    KL(q(z|x) || p(z))   {_estimated(use.kl, 3)} nats an image ({method})",
        f"    information I(x; z)  {_estimated(use.mutual_information, 3)} nats, over {use.information_images:,} "
        f"images (can show at most {use.information_limit:.2f})",
        f"    active units         {use.active_units} of {dimensions} (variance of the posterior mean above 0.01)",
        f"    bits/dim             {_estimated(use.bits_per_dim, 4)}, and with the z of another image "
        f"{_estimated(use.shuffled_bits_per_dim, 4)}: {costs} worse",
        "    dimension   variance of mean   KL to N(0, 1)   information I(x; z_i), KL to q(z_i)",
    ]
    by_information = sorted(range(dimensions), key=lambda i: -use.information[i])
    for i in by_information[:_LISTED]:
        lines.append(
            f"    {i:9}   {use.mean_variance[i]:16.4f}   {use.kl_to_normal[i]:13.4f}   {use.information[i]:9.4f}"
        )
    if dimensions > _LISTED:
        lines.append(f"    and {dimensions - _LISTED} dimensions of less information")
    return lines

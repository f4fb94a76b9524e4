"""A run from its first step to its last: when what happens."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdecouple.config import Config, difference
from tfdecouple.data import Source, evaluation_batches, load_images, open_source, training_batches
from tfdecouple.data.codecs import lossless_bits_per_dim
from tfdecouple.errors import ConfigError, RunError, UserError
from tfdecouple.metrics import BitsPerDim, Evaluator, save_pictures
from tfdecouple.parameters import require_memory
from tfdecouple.runs import CHECKPOINTS, CONFIG, load_config, load_weights
from tfdecouple.runtime.memory import address_space, shown_bytes
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError
from tfdecouple.storage.files import TEMPORARY, write_json
from tfdecouple.training.cluster import find_cluster
from tfdecouple.training.figures import WINDOW, StepResult
from tfdecouple.training.folder import SUMMARY, RunFolder, read_summary
from tfdecouple.training.log import MetricsLog, NoLog
from tfdecouple.training.precision_check import check_precision
from tfdecouple.training.progress import Progress
from tfdecouple.training.release import traces_released
from tfdecouple.training.signals import Stopped, StopRequest
from tfdecouple.training.state import TrainingState
from tfdecouple.training.step import TrainStep
from tfdecouple.training.strategy import check_batch, make_strategy
from tfdecouple.training.workers import Workers, losses_in_one_line
from tfdecouple.visualization.grids import reconstruct

# Addresses that TensorFlow's libraries and threads take, of which most are never touched: with 3 GB it ends the process
# from within, with 4.5 GB the quickstart trains.
_ADDRESSES = 4 * 2**30

# How many held-out images the pictures show, and at most go into the comparison with lossless codecs.
_PICTURED = 40
_CODED = 1000

# Even a run of a single step is evaluated on this many images.
_LEAST_EVALUATED = 64


class InterruptedRunError(RunError):
    """The run was asked to stop and has saved its state."""


class DivergedError(RunError):
    """Too many steps in a row were not finite."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        workdir: the run folder.
        summary: what `summary.json` holds.
        is_chief: whether this process wrote it: the only one, or the chief of several workers.
    """

    workdir: pathlib.Path
    summary: dict[str, Any]
    is_chief: bool = True


def train(
    config: Config,
    workdir: str | pathlib.Path,
    *,
    devices: int | None = None,
    download: bool = False,
    cluster: str = "auto",
) -> Outcome:
    """Trains a run to its last step, from the beginning or from where it stopped.

    The global seed of Keras is set, since initial weights are drawn from it. In a cluster all workers call this with
    the same arguments, before TensorFlow has run anything; the first of them, the chief, alone reads and writes the
    run folder.

    Args:
        config: the whole run.
        workdir: the run folder; made if absent.
        devices: number of devices, of each worker; None for all GPUs, or one CPU.
        download: prepare the data set with TFDS where it is missing.
        cluster: where the other workers are read from, see `cluster.find_cluster`.

    Returns:
        The outcome, with the test bits/dim of the best weights.

    Raises:
        ConfigError: where options do not fit each other or the devices, or the processor cannot do the precision.
        DataError: where images are missing or unreadable.
        InterruptedRunError: after SIGTERM, SIGHUP or Ctrl-C; the state is saved.
        DivergedError: where training.max_skipped_steps steps in a row were not finite.
        LostWorkerError: where another worker has ended.
        RunError: where the folder holds another run, is in use, or cannot be written.
    """
    folder = pathlib.Path(workdir)
    members = find_cluster(cluster)
    if members is None:
        with traces_released():
            return _train(config, folder, Workers(make_strategy(devices)), download)
    if members.number == 0:
        print(f"waiting for all of {len(members.workers)} workers: {', '.join(members.workers)}", flush=True)
    with losses_in_one_line(members.number), traces_released():
        strategy = make_strategy(devices, members)
        return _train(config, folder, Workers(strategy, len(members.workers), members.number), download)


def _train(config: Config, path: pathlib.Path, workers: Workers, download: bool) -> Outcome:
    try:
        with RunFolder(path, config) as folder, contextlib.ExitStack() as stack:
            _check_alike(workers, config)
            check_batch(config.training, workers.strategy.num_replicas_in_sync)
            _check_memory(config)
            resumed = workers.by_chief(folder.check)
            source = workers.together(lambda: open_source(config.data, config.model.image_size, download))
            workers.same("the images", json.dumps(source.sizes))
            stack.enter_context(source.guard())
            return _Run(config, folder, workers, source).run(resumed)
    except OSError as error:
        raise RunError(
            f"cannot write to the run folder {path}: {error.strerror or error}; "
            "what was saved before is still there, the same command goes on from it"
        ) from error
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        # The config of a run that took no step is not written.
        where = " in another --workdir" if (path / CONFIG).is_file() else ""
        said = (str(error).splitlines() or ["no more is said"])[0][:200]
        raise RunError(
            f"out of memory; start again{where} with a smaller training.batch_size or more "
            f"training.micro_batches ({said})"
        ) from error


def _check_memory(config: Config) -> None:
    """Refuses a model that cannot be trained here, whatever the batch.

    Raises:
        ConfigError: where weights, gradients, Adam's moments and averages need more memory than the machine has; of
            machines with a GPU, whose memory holds them, the weights alone.
        RunError: where the process may use too few addresses for TensorFlow itself.
    """
    if (limit := address_space()) < _ADDRESSES:
        raise RunError(
            f"programs may use {shown_bytes(limit)} of addresses here (ulimit -v), and training needs "
            f"{shown_bytes(_ADDRESSES)} or more, whatever the model; lift the limit with ulimit -v unlimited"
        )
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    require_memory(config.model, copies=1 if has_gpu else 4 + bool(config.training.ema_decay))


def _check_alike(workers: Workers, config: Config) -> None:
    """Refuses workers that were started with different options.

    Raises:
        RunError: naming one of them and what differs.
    """
    chiefs = Config.from_dict(workers.by_chief(config.to_dict))
    changed = difference(chiefs, config)
    listed = "; ".join(f"{name} is {own!r}, of worker 0 {other!r}" for name, (other, own) in changed.items())

    def check() -> None:
        if listed:
            raise RunError(f"all workers must be started with the same options; here {listed}")

    workers.together(check)


class _Run:
    """The loop, and what it needs at hand."""

    def __init__(self, config: Config, folder: RunFolder, workers: Workers, source: Source):
        self.config = config
        self.training = config.training
        self.claim = folder.claim
        self.folder = folder.path
        self.workers = workers
        self.strategy = strategy = workers.strategy
        self.source = source
        keras.utils.set_random_seed(config.training.seed)
        with strategy.scope():
            self.state = TrainingState(config)
        self.checkpoints = CheckpointFolder(self.folder / CHECKPOINTS, config.training.keep_checkpoints)
        self.step_function = TrainStep(config, self.state, strategy)
        self.evaluator = Evaluator(self.state.model, strategy)
        self.step = 0
        self.window = np.zeros(len(WINDOW) + 1)
        self.skipped_in_all = 0
        self.exact = ""
        self.begun = 0
        self.is_claimed = False

    def run(self, resumed: bool) -> Outcome:
        messages, begins_anew = self.workers.by_chief(lambda: self._open_folder(resumed))
        if not begins_anew:
            self._take_over()
        self.begun = self.step
        summary = self.workers.by_chief(self._finished_summary)
        if summary:
            return Outcome(self.folder, summary, self.workers.is_chief)
        self.log: MetricsLog | NoLog = NoLog()
        with contextlib.ExitStack() as stack:
            quiet = None if self.workers.is_chief else stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            self.progress = Progress(self.training.steps, self.step, quiet)
            stack.callback(self.progress.close)
            stack.callback(lambda: self.log.close())
            self._introduce(messages)
            self.workers.together(self._check_precision)
            if begins_anew:
                self._begin()
            else:
                self._claim_folder()
            with StopRequest() as stop:
                self._loop(stop)
                self._claim_folder()
                return self._finish(stop)

    # --- beginning ---

    def _open_folder(self, resumed: bool) -> tuple[list[str], bool]:
        """Reads what is saved; returns lines to say about it, and whether the run begins anew."""
        self.checkpoints.clean()
        for left in self.folder.glob(TEMPORARY):
            left.unlink(missing_ok=True)
        messages = self._restore() if resumed else []
        return messages, int(self.state.step.numpy()) == 0 and not self.checkpoints.steps()

    def _take_over(self) -> None:
        """Takes the chief's state, and goes on from there."""
        self.workers.spread(variable for group in self.state.groups().values() for variable in group.values())
        self.step = int(self.state.step.numpy())
        self.window = self.state.window.numpy()
        self.skipped_in_all = self.step - int(self.state.updates.numpy())

    def _finished_summary(self) -> dict[str, Any] | None:
        """Returns the summary of a run that has nothing left to do."""
        if self.step < self.training.steps:
            return None
        try:
            summary = read_summary(self.folder)
        except ValueError:
            print(f"{SUMMARY} is damaged; the best weights are measured on the test images again", flush=True)
            return None
        if summary is None or summary.get("steps") != self.step:
            return None
        print(f"{self.folder} is complete at step {self.step}; a larger --steps lets it go on")
        return summary

    def _claim_folder(self) -> None:
        """Writes the first files of the run: after its first step, or a mistake would block its correction."""
        if not self.is_claimed:
            self.workers.by_chief(self._begin_files)
            self.is_claimed = True

    def _begin_files(self) -> None:
        self.claim()
        self.log = log = MetricsLog(self.folder, self.begun)
        if log.damaged:
            self.progress.say(
                f"metrics.jsonl: {log.damaged} damaged rows are left out; the checkpoints are not touched"
            )

    def _check_precision(self) -> None:
        dtype = "bfloat16" if self.training.precision == "mixed_bfloat16" else "float32"
        check_precision(self.state.model.flow, dtype, self.training.remat)

    def _restore(self) -> list[str]:
        """Restores the newest whole checkpoint; returns lines to say about it."""
        messages: list[str] = []
        for step in self.checkpoints.steps():
            try:
                self.checkpoints.read("step", step, self.state.groups())
            except DamagedCheckpointError as error:
                messages.append(f"passed over: {error}")
                continue
            messages.append(f"goes on from step {int(self.state.step.numpy())}")
            for newer in (s for s in self.checkpoints.steps() if s > step):
                self.checkpoints.remove("step", newer)
            return messages
        if messages:
            raise RunError(
                f"no checkpoint in {self.checkpoints.path} can be read: {messages[-1]}; "
                "move the folder away to start again"
            )
        return messages

    def _introduce(self, messages: list[str]) -> None:
        sizes, count, workers = self.source.sizes, self.strategy.num_replicas_in_sync, self.workers.count
        kind = self.strategy.extended.worker_devices[0].rpartition("device:")[2].partition(":")[0]
        self.progress.say(
            f"{self.config.name}: {self.state.model.parameter_count()['total']:,} parameters, "
            f"{count} {kind}{'s' if count > 1 else ''}{f' of {workers} workers' if workers > 1 else ''}, "
            f"run folder {self.folder}\n"
            f"{self.source.title}: {sizes['train']:,} training images, "
            f"{sizes['validation']:,} for validation ({self.source.descriptions['validation']}), "
            f"{sizes['test']:,} for test"
        )
        for message in messages:
            self.progress.say(message)

    def _begin(self) -> None:
        """Starts the weights, from data or from another run."""
        if run := self.training.init_from:
            self.workers.by_chief(lambda: _warm_start(run, self.config, self.state))
        else:
            batch = min(self.training.init_images, self.source.sizes["train"])
            first = training_batches(self.source, self.config.data, batch_size=batch, seed=self.training.seed)
            self.state.model.initialize(next(iter(first))["image"], seed=self.training.seed)
        # Other hardware may round otherwise.
        self.workers.spread(self.state.model_group()["model"].values())
        self.state.optimizer.start_averages()

    # --- stepping ---

    def _loop(self, stop: StopRequest) -> None:
        training = self.training
        batches = self._batches()
        since, last = time.monotonic(), self.step
        stopping = bool(stop.reason) and self.workers.count == 1
        while self.step < training.steps and not stopping:
            parts = [next(batches) for _ in range(training.micro_batches)]
            result = self.step_function(parts, self.step, bool(stop.reason))
            self.step += 1
            self._account(result)
            if self.step % training.log_every == 0 or self.step == training.steps:
                now = time.monotonic()
                self._log(result, (self.step - last) * training.batch_size / (now - since))
                since, last = now, self.step
            evaluate = self.step % training.evaluate_every == 0 or self.step == training.steps
            if evaluate:
                self._evaluate()
            if evaluate or self.step % training.checkpoint_every == 0:
                self._save()
                since, last = time.monotonic(), self.step
            # Several workers must stop at the same step: one that the wish of any of them has reached all with.
            stopping = bool(result.stop) if self.workers.count > 1 else bool(stop.reason)
        if stopping and self.step < training.steps:
            self._save(again=False)
            cause = stop.reason or "a signal to another worker"
            raise InterruptedRunError(
                f"stopped by {cause} at step {self.step} of {training.steps}, saved; the same command goes on from here"
            )

    def _batches(self) -> Iterator[Any]:
        """Yields the images of each micro-batch, from the run's place in the data on."""
        parts = self.training.micro_batches

        def images(context: tf.distribute.InputContext) -> tf.data.Dataset:
            batches = training_batches(
                self.source,
                self.config.data,
                batch_size=self.training.batch_size // parts,
                seed=self.training.seed,
                start_step=self.step * parts,
                context=context,
            )
            return batches.map(lambda batch: batch["image"])

        return iter(self.strategy.distribute_datasets_from_function(images))

    def _account(self, result: StepResult) -> None:
        """Adds a step to the log's window, or looks into why it was not applied."""
        values = [float(value) for value in result[: len(WINDOW)]]
        self._claim_folder()
        if bool(result.applied):
            self.window += [*values, 1.0]
            return
        self.skipped_in_all += 1
        bad = [name.replace("_", " ") for name, value in zip(WINDOW, values, strict=True) if not math.isfinite(value)]
        self.progress.say(f"step {self.step} was not applied: {', '.join(bad)} not finite")
        in_a_row = int(self.state.skipped.numpy())
        if in_a_row >= self.training.max_skipped_steps:
            self._save()
            raise DivergedError(
                f"training diverged: {in_a_row} steps in a row were not finite "
                f"(at step {self.step}: {', '.join(bad)}); the weights before them are saved in "
                f"{self.checkpoints.path}. See docs/divergence.md"
            )

    def _log(self, result: StepResult, images_per_second: float) -> None:
        *sums, count = self.window
        means = dict(zip(WINDOW, (value / count if count else math.nan for value in sums), strict=True))
        self.log.write(
            "train",
            self.step,
            {
                **means,
                "learning_rate": float(result.learning_rate),
                "images_per_second": images_per_second,
                "skipped_steps": self.skipped_in_all,
            },
        )
        self.progress.update(self.step, means["bits_per_dim"], images_per_second)
        self.window[:] = 0

    # --- saving and evaluating ---

    def _save(self, again: bool = True) -> None:
        """Saves the state; with `again=False` not over what is saved already.

        Whoever sends SIGTERM may send SIGKILL in the middle of it.
        """
        self._claim_folder()
        self.state.window.assign(self.window)

        def write() -> None:
            if again or self.step not in self.checkpoints.steps():
                self.log.flush()
                self.checkpoints.write("step", self.step, self.state.groups())

        self.workers.by_chief(write)

    def _evaluate(self) -> None:
        """Measures the (averaged) weights on the validation split, draws pictures, keeps the best weights."""
        training = self.training
        batches = self._evaluation_batches("validation", self._evaluated("validation", training.evaluation_images))
        with self.state.optimizer.averaged():
            measured = self.evaluator(batches, seed=training.seed)
            best = measured.bits_per_dim < float(self.state.best_bits_per_dim.numpy())
            if best:
                self.state.best_bits_per_dim.assign(measured.bits_per_dim)
                self.state.best_step.assign(self.step)
            self.workers.by_chief(lambda: self._show(measured, best))

    def _show(self, measured: BitsPerDim, best: bool) -> None:
        """Keeps the best weights, draws pictures, and writes down what was measured."""
        model = self.state.model
        images, _ = load_images(self.source, "validation", min(_PICTURED, self.source.sizes["validation"]))
        images = np.asarray(model.quantize_images(images))
        signs = model.diagnose(images)
        if best:
            self.checkpoints.write("best", self.step, self.state.model_group())
        pictures = self._pictures(images)
        self.log.write("validation", self.step, {**measured.to_dict(), **signs})
        for name, path in pictures.items():
            self.log.write_picture(name, self.step, path)
        self.progress.say(
            f"step {self.step}: validation {measured.bits_per_dim:.4f} bits/dim on {measured.images} images"
            f"{' (best so far)' if best else ''}; {self.exact}; smallest coupling scale {signs['smallest_scale']:.3g}, "
            f"worst 1x1 condition number {signs['worst_condition']:.3g}"
        )

    def _evaluated(self, split: str, limit: int = 0) -> int:
        """Returns how many images of a split to evaluate on.

        At most as many as the run was trained on (but not too few): the evaluation of a trial run of a few steps must
        not take hours.
        """
        size = min(limit or self.source.sizes[split], self.source.sizes[split])
        return min(size, max(self.step * self.training.batch_size, _LEAST_EVALUATED))

    def _evaluation_batches(self, split: str, count: int) -> tf.data.Dataset:
        """Returns the first `count` images of a split, in batches that the devices can divide."""
        replicas = self.strategy.num_replicas_in_sync
        size = min(self.training.evaluation_batch_size, math.ceil(count / replicas) * replicas)
        return evaluation_batches(self.source, split, batch_size=size, limit=count)

    def _pictures(self, images: np.ndarray) -> dict[str, pathlib.Path]:
        prefix = f"step-{self.step:09d}-"
        try:
            exact = save_pictures(self.state.model, images, self.folder / "images", prefix, seed=self.training.seed)
        except UserError as error:
            # Pictures are no reason to stop a run: a model with alpha = 1 may lose an image now and then.
            self.exact = f"no pictures ({error})"
            return {}
        self.exact = f"reconstruction: {exact} of {len(images)} images identical to the last pixel"
        return {path.stem[len(prefix) :]: path for path in sorted((self.folder / "images").glob(f"{prefix}*.png"))}

    # --- ending ---

    def _finish(self, stop: StopRequest) -> Outcome:
        """Measures the best weights on the test split; a signal ends it at once, for all is saved."""
        try:
            with stop.at_once():
                return self._measure()
        except Stopped as stopped:
            raise InterruptedRunError(
                f"stopped by {stopped} while the test images were measured; all {self.step} steps and the best weights "
                "are saved, the same command measures them again"
            ) from stopped

    def _measure(self) -> Outcome:
        """Measures the best weights on the test split, once, beside lossless codecs on the same images."""
        model = self.state.model
        training = self.training
        self.workers.by_chief(lambda: load_weights(self.folder, model, averaged=training.ema_decay > 0))
        self.workers.spread(self.state.model_group()["model"].values())
        count = self._evaluated("test")
        test = self.evaluator(
            self._evaluation_batches("test", count), samples=training.evaluation_samples, seed=training.seed
        )
        summary = self.workers.by_chief(lambda: self._summarise(test, count))
        return Outcome(self.folder, summary, self.workers.is_chief)

    def _summarise(self, test: BitsPerDim, count: int) -> dict[str, Any]:
        """Writes down how the run ended."""
        model, training = self.state.model, self.training
        images, _ = load_images(self.source, "test", min(_CODED, count))
        # A codec keeps all 8 bits: beside a model of fewer there is nothing to compare.
        codecs = ("webp", "png") if self.config.model.n_bits == 8 else ()
        coded = {codec: lossless_bits_per_dim(images, codec) for codec in codecs}
        summary = {
            "steps": self.step,
            "best_step": int(self.state.best_step.numpy()),
            "validation_bits_per_dim": float(self.state.best_bits_per_dim.numpy()),
            "test": test.to_dict(),
            "averaged_weights": bool(training.ema_decay),
            "data": self.source.title,
            "parameters": model.parameter_count(),
            "lossless_codecs_bits_per_dim": coded,
            "lossless_codecs_images": len(images),
            "reconstruction": self._reconstruction(images[:_PICTURED]),
        }
        self.log.write("test", self.step, test.to_dict())
        write_json(self.folder / SUMMARY, summary)
        kind = "averaged weights" if training.ema_decay else "weights"
        self.progress.say(
            f"test: {test.bits_per_dim:.4f} bits/dim (ELBO, {test.samples} sample{'s' if test.samples > 1 else ''}, "
            f"{test.images} images, {kind} of step {summary['best_step']})"
        )
        for codec, bits in coded.items():
            name = {"webp": "lossless WebP", "png": "PNG"}[codec]
            self.progress.say(f"      {bits:.4f} bits/dim for {name} on {len(images)} of these images, one file each")
        return summary

    def _reconstruction(self, images: np.ndarray) -> str:
        try:
            _, exact = reconstruct(self.state.model, np.asarray(self.state.model.quantize_images(images)))
        except UserError as error:
            return f"not measured ({error})"
        return f"{exact} of {len(images)} images identical to the last pixel"


def _warm_start(run: str, config: Config, state: TrainingState) -> None:
    """Takes over the best weights of another run or import.

    Raises:
        ConfigError: where its architecture differs.
        RunError: where it holds none.
    """
    theirs = load_config(run)
    changed = {k: v for k, v in difference(theirs, config).items() if k.startswith("model.")}
    if changed:
        listed = "; ".join(f"{name} is {other!r} there and {ours!r} here" for name, (other, ours) in changed.items())
        raise ConfigError(f"--init-from {run} has another architecture: {listed}")
    load_weights(run, state.model, averaged=theirs.training.ema_decay > 0)

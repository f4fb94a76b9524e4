"""A run from its first step to its last: restore or initialise, steps, log, evaluations, saving, the end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, NoReturn, cast

import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.config import Config, title
from tfdecouple.data import Source, evaluation_batches, training_batches
from tfdecouple.data.batches import even_batch
from tfdecouple.data.labels import training_examples, with_known_labels
from tfdecouple.errors import DivergedError
from tfdecouple.metrics import BitsPerDim, Evaluator
from tfdecouple.model.precision_check import check_precision_of
from tfdecouple.runtime.precision import has_tf32
from tfdecouple.runtime.progress import TrainingProgress
from tfdecouple.training.evaluation import Reports
from tfdecouple.training.run_directory import RunDirectory
from tfdecouple.training.schedule import noise, with_noise
from tfdecouple.training.signals import InterruptedRunError, StopRequest
from tfdecouple.training.state import TrainingState
from tfdecouple.training.step import StepResult, TrainStep, Wishes
from tfdecouple.training.strategy import ready_on_devices
from tfdecouple.training.workers import Workers

# Even a run of a single step is evaluated on this many images of up to 64 pixels, and on a few of larger ones.
_LEAST_EVALUATED = 64
# So long may a stop or a divergence stay unknown, but for the step under way. Systems that end a program give it half a
# minute or more between SIGTERM and SIGKILL.
READ_SECONDS = 5.0
# Sums of so many steps over thousands of devices are whole numbers in float32.
_MOST = 1000


class Trainer:
    """Takes a run from where its directory has it to its end.

    Several workers take every step together. The chief alone uses the run directory, and what it reads into variables
    is broadcast; a process that trains alone is its own chief.

    Args:
        config: the run.
        state: what training changes; created in the strategy's scope.
        source: the images.
        strategy: the devices.
        directory: of the run.
        progress: to whoever watches.
        workers: all of them.
    """

    def __init__(
        self,
        config: Config,
        state: TrainingState,
        source: Source,
        strategy: tf.distribute.Strategy,
        directory: RunDirectory,
        progress: TrainingProgress,
        workers: Workers,
    ):
        self.config = config
        self.training = config.training
        self.state = state
        self.source = source
        self.strategy = strategy
        self.workers = workers
        self.directory = cast(RunDirectory, _OnChief(workers, directory))
        self.reports = cast(Reports, _OnChief(workers, Reports(config, state, source, directory, progress.note)))
        self.progress = progress
        self.take_step = TrainStep(config, state, strategy)
        self.evaluator = Evaluator(state.model, strategy)
        self.step = self._read_at = 0
        self.skipped = 0
        self.is_claimed = False

    def run(self) -> dict[str, Any]:
        """Trains to the last step and returns the run's summary.

        Raises:
            ConfigError: where the processor cannot do the precision.
            InterruptedRunError: after SIGTERM, SIGHUP or Ctrl-C; the state is saved.
            DivergedError: where training.max_skipped_steps steps in a row were not applied.
            RunError: where the run cannot go on from its folder.
        """
        messages, is_new = self._restore()
        summary = self.directory.finished_summary()
        if summary:
            return summary
        self.progress.begin(self.step)
        self._introduce(messages)
        self._check_precision()
        if is_new:
            self._start_weights()
            # Other hardware may round otherwise.
            self._broadcast_model()
            self.state.optimizer.start_averages()
        else:
            self._claim()
        with StopRequest() as stop:
            self._take_steps(stop)
            return self._end(stop)

    # --- beginning ---

    def _restore(self) -> tuple[list[str], bool]:
        """Restores what is saved; returns lines to say about it, and whether the run begins anew."""
        messages, is_new = self.directory.restore(self.state, self.source.sizes)
        if not is_new:
            self.workers.broadcast(variable for group in self.state.groups().values() for variable in group.values())
        self.step = self._read_at = int(self.state.step.numpy())
        self.skipped = self.step - int(self.state.updates.numpy())
        return messages, is_new

    def _introduce(self, messages: list[str]) -> None:
        sizes, count = self.source.sizes, self.strategy.num_replicas_in_sync
        kind = self.strategy.extended.worker_devices[0].rpartition("device:")[2].partition(":")[0]
        devices = f"{count} {kind}{'s' if count > 1 else ''}"
        if self.workers.count > 1:
            devices += f" of {self.workers.count} workers"
        self.progress.say(
            f"{title(self.config)}: {self.state.model.parameter_count()['total']:,} parameters, "
            f"{devices}, run folder {self.directory.path}\n"
            f"{self.source.title}: {sizes['train']:,} training images, "
            f"{sizes['validation']:,} for validation ({self.source.descriptions['validation']}), "
            f"{sizes['test']:,} for test"
        )
        for message in [*self.source.notes, *messages]:
            self.progress.say(message)

    def _check_precision(self) -> None:
        if self.training.precision == "tf32" and not has_tf32():
            self.progress.say("training.precision=tf32 changes nothing here: no GPU has it; NVIDIA's since Ampere do")
        self.workers.on_all(lambda: check_precision_of(self.state.model, self.training.precision, self.training.memory))

    def _start_weights(self) -> None:
        """Starts the weights, from data or from another run."""
        run = self.training.init_from
        if run is None or self.training.init_partial:
            self._start_from_data()
        if run is not None:
            self.directory.start_from(self.state, run, self.source.label_names)

    def _start_from_data(self) -> None:
        batch = min(self.training.init_images, self.source.sizes["train"])
        self.progress.note(
            f"starting the weights from {batch} training images, then tracing the first step", at_once=True
        )
        first = training_batches(self.source, self.config.data, batch_size=batch, seed=self.training.seed)
        images = next(iter(first))["image"]
        if self.training.noise:
            # As the first update sees them: scales that fit other images would take long to leave.
            drawn = randomness.normal(images.shape, randomness.fold(self.training.seed, "start", "images"))
            images = with_noise(images, noise(self.training, tf.constant(0)), drawn)
        self.state.model.initialize(images, seed=self.training.seed)

    def _broadcast_model(self) -> None:
        """Gives all workers the chief's weights."""
        self.workers.broadcast(self.state.model_group()["model"].values())

    def _claim(self) -> None:
        """Writes the first files of the run: after its first step, or a mistake would block its correction."""
        if self.is_claimed:
            return
        self.is_claimed = True
        if damaged := self.directory.claim(self.source.sizes, self.source.label_names):
            self.progress.say(f"metrics.jsonl: {damaged} damaged rows are left out; the checkpoints are not touched")

    # --- stepping ---

    def _take_steps(self, stop: StopRequest) -> None:
        """Takes steps up to the last one, or until a signal asks to stop.

        Steps are dispatched one after the other; what they leave on the devices is read as `ReadSchedule` says, before
        each row of the log, and before anything else than a step is done.
        """
        training = self.training
        batches, schedule = self._batches(), ReadSchedule(self.step)
        begun = self.step
        if begun:
            self._go_on_with_evaluation(stop)
        since, last = time.monotonic(), begun
        result: StepResult | None = None
        stopping = self._stops(stop)
        while self.step < training.steps and not stopping:
            micro_batches = [next(batches) for _ in range(training.passes)]
            result = self.take_step(micro_batches, self.step, Wishes(bool(stop.reason), schedule.wish))
            self.step += 1
            evaluates = self._evaluates()
            logs = self.step == training.steps or self.step % training.log_every == 0
            saves = evaluates or self.step % training.checkpoint_every == 0
            read = None
            if logs or saves or schedule.is_due(self.step):
                read = self._read(result)
                schedule.note(self.step, read.read_after)
            if logs and read:
                now = time.monotonic()
                self._log(read.learning_rate, (self.step - last) * training.batch_size / (now - since))
                since, last = now, self.step
            elif self.step == begun + 1:
                # Tracing says nothing of the speed.
                since, last = time.monotonic(), self.step
            self.progress.step(self.step)
            if saves:
                # Before the evaluation, amid which a signal or a kill may come.
                self._save()
                if evaluates:
                    self._evaluate(stop)
                since, last = time.monotonic(), self.step
                schedule.restart(self.step)
            stopping = self._stops(stop, read)
        if stopping and self.step < training.steps:
            if result is not None:
                self._read(result)
            self._claim()
            self._save(again=False)
            cause = stop.reason or "a signal to another worker"
            raise InterruptedRunError(
                f"stopped by {cause} at step {self.step} of {training.steps}, saved; the same command goes on from here"
            )

    def _stops(self, stop: StopRequest, read: StepResult | None = None) -> bool:
        """Returns whether to stop here; `read` is the result of the step before, where it was read.

        Several workers stop at a step that was read, with which the wish of any of them has reached all.
        """
        if self.workers.count > 1:
            return read is not None and bool(read.stop)
        return bool(stop.reason)

    def _batches(self) -> Iterator[Any]:
        """Yields the examples of each micro-batch, as `TrainStep` takes them, from the run's place in the data on."""

        def images(context: tf.distribute.InputContext) -> tf.data.Dataset:
            batches = training_batches(
                self.source,
                self.config.data,
                batch_size=self.training.batch_size,
                seed=self.training.seed,
                start_step=self.step,
                micro_batches=self.training.passes,
                context=context,
            )
            return training_examples(batches, self.source, self.config.model)

        return iter(self.strategy.distribute_datasets_from_function(images, ready_on_devices()))

    def _read(self, result: StepResult) -> StepResult:
        """Waits for the last step and says how many since the last time were not applied; too many end the run."""
        read = result.read()
        # Whatever was wrong with its options, the first step would have shown it.
        self._claim()
        step = int(self.state.step.numpy())
        skipped = step - int(self.state.updates.numpy())
        if skipped > self.skipped:
            new, bad = skipped - self.skipped, self.state.take_wrong()
            first = self._read_at + 1
            which = f"step {step}" if first == step else f"{new} of the steps {first} to {step}"
            self.progress.say(f"{which} {'were' if new > 1 else 'was'} not applied: {bad}")
            self.skipped = skipped
            if self.state.halted.numpy():
                self._diverged(step, bad)
        self._read_at = step
        return read

    def _diverged(self, step: int, bad: str) -> NoReturn:
        # The devices have taken no step beyond this one, though more may have been dispatched.
        self.step = step
        self._save()
        in_a_row = int(self.state.skipped.numpy())
        raise DivergedError(
            f"training diverged: {in_a_row} steps in a row were not applied (at step {step}: {bad}); "
            f"the weights before them are saved in {self.directory.checkpoints.path}. See docs/divergence.md"
        )

    def _log(self, learning_rate: float, images_per_second: float) -> None:
        figures = {
            **self.state.take_window(),
            "learning_rate": learning_rate,
            "images_per_second": images_per_second,
            "skipped_steps": self.skipped,
        }
        self.directory.log("train", self.step, figures)
        self.progress.update(figures["bits_per_dim"], images_per_second)

    def _save(self, again: bool = True) -> None:
        """Saves the state; with `again=False` not over what is saved already.

        Raises:
            DivergedError: where a weight is not finite, so that no step from here on could be applied.
        """
        if not self.state.is_finite():
            raise DivergedError(
                f"training diverged: weights are not finite at step {self.step}, which is not saved; all weights of "
                f"the checkpoints in {self.directory.checkpoints.path} are finite. See docs/divergence.md"
            )
        self.directory.save(self.state, self.step, again)

    # --- evaluating ---

    def _evaluates(self) -> bool:
        return self.step == self.training.steps or self.step % self.training.evaluate_every == 0

    def _go_on_with_evaluation(self, stop: StopRequest) -> None:
        """Takes up the best weights from the log, or evaluates where the run ended amid its evaluation.

        The log has a row of any step that was the last one once, whatever `evaluate_every` says.
        """
        bits_per_dim = self.directory.validated(self.step)
        if bits_per_dim is not None:
            self.state.note_best(self.step, bits_per_dim)
        elif self._evaluates():
            self._evaluate(stop)

    def _evaluate(self, stop: StopRequest) -> None:
        """Measures the (averaged) weights on the validation split, shows what they do, keeps the best weights.

        The state is saved: a signal ends it at once, and the run goes on with it.
        """
        count = self._evaluated("validation", self.training.evaluation_images)
        where = (
            f"while the validation images were measured at step {self.step} of {self.training.steps}, saved; "
            "the same command goes on from here"
        )
        with self._ended_by(stop, where), self.state.optimizer.averaged():
            told = self.progress.counted("validation", count)
            measured = self.evaluator(self._first("validation", count), seed=self.training.seed, on_batch=told)
            is_best = self.state.note_best(self.step, measured.bits_per_dim)
            said = self.reports.validation(self.step, measured, is_best)
        self.progress.say(said)

    def _ended_by(self, stop: StopRequest, where: str) -> contextlib.AbstractContextManager[None]:
        """Lets a signal end what is done inside, unless other workers wait for it."""
        return contextlib.nullcontext() if self.workers.count > 1 else stop.at_once(where)

    def _end(self, stop: StopRequest) -> dict[str, Any]:
        """Measures the best weights on the test split; all is saved, as before an evaluation."""
        where = (
            f"while the test images were measured; all {self.step} steps and the best weights are saved, "
            "the same command measures them again"
        )
        with self._ended_by(stop, where):
            return self._measure_best()

    def _measure_best(self) -> dict[str, Any]:
        """Measures the best weights on the test split, once, unless it is left alone; returns the run's summary."""
        self.directory.load_best(self.state)
        self._broadcast_model()
        training, count = self.training, self._evaluated("test")
        test: BitsPerDim | None = None
        if training.evaluation_samples:
            test = self.evaluator(
                self._first("test", count),
                samples=training.evaluation_samples,
                seed=training.seed,
                on_batch=self.progress.counted("test", count),
            )
        summary, lines = self.reports.summary(self.step, test, count)
        for line in lines:
            self.progress.say(line)
        return summary

    def _evaluated(self, split: str, limit: int = 0) -> int:
        """Returns how many images of a split to evaluate on.

        At most as many as the run was trained on (but not too few): the evaluation of a trial run of a few steps must
        not take hours.
        """
        size = min(limit or self.source.sizes[split], self.source.sizes[split])
        least = max(_LEAST_EVALUATED * 64**2 // max(math.prod(self.config.model.image_shape[:2]), 64**2), 8)
        return min(size, max(self.step * self.training.batch_size, least))

    def _first(self, split: str, count: int) -> tf.data.Dataset:
        """Returns the first `count` images of a split, in batches that the devices can divide."""
        size = even_batch(self.training.evaluation_batch_size, count, self.strategy.num_replicas_in_sync)
        batches = evaluation_batches(self.source, split, batch_size=size, limit=count)
        return with_known_labels(batches, self.source, self.config.model)


class ReadSchedule:
    """After how many steps the loop reads again from the devices what its steps have left there.

    To read is to wait for all steps that were dispatched: a GPU has nothing to do afterwards until the next one comes.
    So it is done with each row of the log, and between two rows only where these are many seconds apart. The first step
    of a process is read, then at most twice as many each time, as long as they take no more than `READ_SECONDS`.

    Several workers must read at the same steps. Each says with every step how many it would take until the next time;
    what they agree on is what all have received with the step that was read.

    Args:
        step: steps taken.

    Attributes:
        wish: after how many steps this process would read again.
    """

    def __init__(self, step: int):
        self.wish = 1
        self._next = step + 1
        self.restart(step)

    def restart(self, step: int) -> None:
        """Leaves out of the time of steps what was done between them."""
        self._since, self._last = time.monotonic(), step

    def is_due(self, step: int) -> bool:
        """Returns whether to read after this step."""
        return step >= self._next

    def note(self, step: int, agreed: float) -> None:
        """Notes that a step was read.

        Args:
            step: steps taken.
            agreed: the wish of all workers that came with it.
        """
        seconds = (time.monotonic() - self._since) / max(1, step - self._last)
        self._next = step + max(1, int(agreed))
        self.wish = max(1, int(min(2 * agreed, _MOST, READ_SECONDS / max(seconds, 1e-9))))
        self.restart(step)


class _OnChief:
    """An object that the chief alone uses: a call of a method is its call there, whose result all ranks have."""

    def __init__(self, workers: Workers, target: Any):
        self._workers = workers
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value
        return lambda *args, **options: self._workers.on_chief(lambda: value(*args, **options))

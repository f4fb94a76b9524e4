"""The training loop: checks, training steps, evaluations, checkpoints, and a summary at the end."""

import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Iterator

import keras
import tensorflow as tf

from tfdecouple.config import Config, describe_config
from tfdecouple.data.batches import make_evaluation_batches, make_training_batches, round_batch_size
from tfdecouple.data.labels import check_batch_labels, make_training_inputs, require_label_count
from tfdecouple.data.sources import Source, open_source
from tfdecouple.errors import DivergedError, RunError, one_line
from tfdecouple.metrics.bits_per_dim import Bound, BoundEvaluator
from tfdecouple.model.step_effects import add_first_noise
from tfdecouple.numerics.tf32 import has_tf32
from tfdecouple.runs.run_folder import CONFIG
from tfdecouple.storage.files import Facts
from tfdecouple.system.progress import Counter
from tfdecouple.system.signals import InterruptedRunError, StopRequest
from tfdecouple.training.evaluation import EvaluationReports
from tfdecouple.training.step import StepResult, TrainingState, TrainStep
from tfdecouple.training.training_folder import TrainingFolder, make_paths_absolute
from tfdecouple.training.workers import (
    Workers,
    convert_lost_worker_errors,
    find_cluster,
    make_collective_sum,
    make_device_input_options,
    make_strategy,
    meet_workers,
    require_divisible_batch,
)

# A short run is evaluated on only as many images as it was trained on, to save time, but on at least this many.
_LEAST_EVALUATED = 64


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of `train`: the run folder, the content of summary.json, and whether this process wrote the folder."""

    workdir: pathlib.Path
    summary: Facts
    is_chief: bool = True


def train(
    config: Config, workdir: str | pathlib.Path, *, devices: int | None = None, download: bool = False
) -> Outcome:
    """Trains a run to its last step, from its beginning or its newest checkpoint, and returns an `Outcome`.

    The function sets the global seed of Keras, from which initial weights are drawn. In a cluster, described by the
    environment variable TF_CONFIG, all workers call `train` with the same arguments before TensorFlow runs its first
    operation. Only the first worker, the chief, reads and writes the run folder.

    Args:
        config: the config of the run.
        workdir: the run folder, which is made if it is missing.
        devices: number of devices of each worker (process); None for all GPUs, or one CPU.
        download: whether TFDS downloads and prepares a missing data set.

    Raises:
        ConfigError: where options contradict each other, or the devices do not suit the options.
        DataError: where images are missing or unreadable.
        InterruptedRunError: after SIGTERM, SIGHUP or Ctrl-C; the state is saved.
        DivergedError: after `training.max_skipped_steps` steps in a row whose update was skipped, or if weights are
            not finite.
        LostWorkerError: if another worker has ended.
        RunError: where the folder holds another run, is in use, or cannot be written.
    """
    path = pathlib.Path(workdir)
    config = make_paths_absolute(config)
    group = find_cluster()
    count, rank = (len(group.workers), group.rank) if group else (1, 0)
    with contextlib.ExitStack() as stack:
        quiet = stack.enter_context(open(os.devnull, "w", encoding="utf-8")) if rank else None
        progress = Counter("step", config.training.steps, unit="steps", file=quiet or sys.stdout)
        stack.push(progress)
        stop = StopRequest()
        if group is not None:
            progress.print_line(f"waiting for all of {count} workers: {', '.join(group.workers)}")
            with stop, stop.stop_at_once("before all workers had started; the same command starts again"):
                meet_workers(group, devices)
            stack.enter_context(convert_lost_worker_errors(rank))
        strategy = make_strategy(devices, group)
        if group is not None:
            # TensorFlow has set a handler of SIGTERM that does nothing. All workers stop together after a first step.
            stack.enter_context(stop)
        workers = Workers(count, rank, make_collective_sum(strategy, count))
        stack.enter_context(_convert_resource_errors(path))
        workers.require_equal("the options", config.flatten_options())
        directory = TrainingFolder(path, config, progress.print_line, workers)
        stack.callback(directory.close)
        require_divisible_batch(config.training, strategy.num_replicas_in_sync)
        directory.require_same_run()

        def open_images() -> Source:
            source = open_source(config.data, config.model.image_shape, download)
            require_label_count(source, config.model)
            return source

        source = workers.call_on_all(open_images)
        directory.require_label_names(source.label_names)
        workers.require_equal("the numbers of images", source.sizes)
        stack.enter_context(source.guard())
        keras.utils.set_random_seed(config.training.seed)
        with strategy.scope():
            state = TrainingState(config)
        trainer = Trainer(state, source, strategy, directory, progress, stop)
        summary = trainer.start()
        if summary is None:
            with stop:
                trainer.train_to_last_step()
                summary = trainer.measure_test_images()
        return Outcome(path, summary, is_chief=rank == 0)


@contextlib.contextmanager
def _convert_resource_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        resumes = "resumes from the last checkpoint" if (path / CONFIG).is_file() else "starts the run again"
        raise RunError(
            f"cannot write to the run folder {path}: {error.strerror or error}; the same command {resumes}"
        ) from error
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        # Until the first step has worked, the folder has no config, so the corrected command may use the same folder.
        where = " in another --workdir" if (path / CONFIG).is_file() else ""
        raise RunError(
            f"out of memory; start again{where} with a smaller training.batch_size or more "
            f"training.micro_batches ({one_line(error, first=True)})"
        ) from error


class Trainer:
    """The training of a run, from the newest checkpoint in the run folder to the last step.

    All workers (processes) take every step together. Only the chief (rank 0) uses the run folder; the chief sends
    variables from checkpoints to the other workers. A process that trains alone is the chief.
    """

    def __init__(
        self,
        state: TrainingState,
        source: Source,
        strategy: tf.distribute.Strategy,
        directory: TrainingFolder,
        progress: Counter,
        stop: StopRequest,
    ):
        self.state, self.source, self.strategy = state, source, strategy
        self.directory, self.workers, self.progress, self.stop = directory, directory.workers, progress, stop
        self.training = state.training
        self.reports = EvaluationReports(state, source, directory)
        self.take_step = TrainStep(state, strategy)
        self.evaluator = BoundEvaluator(state.model, strategy)
        self.step = self._read_at = 0
        self.skipped = 0
        self._metrics = ""
        self._files_written = False

    def start(self) -> Facts | None:
        """Restores the newest state, or initialises the weights; returns the dict in summary.json if the run ended."""
        is_resumed = self.directory.restore_newest_state(self.state)
        if is_resumed:
            self.workers.broadcast_variables(
                variable for group in self.state.group_checkpoint_variables().values() for variable in group.values()
            )
        self.step = self._read_at = int(self.state.step.numpy())
        self.skipped = self.step - int(self.state.updates.numpy())
        if summary := self.directory.read_finished_summary():
            return summary
        self.progress(self.step)
        self._print_run_description()
        if is_resumed:
            self.progress.print_line(f"resumes from step {self.step}")
            self._write_run_files()
        else:
            self._initialize_weights()
        return None

    def _print_run_description(self) -> None:
        sizes, count = self.source.sizes, self.strategy.num_replicas_in_sync
        kind = self.strategy.extended.worker_devices[0].rpartition("device:")[2].partition(":")[0]
        devices = f"{count} {kind}{'s' if count > 1 else ''}"
        if self.workers.count > 1:
            devices += f" of {self.workers.count} workers"
        self.progress.print_line(
            f"{describe_config(self.directory.config)}: {self.state.model.parameter_count()['total']:,} parameters, "
            f"{devices}, run folder {self.directory.path}\n"
            f"{self.source.title}: {sizes['train']:,} training images, "
            f"{sizes['validation']:,} for validation ({self.source.descriptions['validation']}), "
            f"{sizes['test']:,} for test"
        )
        if self.training.precision == "tf32" and not has_tf32():
            self.progress.print_line("training.precision=tf32 changes nothing here: no GPU has TF32 (Ampere or newer)")

    def _initialize_weights(self) -> None:
        run = self.training.init_from
        if run is None:
            count = min(self.training.init_images, self.source.sizes["train"])
            self.progress.print_line(
                f"initialising the weights from {count} training images, then tracing the first step"
            )
            first = make_training_batches(
                self.source, self.directory.config.data, batch_size=count, seed=self.training.seed
            )
            images = add_first_noise(next(iter(first))["image"], self.training)
            self.state.model.initialize(images, seed=self.training.seed)
        else:
            self.directory.load_initial_weights(self.state, run, self.source.label_names)
        # Different processors may round differently, so all workers continue with the chief's weights.
        self._broadcast_model()
        self.state.optimizer.start_averages()

    def _broadcast_model(self) -> None:
        self.workers.broadcast_variables(self.state.group_checkpoint_variables()["model"].values())

    def _write_run_files(self) -> None:
        """At the first call, writes config.json and opens metrics.jsonl for new rows; later calls do nothing.

        A new run calls this method after its first step has worked. A command with options that do not work then leaves
        no config.json, because of which the folder would refuse the corrected command.
        """
        if self._files_written:
            return
        self._files_written = True
        if damaged := self.directory.write_run_files(self.source.label_names):
            self.progress.print_line(f"metrics.jsonl: {damaged} damaged rows are left out; checkpoints are unchanged")

    def train_to_last_step(self) -> None:
        """Takes all remaining training steps; after a signal, saves the state and raises InterruptedRunError.

        Steps are dispatched without waiting for their results, so that a GPU is never idle. A step's result is copied
        to the host only if the step is the first of this process, or if a row of the log or a checkpoint follows.
        """
        training = self.training
        batches, begun = self._load_training_batches(), self.step
        if begun:
            # The log may also have an evaluation where none is due: at the former last step, if there are more now.
            bits_per_dim = self.directory.read_validation_bits(begun)
            if bits_per_dim is not None:
                self.state.update_best_evaluation(begun, bits_per_dim)
            elif self._is_evaluation_step():
                self._evaluate_validation()
        since, last = time.monotonic(), begun
        result: StepResult | None = None
        stopping = self._should_stop()
        while self.step < training.steps and not stopping:
            micro_batches = [next(batches) for _ in range(training.micro_batches)]
            result = self.take_step(micro_batches, self.step, bool(self.stop.reason))
            self.step += 1
            evaluates = self._is_evaluation_step()
            logs = self.step == training.steps or self.step % training.log_every == 0
            saves = evaluates or self.step % training.checkpoint_every == 0
            is_first = self.step == begun + 1
            fetched = self._fetch_step_result(result) if logs or saves or is_first else None
            if logs and fetched:
                images_per_second = (self.step - last) * training.batch_size / (time.monotonic() - since)
                self._log_training_row(fetched.learning_rate, images_per_second)
            self.progress(self.step, self._metrics)
            if saves:
                # A signal may end the program during the evaluation, so the state is saved before the evaluation.
                self._save_checkpoint()
                if evaluates:
                    self._evaluate_validation()
            if fetched:
                # The images per second leave out the first step, which is slow for tracing, and evaluations.
                since, last = time.monotonic(), self.step
            stopping = self._should_stop(fetched)
        if stopping and self.step < training.steps:
            if result is not None:
                self._fetch_step_result(result)
            self._write_run_files()
            self._save_checkpoint(overwrite=False)
            cause = self.stop.reason or "a signal to another worker"
            raise InterruptedRunError(
                f"stopped by {cause} at step {self.step} of {training.steps}, saved; the same command resumes"
            )

    def _should_stop(self, fetched: StepResult | None = None) -> bool:
        """Returns whether the run stops after the current step because of a signal to this process or another worker.

        `fetched` is the result of the step if it was copied to the host, else None. Several workers stop together, and
        only after a step with a fetched result, because the result has the sum of the stop flags of all workers.
        """
        if self.workers.count > 1:
            return fetched is not None and bool(fetched.stop)
        return bool(self.stop.reason)

    def _load_training_batches(self) -> Iterator[list]:
        def load_examples(context: tf.distribute.InputContext) -> tf.data.Dataset:
            batches = make_training_batches(
                self.source,
                self.directory.config.data,
                batch_size=self.training.batch_size,
                seed=self.training.seed,
                start_step=self.step,
                micro_batches=self.training.micro_batches,
                context=context,
            )
            return make_training_inputs(batches, self.source, self.state.model.config)

        return iter(self.strategy.distribute_datasets_from_function(load_examples, make_device_input_options()))

    def _fetch_step_result(self, result: StepResult) -> StepResult:
        """Waits for a step and returns its result as numbers; DivergedError after too many skipped updates."""
        fetched = result.fetch_numbers()
        self._write_run_files()
        step = int(self.state.step.numpy())
        skipped = step - int(self.state.updates.numpy())
        if skipped > self.skipped:
            new, reasons = skipped - self.skipped, self.state.describe_skip_reasons()
            first = self._read_at + 1
            which = f"step {step}" if first == step else f"{new} of the steps {first} to {step}"
            self.progress.print_line(f"{which} {'were' if new > 1 else 'was'} not applied: {reasons}")
            self.skipped = skipped
            if self.state.halted.numpy():
                # Steps after the divergence changed no variable, so the checkpoint is named after `step`.
                self.step = step
                self._save_checkpoint()
                raise DivergedError(
                    f"training diverged: {int(self.state.skipped.numpy())} steps in a row were not applied (at step "
                    f"{step}: {reasons}); the weights before them are saved in {self.directory.checkpoints.path}. See "
                    "docs/troubleshooting.md"
                )
        self._read_at = step
        return fetched

    def _log_training_row(self, learning_rate: float, images_per_second: float) -> None:
        row = {
            **self.state.fetch_running_means(),
            "learning_rate": learning_rate,
            "images_per_second": images_per_second,
            "skipped_steps": self.skipped,
        }
        self.directory.write_training_row(self.step, row)
        digits = 0 if images_per_second >= 10 else 2
        self._metrics = f"{row['bits_per_dim']:.3f} bits/dim, {images_per_second:.{digits}f} images/s"

    def _save_checkpoint(self, overwrite: bool = True) -> None:
        """Writes a checkpoint of this step; DivergedError if a weight is not finite: no run could resume."""
        if not self.state.has_finite_weights():
            raise DivergedError(
                f"training diverged: weights are not finite at step {self.step}, which is not saved; all weights of "
                f"the checkpoints in {self.directory.checkpoints.path} are finite. See docs/troubleshooting.md"
            )
        self.directory.save_training_state(self.state, self.step, overwrite)

    def _is_evaluation_step(self) -> bool:
        return self.step == self.training.steps or self.step % self.training.evaluate_every == 0

    def _evaluate_validation(self) -> None:
        """Computes and logs the bits/dim of validation images; saves the weights if these are the best so far."""
        count = self._count_evaluated_images("validation", self.training.evaluation_images)
        where = (
            f"while the validation images were measured at step {self.step} of {self.training.steps}, saved; "
            "the same command resumes"
        )
        with self._stop_evaluation_at_once(where), self.state.optimizer.use_averages():
            measured = self._evaluate("validation", count)
            is_best = self.state.update_best_evaluation(self.step, measured.bits_per_dim)
            message = self.reports.report_validation(self.step, measured, is_best)
        self.progress.print_line(message)

    def measure_test_images(self) -> Facts:
        """Evaluates the best weights on test images, writes summary.json and returns its content, a dict."""
        count = self._count_evaluated_images("test")
        where = (
            f"while the test images were measured; all {self.step} steps and the best weights are saved, "
            "the same command measures them again"
        )
        with self._stop_evaluation_at_once(where):
            self.directory.load_best_weights(self.state)
            self._broadcast_model()
            test = self._evaluate("test", count, draws) if (draws := self.training.evaluation_samples) else None
            summary, lines = self.reports.write_summary(self.step, test, count)
            for line in lines:
                self.progress.print_line(line)
            return summary

    def _stop_evaluation_at_once(self, where: str) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which a signal raises InterruptedRunError at once, except with several workers."""
        return contextlib.nullcontext() if self.workers.count > 1 else self.stop.stop_at_once(where)

    def _count_evaluated_images(self, split: str, limit: int = 0) -> int:
        """Returns how many images to evaluate: at most `limit` (0: all) and the images trained on, but at least 64."""
        size = self.source.sizes[split]
        return min(size, limit or size, max(self.step * self.training.batch_size, _LEAST_EVALUATED))

    def _evaluate(self, split: str, count: int, draws: int = 1) -> Bound:
        """Returns the bound of the first `count` images of a split, from `draws` draws for each image."""
        size = round_batch_size(self.training.evaluation_batch_size, count, self.strategy.num_replicas_in_sync)
        batches = make_evaluation_batches(self.source, split, batch_size=size, limit=count)
        batches = check_batch_labels(batches, self.source, self.state.model.config)
        with Counter(split, count, file=self.progress.file) as counter:
            return self.evaluator(batches, k=draws, seed=self.training.seed, on_batch=counter)

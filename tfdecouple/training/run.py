"""Training a run: what is checked and opened before its trainer begins, and how failures are told."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdecouple.config import Config, difference
from tfdecouple.data import open_source
from tfdecouple.data.labels import require_classes
from tfdecouple.errors import RunError, one_line
from tfdecouple.loggers import require_loggers
from tfdecouple.networks.plan import require_memory
from tfdecouple.runs import CONFIG
from tfdecouple.runtime.memory import address_space, shown_bytes
from tfdecouple.runtime.progress import TrainingProgress
from tfdecouple.training.loop import Trainer
from tfdecouple.training.run_directory import RunDirectory, with_whole_paths
from tfdecouple.training.state import TrainingState
from tfdecouple.training.strategy import check_batch, choose_micro_batches, make_strategy
from tfdecouple.training.workers import Workers, collective_sum, find_cluster, lost_worker_errors

# Addresses that TensorFlow's libraries and threads take, of which most are never touched: with 3 GB it ends the process
# from within, with 4.5 GB the quickstart trains.
_ADDRESSES = 4 * 2**30


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
        cluster: where the other workers are read from, see `workers.find_cluster`.

    Returns:
        The outcome, with the test bits/dim of the best weights.

    Raises:
        ConfigError: where options do not fit each other or the devices, or the processor cannot do the precision.
        DataError: where images are missing or unreadable.
        InterruptedRunError: after SIGTERM, SIGHUP or Ctrl-C; the state is saved.
        DivergedError: where training.max_skipped_steps steps in a row were not applied.
        LostWorkerError: where another worker has ended.
        RunError: where the folder holds another run, is in use, or cannot be written.
    """
    path = pathlib.Path(workdir)
    config = with_whole_paths(config)
    found = find_cluster(cluster)
    with contextlib.ExitStack() as stack:
        is_chief = found is None or found.rank == 0
        quiet = None if is_chief else stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        progress = TrainingProgress(config.training.steps, quiet, config.training.batch_size)
        stack.callback(progress.close)
        if found is not None:
            progress.say(f"waiting for all of {len(found.workers)} workers: {', '.join(found.workers)}")
            stack.enter_context(lost_worker_errors(found.rank))
        strategy, workers = make_strategy(devices, found), Workers()
        if found is not None:
            count = len(found.workers)
            workers = Workers(count, found.rank, collective_sum(strategy, count))
        stack.enter_context(_one_line_errors(path))
        _check_options(workers, config)
        workers.on_chief(lambda: require_loggers(config.training.loggers))
        config = choose_micro_batches(config, path, strategy, workers, progress.say)
        directory = stack.enter_context(RunDirectory(path, config, progress.say))
        check_batch(config.training, strategy.num_replicas_in_sync)
        workers.on_all(lambda: _check_memory(config))
        workers.on_chief(directory.check)
        source = workers.on_all(lambda: open_source(config.data, config.model.image_shape, download))
        workers.on_all(lambda: require_classes(source, config.model))
        workers.on_chief(lambda: directory.require_label_names(source.label_names))
        workers.same("the images", json.dumps(source.sizes))
        stack.enter_context(source.guard())
        keras.utils.set_random_seed(config.training.seed)
        with strategy.scope():
            state = TrainingState(config)
        trainer = Trainer(config, state, source, strategy, directory, progress, workers)
        return Outcome(path, trainer.run(), is_chief)


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
    has_gpu = bool(tf.config.get_visible_devices("GPU"))
    require_memory(config.model, copies=1 if has_gpu else 4 + bool(config.training.ema_decay))


def _check_options(workers: Workers, config: Config) -> None:
    """Refuses workers that were started with different options.

    Raises:
        RunError: naming one of them and what differs.
    """
    chiefs = Config.from_dict(workers.on_chief(config.to_dict))
    changed = difference(chiefs, config)
    listed = "; ".join(f"{name} is {own!r}, of worker 0 {other!r}" for name, (other, own) in changed.items())

    def check() -> None:
        if listed:
            raise RunError(f"all workers must be started with the same options; here {listed}")

    workers.on_all(check)


@contextlib.contextmanager
def _one_line_errors(path: pathlib.Path) -> Iterator[None]:
    """Turns a full disk and memory that does not suffice into one line.

    Raises:
        RunError: in place of them.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not (path / CONFIG).is_file():
            raise RunError(
                f"the run folder {path} was moved or deleted while the run trained; the same command starts anew, or "
                "resumes once the folder is back"
            ) from error
        raise RunError(
            f"cannot write to the run folder {path}: {error.strerror or error}; "
            "what was saved before is still there, the same command goes on from it"
        ) from error
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        # The config of a run that took no step is not written.
        where = " in another --workdir" if (path / CONFIG).is_file() else ""
        raise RunError(
            f"out of memory; start again{where} with a smaller training.batch_size or more "
            f"training.micro_batches ({one_line(error, first=True)})"
        ) from error

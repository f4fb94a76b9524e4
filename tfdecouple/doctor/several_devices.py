"""Whether several devices together train as one does: their sum of gradients, and the weights after some steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfdecouple.config import override
from tfdecouple.doctor import small_model
from tfdecouple.doctor.result import DEFAULT, Result, Task

STEPS = 10
# Bound for the distance of the weights from those of one device, relative to how far they moved. Adam divides a
# gradient by its size, so that the last digits decide where it is nearly 0; docs/gpu.md, "The bounds".
MOVED = 1e-3
_ADVICE = (
    "train on one device (--devices 1) until this holds; try NCCL_P2P_DISABLE=1 and nvidia-smi topo -m, other "
    "versions of the driver and NCCL, and report it"
)


def takes(task: Task) -> bool:
    """Returns whether there are several devices and a variant concerns all of them together."""
    return len(task.devices) > 1 and (task.variant is DEFAULT or task.variant.together)


def run(task: Task) -> Iterator[Result]:
    """Yields whether sums over devices are right, and whether steps on all devices give the weights of one device."""
    from tfdecouple.training.strategy import make_strategy

    count, name = len(task.devices), task.variant.name
    one, every = make_strategy(1), make_strategy(count)
    yield judge_sums(wrong_sums(every), every)
    batch = count * max(2, small_model.IMAGES // count)
    images = small_model.load_images(STEPS * batch).reshape(STEPS, batch, 16, 16, 3)
    start, alone = weights_after(one, images)
    together = weights_after(every, images, task.variant.settings)[1]
    yield judge_weights(f"weights after {STEPS} steps, 1 device against {count}, {name}", name, start, alone, together)


def wrong_sums(strategy: Any) -> int:
    """Returns how many of some sums over devices are wrong; sums of whole numbers are exact in any order."""
    import tensorflow as tf

    sizes = ((), (3,), (5, 7), (1 << 16,))
    count = strategy.num_replicas_in_sync
    with strategy.scope():
        destinations = [tf.Variable(tf.zeros(size), trainable=False) for size in sizes]

    @tf.function(autograph=False)
    def add() -> list[list[tf.Tensor]]:
        def own() -> list[tf.Tensor]:
            number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
            return [tf.ones(size) * (number + 1) * (index + 1) for index, size in enumerate(sizes)]

        pairs = list(zip(strategy.run(own), destinations, strict=True))
        sums = strategy.extended.batch_reduce_to(tf.distribute.ReduceOp.SUM, pairs)
        return [list(strategy.experimental_local_results(each)) for each in sums]

    right = count * (count + 1) / 2
    return sum(
        not bool(np.all(value.numpy() == right * (index + 1))) for index, values in enumerate(add()) for value in values
    )


def judge_sums(wrong: int, strategy: Any = None) -> Result:
    """Returns whether sums over devices are right, and names the class of TensorFlow's that adds them up."""
    extended = getattr(strategy, "extended", None)
    operations = getattr(extended, "_cross_device_ops", None) or getattr(extended, "_inferred_cross_device_ops", None)
    way = type(operations or extended).__name__
    figures = {"variant": DEFAULT.name, "wrong": wrong, "way": way}
    return Result("sums over devices", not wrong, f"{way}: {wrong or 'no'} sum is wrong", _ADVICE, figures)


def weights_after(strategy: Any, images: np.ndarray, settings: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Returns all weights, in a row, before and after a step on each of the batches `[steps, batch, 16, 16, 3]`."""
    import tensorflow as tf

    from tfdecouple.runs import load_weights
    from tfdecouple.training.state import TrainingState
    from tfdecouple.training.step import TrainStep

    config = override(small_model.step_config(batch_size=images.shape[1], warmup_steps=1), settings)
    with strategy.scope():
        state = TrainingState(config)
    load_weights(small_model.FOLDER, state.model, averaged=False)

    def weights() -> np.ndarray:
        return np.concatenate([variable.numpy().ravel() for _, variable in sorted(state.trainable.items())])

    start, step = weights(), TrainStep(config, state, strategy)
    data = tf.data.Dataset.from_tensor_slices(images)
    for number, batch in enumerate(strategy.experimental_distribute_dataset(data)):
        step([batch], number)
    return start, weights()


def judge_weights(what: str, variant: str, start: np.ndarray, alone: np.ndarray, together: np.ndarray) -> Result:
    """Returns whether the weights of several devices are those of one, to the bit or within `MOVED`."""
    off = float(np.linalg.norm(together - alone) / np.linalg.norm(alone - start))
    figures = {"variant": variant, "off": off, "bitwise": bool(np.array_equal(alone, together))}
    message = f"off by {off:.0e} of how far they moved, at most {np.abs(together - alone).max():.0e}"
    return Result(what, off <= MOVED, "equal to the bit" if figures["bitwise"] else message, _ADVICE, figures)

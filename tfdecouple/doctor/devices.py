"""Whether all devices together train as one does: their sum of gradients, and the weights after some steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdecouple.config import override
from tfdecouple.doctor import trained
from tfdecouple.doctor.finding import Finding
from tfdecouple.doctor.options import DEFAULT, by_name

if TYPE_CHECKING:
    from tfdecouple.doctor.examination import Examination

STEPS = 10
# How far the weights may be from those of one device, relative to how far they have moved. Adam divides a gradient by
# its size, so that where it is nearly 0 the last digits decide; see docs/gpu.md, "The bounds".
MOVED = 1e-3


def measure(count: int, variants: Sequence[str] = (DEFAULT.name,)) -> Iterator[dict[str, Any]]:
    """Yields whether devices add up right, and for each variant how far their steps are from those of one."""
    from tfdecouple.training.strategy import make_strategy

    one, every = make_strategy(1), make_strategy(count)
    yield {"doing": f"adding up over {count} devices"}
    yield {"sums": wrong_sums(every), "way": way_of(every)}
    images = trained.load_images(STEPS * _batch(count)).reshape(STEPS, _batch(count), 16, 16, 3)
    yield {"doing": f"{STEPS} steps on one device"}
    start, alone = weights_after(one, images)
    moved = float(np.linalg.norm(alone - start))
    for name in variants:
        yield {"doing": f"{STEPS} steps on {count} devices, {name}"}
        _, together = weights_after(every, images, by_name(name).settings)
        yield {
            "count": count,
            "variant": name,
            "bitwise": bool(np.array_equal(alone, together)),
            "off": float(np.linalg.norm(together - alone) / moved),
            "largest": float(np.abs(together - alone).max()),
        }


def _batch(count: int) -> int:
    """Returns the images of a step, about `trained.IMAGES`: a multiple of the number of devices."""
    return count * max(2, trained.IMAGES // count)


def wrong_sums(strategy: Any) -> int:
    """Returns how many of some sums over devices are wrong; of whole numbers they are exact in any order."""
    import tensorflow as tf

    sizes = ((), (3,), (5, 7), (1 << 16,))
    count = strategy.num_replicas_in_sync
    with strategy.scope():
        places = [tf.Variable(tf.zeros(size), trainable=False) for size in sizes]

    @tf.function(autograph=False)
    def add() -> list[list[tf.Tensor]]:
        def own() -> list[tf.Tensor]:
            number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
            return [tf.ones(size) * (number + 1) * (index + 1) for index, size in enumerate(sizes)]

        pairs = list(zip(strategy.run(own), places, strict=True))
        sums = strategy.extended.batch_reduce_to(tf.distribute.ReduceOp.SUM, pairs)
        return [list(strategy.experimental_local_results(each)) for each in sums]

    right = count * (count + 1) / 2
    found = [(value.numpy(), right * (index + 1)) for index, values in enumerate(add()) for value in values]
    return sum(not bool(np.all(value == expected)) for value, expected in found)


def way_of(strategy: Any) -> str:
    """Returns what adds up over the devices, by the names that TensorFlow gives to it."""
    extended = strategy.extended
    operations = getattr(extended, "_cross_device_ops", None) or getattr(extended, "_inferred_cross_device_ops", None)
    options = getattr(extended, "_communication_options", None)
    how = getattr(getattr(options, "implementation", None), "value", "")
    return " ".join(filter(None, [type(operations).__name__ if operations else type(extended).__name__, how]))


def weights_after(strategy: Any, images: np.ndarray, settings: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Returns all weights, in a row, before and after a step on each of the batches `[steps, batch, 16, 16, 3]`."""
    import tensorflow as tf

    from tfdecouple.runs import load_weights
    from tfdecouple.training.state import TrainingState
    from tfdecouple.training.step import TrainStep

    config = override(trained.step_config(batch_size=images.shape[1], warmup_steps=1), list(settings))
    with strategy.scope():
        state = TrainingState(config)
    load_weights(trained.FOLDER, state.model, averaged=False)

    def weights() -> np.ndarray:
        return np.concatenate([variable.numpy().ravel() for _, variable in sorted(state.trainable.items())])

    start, step = weights(), TrainStep(config, state, strategy)
    data = tf.data.Dataset.from_tensor_slices(images)
    for number, batch in enumerate(strategy.experimental_distribute_dataset(data)):
        step([batch], number)
    return start, weights()


def judge(found: dict[str, Any]) -> Finding:
    """Says whether sums are right, or whether the weights are."""
    advice = (
        "train on one device (--devices 1) until this holds; try NCCL_P2P_DISABLE=1 and nvidia-smi topo -m, other "
        "versions of the driver and NCCL, and report it"
    )
    if "sums" in found:
        said = f"{found['way']}: {found['sums'] or 'no'} sum is wrong"
        wrong = found["sums"] > 0
        return Finding("sums over devices", not wrong, said, advice if wrong else "", found)
    variant = "" if found["variant"] == DEFAULT.name else f", {found['variant']}"
    what = f"weights after {STEPS} steps, 1 device against {found['count']}{variant}"
    if found["bitwise"]:
        return Finding(what, True, "equal to the bit", figures=found)
    said = f"off by {found['off']:.0e} of how far they moved, at most {found['largest']:.0e}"
    holds = found["off"] <= MOVED
    return Finding(what, holds, said, "" if holds else advice, found)


def check(examination: Examination) -> Iterator[Finding]:
    """Compares one device with all of them."""
    if len(examination.devices) < 2:
        text = f"{examination.devices[0]} alone: nothing to compare; --devices 2 tries two logical CPUs"
        yield Finding("one device against all", None, text)
        return
    tried = [each for each in examination.variants(examination.devices[0]) if each.together]
    arguments = {"count": len(examination.devices), "variants": [each.name for each in (DEFAULT, *tried)]}
    yield from examination.findings("tfdecouple.doctor.devices:measure", judge, "one device against all", arguments)

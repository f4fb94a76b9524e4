import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import CASES, get_case
from helpers.models import give_effect, random_images
from helpers.trainers import BATCH, GLOW, Trainer, assert_close, assert_equal
from helpers.variants import VARIANTS

from benchmarks.emulation import emulated_accelerator
from tfdecouple.execution import runner
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.model import objective, training_step
from tfdecouple.numerics import arithmetic
from tfdecouple.numerics.kernels import use_kernels
from tfdecouple.numerics.tf32 import full_float32


@pytest.fixture(autouse=True, scope="module")
def weights_of_both_sizes():
    """Lowers the limit of small weights to 64 numbers, so that a tiny model has small and large weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "_LARGEST_JOINED_SIZE", 64)
        yield


def gradient_of(values):
    """The gradient of the first step, but for a factor: Adam's means are a share of it."""
    return np.concatenate([value.ravel() for name, value in values.items() if name.startswith("means/")])


@pytest.fixture(scope="module")
def one_device():
    """A trainer on one device that has taken three steps, its state after each, and the results."""
    trainer = Trainer()
    states, results = [trainer.values()], []
    for _ in range(3):
        results.append(trainer.take())
        states.append(trainer.values())
    return trainer, states, results


@pytest.fixture(scope="module")
def clipped():
    """The results of two steps without z and with clipped gradients, and the states after them."""
    trainer = Trainer(model=GLOW, clip_norm=0.25)
    steps = [(trainer.take(), trainer.values()) for _ in range(2)]
    return tuple(zip(*steps, strict=True))


class TestStep:
    def test_step_reports_the_learning_rate(self, one_device):
        rates = [result.learning_rate for result in one_device[2]]
        np.testing.assert_allclose(rates, [1e-7, 0.5 * (0.01 + 1e-7), 0.01], rtol=1e-5)

    def test_noise_of_a_step_depends_on_the_index_of_the_step(self, one_device):
        trainer, states, _ = one_device
        (images,) = tf.data.Dataset.from_tensor_slices(random_images(BATCH)).batch(BATCH)
        results = []
        for step in (0, 1, 0):
            trainer.put(states[0])
            results.append(float(trainer.step_function([images], step).reconstruction))
        assert results[0] == results[2] != results[1]

    def test_clipping_bounds_the_norm_of_the_gradient(self, one_device, clipped):
        _, states, whole = one_device
        assert whole[0].gradient_norm > 1 and clipped[0][0].gradient_norm > 1
        for values, norm in ((states[1], whole[0].gradient_norm), (clipped[1][0], 0.25)):
            # The first moment after one update is (1 - beta_1) times the gradient as it was applied.
            assert np.linalg.norm(gradient_of(values)) == pytest.approx(0.1 * norm, rel=1e-4)

    def test_kl_weight_scales_the_gradient_and_not_the_reported_kl(self, eager):
        # The prior's weights have no other gradient than the KL's.
        trainer = Trainer(kl_weight=0.25, kl_warmup_steps=1)
        for has_gradient in (False, True):
            before = trainer.values()
            result = trainer.take()
            moments = [v - 0.9 * before[n] for n, v in trainer.values().items() if n.startswith("means/prior_flow/")]
            assert moments and all(value.any() == has_gradient for value in moments)
        nats = result.reconstruction + result.kl + result.dequantization
        assert result.kl != 0 and result.bits_per_dim == pytest.approx(nats / (8 * 8 * 3 * math.log(2)) + 7, rel=1e-5)

    def test_contrast_changes_the_gradient_of_the_encoder_alone(self, one_device, eager):
        trainer = Trainer(contrast=500.0)
        before = trainer.values()
        result, plain = trainer.take(), one_device[2][0]
        assert result.gradient_norm > 1.01 * plain.gradient_norm
        for name in ("bits_per_dim", "reconstruction", "kl", "dequantization"):
            assert getattr(result, name) == pytest.approx(getattr(plain, name), rel=1e-5)
        after = trainer.values()
        for name, value in one_device[1][1].items():
            if name.startswith("means/"):
                is_same = np.allclose(after[name], value, rtol=1e-3, atol=1e-5)
                # The kernels of the encoder; its batch normalisation hides the biases before it.
                assert is_same or name.startswith("means/encoder/"), name
            elif "moving" in name:
                assert not np.array_equal(value, before[name])
                np.testing.assert_allclose(after[name], value, rtol=1e-5)

    def test_step_graph_has_no_control_flow_on_the_host(self, one_device):
        # A GPU would stand still while the host waits for the predicate of a condition.
        (whole,) = one_device[0].step_function._take_step._list_all_concrete_functions_for_serialization()
        graph = whole.graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        kinds = [node.op for node in nodes]
        assert not {"If", "StatelessIf", "Switch", "RefSwitch", "While", "StatelessWhile", "Case"} & set(kinds)
        assert kinds.count("ResourceApplyAdam") >= 2

    @pytest.mark.parametrize("by_xla", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_inversion_takes_the_same_step_and_skips_one_whose_input_is_lost(self, clipped, by_xla):
        trainer = Trainer(model=GLOW, clip_norm=0.25, memory="invert", jit_compile=by_xla)
        result = trainer.take()
        assert 0 < result.inversion_error < 1e-5
        np.testing.assert_allclose(result._replace(inversion_error=0.0), clipped[0][0], rtol=1e-5)
        for name, value in clipped[1][0].items():
            # The first moments are a share of the gradient.
            if name.startswith("means/"):
                np.testing.assert_allclose(trainer.values()[name], value, atol=1e-4 * np.abs(value).max(), err_msg=name)
        # A matrix near to a singular one: the loss is finite, but the step's input is lost in rounding.
        kernel = trainer.state.trainable["flow/level_1_part_0_step_0/linear/kernel"]
        u, values, v = np.linalg.svd(kernel.numpy())
        values[-1] = 1e-7
        kernel.assign(u * values @ v)
        before = trainer.values()
        result = trainer.take()
        assert not result.applied and math.isfinite(result.bits_per_dim) and math.isfinite(result.gradient_norm)
        assert result.inversion_error > training_step.INVERSION_BOUND["float32"]
        assert_equal(trainer.values(), before, but=("counters/step", "counters/skipped"))
        reason = f"inversion error {result.inversion_error:.2g} (training.memory=invert)"
        assert [trainer.state.describe_skip_reasons() for _ in range(2)] == [reason, ""]

    @pytest.mark.usefixtures("bfloat16")
    def test_bfloat16_nets_keep_float32_weights_and_nearly_the_loss(self, one_device, eager):
        trainer = Trainer(precision="mixed_bfloat16")
        inverting = Trainer(precision="mixed_bfloat16", memory="invert")
        result, inverted, exact = trainer.take(), inverting.take(), one_device[2][0]
        assert result.applied
        assert result.bits_per_dim != exact.bits_per_dim
        assert result.bits_per_dim == pytest.approx(exact.bits_per_dim, abs=0.02)
        groups = trainer.state.trainable, trainer.state.optimizer.averages, trainer.state.optimizer.means
        assert {variable.dtype for group in groups for variable in group.values()} == {tf.float32}
        # The recovered maps are rounded to other numbers of bfloat16, which changes the gradient no more than rounding.
        full, by_storing, by_inversion = map(gradient_of, (one_device[1][1], trainer.values(), inverting.values()))
        assert inverted.applied and inverted.inversion_error > 0
        assert inverted.bits_per_dim == pytest.approx(result.bits_per_dim, rel=1e-6)
        assert 0 < np.linalg.norm(by_inversion - by_storing) < np.linalg.norm(by_storing - full)


class TestPrecision:
    """Steps on an emulated GPU, whose products are rounded to TF32 while TensorFlow's switch for it is on."""

    @pytest.fixture(autouse=True)
    def gpu(self):
        tf.config.experimental.enable_tensor_float_32_execution(True)
        with emulated_accelerator():
            yield
        assert tf.config.experimental.tensor_float_32_execution_enabled()

    def test_float32_steps_are_in_full_precision_with_any_switch(self, one_device):
        trainer, states, results = one_device
        trainer.put(states[0])
        trainer.steps = 0
        assert trainer.take() == results[0]
        assert_equal(trainer.values(), states[1])

    def test_tf32_steps_are_rounded_with_any_switch(self, one_device, eager):
        ours, states = Trainer(precision="tf32"), []
        for right, users in zip(one_device[2], (False, True), strict=False):
            tf.config.experimental.enable_tensor_float_32_execution(users)
            result = ours.take()
            assert tf.config.experimental.tensor_float_32_execution_enabled() is users
            assert result.applied and result != right
            assert result.bits_per_dim == pytest.approx(right.bits_per_dim, rel=1e-3)
            states.append(ours.values())
        found, full = map(gradient_of, (states[0], one_device[1][1]))
        assert 1e-6 < np.linalg.norm(found - full) / np.linalg.norm(full) < 1e-2

    @pytest.mark.parametrize("direction", ["forward_and_log_det", "inverse_and_log_det"])
    @pytest.mark.parametrize("name", ["conv1x1", "actnorm-image", "prior-flow", "whitening-image"])
    def test_tf32_steps_keep_inversions_and_bounds_in_full_precision(self, name, direction):
        layer = give_effect(CASES[name].build(dtype="float32"), scale=0.3)
        x, condition = (value if value is None else tf.cast(value, tf.float32) for value in get_case(name)[1:])
        weights = [variable.value for variable in layer.trainable_variables]

        def run_with_and_without_switch(precision):
            @tf.function(autograph=False)
            def run():
                with use_kernels(RunMode(precision=precision).kernels), tf.GradientTape() as tape:
                    tape.watch(x)
                    y, log_det = getattr(layer, direction)(x, condition)
                    loss = tf.reduce_sum(tf.sin(y)) + tf.reduce_sum(log_det)
                return [y, log_det, *tape.gradient(loss, [x, *weights])]

            rounded = [value.numpy() for value in run()]
            with full_float32():
                return rounded, [value.numpy() for value in run()]

        on, off = run_with_and_without_switch("tf32")
        assert all(np.array_equal(value, expected) for value, expected in zip(on, off, strict=True))
        plain_on, plain_off = run_with_and_without_switch("float32")
        for value, expected in zip(off, plain_off, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
        # In steps without TF32, TensorFlow's switch rounds all of them but the actnorm.
        assert name == "actnorm-image" or np.abs(plain_on[0] - plain_off[0]).max() > 1e-5


class PoisonedTrainer(Trainer):
    """A trainer on two devices whose loss or gradient can be made NaN on either."""

    def __init__(self, **training):
        super().__init__(devices=2, **training)
        self.poison = {kind: tf.Variable(-1, dtype=tf.int32) for kind in ("loss", "gradient")}
        original = objective.evaluate_bound

        def poison(*args, **options):
            here = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
            factor = {kind: tf.where(tf.equal(device, here), math.nan, 1.0) for kind, device in self.poison.items()}

            @tf.custom_gradient
            def pass_on(value):
                return value, lambda upstream: upstream * factor["gradient"]

            bound, latents = original(*args, **options)
            return bound._replace(reconstruction=pass_on(bound.reconstruction) * factor["loss"]), latents

        self._poison = poison

    def take(self, count=1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(objective, "evaluate_bound", self._poison)
            return super().take(count)

    def take_poisoned(self, kind, device, count=1):
        self.poison[kind].assign(device)
        result = self.take(count)
        self.poison[kind].assign(-1)
        return result


@pytest.fixture(scope="module")
def two_devices():
    """A trainer on two devices that has taken three steps, its states before and after, and the results."""
    trainer = PoisonedTrainer()
    start = trainer.values()
    results = [trainer.take() for _ in range(3)]
    return trainer, (start, trainer.values()), results, [trainer.values(device) for device in (0, 1)]


class TestMicroBatches:
    """Without batch normalisation no division of a batch changes anything; the gradient is clipped as a whole."""

    @pytest.mark.parametrize(
        ("devices", "micro_batches", "memory"), [(1, 4, "keep"), pytest.param(2, 2, "invert", marks=pytest.mark.slow)]
    )
    def test_micro_batches_and_devices_give_the_same_step(self, clipped, devices, micro_batches, memory, monkeypatch):
        # An error of each image and stage that does not depend on rounding.
        monkeypatch.setattr(runner, "measure_inversion_error", lambda _, stored: 1e-7 * stored[:, 0, 0, 0] ** 2)
        options = {"model": GLOW, "clip_norm": 0.25, "memory": memory}
        trainer = Trainer(devices, micro_batches=micro_batches, **options)
        whole = Trainer(**options) if memory == "invert" else None
        for result in clipped[0]:
            assert result.gradient_norm > 1
            step = trainer.take()
            # The largest error of an image in the whole batch.
            error = whole.take().inversion_error if whole else 0
            assert step.inversion_error == pytest.approx(error, rel=1e-3) and (error > 0) == bool(whole)
            np.testing.assert_allclose(step._replace(inversion_error=0.0), result, rtol=1e-5)
        assert_close(trainer.values(), clipped[1][-1], 1e-5 if memory == "keep" else 1e-4)

    @pytest.mark.slow
    def test_micro_batches_update_the_statistics_of_batch_normalisation_once(self, one_device):
        # One update towards the mean of the micro-batches' statistics. For the mean of the very first normalisation,
        # whose input is the same in all of them, that is where the whole batch moves it.
        trainer = Trainer(micro_batches=4)
        trainer.take()
        name = "model/encoder/level_0_block_1/norm_1/moving_mean"
        states = one_device[1]
        assert np.any(states[1][name] != states[0][name])
        np.testing.assert_allclose(trainer.values()[name], states[1][name], rtol=1e-4, atol=1e-6)


COUNTERS = ("counters/step", "counters/skipped")


@pytest.fixture(scope="module", params=["whole", pytest.param("micro-batches", marks=pytest.mark.slow)])
def poisoned(request):
    if request.param == "whole":
        return request.getfixturevalue("two_devices")[0]
    trainer = PoisonedTrainer(micro_batches=2)
    trainer.take()
    return trainer


class TestSteps:
    def test_steps_on_two_devices_equal_those_on_one_device(self, one_device, two_devices):
        assert_close(two_devices[1][0], one_device[1][0])
        assert_close(two_devices[1][1], one_device[1][-1])
        for ours, theirs in zip(two_devices[2], one_device[2], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert_equal(*two_devices[3])

    @pytest.mark.slow
    def test_step_compiled_by_xla_equals_that_of_tensorflow(self, one_device):
        trainer = Trainer(devices=2, jit_compile=True)
        np.testing.assert_allclose(trainer.take(), one_device[2][0], rtol=1e-5)
        for name, value in one_device[1][1].items():
            # Adam makes much of what a gradient near 0 is rounded to: its first moments are a share of the gradient.
            if name.startswith("means/") or "/moving_" in name:
                np.testing.assert_allclose(trainer.values()[name], value, atol=1e-5 * np.abs(value).max(), err_msg=name)

    def test_learned_dequantization_is_in_the_loss_and_trains_with_recomputed_maps(self, eager):
        trainer = Trainer(model=VARIANTS["dequantization"], memory="recompute")
        before, result, after = trainer.values(), trainer.take(), trainer.values()
        assert result.dequantization != 0 and result.applied
        names = [name for name in before if name.startswith("model/dequantizer/")]
        assert names and all(np.any(after[name] != before[name]) for name in names)

    @pytest.mark.parametrize(("kind", "device"), [("loss", 0), ("gradient", 1)])
    def test_step_that_is_not_finite_changes_nothing_on_any_device(self, poisoned, kind, device):
        before = [poisoned.values(device=number) for number in (0, 1)]
        result = poisoned.take_poisoned(kind, device)
        assert not result.applied and not np.isfinite(result.gradient_norm)
        assert np.isfinite(result.bits_per_dim) == (kind == "gradient")
        for number in (0, 1):
            after = poisoned.values(device=number)
            assert_equal(after, before[number], but=COUNTERS)
            assert all(after[counter] == before[number][counter] + 1 for counter in COUNTERS)

    def test_step_after_a_skipped_step_is_applied(self, poisoned):
        poisoned.take_poisoned("loss", 0, count=2)
        before = poisoned.values()
        assert before["counters/skipped"] >= 2 and poisoned.take().applied
        after = poisoned.values()
        assert (after["counters/skipped"], after["counters/updates"]) == (0, before["counters/updates"] + 1)
        assert all(np.isfinite(value).all() for name, value in after.items() if "best" not in name)
        for name in (*poisoned.state.trainable, *poisoned.state.moving):
            assert np.any(after[f"model/{name}"] != before[f"model/{name}"]), name

"""What can be known of a GPU without one: from the kernels that TensorFlow registers follow copies and waits."""

from __future__ import annotations

import re

import pytest
import tensorflow as tf
from helpers.gpu_placement import GPU, place_on_gpu
from helpers.trainers import BATCH, Trainer
from helpers.variants import OF_CLASSES, STAGES, VARIANTS

from tfdecouple.config import MEMORY, PRECISIONS
from tfdecouple.layers import Coupling
from tfdecouple.layers.base import read_weights, substitute_weights
from tfdecouple.metrics.bits_per_dim import BoundEvaluator

# Copies from the host to the GPU, for which nothing waits, and the reason for each. None grows with the images.
UPLOADS = {
    "StatelessRandomGetKeyCounter -> StatelessRandomNormalV2": "key and counter of a draw",
    "StatelessRandomGetKeyCounter -> StatelessRandomUniformV2": "key and counter of a draw",
    "StatelessRandomGetKeyCounter -> StridedSlice": "the counter of a draw that begins in the middle",
    "StridedSlice -> Cast": "a hash of the seed, for noise by index",
    "Const -> Cast": "the count of images",
    "Equal -> SelectV2": "the micro-batch's place among the inversion errors",
    **{
        f"{maker} -> {user}": "labels"
        for maker in ("argument", "EnsureShape")
        for user in ("Cast", "GatherV2", "OneHot")
    },
}
# Operations whose results the host has to see before the GPU continues, one of each for a 1x1 convolution.
WAITING = {
    "LogMatrixDeterminant": "cuSolver reports a singular matrix to the host",
    "MatrixInverse": "cuSolver reports a singular matrix to the host",
}
MODELS = {
    "stages": STAGES,
    "dequantization": VARIANTS["dequantization"],
    "z of labels": OF_CLASSES["classes"],
    "labels": OF_CLASSES["prior-classes"],
}
# Options of training that change images and gradients.
AUGMENTED = {"noise": 1.0, "noise_steps": 10, "patterns": 0.1, "clip_norm": 1.0, "kl_warmup_steps": 5}
SCALAR, WHOLE = tf.TensorSpec([]), tf.TensorSpec([], tf.int32)


@pytest.fixture
def gpu(monkeypatch):
    """Makes the code take its branches for a GPU; a logical CPU device stands for the GPU."""
    (device,) = (each for each in tf.config.list_logical_devices("CPU") if each.name.endswith(GPU))
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    # Traces that can later run in TF32 would warn.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: ["/GPU:0"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [device])
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


def make_specs(config, count):
    """Returns the signatures of `count` images and of their labels, or None for a model without labels."""
    labels = tf.TensorSpec([count], tf.int32) if config.has_classes else None
    return tf.TensorSpec([count, *config.image_shape], tf.uint8), labels


def trace_step(trainer):
    """Yields the traced functions of a training step."""
    step, micro_batches = trainer.step_function, trainer.config.training.micro_batches
    images, labels = make_specs(trainer.config.model, BATCH // micro_batches)
    examples = images if labels is None else (images, labels)
    if micro_batches == 1:
        yield step._whole.get_concrete_function(examples, WHOLE, SCALAR)
        return
    sums = tf.TensorSpec([sum(step._sizes)])
    yield step._start.get_concrete_function()
    yield step._add.get_concrete_function(sums, examples, WHOLE, WHOLE)
    yield step._finish.get_concrete_function(sums, SCALAR)


def trace_inference(trainer):
    """Yields the traced functions of evaluation, encoding, decoding and sampling."""
    model, config = trainer.state.model, trainer.config.model
    images, labels = make_specs(config, BATCH)
    coded = (labels,) if config.has_class_codes else ()
    evaluator = BoundEvaluator(model, trainer.strategy)
    yield evaluator._compute_on_devices.get_concrete_function(
        images, labels, tf.TensorSpec([BATCH], tf.int64), WHOLE, WHOLE
    )
    z, v = tf.TensorSpec([BATCH, config.latent_dim]), tf.TensorSpec([BATCH, *config.image_shape])
    for function, *inputs in [
        (lambda *given: model.encode(*given), images, *coded),
        (lambda *given: model.decode(*given), z, v),
        (lambda seed: model.sample(BATCH, seed=seed), tf.TensorSpec([2], tf.int32)),
    ]:
        yield tf.function(function, autograph=False).get_concrete_function(*inputs)


def assert_stays_on_gpu(traced_functions):
    """Asserts that traced functions compute on the GPU, copy nothing from it, and wait only for what is listed."""
    for traced in traced_functions:
        placement = place_on_gpu(traced)
        assert placement.on_cpu == {} and placement.downloads == {}, traced.name
        assert set(placement.uploads) <= set(UPLOADS) and set(placement.waiting) <= set(WAITING), traced.name


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
class TestOnGpu:
    @pytest.mark.parametrize("memory", MEMORY)
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_training_step_waits_for_determinants_and_inverses_only(self, precision, memory):
        assert_stays_on_gpu(trace_step(Trainer(devices=None, model=STAGES, precision=precision, memory=memory)))

    @pytest.mark.parametrize("name", MODELS)
    def test_every_kind_of_model_waits_for_determinants_and_inverses_only(self, name):
        trainer = Trainer(devices=None, model=MODELS[name], **AUGMENTED)
        assert_stays_on_gpu([*trace_step(trainer), *trace_inference(trainer)])

    @pytest.mark.parametrize("name", ["labels", "dequantization"])
    def test_micro_batches_wait_for_determinants_and_inverses_only(self, name):
        assert_stays_on_gpu(trace_step(Trainer(devices=None, model=MODELS[name], micro_batches=2, **AUGMENTED)))


def lower_products():
    """Returns the lines of the StableHLO for a GPU with the products of a coupling and of its gradients."""
    layer = Coupling(hidden=4, condition_size=3, alpha=0.8)
    layer.build((None, 4, 4, 4), (None, 3))
    weights = read_weights(layer)

    def compute_gradients(x, z, *values):
        with substitute_weights(zip(layer.variables, values, strict=True)), tf.GradientTape() as tape:
            tape.watch([x, z, *values])
            y, log_det = layer.forward_and_log_det(x, z)
            loss = tf.reduce_sum(y**2) - tf.reduce_sum(log_det)
        return tape.gradient(loss, [x, z, *values])

    function = tf.function(compute_gradients, autograph=False, jit_compile=True)
    lower = function.experimental_get_compiler_ir(tf.ones([2, 4, 4, 4]), tf.ones([2, 3]), *weights)
    text = lower(stage="stablehlo", platform_name="GPU")
    return re.findall(r"stablehlo\.(?:convolution|dot|dot_general)\b.*", text)


@pytest.mark.usefixtures("gpu")
@pytest.mark.filterwarnings("ignore:this function calls tfdecouple:RuntimeWarning")
@pytest.mark.parametrize(("is_on", "asked"), [(False, "HIGHEST"), (True, "DEFAULT")])
def test_xla_is_asked_for_full_precision_of_a_coupling_unless_tf32_is_on(is_on, asked):
    tf.config.experimental.enable_tensor_float_32_execution(is_on)
    products = lower_products()
    # Four products, the 3x3 convolutions, the 1x1 convolution and that of z, and two gradients of each.
    assert len(products) == 12
    assert {name for line in products for name in re.findall("HIGHEST|HIGH|DEFAULT", line)} == {asked}


def place(function, *inputs):
    """Returns the `Placement` of a function, traced with `inputs` inside another function."""
    inner = tf.function(function, autograph=False, experimental_attributes={"_noinline": True})
    return place_on_gpu(tf.function(lambda *given: inner(*given)).get_concrete_function(*inputs))


class TestPlacement:
    """The helper finds what the tests above exclude."""

    def test_finds_an_operation_without_a_gpu_kernel(self):
        found = place(lambda x: tf.nn.fractional_avg_pool(x, [1, 2, 2, 1])[0], tf.TensorSpec([1, 4, 4, 1]))
        assert list(found.on_cpu) == ["FractionalAvgPool float32, int64"]
        assert "argument -> FractionalAvgPool" in found.downloads

    def test_tells_dtypes_apart(self):
        def convolve(x):
            return tf.nn.conv2d(x, tf.ones([1, 1, 3, 3], x.dtype), 1, "SAME")

        kinds = {dtype: place(convolve, tf.TensorSpec([1, 4, 4, 3], dtype)).on_cpu for dtype in (tf.float32, tf.int32)}
        assert kinds == {tf.float32: {}, tf.int32: {}}
        assert place(tf.math.digamma, tf.TensorSpec([2], tf.bfloat16)).on_cpu

    def test_finds_a_seed_that_is_drawn_on_the_gpu(self):
        found = place(lambda seed: tf.random.experimental.stateless_fold_in(seed, 1), tf.TensorSpec([2], tf.int32))
        assert list(found.downloads) == ["StatelessRandomUniformFullIntV2 -> Pack"]

    def test_finds_the_condition_of_a_loop(self):
        def halve(x):
            return tf.while_loop(lambda x: tf.reduce_max(x) > 1, lambda x: [x / 2], [x])

        assert list(place(halve, tf.TensorSpec([3])).downloads) == ["Identity -> result"]

    def test_finds_the_condition_of_a_branch(self):
        def halve(x):
            return tf.cond(tf.reduce_max(x) > 1, lambda: x / 2, lambda: x)

        assert list(place(halve, tf.TensorSpec([3])).downloads) == ["Greater -> StatelessIf"]

    def test_finds_large_indices_made_by_the_host(self):
        def choose(x):
            return tf.where(tf.range(8) // 2 % 2 > 0, x, 0.0)

        assert place(choose, tf.TensorSpec([8])).uploads

    def test_finds_operations_that_complete_on_the_host(self):
        assert list(place(tf.linalg.inv, tf.TensorSpec([3, 3])).waiting) == ["MatrixInverse"]

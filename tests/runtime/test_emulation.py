"""Tests of the emulated accelerator: what it rounds, where it reaches, and that it leaves nothing behind."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.emulation import emulated_accelerator
from tensorflow.python.eager import context

from tfdecouple.errors import UserError

enable = tf.config.experimental.enable_tensor_float_32_execution


@pytest.fixture(autouse=True)
def default_setting():
    enable(True)
    yield
    enable(True)


def rounded(x, kept=10):
    """float32 with `kept` bits of mantissa, to the nearest and in a tie to the even, by arithmetic of float64."""
    fraction, exponent = np.frexp(np.asarray(x, np.float64))
    return tf.constant(np.ldexp(np.rint(np.ldexp(fraction, kept + 1)), exponent - kept - 1), tf.float32)


def drawn(*shape, seed=0):
    return tf.constant(np.random.default_rng([seed, *shape]).standard_normal(shape), tf.float32)


def conv2d(x, kernel):
    return tf.nn.conv2d(x, kernel, 1, "SAME")


CONV = {"strides": [1, 1, 1, 1], "padding": "SAME"}
IMAGES, KERNEL, MAPS = (2, 4, 4, 3), (3, 3, 3, 5), (2, 4, 4, 5)
# Each operation as a function of its two operands, and their shapes.
OPERATIONS = {
    "MatMul": (lambda a, b: tf.raw_ops.MatMul(a=a, b=b, transpose_b=True), (4, 6), (5, 6)),
    "BatchMatMul": (lambda a, b: tf.raw_ops.BatchMatMul(x=a, y=b), (2, 4, 6), (2, 6, 5)),
    "BatchMatMulV2": (lambda a, b: tf.raw_ops.BatchMatMulV2(x=a, y=b, adj_x=True), (2, 6, 4), (6, 5)),
    "BatchMatMulV3": (lambda a, b: tf.raw_ops.BatchMatMulV3(x=a, y=b, Tout=a.dtype), (2, 4, 6), (2, 6, 5)),
    "Einsum": (lambda a, b: tf.raw_ops.Einsum(inputs=[a, b], equation="bij,jk->bik"), (2, 4, 6), (6, 5)),
    "Conv2D": (lambda a, b: tf.raw_ops.Conv2D(input=a, filter=b, **CONV), IMAGES, KERNEL),
    "Conv2DBackpropInput": (
        lambda a, b: tf.raw_ops.Conv2DBackpropInput(input_sizes=IMAGES, filter=a, out_backprop=b, **CONV),
        KERNEL,
        MAPS,
    ),
    "Conv2DBackpropFilter": (
        lambda a, b: tf.raw_ops.Conv2DBackpropFilter(input=a, filter_sizes=KERNEL, out_backprop=b, **CONV),
        IMAGES,
        MAPS,
    ),
}


def by_name(name):
    run, *shapes = OPERATIONS[name]
    a, b = drawn(*shapes[0]), drawn(*shapes[1], seed=1)
    return run, a, b


class TestRounding:
    @pytest.mark.parametrize(("operands", "kept"), [("tf32", 10), ("bfloat16", 7)])
    def test_is_to_nearest_and_in_a_tie_to_even(self, operands, kept):
        last = 2.0**-kept
        halves = [1 + last / 2, 1 + 1.5 * last, 1 + last / 2 + 2**-23, 1 + 1.5 * last - 2**-23, 2 - last / 2]
        values = [*halves, 1.5e-38, 3.3e38, *np.random.default_rng(0).standard_normal(1000)]
        values = np.array([*values, *(-np.array(values)), 0.0, 1.0], np.float32)
        with emulated_accelerator(operands):
            found = tf.matmul(values[:, None], [[1.0]])[:, 0]
        np.testing.assert_array_equal(found, rounded(values, kept))
        assert found[0] == 1 and found[1] == np.float32(1 + 2 * last)

    def test_leaves_what_is_not_finite(self):
        with emulated_accelerator():
            found = tf.matmul([[np.inf], [-np.inf], [np.nan]], [[1.0]])
        np.testing.assert_array_equal(found, [[np.inf], [-np.inf], [np.nan]])

    @pytest.mark.parametrize("traced", [False, True])
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_of_the_operands_of_each_operation(self, name, traced):
        run, a, b = by_name(name)
        run = tf.function(run) if traced else run
        full, expected = run(a, b), run(rounded(a), rounded(b))
        with emulated_accelerator():
            found = run(a, b)
        np.testing.assert_array_equal(found, expected)
        assert np.abs(found - full).max() > 1e-4

    @pytest.mark.parametrize("name", ["Add", "Mul", "Sum", "MatrixInverse", "LogMatrixDeterminant"])
    def test_not_of_other_operations(self, name):
        run = {
            "Add": lambda a: a + a,
            "Mul": lambda a: a * a,
            "Sum": tf.reduce_sum,
            "MatrixInverse": tf.linalg.inv,
            "LogMatrixDeterminant": lambda a: tf.linalg.slogdet(a).log_abs_determinant,
        }[name]
        a, traced = drawn(5, 5), tf.function(run)
        with emulated_accelerator():
            found = run(a), traced(a)
        np.testing.assert_array_equal(found[0], run(a))
        np.testing.assert_array_equal(found[1], traced(a))

    def test_not_of_float64(self):
        a, run = tf.cast(drawn(4, 4), tf.float64), tf.function(tf.matmul)
        full = run(a, a)
        with emulated_accelerator(noise=1e-6):
            np.testing.assert_array_equal(run(a, a), full)
            np.testing.assert_array_equal(tf.matmul(a, a), full)

    @pytest.mark.parametrize("kind", ["numpy", "list", "variable", "mixed"])
    def test_of_operands_that_are_no_tensors(self, kind):
        a, b = drawn(3, 4).numpy(), drawn(4, 2).numpy()
        given = {
            "numpy": (a, b),
            "list": (a.tolist(), b.tolist()),
            "variable": (tf.Variable(a), tf.Variable(b)),
            "mixed": (tf.constant(a), b.tolist()),
        }[kind]
        with emulated_accelerator():
            np.testing.assert_array_equal(tf.raw_ops.MatMul(a=given[0], b=given[1]), tf.matmul(rounded(a), rounded(b)))


class TestSwitch:
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_off_is_as_always_to_the_bit(self, name):
        run, a, b = by_name(name)
        traced = tf.function(run)
        full = run(a, b), traced(a, b)
        enable(False)
        with emulated_accelerator():
            np.testing.assert_array_equal(run(a, b), full[0])
            np.testing.assert_array_equal(traced(a, b), full[1])

    def test_is_read_at_each_call(self):
        a = drawn(4, 4)
        run = tf.function(tf.matmul)
        full = run(a, a).numpy()
        with emulated_accelerator():
            for on in (True, False, True, False):
                enable(on)
                assert np.array_equal(run(a, a), full) is not on
                assert np.array_equal(tf.matmul(a, a), full) is not on


class TestReach:
    def check(self, run, *arguments):
        """Whether a function's products of x[i] @ y are rounded, its gradients too; it is traced before."""
        traced = tf.function(run, autograph=False)
        given = [tf.Variable(value) for value in arguments]

        def both():
            with tf.GradientTape() as tape:
                value = traced(*given)
            return [value, *tape.gradient(value, given)]

        full = both()
        with emulated_accelerator():
            rough = both()
        again = both()
        for before, inside, after in zip(full, rough, again, strict=True):
            np.testing.assert_array_equal(before, after)
            assert 1e-5 < np.abs(inside - before).max() < 0.1
        return rough

    def test_gradient_is_that_of_rounded_operands(self):
        x, y, weight = drawn(3, 5), drawn(5, 4), drawn(3, 4, seed=2)
        _, of_x, of_y = self.check(lambda x, y: tf.reduce_sum(tf.matmul(x, y) * weight), x, y)
        np.testing.assert_allclose(of_x, rounded(weight) @ tf.transpose(rounded(y)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(of_y, tf.transpose(rounded(x)) @ rounded(weight), rtol=1e-5, atol=1e-6)

    def test_gradient_of_single_operations(self):
        x, y, weight = drawn(*IMAGES), drawn(*KERNEL), drawn(*MAPS)

        def gradients():
            with tf.GradientTape() as tape:
                tape.watch([x, y])
                value = conv2d(x, y)
            return tape.gradient(value, [x, y], weight)

        with emulated_accelerator():
            found = gradients()
        of_x = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=IMAGES, filter=rounded(y), out_backprop=rounded(weight), **CONV
        )
        of_y = tf.raw_ops.Conv2DBackpropFilter(
            input=rounded(x), filter_sizes=KERNEL, out_backprop=rounded(weight), **CONV
        )
        np.testing.assert_array_equal(found[0], of_x)
        np.testing.assert_array_equal(found[1], of_y)

    def test_functions_within_functions(self):
        inner = tf.function(tf.matmul, autograph=False, experimental_attributes={"_noinline": True})
        middle = tf.function(lambda x, y: tf.nn.elu(inner(x, y)), autograph=False)
        self.check(lambda x, y: tf.reduce_sum(middle(x, y) ** 2), drawn(3, 5), drawn(5, 4))

    def test_loops_and_branches(self):
        def run(x, y):
            looped = tf.while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, tf.matmul(h, y)), (0, x))[1]
            return tf.cond(tf.reduce_sum(x) > 1e6, lambda: 0.0, lambda: tf.reduce_sum(tf.matmul(looped, y)))

        self.check(run, drawn(3, 5), drawn(5, 5))
        self.check(
            lambda x, y: tf.reduce_sum(tf.map_fn(lambda row: tf.matmul(row[None], y), x)), drawn(3, 5), drawn(5, 5)
        )

    def test_functions_that_are_traced_inside(self):
        run, a, b = by_name("Conv2D")
        with emulated_accelerator():
            found = tf.function(run)(a, b)
        np.testing.assert_array_equal(found, run(rounded(a), rounded(b)))

    def test_a_loaded_saved_model(self, tmp_path):
        module = tf.Module()
        module.weight = tf.Variable(drawn(4, 4))
        module.run = tf.function(lambda x: x @ module.weight, input_signature=[tf.TensorSpec([None, 4])])
        tf.saved_model.save(module, str(tmp_path / "saved"))
        loaded, x = tf.saved_model.load(str(tmp_path / "saved")), drawn(3, 4)
        with emulated_accelerator():
            np.testing.assert_array_equal(loaded.run(x), tf.matmul(rounded(x), rounded(module.weight)))


class TestNoise:
    @pytest.mark.parametrize("traced", [False, True])
    @pytest.mark.parametrize("on", [False, True])
    def test_is_relative_and_differs_from_call_to_call(self, traced, on):
        enable(on)
        a = drawn(64, 64)
        run = tf.function(tf.matmul) if traced else tf.matmul
        exact = run(rounded(a), rounded(a)).numpy() if on else run(a, a).numpy()
        with emulated_accelerator(noise=1e-4):
            results = [run(a, a).numpy() for _ in range(3)]
        changes = np.array([result / exact - 1 for result in results])
        assert 0.9e-4 < np.abs(changes).max() < 1.1e-4 and np.abs(changes.mean()) < 1e-5
        for one, other in ((0, 1), (1, 2), (0, 2)):
            assert np.abs(np.corrcoef(changes[one].ravel(), changes[other].ravel())[0, 1]) < 0.1

    def test_differs_from_operation_to_operation(self):
        enable(False)
        a = drawn(64, 64)
        run = tf.function(lambda a, b: (tf.matmul(a, b), tf.matmul(a, b)))
        with emulated_accelerator(noise=1e-4):
            one, other = run(a, a)
        assert np.mean(one == other) < 0.1

    def test_leaves_gradients_but_their_own_noise(self):
        enable(False)
        x, y = drawn(16, 16), drawn(16, 16, seed=1)
        for run in (tf.matmul, tf.function(tf.matmul)):
            with emulated_accelerator(noise=1e-4), tf.GradientTape() as tape:
                tape.watch([x, y])
                gradients = tape.gradient(run(x, y), [x, y], x)
            for found, right in zip(gradients, (x @ tf.transpose(y), tf.transpose(x) @ x), strict=True):
                assert 0 < np.abs(found / right - 1).max() < 1.1e-4


class TestBfloat16:
    @pytest.mark.parametrize("traced", [False, True])
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_products_are_added_up_in_float32(self, name, traced):
        run, a, b = by_name(name)
        call = tf.function(run) if traced else run
        a, b = tf.cast(a, tf.bfloat16), tf.cast(b, tf.bfloat16)
        call(a, b)
        with emulated_accelerator():
            found = call(a, b)
        right = tf.cast(run(tf.cast(a, tf.float32), tf.cast(b, tf.float32)), tf.bfloat16)
        assert found.dtype == tf.bfloat16
        np.testing.assert_array_equal(tf.cast(found, tf.float32), tf.cast(right, tf.float32))

    def test_gradients_too(self):
        x, y = (tf.cast(drawn(8, 8, seed=seed), tf.bfloat16) for seed in (0, 1))
        for run in (tf.matmul, tf.function(tf.matmul)):
            with emulated_accelerator(), tf.GradientTape() as tape:
                tape.watch(x)
                gradient = tape.gradient(run(x, y), x, x)
            right = tf.cast(tf.cast(x, tf.float32) @ tf.transpose(tf.cast(y, tf.float32)), tf.bfloat16)
            np.testing.assert_array_equal(tf.cast(gradient, tf.float32), tf.cast(right, tf.float32))


class TestContext:
    def test_leaves_nothing_behind(self):
        run, a, b = by_name("MatMul")
        traced = tf.function(run)
        full = run(a, b), traced(a, b)
        functions = set(context.context().list_function_names())
        with pytest.raises(RuntimeError), emulated_accelerator(noise=1e-6):
            traced(a, b)
            assert set(context.context().list_function_names()) > functions
            raise RuntimeError
        assert set(context.context().list_function_names()) <= functions
        np.testing.assert_array_equal(run(a, b), full[0])
        np.testing.assert_array_equal(traced(a, b), full[1])

    def test_one_within_another(self):
        a, run = drawn(4, 4), tf.function(tf.matmul)
        run(a, a)
        with emulated_accelerator("tf32"):
            with emulated_accelerator("bfloat16"):
                np.testing.assert_array_equal(run(a, a), tf.matmul(rounded(a, 7), rounded(a, 7)))
            np.testing.assert_array_equal(run(a, a), tf.matmul(a, a))
        assert not np.array_equal(run(a, a), tf.matmul(rounded(a), rounded(a)))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"operands": "fp8"}, "operands is 'fp8'"),
            ({"noise": -1e-6}, "noise is -1e-06"),
            ({"noise": 1}, "noise is 1"),
        ],
    )
    def test_impossible_options_are_one_line(self, options, message):
        with pytest.raises(UserError, match=message), emulated_accelerator(**options):
            raise AssertionError("entered")

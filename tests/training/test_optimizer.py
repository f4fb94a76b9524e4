import numpy as np
import pytest
import tensorflow as tf

from tfdecouple.config import TrainingConfig
from tfdecouple.errors import RunError
from tfdecouple.numerics import arithmetic
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.training.optimizer import FlatBuffer, Optimizer


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    monkeypatch.setattr(arithmetic, "_LARGEST_JOINED_SIZE", 2**12 if request.param == "small" else 0)


class Updated:
    def __init__(self, start=(1.0, 2.0), **config):
        self.weight, self.statistic = (tf.Variable(start, dtype=tf.float32) for _ in range(2))
        self.optimizer = Optimizer(TrainingConfig(**config), {"flow/first": self.weight}, {"s": self.statistic})
        self.optimizer.start_averages()
        self.apply = tf.function(self.optimizer.apply_update, autograph=False)

    def update(self, gradient, updates=0, rate=0.1, *, applied=True, scale=1.0):
        """Takes the update number `updates`; the statistic's new value is the gradient."""
        gradient, rate, scale = (tf.constant(value, tf.float32) for value in (gradient, rate, scale))
        updates = tf.constant(updates, tf.int64)
        self.apply(tf.constant(applied), [gradient], [gradient], updates, rate, scale)

    def values(self):
        kept = self.optimizer.means, self.optimizer.variances, self.optimizer.averages
        variables = [self.weight, self.statistic, *(variable for group in kept for variable in group.values())]
        return [variable.numpy() for variable in variables]


@pytest.mark.usefixtures("size")
def test_muon_updates_kernels_by_orthogonal_matrices_and_other_weights_by_adam():
    # The first and the third of these matrices are kernels.
    names = ("flow/step/first", "flow/step/linear/kernel", "encoder/last_direction", "prior_flow/step/first")
    before, slopes = np.random.default_rng(0).standard_normal((2, 4, 6, 4)).astype(np.float32)
    weights = {name: tf.Variable(value) for name, value in zip(names, before, strict=True)}
    config = {"learning_rate": 0.1, "matrix_rate": 0.5, "ema_decay": 0.9, "weight_decay": 0.0}
    optimizer = Optimizer(TrainingConfig(optimizer="muon", **config), weights, {})
    optimizer.start_averages()
    update = tf.function(optimizer.apply_update, autograph=False)
    inputs = tf.constant(True), list(map(tf.constant, slopes)), [], tf.constant(0, tf.int64)
    update(*inputs, tf.constant(0.05), tf.constant(1.0))
    for name, old, slope in zip(names, before, slopes, strict=True):
        change = weights[name].numpy() - old
        if name in names[::2]:
            # Half of the peak of `learning_rate` is half of `matrix_rate`; a tall matrix moves further.
            u, values, v = np.linalg.svd(-change / (0.25 * 1.5**0.5), full_matrices=False)
            assert (values > 0.6).all() and (values < 1.3).all()
            ours, _, right = np.linalg.svd(slope, full_matrices=False)
            np.testing.assert_allclose(u @ v, ours @ right, atol=0.25)
        else:
            np.testing.assert_allclose(change, -0.05 * np.sign(slope), rtol=1e-3)
        expected = 0.1 * old + 0.9 * weights[name].numpy()
        np.testing.assert_allclose(optimizer.averages[name].numpy(), expected, rtol=1e-5)
    assert set(optimizer.variances) == set(names[1::2]) and set(optimizer.means) == set(names)


class TestOptimizer:
    @pytest.mark.usefixtures("size")
    @pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"clip_norm": 1.0, "optimizer": "muon"}])
    def test_optimizer_changes_nothing_in_a_skipped_step(self, options):
        ours = Updated([[1.0, 2.0]], weight_decay=0.1, ema_decay=0.9, **options)
        ours.update([[0.5, 0.1]])
        before = ours.values()
        ours.update([[np.nan, np.inf]], applied=False, rate=np.nan, scale=np.nan)
        np.testing.assert_array_equal(ours.values(), before)

    @pytest.mark.usefixtures("size")
    def test_averages_follow_weights_faster_at_first_and_replace_them_inside_a_context(self):
        ours = Updated(ema_decay=0.9)
        for updates, decay in ((0, 0.1), (10, 0.55), (1000, 0.9)):
            before = {name: average.numpy() for name, average in ours.optimizer.averages.items()}
            ours.update([0.5, -0.5], updates)
            np.testing.assert_array_equal(ours.statistic, [0.5, -0.5])
            for name, variable in (("flow/first", ours.weight), ("s", ours.statistic)):
                expected = decay * before[name] + (1 - decay) * variable.numpy()
                np.testing.assert_allclose(ours.optimizer.averages[name].numpy(), expected, rtol=1e-6)
        before = ours.values()
        with ours.optimizer.use_averages():
            np.testing.assert_array_equal([ours.weight, ours.statistic], before[4:6])
        np.testing.assert_array_equal(ours.values(), before)

    def test_checkpoint_stores_views_of_a_flat_buffer_as_variables(self, tmp_path):
        shapes = {"a/b": tf.TensorShape([2, 3]), "c": tf.TensorShape([]), "d": tf.TensorShape([4])}
        vector, rng = FlatBuffer(shapes), np.random.default_rng(0)
        values = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
        for name, value in values.items():
            vector.views[name].assign(value)
        np.testing.assert_array_equal(vector.variable, np.concatenate([value.ravel() for value in values.values()]))
        with pytest.raises(ValueError, match="shape"):
            vector.views["d"].assign(np.zeros(3, np.float32))
        alone, other = {name: tf.Variable(tf.zeros(shape)) for name, shape in shapes.items()}, FlatBuffer(shapes)
        for step, (written, read) in enumerate([(vector.views, alone), (alone, other.views)]):
            folder = CheckpointFolder(tmp_path)
            folder.write_checkpoint("step", step, {"means": written})
            folder.read_checkpoint("step", step, {"means": read})
            for name, value in values.items():
                np.testing.assert_array_equal(read[name].numpy(), value)
        with pytest.raises(RunError, match="does not fit"):
            folder.read_checkpoint("step", 1, {"means": FlatBuffer({"c": tf.TensorShape([2])}).views})

    @pytest.mark.usefixtures("size")
    @pytest.mark.parametrize("decay", [0.0, 0.1])
    def test_optimizer_updates_equal_adamw_of_pytorch(self, decay):
        rng = np.random.default_rng(0)
        start = rng.standard_normal((3, 4))
        ours = Updated(start, beta_1=0.9, beta_2=0.99, epsilon=1e-3, weight_decay=decay)
        weight, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
        for count in range(1, 8):
            # Gradients about as small as epsilon: where it is added makes a difference.
            gradient, rate = 2e-3 * rng.standard_normal(start.shape), 0.01 * count
            ours.update(gradient, count - 1, rate)
            weight *= 1 - rate * decay
            m = 0.9 * m + 0.1 * gradient
            v = 0.99 * v + 0.01 * gradient**2
            weight -= rate * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.99**count)) + 1e-3)
            np.testing.assert_allclose(ours.weight, weight, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(ours.optimizer.means["flow/first"].numpy(), m, rtol=1e-5, atol=1e-8)
            np.testing.assert_allclose(ours.optimizer.variances["flow/first"].numpy(), v, rtol=1e-4, atol=1e-10)

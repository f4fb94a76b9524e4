import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import CONDITION, SCALES, assert_close, build_layer
from helpers.models import SMALL, give_effect
from helpers.refusals import message_of

from tfdecouple.errors import ConfigError, InversionError, UserError
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.execution.runner import Traced
from tfdecouple.layers import Coupling, InvertibleLinear, Squeeze
from tfdecouple.layers.colour_map import make_colour_matrices, map_colours, measure_colours
from tfdecouple.model import DecoupledModel
from tfdecouple.numerics.kernels import use_kernels

# {(pattern, count of channels): the channels that a coupling changes if its part is "last", and if it is "first"}.
CHANGED = {
    ("continuous", 6): ([3, 4, 5], [0, 1, 2]),
    ("alternate", 6): ([1, 3, 5], [0, 2, 4]),
    **{(pattern, 5): ([3, 4], [0, 1]) for pattern in ("continuous", "alternate")},
}

# {part of the message: call}.
OPTIONS = {
    "pattern is 'checkerboard'": lambda: Coupling(4, pattern="checkerboard"),
    "part is 'middle'": lambda: Coupling(4, part="middle"),
    "transform is 'cubic'": lambda: Coupling(4, transform="cubic"),
    **{f"alpha is {alpha}": lambda alpha=alpha: Coupling(4, alpha=alpha) for alpha in (0.0, 1.5, math.nan)},
    "transformed is 2": lambda: Coupling(4, pattern="alternate", transformed=2),
}
SHAPES = {
    "0 of 1 channels": lambda: Coupling(4).forward_and_log_det(np.ones((1, 2, 2, 1))),
    "3 of 3 channels": lambda: Coupling(4, transformed=3).forward_and_log_det(np.ones((1, 2, 2, 3))),
    "0 of 3 channels": lambda: Coupling(4, transformed=0).forward_and_log_det(np.ones((1, 2, 2, 3))),
    "3 x 2 pixels": lambda: Squeeze().forward_and_log_det(np.ones((1, 3, 2, 1))),
    "(1, 4)": lambda: Squeeze().forward_and_log_det(np.ones((1, 4))),
    "6 channels": lambda: Squeeze().inverse_and_log_det(np.ones((1, 2, 2, 6))),
}

CONFIG = dataclasses.replace(SMALL, colour_map=True, latent_dim=10)


def make_photographs(count, channels=3):
    """Returns noise around a colour and a contrast of each image's own, uint8 `[count, 8, 8, channels]`."""
    rng = np.random.default_rng(0)
    colours, spread = rng.uniform(90, 160, (count, 1, 1, channels)), rng.uniform(5, 25, (count, 1, 1, channels))
    return (colours + spread * rng.standard_normal((count, 8, 8, channels))).astype(np.uint8)


class TestLayer:
    def test_matrix_of_a_new_linear_layer_is_orthogonal(self):
        layer = build_layer(InvertibleLinear(dtype="float64"), (None, 7))
        matrix = layer.kernel.numpy()
        # Keras draws it in float32.
        assert_close(matrix @ matrix.T, np.eye(7), 1e-6)
        assert_close(layer.compute_condition_number(), 1, 1e-6)

    def test_float32_inverse_of_a_badly_conditioned_matrix_keeps_float32_precision(self):
        layer = build_layer(InvertibleLinear(), (None, 4))
        basis = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
        layer.kernel.assign((basis * [1, 1, 1, 1e-4]).astype("float32"))
        exact = np.linalg.inv(layer.kernel.numpy().astype("float64"))
        inverse = layer.inverse_and_log_det(np.eye(4))[0].numpy().T
        assert np.abs(inverse - exact).max() < 1e-6 * np.abs(exact).max()

    @pytest.mark.parametrize(("pattern", "channels"), CHANGED)
    @pytest.mark.parametrize("shape", [(2, 3), ()], ids=["image", "vector"])
    def test_pattern_and_part_of_a_coupling_choose_the_changed_channels(self, pattern, channels, shape):
        for part, expected in zip(("last", "first"), CHANGED[pattern, channels], strict=True):
            layer = Coupling(4, pattern=pattern, part=part, dtype="float64")
            give_effect(build_layer(layer, (None, *shape, channels)), scale=0.5)
            x = np.random.default_rng(0).standard_normal((2, *shape, channels))
            changed = np.abs(layer.forward_and_log_det(x)[0] - x).reshape(-1, channels).max(0) > 1e-6
            assert np.flatnonzero(changed).tolist() == expected, part

    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize("shape", [(2, 2, 4), (4,)], ids=["image", "vector"])
    def test_coupling_is_the_identity_at_the_start_and_after_initialize(self, scale, shape):
        layer = build_layer(Coupling(4, **SCALES[scale]), (None, *shape))
        x = tf.random.stateless_normal([2, *shape], [0, 1])
        for _ in range(2):
            y, log_det = layer.forward_and_log_det(x)
            np.testing.assert_allclose(y, x, atol=1e-6)
            np.testing.assert_allclose(log_det, np.zeros(2), atol=1e-5)
            give_effect(layer)
            assert np.abs(layer.forward_and_log_det(x)[0] - x).max() > 1e-3
            layer.initialize(x)

    def test_log_det_of_a_coupling_with_alpha_1_is_finite_where_the_scale_underflows(self):
        layer = build_layer(Coupling(4), (None, 1, 1, 2))
        layer.net.last_bias.assign([0.0, -200.0])
        assert layer.compute_slopes(np.ones((1, 1, 1, 2))).numpy().max() == 0
        log_det = layer.forward_and_log_det(np.ones((1, 1, 1, 2)))[1]
        np.testing.assert_allclose(log_det, [math.log(2) - 200], rtol=1e-6)

    @pytest.mark.usefixtures("bfloat16")
    @pytest.mark.parametrize("is_traced", [False, True])
    def test_bfloat16_reaches_the_net_of_a_coupling_and_nothing_else(self, is_traced):
        layer = give_effect(build_layer(Coupling(8, CONDITION), (None, 4, 4, 6)), scale=0.3)
        x, z = tf.random.stateless_normal([2, 4, 4, 6], [0, 1]), tf.ones([2, CONDITION])
        exact, exact_log_det = layer.forward_and_log_det(x, z)
        mode = RunMode(precision="mixed_bfloat16")
        if is_traced:
            rough, rough_log_det = layer.forward_and_log_det(x, z, Traced(mode))
        else:
            with use_kernels(mode.kernels):
                rough, rough_log_det = layer.forward_and_log_det(x, z)
        assert rough.dtype == rough_log_det.dtype == tf.float32
        assert 0 < np.abs(rough - exact).max() < 0.1
        assert 0 < np.abs(rough_log_det - exact_log_det).max() < 1
        np.testing.assert_array_equal(layer.forward_and_log_det(x, z)[0], exact)
        # The channels that the coupling leaves unchanged do not pass through the net.
        np.testing.assert_array_equal(rough[..., :3], exact[..., :3])

    @pytest.mark.parametrize(("part", "call"), {**OPTIONS, **SHAPES}.items())
    def test_impossible_option_or_shape_of_a_layer_is_refused_by_name(self, part, call):
        assert part in message_of(ConfigError if part in OPTIONS else UserError, call)

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_measured_colours_give_matrices_to_mean_0_and_covariance_1(self, channels):
        x = tf.constant(make_photographs(4, channels) / 128.0 - 1)
        matrix, inverse, shift, log_det = make_colour_matrices(measure_colours(x), channels)
        y = map_colours(x - shift[:, None, None], matrix)
        np.testing.assert_allclose(map_colours(y, inverse) + shift[:, None, None], x, atol=1e-12)
        np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1], atol=1e-12)
        for image in tf.reshape(y, [4, 64, channels]).numpy():
            np.testing.assert_allclose(image.mean(0), 0, atol=1e-12)
            # The variance that `measure_colours` adds makes the variances of y a little smaller than 1.
            np.testing.assert_allclose(np.cov(image.T, ddof=0), np.eye(channels), atol=0.2)

    def test_untrained_model_with_colour_map_switches_mean_and_contrast_of_colours(self):
        model, images = DecoupledModel(CONFIG), make_photographs(32)
        model.initialize(images)
        result = np.asarray(model.switch(images[:16], images[16:])[0], float)
        for moment in (np.mean, np.std):
            of_z, of_result = moment(images[:16], (1, 2)), moment(result, (1, 2))
            # Images are encoded half a bin brighter than they are measured, which contrast multiplies.
            np.testing.assert_allclose(of_result, of_z, atol=3)

    def test_matched_z_decodes_v_to_an_image_with_nearly_the_wanted_z(self, monkeypatch):
        model, images = DecoupledModel(CONFIG), make_photographs(16)
        model.initialize(images)
        for layer in model.flow.stage_layers:
            give_effect(layer, scale=0.05)
        (z, v), wanted = model.encode(images[:8]), model.encode(images[8:]).z

        def measure_distances(used):
            return np.square(model.encode(model.decode(used, v)).z - wanted)[:, : CONFIG.colour_numbers].sum(1)

        before, after = measure_distances(wanted), measure_distances(model.match_z(wanted, v))
        assert (after <= before).all() and after.sum() < 0.2 * before.sum()
        np.testing.assert_allclose(model.match_z(z, v), z, atol=1e-5)
        # Matching ends at a z that does not decode.
        decode, calls = model.decode, []

        def decode_once(z, v):
            calls.append(z)
            if len(calls) > 1:
                raise InversionError("decode gave pixels that are not finite")
            return decode(z, v)

        monkeypatch.setattr(model, "decode", decode_once)
        np.testing.assert_array_equal(model.match_z(wanted, v), wanted)

"""How layers are made and run: options, their refusals, configs, precision and traces."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import CONDITION, build_layer
from helpers.models import give_effect

from tfdecouple.errors import ConfigError, UserError
from tfdecouple.layers import (
    ActNorm,
    Coupling,
    InvertibleConv1x1,
    InvertibleSequence,
    Squeeze,
)
from tfdecouple.runtime.execution import Execution
from tfdecouple.runtime.run_mode import RunMode


class TestPrecision:
    def test_bfloat16_reaches_the_net_and_nothing_else(self):
        layer = give_effect(build_layer(Coupling(8, CONDITION), (None, 4, 4, 6)), scale=0.3)
        x, z = tf.random.stateless_normal([2, 4, 4, 6], [0, 1]), tf.ones([2, CONDITION])
        exact, exact_log_det = layer.forward_and_log_det(x, z)
        with RunMode(precision="mixed_bfloat16").apply():
            rough, rough_log_det = layer.forward_and_log_det(x, z)
        assert rough.dtype == rough_log_det.dtype == tf.float32
        assert 0 < np.abs(rough - exact).max() < 0.1
        assert 0 < np.abs(rough_log_det - exact_log_det).max() < 1
        np.testing.assert_array_equal(layer.forward_and_log_det(x, z)[0], exact)
        # The channels that the coupling leaves alone do not pass through the net.
        np.testing.assert_array_equal(rough[..., :3], exact[..., :3])

    def test_an_unknown_precision_is_refused(self):
        with pytest.raises(UserError, match="one of float32, tf32, mixed_bfloat16"):
            RunMode(precision="float16")


class CountingActNorm(ActNorm):
    """Counts how often its Python code runs."""

    runs = 0

    def _forward(self, x, condition):
        CountingActNorm.runs += 1
        return super()._forward(x, condition)


class TestTraces:
    def test_layers_of_one_kind_share_a_trace_and_keep_their_own_weights(self):
        CountingActNorm.runs = 0
        x, stack = tf.random.stateless_normal([2, 2, 2, 3], [0, 1]), InvertibleSequence()
        stack.sequence = [CountingActNorm() for _ in range(3)]
        give_effect(build_layer(stack, (None, 2, 2, 3)))
        expected = stack.forward_and_log_det(x)
        CountingActNorm.runs = 0
        Execution(stack)
        for ours, theirs in zip(stack.forward_and_log_det(x), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert CountingActNorm.runs == 1

    def test_each_precision_has_a_trace_of_its_own(self):
        x = tf.random.stateless_normal([2, 4, 4, 6], [0, 1])
        layer = give_effect(build_layer(Coupling(8), (None, 4, 4, 6)), scale=0.3)
        Execution(layer)
        exact = layer.forward_and_log_det(x)[0]
        with RunMode(precision="mixed_bfloat16").apply():
            rough = layer.forward_and_log_det(x)[0]
        assert 0 < np.abs(rough - exact).max() < 0.1
        np.testing.assert_array_equal(layer.forward_and_log_det(x)[0], exact)


class TestBadArguments:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Coupling(4, pattern="checkerboard"), "pattern is 'checkerboard'; .* continuous, alternate"),
            (lambda: Coupling(4, part="middle"), "part is 'middle'; .* last, first"),
            (lambda: Coupling(4, transform="cubic"), "transform is 'cubic'; .* affine, additive"),
            (lambda: Coupling(4, alpha=0.0), "alpha is 0.0"),
            (lambda: Coupling(4, alpha=1.5), "alpha is 1.5"),
            (lambda: Coupling(4, alpha=math.nan), "alpha is nan"),
            (lambda: Coupling(4, pattern="alternate", transformed=2), "transformed is 2"),
        ],
    )
    def test_impossible_option_is_refused_by_name(self, make, message):
        with pytest.raises(ConfigError, match=message):
            make()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: Coupling(4).forward_and_log_det(np.ones((1, 2, 2, 1))), "0 of 1 channels"),
            (lambda: Coupling(4, transformed=3).forward_and_log_det(np.ones((1, 2, 2, 3))), "3 of 3 channels"),
            (lambda: Coupling(4, transformed=0).forward_and_log_det(np.ones((1, 2, 2, 3))), "0 of 3 channels"),
            (lambda: Squeeze().forward_and_log_det(np.ones((1, 3, 2, 1))), "3 x 2 pixels"),
            (lambda: Squeeze().forward_and_log_det(np.ones((1, 4))), r"\(1, 4\)"),
            (lambda: Squeeze().inverse_and_log_det(np.ones((1, 2, 2, 6))), "6 channels"),
        ],
    )
    def test_shape_that_does_not_fit_is_refused(self, call, message):
        with pytest.raises(UserError, match=message):
            call()

    def test_conditional_coupling_of_vectors_is_refused(self):
        with pytest.raises(UserError):
            Coupling(4, CONDITION).forward_and_log_det(np.ones((2, 6)), np.ones((2, CONDITION)))


KNOWN_SHAPE = [2, 4, 6, 8]


@pytest.mark.parametrize("layer", [ActNorm, InvertibleConv1x1, Squeeze, lambda: Coupling(4, pattern="alternate")])
@pytest.mark.parametrize("method", ["forward_and_log_det", "inverse_and_log_det"])
def test_layers_ask_for_no_shape_that_is_known(layer, method):
    layer = layer()
    layer.build(KNOWN_SHAPE)
    run = tf.function(getattr(layer, method), autograph=False)
    asked = [
        {operation.type for operation in run.get_concrete_function(tf.TensorSpec(shape)).graph.get_operations()}
        & {"Shape", "Size"}
        for shape in (KNOWN_SHAPE, [None, *KNOWN_SHAPE[1:]])
    ]
    assert asked == [set(), {"Shape"}]


def test_traces_of_many_networks_and_shapes_issue_no_warning(caplog):
    logging.getLogger("tensorflow").addHandler(caplog.handler)
    try:
        for layer in (ActNorm(), ActNorm(), ActNorm(), ActNorm()):
            layer.build((None, 2, 2, 3))
            Execution(layer)
            for side in range(1, 5):
                layer.forward_and_log_det(tf.ones([1, side, side, 3]))
    finally:
        logging.getLogger("tensorflow").removeHandler(caplog.handler)
    assert "retracing" not in caplog.text

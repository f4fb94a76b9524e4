"""Wrong options and shapes of layers, the precision of their nets, and warnings about their traces."""

import logging
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import CONDITION, build_layer
from helpers.models import give_effect
from helpers.refusals import message_of

from tfdecouple.errors import ConfigError, UserError
from tfdecouple.layers import ActNorm, Coupling, Squeeze
from tfdecouple.runtime.execution import Execution
from tfdecouple.runtime.run_mode import RunMode


@pytest.mark.parametrize("is_traced", [False, True])
def test_bfloat16_reaches_the_net_of_a_coupling_and_nothing_else(is_traced):
    layer = give_effect(build_layer(Coupling(8, CONDITION), (None, 4, 4, 6)), scale=0.3)
    if is_traced:
        Execution(layer)
    x, z = tf.random.stateless_normal([2, 4, 4, 6], [0, 1]), tf.ones([2, CONDITION])
    exact, exact_log_det = layer.forward_and_log_det(x, z)
    with RunMode(precision="mixed_bfloat16").apply():
        rough, rough_log_det = layer.forward_and_log_det(x, z)
    assert rough.dtype == rough_log_det.dtype == tf.float32
    assert 0 < np.abs(rough - exact).max() < 0.1
    assert 0 < np.abs(rough_log_det - exact_log_det).max() < 1
    np.testing.assert_array_equal(layer.forward_and_log_det(x, z)[0], exact)
    # The channels that the coupling leaves unchanged do not pass through the net.
    np.testing.assert_array_equal(rough[..., :3], exact[..., :3])


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
    "condition": lambda: Coupling(4, CONDITION).forward_and_log_det(np.ones((2, 6)), np.ones((2, CONDITION))),
    "one of keep, recompute, invert": lambda: RunMode("recomputed"),
    "one of float32, tf32, mixed_bfloat16": lambda: RunMode(precision="float16"),
}


@pytest.mark.parametrize(("part", "call"), {**OPTIONS, **SHAPES}.items())
def test_impossible_option_or_shape_of_a_layer_is_refused_by_name(part, call):
    assert part in message_of(ConfigError if part in OPTIONS else UserError, call)


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

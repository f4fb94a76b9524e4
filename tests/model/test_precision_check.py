"""The trial of a precision before a run: it takes what works here, and refuses what does not."""

from types import SimpleNamespace

import pytest
import tensorflow as tf
from helpers.layers import all_layers
from helpers.models import TINY

from tfdecouple.errors import ConfigError
from tfdecouple.layers import nets
from tfdecouple.model import precision_check
from tfdecouple.model.precision_check import check_precision, kinds_of_nets
from tfdecouple.networks.flow import Flow
from tfdecouple.runtime.convolution import convolve


@pytest.fixture(scope="module")
def flow():
    flow = Flow(TINY)
    flow.build()
    return flow


def test_of_a_model_every_flow_is_tried_in_the_type_that_its_training_has(monkeypatch):
    tried = []
    monkeypatch.setattr(precision_check, "check_precision", lambda *given: tried.append(given))
    models = [SimpleNamespace(flow="v", dequantizer=each) for each in (None, SimpleNamespace(flow="u"))]
    for precision in ("float32", "tf32", "mixed_bfloat16"):
        precision_check.check_precision_of(models[1], precision, "invert")
    precision_check.check_precision_of(models[0], "mixed_bfloat16", "keep")
    types = ("float32", "float32", "bfloat16")
    assert tried[:6] == [(flow, dtype, "invert") for dtype in types for flow in "vu"]
    assert tried[6:] == [("v", "bfloat16", "keep")]


@pytest.mark.parametrize("memory", ["keep", "recompute", "invert"])
def test_bfloat16_works_here(flow, memory):
    check_precision(flow, "bfloat16", memory)


def test_every_kind_of_net_is_tried_once(flow):
    tried = [(sides, net.first.shape[2], net.hidden, net.outputs) for net, sides in kinds_of_nets(flow)]
    assert len(set(tried)) == len(tried)
    couplings = [layer for layer in all_layers(flow) if isinstance(layer, nets.ConvNet)]
    assert {kind[1:] for kind in tried} == {(net.first.shape[2], net.hidden, net.outputs) for net in couplings}
    assert {kind[0] for kind in tried} == {(8, 8), (4, 4), (2, 2)}


@pytest.mark.parametrize("by", [lambda y: y * float("nan"), lambda y: y * 1.5, lambda y: tf.reverse(y, [2])])
@pytest.mark.parametrize("convolution", ["convolve", "convolve_normed"])
def test_wrong_numbers_are_refused_and_the_precision_that_works_is_named(flow, monkeypatch, convolution, by):
    right = getattr(nets, convolution)

    def wrong(x, *weights):
        y = right(x, *weights)
        return by(y) if x.dtype == tf.bfloat16 else y

    monkeypatch.setattr(nets, convolution, wrong)
    with pytest.raises(ConfigError, match=r"bfloat16 does not work .* use --set training.precision=float32$") as error:
        check_precision(flow, "bfloat16")
    assert "\n" not in str(error.value)
    check_precision(flow, "float32")


def test_operation_that_there_is_not_is_refused(flow, monkeypatch):
    def missing(x, kernel):
        if x.dtype == tf.bfloat16:
            raise tf.errors.AbortedError(None, None, "{{node Conv2D}} could not create a primitive\nmore")
        return convolve(x, kernel)

    monkeypatch.setattr(nets, "convolve", missing)
    with pytest.raises(ConfigError, match="TensorFlow cannot compute it, could not create a primitive"):
        check_precision(flow, "bfloat16")

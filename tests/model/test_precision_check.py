"""The trial of a precision before a run: it takes what works here, and refuses what does not."""

from types import SimpleNamespace

import pytest
import tensorflow as tf
from helpers.layers import all_layers
from helpers.models import TINY
from helpers.variants import VARIANTS

from tfdecouple.errors import ConfigError
from tfdecouple.layers import conditioners
from tfdecouple.model.precision_check import list_kinds_of_nets, require_precision
from tfdecouple.networks.dequantizer import DequantizingFlow
from tfdecouple.networks.flow import Flow
from tfdecouple.runtime.convolution import convolve


@pytest.fixture(scope="module")
def model():
    flows = [Flow(TINY), DequantizingFlow(VARIANTS["dequantization"])]
    for flow in flows:
        flow.build()
    return SimpleNamespace(flow=flows[0], dequantizer=SimpleNamespace(flow=flows[1]))


@pytest.mark.parametrize("memory", ["keep", "recompute", "invert"])
def test_bfloat16_works_here(model, memory):
    require_precision(model, "mixed_bfloat16", memory)


def test_every_kind_of_net_of_every_flow_is_tried_once(model):
    tried = [(sides, *net.first.shape[2:], net.outputs) for net, sides in list_kinds_of_nets(model)]
    assert len(set(tried)) == len(tried)
    flows = model.flow, model.dequantizer.flow
    built = [net for flow in flows for net in all_layers(flow) if isinstance(net, conditioners.ConvNet)]
    assert {kind[1:] for kind in tried} == {(*net.first.shape[2:], net.outputs) for net in built}
    assert {kind[0] for kind in tried} == {(8, 8), (4, 4), (2, 2)}


@pytest.mark.parametrize("by", [lambda y: y * float("nan"), lambda y: y * 1.5, lambda y: tf.reverse(y, [2])])
@pytest.mark.parametrize("convolution", ["convolve", "convolve_normed"])
def test_wrong_numbers_are_refused_and_the_precision_that_works_is_named(model, monkeypatch, convolution, by):
    right = getattr(conditioners, convolution)

    def wrong(x, *weights):
        y = right(x, *weights)
        return by(y) if x.dtype == tf.bfloat16 else y

    monkeypatch.setattr(conditioners, convolution, wrong)
    with pytest.raises(ConfigError, match=r"bfloat16 does not work .* use --set training.precision=float32$") as error:
        require_precision(model, "mixed_bfloat16", "keep")
    assert "\n" not in str(error.value)
    require_precision(model, "float32", "keep")


def test_operation_that_there_is_not_is_refused(model, monkeypatch):
    def missing(x, kernel):
        if x.dtype == tf.bfloat16:
            raise tf.errors.AbortedError(None, None, "{{node Conv2D}} could not create a primitive\nmore")
        return convolve(x, kernel)

    monkeypatch.setattr(conditioners, "convolve", missing)
    with pytest.raises(ConfigError, match="TensorFlow cannot compute it, could not create a primitive"):
        require_precision(model, "mixed_bfloat16", "keep")

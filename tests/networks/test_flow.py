"""Tests of the flow, and of the prior's: steps, factor-outs and the whole multi-scale map, in float64."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import BATCH, assert_close, get_case
from helpers.models import TINY, give_effect
from helpers.variants import STAGES

from tfdecouple.errors import UserError
from tfdecouple.layers import ActNorm, Coupling, InvertibleConv1x1
from tfdecouple.networks.flow import FactorOut, Flow, FlowStep

FLOWS = {"tiny": TINY, "base": dataclasses.replace(STAGES, conditioning="base", base_hidden=5)}


@functools.cache
def flow(name):
    config = FLOWS[name]
    rng = np.random.default_rng(1)
    layer = Flow(config, dtype="float64")
    layer.build()
    give_effect(layer)
    x = tf.constant(rng.uniform(-1, 1, (BATCH, *config.image_shape)))
    return layer, x, tf.constant(rng.standard_normal((BATCH, config.latent_dim))) if config.has_latent else None


@functools.cache
def code_of_tiny():
    layer, x, condition = flow("tiny")
    return layer.forward_and_log_det(x, condition)[0]


class TestStep:
    def test_initialize_of_a_step_sets_the_layers_inside(self, eager):
        step, x = (
            FlowStep({"hidden": 4}, dtype="float64"),
            1 + 2 * np.random.default_rng(0).standard_normal((32, 4, 4, 3)),
        )
        step.build(x.shape)
        give_effect(step)
        y = step.initialize(x)
        assert_close(y, step.forward_and_log_det(x)[0])
        # After the second actnorm the couplings are the identity.
        np.testing.assert_allclose(np.mean(y, (0, 1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(np.std(y, (0, 1, 2)), 1, atol=1e-2)

    def test_step_is_actnorm_convolution_two_couplings_actnorm_two_couplings(self):
        layers = get_case("step")[0].sequence
        assert [*map(type, layers)] == [ActNorm, InvertibleConv1x1, Coupling, Coupling, ActNorm, Coupling, Coupling]
        patterns = [(c.pattern, c.part) for c in layers if isinstance(c, Coupling)]
        assert patterns == list(itertools.product(("continuous", "alternate"), ("last", "first")))

    def test_coupling_and_actnorm_of_a_factor_out_touch_only_the_channels_that_leave(self):
        layer, x, condition = get_case("factor-out")
        mixed = layer.mixing.forward_and_log_det(x)[0]
        y = layer.forward_and_log_det(x, condition)[0]
        np.testing.assert_array_equal(y[..., :4], mixed[..., :4])
        assert np.all(np.abs(y - mixed).max((0, 1, 2))[4:] > 1e-3)


@pytest.mark.usefixtures("eager")
class TestMultiScale:
    """Which entries of v leave where (paper Figure 3c)."""

    @pytest.mark.parametrize(
        ("level", "stage", "pick", "changed"),
        [
            # What leaves first stands last, at the resolution of its level.
            (1, 0, lambda stage: stage.factor_out.actnorm, range(9, 12)),
            (1, 1, lambda stage: stage.factor_out.actnorm, range(6, 9)),
            (2, 0, lambda stage: stage.steps[0].sequence[0], range(0, 6)),
            (1, 1, lambda stage: stage.steps[0].sequence[0], range(0, 9)),
        ],
    )
    def test_a_layer_reaches_only_the_entries_that_have_not_left(self, level, stage, pick, changed):
        layer, x, condition = flow("tiny")
        before = code_of_tiny()
        bias = pick(layer.levels[level][stage]).bias
        kept = bias.numpy()
        bias.assign(kept + 0.1)
        after = layer.forward_and_log_det(x, condition)[0]
        bias.assign(kept)
        difference = np.abs(tf.nn.space_to_depth(after - before, 2)).max((0, 1, 2))
        assert np.flatnonzero(difference > 1e-12).tolist() == list(changed)


@pytest.mark.usefixtures("eager")
class TestConditioning:
    @pytest.mark.parametrize("name", ["tiny", "base"])
    def test_missing_or_misshapen_z_is_refused(self, name):
        layer, x, z = flow(name)
        with pytest.raises(UserError, match=r"pass condition=z of shape \[batch, 4\]"):
            layer.forward_and_log_det(x)
        with pytest.raises(UserError, match="it needs"):
            layer.forward_and_log_det(x, z[:, :3])

    @pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 6, 8, 3), (8, 8, 3), (2, 192)])
    @pytest.mark.parametrize("direction", ["forward_and_log_det", "inverse_and_log_det"])
    def test_flow_refuses_shapes_that_it_cannot_squeeze(self, shape, direction):
        layer, _, z = flow("tiny")
        with pytest.raises(UserError, match="it needs"):
            getattr(layer, direction)(np.zeros(shape), z)


@pytest.mark.parametrize("dropped", [0, 4])
def test_factor_out_must_keep_and_drop_something(dropped):
    with pytest.raises(UserError, match="of 4 channels"):
        FactorOut(dropped, {"hidden": 4}).forward_and_log_det(np.ones((1, 2, 2, 4)))

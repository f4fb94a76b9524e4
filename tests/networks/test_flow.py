"""Tests of the flow, and of the prior's: steps, factor-outs and the whole multi-scale map, in float64."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import BATCH, CONDITION, assert_close, build_case, check_layer
from helpers.models import TINY, give_effect, jacobian_log_det, visit_layers_with
from helpers.variants import STAGES, VARIANTS

from tfdecouple.errors import UserError
from tfdecouple.layers import ActNorm, ConditionalWhitening, Coupling, InvertibleConv1x1, Squeeze
from tfdecouple.networks.flow import FactorOut, Flow, FlowStep
from tfdecouple.networks.prior import PriorFlow, PriorStep

F64 = {"dtype": "float64"}
COUPLINGS = {"hidden": 4, "condition_size": CONDITION}
ADDITIVE = {"hidden": 4, "transform": "additive"}
# Blocks of a flow by name: the constructor, the shape of an input without the batch, and the size of the condition.
BLOCKS = {
    "step": (functools.partial(FlowStep, COUPLINGS, **F64), (2, 2, 4), CONDITION),
    "step-odd": (functools.partial(FlowStep, {**COUPLINGS, "alpha": 0.6}, **F64), (2, 2, 3), CONDITION),
    "step-additive": (functools.partial(FlowStep, ADDITIVE, **F64), (2, 2, 4), 0),
    "factor-out": (functools.partial(FactorOut, 2, COUPLINGS, **F64), (2, 2, 6), CONDITION),
    "factor-out-additive": (functools.partial(FactorOut, 1, ADDITIVE, **F64), (2, 2, 3), 0),
    "prior-step-additive": (functools.partial(PriorStep, ADDITIVE, **F64), (5,), 0),
    "prior-flow": (functools.partial(PriorFlow, 2, 5, alpha=0.6, **F64), (6,), 0),
}
# Configs of small flows that together have each kind of conditioning and coupling.
FLOWS = {
    "tiny": TINY,
    "unconditional-additive": dataclasses.replace(
        STAGES, conditioning="none", transform="additive", multiscale_transform="additive"
    ),
    "base": dataclasses.replace(STAGES, conditioning="base", base_hidden=5),
    "grey": VARIANTS["grey"],
}


@functools.cache
def block(name):
    return build_case(name, *BLOCKS[name])


@functools.cache
def flow(name):
    config = FLOWS[name]
    rng = np.random.default_rng(1)
    layer = Flow(config, **F64)
    layer.build()
    give_effect(layer)
    x = tf.constant(rng.uniform(-1, 1, (BATCH, *config.image_shape)))
    return layer, x, tf.constant(rng.standard_normal((BATCH, config.latent_dim))) if config.has_latent else None


@functools.cache
def code_of_tiny():
    layer, x, condition = flow("tiny")
    return layer.forward_and_log_det(x, condition)[0]


def made(name):
    return block(name) if name in BLOCKS else flow(name)


@pytest.mark.usefixtures("eager")
class TestProperties:
    @pytest.mark.parametrize("name", [*BLOCKS, "unconditional-additive", "base", "grey"])
    def test_inverts_with_the_log_det_of_its_jacobian(self, name):
        layer, x, condition = made(name)
        y, log_det = layer.forward_and_log_det(x, condition)
        assert_close(log_det, jacobian_log_det(layer.forward_and_log_det, x, condition))
        assert y.shape == x.shape and np.abs(y - x).max() > 0.1 and np.all(np.abs(log_det) > 1e-3)
        back, inverse = layer.inverse_and_log_det(y, condition)
        assert_close(back, x)
        assert_close(log_det + inverse, tf.zeros(BATCH, tf.float64))
        assert_close(layer.forward_and_log_det(layer.inverse_and_log_det(x, condition)[0], condition)[0], x)

    @pytest.mark.parametrize("name", [*BLOCKS, *FLOWS])
    def test_walk_visits_every_elementary_layer_once_in_order_and_gives_the_output(self, name):
        layer, x, condition = made(name)
        visited = []
        output = visit_layers_with(layer, x, condition, lambda leaf, h, z: visited.append(leaf))
        assert_close(output, layer.forward_and_log_det(x, condition)[0])
        own = {id(variable) for leaf in visited for variable in leaf.variables}
        assert own == {id(variable) for variable in layer.variables}
        assert len({id(leaf) for leaf in visited}) == len(visited)
        assert isinstance(visited[0], ActNorm | InvertibleConv1x1)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (3, 2, 1, 9), (2, 1, 3, 4)])
def test_layers_take_any_shape(shape):
    check_layer(FlowStep(COUPLINGS, **F64), shape)
    check_layer(FactorOut(shape[-1] // 2, COUPLINGS, **F64), shape)
    check_layer(PriorStep({"hidden": 3}, **F64), (shape[0], shape[-1]))
    check_layer(ConditionalWhitening(3, CONDITION, **F64), shape)
    check_layer(Squeeze(**F64), (shape[0], 2 * shape[1], 2 * shape[2], shape[3]))


class TestStep:
    def test_initialize_sets_the_layers_inside(self, eager):
        step, x = FlowStep({"hidden": 4}, **F64), 1 + 2 * np.random.default_rng(0).standard_normal((32, 4, 4, 3))
        step.build(x.shape)
        give_effect(step)
        y = step.initialize(x)
        assert_close(y, step.forward_and_log_det(x)[0])
        # After the second actnorm the couplings are the identity.
        np.testing.assert_allclose(np.mean(y, (0, 1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(np.std(y, (0, 1, 2)), 1, atol=1e-2)

    def test_step_is_actnorm_convolution_two_couplings_actnorm_two_couplings(self):
        layers = block("step")[0].sequence
        assert [*map(type, layers)] == [ActNorm, InvertibleConv1x1, Coupling, Coupling, ActNorm, Coupling, Coupling]
        patterns = [(c.pattern, c.part) for c in layers if isinstance(c, Coupling)]
        assert patterns == list(itertools.product(("continuous", "alternate"), ("last", "first")))

    def test_coupling_and_actnorm_of_a_factor_out_touch_only_the_channels_that_leave(self):
        layer, x, condition = block("factor-out")
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

    @pytest.mark.parametrize(
        "config",
        [
            dataclasses.replace(STAGES, steps=(1, (1, 2, 1), 1)),
            dataclasses.replace(
                STAGES, steps=(1, (1,), (1, 1), 1), factors=(2, 3), hidden_channels=(3, 3, 3, 3), image_shape=(8, 8, 3)
            ),
        ],
        ids=["three-stages", "factors-2-and-3"],
    )
    def test_every_structure_inverts(self, config):
        layer = Flow(config, **F64)
        layer.build()
        give_effect(layer)
        x = tf.random.stateless_uniform([1, *config.image_shape], [0, 1], dtype=tf.float64)
        z = tf.ones([1, config.latent_dim], tf.float64)
        v, log_det = layer.forward_and_log_det(x, z)
        back, inverse = layer.inverse_and_log_det(v, z)
        assert_close(back, x)
        assert_close(log_det, -inverse)


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
    def test_shapes_that_it_cannot_squeeze_are_refused(self, shape, direction):
        layer, _, z = flow("tiny")
        with pytest.raises(UserError, match="it needs"):
            getattr(layer, direction)(np.zeros(shape), z)


@pytest.mark.parametrize("dropped", [0, 4])
def test_factor_out_must_keep_and_drop_something(dropped):
    with pytest.raises(UserError, match="of 4 channels"):
        FactorOut(dropped, {"hidden": 4}).forward_and_log_det(np.ones((1, 2, 2, 4)))

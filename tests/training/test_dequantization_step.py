"""Steps of a model that learns its dequantisation: alone, on two devices, and from a restored state."""

import dataclasses

import numpy as np
import pytest
from helpers.models import give_effect
from helpers.trainers import GLOW, Trainer, assert_close, assert_equal

from tfdecouple.model import DecoupledModel

pytestmark = pytest.mark.usefixtures("weights_of_both_sizes")

DEQUANTIZING = dataclasses.replace(
    GLOW,
    dequantization="flow",
    dequantization_steps=(1, 1),
    dequantization_hidden_channels=(3, 4),
    dequantization_encoder_channels=(3,),
    dequantization_map_channels=2,
)


class TestLearnedDequantization:
    @pytest.fixture(scope="class")
    def alone(self):
        """A trainer that has taken two steps, its states after each, and the results."""
        trainer = Trainer(model=DEQUANTIZING)
        steps = [(trainer.take(), trainer.values()) for _ in range(2)]
        return tuple(zip(*steps, strict=True))

    def test_its_term_is_in_the_loss_and_moves_its_weights(self, alone):
        (first, _), (state, after) = alone
        assert first.dequantization != 0 and first.kl == 0 and first.applied
        nats = first.reconstruction + first.dequantization
        bits = DecoupledModel(DEQUANTIZING).nats_to_bits_per_dim(nats)
        assert first.bits_per_dim == pytest.approx(bits, rel=1e-5)
        moved = {name for name, value in after.items() if not np.array_equal(value, state[name])}
        dequantizer = {name for name in state if name.startswith("model/dequantizer/")}
        assert len(dequantizer) > 60 and dequantizer <= moved

    def test_two_devices_take_the_same_steps(self, alone, eager):
        trainer = Trainer(devices=2, model=DEQUANTIZING)
        trainer.take(2)
        assert_close(trainer.values(), alone[1][-1], 2e-4)

    def test_a_restored_state_goes_on_bit_for_bit_and_so_does_rematerialisation(self, alone):
        results, states = alone
        trainer = Trainer(model=DEQUANTIZING, memory="recompute")
        trainer.take()
        assert_equal(trainer.values(), states[0])
        give_effect(trainer.state.model)
        trainer.put(states[0])
        assert trainer.take().bits_per_dim == results[1].bits_per_dim
        assert_equal(trainer.values(), states[1])

"""The check of memory, in earnest: its process counts what TensorFlow's tensors take."""

import pytest

from tfdecouple.doctor.check_runner import run_in_process
from tfdecouple.doctor.report import VARIANTS, Request, Task

# The quickstart with so few layers that an image is most of what is computed.
SMALL = (
    "model.image_shape=[64,64,3]",
    "model.steps=[1,1]",
    "model.hidden_channels=[16,16]",
    "model.encoder_channels=[16]",
    "model.latent_dim=4",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "invert"])
def test_holds_here_for_a_small_model(name):
    (variant,) = [variant for variant in VARIANTS if variant.name == name]
    smaller, larger, judged = run_in_process("memory", Task(Request(preset="quickstart", settings=SMALL), variant))
    assert larger.figures["batch"] == 2 * smaller.figures["batch"]
    # Above everything else in memory, and not far beyond.
    difference = larger.figures["peak_bytes"] - smaller.figures["peak_bytes"]
    assert 180 * 2**20 < difference < 360 * 2**20
    assert judged.holds, judged.message

import pytest
from helpers.runs import run_config

from tfdecouple.training import train


@pytest.mark.slow
def test_resumed_training_is_one_run_of_weights_and_biases(image_folder, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    for steps in (5, 10):
        train(run_config(image_folder, steps=steps, loggers=("wandb",)), tmp_path / "run")
    files = sorted(tmp_path.glob("run/wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    # Some versions of the client write names of metrics in parts, such as "train" and "bits_per_dim".
    assert all(name in file.read_bytes() for file in files for name in (b"bits_per_dim", b"learning_rate"))

"""`training.micro_batches=auto`: a number by calculation and by the memory that is free, which a run then keeps."""

import types

import pytest
from helpers.models import LEAST, SMALL
from helpers.runs import run_config

from tfdecouple.config import Config, TrainingConfig
from tfdecouple.errors import ConfigError
from tfdecouple.networks import costs
from tfdecouple.runs.run_folder import load_config
from tfdecouple.training import strategy as strategies
from tfdecouple.training import train


def test_fewest_are_those_that_fit():
    config = Config(model=SMALL, training=TrainingConfig(batch_size=240, ema_decay=0.9))
    for count, images in ((1, 240), (2, 120), (3, 80), (240, 1)):
        need = costs.step_bytes(config, images, count)
        assert costs.fewest_micro_batches(config, 1, need) == count
        assert costs.fewest_micro_batches(config, 1, need - 1) != count
    # Two devices have half of the images each.
    assert costs.fewest_micro_batches(config, 2, costs.step_bytes(config, 60, 2)) == 2
    assert costs.fewest_micro_batches(config, 1, costs.step_bytes(config, 1, 240) - 1) is None


def test_state_of_micro_batches_is_counted_and_less_memory_is_needed_where_less_is_kept():
    of = {m: Config(model=SMALL, training=TrainingConfig(memory=m)) for m in ("keep", "recompute", "invert")}
    assert costs.step_bytes(of["keep"], 0, 2) > costs.step_bytes(of["keep"], 0, 1)
    sizes = [costs.step_bytes(config, 1) for config in of.values()]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


class TestRun:
    @pytest.fixture
    def free(self, monkeypatch):
        """Returns a function that lets so many bytes be free."""
        return lambda count: monkeypatch.setattr(strategies, "measure_usable_memory", lambda strategy: count)

    def test_takes_the_number_of_its_beginning(self, image_folder, tmp_path, stand_ins, fake_step, free, capsys):
        config = run_config(image_folder, model=LEAST, micro_batches="auto", steps=2)
        free(costs.step_bytes(config, 4, 2))
        train(config, tmp_path / "run")
        assert "training.micro_batches=auto: 2, 4 images at a time on each device, " in capsys.readouterr().out
        assert load_config(tmp_path / "run").training.micro_batches == 2
        free(2**40)
        longer = run_config(image_folder, model=LEAST, micro_batches="auto", steps=3)
        assert train(longer, tmp_path / "run").summary["steps"] == 3
        assert "training.micro_batches=auto: 2, as this run began" in capsys.readouterr().out
        assert load_config(tmp_path / "run").training.micro_batches == 2

    def test_is_refused_where_no_image_fits(self, image_folder, tmp_path, free):
        config = run_config(image_folder, model=LEAST, micro_batches="auto")
        free(costs.step_bytes(config, 1, 8) - 1)
        with pytest.raises(ConfigError, match=r"one image at a time needs .* take training\.memory=invert, a smaller"):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestFree:
    @staticmethod
    def strategy(*devices):
        return types.SimpleNamespace(extended=types.SimpleNamespace(worker_devices=devices))

    def test_of_logical_cpus_is_shared(self, monkeypatch):
        monkeypatch.setattr(strategies, "free_memory", lambda: 10 * 2**30)
        one, two = (
            strategies.measure_usable_memory(self.strategy(*names)) for names in (["/device:CPU:0"], ["CPU:0", "CPU:1"])
        )
        assert one == int(0.9 * 10 * 2**30) - 2**29 and two == one // 2

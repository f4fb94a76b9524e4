"""The summary of a run with unreadable images, metrics that are not finite, or lost best weights."""

import dataclasses
import math
import os

import pytest
from helpers.models import LEAST, random_images
from helpers.runs import run_config
from PIL import Image

from tfdecouple.errors import DataError
from tfdecouple.runs.opened_run import Run
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.storage.checkpoints import CheckpointFolder
from tfdecouple.training import train

pytestmark = pytest.mark.usefixtures("fake_step")


class TestUnreadableImages:
    """Images of a folder that is larger than the memory for it, so that its readable images are unknown."""

    @pytest.fixture
    def config(self, tmp_path):
        """A run on a folder of which number 0 of each split cannot be read."""
        for split, count in {"train": 8, "validation": 3, "test": 4}.items():
            (tmp_path / split).mkdir()
            for number, image in enumerate(random_images(count)):
                Image.fromarray(image).save(tmp_path / split / f"{number}.png")
            (tmp_path / split / "0.png").write_text("no image")
        config = run_config(tmp_path, model=LEAST, steps=1, pictures=0, init_images=4)
        data = dataclasses.replace(config.data, on_bad_image="skip", cache_gib=0.0)
        return dataclasses.replace(config, data=data)

    def test_unreadable_test_images_are_left_out_of_the_summary(self, config, tmp_path, stand_ins):
        summary = train(config, tmp_path / "run").summary
        assert summary["lossless_codecs_images"] == 3
        assert summary["reconstruction"] == "3 of 3 images identical to the last pixel"

    def test_run_with_only_unreadable_test_images_ends_with_one_line(self, config, tmp_path, stand_ins):
        for file in (tmp_path / "test").iterdir():
            file.write_text("no image")
        with pytest.raises(DataError, match="none of the 4 images can be read") as error:
            train(config, tmp_path / "run")
        assert "\n" not in str(error.value)


def test_metrics_that_are_not_finite_are_null_in_a_complete_summary(image_folder, tmp_path, stand_ins, capsys):
    stand_ins(lambda split: math.nan)
    config = run_config(image_folder, model=LEAST, steps=1)
    train(config, tmp_path / "run")
    summary = RunFolder(tmp_path / "run").read_summary()
    assert summary["validation_bits_per_dim"] is None and summary["best_step"] == 1
    assert summary["test"]["bits_per_dim"] is None
    assert "no validation gave a finite figure: those of step 1 are measured instead\n" in capsys.readouterr().out
    assert train(config, tmp_path / "run").summary == summary
    assert "is complete at step 1" in capsys.readouterr().out


def test_summary_names_the_measured_step_if_the_best_weights_are_lost(image_folder, tmp_path, stand_ins, capsys):
    measured = iter([2.0, 3.0])
    stand_ins(lambda split: next(measured) if split == "validation" else 1.0)
    config = run_config(image_folder, model=LEAST, steps=2, evaluate_every=1, evaluation_samples=0)
    summary = train(config, tmp_path / "run").summary
    assert (summary["best_step"], summary["validation_bits_per_dim"]) == (1, 2.0)
    (data,) = CheckpointFolder(tmp_path / "run" / "checkpoints").path.glob("best-*.data*")
    os.truncate(data, 20)
    (tmp_path / "run" / "summary.json").unlink()
    summary = train(config, tmp_path / "run").summary
    assert (summary["best_step"], summary["validation_bits_per_dim"]) == (2, None)
    line = "the best weights, of step 1, cannot be read: those of step 2 are measured instead\n"
    assert line in capsys.readouterr().out
    assert Run.open(tmp_path / "run").step == 2

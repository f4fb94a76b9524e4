"""The folder of a run that is older than an option, and what is no fault of it."""

import dataclasses

import pytest
from helpers.models import LEAST
from helpers.runs import run_config

from tfdecouple import training
from tfdecouple.cli import train_main
from tfdecouple.config import FORMER_PHOTOGRAPHS, PHOTOGRAPHS, Config, DataConfig
from tfdecouple.errors import DataError, RunError
from tfdecouple.storage.files import write_json
from tfdecouple.training import run, train


class OpenedError(Exception):
    """Raised in place of opening the images."""


class TestPhotographs:
    """A run that is older than their choice keeps those that there were."""

    @pytest.fixture
    def older(self, tmp_path):
        """The config of such a run, whose folder is `tmp_path / "run"`, as its preset would be today."""
        config = Config(model=LEAST, data=DataConfig(photograph_crops=8))
        values = config.to_dict()
        del values["data"]["photographs"]
        write_json(tmp_path / "run" / "config.json", values)
        return config

    def test_it_goes_on_where_none_are_named(self, older, tmp_path, monkeypatch):
        opened = []

        def opening(data, *_):
            opened.append(data.photographs)
            raise OpenedError

        monkeypatch.setattr(run, "open_source", opening)
        repeated = Config.from_json(tmp_path / "run" / "config.json")
        for config in (older, repeated):
            with pytest.raises(OpenedError):
                train(config, tmp_path / "run")
        # As a program that goes on writes it.
        write_json(tmp_path / "run" / "config.json", repeated.to_dict())
        with pytest.raises(OpenedError):
            train(older, tmp_path / "run")
        with pytest.raises(OpenedError):
            train(older, tmp_path / "new")
        assert opened == [FORMER_PHOTOGRAPHS] * 3 + [PHOTOGRAPHS]

    def test_others_that_are_named_are_refused(self, older, tmp_path):
        config = dataclasses.replace(older, data=dataclasses.replace(older.data, photographs=("coffee",)))
        with pytest.raises(RunError, match=r"data.photographs was \['astronaut', .* and is now \['coffee'\]"):
            train(config, tmp_path / "run")

    def test_config_of_one_repeats_it(self, older, tmp_path, monkeypatch):
        configs = []

        def stop(config, *_, **__):
            configs.append(config)
            raise RunError("stopped")

        monkeypatch.setattr(training, "train", stop)
        assert train_main(["--config", str(tmp_path / "run" / "config.json")]) == 2
        assert configs[0].data.photographs == FORMER_PHOTOGRAPHS


def test_images_that_cannot_be_opened_are_no_fault_of_the_run_folder(tmp_path):
    with pytest.raises(DataError, match="cannot open data.source=folder:/x.*: File name too long") as error:
        train(run_config(f"/{'x' * 300}", model=LEAST), tmp_path / "run")
    assert "\n" not in str(error.value)

"""Tests that a model too large for its weights or for the machine is refused before a weight of it is made."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
import tensorflow as tf
from helpers.models import TINY
from helpers.places import ROOT
from helpers.refusals import refused

import tfdecouple
from export.cli import main as export_main
from tfdecouple.cli import main, train_main
from tfdecouple.config import Config, DataConfig, load_preset, override, preset_names
from tfdecouple.data import open_source
from tfdecouple.errors import ConfigError, DataError, RunError, UserError
from tfdecouple.model.networks import Networks
from tfdecouple.networks import architecture
from tfdecouple.networks.architecture import compute_weight_shapes, count_parameters, require_memory
from tfdecouple.runs.run_folder import RunFolder
from tfdecouple.runtime import devices
from tfdecouple.storage.checkpoints import CheckpointFolder, DamagedCheckpointError

COMMITTED = sorted(path.parent for path in (ROOT / "docs" / "results").glob("*/checkpoints"))
COMMITTED += [ROOT / "tests" / "data" / "golden" / "1" / "run", ROOT / "tfdecouple" / "pretrained" / "photographs"]

TOO_LARGE = {
    "wide": (["model.hidden_channels=[4,1000000000]"], "model.hidden_channels, 1000000000"),
    "wide prior": (["model.prior_hidden=10000000000"], "model.prior_hidden, 10000000000"),
    "large images": (["model.image_shape=[1073741824,1073741824,3]"], "1073741824"),
    "thousands of steps": (["model.steps=[1,5000]"], "model.steps adds up to 5001 steps"),
    "as many steps as a number can be": (["model.steps=[9000000000000000000,1]"], "model.steps adds up to"),
}


@pytest.fixture
def no_model(monkeypatch):
    """Fails where the weights of a model are made."""

    def made(*_, **__):
        pytest.fail("a model is made")

    monkeypatch.setattr(Networks, "build", made)


@pytest.fixture
def enlarged(tiny_run, tmp_path):
    """Makes a copy of `tiny_run` whose config has other values."""

    def make(assignments: list[str]) -> pathlib.Path:
        run = tmp_path / "run"
        shutil.copytree(tiny_run, run)
        values = Config.from_json(run / "config.json").to_dict()
        for assignment in assignments:
            (section, name), value = assignment.partition("=")[0].split("."), assignment.partition("=")[2]
            values[section][name] = json.loads(value)
        (run / "config.json").write_text(json.dumps(values))
        return run

    return make


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_every_way_to_open_or_train_it_is_one_line(enlarged, no_model, capsys, kind, tmp_path):
    assignments, says = TOO_LARGE[kind]
    run = enlarged(assignments)
    # A size that the checkpoint does not have is refused by the checkpoint.
    of_run = "does not fit the config beside it" if "steps" not in kind else says
    with pytest.raises(UserError, match=of_run):
        tfdecouple.load_model(run)
    new = str(tmp_path / "new")
    for program, message in (
        (lambda: main(["sample", "--run", str(run)]), of_run),
        (lambda: export_main(["--run", str(run), "--to", str(tmp_path / "exported")]), of_run),
        (lambda: train_main(["--config", str(run / "config.json"), "--workdir", new]), says),
    ):
        line = refused(capsys, program, begun=True)
        assert message in line and "batch" not in line
    assert not pathlib.Path(new).exists()


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("model.steps=[1,500]", "the weight flow/"),
        ("model.encoder_out_channels=3", "the weight encoder/"),
        ("model.prior_steps=2", "the weight prior_flow/"),
        ('model.prior="normal"', "the weight prior_flow/.* missing by the config"),
    ],
)
def test_config_that_does_not_fit_its_weights_is_refused_before_the_model(enlarged, no_model, assignment, says):
    with pytest.raises(RunError, match=f"does not fit the config beside it: {says}"):
        tfdecouple.load_model(enlarged([assignment]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda name, shape: {name: shape[::-1]}, "of shape {other} in the checkpoint"),
        (lambda name, shape: {name + "s": shape}, "missing in the checkpoint"),
    ],
    ids=["turned", "renamed"],
)
def test_checkpoint_of_as_many_parameters_is_refused_by_its_first_other_weight(
    enlarged, no_model, tmp_path, change, says
):
    run = enlarged([])
    kept = CheckpointFolder(run / "checkpoints")
    shapes = kept.read_weight_shapes("best", 1)
    name = min(name for name, shape in shapes.items() if shape != shape[::-1])
    shape = shapes.pop(name)
    shapes |= change(name, shape)
    kept.write_checkpoint("best", 1, {"model": {name: tf.Variable(tf.zeros(shape)) for name, shape in shapes.items()}})
    with pytest.raises(RunError) as refused:
        tfdecouple.load_model(run)
    fits = f"the checkpoint {kept.checkpoint_path('best', 1)} does not fit the config beside it"
    says = says.format(other=shape[::-1])
    assert str(refused.value) == f"{fits}: the weight {name} is of shape {shape} by the config, and {says}"


@pytest.mark.parametrize("run", COMMITTED, ids=lambda run: f"{run.parent.name}/{run.name}")
def test_checkpoints_say_which_weights_they_hold(run):
    folder = CheckpointFolder(run / "checkpoints")
    assert folder.read_weight_shapes("best", folder.list_checkpoint_steps("best")[0]) == compute_weight_shapes(
        RunFolder(run).read_config().model
    )


def test_weights_that_are_more_than_their_file_are_damaged(tiny_run, tmp_path):
    shutil.copytree(tiny_run / "checkpoints", tmp_path, dirs_exist_ok=True)
    (data,) = tmp_path.glob("*.data-*")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(DamagedCheckpointError, match="which has 1,000 bytes"):
        CheckpointFolder(tmp_path).read_weight_shapes("best", 1)


class TestMemory:
    def test_no_preset_is_too_large_to_be_used(self, monkeypatch):
        monkeypatch.setattr(architecture, "read_total_memory", lambda: 2**30)
        for name in preset_names():
            require_memory(load_preset(name).model)
        monkeypatch.setattr(architecture, "read_total_memory", lambda: 4 * count_parameters(TINY)["total"] - 1)
        with pytest.raises(ConfigError, match="the model is too large: it needs"):
            require_memory(TINY)

    def test_of_a_container_counts(self, monkeypatch, tmp_path):
        whole = devices.read_total_memory()
        assert 2**28 < whole < 2**50
        (tmp_path / "max").write_text("max\n")
        (tmp_path / "limit").write_text("12345\n")
        monkeypatch.setattr(devices, "_GROUP", str(tmp_path))
        monkeypatch.setattr(
            devices, "_GROUP_FILES", [("used", "max", "parts", "cache"), ("used", "none", "parts", "cache")]
        )
        physical = devices.read_total_memory()
        assert physical >= whole
        monkeypatch.setattr(devices, "_GROUP_FILES", [("used", "limit", "parts", "cache")])
        assert devices.read_total_memory() == 12345

    def test_what_is_free_is_what_is_not_used_but_for_files(self, monkeypatch, tmp_path):
        monkeypatch.setattr(devices, "_GROUP_FILES", [])
        available = devices.read_free_memory()
        assert 2**26 < available < devices.read_total_memory()
        monkeypatch.setattr(devices, "_GROUP", str(tmp_path))
        monkeypatch.setattr(devices, "_GROUP_FILES", [("used", "limit", "parts", "inactive_file")])
        for name, text in (("used", "1000\n"), ("limit", "3000\n"), ("parts", "anon 600\ninactive_file 400\n")):
            (tmp_path / name).write_text(text)
        assert devices.read_free_memory() == 3000 - (1000 - 400)
        (tmp_path / "limit").write_text("max\n")
        assert devices.read_free_memory() > 2**26
        used = devices._read_fields("/proc/self/status")["VmSize"] * 1024
        monkeypatch.setattr(devices, "read_address_space_limit", lambda: used + 2**20)
        assert devices.read_free_memory() <= 2**22


@pytest.mark.parametrize("count", [10**9, 2**62])
def test_crops_that_fill_the_memory_are_refused(count):
    data = override(Config(), [f"data.photograph_crops={count}"]).data
    with pytest.raises(DataError, match=f"data.photograph_crops is {count}"):
        open_source(data, (64, 64, 3))
    open_source(DataConfig(), (8, 8, 3))

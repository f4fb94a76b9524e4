"""Tests that run folders and data sets of strangers run no code and lead nowhere that the user did not name."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from export.cli import main as export_main
from tfdecouple.cli import main
from tfdecouple.config import Config, DataConfig
from tfdecouple.data import load_images, open_source
from tfdecouple.errors import DataError, UntrustedError, UserError
from tfdecouple.interop import wolf
from tfdecouple.metrics import inception
from tfdecouple.runs import require_own_images
from tfdecouple.runtime.process import python_process

pytestmark = pytest.mark.usefixtures("eager_file")

PAYLOAD = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
CORE = "tensorflow_datasets.core.features"
IMAGE = {"pythonClassName": f"{CORE}.image_feature.Image", "image": {"dtype": "uint8", "encodingFormat": "png"}}
DICT = f"{CORE}.features_dict.FeaturesDict"


def as_proto(inner, name="x"):
    return {"pythonClassName": DICT, "featuresDict": {"features": {"image": IMAGE, name: inner}}}


def plant(data_dir: pathlib.Path, features, module: str, *, info=None, folder="innocent/1.0.0", name="innocent"):
    """Makes a prepared TFDS data set whose metadata are these; returns its folder."""
    where = data_dir / folder
    where.mkdir(parents=True)
    if features is not None:
        (where / "features.json").write_text(json.dumps(features).replace("PAYLOAD", module))
    known = {"name": name, "version": "1.0.0", "fileFormat": "tfrecord", **(info or {})}
    known["splits"] = [{"name": "train", "shardLengths": ["9"], "numBytes": "9", **known.pop("split", {})}]
    (where / "dataset_info.json").write_text(json.dumps(known).replace("PAYLOAD", module))
    return where


@pytest.fixture
def payload(tmp_path, monkeypatch, request):
    """Returns the name of a module that leaves a file `ran` beside itself when it is imported, and that file."""
    folder = tmp_path / "runs" / "evil"
    folder.mkdir(parents=True)
    name = f"payload_{abs(hash(request.node.name))}"
    (folder / f"{name}.py").write_text(PAYLOAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    yield name, folder / "ran"
    sys.modules.pop(name, None)


@pytest.fixture
def evil_run(tiny_run, tmp_path, payload):
    """A run folder whose config names a TFDS data set within it, which names a class of the run folder."""
    folder = tmp_path / "runs" / "evil"
    shutil.copytree(tiny_run, folder, dirs_exist_ok=True)
    plant(folder / "data", as_proto({"pythonClassName": "PAYLOAD.Feature"}), payload[0])
    return set_data(folder, source="tfds:innocent", data_dir="runs/evil/data")


def set_data(run: pathlib.Path, **data) -> pathlib.Path:
    config = Config.from_json(run / "config.json")
    (run / "config.json").write_text(dataclasses.replace(config, data=DataConfig(**data)).to_json())
    return run


def one_line(capsys) -> str:
    """Returns the only line on standard error."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    return line


COMMANDS = {
    "switch": lambda: main(["switch", "--run", "runs/evil", "--split", "train"]),
    "evaluate": lambda: main(["evaluate", "--run", "runs/evil", "--split", "train"]),
    "encode": lambda: main(["encode", "--run", "runs/evil", "--out", "codes"]),
    "export": lambda: export_main(["--run", "runs/evil", "--to", "exported"]),
}


class TestRunFolder:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_runs_none_of_its_code(self, evil_run, payload, command, capsys):
        assert COMMANDS[command]() == 2
        assert not payload[1].exists()
        line = one_line(capsys)
        assert "data.data_dir" in line and "runs/evil/data" in line

    @pytest.mark.parametrize("place", ["runs/evil", "runs/evil/../evil/data", "runs/link/data", "elsewhere"])
    def test_is_left_by_no_detour(self, evil_run, tmp_path, place):
        (tmp_path / "runs" / "link").symlink_to(evil_run)
        (tmp_path / "elsewhere").symlink_to(evil_run / "data")
        with pytest.raises(UntrustedError, match="leads into the run folder itself"):
            require_own_images(evil_run, DataConfig(source="tfds:innocent", data_dir=place))
        with pytest.raises(UntrustedError, match="leads into the run folder itself"):
            require_own_images("runs/link", DataConfig(source=f"folder:{place}"))

    def test_a_link_out_of_it_is_within_it(self, evil_run, image_folder):
        (evil_run / "images").symlink_to(image_folder)
        with pytest.raises(UntrustedError, match="data.source"):
            require_own_images(evil_run, DataConfig(source="folder:runs/evil/images"))

    def test_images_beside_it_are_used_and_named(self, evil_run, image_folder):
        set_data(evil_run, source=f"folder:{image_folder}")
        assert main(["reconstruct", "--run", "runs/evil"]) == 0
        (facts,) = evil_run.glob("pictures/reconstruct.json")
        assert str(image_folder) in json.loads(facts.read_text())["data"]

    def test_what_the_user_names_is_used(self, evil_run, image_folder):
        shutil.copytree(image_folder, evil_run / "images")
        assert main(["reconstruct", "--run", "runs/evil", "--data", "folder:runs/evil/images"]) == 0


NAMED = {"pythonClassName": "PAYLOAD.Feature"}
LEGACY = {"type": "PAYLOAD.Feature", "content": {}}
HIDDEN = {"pythonClassName": DICT, "jsonFeature": {"json": json.dumps({"y": LEGACY})}}
DATA_SETS = {
    "at the top": {"features": NAMED},
    "nested": {"features": as_proto(as_proto(NAMED))},
    "in snake case": {"features": as_proto({"python_class_name": "PAYLOAD.Feature"})},
    "in a sequence": {
        "features": as_proto({"pythonClassName": f"{CORE}.sequence_feature.Sequence", "sequence": {"feature": NAMED}})
    },
    "legacy": {"features": {"type": DICT, "content": {"image": LEGACY}}},
    "in a text": {"features": as_proto(HIDDEN)},
    "in dataset_info.json": {"features": None, "info": {"features": as_proto(NAMED)}},
    "of a config": {"features": as_proto(NAMED), "folder": "innocent/default/1.0.0"},
    "under a name in capitals": {"features": as_proto(NAMED), "folder": "the_innocent/1.0.0", "name": "the_innocent"},
}


class TestDataSet:
    @pytest.mark.parametrize("kind", DATA_SETS)
    def test_names_no_class_of_its_own(self, tmp_path, payload, kind):
        plant(tmp_path / "data", module=payload[0], **DATA_SETS[kind])
        name = "tfds:TheInnocent" if "capitals" in kind else "tfds:innocent"
        with pytest.raises(UntrustedError, match="none of TFDS' own features") as caught:
            open_source(DataConfig(source=name, data_dir=str(tmp_path / "data")), 8)
        assert payload[0] in str(caught.value) and "\n" not in str(caught.value)
        assert not payload[1].exists()

    def test_another_default_config_does_not_lead_elsewhere(self, tmp_path, payload):
        plant(tmp_path / "other", as_proto(NAMED), payload[0], folder="1.0.0")
        config = tmp_path / "data" / "innocent" / ".config" / "metadata.json"
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps({"default_config_name": "../../other"}))
        with pytest.raises(UntrustedError, match="out of the folder"):
            open_source(DataConfig(source="tfds:innocent", data_dir=str(tmp_path / "data")), 8)
        assert not payload[1].exists()

    def test_records_do_not_lie_elsewhere(self, tmp_path, payload):
        split = {"filepathTemplate": "../../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
        plant(tmp_path, as_proto(IMAGE), payload[0], info={"split": split})
        with pytest.raises(UntrustedError, match="out of the folder"):
            open_source(DataConfig(source="tfds:innocent", data_dir=str(tmp_path)), 8)

    @pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff"])
    def test_damaged_metadata_are_one_line(self, tmp_path, payload, text):
        where = plant(tmp_path, as_proto(IMAGE), payload[0])
        (where / "features.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match="features.json"):
            open_source(DataConfig(source="tfds:innocent", data_dir=str(tmp_path)), 8)

    @pytest.mark.parametrize("name", ["kaggle:innocent", "huggingface:innocent", "innocent/data_dir=elsewhere"])
    def test_name_brings_no_code_and_no_place(self, tmp_path, name):
        for data_dir in (None, str(tmp_path)):
            with pytest.raises(DataError, match=name):
                open_source(DataConfig(source=f"tfds:{name}", data_dir=data_dir), 8)

    @pytest.mark.parametrize("name", ["../elsewhere", "innocent/..", "innocent/../../elsewhere", "/elsewhere"])
    def test_name_leads_nowhere(self, tmp_path, payload, name):
        here = tmp_path / "data" / "here"
        (here / "innocent").mkdir(parents=True)
        for outside in (tmp_path / "data", here):
            plant(outside, as_proto(NAMED), payload[0], folder="elsewhere/1.0.0")
        name = name.replace("/elsewhere", str(tmp_path / "data" / "elsewhere")) if name.startswith("/") else name
        with pytest.raises((DataError, UntrustedError)):
            open_source(DataConfig(source=f"tfds:{name}", data_dir=str(here)), 8)
        assert not payload[1].exists()

    def test_own_features_are_read(self, tmp_path, monkeypatch):
        """A data set that TFDS has no code for, with features of all kinds that TFDS has."""
        tfds = pytest.importorskip("tensorflow_datasets")
        folder = tmp_path / "foreign" / "1.0.0"
        folder.mkdir(parents=True)
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "label": tfds.features.ClassLabel(num_classes=2),
                "boxes": tfds.features.Sequence({"box": tfds.features.BBoxFeature(), "text": tfds.features.Text()}),
                "value": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                "scalar": tfds.features.Scalar(dtype=np.int64),
            }
        )
        identity = tfds.core.DatasetIdentity(
            name="foreign", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
        )
        writer = tfds.core.SequentialWriter(tfds.core.DatasetInfo(builder=identity, features=features), 100)
        writer.initialize_splits(["train"])
        images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
        example = {"label": 1, "boxes": [], "value": np.zeros(2, np.float32), "scalar": 3}
        writer.add_examples({"train": [{"image": image, **example} for image in images]})
        writer.close_all()
        source = open_source(DataConfig(source="tfds:foreign", data_dir=str(tmp_path), validation_examples=1), 8)
        read, labels = load_images(source, "train", 7)
        assert np.array_equal(read, images[:7]) and labels.tolist() == [1] * 7


def test_another_python_imports_nothing_from_the_working_folder(tmp_path):
    for name in ("json", "tfdecouple", "export"):
        (tmp_path / f"{name}.py").write_text(PAYLOAD)
    command = python_process("-c", "import json, tfdecouple, export, os; print(os.environ['MARK'])", MARK="here")
    ended = subprocess.run(**command, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("here\n", "", 0)
    assert not (tmp_path / "ran").exists()


class Runs:
    """Makes a folder when it is unpickled, by whatever reads a file with this in it."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


# What reads a file of torch.
reads_torch = pytest.mark.parametrize("read", [wolf.read_state, inception.read_state], ids=["wolf", "inception"])


@reads_torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_file_of_torch_that_would_run_code_is_refused_and_runs_nothing(tmp_path, read, zipped):
    torch = pytest.importorskip("torch")
    path, folder = tmp_path / "model.pt", tmp_path / "made"
    torch.save({"a": torch.zeros(2), "b": Runs(folder)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"model\.pt: it is damaged, or holds more than tensors") as caught:
        read(path)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert not folder.exists()
    torch.load(path, weights_only=False)
    assert folder.is_dir()


@reads_torch
@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu124"])
def test_torch_with_which_a_file_can_run_code_is_not_used(tmp_path, monkeypatch, read, version):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(2)}, path)
    assert list(read(path)) == ["a"]
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(UserError, match="needs torch 2.6 or later") as caught:
        read(path)
    assert f"and {version} is installed" in str(caught.value) and "pip install -U" in str(caught.value)
    assert "\n" not in str(caught.value)

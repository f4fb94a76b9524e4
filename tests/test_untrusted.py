"""Tests that untrusted data sets, files and working folders run no code."""

import json
import os
import subprocess
import sys

import pytest

from tfdecouple.config import DataConfig
from tfdecouple.data import open_source
from tfdecouple.errors import DataError, UserError
from tfdecouple.interop import wolf
from tfdecouple.runtime.process import make_python_command

pytestmark = pytest.mark.usefixtures("eager_file")

PAYLOAD = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
FEATURES = {
    "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "featuresDict": {"features": {"x": {"pythonClassName": "PAYLOAD.Feature"}}},
}


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


class TestDataSet:
    @pytest.mark.parametrize("name", ["innocent/1.0.0", "innocent/default/1.0.0", "cifar10/9.9.9"])
    def test_data_set_without_a_class_in_tfds_runs_no_code(self, tmp_path, payload, name):
        where = tmp_path / "data" / name
        where.mkdir(parents=True)
        (where / "features.json").write_text(json.dumps(FEATURES).replace("PAYLOAD", payload[0]))
        splits = [{"name": "train", "shardLengths": ["9"], "numBytes": "9"}]
        info = {"name": name.partition("/")[0], "version": where.name, "fileFormat": "tfrecord", "splits": splits}
        (where / "dataset_info.json").write_text(json.dumps(info))
        named, _, version = name.rpartition("/")
        with pytest.raises(DataError) as caught:
            open_source(DataConfig(source=f"tfds:{named}:{version}", data_dir=str(tmp_path / "data")), (8, 8, 3))
        assert named in str(caught.value) and "\n" not in str(caught.value)
        assert not payload[1].exists()

    @pytest.mark.parametrize("name", ["kaggle:innocent", "huggingface:innocent", "cifar10/data_dir=elsewhere"])
    def test_name_of_a_data_set_cannot_load_code_or_choose_a_folder(self, tmp_path, name):
        for data_dir in (None, str(tmp_path)):
            with pytest.raises(DataError, match=name):
                open_source(DataConfig(source=f"tfds:{name}", data_dir=data_dir), (8, 8, 3))


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """The working folder, with modules and a package that leave a file `ran` when they are imported."""
    # Python imports `sitecustomize` when it starts.
    for name in ("sitecustomize", "numpy", "pydantic", "onnxruntime/__init__"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("entry", ["", os.curdir, "{}"])
def test_subprocess_imports_nothing_from_the_working_folder(planted, monkeypatch, entry):
    for name in ("json", "tfdecouple", "export"):
        (planted / f"{name}.py").write_text(PAYLOAD)
    # With `python -m` the working folder is the first entry of `sys.path`; with `python -c` it is "".
    monkeypatch.setattr(sys, "path", [entry.format(planted), *sys.path])
    imports = "import json, onnxruntime, tfdecouple, export, os; print(os.environ['MARK'])"
    command = make_python_command("-c", imports, MARK="here")
    ended = subprocess.run(**command, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("here\n", "", 0)
    assert not (planted / "ran").exists()


@pytest.mark.parametrize("command", [["tfdecouple", "explain"], ["export", "--help"]], ids=" ".join)
def test_program_imports_nothing_from_the_working_folder(planted, command):
    ended = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert not (planted / "ran").exists()


class Runs:
    """Makes a folder when it is unpickled, by whatever reads a file with this in it."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


# What reads a file of torch.
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pytorch_file_that_would_run_code_is_refused(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path, folder = tmp_path / "model.pt", tmp_path / "made"
    torch.save({"a": torch.zeros(2), "b": Runs(folder)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"model\.pt: it is damaged, or holds more than tensors") as caught:
        wolf.read_state_dict(path)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert not folder.exists()
    torch.load(path, weights_only=False)
    assert folder.is_dir()


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu124"])
def test_vulnerable_version_of_pytorch_is_refused(tmp_path, monkeypatch, version):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(2)}, path)
    assert list(wolf.read_state_dict(path)) == ["a"]
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(UserError, match="needs torch 2.6 or later") as caught:
        wolf.read_state_dict(path)
    assert f"and {version} is installed" in str(caught.value) and "pip install -U" in str(caught.value)
    assert "\n" not in str(caught.value)

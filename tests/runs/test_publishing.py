import dataclasses
import json
import shutil

import pytest
from helpers.refusals import message_of

from tfdecouple.cli import main
from tfdecouple.config import Config, DataConfig
from tfdecouple.errors import RunError, UntrustedError
from tfdecouple.runs.opened_run import hash_weights, load_model, save_run
from tfdecouple.runs.pretrained import MANIFEST, WeightsManifest
from tfdecouple.runs.run_folder import RunFolder

SUMMARY = {"steps": 9, "best_step": 1, "test": {"bits_per_dim": 6.54321, "standard_error": 0.1, "images": 4}}
SUMMARY |= {
    "data": "folder /home/ada/secret place/faces",
    "reconstruction": "4 of 4 images identical to the last pixel",
}


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """The tiny run as one on a user's own images, with the paths of a machine in it."""
    folder = tmp_path_factory.mktemp("mine") / "faces run"
    shutil.copytree(tiny_run, folder)
    config = Config.from_json(folder / "config.json")
    data = DataConfig(source="folder:/home/ada/secret place/faces", data_dir="/home/ada/sets")
    training = dataclasses.replace(config.training, init_from="/home/ada/runs/first")
    (folder / "config.json").write_text(dataclasses.replace(config, data=data, training=training).to_json())
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "bits_per_dim": 7.0}\n')
    directions = {"version": 1, "weights_sha256": hash_weights(load_model(folder)), "run": str(folder)}
    smile = {"name": "smile", "method": "means", "data": SUMMARY["data"], "vector": [1.0, 0, 0, 0]}
    age = {**smile, "name": "age", "source": "folder:/home/ada/clients/", "data": "images in /home/ada/clients"}
    (folder / "directions.json").write_text(json.dumps({**directions, "directions": [smile, age]}))
    return folder


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "faces"
    assert main(["publish", "--run", str(run), "--to", str(folder), "--licence", "cc-by-4.0"]) == 0
    return folder


def test_published_folder_contains_no_path_of_this_machine(run, published):
    files = [path for path in published.rglob("*") if path.is_file()]
    assert len(files) == 8
    for path in files:
        content = path.read_bytes()
        assert b"/home/" not in content and b"secret" not in content and str(run.parent).encode() not in content, path
    data = RunFolder(published).read_config().data
    assert (data.source, data.data_dir) == ("folder:faces", None)
    assert json.loads((published / "summary.json").read_text())["test"] == SUMMARY["test"]


def test_manifest_lists_every_file_and_detects_changes(published, tmp_path):
    manifest = WeightsManifest.read(published / MANIFEST, "x")
    files = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert {*manifest.files, MANIFEST} == files and manifest == WeightsManifest.from_folder(published)
    manifest.require_matching_files(published, "x")
    copy = shutil.copytree(published, tmp_path / "copy")
    (data,) = copy.glob("checkpoints/*.data-*")
    content = data.read_bytes()
    data.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(RunError, match=r"checkpoints/best-000000001.data-.* of x differs from its manifest"):
        manifest.require_matching_files(copy, "x")
    data.unlink()
    with pytest.raises(RunError, match=r"x lacks checkpoints/best-000000001.data"):
        manifest.require_matching_files(copy, "x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values["files"].update({"model.py": {"bytes": 1, "sha256": "0"}}), '"model.py", which no'),
        (lambda values: values["files"].update({"../config.json": {"bytes": 1, "sha256": "0"}}), "no model"),
        (lambda values: values["files"].update({"checkpoints/best-1.pkl": {"bytes": 1, "sha256": "0"}}), "no model"),
        (lambda values: values["files"].pop("config.json"), "a config and its best weights"),
        (lambda values: values["files"]["config.json"].update(bytes=-1), "files.config.json.bytes is -1"),
        (lambda values: values["files"]["config.json"].update(bytes=True), "files.config.json.bytes is True"),
        (lambda values: values.update(format=2), "format is 2"),
        (lambda values: values.update(files=[1]), "is damaged"),
    ],
)
def test_untrusted_manifest_is_refused(published, tmp_path, change, said):
    values = json.loads((published / MANIFEST).read_text())
    change(values)
    (tmp_path / MANIFEST).write_text(json.dumps(values))
    line = message_of((RunError, UntrustedError), lambda: WeightsManifest.read(tmp_path / MANIFEST, "hf://ada/faces"))
    assert said in line and "hf://ada/faces" in line


@pytest.mark.parametrize("kind", ["saved alone", "imported"])
def test_model_card_claims_nothing_of_unknown_images(kind, tiny_run, tmp_path):
    save_run(load_model(tiny_run), tmp_path / "run")
    if kind != "saved alone":
        (tmp_path / "run" / "summary.json").write_text('{"imported_from": "/home/ada/secret/model.npz"}')
    assert main(["publish", "--run", str(tmp_path / "run"), "--to", str(tmp_path / "to"), "--licence", "mit"]) == 0
    body = (tmp_path / "to" / "README.md").read_text()
    assert "model-index" not in body
    assert "| trained on | data unknown |\n| rights in the images | No licence is claimed: " in body
    assert "photograph" not in body and "CC0" not in body
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "to").rglob("*") if path.is_file())

import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from helpers.commands import command, refuse
from helpers.models import SMALL, random_images, save_images
from helpers.places import ROOT
from helpers.refusals import message_of
from PIL import Image

import tfdecouple
from export.formats.web import make_example_files
from tfdecouple.config import Config, DataConfig
from tfdecouple.data.batches import load_images
from tfdecouple.data.image_file import crop_and_resize
from tfdecouple.data.sources import open_source
from tfdecouple.errors import RunError, UntrustedError
from tfdecouple.metrics.image_statistics import CHANGES
from tfdecouple.runs import pretrained, run_folder
from tfdecouple.runs.opened_run import hash_weights, load_model, save_run
from tfdecouple.runs.pretrained import MANIFEST, WeightsManifest
from tfdecouple.runs.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("eager")

HERE = pretrained.BUNDLED / "photographs"


def test_bundled_weights_are_complete_and_small():
    manifest = WeightsManifest.read(HERE / MANIFEST, "photographs")
    assert manifest == WeightsManifest.from_folder(HERE)
    assert sum(facts.bytes for name, facts in manifest.files.items() if "/best-" in name) < 8_000_000


def test_bundled_weights_decode_exactly_and_use_z():
    """Of the pictures that the page begins with, crops that the model never saw, and noise."""
    model = tfdecouple.load_model("photographs")
    crops, _ = load_images(open_source(RunFolder("photographs").read_config().data, (64, 64, 3)), "test", 2)
    pictures = [np.asarray(Image.open(io.BytesIO(file))) for file in make_example_files().values()]
    examples = [crop_and_resize(pixels, (64, 64, 3), 0)[None] for pixels in pictures]
    images = np.concatenate([*examples, crops, random_images(1, 64)])
    z, v = model.encode(images)
    np.testing.assert_array_equal(model.decode(z, v), images)
    switched = model.decode(np.roll(z, -1, 0), v).numpy()
    assert all((ours != image).mean() > 0.1 for ours, image in zip(switched, images, strict=True))
    directions = tfdecouple.load_directions("photographs")
    assert directions.weights_sha256 == hash_weights(model) and directions.names == [*CHANGES]
    assert directions.about["run"] == "photographs"
    for direction in directions:
        moved = model.decode(z[:2] + direction.vector, v[:2]).numpy()
        assert all((ours != image).mean() > 0.1 for ours, image in zip(moved, images, strict=False)), direction


@pytest.fixture
def others(tiny_run, tmp_path, monkeypatch):
    """An installation whose weights are tiny ones of the same name, and a working folder with two images."""
    folder = tmp_path / "site" / "photographs"
    command("publish", "--run", tiny_run, "--to", folder, "--licence", "mit")
    for module in (pretrained, run_folder):
        monkeypatch.setattr(module, "BUNDLED", folder.parent)
    images = random_images(2, 20)
    monkeypatch.chdir(save_images(tmp_path / "here", {"a.png": images[0], "b.png": images[1]}))
    return folder


def test_commands_use_bundled_weights_by_default_and_do_not_change_them(others, tmp_path, capsys):
    def installed():
        return {path: path.stat().st_mtime_ns for path in others.rglob("*")}

    before, pictures = installed(), tmp_path / "here" / "pictures"
    command("switch", "a.png", "b.png")
    facts = json.loads((pictures / "switch-pairs.json").read_text())
    assert facts["run"] == "photographs" and facts["first"]["files"] == ["a.png"]
    command("switch", "a.png", "b.png", "--out", "elsewhere")
    assert (tmp_path / "here" / "elsewhere" / "switch-pairs.png").is_file()
    command("sample", "--count", 2, "--run", "photographs")
    assert (pictures / "sample.png").is_file()
    capsys.readouterr()
    for name, says in (("directions", "publish --run photographs --to DIR"), ("curves", "photographs has no metrics")):
        assert says in refuse(capsys, name, "--run", "photographs")
    assert installed() == before


def test_load_model_opens_bundled_weights_and_names_what_it_does_not_know(others):
    assert tfdecouple.load_model("photographs").config == SMALL
    with pytest.raises(RunError, match="the preset cifar10 has no weights"):
        tfdecouple.load_model("cifar10")
    with pytest.raises(RunError, match=r"no run folder photograph; did you mean photographs\?; .* photographs comes"):
        tfdecouple.load_model("photograph")


SUMMARY = {"steps": 9, "best_step": 1, "test": {"bits_per_dim": 6.54321, "standard_error": 0.1, "images": 4}}
SUMMARY |= {"data": "folder /home/ada/secret place/faces", "reconstruction": "4 of 4 images identical"}


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
    command("publish", "--run", run, "--to", folder, "--licence", "cc-by-4.0")
    return folder


def test_published_folder_contains_no_path_of_this_machine(run, published):
    files = [path for path in published.rglob("*") if path.is_file()]
    assert len(files) == 7
    for path in files:
        content = path.read_bytes()
        assert b"/home/" not in content and b"secret" not in content and str(run.parent).encode() not in content, path
    data = RunFolder(published).read_config().data
    assert (data.source, data.data_dir) == ("folder:faces", None)
    assert json.loads((published / "summary.json").read_text())["test"] == SUMMARY["test"]


def test_manifest_lists_every_file_and_detects_changes(published, tmp_path):
    manifest = WeightsManifest.read(published / MANIFEST, "x")
    files = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert {*manifest.files, MANIFEST} == files
    manifest.require_matching_files(published, "x")
    copy = shutil.copytree(published, tmp_path / "copy")
    (data,) = copy.glob("checkpoints/*")
    content = data.read_bytes()
    data.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(RunError, match=r"checkpoints/best-000000001.safetensors of x differs from its manifest"):
        manifest.require_matching_files(copy, "x")
    data.unlink()
    with pytest.raises(RunError, match=r"x lacks checkpoints/best-000000001.safetensors"):
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
    model = load_model(tiny_run)
    save_run(model, tmp_path / "run")
    assert hash_weights(load_model(tmp_path / "run")) == hash_weights(model)
    if kind != "saved alone":
        (tmp_path / "run" / "summary.json").write_text('{"imported_from": "model.npz"}')
    command("publish", "--run", tmp_path / "run", "--to", tmp_path / "to", "--licence", "mit")
    body = (tmp_path / "to" / "README.md").read_text()
    assert "model-index" not in body
    assert "| trained on | data unknown |\n| rights in the images | No licence is claimed: " in body
    assert "photograph" not in body and "CC0" not in body


class TestTrained:
    pytestmark = pytest.mark.slow

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        """A copy of the weights as a run folder, in which evaluations of test images may be counted."""
        return shutil.copytree(HERE, tmp_path_factory.mktemp("trained") / "run")

    def test_bits_per_dim_of_the_sample_photographs_are_those_of_the_docs(self, run, traced, tmp_path):
        command("evaluate", "--run", run, "--out", tmp_path)
        report = json.loads((tmp_path / "bits_per_dim-test.json").read_text())
        assert report["images"] == 1000 and report["step"] == RunFolder("photographs").read_summary()["best_step"]
        page = (ROOT / "docs" / "understanding.md").read_text(encoding="utf-8")
        assert f"{report['bits_per_dim']:.2f} bits/dim" in page

    @pytest.mark.parametrize(("size", "spacing"), [(50, 5), (1, 100), (3, 50)])
    def test_bundled_weights_decode_crops_exactly(self, traced, size, spacing):
        model, config = load_model("photographs"), RunFolder("photographs").read_config()
        crops = load_images(open_source(config.data, (64, 64, 3)), "test", 1000)[0][size % spacing :: spacing]
        crops = crops[: len(crops) // size * size]
        batches = np.split(crops, len(crops) // size)
        codes = [model.encode(batch) for batch in batches]
        for batch, (z, v) in zip(batches, codes, strict=True):
            np.testing.assert_array_equal(model.decode(z, v), batch)
        # The codes of one batch size decode in another.
        z, v = (np.concatenate(parts)[: 2 * size] for parts in zip(*codes, strict=True))
        np.testing.assert_array_equal(model.decode(z, v), crops[: 2 * size])

"""What an export writes: the model card, the web page, files of a server; and exports of whole runs."""

import dataclasses
import hashlib
import json
import random
import re

import numpy as np
import onnx
import pytest
from helpers.exporting import (
    ON_PAGE,
    read_card,
    read_tree,
    read_vectors,
    run_curl_block,
    run_javascript_block,
    run_python_blocks,
)
from helpers.models import LEAST, SMALL, random_images
from helpers.places import ROOT
from helpers.program_inputs import WITHOUT_Z, write_onnx_models
from helpers.refusals import message_of
from helpers.runs import write_run
from helpers.serving_server import read_models
from helpers.variants import OF_CLASSES, fresh
from PIL import Image

from export.card import judge_exactness, make_model_card, render_model_card
from export.endpoints import list_endpoints
from export.export_folder import JSON_NAME, MANIFEST, TEXT_NAME, VECTORS
from export.formats import web
from export.formats.saved_model import write_serving_files
from export.formats.web import describe_model, require_page_support
from export.pipeline import export
from export.provenance import Provenance, make_safe_name, open_run
from export.verification.vectors import load_real_images
from tfdecouple.config import Config, DataConfig
from tfdecouple.data.batches import load_images
from tfdecouple.data.sources import open_source
from tfdecouple.errors import UserError
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.run_folder import LABELS, RunFolder
from tfdecouple.storage.files import write_json

pytestmark = pytest.mark.usefixtures("forked")

COMMITTED = sorted(path.parent for path in ROOT.glob("docs/results/*/checkpoints"))
COMMITTED += sorted(ROOT.glob("tests/data/golden/*/run"))


def test_card_agrees_with_the_files(exported):
    card = read_card(exported)
    files = {path.name: path.stat().st_size for path in (exported / "onnx").iterdir()}
    assert card["formats"]["onnx"]["bytes"] == files
    assert card["formats"]["onnx"]["files"] == sorted(f"onnx/{name}" for name in files)
    assert card["formats"]["savedmodel"]["files"] == ["savedmodel/1"]
    for name, endpoint in card["endpoints"].items():
        if endpoint["onnx"]:
            model = onnx.load(exported / endpoint["onnx"])
            stated = {entry.key: entry.value for entry in model.metadata_props}
            assert stated.pop("endpoint") == name and stated["precision"] == "float32"
            assert stated == {key: card[key] for key in stated}
            assert {"run", "step", "averaged", "config_sha256", "image_shape", "n_bits", "d_z", "crop"} <= {*stated}
    assert (exported / TEXT_NAME).read_text() == render_model_card(card)
    inner = json.loads((exported / "savedmodel" / "1" / "assets.extra" / JSON_NAME).read_text())
    assert inner == card


def test_page_is_complete_and_alone(quick, command, runtime, tmp_path):
    status, out, err = command("--format", "web", "--web-runtime", runtime)
    assert (status, err) == (0, "")
    page = tmp_path / "to" / "web"
    assert str(page) in out.splitlines()
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"web", JSON_NAME, TEXT_NAME, MANIFEST, VECTORS}
    assert set(read_card(tmp_path / "to")["formats"]) == {"web"}
    sources = {path.name: path.read_bytes() for path in web.PAGE.iterdir() if path.name != "package.json"}
    assert sources.items() == {path.name: path.read_bytes() for path in page.iterdir() if path.is_file()}.items()
    assert read_tree(page / "runtime") == read_tree(runtime / "dist")
    config = json.loads((page / "model" / "config.json").read_text())
    # The run was trained on the sample photographs, so some examples of the page were seen in training.
    assert {example["seen"] for example in config["examples"]} == {True, False}
    pictures = {example["file"].removeprefix("model/") for example in config["examples"]}
    assert {path.name for path in (page / "model").iterdir()} == {*ON_PAGE, "config.json", *pictures}
    sizes = {f"model/{name}": (page / "model" / name).stat().st_size for name in ON_PAGE}
    sizes |= {f"runtime/{name}": 100 + number for number, name in enumerate(web.RUNTIME_FILES)}
    known = {"image_shape": [8, 8, 3], "n_bits": 8, "centre_crop": 0, "latent_dim": 4, "sizes": sizes}
    assert known.items() <= config.items()


@pytest.mark.parametrize("run_name", ["faces, 2nd try/ema", "../../etc", "Größe 3", 'a"b', "---", ""])
def test_any_run_name_makes_a_model_that_can_be_served(run_name, tmp_path):
    name = make_safe_name(run_name)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name)
    write_serving_files(tmp_path, name)
    (model,) = read_models(tmp_path)
    assert model.name == name


def test_docker_compose_mounts_the_files_of_the_export(exported):
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((exported / "docker-compose.yml").read_text())["services"]
    assert set(services) == {"tf-serving", "tf-serving-gpu"}
    service = services["tf-serving"]
    assert [port.split(":")[-2:] for port in service["ports"]] == [["8500", "8500"], ["8501", "8501"]]
    mounts = {}
    for volume in service["volumes"]:
        here, there, mode = volume.split(":")
        assert here.startswith("./") and (exported / here).exists() and mode == "ro"
        mounts[there] = (exported / here).name
    assert mounts[read_models(exported)[0].base_path] == "savedmodel"
    flags = dict(flag.removeprefix("--").split("=") for flag in service["command"])
    assert flags.pop("enable_batching") == "true"
    files = {"model_config_file": "models.config", "monitoring_config_file": "monitoring.config"}
    files["batching_parameters_file"] = "batching.config"
    assert {flag: mounts[path] for flag, path in flags.items()} == files
    # The official image reads no other switch of TF32 than this variable.
    assert services["tf-serving-gpu"]["environment"] == {"NVIDIA_TF32_OVERRIDE": "0"}


CHECKED = "44 of 44 images came back in ONNX Runtime in Python; no browser was tried"


def entry(lost=0, **more):
    trips = {"real": {"images": 21, "identical": 21, "model": 21}}
    trips["noise"] = {"images": 4, "identical": 4 - lost, "model": 4 - lost}
    parity = {"encode": {"v": {"max": 1e-6, "mean": 1e-8}}}
    return {"files": ["onnx/encoder.onnx"], "parity": parity, "round_trip": trips, **more}


@pytest.mark.parametrize(
    ("alpha", "n_bits", "formats", "promised", "said"),
    [
        (0.8, 8, {"onnx": entry(), "savedmodel": entry()}, True, "onnx 25 of 25; savedmodel 25 of 25. "),
        (0.8, 5, {"onnx": entry(), "savedmodel": entry(round_trip={})}, True, "multiples of 8. savedmodel: not tried"),
        (0.8, 8, {"onnx": entry(lost=1), "savedmodel": entry()}, False, "onnx 24 of 25; savedmodel 25 of 25. "),
        (0.8, 8, {"onnx": entry(lost=1)}, False, "exactly: noise."),
        (1.0, 8, {"onnx": entry()}, False, "alpha is 1,"),
        (0.8, 8, {"web": {"files": ["web/index.html"], "checked": CHECKED}}, False, f"web: {CHECKED}."),
        (0.8, 8, {"savedmodel": entry(round_trip={})}, False, "Not measured: "),
    ],
)
def test_card_promises_exactness_only_if_it_was_measured(alpha, n_bits, formats, promised, said):
    found = judge_exactness(alpha, n_bits, formats)
    assert found["promised"] is promised == ("Promised for" in found["meaning"]) and said in found["meaning"]


@pytest.fixture(scope="module")
def without_z(tmp_path_factory):
    """A folder with a model card and ONNX files of a model without z."""
    folder = tmp_path_factory.mktemp("without_z")
    config = Config(name="tiny", model=dataclasses.replace(SMALL, conditioning="none"))
    metadata = {"run": "tiny", "step": "1", "averaged": "false", "crop": "square", "resize": "by Pillow"}
    about = {"name": "tiny", "config": config, "metadata": metadata, "crop": 0, "parameters": 1}
    provenance = Provenance(**about, data="any", rights="any", training_data=config.data, bits_per_dim=None)
    card = make_model_card(provenance, list_endpoints(config.model), "4 test images", {"onnx": entry()})
    (folder / JSON_NAME).write_text(json.dumps(card))
    (folder / TEXT_NAME).write_text(render_model_card(card))
    write_onnx_models(folder / "onnx", WITHOUT_Z)
    return folder


class TestCodeOfTheCard:
    """The blocks of the card; those of grey models, of labels and of LiteRT run where such are exported."""

    @pytest.mark.parametrize("folder", ["exported", "without_z"])
    def test_python_examples_of_the_card_run(self, folder, request):
        run_python_blocks(request.getfixturevalue(folder))

    def test_curl_example_of_the_card_is_answered(self, exported):
        codes = run_curl_block(exported)
        assert np.shape(codes["z"]) == (SMALL.latent_dim,) and np.shape(codes["v"]) == SMALL.image_shape

    @pytest.mark.slow
    @pytest.mark.parametrize("folder", ["exported", "without_z"])
    def test_javascript_example_of_the_card_runs(self, folder, request, npm_example):
        run_javascript_block(request.getfixturevalue(folder), npm_example("onnxruntime_node"))


def assert_passed(card, *formats):
    """Asserts that a card has these formats, and figures that pass verification."""
    assert {*card["formats"]} == {*formats}
    for entry in card["formats"].values():
        assert all(trip["identical"] >= trip["model"] for trip in entry["round_trip"].values())
        for figures in (figures for outputs in entry["parity"].values() for figures in outputs.values()):
            if "differing" in figures:
                # Pixels differ by one level where they differ.
                assert figures["max"] <= 256 // 2 ** int(card["n_bits"])
            else:
                # The largest difference varies between processors. The export's verification has checked it.
                assert figures["mean"] <= 1e-5


def test_committed_card_is_made_of_its_figures_and_these_are_of_its_run():
    """If words change, render the JSON again by `render_model_card`; if numbers change, export the run again."""
    assert {"base", "conditional", "glow"} <= {run.name for run in COMMITTED}
    run = ROOT / "docs" / "results" / "conditional"
    card, text = json.loads((run / JSON_NAME).read_text("utf-8")), (run / TEXT_NAME).read_text("utf-8")
    assert text == render_model_card(card)
    architecture = card["architecture"]
    assert card["exact"] == judge_exactness(architecture["alpha"], architecture["n_bits"], card["formats"])
    config, summary = RunFolder(run).read_config(), json.loads((run / "summary.json").read_text())
    assert card["config_sha256"] == hashlib.sha256((run / "config.json").read_bytes()).hexdigest()
    assert card["run"] == run.name and int(card["step"]) == summary["best_step"]
    assert card["bits_per_dim"]["test"] == summary["test"]["bits_per_dim"]
    offered = [endpoint.name for endpoint in list_endpoints(config.model)]
    assert offered == list(card["endpoints"]) == card["formats"]["savedmodel"]["signatures"]
    assert_passed(card, "savedmodel", "onnx")
    # No path of the machine that made it.
    assert not re.search(r"(?<![\w:/.])/\w", text + json.dumps(card))


@pytest.mark.slow
@pytest.mark.parametrize("run", COMMITTED, ids=lambda run: run.relative_to(ROOT).as_posix())
def test_committed_run_exports_without_its_data(run, tmp_path, monkeypatch):
    # As in a fresh clone: without CIFAR-10.
    for name in ("TFDECOUPLE_DATA_DIR", "TFDS_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.chdir(ROOT)
    # One run is exported whole, and of the rest what the other files are made of.
    formats, endpoints = (("savedmodel",), ("encode", "decode", "score"))
    if run.name == "conditional":
        formats = ("savedmodel", "onnx")
        endpoints = tuple(endpoint.name for endpoint in list_endpoints(RunFolder(run).read_config().model))
    export(run, tmp_path / "to", formats, endpoints=endpoints)
    card = read_card(tmp_path / "to")
    assert card["config_sha256"] == hashlib.sha256((run / "config.json").read_bytes()).hexdigest()
    assert_passed(card, *formats)
    assert card["formats"]["savedmodel"]["signatures"] == [*endpoints]
    assert "photographs" in card["checked"]["real_images"]
    assert all(entry["round_trip"]["real"]["identical"] >= 30 for entry in card["formats"].values())


@pytest.mark.slow
def test_model_that_has_just_begun_exports_though_mixtures_lie_on_borders_of_bins(tmp_path):
    """Couplings are the identity, and the posterior is the prior."""
    random.seed(0)
    model, to = DecoupledModel(dataclasses.replace(SMALL, alpha=0.5)), tmp_path / "to"
    model.initialize(random_images(16))
    export(write_run(tmp_path / "run", model), to, endpoints=("encode", "encode_global", "decode", "interpolate"))
    assert_passed(read_card(to), "savedmodel", "onnx")
    # A mixture of two bin centres in a flow that is nearly linear is the border of two bins again and again.
    bins, bound = (read_vectors(to)[f"out/interpolate/images/{field}"] for field in ("values", "bound"))
    assert np.mean(np.abs(bins - np.round(bins)) < bound[:, None, None, None]) > 0.005 and (bound < 0.01).all()


def test_data_of_a_run_are_used_where_they_are_at_hand(finished_run):
    _, origin = open_run(finished_run)
    images, where = load_real_images(origin.config.data, origin.config.model.image_shape)
    assert where.startswith("5 test images of ") and len(images) == 21


SHAPES = [((8, 12, 1), (8, 12, 1)), ((72, 96, 1), (48, 64, 1)), ((8, 12, 5), (8, 12, 3))]


@pytest.mark.parametrize(("shape", "taken"), SHAPES, ids=str)
def test_without_data_photographs_are_made_images_of_any_shape(shape, taken):
    """Grey, larger than they are, and of more channels than they have, which then take turns."""
    images, where = load_real_images(DataConfig(source="folder:none"), shape)
    assert where.startswith(f"{len(images)} test images of ") and images.shape[1:] == shape
    crops, _ = load_images(open_source(DataConfig(source="photographs"), taken), "test", len(images))
    for channel in range(shape[-1]):
        for image, crop in zip(images, crops[..., channel % taken[-1]], strict=True):
            right = np.asarray(Image.fromarray(crop).resize((shape[1], shape[0])))
            np.testing.assert_array_equal(image[..., channel], right)


NAMES = ["cat", "dog", "owl", "fox", "hen", "cow", "elk"]
# Their sizes differ from those of the models of other tests.
OPTIONS = {"classes": 7, "class_probabilities": (1, 2, 5, 0.5, 3, 0.25, 4)}
OPTIONS |= {"steps": (2, 1), "hidden_channels": (5, 7), "latent_dim": 6, "alpha": 0.65}
MODELS = {name: dataclasses.replace(config, **OPTIONS) for name, config in OF_CLASSES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_export_of_a_model_with_labels_passes_verification(name, tmp_path, npm_example):
    run, to = write_run(tmp_path / "run", fresh(MODELS[name])), tmp_path / "to"
    write_json(run / LABELS, NAMES)
    export(run=run, to=to)
    card = read_card(to)
    assert card["architecture"]["labels"] == NAMES
    assert "classify" in card["formats"]["savedmodel"]["parity"]
    text = (to / "MODEL_CARD.md").read_text()
    assert "7 labels" in text and "0 cat, 1 dog, 2 owl" in text
    run_python_blocks(to)
    run_javascript_block(to, npm_example("onnxruntime_node"))
    assert np.shape(run_curl_block(to)["z"]) == (6,)


def test_the_web_page_is_refused_or_knows_how_often_it_samples_which_label(tmp_path):
    for model, words in ((LEAST, "this model has none"), (MODELS["classes"], "has no labels")):
        message = message_of(UserError, lambda model=model: require_page_support(model))
        assert words in message and "leave the format web out" in message
    run = write_run(tmp_path / "run", fresh(MODELS["prior-classes"]))
    assert describe_model(open_run(run)[1])["label_shares"] == [1, 2, 5, 0.5, 3, 0.25, 4]

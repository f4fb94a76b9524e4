from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import onnx
import pytest
from helpers import cards
from helpers.exporting import ON_PAGE, read_card, read_tree
from helpers.models import SMALL
from helpers.program_inputs import WITHOUT_Z, write_onnx_models
from helpers.serving_server import read_models
from PIL import Image

from export.card import judge_exactness, make_model_card, render_model_card
from export.endpoints import list_endpoints
from export.export_folder import JSON_NAME, MANIFEST, TEXT_NAME, VECTORS
from export.formats import web
from export.formats.saved_model import write_serving_files
from export.provenance import Provenance, make_safe_name
from tfdecouple.config import Config, DataConfig


class TestCard:
    def test_card_agrees_with_the_files(self, exported):
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


class TestWeb:
    def test_page_is_complete_and_alone(self, quick, command, runtime, tmp_path, opened):
        status, out, err = command("--format", "web", "--web-runtime", runtime)
        assert (status, err) == (0, "")
        page = tmp_path / "to" / "web"
        assert str(page) in out.splitlines()
        assert {path.name for path in (tmp_path / "to").iterdir()} == {"web", JSON_NAME, TEXT_NAME, MANIFEST, VECTORS}
        assert set(read_card(tmp_path / "to")["formats"]) == {"web"}
        sources = [path for path in web.PAGE.iterdir() if path.name != "package.json"]
        assert {path.name for path in page.iterdir()} == {*(path.name for path in sources), "model", "runtime"}
        for path in sources:
            assert (page / path.name).read_bytes() == path.read_bytes()
        assert read_tree(page / "runtime") == read_tree(runtime / "dist")
        config = json.loads((page / "model" / "config.json").read_text())
        examples = config.pop("examples")
        # The run was trained on the sample photographs, so some examples of the page were seen in training.
        assert {example["seen"] for example in examples} == {True, False}
        pictures = {example["file"].removeprefix("model/") for example in examples}
        assert {path.name for path in (page / "model").iterdir()} == {*ON_PAGE, "config.json", *pictures}
        for name in pictures:
            with Image.open(page / "model" / name) as picture:
                assert picture.mode == "RGB" and max(picture.size) <= web.EXAMPLE_SIDE
        sizes = {f"model/{name}": (page / "model" / name).stat().st_size for name in ON_PAGE}
        sizes |= {f"runtime/{name}": 100 + number for number, name in enumerate(web.RUNTIME_FILES)}
        known = {"name": "tiny", "image_shape": [8, 8, 3], "n_bits": 8, "centre_crop": 0, "latent_dim": 4}
        known |= {"bits_per_dim": None, "data": opened[1].data, "sizes": sizes, "web_gpu": False}
        assert known.items() <= config.items()
        size = sum(path.stat().st_size for path in page.rglob("*") if path.is_file())
        assert f"{size / 1e6:.1f} MB" in (tmp_path / "to" / TEXT_NAME).read_text()


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
    assert set(service) == {"image", "ports", "volumes", "command"}
    assert re.fullmatch(r"tensorflow/serving:\$\{[A-Z_]+:-[\w.-]+\}", service["image"])
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
    gpu = services["tf-serving-gpu"]
    assert gpu["environment"] == {"NVIDIA_TF32_OVERRIDE": "0"} and gpu["extends"] == {"service": "tf-serving"}
    assert gpu["image"] == service["image"] + "-gpu" and gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


CHECKED = "44 of 44 images came back in ONNX Runtime in Python; no browser was tried"
PAGE = {"files": ["web/index.html"], "checked": CHECKED, "bytes": 34_900_000}


def entry(lost: int = 0, **more: object) -> dict:
    trips = {"real": {"images": 21, "identical": 21, "model": 21}}
    trips["noise"] = {"images": 4, "identical": 4 - lost, "model": 4 - lost}
    parity = {"encode": {"v": {"max": 1e-6, "mean": 1e-8}}}
    return {"files": ["onnx/encoder.onnx"], "parity": parity, "round_trip": trips, **more}


def card_of(formats: dict, data: DataConfig | None = None, model=SMALL) -> dict:
    config = Config(name="tiny", model=model, data=data or DataConfig())
    about = {"name": "tiny", "run": "tiny", "config": config, "step": 1, "averaged": False, "parameters": 1}
    provenance = Provenance(**about, data="any", rights="any", training_data=config.data, bits_per_dim=None)  # type: ignore[arg-type]
    return make_model_card(provenance, list_endpoints(model), "4 test images", formats)


EXACTNESS = [
    (0.8, 8, {"onnx": entry(), "savedmodel": entry()}, True, "onnx 25 of 25; savedmodel 25 of 25. "),
    (0.8, 5, {"onnx": entry(), "savedmodel": entry(round_trip={})}, True, "multiples of 8. savedmodel: not tried"),
    (0.8, 8, {"onnx": entry(lost=1), "savedmodel": entry()}, False, "onnx 24 of 25; savedmodel 25 of 25. "),
    (0.8, 8, {"onnx": entry(lost=1)}, False, "exactly: noise."),
    (1.0, 8, {"onnx": entry()}, False, "alpha is 1,"),
    (0.8, 8, {"web": PAGE}, False, f"web: {CHECKED}."),
    (0.8, 8, {"savedmodel": entry(round_trip={})}, False, "Not measured: "),
]


@pytest.mark.parametrize(("alpha", "n_bits", "formats", "promised", "said"), EXACTNESS)
def test_card_promises_exactness_only_if_it_was_measured(alpha, n_bits, formats, promised, said) -> None:
    found = judge_exactness(alpha, n_bits, formats)
    assert found["promised"] is promised == ("Promised for" in found["meaning"]) and said in found["meaning"]


@pytest.fixture(scope="module")
def without_z(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without_z")
    card = card_of({"onnx": entry()}, model=dataclasses.replace(SMALL, conditioning="none"))
    (folder / JSON_NAME).write_text(json.dumps(card))
    (folder / TEXT_NAME).write_text(render_model_card(card))
    write_onnx_models(folder / "onnx", WITHOUT_Z)
    return folder


class TestCalls:
    """The blocks of the card; those of grey models, of labels and of LiteRT run where such are exported."""

    @pytest.mark.parametrize("folder", ["exported", "without_z"])
    def test_python_examples_of_the_card_run(self, folder, request) -> None:
        cards.run_python_blocks(request.getfixturevalue(folder))

    def test_curl_example_of_the_card_is_answered(self, exported) -> None:
        codes = cards.run_curl_block(exported)
        assert np.shape(codes["z"]) == (SMALL.latent_dim,) and np.shape(codes["v"]) == SMALL.image_shape

    @pytest.mark.slow
    @pytest.mark.parametrize("folder", ["exported", "without_z"])
    def test_javascript_example_of_the_card_runs(self, folder, request, npm_example) -> None:
        cards.run_javascript_block(request.getfixturevalue(folder), npm_example("onnxruntime_node"))

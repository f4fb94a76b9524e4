from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from helpers import cards
from helpers.models import SMALL
from helpers.program_inputs import WITHOUT_Z, write_onnx_models

from export.card import judge_exactness, make_model_card, render_model_card
from export.endpoints import list_endpoints
from export.export_folder import JSON_NAME, TEXT_NAME
from export.provenance import Provenance, open_run
from tfdecouple.config import Config, DataConfig
from tfdecouple.data.sources import hide_image_path
from tfdecouple.runs.opened_run import load_model, save_run
from tfdecouple.runs.publishing import describe_training_images

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


def test_card_names_a_folder_of_images_without_its_path() -> None:
    config = DataConfig(source="folder:/home/somebody/photos")
    assert hide_image_path("3 test images of images in /home/somebody/photos", config).endswith("of images in photos")
    config = DataConfig(source="cifar10", data_dir="/data")
    assert hide_image_path("TFDS cifar10", config) == "TFDS cifar10"


class TestRights:
    def test_card_of_imported_or_saved_weights_claims_no_licence(self, tiny_run, tmp_path) -> None:
        shutil.copytree(tiny_run / "checkpoints", tmp_path / "imported" / "checkpoints")
        config = json.loads((tiny_run / "config.json").read_text())
        config["description"] = "imported from a checkpoint of the reference, model.npz"
        (tmp_path / "imported" / "config.json").write_text(json.dumps(config))
        # `import_wolf` writes this summary.
        summary = {"imported_from": "some/model.npz", "parameters": {}}
        (tmp_path / "imported" / "summary.json").write_text(json.dumps(summary))
        model = load_model(tiny_run)
        save_run(model, tmp_path / "alone")
        sources = {"imported": f"data unknown ({config['description']})", "alone": "data unknown"}
        for name, source in sources.items():
            _, provenance = open_run(tmp_path / name)
            card = make_model_card(provenance, list_endpoints(SMALL), "4 test images", {"onnx": entry()})
            assert card["data"]["source"] == source and "No licence is claimed" in card["data"]["licence"]
            lines = "".join(re.findall(r"\| (?:trained on|rights in the images) \|.*", render_model_card(card)))
            assert source in lines and not re.search("CC0|CC BY|public domain|photograph", lines)
        save_run(model, tmp_path / "with data", Config(model=SMALL, data=DataConfig(source="folder:/home/ada/faces")))
        _, provenance = open_run(tmp_path / "with data")
        assert provenance.data == "folder:faces" and provenance.training_data is not None
        assert "No licence" not in provenance.rights

    def test_card_states_the_rights_in_the_training_images(self) -> None:
        for source, said in {"photographs": "CC0", "cifar10": "Krizhevsky", "folder:faces": "not recorded"}.items():
            config = Config(name="tiny", data=DataConfig(source=source))
            assert said in describe_training_images(config, {}, 1)[1]


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

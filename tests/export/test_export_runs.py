import dataclasses
import hashlib
import json
import random
import re

import numpy as np
import pytest
from helpers import cards
from helpers.exporting import read_card, read_vectors
from helpers.models import SMALL, random_images
from helpers.places import ROOT
from helpers.refusals import message_of
from helpers.runs import write_run
from helpers.variants import OF_CLASSES, fresh
from PIL import Image

from export import show_progress
from export.card import judge_exactness, render_model_card
from export.endpoints import list_endpoints
from export.export_folder import JSON_NAME, TEXT_NAME
from export.formats.web import describe_model, require_page_support
from export.pipeline import export
from export.provenance import open_run
from export.verification.vectors import load_real_images
from tfdecouple.config import DataConfig
from tfdecouple.data.batches import load_images
from tfdecouple.data.sources import open_source
from tfdecouple.errors import UserError
from tfdecouple.model import DecoupledModel
from tfdecouple.runs.run_folder import LABELS, RunFolder
from tfdecouple.storage.files import write_json

pytestmark = pytest.mark.usefixtures("forked")

COMMITTED = sorted(path.parent for path in ROOT.glob("docs/results/*/checkpoints"))
COMMITTED += sorted(ROOT.glob("tests/data/golden/*/run"))


def exported_card(run, to, **options):
    """Exports a run, whole where nothing else is said, and returns its card."""
    said = []
    with show_progress(said.append):
        export(run=run, to=to, **options)
    assert any("identical after encode and decode" in line for line in said)
    return read_card(to)


def passed(card, *formats):
    """Asserts that the figures of a card pass verification, of the default formats or of others."""
    assert {*card["formats"]} == {*(formats or ("savedmodel", "onnx"))}
    for entry in card["formats"].values():
        for trip in entry["round_trip"].values():
            assert trip["identical"] >= trip["model"]
        for outputs in entry["parity"].values():
            for figures in outputs.values():
                # Pixels differ by one level where they differ.
                assert figures["max"] <= (256 // 2 ** int(card["n_bits"]) if "differing" in figures else 1e-4)


def test_committed_card_is_made_of_its_figures_and_these_are_of_its_run():
    """If words change, render the JSON again by `render_model_card`; if numbers change, export the run again."""
    assert {"base", "conditional", "glow"} <= {run.name for run in COMMITTED}
    run = ROOT / "docs" / "results" / "conditional"
    card, text = json.loads((run / JSON_NAME).read_text("utf-8")), (run / TEXT_NAME).read_text("utf-8")
    assert text == render_model_card(card)
    architecture = card["architecture"]
    assert card["exact"] == judge_exactness(architecture["alpha"], architecture["n_bits"], card["formats"])
    config, summary = RunFolder(run).read_config(), json.loads((run / "summary.json").read_text())
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()
    assert card["config_sha256"] == digest
    assert card["run"] == run.name and int(card["step"]) == summary["best_step"]
    assert card["bits_per_dim"]["test"] == summary["test"]["bits_per_dim"]
    offered = [endpoint.name for endpoint in list_endpoints(config.model)]
    assert offered == list(card["endpoints"]) == card["formats"]["savedmodel"]["signatures"]
    passed(card)
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
    whole = run.name == "conditional"
    part = {} if whole else {"formats": ("savedmodel",), "endpoints": ("encode", "decode", "score")}
    card = exported_card(run, tmp_path / "to", **part)
    passed(card, *part.get("formats", ()))
    offered = [endpoint.name for endpoint in list_endpoints(RunFolder(run).read_config().model)]
    assert card["formats"]["savedmodel"]["signatures"] == (offered if whole else [*part["endpoints"]])
    assert "photographs" in card["checked"]["real_images"]
    assert all(entry["round_trip"]["real"]["identical"] >= 30 for entry in card["formats"].values())


def just_begun():
    """A model straight from its data-dependent start: couplings are the identity, the posterior is the prior."""
    random.seed(0)
    model = DecoupledModel(dataclasses.replace(SMALL, alpha=0.5))
    model.initialize(random_images(16))
    return model


class TestJustBegun:
    @pytest.mark.slow
    def test_model_that_has_just_begun_exports_though_mixtures_lie_on_borders_of_bins(self, tmp_path):
        chosen = ("encode", "encode_global", "decode", "interpolate")
        passed(exported_card(write_run(tmp_path / "run", just_begun()), tmp_path / "to", endpoints=chosen))
        # A mixture of two bin centres in a flow that is nearly linear is the border of two bins again and again.
        vectors = read_vectors(tmp_path / "to")
        bins, bound = (vectors[f"out/interpolate/images/{field}"] for field in ("values", "bound"))
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


@pytest.fixture
def run(request, tmp_path):
    folder = write_run(tmp_path / "run", fresh(MODELS[request.param]))
    write_json(folder / LABELS, NAMES)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("run", MODELS, indirect=True)
def test_export_of_a_model_with_labels_passes_verification(run, tmp_path, npm_example):
    export(run=run, to=tmp_path / "to")
    card = read_card(tmp_path / "to")
    assert card["architecture"]["labels"] == NAMES
    assert "classify" in card["formats"]["savedmodel"]["parity"]
    text = (tmp_path / "to" / "MODEL_CARD.md").read_text()
    assert "7 labels" in text and "0 cat, 1 dog, 2 owl" in text
    cards.run_python_blocks(tmp_path / "to")
    cards.run_javascript_block(tmp_path / "to", npm_example("onnxruntime_node"))
    assert np.shape(cards.run_curl_block(tmp_path / "to")["z"]) == (6,)


@pytest.mark.parametrize("run", MODELS, indirect=True)
def test_the_web_page_is_refused_or_told_how_often_it_samples_which_label(run, tmp_path):
    model = RunFolder(run).read_config().model
    if model.has_label_codes:
        message = message_of(UserError, lambda: require_page_support(model))
        assert "has no labels" in message and "leave the format web out, or train" in message
    else:
        assert describe_model(open_run(run)[1])["label_shares"] == [1, 2, 5, 0.5, 3, 0.25, 4]

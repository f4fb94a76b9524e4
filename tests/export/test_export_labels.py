from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from helpers import cards
from helpers.refusals import message_of
from helpers.runs import write_run
from helpers.variants import OF_CLASSES, fresh

from export.formats.web import describe_model, require_page_support
from export.pipeline import ExportConfig, export
from export.provenance import open_run
from tfdecouple.errors import UserError
from tfdecouple.runs.run_folder import LABELS, RunFolder
from tfdecouple.storage.files import write_json

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
def test_export_of_a_model_with_labels_passes_verification(run, tmp_path, forked, npm_example):
    with_z_of_labels = MODELS["classes"] == RunFolder(run).read_config().model
    formats = ("savedmodel", "onnx", *(("litert",) if with_z_of_labels else ()))
    export(ExportConfig(run=run, to=tmp_path / "to", formats=formats), report=str)
    card = json.loads((tmp_path / "to" / "model_card.json").read_text())
    assert {*card["formats"]} == {*formats}
    assert card["architecture"]["labels"] == NAMES
    assert "classify" in card["formats"]["savedmodel"]["parity"]
    text = (tmp_path / "to" / "MODEL_CARD.md").read_text()
    assert "7 labels" in text and "0 cat, 1 dog, 2 owl" in text
    cards.run_python_blocks(tmp_path / "to", 2 if with_z_of_labels else 1)
    cards.run_javascript_block(tmp_path / "to", npm_example("onnxruntime_node"))
    assert np.shape(cards.run_curl_block(tmp_path / "to")["z"]) == (6,)


@pytest.mark.parametrize("run", MODELS, indirect=True)
def test_the_web_page_is_refused_or_told_how_often_it_samples_which_label(run, tmp_path):
    model = RunFolder(run).read_config().model
    if model.has_class_codes:
        message = message_of(UserError, lambda: require_page_support(model))
        assert "has no labels" in message and "leave the format web out, or train" in message
    else:
        assert describe_model(open_run(run)[1])["label_shares"] == [1, 2, 5, 0.5, 3, 0.25, 4]

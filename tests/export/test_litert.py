from __future__ import annotations

import json
import os
import shutil
import sys

import numpy as np
import pytest
from helpers import cards
from helpers.exporting import list_onnx_names, read_vectors
from helpers.models import SMALL
from tensorflow.lite.tools import flatbuffer_utils

from export.card import render_model_card
from export.pipeline import ExportConfig, export
from export.verification.comparison import compare_files
from export.verification.verify import verify_folder
from tfdecouple.runtime.requirements import MissingPackageError

NAMES = list_onnx_names(SMALL)


def test_a_missing_package_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"^the format litert needs ai_edge_litert.*tfdecouple\[litert\]"):
        ExportConfig(run=tmp_path, to=tmp_path / "to", formats=("litert",))


def change_weights(path):
    """Changes the numbers of the larger arrays of a LiteRT file by less than an answer shows."""
    model = flatbuffer_utils.convert_bytearray_to_object(path.read_bytes())
    for buffer in {tensor.buffer for tensor in model.subgraphs[0].tensors if tensor.type == 0}:
        data = model.buffers[buffer].data
        if data is not None and len(data) > 40:
            numbers = np.frombuffer(bytes(data), np.float32) * np.float32(1 + 1e-6)
            model.buffers[buffer].data = np.frombuffer(numbers.tobytes(), np.uint8)
    path.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))


@pytest.fixture(scope="module")
def phone(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("phone") / "exported"
    export(ExportConfig(run=tiny_run, to=folder, formats=("litert",)), report=str)
    return folder


@pytest.mark.slow
class TestForPhones:
    def test_litert_files_are_published_alone_with_a_card_whose_examples_run(self, phone):
        assert {path.name for path in (phone / "litert").iterdir()} == {f"{name}.tflite" for name in NAMES.values()}
        assert not (phone / "onnx").exists() and not (phone / "savedmodel").exists()
        card = json.loads((phone / "model_card.json").read_text())
        entry = card["formats"]["litert"]
        assert set(NAMES) == set(entry["parity"]) and "ai-edge-litert" in entry and card["exact"]["promised"]
        assert all(trip["identical"] == trip["images"] for trip in entry["round_trip"].values())
        assert (phone / "MODEL_CARD.md").read_text() == render_model_card(card)
        cards.run_python_blocks(phone)

    def test_litert_files_pass_verification_where_they_lie(self, phone):
        said = []
        assert verify_folder(phone, said.append) == ([], [])
        assert "litert: ai-edge-litert" in said

    @pytest.mark.parametrize("fault", ["weights", "cut off"])
    def test_verification_reports_changed_and_damaged_files(self, phone, tmp_path, fault):
        copy = shutil.copytree(phone, tmp_path / "copy")
        if fault == "weights":
            change_weights(copy / "litert" / "encoder.tflite")
            message = "weight encoder.tflite: "
        else:
            path = copy / "litert" / "decoder.tflite"
            os.truncate(path, path.stat().st_size // 2)
            message = "the litert files cannot be opened: "
        problems = compare_files("litert", copy / "litert", read_vectors(copy), NAMES).problems
        assert problems and problems[0].startswith(message), problems

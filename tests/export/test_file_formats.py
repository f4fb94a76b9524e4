"""LiteRT files for phones: exported, checked, refused."""

from __future__ import annotations

import json
import os
import shutil
import sys

import numpy as np
import pytest
from helpers import cards
from helpers.models import SMALL

from export import manifest
from export.card import card_text
from export.endpoints import onnx_names
from export.formats.file_formats import FILE_FORMATS, file_format
from export.formats.litert import METADATA
from export.pipeline import Request, export
from export.request import FORMATS
from export.verification.gate import run_gate
from export.verification.runtimes import RUNTIMES
from export.verification.verify import verify
from tfdecouple.errors import UserError
from tfdecouple.runtime.extras import MissingPackageError

NAMES = onnx_names(SMALL)


class TestRegistry:
    def test_every_format_is_a_module_of_its_name_and_is_offered(self):
        for name in FILE_FORMATS:
            assert file_format(name).name == name and name in FORMATS
            assert name in RUNTIMES

    def test_a_missing_package_names_its_extra(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingPackageError, match=r"^the format litert needs ai_edge_litert.*tfdecouple\[litert\]"):
            Request(run=tmp_path, to=tmp_path, formats=("litert",))

    def test_an_unknown_format_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="there is no format 'tflite'; there are savedmodel, onnx, litert, web"):
            Request(run=tmp_path, to=tmp_path, formats=("tflite",))


@pytest.fixture(scope="module")
def phone(tiny_run, tmp_path_factory):
    """An export for phones."""
    folder = tmp_path_factory.mktemp("phone") / "exported"
    export(Request(run=tiny_run, to=folder, formats=("litert",)), say=str)
    return folder


def gate(runtime, files, cases, tmp_path, **options):
    return run_gate(runtime, files, cases, tmp_path / "report.json", str, options)


def cases_in(folder):
    (cases,) = (folder / manifest.CASES).iterdir()
    return cases


def options_in(folder, part):
    return manifest.load(folder).parts[part].options


@pytest.fixture
def copy(phone, tmp_path):
    return shutil.copytree(phone, tmp_path / "copy")


@pytest.mark.slow
class TestForPhones:
    def test_files_are_published_alone_and_told(self, phone):
        assert {path.name for path in (phone / "litert").iterdir()} == {f"{name}.tflite" for name in NAMES.values()}
        assert not (phone / "onnx").exists() and not (phone / "savedmodel").exists()
        card = json.loads((phone / "model_card.json").read_text())
        for entry in card["formats"].values():
            assert set(NAMES) <= set(entry["parity"]) and set(entry["latency_ms"]) == set(NAMES)
            assert all(trip["identical"] == trip["images"] for trip in entry["round_trip"].values())
        assert "ai-edge-litert" in card["formats"]["litert"] and card["exact"]["promised"]
        text = (phone / "MODEL_CARD.md").read_text()
        assert "ai_edge_litert.interpreter" in text and text == card_text(card)

    def test_what_the_card_calls_runs(self, phone):
        cards.run_python(phone)

    def test_they_are_verified_where_they_lie(self, phone):
        said = []
        assert verify(phone, said.append) == ([], [])
        assert "litert: ai-edge-litert" in said

    @pytest.mark.parametrize("fault", ["weights", "endpoint", "cut off"])
    def test_faults_of_litert_files_are_named(self, copy, tmp_path, fault):
        files = copy / "litert"
        encoder, decoder = files / "encoder.tflite", files / "decoder.tflite"
        if fault == "weights":
            change_weights(encoder)
            message = "weight encoder.tflite: "
        elif fault == "endpoint":
            decoder.write_bytes(decoder.read_bytes().replace(b'"endpoint": "decode"', b'"endpoint": "sample"'))
            message = "the file of decode says endpoint 'sample' where the run has 'decode'"
        else:
            os.truncate(decoder, decoder.stat().st_size // 2)
            message = "the LiteRT files cannot be opened: "
        problems = gate("litert", files, cases_in(copy), tmp_path, **options_in(copy, "litert")).problems
        assert problems and problems[0].startswith(message), problems


def change_weights(path):
    """Moves the numbers of the larger arrays of a LiteRT file by less than an answer shows."""
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(path.read_bytes())
    assert METADATA.encode() in [entry.name for entry in model.metadata]
    for buffer in {tensor.buffer for tensor in model.subgraphs[0].tensors if tensor.type == 0}:
        data = model.buffers[buffer].data
        if data is not None and len(data) > 40:
            numbers = np.frombuffer(bytes(data), np.float32) * np.float32(1 + 1e-6)
            model.buffers[buffer].data = np.frombuffer(numbers.tobytes(), np.uint8)
    path.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))

"""LiteRT files for phones, and ONNX files in OpenVINO: exported, checked, refused."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from helpers import cards
from helpers.models import SMALL

from export import manifest
from export.card import card_text
from export.endpoints import onnx_names
from export.formats.files import FILE_FORMATS, file_format
from export.formats.litert import METADATA
from export.pipeline import Request, export
from export.request import FORMATS
from export.verification import run
from export.verification.folder import verify
from export.verification.run import further_checks, run_gate
from tfdecouple.errors import UserError
from tfdecouple.runtime.extras import MissingPackageError

NAMES = onnx_names(SMALL)


class TestRegistry:
    def test_every_format_is_a_module_of_its_name_and_is_offered(self):
        for name in FILE_FORMATS:
            assert file_format(name).name == name and name in FORMATS
            assert file_format(name).check in manifest.CHECKS
            assert importlib.util.find_spec(f"export.verification.{file_format(name).check}") is not None

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


def gate(check, files, cases, tmp_path, **options):
    return run_gate(check, files, cases, tmp_path / "report.json", str, **options)


def cases_in(folder):
    (cases,) = (folder / manifest.CASES).iterdir()
    return cases


def options_in(folder, part):
    return manifest.load(folder)["parts"][part]["options"]


def test_litert_takes_as_many_threads_as_there_are_cores_where_none_are_assigned(monkeypatch, tmp_path):
    check_litert = pytest.importorskip("export.verification.check_litert", exc_type=ImportError)
    # As on macOS.
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    given = {}

    class Interpreter:
        def __init__(self, **options):
            given.update(options)

        def get_signature_runner(self, endpoint):
            return lambda **inputs: inputs

    monkeypatch.setattr(check_litert, "Interpreter", Interpreter)
    files = check_litert.LiteRTFiles({"encode": tmp_path / "encoder.tflite"})
    assert files("encode", {"images": 1}) == {"images": 1}
    assert given == {"model_path": str(tmp_path / "encoder.tflite"), "num_threads": os.cpu_count()}


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
        assert "litert: LiteRT" in said

    def test_faults_of_litert_files_are_named(self, copy, tmp_path):
        files = copy / "litert"
        whole = (files / "encoder.tflite").read_bytes()
        change_weights(files / "encoder.tflite")
        (files / "decoder.tflite").write_bytes(
            (files / "decoder.tflite").read_bytes().replace(b'"endpoint": "decode"', b'"endpoint": "sample"')
        )
        (files / "sampler.tflite").write_bytes(whole[: len(whole) // 2])
        (files / "more.tflite").write_bytes(whole)
        problems = gate("check_litert", files, cases_in(copy), tmp_path, **options_in(copy, "litert")).problems
        assert "more.tflite is compared with nothing" in problems
        assert any(re.match(r"encoder.tflite has \d+ numbers in its weights, of which \d+ ", one) for one in problems)
        assert "decoder.tflite says endpoint 'sample' where the run has 'decode'" in problems
        assert any(line.startswith("sampler.tflite ") for line in problems), problems


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


@pytest.mark.slow
class TestOpenVino:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("openvino")

    def test_it_gives_images_back_and_is_timed_in_turns(self, exported, tmp_path, monkeypatch, further_runtimes):
        monkeypatch.setattr(run, "FURTHER", further_runtimes)
        assert further_checks("check_onnx") == {"openvino": "check_openvino"}
        options = options_in(exported, "onnx")
        report = gate("check_openvino", exported / "onnx", cases_in(exported), tmp_path, **options)
        assert report.problems == []
        assert all(trip["identical"] == trip["images"] for trip in report.round_trip.values())
        assert report.round_trip and report.notes["in_turns"].keys() == NAMES.keys()
        for batches in report.notes["in_turns"].values():
            assert "1" in batches
            for times in batches.values():
                assert set(times) == {"openvino", "onnxruntime"} and min(times.values()) > 0

    def test_what_it_answers_otherwise_is_refused(self, exported, tmp_path):
        files = shutil.copytree(exported / "onnx", tmp_path / "onnx")
        shutil.copy(files / "decoder.onnx", files / "sampler.onnx")
        report = gate("check_openvino", files, cases_in(exported), tmp_path, **options_in(exported, "onnx"))
        assert any(line.startswith("sample fails at batch ") for line in report.problems), report.problems


def test_the_card_recommends_for_each_endpoint_and_batch_the_runtime_that_was_clearly_faster():
    from export.card import other_runtime

    trip = {"real": {"images": 4, "identical": 4, "model": 4}}
    times = {
        "encode": {"1": {"openvino": 2.0, "onnxruntime": 1.0}, "16": {"openvino": 8.0, "onnxruntime": 10.0}},
        "decode": {"1": {"openvino": 2.0, "onnxruntime": 1.5}, "16": {"openvino": 9.0, "onnxruntime": 8.5}},
        "sample": {"1": {"openvino": 2.0, "onnxruntime": 1.8}, "16": {"openvino": 9.0, "onnxruntime": 9.1}},
        "switch": {"1": {"openvino": 4.0, "onnxruntime": 3.0}, "16": {"openvino": 16.0, "onnxruntime": 20.0}},
    }
    text = other_runtime("openvino", {"openvino": "2026.4", "round_trip": trip, "in_turns": times})
    assert text.startswith("In openvino 2026.4, in float32, 4 of 4 images came back.")
    assert "encode 2 and 1 ms, decode 2 and 1.5 ms, sample 2 and 1.8 ms, switch 4 and 3 ms; ONNX Runtime is the" in text
    assert "; ONNX Runtime is the faster. At batch 16" in text
    advice = "openvino is the faster for encode and switch; ONNX Runtime is the faster for decode"
    assert text.endswith(f"; {advice}; neither is faster by 5% for sample.")
    # Of large images only one was timed.
    even = {"encode": {"1": {"openvino": 2.0, "onnxruntime": 1.95}}}
    text = other_runtime("openvino", {"openvino": "2026.4", "round_trip": trip, "in_turns": even})
    assert text.endswith("encode 2 and 1.95 ms; neither is faster by 5%.")

"""What the runtimes answer to inputs that no caller should send, as the table in docs/results/runtimes.md states it."""

from __future__ import annotations

import functools
import json
import os
import shutil

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from helpers.exporting import find_endpoint, list_onnx_names, read_vectors, run_python_blocks
from helpers.graphs import make_inputs
from helpers.models import SMALL

from export.endpoints import list_endpoints
from export.formats.runtimes import LiteRTFiles, OnnxFiles, SavedModel
from export.pipeline import export
from export.verification.comparison import compare_files

COUNT, BAD = 4, 2
OTHERS = [row for row in range(COUNT) if row != BAD]
FILES = list_onnx_names(SMALL)
EVERY_ENDPOINT = [endpoint.name for endpoint in list_endpoints(SMALL)]


class OnnxRuntime(OnnxFiles):
    offered = [*FILES]
    wrong_shape = (onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, "dimensions|rank")
    unequal = (onnxruntime.capi.onnxruntime_pybind11_state.Fail, "Add|Mul|Concat|broadcast")
    not_finite = 0


class SavedModelSession(SavedModel):
    offered = EVERY_ENDPOINT
    wrong_shape = (tf.errors.InvalidArgumentError, r"not compatible with expected shape \[\?[^$]*shape_of_{name}\b")
    unequal = (tf.errors.InvalidArgumentError, "shape|Shape|dimension")
    not_finite = 0


class LiteRT(LiteRTFiles):
    offered = [*FILES]
    wrong_shape = unequal = (RuntimeError, "failed to prepare")
    not_finite = 255


KINDS = {"onnxruntime": OnnxRuntime, "SavedModel": SavedModelSession, "LiteRT": LiteRT}


@pytest.fixture(scope="module")
def phone(tiny_run, tmp_path_factory):
    """An export for LiteRT alone."""
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path_factory.mktemp("phone") / "exported"
    export(run=tiny_run, to=folder, formats=("litert",))
    return folder


@pytest.fixture(scope="module")
def runtimes(exported, request):
    @functools.cache
    def runtime(name):
        if name == "SavedModel":
            return SavedModelSession(exported / "savedmodel" / "1", dict.fromkeys(EVERY_ENDPOINT, ""))
        if name == "onnxruntime":
            return OnnxRuntime(exported / "onnx", FILES)
        return LiteRT(request.getfixturevalue("phone") / "litert", FILES)

    return runtime


def in_each_runtime(*cases):
    """Returns parameters of a test: each runtime with each case `endpoint, ...` whose endpoint it has."""
    return [
        pytest.param(name, *case, marks=[pytest.mark.slow] if name == "LiteRT" else [])
        for name, kind in KINDS.items()
        for case in cases
        if case[0] in kind.offered
    ]


def draw(endpoint):
    every = make_inputs(SMALL, COUNT)
    return {array.name: every[array.name] for array in find_endpoint(SMALL, endpoint).inputs}


SPOILED = [("decode", "z"), ("decode", "v"), ("sample", "z_noise"), ("sample", "v_noise"), ("sample", "temperature")]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("kind", "endpoint", "name"), in_each_runtime(*SPOILED))
def test_row_that_is_not_finite_gives_one_colour_and_changes_no_other_row(runtimes, kind, endpoint, name, value):
    runtime, given = runtimes(kind), draw(endpoint)
    right = runtime.call_endpoint(endpoint, given)["images"]
    given[name][BAD] = value
    found = runtime.call_endpoint(endpoint, given)["images"]
    np.testing.assert_array_equal(found[OTHERS], right[OTHERS])
    assert np.ptp(right[BAD]) > 0 and np.any(found[BAD] != right[BAD])
    # uint8 has no NaN.
    assert np.all(found[BAD] == runtime.not_finite)


def wrong_shapes(right):
    """Shapes that an input `[batch, ...]` does not have: of another rank and size, and such as have as many numbers."""
    batch, *sizes = right
    found = [tuple(sizes), (1, *right), (*right, 1), (batch, *(2 * size for size in sizes)) if sizes else (batch, 2)]
    if len(sizes) == 1:
        found += [(2 * batch, sizes[0] // 2), (batch, sizes[0] + 1)]
    if len(sizes) == 3:
        height, width, channels = sizes
        found += [(2 * batch, height, width // 2, channels), (batch, height // 2, 2 * width, channels)]
        found += [(batch, channels, height, width), (batch, height, width, 1), (batch, height * width * channels)]
    return found


UNEQUAL = [
    *((e.name, array.name, 2) for e in list_endpoints(SMALL) if len(e.inputs) > 1 for array in e.inputs),
    *(("decode", "z", 0), ("decode", "v", 0), ("switch", "images_a", 1), ("interpolate", "images_b", 1)),
]


@pytest.mark.parametrize(("kind", "endpoint"), in_each_runtime(*((name,) for name in EVERY_ENDPOINT)))
def test_inputs_of_another_shape_are_refused(runtimes, kind, endpoint):
    """Each by itself, and nothing else is the worse for it: a server goes on."""
    runtime, given = runtimes(kind), draw(endpoint)
    right, (error, words) = runtime.call_endpoint(endpoint, given), runtime.wrong_shape
    for name, array in given.items():
        for shape in wrong_shapes(array.shape):
            with pytest.raises(error, match=words.replace("{name}", name)):
                runtime.call_endpoint(endpoint, {**given, name: np.zeros(shape, array.dtype)})
    np.testing.assert_equal(runtime.call_endpoint(endpoint, given), right)


@pytest.mark.parametrize(("kind", "endpoint", "name", "count"), in_each_runtime(*UNEQUAL))
def test_inputs_of_different_batches_are_refused(runtimes, kind, endpoint, name, count):
    """Pairs of images above all: halved in the wrong place, they would be a wrong answer, not an error."""
    runtime, given = runtimes(kind), draw(endpoint)
    error, words = runtime.unequal
    with pytest.raises(error, match=words):
        runtime.call_endpoint(endpoint, {**given, name: given[name][:count]})


@pytest.mark.slow
def test_litert_files_are_published_alone_with_a_card_whose_examples_run_and_damage_is_found(phone, tmp_path):
    assert {path.name for path in (phone / "litert").iterdir()} == {f"{name}.tflite" for name in FILES.values()}
    assert not (phone / "onnx").exists() and not (phone / "savedmodel").exists()
    card = json.loads((phone / "model_card.json").read_text())
    entry = card["formats"]["litert"]
    assert set(FILES) == set(entry["parity"]) and "ai-edge-litert" in entry and card["exact"]["promised"]
    assert all(trip["identical"] == trip["images"] for trip in entry["round_trip"].values())
    run_python_blocks(phone)
    copy = shutil.copytree(phone / "litert", tmp_path / "copy")
    os.truncate(copy / "decoder.tflite", (copy / "decoder.tflite").stat().st_size // 2)
    problem, *_ = compare_files("litert", copy, read_vectors(phone), FILES).problems
    assert problem.startswith("the litert files cannot be opened: ")

"""The benchmark of Frechet distances: the side that an extractor resizes to is replaced, and rows are distances."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.extractors import report_of, write_onnx
from helpers.models import LEAST, random_images
from helpers.numbered import write_images
from helpers.places import ROOT
from helpers.runs import write_run
from onnx import TensorProto, helper

sys.path.insert(0, str(ROOT))

from benchmarks.frechet import resize_to, resized_to  # noqa: E402
from tfdecouple.config import DataConfig  # noqa: E402
from tfdecouple.data import open_source  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402
from tfdecouple.model import DecoupledModel  # noqa: E402


def write_resizing(path, side):
    """An extractor that resizes images to a square and gives the mean of squared values, which the side changes."""

    def constant(name, *values):
        tensor = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        return helper.make_node("Constant", [], [name], value=tensor)

    nodes = [
        constant("zero", 0),
        constant("two", 2),
        constant("square", side, side),
        constant("axes", 2, 3),
        helper.make_node("Transpose", ["images"], ["channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["channels_first"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Shape", ["values"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["front"]),
        helper.make_node("Concat", ["front", "square"], ["sizes"], axis=0),
        helper.make_node("Resize", ["values", "", "", "sizes"], ["resized"], mode="linear"),
        helper.make_node("Mul", ["resized", "resized"], ["squared"]),
        helper.make_node("ReduceMean", ["squared", "axes"], ["features"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "squares",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "h", "w", 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_another_side_is_that_of_an_extractor_made_for_it(tmp_path):
    resize_to(write_resizing(tmp_path / "8.onnx", 8), 16, tmp_path / "8 to 16.onnx")
    made_for_it = write_resizing(tmp_path / "16.onnx", 16)
    assert resized_to(tmp_path / "8 to 16.onnx") == 16
    images = random_images(2, 4)
    features = {
        name: onnxruntime.InferenceSession(tmp_path / name).run(None, {"images": images})[0]
        for name in ("8.onnx", "8 to 16.onnx", made_for_it.name)
    }
    np.testing.assert_array_equal(features["8 to 16.onnx"], features["16.onnx"])
    assert (features["8 to 16.onnx"] != features["8.onnx"]).all()


def test_an_extractor_that_does_not_resize_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not resize images once"):
        resized_to(write_onnx(tmp_path / "colours.onnx"))


def test_rows_are_the_distances_of_evaluate(tmp_path):
    model = DecoupledModel(LEAST)
    model.initialize(random_images(16, LEAST.image_shape))
    for split in ("train", "test"):
        write_images(tmp_path / "pictures" / split, random_images(8, LEAST.image_shape))
    data = DataConfig(source=f"folder:{tmp_path / 'pictures'}")
    run = write_run(tmp_path / "run", model, data=data)
    extractor = write_resizing(tmp_path / "8.onnx", 8)
    arguments = ["--run", run, "--extractor", extractor, "--temperatures", "0.5", "1", "--sides", "16", "--images", "6"]
    command = [sys.executable, ROOT / "benchmarks" / "frechet.py", *arguments, "--json", tmp_path / "found.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["step"] == 1
    # It looks at the test images, once however many rows it has.
    assert len((run / "evaluation" / "test_evaluations.log").read_text(encoding="utf-8").splitlines()) == 1
    rows = found["rows"]
    assert [(row["side"], row["temperature"]) for row in rows] == [(8, 0.5), (8, 1.0), (16, 1.0)]
    source = open_source(data, LEAST.image_shape)
    report = report_of(model, source, extractor, count=6, reference=6, temperature=0.5)
    assert rows[0]["distance"] == pytest.approx(report["distance"], rel=1e-3)
    assert rows[0]["floor"] == pytest.approx(report["floor"], rel=1e-3, abs=1e-6)
    assert rows[2]["floor"] != rows[1]["floor"] or rows[2]["distance"] != rows[1]["distance"]

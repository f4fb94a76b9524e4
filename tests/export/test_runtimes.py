"""What the runtimes answer to inputs that no caller should send.

docs/runtimes.md states it as a table; whoever changes one changes the other.
"""

import functools

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from helpers.models import random_images
from tensorflow.python.client import pywrap_tf_session

from export.deployed.deployed_model import DeployedModel
from export.endpoints import endpoints
from export.formats.litert import write_litert_files

COUNT, BAD = 4, 2
OTHERS = [row for row in range(COUNT) if row != BAD]
NOT_FINITE = [np.nan, np.inf, -np.inf]


FILES = {"encode": "encoder", "decode": "decoder", "sample": "sampler"}


class OnnxRuntime:
    """The ONNX files of an export."""

    name = "onnxruntime"
    endpoints = ("encode", "decode", "sample")
    wrong_shape = (onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, "dimensions|rank")
    wrong_type = (onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, "data type")
    unequal = (onnxruntime.capi.onnxruntime_pybind11_state.Fail, "Add|Mul|Concat|broadcast")
    not_finite = 0

    def __init__(self, folder):
        self.folder = folder / "onnx"

    @functools.cache  # noqa: B019 - as long as the module's fixture lives
    def session(self, endpoint):
        options = onnxruntime.SessionOptions()
        # It writes every refusal to the terminal too.
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(
            self.folder / f"{FILES[endpoint]}.onnx", options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, endpoint, **inputs):
        session = self.session(endpoint)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))


class SavedModelSession:
    """The SavedModel of an export in a V1 session, run as C runs it: Python would check shapes itself."""

    name = "SavedModel"
    endpoints = ("encode", "encode_global", "decode", "sample", "switch", "interpolate", "edit", "score")
    wrong_shape = (tf.errors.InvalidArgumentError, r"not compatible with expected shape \[\?[^$]*shape_of_{name}\b")
    wrong_type = (tf.errors.InvalidArgumentError, "is provided")
    unequal = (tf.errors.InvalidArgumentError, "shape|Shape|dimension")
    not_finite = 0

    def __init__(self, folder):
        self.graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=self.graph)
        with self.graph.as_default():
            path = str(folder / "savedmodel" / "1")
            self.signatures = tf.compat.v1.saved_model.load(self.session, ["serve"], path).signature_def
        self.session._extend_graph()

    def __call__(self, endpoint, **inputs):
        signature = self.signatures[endpoint]
        feeds = {self._output(signature.inputs[name]): array for name, array in inputs.items()}
        fetches = [self._output(info) for info in signature.outputs.values()]
        made = pywrap_tf_session.TF_SessionRun_wrapper(self.session._session, None, feeds, fetches, [], None)
        return dict(zip(signature.outputs, made, strict=True))

    def _output(self, info):
        return self.graph.get_tensor_by_name(info.name)._as_tf_output()


class LiteRT:
    """LiteRT files."""

    name = "LiteRT"
    endpoints = OnnxRuntime.endpoints
    wrong_shape = unequal = (RuntimeError, "failed to prepare")
    wrong_type = (ValueError, "expected type")
    not_finite = 255

    def __init__(self, folder):
        self.folder = folder

    @functools.cache  # noqa: B019 - as long as the module's fixture lives
    def runner(self, endpoint):
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter(model_path=str(self.folder / f"{FILES[endpoint]}.tflite")).get_signature_runner(endpoint)

    def __call__(self, endpoint, **inputs):
        return self.runner(endpoint)(**inputs)


KINDS = {kind.name: kind for kind in (OnnxRuntime, SavedModelSession, LiteRT)}


@pytest.fixture(scope="module")
def runtimes(exported, opened, tmp_path_factory):
    """Returns the runtime of a name."""

    @functools.cache
    def runtime(name):
        if name != "LiteRT":
            return KINDS[name](exported)
        pytest.importorskip("ai_edge_litert")
        folder = tmp_path_factory.mktemp("litert")
        offered = [one for one in endpoints(opened[0].config) if one.onnx]
        write_litert_files(DeployedModel(opened[0]), offered, {}, folder, str)
        return LiteRT(folder)

    return runtime


def params(names, *cases):
    """Returns parameters of a test: each runtime with each case `endpoint, ...` whose endpoint it has."""
    return [
        pytest.param(name, *case, marks=[pytest.mark.slow] if name == "LiteRT" else [])
        for name in names
        for case in cases or [()]
        if not case or case[0] in KINDS[name].endpoints
    ]


EVERY = ("onnxruntime", "SavedModel", "LiteRT")
FOR_EACH = [(endpoint,) for endpoint in SavedModelSession.endpoints]


@pytest.fixture(params=params(EVERY))
def runtime(request, runtimes):
    return runtimes(request.param)


@pytest.fixture
def saved_model(runtimes):
    return runtimes("SavedModel")


def inputs_of(endpoint, count=COUNT):
    rng = np.random.default_rng(3)
    images = random_images(count, seed=3)

    def normal(*shape):
        return rng.standard_normal((count, *shape)).astype("float32")

    everything = {
        "images": images,
        "images_a": images,
        "images_b": images[::-1].copy(),
        "z": normal(4),
        "direction": normal(4),
        "amount": np.linspace(0, 2, count, dtype="float32"),
        "v": normal(8, 8, 3),
        "z_noise": normal(4),
        "v_noise": normal(8, 8, 3),
        "u_noise": rng.random((count, 8, 8, 3), "float32"),
        "temperature": np.full(count, 0.7, "float32"),
        "alpha": np.linspace(0.2, 0.8, count, dtype="float32"),
        "beta": np.linspace(0.1, 0.7, count, dtype="float32"),
    }
    names = {
        "encode": ["images"],
        "encode_global": ["images"],
        "decode": ["z", "v"],
        "sample": ["z_noise", "v_noise", "temperature"],
        "switch": ["images_a", "images_b"],
        "interpolate": ["images_a", "images_b", "alpha", "beta"],
        "edit": ["images", "direction", "amount"],
        "score": ["images", "z_noise", "u_noise"],
    }[endpoint]
    return {name: everything[name] for name in names}


PIXELS = [
    *(("decode", name) for name in ("z", "v")),
    *(("sample", name) for name in ("z_noise", "v_noise", "temperature")),
]


class TestNotFinite:
    @pytest.mark.parametrize("value", NOT_FINITE)
    @pytest.mark.parametrize(("endpoint", "name"), PIXELS)
    def test_row_is_of_one_colour_and_others_are_as_without_it(self, runtime, endpoint, name, value):
        """uint8 has no NaN; what cannot be computed is 0, or 255."""
        given = inputs_of(endpoint)
        right = runtime(endpoint, **given)["images"]
        given[name][BAD] = value
        found = runtime(endpoint, **given)["images"]
        np.testing.assert_array_equal(found[OTHERS], right[OTHERS])
        assert np.ptp(right[BAD]) > 0 and np.any(found[BAD] != right[BAD])
        assert np.all(found[BAD] == runtime.not_finite)

    def test_huge_values_are_clipped_to_pixels(self, runtime):
        given = inputs_of("decode")
        right = runtime("decode", **given)["images"]
        given["v"][BAD] *= 1e30
        found = runtime("decode", **given)["images"]
        np.testing.assert_array_equal(found[OTHERS], right[OTHERS])
        assert set(np.unique(found[BAD])) == {0, 255}

    @pytest.mark.parametrize("value", NOT_FINITE)
    @pytest.mark.parametrize("name", ["z_noise", "u_noise"])
    def test_score_is_not_a_number_of_that_row_alone(self, saved_model, name, value):
        given = inputs_of("score")
        right = saved_model("score", **given)["bits_per_dim"]
        given[name][BAD] = value
        found = saved_model("score", **given)["bits_per_dim"]
        np.testing.assert_allclose(found[OTHERS], right[OTHERS], rtol=1e-6)
        assert not np.isfinite(found[BAD])

    @pytest.mark.parametrize("name", ["alpha", "beta"])
    def test_interpolation_harms_no_other_row(self, saved_model, name):
        given = inputs_of("interpolate")
        right = saved_model("interpolate", **given)["images"]
        given[name][BAD] = np.nan
        found = saved_model("interpolate", **given)["images"]
        np.testing.assert_array_equal(found[OTHERS], right[OTHERS])
        assert np.all(found[BAD] == 0)


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


class TestShapes:
    @pytest.mark.parametrize(
        ("name", "endpoint"),
        params(EVERY, *FOR_EACH),
    )
    def test_inputs_of_another_shape_are_refused(self, runtimes, name, endpoint):
        """Each by itself, and nothing else is the worse for it: a server goes on."""
        runtime, given = runtimes(name), inputs_of(endpoint)
        right, (error, words) = runtime(endpoint, **given), runtime.wrong_shape
        for key, array in given.items():
            for shape in wrong_shapes(array.shape):
                with pytest.raises(error, match=words.replace("{name}", key)):
                    runtime(endpoint, **{**given, key: np.zeros(shape, array.dtype)})
        for output, array in runtime(endpoint, **given).items():
            np.testing.assert_array_equal(array, right[output])

    @pytest.mark.parametrize("count", [1, 3, 17])
    def test_batches_of_any_size_are_answered(self, runtime, count):
        for endpoint in runtime.endpoints:
            for array in runtime(endpoint, **inputs_of(endpoint, count)).values():
                assert len(array) == count, endpoint


class TestTypes:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int32", "int64", "bool"])
    def test_images_of_another_type_are_refused(self, runtime, dtype):
        error, words = runtime.wrong_type
        with pytest.raises(error, match=words):
            runtime("encode", images=random_images().astype(dtype))

    @pytest.mark.parametrize("dtype", ["float64", "float16", "uint8"])
    def test_codes_of_another_type_are_refused(self, runtime, dtype):
        given, (error, words) = inputs_of("decode"), runtime.wrong_type
        with pytest.raises(error, match=words):
            runtime("decode", z=given["z"], v=given["v"].astype(dtype))


UNEQUAL = [
    ("decode", "z", 2),
    ("decode", "v", 2),
    ("decode", "z", 0),
    ("decode", "v", 0),
    ("sample", "z_noise", 2),
    ("sample", "v_noise", 2),
    ("sample", "temperature", 2),
    ("switch", "images_a", 1),
    ("switch", "images_a", 2),
    ("switch", "images_b", 2),
    ("interpolate", "images_a", 2),
    ("interpolate", "images_b", 1),
    ("interpolate", "alpha", 2),
    ("interpolate", "beta", 2),
    ("edit", "images", 2),
    ("edit", "direction", 2),
    ("edit", "amount", 2),
    ("score", "images", 2),
    ("score", "z_noise", 2),
    ("score", "u_noise", 2),
]


class TestBatchesOfDifferentSizes:
    @pytest.mark.parametrize(("kind", "endpoint", "name", "count"), params(EVERY, *UNEQUAL))
    def test_inputs_that_do_not_belong_together_are_refused(self, runtimes, kind, endpoint, name, count):
        """Pairs of images above all: halved in the wrong place, they would be a wrong answer, not an error."""
        runtime, given = runtimes(kind), inputs_of(endpoint)
        error, words = runtime.unequal
        with pytest.raises(error, match=words):
            runtime(endpoint, **{**given, name: given[name][:count]})

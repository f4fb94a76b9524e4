"""What ONNX Runtime and a SavedModel in a session answer to inputs that no caller should send.

docs/runtimes.md states it as a table; whoever changes one changes the other.
"""

import functools

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from helpers.models import random_images
from helpers.places import ROOT

COUNT, BAD = 4, 2
OTHERS = [row for row in range(COUNT) if row != BAD]
NOT_FINITE = [np.nan, np.inf, -np.inf]


class OnnxRuntime:
    """The ONNX files of an export."""

    name = "onnxruntime"
    endpoints = ("encode", "decode", "sample")
    wrong_shape = (onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, "dimensions|rank")
    unequal = (onnxruntime.capi.onnxruntime_pybind11_state.Fail, "Add|Mul|Concat|broadcast")

    def __init__(self, folder):
        self.folder = folder / "onnx"

    @functools.cache  # noqa: B019 - as long as the module's fixture lives
    def session(self, endpoint):
        options = onnxruntime.SessionOptions()
        # It writes every refusal to the terminal too.
        options.log_severity_level = 4
        file = {"encode": "encoder", "decode": "decoder", "sample": "sampler"}[endpoint]
        return onnxruntime.InferenceSession(self.folder / f"{file}.onnx", options, providers=["CPUExecutionProvider"])

    def __call__(self, endpoint, **inputs):
        session = self.session(endpoint)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))


class SavedModelSession:
    """The SavedModel of an export in a V1 session."""

    name = "SavedModel"
    endpoints = ("encode", "encode_global", "decode", "sample", "switch", "interpolate", "edit", "score")
    wrong_shape = (ValueError, "Cannot feed value of shape")
    unequal = (tf.errors.InvalidArgumentError, "shape|Shape|dimension")

    def __init__(self, folder):
        self.graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=self.graph)
        with self.graph.as_default():
            path = str(folder / "savedmodel" / "1")
            self.signatures = tf.compat.v1.saved_model.load(self.session, ["serve"], path).signature_def

    def __call__(self, endpoint, **inputs):
        signature = self.signatures[endpoint]
        feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
        return self.session.run({name: info.name for name, info in signature.outputs.items()}, feeds)


@pytest.fixture(scope="module")
def runtimes(exported):
    saved_model = SavedModelSession(exported)
    yield {
        "onnxruntime": OnnxRuntime(exported),
        "SavedModel": saved_model,
    }
    saved_model.session.close()


@pytest.fixture(params=["onnxruntime", "SavedModel"])
def runtime(request, runtimes):
    return runtimes[request.param]


def of_each_runtime(cases):
    """Parametrizes a test by a runtime and a case of `endpoint, ...`, for the runtimes that have the endpoint."""
    runtimes = {"onnxruntime": OnnxRuntime, "SavedModel": SavedModelSession}
    return [(name, *case) for name, kind in runtimes.items() for case in cases if case[0] in kind.endpoints]


@pytest.fixture
def onnx(runtimes):
    return runtimes["onnxruntime"]


@pytest.fixture
def saved_model(runtimes):
    return runtimes["SavedModel"]


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
    def test_row_is_black_and_others_are_as_without_it(self, runtime, endpoint, name, value):
        """uint8 has no NaN; what cannot be computed is 0, not noise."""
        given = inputs_of(endpoint)
        right = runtime(endpoint, **given)["images"]
        given[name][BAD] = value
        found = runtime(endpoint, **given)["images"]
        np.testing.assert_array_equal(found[OTHERS], right[OTHERS])
        assert np.ptp(right[BAD]) > 0 and np.all(found[BAD] == 0)

    @pytest.mark.parametrize("value", NOT_FINITE)
    def test_one_value_of_v_is_enough_for_its_row_and_harms_no_other(self, runtime, value):
        given = inputs_of("decode")
        right = runtime("decode", **given)["images"]
        given["v"][BAD, 3, 5, 1] = value
        found = runtime("decode", **given)["images"]
        np.testing.assert_array_equal(found[OTHERS], right[OTHERS])
        assert np.any(found[BAD] != right[BAD])

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


class TestShapes:
    @pytest.mark.parametrize(
        "shape", [(3, 16, 16, 3), (3, 4, 4, 3), (3, 8, 10, 3), (3, 8, 8, 1), (3, 8, 8, 4), (3, 3, 8, 8), (8, 8, 3)]
    )
    def test_images_of_another_size_are_refused(self, runtime, shape):
        error, words = runtime.wrong_shape
        with pytest.raises(error, match=words):
            runtime("encode", images=np.zeros(shape, "uint8"))

    @pytest.mark.parametrize(("name", "shape"), [("z", (4, 5)), ("z", (4,)), ("v", (4, 16, 16, 3)), ("v", (4, 192))])
    def test_codes_of_another_size_are_refused(self, runtime, name, shape):
        error, words = runtime.wrong_shape
        with pytest.raises(error, match=words):
            runtime("decode", **{**inputs_of("decode"), name: np.zeros(shape, "float32")})

    @pytest.mark.parametrize("count", [1, 3, 17])
    def test_batches_of_any_size_are_answered(self, runtime, count):
        for endpoint in runtime.endpoints:
            for array in runtime(endpoint, **inputs_of(endpoint, count)).values():
                assert len(array) == count, endpoint


class TestTypes:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int32", "int64", "bool"])
    def test_onnxruntime_refuses_images_of_another_type(self, onnx, dtype):
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="data type"):
            onnx("encode", images=random_images().astype(dtype))

    @pytest.mark.parametrize("dtype", ["float64", "float16", "uint8"])
    def test_onnxruntime_refuses_codes_of_another_type(self, onnx, dtype):
        given = inputs_of("decode")
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="data type"):
            onnx("decode", z=given["z"], v=given["v"].astype(dtype))

    @pytest.mark.parametrize(
        ("given", "taken"),
        [
            (np.float32(0.7), 0),  # images scaled to 0..1, the likeliest mistake: they are black
            (np.float64(200.9), 200),
            (np.int64(300), 300 - 256),
            (np.int32(-1), 255),
        ],
    )
    def test_a_session_casts_images_without_a_word(self, saved_model, given, taken):
        found = saved_model("encode", images=np.full((2, 8, 8, 3), given))
        right = saved_model("encode", images=np.full((2, 8, 8, 3), taken, "uint8"))
        for output, array in right.items():
            np.testing.assert_array_equal(found[output], array)

    def test_a_session_casts_codes_without_a_word(self, saved_model):
        given = inputs_of("decode")
        right = saved_model("decode", **given)["images"]
        found = saved_model("decode", **{name: array.astype("float64") for name, array in given.items()})["images"]
        np.testing.assert_array_equal(found, right)


class TestEmptyBatch:
    @pytest.mark.parametrize("endpoint", OnnxRuntime.endpoints)
    def test_onnxruntime_answers_with_an_empty_batch(self, onnx, endpoint):
        whole, empty = (onnx(endpoint, **inputs_of(endpoint, count)) for count in (1, 0))
        for output, array in empty.items():
            assert array.shape == (0, *whole[output].shape[1:]) and array.dtype == whole[output].dtype

    @pytest.mark.parametrize("endpoint", SavedModelSession.endpoints)
    def test_a_session_refuses_it(self, saved_model, endpoint):
        with pytest.raises(tf.errors.InvalidArgumentError):
            saved_model(endpoint, **inputs_of(endpoint, 0))


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
SINGLE = [
    ("decode", "z"),
    ("decode", "v"),
    ("sample", "z_noise"),
    ("sample", "v_noise"),
    ("sample", "temperature"),
    ("interpolate", "alpha"),
    ("interpolate", "beta"),
    ("edit", "direction"),
    ("edit", "amount"),
    ("score", "images"),
    ("score", "z_noise"),
    ("score", "u_noise"),
]


class TestBatchesOfDifferentSizes:
    @pytest.mark.parametrize(("runtime", "endpoint", "name", "count"), of_each_runtime(UNEQUAL), indirect=["runtime"])
    def test_inputs_that_do_not_belong_together_are_refused(self, runtime, endpoint, name, count):
        """Pairs of images above all: halved in the wrong place, they would be a wrong answer, not an error."""
        given = inputs_of(endpoint)
        error, words = runtime.unequal
        with pytest.raises(error, match=words):
            runtime(endpoint, **{**given, name: given[name][:count]})

    @pytest.mark.parametrize(("runtime", "endpoint", "name"), of_each_runtime(SINGLE), indirect=["runtime"])
    def test_a_single_row_stands_for_every_row_or_is_refused(self, runtime, endpoint, name):
        """Which of the two depends on the architecture: never is it a third thing."""
        given = inputs_of(endpoint)
        repeated = {**given, name: np.repeat(given[name][:1], COUNT, 0)}
        try:
            found = runtime(endpoint, **{**given, name: given[name][:1]})
        except runtime.unequal[0]:
            return
        for output, array in runtime(endpoint, **repeated).items():
            assert found[output].shape == array.shape
            if array.dtype == np.uint8:
                np.testing.assert_array_equal(found[output], array)
            else:
                np.testing.assert_allclose(found[output], array, rtol=1e-5)

    @pytest.mark.parametrize("name", ["z", "temperature"])
    def test_a_single_z_or_temperature_stands_for_every_row(self, runtime, name):
        endpoint = "decode" if name == "z" else "sample"
        given = inputs_of(endpoint)
        found = runtime(endpoint, **{**given, name: given[name][:1]})["images"]
        right = runtime(endpoint, **{**given, name: np.repeat(given[name][:1], COUNT, 0)})["images"]
        np.testing.assert_array_equal(found, right)


class TestNames:
    def test_missing_inputs_are_refused(self, onnx, saved_model):
        v = inputs_of("decode")["v"]
        with pytest.raises(ValueError, match="z"):
            onnx("decode", v=v)
        with pytest.raises(tf.errors.InvalidArgumentError, match="decode_z"):
            saved_model("decode", v=v)

    def test_inputs_of_no_meaning_are_refused(self, onnx):
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="more"):
            onnx("encode", images=random_images(), more=random_images())


def test_documentation_names_the_command_and_both_runtimes():
    text = (ROOT / "docs" / "runtimes.md").read_text()
    assert text.startswith("# The runtimes\n")
    assert "pytest tests/export/test_runtimes.py" in text and "ONNX Runtime" in text and "SavedModel" in text

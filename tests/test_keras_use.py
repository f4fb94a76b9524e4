"""Tests of the model in Keras: files, models around it, Keras' own export, other backends."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.models import LEAST, SMALL, random_images
from helpers.places import PATIENCE, ROOT, user_environment
from helpers.refusals import message_of
from helpers.variants import fresh

from tfdecouple.errors import DataError, NotInitializedError, UserError
from tfdecouple.model import DecoupledModel

pytestmark = pytest.mark.usefixtures("eager")

IMAGES = random_images(3)


def python(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**user_environment(), "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def model():
    return fresh(SMALL)


def classifier(model, code="z"):
    images = keras.Input((8, 8, 3), dtype="uint8")
    features = keras.layers.Flatten()(getattr(model(images), code))
    return keras.Model(images, keras.layers.Dense(10, name=f"of_{code}")(features))


LOAD = """
import sys, keras, numpy as np
from tfdecouple import DecoupledModel
folder = sys.argv[1]
images = np.load(folder + "/images.npy")
model, classifier = (keras.saving.load_model(folder + f"/{name}.keras") for name in ("model", "classifier"))
np.savez(folder + "/answers.npz", model.decode(*model.encode(images)), classifier.predict(images, verbose=0))
"""


@pytest.mark.slow
def test_keras_files_load_in_a_new_process_once_the_class_is_imported(model, tmp_path, forked):
    whole = classifier(model)
    model.save(tmp_path / "model.keras")
    whole.save(tmp_path / "classifier.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    ended = python(LOAD, tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    images, classes = np.load(tmp_path / "answers.npz").values()
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_allclose(classes, whole.predict(IMAGES, verbose=0), atol=1e-5)


@pytest.mark.parametrize("part", ["model", "encoder", "inner layer"])
def test_quantize_and_enable_lora_of_keras_are_refused(model, part):
    inner = list(model.encoder._flatten_layers())[-1]
    layer = {"model": model, "encoder": model.encoder, "inner layer": inner}[part]
    for method, argument in ((layer.quantize, "int8"), (layer.enable_lora, 4)):
        with pytest.raises(UserError, match="^Keras' quantize and enable_lora would change no layer"):
            method(argument)


class TestKerasModel:
    @pytest.mark.parametrize("code", ["z", "v"])
    def test_keras_model_around_the_codes_is_saved_and_loaded(self, model, tmp_path, code):
        whole = classifier(model, code)
        expected = whole.predict(IMAGES, verbose=0)
        codes = np.asarray(getattr(model.encode(IMAGES), code)).reshape(3, -1)
        np.testing.assert_allclose(expected, codes @ whole.layers[-1].kernel.numpy(), atol=1e-4)
        whole.save(tmp_path / "whole.keras")
        loaded = keras.saving.load_model(tmp_path / "whole.keras")
        np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), expected)

    def test_keras_model_around_an_uninitialised_model_is_refused_when_called(self):
        whole = classifier(DecoupledModel(SMALL))
        with pytest.raises(NotInitializedError, match="not initialised"):
            whole(tf.constant(IMAGES))

    def test_keras_model_around_other_images_is_refused_when_built(self, model):
        with pytest.raises(DataError, match="float32"):
            model(keras.Input((8, 8, 3)))
        with pytest.raises(DataError, match="needs"):
            model(keras.Input((16, 16, 3), dtype="uint8"))


class TestExport:
    @pytest.mark.slow
    def test_keras_export_of_a_model_that_was_never_called_serves_codes(self, tmp_path):
        model = fresh(SMALL)
        tf.config.run_functions_eagerly(False)
        model.export(tmp_path / "exported", verbose=False)
        tf.config.run_functions_eagerly(True)
        expected = model(tf.constant(IMAGES))
        loaded = tf.saved_model.load(str(tmp_path / "exported"))
        # One and the same, by two names.
        assert set(loaded.signatures) == {"serve", "serving_default"}
        z, v = loaded.serve(IMAGES)
        np.testing.assert_allclose(z, expected.z, atol=1e-5)
        np.testing.assert_allclose(v, expected.v, atol=1e-5)
        assert loaded.serve(IMAGES[:1])[1].shape == (1, 8, 8, 3)

    def test_keras_export_of_an_unusable_model_is_refused_and_writes_nothing(self, tmp_path):
        with pytest.raises(NotInitializedError):
            DecoupledModel(SMALL).export(tmp_path / "exported")
        # Codes without z have no output of Keras, and other formats lack operations.
        for model, options in ((fresh(LEAST), {}), (fresh(SMALL), {"format": "onnx"})):
            assert "python -m export" in message_of(
                UserError, lambda given=(model, options): given[0].export(tmp_path / "exported", **given[1])
            )
        assert not (tmp_path / "exported").exists()


SAMPLE = "import sys\nfrom tfdecouple.cli import main\nsys.exit(main(['sample', '--run', sys.argv[1]]))"


class TestSettingsOfKeras:
    # The package of the second backend is missing, for which any import of Keras ends in a traceback.
    @pytest.mark.parametrize("backend", ["jax", "nonsense"])
    def test_another_backend_of_keras_is_refused_in_one_line(self, backend, tmp_path):
        ended = python(SAMPLE, tmp_path, KERAS_BACKEND=backend)
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"error: Keras' backend is '{backend}' (by KERAS_BACKEND); tfdecouple needs")
        assert ended.stderr.count("\n") == 1
        code = "import tfdecouple\ntry:\n    tfdecouple.DecoupledModel\nexcept tfdecouple.UserError as e:\n    print(e)"
        ended = python(code, KERAS_BACKEND=backend)
        assert ended.stdout.startswith(f"Keras' backend is '{backend}'"), ended.stderr[-1000:]

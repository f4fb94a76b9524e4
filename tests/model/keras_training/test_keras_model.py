"""The model as Keras shows, saves and draws it, and its errors through Keras and AutoGraph."""

import dataclasses
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import list_layers
from helpers.variants import OF_CLASSES, SMALLEST, VARIANTS, variant
from PIL import Image

import tfdecouple
from tfdecouple.cli import main
from tfdecouple.errors import ConfigError, DataError, NotInitializedError, RunError, UserError
from tfdecouple.model import Codes, DecoupledModel


class TestLooking:
    @pytest.mark.parametrize("kind", ["coupling", "dequantization", "classes"])
    def test_summary_has_every_layer_and_its_shape(self, kind, monkeypatch):
        monkeypatch.setenv("COLUMNS", "240")
        model = DecoupledModel({**VARIANTS, **OF_CLASSES}[kind])
        printed = []
        model.summary(expand_nested=True, line_length=200, print_fn=printed.append)
        (text,) = printed
        rows = [line for line in text.splitlines() if line.startswith("│")]
        assert len(rows) == len(list_layers(model)) - 1
        shapes = [row.split("│")[2].strip() for row in rows]
        assert all("(None," in shape for shape in shapes), shapes
        by_name = {re.sub(r"[^\w]*(\w+) \(.*", r"\1", row.split("│")[1].strip()): row for row in rows}
        assert "((None, 4, 4, 3), (None))" in by_name["flow"]
        if kind == "coupling":
            assert "((None, 4), (None, 4))" in by_name["encoder"]

    def test_model_has_symbolic_input_and_output(self, images, monkeypatch):
        model = variant("coupling")
        of_z = keras.Model(model.input, model.output.z)
        np.testing.assert_allclose(of_z(images), model.encode(images).z, atol=1e-5)
        without = DecoupledModel(dataclasses.replace(SMALLEST, conditioning="none"))
        with pytest.raises(AttributeError, match="a model without z has no output of Keras"):
            _ = without.output
        assert without.output_shape == Codes(None, (None, 4, 4, 3))
        pytest.importorskip("pydot", reason="pydot is not installed")
        for each, shapes in ((model, ["(None, 4, 4, 3)", "(None, 4)"]), (without, ["?"])):
            drawn = keras.utils.model_to_dot(each, show_shapes=True).to_string()
            assert "DecoupledModel" in drawn and all(shape in drawn for shape in shapes)

    @pytest.mark.slow
    def test_plot_model_draws_the_model(self, tmp_path):
        keras.utils.plot_model(variant("coupling"), tmp_path / "model.png", show_shapes=True)
        with Image.open(tmp_path / "model.png") as picture:
            assert min(picture.size) > 50 and len(picture.convert("L").getcolors()) > 2


class TestFiles:
    def test_saved_file_keeps_optimizer_and_options(self, make, images, tmp_path, snapshot):
        model = make(keras.optimizers.AdamW(1e-3, weight_decay=0.1), kl_weight=0.5, seed=7, max_skipped_steps=4)
        model.fit(images, batch_size=20, verbose=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Of NumPy on TensorFlow's variables, in Keras: any model has it.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            model.save(tmp_path / "x.keras")
            loaded = keras.saving.load_model(tmp_path / "x.keras")
        assert loaded._options == model._options and loaded.optimizer.weight_decay == pytest.approx(0.1)
        for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(np.array(ours), np.array(theirs), err_msg=theirs.path)
        for each in (model, loaded):
            each.fit(images, batch_size=20, shuffle=False, verbose=0)
        for ours, theirs in zip(loaded.weights, model.weights, strict=True):
            np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-4, atol=1e-5, err_msg=theirs.path)

    def test_saved_file_keeps_layers_that_are_not_trainable(self, make, images, tmp_path):
        def trained(model):
            return [variable.path for variable in model.trainable_variables]

        model = make(keras.optimizers.SGD(1e-6, momentum=0.5))
        assert set(model.get_config()) == {"name", "config"}
        model.encoder.trainable = False
        # But for what is made so again below it.
        model.encoder.blocks[0].norm_1.trainable = True
        model.fit(images[:10], batch_size=10, verbose=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*optimizer")
            model.save(tmp_path / "x.keras")
            loaded = keras.saving.load_model(tmp_path / "x.keras")
        assert trained(loaded) == trained(keras.models.clone_model(model)) == trained(model) != trained(make())
        assert not loaded.encoder.trainable and loaded.flow.trainable
        for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(np.array(ours), np.array(theirs), err_msg=theirs.path)

    def test_fitted_model_is_saved_as_a_run_folder(self, images, tmp_path):
        from export.provenance import open_run

        model = variant("coupling")
        tfdecouple.save_run(model, tmp_path / "mine")
        # tests/project/test_package.py exports one.
        assert main(["sample", "--run", str(tmp_path / "mine"), "--count", "2"]) == 0
        assert (tmp_path / "mine" / "pictures" / "sample.png").is_file()
        assert np.array_equal(tfdecouple.load_model(tmp_path / "mine").encode(images).v, model.encode(images).v)
        found, origin = open_run(tmp_path / "mine")
        assert found.config == model.config and origin.data == "data unknown"
        data = tfdecouple.DataConfig(source="folder:faces")
        tfdecouple.save_run(model, tmp_path / "told", tfdecouple.Config(name="mine", model=model.config, data=data))
        assert open_run(tmp_path / "told")[1].data == "folder:faces"
        with pytest.raises(RunError, match="is not empty"):
            tfdecouple.save_run(model, tmp_path / "mine")
        other = tfdecouple.Config(model=dataclasses.replace(SMALLEST, alpha=0.5))
        with pytest.raises(ConfigError, match="of another model"):
            tfdecouple.save_run(model, tmp_path / "other", other)
        with pytest.raises(NotInitializedError):
            tfdecouple.save_run(DecoupledModel(SMALLEST), tmp_path / "other")
        # An option of another type is found before anything is written.
        with pytest.raises(ConfigError, match="notes is .* must be text"):
            tfdecouple.save_run(model, tmp_path / "odd", tfdecouple.Config(model=model.config, notes=object()))
        assert not (tmp_path / "odd").exists()
        (tmp_path / "file").touch()
        with pytest.raises(RunError, match="cannot write the run .*: Not a directory; name another") as error:
            tfdecouple.save_run(model, tmp_path / "file" / "x")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("kind", ["onnx"])
    def test_keras_export_to_other_formats_is_refused(self, tmp_path, kind):
        with pytest.raises(UserError, match=f"to '{kind}' lacks operations .* python -m export") as error:
            variant("coupling").export(tmp_path / "other", format=kind)
        assert "\n" not in str(error.value)


class TestErrors:
    def test_errors_stay_one_line_through_keras_and_autograph(self, images, traced):
        model = variant("coupling")
        floats = tf.constant(images, tf.float32)

        @tf.function
        def of_a_user(images):
            return model.encode(images)

        for refused in (lambda: model(floats), lambda: of_a_user(floats), lambda: model.flow(floats[:, :2], None)):
            with pytest.raises(UserError) as error:
                refused()
            assert "\n" not in str(error.value) and "\x1b" not in str(error.value)
        assert issubclass(DataError, UserError)

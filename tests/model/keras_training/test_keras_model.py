"""The model as Keras shows, saves and draws it, and its errors through Keras and AutoGraph."""

import dataclasses
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.layers import list_layers
from helpers.refusals import message_of
from helpers.variants import OF_CLASSES, SMALLEST, VARIANTS, read_weights, variant

import tfdecouple
from tfdecouple.cli import main
from tfdecouple.errors import ConfigError, DataError, NotInitializedError, RunError, UserError
from tfdecouple.model import Codes, DecoupledModel


class TestLooking:
    @pytest.mark.parametrize("kind", ["coupling", "dequantization", "classes"])
    def test_summary_of_keras_has_every_layer_and_its_shape(self, kind, monkeypatch):
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


class TestFiles:
    def test_keras_file_keeps_optimizer_and_options(self, make, images, tmp_path, snapshot):
        model = make(keras.optimizers.AdamW(1e-3, weight_decay=0.1), kl_weight=0.5, seed=7, max_skipped_steps=4)
        model.fit(images, batch_size=20, verbose=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Keras gets this warning from NumPy for any model.
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

    def test_layers_that_are_not_trainable_stay_so_in_fit_and_in_a_file(self, make, images, tmp_path):
        model = make(keras.optimizers.SGD(1e-3, momentum=0.5))
        model.encoder.trainable = False
        model.encoder.blocks[0].norm_1.trainable = True
        before = read_weights(model)
        model.fit(images[:10], batch_size=10, verbose=0)
        changed = {name for name, value in read_weights(model).items() if np.any(value != before[name])}
        assert {
            name for name in changed if name.startswith("encoder/") and "/level_0_block_1/norm_1/" not in name
        } == set()
        assert {name.partition("/")[0] for name in changed} == {"encoder", "flow", "prior_flow"}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*optimizer")
            model.save(tmp_path / "x.keras")
            loaded = keras.saving.load_model(tmp_path / "x.keras")
        names = [[v.path for v in each.trainable_variables] for each in (loaded, keras.models.clone_model(model))]
        assert names == [[v.path for v in model.trainable_variables]] * 2
        for ours, theirs in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(np.array(ours), np.array(theirs), err_msg=theirs.path)

    def test_fitted_model_is_saved_as_a_run_folder(self, images, tmp_path):
        from export.provenance import open_run

        model = variant("coupling")
        tfdecouple.save_run(model, tmp_path / "mine")
        assert main(["sample", "--run", str(tmp_path / "mine"), "--count", "2"]) == 0
        assert (tmp_path / "mine" / "pictures" / "sample.png").is_file()
        assert np.array_equal(tfdecouple.load_model(tmp_path / "mine").encode(images).v, model.encode(images).v)
        opened, origin = open_run(tmp_path / "mine")
        assert opened.config == model.config and origin.data == "data unknown"
        data = tfdecouple.DataConfig(source="folder:faces")
        tfdecouple.save_run(model, tmp_path / "named", tfdecouple.Config(name="mine", model=model.config, data=data))
        assert open_run(tmp_path / "named")[1].data == "folder:faces"

    def test_save_run_refuses_used_folders_and_wrong_configs_and_writes_nothing(self, tmp_path):
        model, to = variant("coupling"), tmp_path / "other"
        (tmp_path / "file").touch()
        for error, words, arguments in (
            (RunError, "is not empty", (model, tmp_path)),
            (ConfigError, "of another model", (model, to, tfdecouple.Config(model=VARIANTS["none"]))),
            (NotInitializedError, "not initialised", (DecoupledModel(SMALLEST), to)),
            (RunError, "Not a directory; name another", (model, tmp_path / "file" / "x")),
        ):
            assert words in message_of(error, lambda given=arguments: tfdecouple.save_run(*given))
            assert not to.exists()


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

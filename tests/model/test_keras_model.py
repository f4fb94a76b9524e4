import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.documents import split_code
from helpers.layers import list_layers
from helpers.models import assert_all_close, random_images
from helpers.places import ROOT, run_python
from helpers.refusals import message_of
from helpers.variants import OF_CLASSES, SMALLEST, VARIANTS, compile_model, fresh, read_weights, variant

import tfdecouple
from tfdecouple.errors import ConfigError, DataError, NotInitializedError, RunError, UserError
from tfdecouple.model import DecoupledModel

pytestmark = pytest.mark.usefixtures("eager")

IMAGES = random_images(20, 4)


def make_classifier(model):
    images = keras.Input((4, 4, 3), dtype="uint8")
    codes = model(images)
    features = keras.layers.Concatenate()([codes.z, keras.layers.Flatten()(codes.v)])
    return keras.Model(images, keras.layers.Dense(10)(features))


LOAD = """
import sys, keras, numpy as np
from tfdecouple import DecoupledModel
folder = sys.argv[1]
images = np.load(folder + "/images.npy")
model, classifier = (keras.saving.load_model(folder + f"/{name}.keras") for name in ("model", "classifier"))
np.savez(folder + "/answers.npz", model.decode(*model.encode(images)), classifier.predict(images, verbose=0))
"""
SAMPLE = "import sys\nfrom tfdecouple.cli import main\nsys.exit(main(['sample', '--run', sys.argv[1]]))"


class TestDescription:
    @pytest.mark.parametrize("kind", ["coupling", "dequantization"])
    def test_summary_of_keras_has_every_layer_and_its_shape(self, kind, monkeypatch):
        monkeypatch.setenv("COLUMNS", "240")
        model = DecoupledModel({**VARIANTS, **OF_CLASSES}[kind])
        printed = []
        model.summary(expand_nested=True, line_length=200, print_fn=printed.append)
        (text,) = printed
        rows = [line for line in text.splitlines() if line.startswith("│")]
        assert len(rows) == len(list_layers(model)) - 1
        assert all("(None," in row.split("│")[2] for row in rows), text

    def test_keras_builds_models_from_input_and_output_of_a_model(self):
        model, without = variant("coupling"), variant("none")
        assert_all_close([*keras.Model(model.input, list(model.output))(IMAGES)], [*model.encode(IMAGES)], atol=1e-5)
        with pytest.raises(AttributeError, match="a model without z has no symbolic output"):
            _ = without.output
        pytest.importorskip("pydot", reason="pydot is not installed")
        for drawn_model, shapes in ((model, ["(None, 4, 4, 3)", "(None, 4)"]), (without, ["?"])):
            drawn = keras.utils.model_to_dot(drawn_model, show_shapes=True).to_string()
            assert "DecoupledModel" in drawn and all(shape in drawn for shape in shapes)


class TestFiles:
    def test_keras_file_keeps_optimizer_and_options(self, tmp_path):
        optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1)
        model = compile_model(optimizer, VARIANTS["none"], kl_weight=0.5, seed=7, max_skipped_steps=4)
        model.fit(IMAGES, batch_size=20, verbose=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Keras gets this warning from NumPy for any model.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            model.save(tmp_path / "x.keras")
            loaded = keras.saving.load_model(tmp_path / "x.keras")
        assert loaded._options == model._options and loaded.optimizer.weight_decay == pytest.approx(0.1)
        assert_all_close(loaded.optimizer.variables, model.optimizer.variables, rtol=0)
        assert_all_close(loaded.weights, model.weights, rtol=0)

    def test_layers_that_are_not_trainable_stay_so_in_fit_and_in_a_file(self, tmp_path):
        model = compile_model(keras.optimizers.SGD(1e-3, momentum=0.5))
        model.encoder.trainable = False
        model.encoder.blocks[0].norm_1.trainable = True
        before = read_weights(model)
        model.fit(IMAGES[:10], batch_size=10, verbose=0)
        changed = {name for name, value in read_weights(model).items() if np.any(value != before[name])}
        assert all("/level_0_block_1/norm_1/" in name for name in changed if name.startswith("encoder/"))
        assert {name.partition("/")[0] for name in changed} == {"encoder", "flow", "prior_flow"}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*optimizer")
            model.save(tmp_path / "x.keras")
            loaded = keras.saving.load_model(tmp_path / "x.keras")
        names = [variable.path for variable in model.trainable_variables]
        for copy in (loaded, keras.models.clone_model(model)):
            assert [variable.path for variable in copy.trainable_variables] == names
        assert_all_close(loaded.optimizer.variables, model.optimizer.variables, rtol=0)

    def test_save_run_refuses_used_folders_and_wrong_configs_and_writes_nothing(self, tmp_path):
        model, to = variant("coupling"), tmp_path / "other"
        (tmp_path / "file").touch()
        for error, words, arguments in (
            (RunError, "is not empty", (model, tmp_path)),
            (ConfigError, "another model", (model, to, tfdecouple.Config(model=VARIANTS["none"]))),
            (NotInitializedError, "not initialised", (DecoupledModel(SMALLEST), to)),
            (RunError, "Not a directory; name another", (model, tmp_path / "file" / "x")),
        ):
            assert words in message_of(error, lambda given=arguments: tfdecouple.save_run(*given))
            assert not to.exists()


class TestErrors:
    def test_errors_stay_one_line_through_keras_and_autograph(self, traced):
        model = variant("coupling")
        floats = tf.constant(IMAGES, tf.float32)
        encode = tf.function(lambda images: model.encode(images))
        for call in (lambda: model(floats), lambda: encode(floats), lambda: model.flow(floats[:, :2], None)):
            assert "\x1b" not in message_of(UserError, call)
        assert issubclass(DataError, UserError)

    def test_quantize_and_enable_lora_of_keras_are_refused(self):
        model = variant("coupling")
        for layer in (model, list_layers(model.encoder)[-1]):
            for call in (lambda layer=layer: layer.quantize("int8"), lambda layer=layer: layer.enable_lora(4)):
                assert "quantize and enable_lora would change no layer" in message_of(UserError, call)

    def test_checkpoint_of_tensorflow_which_would_skip_weights_is_refused(self, tmp_path):
        model = variant("coupling")
        whole = make_classifier(model)
        for objects in ({"model": model}, {"flow": model.flow}, {"whole": whole}):
            for save in (tf.train.Checkpoint.save, tf.train.Checkpoint.write):
                with pytest.raises(UserError, match="would skip weights"):
                    save(tf.train.Checkpoint(**objects), str(tmp_path / "x"))
        assert not [*tmp_path.iterdir()]

    @pytest.mark.parametrize("dtype", ["float64", "bfloat16", "mixed_float16", keras.DTypePolicy("float64")])
    def test_model_in_another_dtype_than_float32_is_refused(self, dtype):
        assert "computes in float32" in message_of(UserError, lambda: DecoupledModel(SMALLEST, dtype=dtype))
        assert DecoupledModel(SMALLEST, dtype="float32").dtype == "float32"

    @pytest.mark.parametrize("name", ["compute_loss", "compute_metrics"])
    def test_method_that_fit_would_not_call_is_refused(self, name):
        class Own(DecoupledModel):
            pass

        setattr(Own, name, lambda self, *arguments, **options: None)
        assert f"Own overrides {name}, " in message_of(UserError, lambda: Own(SMALLEST).compile("adam"))

    def test_another_backend_of_keras_is_refused_in_one_line(self, tmp_path):
        # A backend whose package is missing, for which any import of Keras ends in a traceback.
        ended = run_python("-c", SAMPLE, tmp_path, KERAS_BACKEND="nonsense", TF_CPP_MIN_LOG_LEVEL="3")
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: Keras' backend is 'nonsense' (by KERAS_BACKEND); tfdecouple needs")
        assert ended.stderr.count("\n") == 1


class TestKerasModel:
    @pytest.mark.slow
    def test_keras_files_load_in_a_new_process_once_the_class_is_imported(self, tmp_path, forked):
        whole = make_classifier(variant("coupling"))
        variant("coupling").save(tmp_path / "model.keras")
        whole.save(tmp_path / "classifier.keras")
        np.save(tmp_path / "images.npy", IMAGES)
        ended = run_python("-c", LOAD, tmp_path)
        assert ended.returncode == 0, ended.stderr[-2000:]
        decoded, classes = np.load(tmp_path / "answers.npz").values()
        np.testing.assert_array_equal(decoded, IMAGES)
        np.testing.assert_allclose(classes, whole.predict(IMAGES, verbose=0), atol=1e-5)

    def test_keras_model_around_an_uninitialised_model_or_other_images_is_refused(self):
        whole = make_classifier(DecoupledModel(SMALLEST))
        with pytest.raises(NotInitializedError, match="not initialised"):
            whole(tf.constant(IMAGES))
        with pytest.raises(DataError, match="float32"):
            variant("coupling")(keras.Input((4, 4, 3)))
        with pytest.raises(DataError, match="needs"):
            variant("coupling")(keras.Input((16, 16, 3), dtype="uint8"))

    @pytest.mark.slow
    def test_keras_export_of_a_model_that_was_never_called_serves_codes(self, tmp_path):
        model = fresh(SMALLEST)
        tf.config.run_functions_eagerly(False)
        model.export(tmp_path / "exported", verbose=False)
        tf.config.run_functions_eagerly(True)
        loaded = tf.saved_model.load(str(tmp_path / "exported"))
        # The two names stand for one signature.
        assert set(loaded.signatures) == {"serve", "serving_default"}
        assert_all_close([*loaded.serve(IMAGES)], [*model(tf.constant(IMAGES))], atol=1e-5)
        assert loaded.serve(IMAGES[:1])[1].shape == (1, 4, 4, 3)

    def test_keras_export_of_an_unusable_model_is_refused_and_writes_nothing(self, tmp_path):
        to = tmp_path / "exported"
        with pytest.raises(NotInitializedError):
            DecoupledModel(SMALLEST).export(to)
        # Codes without z have no output of Keras, and other formats lack operations.
        for model, options in ((variant("none"), {}), (variant("coupling"), {"format": "onnx"})):
            message = message_of(UserError, lambda model=model, options=options: model.export(to, **options))
            assert "tfdecouple export" in message
        assert not to.exists()

    @pytest.mark.slow
    def test_script_of_the_keras_page_runs(self, tmp_path, monkeypatch):
        (block,) = split_code((ROOT / "docs" / "keras.md").read_text(encoding="utf-8"))
        code = re.sub(r"batch_size=64,\n    epochs=10", "batch_size=8,\n    epochs=2", block.content)
        assert code != block.content
        monkeypatch.chdir(tmp_path)
        names = {"images": random_images(20, size=32), "test_images": random_images(5, size=32)}
        exec(compile(code, "docs/keras.md", "exec"), names)
        assert (tmp_path / "best.keras").is_file()

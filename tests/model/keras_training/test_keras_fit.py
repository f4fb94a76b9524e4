import dataclasses
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.refusals import message_of
from helpers.variants import OF_CLASSES, SMALLEST

from tfdecouple.errors import DataError, UserError
from tfdecouple.model import densities, objective
from tfdecouple.model.keras_training import read_first_images
from tfdecouple.model.objective import differentiate_bound

NAMES = {"loss", "bits_per_dim", "reconstruction", "kl", "dequantization"}


class Batches(keras.utils.PyDataset):
    def __init__(self, images):
        super().__init__()
        self.images = images

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return self.images[10 * number : 10 * number + 10]


class TestImages:
    def test_fit_takes_equal_steps_on_all_kinds_of_data(self, make, images, snapshot):
        labels = np.arange(20)
        dataset = tf.data.Dataset.from_tensor_slices
        # A model without z takes half of the time.
        model = make(config=dataclasses.replace(SMALLEST, conditioning="none"))
        model.optimizer.build(model.trainable_variables)
        start = snapshot(model)
        kinds = {
            "array": ((images,), False),
            "tensor": ((tf.constant(images),), False),
            "data set": ((dataset(images).batch(10),), False),
            "PyDataset": ((Batches(images),), False),
            "generator": ((batch for batch in (images[:10], images[10:])), False),
            "array, labels": ((images, labels), True),
            "(array, labels)": (((images, labels),), True),
            "data set of pairs": ((dataset((images, labels)).batch(10),), True),
            "data set of dicts": ((dataset({"image": images, "label": labels}).batch(10),), True),
        }
        expected = None
        for kind, (given, has_labels) in kinds.items():
            given = given if isinstance(given, tuple) else (given,)
            for variable, value in zip((*model.weights, *model.optimizer.variables), start, strict=True):
                variable.assign(value)
            size = {} if kind.startswith(("data", "Py", "gen")) else {"batch_size": 10}
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                history = model.fit(*given, shuffle=False, verbose=0, **size).history
            ours = [str(warning.message) for warning in caught if "labels" in str(warning.message)]
            assert ours == (["this model has no labels: the given labels are ignored"] if has_labels else []), kind
            expected = expected or history
            np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-6, err_msg=kind)

    @pytest.mark.parametrize("kind", ["classes", "prior-classes"])
    def test_fit_passes_labels_to_the_bound(self, make, images, kind, monkeypatch):
        model, labels = make(config=OF_CLASSES[kind]), np.arange(20) % 3
        taken = []
        original = objective.negative_elbo

        def look(*arguments, labels, **options):
            taken.append(None if labels is None else np.array(labels))
            return original(*arguments, labels=labels, **options)

        for module in (objective, densities):
            monkeypatch.setattr(module, "negative_elbo", look)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "this model knows")
            validation = images[:4], labels[4:8]
            model.fit(images, labels, batch_size=20, shuffle=False, verbose=0, validation_data=validation)
        np.testing.assert_array_equal(taken[0], labels)
        np.testing.assert_array_equal(taken[1], labels[4:8])
        codes = model.predict((images[:5], labels[:5]), verbose=0)
        np.testing.assert_allclose(codes.z, model.encode(images[:5], labels[:5]).z, atol=1e-5)
        with pytest.raises(DataError, match="there is no label 3"):
            model.fit(images, labels + 1)
        if kind == "classes":
            with pytest.raises(DataError, match="needs the label of each image"):
                model.fit(images)

    def test_fit_refuses_images_that_do_not_fit_the_model(self, make, images):
        model = make(start=False)
        floats = images / 255.0
        for method in (model.fit, model.evaluate, model.predict):
            model.initialized.assign(method != model.fit)
            message = message_of(DataError, lambda method=method: method(floats))
            assert "float64" in message and "tf.cast(tf.round(255 * images), tf.uint8)" in message
            assert "\x1b" not in message
            with pytest.raises(DataError, match="needs"):
                method(images[:, :2])
            with pytest.raises(DataError, match=r"of shape \(4, 4, 3\); this model needs"):
                method(tf.data.Dataset.from_tensor_slices(images))
        model.initialized.assign(False)
        with pytest.raises(DataError, match="float32"):
            model.fit(images, validation_data=floats.astype("float32"))
        with pytest.raises(UserError, match="leave out sample_weight"):
            model.fit(images, sample_weight=np.ones(20))
        with pytest.raises(DataError, match="it must have 'image'"):
            model.fit(tf.data.Dataset.from_tensor_slices({"pixels": images}).batch(10))
        assert not model.optimizer.built and not model.has_weights()


class TestStart:
    def test_initialisation_by_fit_reads_training_images_once(self, make, images, monkeypatch, capsys):
        model = make(start=False, init_images=16, seed=3)
        assert make(start=False)._options.init_images == 512
        started = []
        original = model.initialize

        def start(images, seed):
            started.append((images, seed))
            original(images, seed)

        monkeypatch.setattr(model, "initialize", start)
        model.fit(images, batch_size=5, validation_split=0.5, verbose=2)
        ((taken, seed),) = started
        assert seed == 3
        assert "initialising the weights from 10 training images" in capsys.readouterr().out
        np.testing.assert_array_equal(taken, images[:10])
        model.fit(images, batch_size=5, validation_split=0.5, verbose=0)
        assert len(started) == 1

    def test_initialisation_by_fit_reads_the_first_images_of_a_data_set_and_refuses_generators(self, make, images):
        class Endless(Batches):
            num_batches = None

            def __getitem__(self, number):
                return super().__getitem__(number % 2)

        assert len(read_first_images(images, 0.5, 8, 0)) == 8
        np.testing.assert_array_equal(read_first_images(Batches(images), 0, 15, 0), images[:15])
        assert len(read_first_images(Batches(images), 0, 25, 0)) == 20
        assert len(read_first_images(Endless(images), 0, 25, 0)) == 25
        with pytest.raises(DataError, match=r"generator: call model.initialize\(images\) before$"):
            make(start=False).fit((batch for batch in np.split(images, 4)), verbose=0)


class TestCompile:
    def test_compile_passes_its_options_to_the_step_and_checks_them(self, make, images, monkeypatch):
        options = {"kl_weight": 0.5, "precision": "tf32", "memory": "invert", "jit_compile": True}
        schedule = keras.optimizers.schedules.CosineDecay(1e-3, 10)
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-6, global_clipnorm=1.0)
        model = make(optimizer, **options, seed=3, max_skipped_steps=4)
        assert model.optimizer is optimizer and not model.jit_compile
        assert (model._options.seed, model._options.max_skipped_steps) == (3, 4)
        passed = {}

        def note(model, images, labels, mode, **rest):
            passed.update({name: getattr(mode, name) for name in options if name != "kl_weight"})
            passed["kl_weight"] = rest["kl_weight"]
            return differentiate_bound(model, images, labels, mode.replace(jit_compile=False), **rest)

        monkeypatch.setattr("tfdecouple.model.keras_training.differentiate_bound", note)
        model.train_on_batch(images)
        assert passed == options
        for name, value in {"kl_weight": -1, "memory": "all", "precision": "half", "seed": 2.5}.items():
            with pytest.raises(UserError, match=f"training.{name} is"):
                model.compile("adam", **{name: value})

    def test_compile_that_keras_refuses_leaves_the_model_unchanged(self, make):
        model = make(start=False, kl_weight=0.5, max_skipped_steps=4)
        before = model.optimizer, model.metrics, model.get_compile_config()
        with pytest.raises(ValueError, match="nonesuch"):
            model.compile("nonesuch", kl_weight=2.0, max_skipped_steps=7)
        assert (model.optimizer, model.metrics, model.get_compile_config()) == before
        assert before[2]["kl_weight"] == 0.5


class TestHistory:
    def test_history_has_the_terms_of_the_bound_and_evaluate_is_repeatable(self, model, images):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Of TensorFlow, on data sets where functions run eagerly.
            warnings.filterwarnings("ignore", "Even though the")
            history = model.fit(images, batch_size=10, epochs=2, validation_data=images[:6], verbose=0).history
        assert set(history) == NAMES | {f"val_{name}" for name in NAMES} | {"skipped_steps"}
        again = model.fit(images, batch_size=10, verbose=0, validation_split=0.3).history
        assert set(again) == set(history)
        losses = [model.evaluate(images[-6:], batch_size=6, verbose=0)[0] for _ in range(2)]
        assert losses[0] == losses[1]
        np.testing.assert_allclose(again["val_loss"], losses[0], rtol=1e-6)

    def test_loss_has_the_weight_of_the_kl_and_is_nan_without_images(self, make, images):
        model = make(kl_weight=0.5)
        for row in (
            model.evaluate(images, verbose=0, return_dict=True),
            {name: values[0] for name, values in model.fit(images, batch_size=20, verbose=0).history.items()},
        ):
            assert row["loss"] == pytest.approx(row["reconstruction"] + 0.5 * row["kl"] + row["dequantization"])
            nats = row["reconstruction"] + row["kl"] + row["dequantization"]
            assert row["bits_per_dim"] == pytest.approx(nats / (4 * 4 * 3 * np.log(2)) + 7)
        model.reset_metrics()
        assert all(np.isnan(metric.result()) for metric in model.metrics)

import dataclasses
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.densities import counted_batches
from helpers.models import assert_all_close, random_images
from helpers.refusals import message_of
from helpers.variants import OF_CLASSES, SMALLEST, compile_model

from tfdecouple.config import Config, TrainingConfig
from tfdecouple.errors import DataError, DivergedError, ExactnessWarning, NotInitializedError, UserError
from tfdecouple.execution.run_mode import RunMode
from tfdecouple.execution.runner import run_functions_eagerly
from tfdecouple.metrics.bits_per_dim import BoundEvaluator
from tfdecouple.model import Codes, DecoupledModel, densities, objective
from tfdecouple.model.keras_training import list_moving_statistics, read_first_images
from tfdecouple.training.step import TrainingState, TrainStep
from tfdecouple.training.workers import make_strategy

NAMES = {"loss", "bits_per_dim", "reconstruction", "kl", "dequantization"}
WITHOUT_Z = dataclasses.replace(SMALLEST, conditioning="none")
IMAGES = random_images(20, 4)

# Tracing would take most of the time.
pytestmark = pytest.mark.usefixtures("eager_file")


@pytest.fixture(scope="module")
def model(eager_file):
    """A compiled model that several tests train on: do not count on its weights."""
    return compile_model()


def read_variables(model):
    return [np.array(variable) for variable in (*model.weights, *model.optimizer.variables)]


class Batches(keras.utils.PyDataset):
    def __init__(self, images):
        super().__init__()
        self.images = images

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return self.images[10 * number : 10 * number + 10]


class TestImages:
    def test_fit_takes_equal_steps_on_all_kinds_of_data(self):
        labels, dataset = np.arange(20), tf.data.Dataset.from_tensor_slices
        # A model without z takes half of the time.
        model = compile_model(config=WITHOUT_Z)
        model.optimizer.build(model.trainable_variables)
        start, losses = read_variables(model), []
        for kind, given, options in (
            ("array", [IMAGES], {"batch_size": 10}),
            ("data set", [dataset(IMAGES).batch(10)], {}),
            ("PyDataset", [Batches(IMAGES)], {}),
            ("generator", [(batch for batch in np.split(IMAGES, 2))], {}),
            ("array, labels", [IMAGES, labels], {"batch_size": 10}),
            ("data set of dicts, labels", [dataset({"image": IMAGES, "label": labels}).batch(10)], {}),
        ):
            for variable, value in zip((*model.weights, *model.optimizer.variables), start, strict=True):
                variable.assign(value)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                losses.append(model.fit(*given, shuffle=False, verbose=0, **options).history["loss"])
            ours = [str(warning.message) for warning in caught if "labels" in str(warning.message)]
            assert ours == ["this model has no labels: the given labels are ignored"] * ("labels" in kind), kind
            np.testing.assert_allclose(losses[-1], losses[0], rtol=1e-6, err_msg=kind)

    @pytest.mark.parametrize("kind", ["classes", "prior-classes"])
    def test_fit_passes_labels_to_the_bound(self, kind, monkeypatch):
        model, labels = compile_model(config=OF_CLASSES[kind]), np.arange(20) % 3
        taken, original = [], objective.evaluate_bound

        def look(*arguments, labels, **options):
            taken.append(np.array(labels))
            return original(*arguments, labels=labels, **options)

        for module in (objective, densities):
            monkeypatch.setattr(module, "evaluate_bound", look)
        validation = IMAGES[:4], labels[4:8]
        model.fit(IMAGES, labels, batch_size=20, shuffle=False, verbose=0, validation_data=validation)
        np.testing.assert_array_equal(taken[0], labels)
        np.testing.assert_array_equal(taken[1], labels[4:8])
        codes = model.predict((IMAGES[:5], labels[:5]), verbose=0)
        np.testing.assert_allclose(codes.z, model.encode(IMAGES[:5], labels[:5]).z, atol=1e-5)
        with pytest.raises(DataError, match="there is no label 3"):
            model.fit(IMAGES, labels + 1)
        if kind == "classes":
            with pytest.raises(DataError, match="needs the label of each image"):
                model.fit(IMAGES)

    def test_methods_of_keras_refuse_images_that_do_not_fit_the_model(self):
        model, dataset = compile_model(start=False), tf.data.Dataset.from_tensor_slices
        for given, words in (
            (IMAGES / 255.0, ["float64", "tf.cast(tf.round(255 * images), tf.uint8)"]),
            (IMAGES[:, :2], ["needs"]),
            (dataset(IMAGES), ["of shape (4, 4, 3); this model needs"]),
            (None, ["images"]),
        ):
            for method in (model.fit, model.evaluate, model.predict):
                model.initialized.assign(method != model.fit)
                message = message_of(DataError, lambda call=(method, given): call[0](call[1]))
                assert all(word in message for word in words) and "\x1b" not in message
        model.initialized.assign(False)
        with pytest.raises(DataError, match="float32"):
            model.fit(IMAGES, validation_data=IMAGES.astype("float32"))
        with pytest.raises(UserError, match="leave out sample_weight"):
            model.fit(IMAGES, sample_weight=np.ones(20))
        with pytest.raises(DataError, match="it must have 'image'"):
            model.fit(dataset({"pixels": IMAGES}).batch(10))
        assert not model.optimizer.built and not bool(model.initialized.value)
        for method in (model.evaluate, model.predict, model.train_on_batch):
            with pytest.raises(NotInitializedError):
                method(IMAGES)
        model.initialized.assign(True)
        message_of(DataError, lambda: model.train_on_batch(None))


class TestStart:
    def test_initialisation_by_fit_reads_training_images_once(self, monkeypatch, capsys):
        model = compile_model(config=WITHOUT_Z, start=False, init_images=16, seed=3)
        started, initialize = [], model.initialize
        monkeypatch.setattr(model, "initialize", lambda *a, seed: started.append((*a, seed)) or initialize(*a, seed))
        for _ in range(2):
            model.fit(IMAGES, batch_size=5, validation_split=0.5, verbose=2)
        ((taken, seed),) = started
        assert seed == 3
        assert "initialising the weights from 10 training images" in capsys.readouterr().out
        np.testing.assert_array_equal(taken, IMAGES[:10])

    def test_initialisation_by_fit_reads_the_first_images_of_a_data_set_and_refuses_generators(self):
        class Endless(Batches):
            num_batches = None

            def __getitem__(self, number):
                return super().__getitem__(number % 2)

        assert len(read_first_images(IMAGES, 0.5, 8, 0)) == 8
        np.testing.assert_array_equal(read_first_images(Batches(IMAGES), 0, 15, 0), IMAGES[:15])
        assert len(read_first_images(Batches(IMAGES), 0, 25, 0)) == 20
        assert len(read_first_images(Endless(IMAGES), 0, 25, 0)) == 25
        with pytest.raises(DataError, match=r"generator: call model.initialize\(images\) before$"):
            compile_model(start=False).fit((batch for batch in np.split(IMAGES, 4)), verbose=0)


def test_compile_passes_its_options_to_the_step_and_checks_them(monkeypatch):
    options = {"kl_weight": 0.5, "precision": "tf32", "memory": "invert", "jit_compile": True}
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 10)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-6, global_clipnorm=1.0)
    model = compile_model(optimizer, **options, seed=3, max_skipped_steps=4)
    assert model.optimizer is optimizer and not model.jit_compile
    assert (model._options.seed, model._options.max_skipped_steps) == (3, 4)
    modes = []
    monkeypatch.setattr("tfdecouple.model.training_step.RunMode", lambda *a: modes.append(a) or RunMode(*a[:2]))
    logs = model.train_on_batch(IMAGES, return_dict=True)
    assert modes == [("invert", "tf32", True)]
    assert logs["loss"] == pytest.approx(logs["reconstruction"] + 0.5 * logs["kl"] + logs["dequantization"])
    for name, value in {"kl_weight": -1, "memory": "all", "precision": "half", "seed": 2.5}.items():
        with pytest.raises(UserError, match=f"training.{name} is"):
            model.compile("adam", **{name: value})
    with pytest.raises(UserError, match="training.contrast is 2"):
        compile_model(config=WITHOUT_Z, start=False, contrast=2)


def test_history_has_the_terms_of_the_bound_and_evaluate_is_repeatable(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Of TensorFlow, on data sets where functions run eagerly.
        warnings.filterwarnings("ignore", "Even though the")
        history = model.fit(IMAGES, batch_size=20, validation_data=IMAGES[:6], verbose=0).history
    assert set(history) == NAMES | {f"val_{name}" for name in NAMES} | {"skipped_steps"}
    again = model.fit(IMAGES, batch_size=20, verbose=0, validation_split=0.3).history
    losses = [model.evaluate(IMAGES[-6:], batch_size=6, verbose=0)[0] for _ in range(2)]
    assert losses[0] == losses[1] == pytest.approx(again["val_loss"][0], rel=1e-6)


class TestTraining:
    def test_fit_takes_the_steps_of_the_trainer_with_every_option(self):
        optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.01, epsilon=1e-8)
        # None of these options has its default value.
        options = {"kl_weight": 3.0, "kl_warmup_steps": 4, "noise": 30.0, "noise_steps": 5, "patterns": 0.3}
        options |= {"contrast": 2.0, "seed": 5}
        keras_model = compile_model(optimizer, **options)
        options |= {"learning_rate": 0.01, "weight_decay": 0.01, "batch_size": 10}
        training = TrainingConfig(**options, warmup_steps=0, decay_rate=1.0, clip_norm=0.0)
        config, strategy = Config(model=SMALLEST, training=training), make_strategy()
        with strategy.scope():
            state = TrainingState(config)
        for name, variable in state.model.named_variables().items():
            variable.assign(keras_model.named_variables()[name])
        take = TrainStep(state, strategy)
        for step, batch in enumerate(np.split(IMAGES, 2)):
            right = take([tf.constant(batch)], step).fetch_numbers()
            metrics = keras_model.train_on_batch(batch, return_dict=True)
            for name in ("bits_per_dim", "reconstruction", "kl", "dequantization"):
                # With a KL weight of 0 in the first step, rounding decides some of Adam's steps.
                assert metrics[name] == pytest.approx(getattr(right, name), rel=1e-3 if step else 1e-5, abs=1e-5), name
            loss = right.reconstruction + 3 * step / 4 * right.kl + right.dequantization
            assert metrics["loss"] == pytest.approx(loss, rel=1e-3)
        assert list_moving_statistics(keras_model)
        for name, variable in state.model.named_variables().items():
            value = keras_model.named_variables()[name]
            off = np.abs(np.array(value, "float32") - np.array(variable, "float32"))
            # Adam takes as large a step for the smallest gradient, which rounding can turn round.
            assert off.max() < 5e-3 and off.mean() < 1e-4, name

    def test_fit_skips_steps_that_are_not_finite_and_ends_after_too_many(self, monkeypatch):
        model = compile_model(keras.optimizers.Adam(1e-3), WITHOUT_Z, max_skipped_steps=3)
        bad = tf.Variable(False)
        original = objective.evaluate_bound

        def sometimes(*arguments, **options):
            bound, latents = original(*arguments, **options)
            return bound._replace(kl=bound.kl * tf.where(bad, math.nan, 1.0)), latents

        monkeypatch.setattr(objective, "evaluate_bound", sometimes)
        model.fit(IMAGES, batch_size=20, verbose=0)
        before = read_variables(model)
        bad.assign(True)
        with pytest.warns(UserWarning, match="epoch 1: 2 steps were not applied"):
            history = model.fit(IMAGES, batch_size=10, verbose=0).history
        assert history["skipped_steps"] == [2] and np.isnan(history["bits_per_dim"]).all()
        assert_all_close(read_variables(model), before, rtol=0)
        line = message_of(DivergedError, lambda: model.fit(IMAGES, batch_size=10, verbose=0))
        assert line.startswith("training diverged: 3 steps in a row were not applied")
        bad.assign(False)
        # A new `compile` starts the count of skipped steps anew.
        model.compile(keras.optimizers.Adam(1e-3))
        assert model.fit(IMAGES, batch_size=20, verbose=0).history["skipped_steps"] == [0]


class TestEvaluation:
    def test_evaluate_equals_the_evaluation_of_a_run_for_any_batch_size(self):
        model = compile_model(seed=5)
        metrics = [model.evaluate(IMAGES, batch_size=size, verbose=0, return_dict=True) for size in (20, 7)]
        right = BoundEvaluator(model)(counted_batches(IMAGES, 5), seed=5).to_log_row()
        for name in ("bits_per_dim", "reconstruction", "kl", "dequantization"):
            assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-6, abs=1e-6)
            assert metrics[0][name] == pytest.approx(right[name], rel=1e-6, abs=1e-6)

    def test_predict_returns_the_codes_of_encode(self, model, monkeypatch):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExactnessWarning)
            codes, right = model.predict(IMAGES, batch_size=7, verbose=0), model.encode(IMAGES)
        assert isinstance(codes, Codes) and all(isinstance(code, np.ndarray) for code in codes)
        np.testing.assert_allclose(codes.z, right.z, atol=1e-5)
        np.testing.assert_allclose(codes.v, right.v, atol=1e-5)
        monkeypatch.setattr("tfdecouple.model.codes.FAR", 0.0)
        with pytest.warns(ExactnessWarning, match="far from what this model was trained on"):
            model.predict(IMAGES[:2], verbose=0)
        without = compile_model(config=WITHOUT_Z)
        assert without.predict(IMAGES[:3], verbose=0).z is None


@pytest.fixture
def policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.mark.usefixtures("bfloat16")
def test_precision_of_fit_follows_the_dtype_policy_of_keras(policy, monkeypatch):
    asked, losses = [], []
    monkeypatch.setattr("tfdecouple.model.training_step.RunMode", lambda *a: asked.append(a[1]) or RunMode(*a))
    for global_policy, told in (("mixed_bfloat16", None), ("float32", "mixed_bfloat16")):
        policy(global_policy)
        model = compile_model(config=WITHOUT_Z, precision=told)
        losses.append(model.fit(IMAGES[:4], verbose=0, shuffle=False).history["loss"])
        assert model.dtype_policy.name == "float32"
        assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    assert set(asked) == {"mixed_bfloat16"} and losses[0] == losses[1]
    policy("mixed_float16")
    with pytest.raises(UserError, match="policy is mixed_float16, in which these models do not train"):
        compile_model(start=False)
    compile_model(start=False, precision="float32")


class TestStrategy:
    def test_two_devices_train_evaluate_and_predict_as_one_device_also_in_an_own_loop(self):
        # The devices get four and three images in training. Of the last batch of an evaluation, the second device gets
        # none. Clipping bounds the gradient of the whole batch.
        models, images = [compile_model(keras.optimizers.SGD(0.1, global_clipnorm=0.5), WITHOUT_Z)], IMAGES[:7]
        weights = models[0].get_weights()
        with make_strategy(2).scope():
            for _ in range(2):
                models.append(DecoupledModel(WITHOUT_Z))
                models[-1].compile(keras.optimizers.SGD(0.1, global_clipnorm=0.5))
                models[-1].set_weights(weights)
                models[-1].optimizer.build(models[-1].trainable_variables)
        own = models.pop()
        histories, evaluations, codes = [], [], []
        for model in models:
            histories.append(model.fit(images, shuffle=False, verbose=0).history)
            evaluations.append(model.evaluate(images, batch_size=6, verbose=0))
            codes.append(model.predict(images, batch_size=6, verbose=0).v)
        assert set(histories[1]) == NAMES | {"skipped_steps"}
        for name, values in histories[0].items():
            assert histories[1][name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
        assert evaluations[1] == pytest.approx(evaluations[0], rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(*codes, atol=1e-3)
        for variable, trained, start in zip(models[0].weights, models[1].weights, weights, strict=True):
            np.testing.assert_allclose(np.array(trained), np.array(variable), atol=1e-4, err_msg=variable.path)
            first, second = (copy.numpy() for copy in trained.value.values)
            np.testing.assert_array_equal(first, second, err_msg=variable.path)
            assert variable.path.endswith("initialized") or np.any(first != start), variable.path
        batches = tf.data.Dataset.from_tensor_slices(images).batch(7)
        for batch in own.distribute_strategy.experimental_distribute_dataset(batches):
            own.distribute_strategy.run(own.train_step, args=(batch,))
        values = {name: float(value) for name, value in own.get_metrics_result().items()}
        assert values == {name: pytest.approx(histories[0][name][0], rel=1e-4, abs=1e-5) for name in NAMES}
        assert_all_close(own.get_weights(), models[0].get_weights(), atol=1e-4)

    def test_fewer_images_than_devices_and_several_steps_per_execution_are_refused(self):
        with make_strategy(2).scope():
            model = DecoupledModel(WITHOUT_Z)
            model.compile("sgd")
        with pytest.raises(DataError, match="^a device got no image of a batch, and in training each of the 2 devices"):
            model.fit(IMAGES[:3], batch_size=2, shuffle=False, verbose=0)
        with model.distribute_strategy.scope():
            model.compile("sgd", steps_per_execution=2)
        with pytest.raises(UserError, match="^steps_per_execution is 2; on several devices it must be 1$"):
            model.fit(IMAGES)


class TestOwnClass:
    def test_own_step_callback_and_several_steps_per_execution_train_as_fit(self, traced):
        class Own(DecoupledModel):
            def train_step(self, data):
                return {**super().train_step(data), "steps": self.optimizer.iterations + 0}

        right = compile_model(keras.optimizers.SGD(0.1), WITHOUT_Z)
        model = Own(WITHOUT_Z)
        model.compile(keras.optimizers.SGD(0.1), steps_per_execution=2)
        model.set_weights(right.get_weights())
        ends = []
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(batch))
        history = model.fit(IMAGES, batch_size=10, shuffle=False, verbose=0, callbacks=[callback]).history
        with run_functions_eagerly():
            expected = right.fit(IMAGES, batch_size=10, shuffle=False, verbose=0).history
        assert history.pop("steps") == [2] and ends == [1]
        for name, values in expected.items():
            assert history[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name

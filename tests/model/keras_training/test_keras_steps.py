import dataclasses
import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.densities import counted_batches
from helpers.refusals import message_of
from helpers.variants import SMALLEST

from tfdecouple.config import Config, TrainingConfig
from tfdecouple.errors import DivergedError, ExactnessWarning, NotInitializedError, UserError
from tfdecouple.metrics.bits_per_dim import BoundEvaluator
from tfdecouple.model import Codes, DecoupledModel, objective
from tfdecouple.model.keras_training import list_moving_statistics
from tfdecouple.runtime.run_mode import RunMode
from tfdecouple.training.state import TrainingState
from tfdecouple.training.step import TrainStep
from tfdecouple.training.workers import make_strategy

WITHOUT_Z = dataclasses.replace(SMALLEST, conditioning="none")


class TestTraining:
    def test_fit_takes_the_steps_of_the_trainer_with_every_option(self, make, images):
        optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.01, epsilon=1e-8)
        # None of these options has its default value.
        options = {"kl_weight": 3.0, "kl_warmup_steps": 4, "noise": 30.0, "noise_steps": 5, "patterns": 0.3, "seed": 5}
        keras_model = make(optimizer, **options)
        options |= {"learning_rate": 0.01, "weight_decay": 0.01, "batch_size": 10}
        training = TrainingConfig(**options, warmup_steps=0, decay_rate=1.0, clip_norm=0.0)
        config, strategy = Config(model=SMALLEST, training=training), make_strategy()
        with strategy.scope():
            state = TrainingState(config)
        for name, variable in state.model.named_variables().items():
            variable.assign(keras_model.named_variables()[name])
        take = TrainStep(config, state, strategy)
        for step, batch in enumerate(np.split(images, 2)):
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

    def test_fit_skips_steps_that_are_not_finite_and_ends_after_too_many(self, make, images, snapshot, monkeypatch):
        model = make(keras.optimizers.Adam(1e-3), WITHOUT_Z, max_skipped_steps=3)
        bad = tf.Variable(False)
        original = objective.negative_elbo

        def sometimes(*arguments, **options):
            elbo, latents = original(*arguments, **options)
            return elbo._replace(kl=elbo.kl * tf.where(bad, math.nan, 1.0)), latents

        monkeypatch.setattr(objective, "negative_elbo", sometimes)
        model.fit(images, batch_size=10, verbose=0)
        before = snapshot(model)
        bad.assign(True)
        with pytest.warns(UserWarning, match="epoch 1: 2 steps were not applied"):
            history = model.fit(images, batch_size=10, verbose=0).history
        assert history["skipped_steps"] == [2] and np.isnan(history["bits_per_dim"]).all()
        for ours, theirs in zip(snapshot(model), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        line = message_of(DivergedError, lambda: model.fit(images, batch_size=10, verbose=0))
        assert line.startswith("training diverged: 3 steps in a row were not applied")
        bad.assign(False)
        # A new `compile` starts the count of skipped steps anew.
        model.compile(keras.optimizers.Adam(1e-3))
        assert model.fit(images, batch_size=10, verbose=0).history["skipped_steps"] == [0]


class TestEvaluation:
    def test_evaluate_equals_the_evaluation_of_a_run_for_any_batch_size(self, make, images):
        model = make(seed=5)
        metrics = [model.evaluate(images, batch_size=size, verbose=0, return_dict=True) for size in (20, 7)]
        right = BoundEvaluator(model)(counted_batches(images, 5), seed=5).to_log_row()
        for name in ("bits_per_dim", "reconstruction", "kl", "dequantization"):
            assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-6, abs=1e-6)
            assert metrics[0][name] == pytest.approx(right[name], rel=1e-6, abs=1e-6)

    def test_predict_returns_the_codes_of_encode(self, model, make, images, monkeypatch):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExactnessWarning)
            codes, right = model.predict(images, batch_size=7, verbose=0), model.encode(images)
        assert isinstance(codes, Codes) and all(isinstance(code, np.ndarray) for code in codes)
        np.testing.assert_allclose(codes.z, right.z, atol=1e-5)
        np.testing.assert_allclose(codes.v, right.v, atol=1e-5)
        monkeypatch.setattr("tfdecouple.model.codes.FAR", 0.0)
        with pytest.warns(ExactnessWarning, match="far from what this model was trained on"):
            model.predict(images[:2], verbose=0)
        without = make(config=WITHOUT_Z)
        assert without.predict(images[:3], verbose=0).z is None

    def test_methods_of_keras_refuse_a_model_without_weights(self, make, images):
        model = make(start=False)
        for method in (model.evaluate, model.predict, model.train_on_batch):
            with pytest.raises(NotInitializedError):
                method(images)


class TestPrecision:
    @pytest.fixture
    def policy(self):
        before = keras.config.dtype_policy()
        yield keras.config.set_dtype_policy
        keras.config.set_dtype_policy(before)

    def test_precision_of_fit_follows_the_dtype_policy_of_keras(self, make, images, policy, monkeypatch):
        asked, losses = [], []

        def note(*arguments, **options):
            asked.append(RunMode(*arguments, **options).precision)
            return RunMode(*arguments, **options)

        monkeypatch.setattr("tfdecouple.model.keras_training.RunMode", note)
        for global_policy, told in (("mixed_bfloat16", None), ("float32", "mixed_bfloat16")):
            policy(global_policy)
            model = make(config=WITHOUT_Z, precision=told)
            losses.append(model.fit(images, batch_size=20, verbose=0, shuffle=False).history["loss"])
            assert model.dtype_policy.name == "float32"
            assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
        assert set(asked) == {"mixed_bfloat16"} and losses[0] == losses[1]
        policy("mixed_float16")
        with pytest.raises(UserError, match="policy is mixed_float16, in which these models do not train"):
            make()
        make(precision="float32")


class TestStrategy:
    def test_fit_outside_the_scope_of_a_strategy_trains_as_without_strategy(self, make, images):
        right = make(keras.optimizers.AdamW(0.01), WITHOUT_Z)
        weights = right.get_weights()
        # The second of the two logical devices is not the default.
        with tf.distribute.MirroredStrategy(["CPU:1"]).scope():
            model = DecoupledModel(WITHOUT_Z)
            model.compile(keras.optimizers.AdamW(0.01))
        model.set_weights(weights)
        losses = [m.fit(images, batch_size=10, shuffle=False, verbose=0).history["loss"] for m in (right, model)]
        assert losses[1] == pytest.approx(losses[0])
        for trained, expected in zip(model.get_weights(), right.get_weights(), strict=True):
            np.testing.assert_allclose(trained, expected, atol=1e-4)
        assert any(not np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))
        model.train_on_batch(images)

    def test_fit_refuses_an_optimizer_of_another_strategy_in_one_line(self, images):
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            model = DecoupledModel(WITHOUT_Z)
        model.compile("adam")
        with pytest.raises(UserError, match="scope of the model's strategy, a MirroredStrategy"):
            model.fit(images)

    def test_methods_of_keras_refuse_several_devices_in_one_line(self, images):
        with make_strategy(2).scope():
            model = DecoupledModel(SMALLEST)
            model.compile()
        model.initialize(images)
        for method in (model.fit, model.evaluate, model.predict, model.train_on_batch, model.test_on_batch):
            with pytest.raises(UserError, match="one device, not on the 2 of a MirroredStrategy: .* python train.py"):
                method(images)

"""Exactness where products are rounded: everything that a model computes, on an emulated GPU."""

import dataclasses
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from helpers.densities import counted_batches
from helpers.layers import list_layers
from helpers.models import random_images
from helpers.places import PATIENCE, ROOT
from helpers.variants import variant

import tfdecouple
from benchmarks.emulation import emulated_accelerator, keep_tf32_switch
from export.verification.vectors import choose_batch_sizes as batch_sizes
from export.verification.vectors import make_test_vectors
from tfdecouple.config import PHOTOGRAPHS, DataConfig
from tfdecouple.corpus.code_files import Field
from tfdecouple.corpus.encoding import make_image_encoder
from tfdecouple.data.batches import load_images
from tfdecouple.data.sources import open_source
from tfdecouple.layers import Coupling
from tfdecouple.metrics.bits_per_dim import BoundEvaluator
from tfdecouple.metrics.classification import classify_images
from tfdecouple.metrics.latent_use import compute_latent_use
from tfdecouple.model.initialization import diagnose_model
from tfdecouple.model.objective import map_noise_to_z
from tfdecouple.model.outlier_scores import OutlierScorer
from tfdecouple.numerics import tf32
from tfdecouple.numerics.tf32 import full_float32, tensor_float_32

enabled = tf.config.experimental.tensor_float_32_execution_enabled
enable = tf.config.experimental.enable_tensor_float_32_execution
RESULTS = ROOT / "docs" / "results"

IMAGES, OTHERS = random_images(3, 4), random_images(3, 4, seed=1)
BATCHES = counted_batches(IMAGES, 3)
LABELS = tf.constant([0, 2, 1])
NOISE = tf.constant(np.random.default_rng(0).standard_normal([3, 4]), tf.float32)
X = tf.constant(np.random.default_rng(1).uniform(-1, 1, [3, 4, 4, 3]), tf.float32)
FIELDS = [Field(name=name, shape=shape) for name, shape in (("z", (4,)), ("z_std", (4,)), ("v", (4, 4, 3)))]
PART = tf.constant(np.random.default_rng(2).standard_normal([3, 2, 2, 12]), tf.float32)


@pytest.fixture(autouse=True)
def default_setting():
    enable(True)
    yield
    assert tf32._switch.full == tf32._switch.tf32 == 0
    enable(True)


def z_of(model):
    return NOISE if model.config.has_latent else None


def labelled():
    return [{"image": IMAGES, "label": LABELS.numpy(), "weight": np.ones(3, np.float32)}]


def centres(model):
    return model.quantizer.place_at_centres(model.quantizer.find_bins(tf.constant(IMAGES)))


# {name: computation} of every model, and of models with z.
VERBS = {
    "encode": lambda m: m.encode(IMAGES).v,
    "decode": lambda m: m.flow.inverse_and_log_det(X, z_of(m)),
    "sample": lambda m: m.sample(3, seed=0),
    "bound": lambda m: m.bound(IMAGES, seed=0),
    "likelihood": lambda m: m.likelihood(z_of(m)).log_prob(X),
    "likelihood's sample": lambda m: m.likelihood(z_of(m)).sample(seed=(0, 1)),
    "diagnose": lambda m: list(diagnose_model(m, IMAGES).values()),
    "flow": lambda m: m.flow(X, z_of(m)),
    "bijector": lambda m: m.flow.as_bijector().forward(X, condition=z_of(m)),
    "step": lambda m: m.flow.levels[1][0].layers[0].forward_and_log_det(PART, z_of(m)),
    "1x1 convolution": lambda m: m.flow.levels[1][0].layers[0].sequence[1].inverse_and_log_det(PART),
    "coupling's scale": lambda m: scales(m),
}
VERBS_OF_Z = {
    "encode's z": lambda m: m.encode(IMAGES).z,
    "switch": lambda m: m.flow.inverse_and_log_det(m.encode(IMAGES).v, m.encode(OTHERS).z),
    "interpolate": lambda m: m.interpolate(IMAGES, OTHERS, [0.0, 0.5], [0.0, 0.5]),
    "posterior": lambda m: [m.posterior(IMAGES).mean(), m.posterior(IMAGES).log_prob(NOISE)],
    "posterior's sample": lambda m: m.posterior(IMAGES).sample(seed=(0, 1)),
    "encoder": lambda m: m.encoder(X),
    "prior": lambda m: m.prior().log_prob(NOISE),
    "prior's sample": lambda m: m.prior().sample(3, seed=(0, 1)),
    "map_noise_to_z": lambda m: map_noise_to_z(m, NOISE),
}
# Computations in which TF32 never shows, because pixels of 256 bins hide it.
COARSE = {"sample", "interpolate"}


def scales(model):
    layer = next(layer for layer in list_layers(model.flow) if isinstance(layer, Coupling))
    x = tf.ones([3, 4, 4, layer._channels])
    return [
        layer.compute_slopes(x, z_of(model) if layer.condition_size else None),
        layer.net(layer.split(x)[0], z_of(model)),
    ]


def check(name, run, model):
    """Asserts that rounded products change no result; returns whether they change none with TF32 left on."""

    def is_equal(results, others):
        return all(np.array_equal(a, b) for a, b in zip(results, others, strict=True))

    def compute():
        return [np.asarray(value) for value in tf.nest.flatten(run(model)) if value is not None]

    full = compute()
    with emulated_accelerator():
        assert is_equal(compute(), full), name
        assert enabled()
        with keep_tf32_switch():
            return is_equal(compute(), full)


class TestWarning:
    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        monkeypatch.setattr(tf32, "has_visible_gpu", lambda: True)

    def test_traced_model_warns_once_of_tf32_in_the_line_of_the_caller(self):
        model = variant("coupling")

        def run():
            z, v = model.encode(random_images(2, 4))
            return model.decode(z, v), model.prior().log_prob(z)

        for _ in range(2):
            with pytest.warns(RuntimeWarning, match="TF32.*may decode images inexactly") as caught:
                tf.function(run, autograph=False).get_concrete_function()
            (filename,) = (warning.filename for warning in caught if "TF32" in str(warning.message))
            assert filename == __file__

    def test_model_called_outside_a_trace_does_not_warn_of_tf32(self):
        model = variant("coupling")
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            model.decode(*model.encode(random_images(7, 4)))


@pytest.mark.parametrize("users", [True, False])
def test_contexts_turn_tf32_off_or_on_inside_and_restore_the_setting_of_the_user(users):
    enable(users)
    with full_float32():
        assert not enabled()
        with full_float32(), tensor_float_32():
            assert not enabled()
        assert not enabled()
    assert enabled() is users
    with tensor_float_32():
        assert enabled()
        with full_float32(), tensor_float_32():
            assert not enabled()
        assert enabled()
    assert enabled() is users


# Models that together have every kind of layer and of p(z).
@pytest.mark.parametrize(
    "kind", ["coupling", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("base", "none"))]
)
def test_every_method_of_a_model_computes_in_full_float32(kind):
    model = variant(kind)
    verbs = {**VERBS, **(VERBS_OF_Z if model.config.has_latent else {})}
    blind = {name for name, run in verbs.items() if check(name, run, model)}
    assert blind <= COARSE


# {name: (model, computation)} of programs with a model, and of networks that only some models have.
PROGRAMS = {
    "bounds": ("coupling", lambda m: list(BoundEvaluator(m)(BATCHES, k=2).to_log_row().values())),
    "latent use": ("coupling", lambda m: list(dataclasses.asdict(compute_latent_use(m, BATCHES)).values())),
    "corpus": ("coupling", lambda m: make_image_encoder(m, FIELDS, 4)(IMAGES, np.arange(3), np.zeros(3, np.int32))),
    "test vectors": ("coupling", lambda m: make_test_vectors(m, random_images(sum(batch_sizes(4)), 4, seed=2))),
    "classification": ("classes", lambda m: classify_images(m, labelled())["log_probability"]),
    "outliers": ("none", lambda m: list(OutlierScorer(m)(IMAGES, np.arange(3)).values())),
    "code of each label": ("classes", lambda m: m.code_net.compute_codes()),
    "codes of labels": ("classes", lambda m: m.code_net(LABELS)),
    "z by its label": ("prior-classes", lambda m: m.prior_affine.invert_for_labels(NOISE, LABELS)),
    "map of u": ("dequantization", lambda m: m.dequantizer.encoder(centres(m))),
    "map of u, fast": ("dequantization", lambda m: m.dequantizer.encoder.run_inference(centres(m))),
}


class TestPrograms:
    @pytest.mark.usefixtures("eager")
    @pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "test vectors")) for name in PROGRAMS]
    )
    def test_programs_with_a_model_compute_in_full_float32(self, name):
        kind, run = PROGRAMS[name]
        assert not check(name, run, variant(kind))

    def test_eight_threads_encode_in_full_float32_and_restore_the_switch_for_tf32(self):
        model = variant("coupling")
        images, v = np.asarray(model.quantizer.quantize_pixels(IMAGES)), model.encode(IMAGES).v.numpy()
        a, products, exact = tf.constant([[1.0 + 2**-12]]), set(), []
        unrounded, begin = float(tf.matmul(a, a)[0, 0]), threading.Barrier(8, timeout=PATIENCE)

        def encode():
            begin.wait()
            for _ in range(10):
                codes = model.encode(images, verify=True)
                exact.extend([np.array_equal(codes.v, v), np.array_equal(model.decode(*codes), images)])

        def multiply():
            begin.wait()
            products.update(float(tf.matmul(a, a)[0, 0]) for _ in range(100))

        with emulated_accelerator():
            with ThreadPoolExecutor(8) as threads:
                for ended in [threads.submit(run) for run in [encode, multiply] * 4]:
                    ended.result()
            assert all(exact) and len(exact) == 80
            # Other threads never compute less exactly than the user chose; after the last thread, as the user chose.
            assert products and products <= {1.0, unrounded}
            assert enabled() and tf.matmul(a, a) == 1


# Test crops of the sample photographs that TF32 changes.
CROPS = [28, 101, 173, 27, 138, 174, 62, 30]


@pytest.mark.slow
@pytest.mark.parametrize("run", sorted(path.parent.name for path in RESULTS.glob("*/checkpoints")))
def test_trained_runs_recover_images_that_tf32_would_lose(run):
    names = (*PHOTOGRAPHS[:5], "motorcycle_left", PHOTOGRAPHS[5])
    source = open_source(DataConfig(source="photographs", photographs=names), (32, 32, 3))
    crops, model = load_images(source, "test", max(CROPS) + 1)[0][CROPS], tfdecouple.load_model(RESULTS / run)

    def lost():
        return int((np.asarray(model.decode(*model.encode(crops))) != crops).any((1, 2, 3)).sum())

    with emulated_accelerator(), keep_tf32_switch():
        assert lost() > 0
    # Other kernels also sum in another order.
    with emulated_accelerator(noise=1e-6):
        assert lost() == 0 and enabled()

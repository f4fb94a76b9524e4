"""Additions of other packages: the registries, and the recipes of docs/extending.md, which tests/additions follows."""

import dataclasses
import importlib
import json
import os
import re
import sys
import textwrap
import tomllib

import numpy as np
import pytest
import tensorflow as tf
from helpers.exporting import find_endpoint
from helpers.forked import forked_programs
from helpers.layers import assert_gradients_by_inversion, assert_invertible, build_layer
from helpers.models import LEAST, give_effect, random_images
from helpers.places import ROOT, TESTS, run_python
from helpers.refusals import refusal
from helpers.runs import read_log
from helpers.variants import OF_CLASSES, SMALLEST, fresh
from tensorflow_probability import distributions as tfd

from export.exported_model import ExportedModel
from export.verification.vectors import KerasAnswers, draw_values
from tfdecouple.bijectors import with_log_det
from tfdecouple.config import DataConfig, ModelConfig, TrainingConfig
from tfdecouple.data import sources
from tfdecouple.data.batches import load_images, make_training_batches
from tfdecouple.errors import EXIT_FAILED
from tfdecouple.layers import Coupling
from tfdecouple.model import DecoupledModel
from tfdecouple.model.objective import map_noise_to_z
from tfdecouple.networks.architecture import Architecture
from tfdecouple.registry import ENCODERS, LAYERS, LOGGERS, REGISTRIES, TRANSFORMS, register

pytestmark = pytest.mark.usefixtures("eager_file")
FOLDER = TESTS / "additions"
IMAGES = random_images(16, 4)
ALL_NAMES = {"step_layers": ("reflection",), "conditioner": "far", "encoder": "patches", "prior": "gaussian"}
ALL_NAMES |= {"transform": "skewed", "multiscale_transform": "power"}
# Opens a run and a file of Keras with the same model in a new process, and compares their codes.
OPEN_BOTH = """
import keras, numpy as np, tfdecouple
from tfdecouple.model import DecoupledModel
images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
codes = [model.encode(images) for model in (tfdecouple.load_model("run"), keras.saving.load_model("all.keras"))]
print(all(np.array_equal(*pair) for pair in zip(*codes)) and np.any(codes[0].z != 0))
"""


def write_metadata(folder, name, entry_points):
    """Writes the metadata of an installed package as pip does, given its entry points, {group: {name: place}}."""
    metadata = folder / f"{name}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n", encoding="utf-8")
    lines = [f"[{group}]\n{name} = {place}\n" for group, rows in entry_points.items() for name, place in rows.items()]
    (metadata / "entry_points.txt").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def python_path(tmp_path_factory):
    """The PYTHONPATH of a Python in which the package of additions is installed."""
    folder = tmp_path_factory.mktemp("installed")
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    write_metadata(folder, project["name"], project["entry-points"])
    return os.pathsep.join(map(str, (FOLDER, folder)))


@pytest.fixture(scope="module")
def additions():
    """Registers the additions in this process, without an entry point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        for registry in REGISTRIES.values():
            patch.setattr(registry, "entries", dict(registry.entries))
        sys.modules.pop("mine.additions", None)
        importlib.import_module("mine.additions")
        yield


@pytest.fixture(scope="module")
def trained(additions, eager_file):
    """A model with all additions to networks, after some updates, and its losses."""
    model = DecoupledModel(dataclasses.replace(SMALLEST, alpha=0.5, **ALL_NAMES))
    model.initialize(IMAGES, seed=0)
    noise = tf.random.stateless_normal([16, 4], [0, 1]), tf.random.stateless_uniform([16, 4, 4, 3], [0, 2])
    weights, losses = [variable.value for variable in model.trainable_variables], []
    for _ in range(4):
        with tf.GradientTape() as tape:
            terms = model.bound(IMAGES, noise=noise, training=True)[:3]
            loss = tf.add_n([tf.reduce_mean(term) for term in terms])
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, weights, unconnected_gradients="zero"), 1.0)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.assign_sub(0.05 * gradient)
        losses.append(float(loss))
    return model, losses


class TestRegistry:
    def test_all_entries_of_this_project_exist_and_their_classes_have_their_names(self):
        for kind, one in REGISTRIES.items():
            for name, value in one.items():
                assert value is not None and getattr(value, "name", name) in (name, value), (kind, name)

    def test_installed_names_are_found_without_importing_what_they_name(self, python_path):
        code = f"""
import sys
from tfdecouple.config import ModelConfig, TrainingConfig
ModelConfig(**{ALL_NAMES!r})
print([name for name in sys.modules if name.split(".")[0] in ("mine", "tensorflow")])
TrainingConfig(schedule="cosine", loggers=("lines",))
from tfdecouple.registry import METRICS, FORMATS
print(*METRICS, *FORMATS)
"""
        first, second = run_python("-c", code, PYTHONPATH=python_path).stdout.splitlines()
        assert first == "['mine', 'mine.additions']"
        assert {"brightness", "weights", "graphs"} <= {*second.split()}

    def test_names_that_nobody_registered_are_refused(self):
        wrong = [(ModelConfig, option, value) for option, value in ALL_NAMES.items()]
        for section, option, value in [*wrong, (TrainingConfig, "schedule", "x"), (TrainingConfig, "loggers", ("x",))]:
            message = refusal(lambda section=section, options={option: value}: section(**options))
            assert option in message and "an installed package registers" in message

    @pytest.mark.parametrize("name", ["tensorflow:Module", "mine.networks:Reflection", "os", "../mine", ""])
    def test_config_cannot_name_a_module(self, name):
        for registry_ in (LAYERS, ENCODERS, TRANSFORMS, LOGGERS):
            assert name not in registry_
        assert repr(name) in refusal(lambda: ModelConfig(encoder=name))

    def test_name_is_registered_once_and_kinds_are_known(self, monkeypatch):
        monkeypatch.setattr(LAYERS, "entries", dict(LAYERS.entries))
        register("layer", "new", Coupling)
        assert LAYERS["new"] is Coupling
        for name in ("new", "actnorm"):
            assert repr(name) in refusal(lambda name=name: register("layer", name, "a:b"))
        assert "did you mean layer?" in refusal(lambda: register("layers", "new", "a:b"))

    def test_package_whose_import_fails_is_left_out_with_a_warning(self, tmp_path):
        (tmp_path / "broken.py").write_text("import no_such_module\n", encoding="utf-8")
        write_metadata(tmp_path, "broken", {"tfdecouple": {"x": "broken"}})
        done = run_python("-c", "from tfdecouple.registry import LAYERS; print(*LAYERS)", PYTHONPATH=str(tmp_path))
        assert done.stdout == "actnorm\n" and "no_such_module" in done.stderr and "broken" in done.stderr


def test_code_of_the_page_is_code_of_the_package():
    texts = [path.read_text(encoding="utf-8") for path in FOLDER.rglob("*") if path.suffix in (".py", ".toml")]
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^ {4,}.*\n(?:\n*(?= {4}))?)+", page, re.MULTILINE)
    assert len(blocks) >= 5
    for block in blocks:
        code = re.sub(r"^# .*\n", "", textwrap.dedent(block), flags=re.MULTILINE).strip("\n")
        for part in re.split(r"\n\n(?=from|\[|register)", code):
            assert any(part in textwrap.dedent(text) or textwrap.indent(part, " " * 4) in text for text in texts), part


class TestNetworks:
    def test_model_of_additions_is_planned_trained_exact_and_folded(self, trained):
        model, losses = trained
        shapes = Architecture(model.config).compute_weight_shapes()
        assert shapes == {path: tuple(value.shape) for path, value in model.named_variables().items()}
        assert shapes["flow/level_0_part_0_step_0/reflection/axis"] == (3,)
        assert model.parameter_count() == Architecture(model.config).count_parameters()
        assert np.isfinite(losses).all() and losses[-1] < losses[0]
        # These weights start at 0.
        changed = {path for path, value in model.named_variables().items() if np.any(value != 0)}
        assert {"flow/level_0_part_0_step_0/reflection/axis", "encoder/last_bias", "prior_flow/shift"} <= changed
        np.testing.assert_array_equal(model.decode(*model.encode(IMAGES)), IMAGES)
        channels_last = ExportedModel(model)
        for exported in (channels_last, ExportedModel(model, channels_first=True, other=channels_last)):
            assert [*exported.find_faults()] == []

    def test_prior_is_a_learned_gaussian_that_is_sampled(self, trained):
        model, _ = trained
        shift, log_scale = (model.named_variables()[f"prior_flow/{name}"] for name in ("shift", "log_scale"))
        z = model.encode(IMAGES).z
        right = tf.reduce_sum(tfd.Normal(-shift, tf.exp(-log_scale)).log_prob(z), -1)
        np.testing.assert_allclose(model.prior().log_prob(z), right, rtol=1e-4)
        np.testing.assert_allclose(map_noise_to_z(model, tf.zeros([1, 4]))[0], -shift, atol=1e-6)

    def test_layer_inverts_with_the_log_det_of_its_jacobian(self, additions):
        x = tf.constant(np.random.default_rng(0).normal(size=(2, 2, 2, 4)))
        layer = build_layer(LAYERS["reflection"](dtype="float64"), x.shape)
        assert np.abs(assert_invertible(give_effect(layer, scale=1.0), x)[0] - x).max() > 0.1

    @pytest.mark.parametrize("name", ["skewed", "power"])
    def test_transform_keeps_the_laws_of_layers_and_starts_as_the_identity(self, additions, name):
        transform, rng = TRANSFORMS[name], np.random.default_rng(0)
        x, *raw = tf.constant(rng.standard_normal((1 + transform.parameters, 1, 2, 2, 3)))
        bijector = transform.make_bijector(*raw, alpha=0.5)
        assert np.abs(assert_invertible(with_log_det(bijector), x)[1]).min() > 1e-3
        coupling = build_layer(Coupling(4, transform=name, alpha=0.5, dtype="float64"), x.shape)
        assert_gradients_by_inversion(give_effect(coupling, scale=0.5), x)
        start = transform.make_bijector(*map(tf.zeros_like, raw), alpha=0.5)
        np.testing.assert_allclose(start.forward(x), x, atol=1e-12)
        # TFP would take a constant Jacobian for that of all x.
        for value in (x, 2 * x):
            _, log_det = with_log_det(bijector).forward_and_log_det(value)
            np.testing.assert_allclose(bijector.forward_log_det_jacobian(value, event_ndims=3), log_det, atol=1e-9)


def test_sources_are_opened_from_any_folder_and_listed(additions, tmp_path, monkeypatch):
    source = sources.open_source(DataConfig(source="stripes"), (8, 8, 3))
    batch = next(iter(make_training_batches(source, DataConfig(), batch_size=4, seed=0)))["image"].numpy()
    assert batch.shape == (4, 8, 8, 3) and (batch == batch[:, :, :1, :1]).all() and batch.std() > 0
    ours, theirs = (load_images(source, split, 64)[0] for split in ("train", "test"))
    assert (ours != theirs).any()
    assert "stripes" in sources.list_source_kinds() and "array:PATH" in sources.list_source_kinds()
    with pytest.raises(Exception, match="did you mean stripes?"):
        sources.open_source(DataConfig(source="strips"), (8, 8, 3))
    monkeypatch.chdir(tmp_path)
    images = random_images(40)
    np.save("images.npy", images)
    resolved = sources.resolve_image_paths(DataConfig(source="array:images.npy"))
    monkeypatch.chdir("/")
    assert (load_images(sources.open_source(resolved, (8, 8, 3)), "train", 10)[0] == images[:20:2]).all()
    path = str(tmp_path / "images.npy")
    assert resolved.source == f"array:{path}"
    assert sources.find_source_kind(resolved).locate_images() == ("data.source", path)


def test_endpoint_takes_the_labels_of_a_model_of_classes(additions):
    model = fresh(OF_CLASSES["classes"])
    endpoint, answers, rng = find_endpoint(model.config, "reconstruct"), KerasAnswers(model), np.random.default_rng(0)
    images, labels = endpoint.inputs
    given = {images.name: IMAGES[:3], labels.name: draw_values(labels, rng, 3)}
    (answer,), (right,) = endpoint.answer(answers, given).values(), endpoint.reference(model, given).values()
    np.testing.assert_array_equal(answers.to_pixels(answer), right)
    assert find_endpoint(LEAST, "reconstruct").inputs != endpoint.inputs


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_run_with_all_additions_is_trained_resumed_opened_evaluated_and_exported(python_path, tmp_path):
    def run(*arguments, **variables):
        with forked_programs():
            return run_python(*arguments, folder=tmp_path, PYTHONPATH=variables.get("path", python_path))

    def read(*arguments):
        done = run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    train = [str(ROOT / "train.py"), "--config", str(FOLDER / "config.json"), "--workdir", "run"]
    read(*train, "--steps", "2")
    read(*train)
    rows = read_log(tmp_path / "run")
    assert rows["validation", 4]["largest_v"] > rows["validation", 4]["smallest_scale"] > 0
    rates = [rows["train", step]["learning_rate"] / 0.01 for step in (1, 2, 3, 4)]
    assert rates[0] == pytest.approx(1, rel=1e-4) and rates[2:] == pytest.approx([0.5, 0.146447], rel=1e-4)
    lines = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines if "train/bits_per_dim" in line] == ["1", "2", "3", "4"]
    assert [*(tmp_path / "run" / "images").glob("*-differences.png")]

    evaluate = ["-m", "tfdecouple", "evaluate", "--run", "run", "--split", "validation", "--images", "5"]
    assert "brightness" in read(*evaluate, "--brightness")
    (result,) = (tmp_path / "run").rglob("brightness-validation*.json")
    values = json.loads(result.read_text(encoding="utf-8"))
    assert 0 < values["brightness"] == values["reconstructed"] < 255 and values["source"] == "stripes"

    read("-c", "import tfdecouple; tfdecouple.load_model('run').save('all.keras')")
    assert read("-c", OPEN_BOTH).splitlines()[-1] == "True"
    alone = run("-m", "tfdecouple", "sample", "--run", "run", path="")
    assert alone.returncode == 2 and alone.stderr.count("\n") == 1 and "an installed package registers" in alone.stderr

    names = ("encode", "decode", "score", "reconstruct")
    formats = ("savedmodel", "onnx", "graphs", "weights")
    read("-m", "tfdecouple", "export", "--run", "run", "--to", "out", "--format", *formats, "--endpoints", *names)
    card = json.loads((tmp_path / "out" / "model_card.json").read_text(encoding="utf-8"))
    assert card["endpoints"]["reconstruct"]["onnx"] == "onnx/reconstructor.onnx"
    assert {"encode", "decode", "reconstruct"} <= {*card["formats"]["graphs"]["parity"]}
    assert {*names} == {*card["formats"]["savedmodel"]["parity"]} and "checked" in card["formats"]["weights"]
    assert (tmp_path / "out" / "weights" / "weights.npz").is_file()
    assert "outputs were not checked of weights" in read("-m", "tfdecouple", "export", "--verify", "out")
    graphs = tmp_path / "out" / "graphs"
    (graphs / "encoder.pb").write_bytes((graphs / "decoder.pb").read_bytes())
    assert run("-m", "tfdecouple", "export", "--verify", "out").returncode == EXIT_FAILED

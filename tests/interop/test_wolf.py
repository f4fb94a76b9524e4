import copy
import io
import json
import math

import numpy as np
import pytest
import tensorflow as tf
from helpers.commands import command
from helpers.models import random_images
from helpers.places import DATA
from helpers.refusals import message_of

import tfdecouple
from tfdecouple.errors import WolfError
from tfdecouple.execution.runner import run_functions_eagerly
from tfdecouple.interop.wolf import assign_weights, import_wolf, read_state_dict, translate_config
from tfdecouple.model import DecoupledModel
from tfdecouple.model.objective import compute_label_log_probabilities, dequantize, map_noise_to_z
from tfdecouple.runs.opened_run import load_model

# Largest allowed difference from a result of wolf, the authors' code, divided by the result's largest value.
NEAR = 1e-5
# Names of the arrays in reference.npz that were inputs of wolf, the authors' code; the other arrays are its results.
INPUTS = {"images", "labels", "n_bits", "dequantization_normal_noise", "posterior_noise", "prior_noise"}
INPUTS |= {"v_input", "z_input"}


class Reference:
    """A checkpoint of wolf, the paper authors' PyTorch code, in tests/data: its `config`, and wolf's `arrays`.

    `given` are float32 copies of wolf's inputs, and `results` the names of wolf's results, which are float64.
    """

    def __init__(self, name):
        self.folder = DATA / name
        self.config = json.loads((self.folder / "config.json").read_text())
        self.arrays = dict(np.load(self.folder / "reference.npz"))
        self.images = self.arrays["images"]
        self.given = {n: array.astype("float32") for n, array in self.arrays.items() if n not in ("images", "n_bits")}
        # wolf computed the noise of a learned dequantisation, but took uniform dequantisation noise as an input.
        drawn = set() if "dequantization_normal_noise" in self.arrays else {"dequantization_noise"}
        self.results = sorted(set(self.arrays) - INPUTS - drawn)

    def edited(self, changes):
        """Returns a copy of a config of wolf with {dotted name: value} changed; the value `...` removes an entry."""
        config = copy.deepcopy(self.config)
        for name, value in changes.items():
            *path, last = name.split(".")
            section = config
            for key in path:
                section = section[key]
            section[last] = value
            if value is ...:
                del section[last]
        return config


REFERENCE, CLASSES, DEQUANTIZER = map(Reference, ("wolf_small", "wolf_small_cat", "wolf_small_var"))
FOLDER, CONFIG, edited = REFERENCE.folder, REFERENCE.config, REFERENCE.edited
STATE = read_state_dict(FOLDER / "model.npz")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The model of the run folder that the command makes."""
    run, files = tmp_path_factory.mktemp("imported") / "wolf", (FOLDER / "config.json", FOLDER / "model.npz")
    with run_functions_eagerly():
        options = ("--config", files[0], "--weights", files[1], "--image-shape", 32, 32, 3, "--workdir", run)
        command("import-wolf", *options)
    return tfdecouple.load_model(run)


def compute(reference, model):
    """Returns {name of a result of wolf: what this project's model computes for it}."""
    images, given, labels = reference.images, reference.given, reference.arrays.get("labels")
    noise, posterior_noise = given.get("dequantization_normal_noise"), given.get("posterior_noise", tf.zeros([2, 0]))
    bins, u, results = model.quantizer.find_bins(images), given["dequantization_noise"], {}
    if noise is not None:
        computed_u, log_q = dequantize(model, bins, noise)
        edges = model.quantizer.place_at_edges(bins)
        map_of_u = model.dequantizer.encoder.run_inference(edges)
        results = {"dequantization_noise": computed_u, "log_q_u": log_q, "dequantization_map": map_of_u}
    bound = model.bound(images, noise=(posterior_noise, u if noise is None else noise), labels=labels)
    codes = model.encode(images, labels)
    if labels is None:
        posterior, z = model.posterior(images), given["z"]
        results |= {
            "posterior_mean": posterior.mean(),
            "posterior_log_variance": 2 * tf.math.log(posterior.stddev()),
            "z": posterior.mean() + posterior.stddev() * posterior_noise,
            "log_posterior_z": posterior.log_prob(z),
            "log_prior_z": model.prior().log_prob(z),
        }
    else:
        z, log_probabilities = codes.z, compute_label_log_probabilities(model.config)
        results |= {"class_codes": model.code_net.compute_codes(), "class_log_probabilities": log_probabilities, "z": z}
    if "prior_noise" in given:
        results["prior_sample"] = map_noise_to_z(model, given["prior_noise"])
    x = model.quantizer.place_in_bins(bins, u)
    v, log_det = model.flow.forward_and_log_det(x, z)
    z_input = given.get("z_input", given.get("prior_sample"))
    nats = bound.reconstruction + bound.kl + bound.dequantization
    converted = model.quantizer.convert_to_bits_per_dim(nats, math.prod(images.shape[1:]))
    np.testing.assert_allclose(converted, bound.bits_per_dim, rtol=1e-6)
    return results | {
        "v": v,
        "log_det": log_det,
        "log_likelihood_x_given_z": model.likelihood(z).log_prob(x),
        "kl": bound.kl,
        "bits_per_dim": bound.bits_per_dim,
        "v_bin_centre": codes.v,
        "decoded": model.flow.inverse_and_log_det(given["v_input"], z_input)[0],
    }


@pytest.fixture(scope="module")
def computed(model, tmp_path_factory):
    """{reference: what this project computes with its checkpoint where wolf computed `reference.npz`}."""
    models, folder = {REFERENCE: model}, tmp_path_factory.mktemp("wolf")
    for reference in (CLASSES, DEQUANTIZER):
        files = reference.folder / "config.json", reference.folder / "model.npz"
        models[reference] = import_wolf(*files, image_shape=(32, 32, 3), workdir=folder / reference.folder.name)
    # The weights are read again from the run folder.
    models[CLASSES] = load_model(folder / CLASSES.folder.name)
    with run_functions_eagerly():
        return {reference: compute(reference, model) for reference, model in models.items()}


REFERENCES = {reference.folder.name: reference for reference in (REFERENCE, CLASSES, DEQUANTIZER)}


@pytest.mark.parametrize(
    ("reference", "name"), [(reference, name) for reference in REFERENCES for name in REFERENCES[reference].results]
)
def test_imported_model_computes_the_result_of_the_reference_code(computed, reference, name):
    reference = REFERENCES[reference]
    ours, theirs = np.asarray(computed[reference][name], "float64"), reference.arrays[name]
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.01
    assert np.abs(ours - theirs).max() < NEAR * np.abs(theirs).max()


def write(folder, config, state):
    (folder / "config.json").write_text(json.dumps(config))
    np.savez(folder / "model.npz", **state)
    return folder / "config.json", folder / "model.npz"


TRANSFORMS = ("generator.flow.transform", "generator.flow.prior_transform", "discriminator.prior.transform")
# Without the half of each coupling's outputs that is the scale.
ADDITIVE_STATE = {
    name: array[: len(array) // 2] if "net.conv3.conv." in name or "net.fc3.linear." in name else array
    for name, array in STATE.items()
}
# {name: (changed options of wolf's config, weights, expected options of the imported config)}.
VARIANTS = {
    "additive": (
        dict.fromkeys(TRANSFORMS, "additive"),
        ADDITIVE_STATE,
        {"transform": "additive", "prior_transform": "additive"},
    ),
    "alpha and 5 bits": (
        {"generator.flow.alpha": 0.5, "discriminator.prior.alpha": 0.25},
        STATE,
        {"alpha": 0.5, "prior_alpha": 0.25, "n_bits": 5},
    ),
    # The unconditional flow has no encoder, no prior and in couplings no net from z.
    "without z": (
        {"discriminator": {"type": "base"}, "generator.flow.h_channels": 0},
        {name: a for name, a in STATE.items() if name.startswith("generator.") and "h_net" not in name},
        {"conditioning": "none"},
    ),
}


class TestVariants:
    @pytest.mark.parametrize("name", VARIANTS)
    def test_variant_of_a_checkpoint_is_imported_and_decodes_exactly(self, name, tmp_path, eager):
        changes, state, expected = VARIANTS[name]
        options = {"image_shape": (32, 32, 3), "n_bits": expected.get("n_bits", 8), "workdir": tmp_path / "run"}
        model = import_wolf(*write(tmp_path, edited(changes), state), **options)
        assert {key: getattr(model.config, key) for key in expected} == expected
        images = random_images(1, 32) // 4 + 96
        np.testing.assert_array_equal(model.decode(*model.encode(images)), model.quantizer.quantize_pixels(images))

    def test_missing_options_of_a_checkpoint_have_the_defaults_of_the_reference_code(self):
        options = "alpha factors levels coupling_type transform prior_transform activation inverse in_channels"
        absent = [f"generator.flow.{option}" for option in options.split()]
        absent += ["discriminator.encoder.activation", "discriminator.prior.alpha", "discriminator.prior.transform"]
        given = translate_config(CONFIG, image_shape=(32, 32, 3))
        assert translate_config(edited(dict.fromkeys(absent, ...)), image_shape=(32, 32, 3)) == given


# {reference: [(changed options of its config, words of the message)]}; a prefix of all names stands in front of a list.
UNSUPPORTED = {
    (REFERENCE, ""): [
        ({"dequantizer": {"type": "variational"}}, ["dequantizer.type", "'variational'", "uniform"]),
        ({"discriminator.type": "categorical"}, ["lacks", "discriminator.num_events"]),
        ({"generator.flow.type": "macow"}, ["generator.flow.type", "'macow'", "glow"]),
        ({"generator.flow.h_channels": 5}, ["generator.flow.h_channels", "5"]),
        ({"generator.flow.levels": 3}, ["generator.flow.levels", "3"]),
        ({"discriminator": {"type": "base"}}, ["generator.flow.h_channels"]),
        ({"generator.flow.alpha": 1.5}, ["impossible", "alpha"]),
        ({"generator.flow.num_steps": [1, [1, 1], [1, 1, 1, 1], 1]}, ["impossible", "steps[2]"]),
        ({"generator.flow": ...}, ["lacks", "generator.flow"]),
        ({"generator.flow.num_steps": []}, ["generator.flow.num_steps []", "an entry for each level"]),
        ({"generator.flow.num_steps": [1, ["a"], [1], 1]}, ["impossible", "steps", "'a'"]),
        ({"discriminator.dim": "8", "generator.flow.h_channels": "8"}, ["dim"]),
    ],
    (CLASSES, "discriminator."): [
        ({"dim": 9}, ["generator.flow.h_channels", "8", "9"]),
        ({"probs": [1.0, 2.0]}, ["impossible", "model.class_probabilities has 2"]),
        ({"probs": [1.0], "logits": [0.0]}, ["probs", "logits"]),
        ({"logits": [-1e9] + [0.0] * 9}, ["impossible", "above 0"]),
        ({"type": "mixture"}, ["discriminator.type", "categorical"]),
    ],
    (DEQUANTIZER, "dequantizer."): [
        ({"encoder.type": "local_resnet_gn"}, ["dequantizer.encoder.type", "'local_resnet_gn'"]),
        ({"flow.h_type": "global_linear"}, ["dequantizer.flow.h_type", "'global_linear'"]),
        ({"flow.inverse": True}, ["dequantizer.flow.inverse", "True"]),
        ({"flow.alpha": 1.5}, ["impossible", "dequantization_alpha"]),
        (
            {"flow.levels": 3, "flow.num_steps": [1, [1], 1], "flow.hidden_channels": 8, "flow.factors": [2]}
            | {"flow.prior_transform": "additive"},
            ["dequantizer.flow.prior_transform", "'additive'"],
        ),
    ],
}


@pytest.mark.parametrize(
    ("reference", "changes", "words"),
    [
        (reference, {f"{prefix}{name}": value for name, value in changes.items()}, words)
        for (reference, prefix), cases in UNSUPPORTED.items()
        for changes, words in cases
    ],
)
def test_unsupported_option_of_a_checkpoint_is_named(reference, changes, words):
    config = reference.edited(changes)
    message = message_of(WolfError, lambda: translate_config(config, image_shape=(32, 32, 3)))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(("size", "word"), [(64, "in_dim 64"), (36, "36")])
def test_image_shape_that_does_not_fit_the_checkpoint_is_refused(size, word):
    assert word in message_of(WolfError, lambda: translate_config(CONFIG, image_shape=(size, size, 3)))


STEP = "generator.flow.blocks.0.steps.0"


class TestWeights:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"conv1x1.weight": None}, ["lack", f"{STEP}.conv1x1.weight"]),
            ({"extra": np.zeros(3)}, [f"{STEP}.extra", "does not have"]),
            ({"conv1x1.weight": np.zeros((4, 4), "f4")}, [f"{STEP}.conv1x1.weight", "(4, 4)"]),
            ({"actnorm.bias": np.zeros((5, 1, 1), "f4")}, [f"{STEP}.actnorm.bias", "(5, 1, 1)"]),
            ({"unit.coupling1_up.net.conv1.weight": np.zeros((16, 63), "f4")}, ["net.conv1.weight", "(16, 63)"]),
        ],
        ids=["missing", "superfluous", "shape", "shape-of-vector", "rank"],
    )
    def test_weight_that_does_not_fit_the_config_is_named(self, change, words, model):
        changed = STATE | {f"{STEP}.{name}": array for name, array in change.items()}
        state, new = {name: array for name, array in changed.items() if array is not None}, DecoupledModel(model.config)
        message = message_of(WolfError, lambda: assign_weights(new, state))
        assert [word for word in words if word not in message] == []
        assert not new.initialized.numpy()

    def test_refused_import_leaves_no_run_folder(self, tmp_path):
        paths = write(tmp_path, CONFIG, {**STATE, "extra": np.zeros(3)})
        message_of(WolfError, lambda: import_wolf(*paths, image_shape=(32, 32, 3), workdir=tmp_path / "run"))
        assert not (tmp_path / "run").exists()


def archived(first=b"", flag=0):
    """A compressed .npz file with other bytes at the start of its data, or with a flag: 1 says that it is encrypted."""
    np.savez_compressed(file := io.BytesIO(), a=np.zeros(99))
    content = bytearray(file.getvalue())
    # In a ZIP file, 30 bytes, a name and an extra field, whose lengths are in the bytes 26 and 28, precede the data.
    start = 30 + content[26] + content[28]
    content[start : start + len(first)] = first
    for flags in (6, content.rindex(b"PK\1\2") + 8):
        content[flags] |= flag
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("weights.h5", b"x", "neither .npz nor .pt"),
        ("weights.npz", b"no archive", "no readable .npz"),
        ("weights.npz", (FOLDER / "model.npz").read_bytes()[:1000], "no readable .npz"),
        ("weights.npz", archived(first=b"damaged"), "no readable .npz"),
        ("weights.npz", archived(flag=1), "no readable .npz"),
    ],
)
def test_weights_file_that_is_damaged_or_of_another_format_is_named(tmp_path, name, content, word):
    path = tmp_path / name
    path.write_bytes(content)
    message = message_of(WolfError, lambda: read_state_dict(path))
    assert name in message and word in message


class TestTorch:
    @pytest.mark.parametrize(
        "wrap",
        [lambda state: {"core": state}, dict, lambda state: {f"module.{name}": a for name, a in state.items()}],
        ids=["core", "bare", "data-parallel"],
    )
    def test_pt_file_of_any_wrapping_has_the_same_arrays(self, tmp_path, wrap):
        torch, path = pytest.importorskip("torch"), tmp_path / "model.pt"
        # NumPy has no bfloat16, so such an array becomes float32.
        half = {"half": torch.tensor([0.5, -3.0], dtype=torch.bfloat16)}
        torch.save(wrap({name: torch.from_numpy(array) for name, array in STATE.items()} | half), path)
        state = read_state_dict(path)
        assert state.pop("half").tolist() == [0.5, -3.0] and set(state) == set(STATE)
        for name, array in state.items():
            np.testing.assert_array_equal(array, STATE[name])

    @pytest.mark.parametrize(
        ("wrap", "words"),
        [
            (lambda state: {**state, "epoch": 3}, ["'epoch'", "of type int, which is no tensor"]),
            (lambda state: {"model": state}, ["'model'", "of type dict, which is no tensor"]),
            (lambda state: [state["a"]], ["of type list, no mapping"]),
        ],
    )
    def test_pt_file_without_a_state_dict_is_named(self, tmp_path, wrap, words):
        torch, path = pytest.importorskip("torch"), tmp_path / "model.pt"
        torch.save(wrap({"a": torch.zeros(2)}), path)
        message = message_of(WolfError, lambda: read_state_dict(path))
        assert [word for word in ["model.pt", "state dict", *words] if word not in message] == []


@pytest.mark.parametrize("given", ["probs", "logits"])
def test_unequal_probabilities_of_classes_are_imported(given):
    shares = np.random.default_rng(1).uniform(0.2, 3, 7)
    numbers = shares if given == "probs" else np.log(shares) + 5
    edited = CLASSES.edited({"discriminator.num_events": 7, f"discriminator.{given}": numbers.tolist()})
    model = DecoupledModel(translate_config(edited, image_shape=(32, 32, 3)))
    np.testing.assert_allclose(compute_label_log_probabilities(model.config), np.log(shares / shares.sum()), rtol=1e-6)

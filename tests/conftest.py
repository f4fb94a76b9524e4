"""What the tests share: two logical CPU devices, tiny models, and weights that have an effect."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import math
import pathlib
import random
import shutil
import signal
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from skips import pytest_addoption, pytest_configure, pytest_sessionfinish, pytest_terminal_summary  # noqa: F401

from tfdecouple.config import Config, DataConfig, ModelConfig, TrainingConfig

# A shell lets background jobs ignore Ctrl-C, and nohup a terminal's end; programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Before any operation runs. Ordinary computations use the first device; the tests of several devices use both.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
# As the programs do: Grappler's rewriting costs more time than these small graphs take to run.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Seconds after which a program is taken to hang. No test fails because a machine is slow: nothing takes a tenth of it.
PATIENCE = 1800

# The smallest config with every part: three levels, both parts of an inner level, odd channel counts (3 and 9).
TINY = ModelConfig(
    image_size=8,
    latent_dim=4,
    steps=(1, (1, 1), 1),
    hidden_channels=(4, 6, 6),
    alpha=0.8,
    encoder_channels=(4, 6),
    encoder_out_channels=2,
    prior_steps=1,
    prior_hidden=6,
    prior_alpha=0.8,
)


def give_effect(layer, seed=0, scale=0.1):
    """Moves every trainable weight of a layer or model off its start, where couplings are the identity."""
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign_add((scale * rng.standard_normal(tuple(variable.shape))).astype(variable.dtype))
    return layer


def every_weight_has_a_gradient(layer, loss):
    """Asserts that the gradient of `loss()` reaches every trainable weight of a layer or model."""
    with tf.GradientTape() as tape:
        value = loss()
    variables = layer.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(value, [v.value for v in variables]), strict=True):
        assert gradient is not None, variable.path
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), variable.path


def negative_log_likelihood(layer, x, condition):
    """The loss of a layer as a whole flow to N(0, I), up to a constant."""
    y, log_det = layer.forward_and_log_det(x, condition)
    return tf.reduce_sum(tf.square(y)) / 2 - tf.reduce_sum(log_det)


def random_images(count=4, size=8, seed=0):
    """Uniform noise, uint8 `[count, size, size, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def jacobian_log_det(forward, x, condition=None):
    """log |det dy/dx| of each entry of x, float64 `[batch]`, by automatic differentiation.

    Every entry is repeated once for each of its outputs: the gradient of output k of copy k is row k of the Jacobian,
    so that one backward pass gives all rows.
    """
    size = math.prod(x.shape[1:])
    copies = tf.repeat(x, size, 0)
    with tf.GradientTape() as tape:
        tape.watch(copies)
        y = forward(copies, None if condition is None else tf.repeat(condition, size, 0))[0]
    chosen = tf.tile(tf.eye(size, dtype=y.dtype), [x.shape[0], 1])
    rows = tape.gradient(y, copies, tf.reshape(chosen, tf.shape(y)))
    return np.linalg.slogdet(np.reshape(rows, [x.shape[0], size, size]))[1]


def walk_with(network, x, condition, look):
    """Walks through an invertible network, calling `look(leaf, x, condition)` before each elementary layer."""

    def visit(leaf, h, z):
        look(leaf, h, z)
        return leaf.forward_and_log_det(h, z)[0]

    return network.walk(x, condition, visit)


@pytest.fixture
def eager():
    """Runs TensorFlow's functions without tracing them: quicker where each would run once or twice."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(autouse=True)
def seeded():
    """Makes the random start of weights the same in every run of a test: Keras draws their seeds from `random`."""
    random.seed(0)


@pytest.fixture(scope="session")
def tiny_model():
    """A tiny model, initialised, whose every weight has an effect. Do not change it."""
    from tfdecouple.model import DecoupledModel

    random.seed(0)
    model = DecoupledModel(TINY)
    model.initialize(random_images(16))
    return give_effect(model)


# For whole runs, where tracing is what takes time: two levels.
SMALL = ModelConfig(
    image_size=8,
    latent_dim=4,
    steps=(1, 1),
    hidden_channels=(4, 6),
    alpha=0.8,
    encoder_channels=(4,),
    encoder_out_channels=2,
    prior_steps=1,
    prior_hidden=6,
    prior_alpha=0.8,
)


def user_environment():
    """The environment for programs as a user has it: without the setting by which tests keep TensorFlow quiet."""
    return {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


def run_config(images, *, model=SMALL, **training):
    """A run of ten steps on a folder of images, which evaluates and saves at 5 and 10."""
    options = {
        "steps": 10,
        "batch_size": 8,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "ema_decay": 0.5,
        "init_images": 16,
        "log_every": 2,
        "evaluate_every": 5,
        "checkpoint_every": 5,
        "evaluation_batch_size": 4,
        "keep_checkpoints": 2,
    }
    return Config(
        name="tiny",
        model=model,
        data=DataConfig(source=f"folder:{images}", horizontal_flip=True, pad_and_crop=1),
        training=TrainingConfig(**{**options, **training}),
    )


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A folder of 20 images for training, 6 for validation and 5 for test."""
    folder = tmp_path_factory.mktemp("images")
    images = iter(random_images(31))
    for split, count in {"train": 20, "validation": 6, "test": 5}.items():
        (folder / split).mkdir()
        for number in range(count):
            Image.fromarray(next(images)).save(folder / split / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def finished_run(image_folder, tmp_path_factory):
    """The run folder of a finished run of `run_config(image_folder)`. Do not change it."""
    from tfdecouple.training import train

    folder = tmp_path_factory.mktemp("finished") / "run"
    train(run_config(image_folder), folder)
    return folder


def write_run(folder, model, **config):
    """Makes a run folder of a model, as a training of one step would leave it."""
    from tfdecouple.storage.checkpoints import CheckpointFolder
    from tfdecouple.storage.files import write_text

    write_text(folder / "config.json", Config(name=folder.name, model=model.config, **config).to_json())
    CheckpointFolder(folder / "checkpoints").write("best", 1, {"model": model.named_variables()})
    return folder


def let_z_show(model):
    """Strengthens what leads from an image over z to the pixels: at random weights z would change none."""
    for variable in model.trainable_variables:
        if "condition_kernel" in variable.path or variable.path.endswith("encoder/last_gain"):
            variable.assign(8 * variable)
    return model


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run folder of a tiny model in which z shows, named "tiny". Do not change it."""
    from tfdecouple.model import DecoupledModel

    random.seed(0)
    model = DecoupledModel(TINY)
    model.initialize(random_images(16))
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", let_z_show(give_effect(model)))


@pytest.fixture(scope="session")
def exported(tiny_run, tmp_path_factory):
    """An export folder of `tiny_run`: SavedModel, ONNX files and int8 ones. Do not change it."""
    from export.pipeline import Request, export

    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export(Request(run=tiny_run, to=folder, precisions=("int8",)), say=lambda text: None)
    return folder


@pytest.fixture(scope="session")
def npm_example(tmp_path_factory):
    """Returns a function that makes a copy of a folder of examples/ with its npm packages: `npm_example("web")`.

    The packages are those that `.ci/install-tools` has installed; otherwise npm installs them, as the examples say.
    """
    copies = {}

    def copy(name):
        if name not in copies:
            folder = tmp_path_factory.mktemp("npm") / name
            ignored = shutil.ignore_patterns("node_modules", "package-lock.json", "site")
            shutil.copytree(ROOT / "examples" / name, folder, ignore=ignored)
            installed = ROOT / ".venv" / "npm" / name
            wanted = (folder / "package.json").read_bytes()
            if installed.is_dir() and (installed / "package.json").read_bytes() == wanted:
                (folder / "node_modules").symlink_to(installed / "node_modules")
            else:
                environment = {**user_environment(), "ONNXRUNTIME_NODE_INSTALL": "skip"}
                command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
            copies[name] = folder
        return copies[name]

    return copy


@pytest.fixture
def disk(tmp_path):
    """Makes file systems of a given size; skips where none can be made."""
    made = []

    def make(kilobytes):
        folder = tmp_path / f"disk-{kilobytes}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small file system needs the right to mount one")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)

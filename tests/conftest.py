"""What the tests share: two logical CPU devices, tiny models, and weights that have an effect."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import gc
import json
import random
import shutil
import signal
import subprocess
import sys

import pytest
from helpers import skips
from helpers.eager import run_eagerly
from helpers.forked import forked_programs
from helpers.once import copied_once, made_once
from helpers.places import ROOT, user_environment
from helpers.skips import pytest_addoption, pytest_sessionfinish, pytest_terminal_summary  # noqa: F401
from PIL import Image

# A shell lets background jobs ignore Ctrl-C, and nohup a terminal's end; programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# A program, which finds `forked` beside itself; there are no examples in it.
collect_ignore = ["helpers/fork_server.py"]
# Looked through for examples, of which they have none, one folder's would be taken for another's.
collect_ignore_glob = ["*/conftest.py"]


def pytest_configure(config):
    """Sets TensorFlow up where tests run: pytest, where it leaves them to others, would keep these waiting."""
    skips.pytest_configure(config)
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        import tensorflow as tf

        # Before any operation runs. Ordinary computations use the first device; tests of several devices use both.
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )
        # As the programs do: Grappler's rewriting costs more time than these small graphs take to run.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def pytest_collection_finish():
    """Whoever collects garbage from now on need not look at all that has been imported, which stays.

    It is collected at the end of each file, and before that seldom: graphs are made of many small objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture
def eager():
    """Runs TensorFlow's functions without tracing them: quicker where each would run once or twice."""
    with run_eagerly():
        yield


@pytest.fixture(scope="module")
def eager_file():
    """The same for all tests of a file, and for what they share."""
    with run_eagerly():
        yield


@pytest.fixture(autouse=True, scope="module")
def traced_again():
    """Fails where a file leaves TensorFlow running functions eagerly: the next one would test something else."""
    yield
    if tensorflow := sys.modules.get("tensorflow"):
        assert not tensorflow.config.functions_run_eagerly(), "this file has functions run eagerly after its end"


@pytest.fixture(autouse=True, scope="module")
def let_go(request):
    """Lets go of what a file has traced and keeps in its caches; otherwise a process holds gigabytes in the end."""
    from helpers.traces import traces_released

    with traces_released():
        yield
        for value in vars(request.module).values():
            if getattr(value, "__module__", None) == request.module.__name__ and hasattr(value, "cache_clear"):
                value.cache_clear()
    gc.collect()
    # What is left is for other files as well: the next need not look at it.
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    """Makes the random start of weights the same in every run of a test: Keras draws their seeds from `random`."""
    random.seed(0)


@pytest.fixture(autouse=True)
def hooks_restored(monkeypatch):
    """Gives back what an interrupted program silences for the rest of its process, which here goes on."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


@pytest.fixture(scope="session")
def tiny_model():
    """A tiny model, initialised, whose every weight has an effect. Do not change it."""
    from helpers.models import TINY, give_effect, random_images

    from tfdecouple.model import DecoupledModel

    random.seed(0)
    model = DecoupledModel(TINY)
    model.initialize(random_images(16))
    return give_effect(model)


@pytest.fixture
def traced(eager):
    """Traced functions after all, for what is called often enough."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(False)


@pytest.fixture
def small_model(traced):
    """The model that most tests of the verbs share. Do not change it."""
    from helpers.variants import variant

    return variant("coupling")


@pytest.fixture
def of_bits(tiny_model, traced, monkeypatch):
    """The tiny model at some number of bits, on which no weight depends."""
    from helpers.models import TINY

    def choose(n_bits):
        monkeypatch.setattr(tiny_model, "config", dataclasses.replace(TINY, n_bits=n_bits))
        return tiny_model

    return choose


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A folder of 20 images for training, 6 for validation and 5 for test."""
    from helpers.models import random_images

    def make(folder):
        images = iter(random_images(31))
        for split, count in {"train": 20, "validation": 6, "test": 5}.items():
            (folder / split).mkdir()
            for number in range(count):
                Image.fromarray(next(images)).save(folder / split / f"{number}.png")

    return made_once(tmp_path_factory, "images", make)


@pytest.fixture(scope="session")
def watched_run(image_folder, tmp_path_factory):
    """The run folder of a finished run of `run_config(image_folder)`, and how often it read from the devices."""

    def make(folder):
        from helpers.reads import Reads
        from helpers.runs import run_config

        from tfdecouple.training import train

        with Reads().counted() as reads:
            train(run_config(image_folder), folder / "run")
        (folder / "reads.json").write_text(json.dumps(list(reads.after.items())))

    folder = copied_once(tmp_path_factory, "finished", make)
    return folder / "run", dict(json.loads((folder / "reads.json").read_text()))


@pytest.fixture(scope="session")
def finished_run(watched_run):
    """The run folder of a finished run of `run_config(image_folder)`. Do not change it."""
    return watched_run[0]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run folder of a small model in which z shows, named "tiny". Do not change it."""

    def make(folder):
        from helpers.models import SMALL, give_effect, let_z_show, random_images
        from helpers.runs import write_run

        from tfdecouple.model import DecoupledModel

        random.seed(0)
        model = DecoupledModel(SMALL)
        model.initialize(random_images(16))
        write_run(folder / "tiny", let_z_show(give_effect(model)))

    return copied_once(tmp_path_factory, "runs", make) / "tiny"


@pytest.fixture
def quiet(monkeypatch):
    """However slow the machine, nothing is said of progress."""
    monkeypatch.setattr("tfdecouple.runtime.progress._FIRST", 1e6)


@pytest.fixture
def forked():
    """Programs are forked from a process that has imported TensorFlow (`helpers/forked.py`)."""
    with forked_programs():
        yield


@pytest.fixture(scope="session")
def exported(tiny_run, tmp_path_factory):
    """An export folder of `tiny_run`: SavedModel and ONNX files. Do not change it."""

    def make(folder):
        from export.pipeline import ExportConfig, export

        with forked_programs():
            export(ExportConfig(run=tiny_run, to=folder / "tiny"), report=lambda text: None)

    return copied_once(tmp_path_factory, "exported", make) / "tiny"


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

"""Pytest's fixtures and hooks for all tests: two logical CPU devices, tiny models, run folders, exports, cleanup."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
import gc
import json
import random
import shutil
import signal
import subprocess
import sys

import pytest
from helpers.forked import forked_programs
from helpers.places import ROOT, copy_once, make_once, read_output
from helpers.skips import SkipChecker

# Some tests import benchmarks.
sys.path.insert(0, str(ROOT))

# Tests interrupt programs, which would inherit an ignored SIGINT (of a background job) or SIGHUP (of nohup).
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# With --doctest-modules pytest would import every conftest.py, and modules of the same name clash; and the additions,
# which then would be registered in all tests.
collect_ignore_glob = ["*/conftest.py", "additions/*"]


def pytest_addoption(parser):
    parser.addini("strict_skips", "a skip that is not in tests/expected_skips.txt fails the run", "bool", default=False)


def pytest_configure(config):
    """Sets TensorFlow up in each process of pytest that runs tests, and registers the check of skips."""
    # The controller of pytest-xdist gets the reports of all workers.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipChecker(config), "skips")
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        import tensorflow as tf

        # Tests of several devices need two logical ones, which TensorFlow makes only before its first operation.
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )
        # Grappler, TensorFlow's graph optimizer, is off: on small graphs it takes more time than it saves.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def pytest_collection_finish():
    """Makes garbage collection rare, because TensorFlow graphs have many objects; `release_memory` runs it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


def run_eagerly():
    from tfdecouple.execution.runner import run_functions_eagerly

    with run_functions_eagerly():
        yield


# Makes each `tf.function` run eagerly during a test; for one or two calls this is faster than tracing.
eager = pytest.fixture(run_eagerly, name="eager")
# The same during all tests of a file, and in the file's module-scoped fixtures.
eager_file = pytest.fixture(run_eagerly, name="eager_file", scope="module")


@pytest.fixture(autouse=True, scope="module")
def release_memory(request):
    """Frees traced functions and empties the file's `functools` caches after each test file; else gigabytes add up."""
    from helpers.traces import release_traces

    with release_traces():
        yield
        if tensorflow := sys.modules.get("tensorflow"):
            assert not tensorflow.config.functions_run_eagerly(), "the next file would test other code"
        for value in vars(request.module).values():
            if getattr(value, "__module__", None) == request.module.__name__ and hasattr(value, "cache_clear"):
                value.cache_clear()
    gc.collect()
    # The objects that are left now live until the process ends, so later collections need not visit them.
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    """Seeds Python's `random`, from which Keras draws its seeds, so that a test's models always start the same."""
    random.seed(0)


@pytest.fixture(autouse=True)
def hooks_restored(monkeypatch):
    """Restores `sys.unraisablehook` after each test, because programs of the project replace it when interrupted."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


@pytest.fixture(scope="session")
def tiny_model():
    """An initialised `DecoupledModel` of the config TINY, whose weights all matter. Tests share it: never change it."""
    from helpers.models import TINY, give_effect, random_images

    from tfdecouple.model import DecoupledModel

    random.seed(0)
    model = DecoupledModel(TINY)
    model.initialize(random_images(16))
    return give_effect(model)


@pytest.fixture
def traced(eager):
    """Turns tracing of `tf.function` on again for a test that calls a function often, in a file that runs eagerly."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """The path of a folder of PNG images in three subfolders: train (20 images), validation (6) and test (5)."""
    from helpers.models import random_images, save_images

    def make(folder):
        counts = {"train": 20, "validation": 6, "test": 5}
        names = [f"{split}/{number}.png" for split, count in counts.items() for number in range(count)]
        save_images(folder, dict(zip(names, random_images(31), strict=True)))

    return make_once(tmp_path_factory, "images", make)


@pytest.fixture(scope="session")
def watched_run(image_folder, tmp_path_factory):
    """The folder of a finished training run, and {count of finished steps: count of values copied to the host}."""

    def make(folder):
        from helpers.runs import count_reads, run_config

        from tfdecouple.training import train

        with count_reads() as reads:
            train(run_config(image_folder), folder / "run")
        (folder / "reads.json").write_text(json.dumps(list(reads.items())))

    folder = copy_once(tmp_path_factory, "finished", make)
    return folder / "run", dict(json.loads((folder / "reads.json").read_text()))


@pytest.fixture(scope="session")
def finished_run(watched_run):
    """The path of the run folder of a finished training run of ten steps. Tests share it: never change it."""
    return watched_run[0]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The path of a run folder of a small model whose z affects decoded images. Tests share it: never change it."""

    def make(folder):
        from helpers.models import SMALL, give_effect, random_images, strengthen_z
        from helpers.runs import write_run

        from tfdecouple.model import DecoupledModel

        random.seed(0)
        model = DecoupledModel(SMALL)
        model.initialize(random_images(16))
        write_run(folder / "tiny", strengthen_z(give_effect(model)))

    return copy_once(tmp_path_factory, "runs", make) / "tiny"


@pytest.fixture
def bfloat16():
    """Skips a test of bfloat16 if the variable ONEDNN_MAX_CPU_ISA, which TensorFlow does not read, withholds it."""
    import tensorflow as tf

    if "ONEDNN_MAX_CPU_ISA" in os.environ:
        try:
            tf.nn.conv2d(tf.ones([1, 2, 2, 1], tf.bfloat16), tf.ones([1, 1, 1, 1], tf.bfloat16), 1, "SAME")
        except tf.errors.AbortedError:
            pytest.skip("ONEDNN_MAX_CPU_ISA withholds bfloat16 from oneDNN")


@pytest.fixture
def quiet(monkeypatch):
    """Turns off the progress messages that the project's programs print when work takes long, as on slow machines."""
    monkeypatch.setattr("tfdecouple.system.progress._FIRST", 1e6)


@pytest.fixture
def forked():
    """During a test, `subprocess` forks Python programs from a process that has imported TensorFlow, to start fast."""
    with forked_programs():
        yield


@pytest.fixture(scope="session")
def exported(tiny_run, tmp_path_factory):
    """The path of an export folder, made from the run `tiny_run`. Tests share the folder: never change it."""

    def make(folder):
        from export.pipeline import export

        with forked_programs():
            export(run=tiny_run, to=folder / "tiny")

    return copy_once(tmp_path_factory, "exported", make) / "tiny"


@pytest.fixture(scope="session")
def npm_example(tmp_path_factory):
    """A function of `name` that copies examples/NAME, adds the npm packages it needs, and returns the copy's path."""

    @functools.cache
    def copy(name):
        folder = tmp_path_factory.mktemp("npm") / "examples" / name
        ignored = shutil.ignore_patterns("node_modules", "package-lock.json", "site")
        shutil.copytree(ROOT / "examples" / name, folder, ignore=ignored)
        # An example imports modules of the web page.
        (folder.parents[1] / "export").symlink_to(ROOT / "export")
        installed = ROOT / ".venv" / "npm" / name
        wanted = (folder / "package.json").read_bytes()
        if installed.is_dir() and (installed / "package.json").read_bytes() == wanted:
            (folder / "node_modules").symlink_to(installed / "node_modules")
        else:
            options = {"folder": folder, "ONNXRUNTIME_NODE_INSTALL": "skip"}
            read_output("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", **options)
        return folder

    return copy


@pytest.fixture
def disk(tmp_path):
    """A function of `kilobytes` that mounts a file system of this size and returns its path, or skips the test."""
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

import os
import signal

import pytest
import tensorflow as tf
from helpers.places import run_python
from helpers.refusals import message_of

from tfdecouple.errors import ConfigError
from tfdecouple.execution.run_mode import count_shards
from tfdecouple.system import process
from tfdecouple.system.progress import Counter
from tfdecouple.system.signals import postpone_signals
from tfdecouple.training.workers import make_device_input_options

ALLOW_GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"


@pytest.fixture
def set_to(monkeypatch):
    """The settings that TensorFlow gets, by name; `gpus` is the list of pretended GPUs."""
    settings = {"gpus": []}
    # The variable is set first, so that its value is restored after the test.
    monkeypatch.setenv(ALLOW_GROWTH, "")
    for name in (ALLOW_GROWTH, process.SHARDS, "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("list_physical_devices", "get_visible_devices"):
        monkeypatch.setattr(tf.config, name, lambda kind=None: settings["gpus"] if kind == "GPU" else [])
    monkeypatch.setattr(process, "_keep_memory", lambda: None)
    monkeypatch.setattr(process.gc, "set_threshold", lambda *_: None)
    monkeypatch.setattr(tf.config.optimizer, "set_experimental_options", settings.update)
    for kind in ("intra", "inter"):
        name = f"{kind}_op_parallelism_threads"
        monkeypatch.setattr(tf.config.threading, f"set_{name}", lambda n, kind=kind: settings.__setitem__(kind, n))
        monkeypatch.setattr(tf.config.threading, f"get_{name}", lambda kind=kind: settings.get(kind, 0))
    return settings


PROGRAM = """
import sys
from tfdecouple.system.process import run_program, start_tensorflow

def main():
    start_tensorflow()
    import tensorflow as tf
    threading = tf.config.threading
    print([threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()])
    return 3

sys.exit(run_program(main))
"""


class TestProcess:
    def test_postponed_signal_is_handled_at_the_end(self):
        with pytest.raises(KeyboardInterrupt), postpone_signals(signal.SIGINT):
            signal.raise_signal(signal.SIGINT)
            finished = True
        assert finished

    def test_graph_optimizer_is_on_only_with_gpus(self, set_to):
        process.start_tensorflow()
        assert set_to["disable_meta_optimizer"]
        assert make_device_input_options().experimental_per_replica_buffer_size == 1
        set_to["gpus"] = ["GPU:0", "GPU:1"]
        process.start_tensorflow()
        assert not set_to["disable_meta_optimizer"]
        assert make_device_input_options().experimental_per_replica_buffer_size == 2

    @pytest.mark.usefixtures("set_to")
    def test_memory_of_gpus_grows_unless_the_user_forbids_it(self, monkeypatch):
        process.start_tensorflow()
        assert os.environ[ALLOW_GROWTH] == "true"
        monkeypatch.setenv(ALLOW_GROWTH, "false")
        process.start_tensorflow()
        assert os.environ[ALLOW_GROWTH] == "false"

    @pytest.mark.parametrize(
        ("threads", "variable", "expected"),
        [(1, "", [1, 1, 1]), (2, "", [1, 2, 2]), (4, "0", [4, 4, 1]), (8, "3", [2, 6, 3])],
    )
    def test_two_threads_get_a_shard_each_and_more_share_one(self, set_to, monkeypatch, threads, variable, expected):
        monkeypatch.setenv(process.SHARDS, variable)
        process.divide_cores(threads)
        assert [set_to["intra"], set_to["inter"], count_shards()] == expected

    @pytest.mark.parametrize("value", ["-1", "two", "99999"])
    def test_invalid_count_of_shards_is_refused(self, set_to, monkeypatch, value):
        monkeypatch.setenv(process.SHARDS, value)
        message = message_of(ConfigError, process.start_tensorflow)
        assert process.SHARDS in message and repr(value) in message and "must be" in message

    @pytest.mark.usefixtures("forked")
    def test_program_uses_every_core_and_returns_its_status(self):
        done = run_python(
            "-c", PROGRAM, **{name: None for name in os.environ if name.startswith(("TF_NUM_", "MALLOC_"))}
        )
        cores = len(os.sched_getaffinity(0))
        threads = cores // 2 if cores == 2 else cores
        assert (done.returncode, done.stdout, done.stderr) == (3, f"[{threads}, {cores}]\n", "")

    @pytest.mark.parametrize("users", [None, "0"])
    def test_import_switches_onednn_on_unless_the_user_set_it(self, users):
        program = "import os, tfdecouple; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
        assert run_python("-c", program, TF_ENABLE_ONEDNN_OPTS=users).stdout == f"{users or 1}\n"


def test_progress_of_training_ignores_a_full_disk(capsys, monkeypatch):
    monkeypatch.setattr("tfdecouple.system.progress._FIRST", 0.0)
    with open("/dev/full", "w") as full, Counter("step", 2, file=full) as progress:
        progress(1)
        progress.print_line("more")
        progress(2)
    err = capsys.readouterr().err
    assert err == (
        "cannot write to standard output (No space left on device); training continues without this output, and "
        "metrics.jsonl has the metrics\n"
    )

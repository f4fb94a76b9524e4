"""Programs that are forked from a process that has imported TensorFlow are what new processes are."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import forked
from helpers.places import PATIENCE

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(autouse=True)
def _can():
    if forked.ForkedPopen.server() is None:
        pytest.skip("a library starts threads as it is imported")


def test_threads_that_start_programs_at_once_have_one_server():
    def make():
        time.sleep(0.1)
        return object()

    one = forked._once(make)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: one(), range(2))
    assert first is second


# What a program is given, as it sees it.
LOOK = """
import json, os, sys
look = {
    "name": __name__, "arguments": sys.argv[1:], "path": sys.path, "folder": os.getcwd(), "input": sys.stdin.read(),
    "environment": {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"},
    "session": os.getsid(0) == os.getpid(), "modules": sorted({"helpers", "forked"} & set(sys.modules)),
    "streams": [[stream.encoding, stream.errors, stream.line_buffering] for stream in (sys.stdout, sys.stderr)],
    "main": sys.modules["__main__"].__dict__ is globals(),
}
print(json.dumps(look))
print("last", file=sys.stderr)
sys.exit(7)
"""


def is_forked(process):
    """Whether a process was not started by this one."""
    return process._told is not None


def looks(arguments, folder, **options):
    """Status, errors and what a program sees, forked and anew."""
    results = []
    for popen in (forked.ForkedPopen, forked._Popen):
        process = popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, **options,
        )  # fmt: skip
        out, err = process.communicate("given", timeout=PATIENCE)
        results.append((process.returncode, err, json.loads(out)))
        assert popen is forked._Popen or is_forked(process)
    return results


@pytest.mark.parametrize("how", ["code", "module", "file"])
def test_a_program_is_given_what_a_new_process_is(tmp_path, how):
    (tmp_path / "look.py").write_text(LOOK)
    arguments = {"code": ["-c", LOOK], "module": ["-m", "look"], "file": [str(tmp_path / "look.py")]}[how]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "more"), "OF_THE_TEST": "é"}
    ours, theirs = looks([*arguments, "a", "--b"], tmp_path, env=environment, start_new_session=True)
    assert ours == theirs
    assert ours[:2] == (7, "last\n") and ours[2]["input"] == "given"


def test_errors_and_signals_end_it_as_they_end_a_new_process():
    for code, said in {"1 / 0": "ZeroDivisionError", "raise SystemExit('oh no')": "oh no"}.items():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1 and said in done.stderr.splitlines()[-1]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        code = "import time; print(flush=True); time.sleep(1000)"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert is_forked(process) and process.stdout.readline() == b"\n" and process.poll() is None
        process.send_signal(number)
        assert process.wait(PATIENCE) == -number
        process.stdout.close()


def test_one_that_hangs_is_ended():
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", "import time; time.sleep(1000)"], timeout=0.2)


def test_files_are_handed_over():
    reader, writer = os.pipe()
    code = f"import os; os.write({writer}, b'here')"
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[writer]) as process:
        os.close(writer)
        assert os.read(reader, 10) == b"here" and os.read(reader, 10) == b""
    assert is_forked(process) and process.returncode == 0
    os.close(reader)


def test_tensorflow_is_there_and_has_not_started():
    code = (
        "import os, sys\n"
        "print('tensorflow' in sys.modules, 'tfdecouple' in sys.modules, len(os.listdir('/proc/self/task')))\n"
        "from tensorflow.python.eager import context; print(context.context()._initialized)\n"
        "import tensorflow as tf; tf.config.threading.set_intra_op_parallelism_threads(3)\n"
        "print(float(tf.reduce_sum(tf.ones([1000, 1000]))), tf.config.threading.get_intra_op_parallelism_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "1", "False", "1000000.0", "3"]


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["-I", "-c"], {}),
        (["-c"], {"TF_ENABLE_ONEDNN_OPTS": "0"}),
        (["-c"], {"PYTHONIOENCODING": "ascii"}),
        (["-c"], {"MALLOC_ARENA_MAX": "1"}),
        (["-c"], {"LC_ALL": "C"}),
    ],
)
def test_what_could_differ_is_started_anew(arguments, environment):
    command = [sys.executable, *arguments, "import sys; sys.exit('tensorflow' in sys.modules)"]
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        pass
    assert not is_forked(process) and process.returncode == 0


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_program_starts_is_forked_where_it_leads_no_session(alone):
    inner = "import sys; sys.exit('tensorflow' in sys.modules)"
    code = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {inner!r}]).returncode)"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=alone) as process:
        pass
    assert is_forked(process) and process.returncode == (not alone)


def test_other_programs_are_started_as_ever(tmp_path):
    assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
    with pytest.raises(FileNotFoundError):
        subprocess.run([str(tmp_path / "none")])
    with pytest.raises(FileNotFoundError):
        subprocess.run([sys.executable, "-c", "1"], cwd=tmp_path / "none")

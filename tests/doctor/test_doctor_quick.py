import json
import os
import re
import sys

import pytest
from helpers.places import PATIENCE, ROOT, read_output, run_python

pytestmark = pytest.mark.slow


def test_quick_doctor_passes_on_two_logical_devices(tmp_path, forked):
    out = tmp_path / "out"
    options = ["--quick", "--only", "exactness", "devices", "speed", "--devices", 2, "--timeout", PATIENCE]
    options += ["--out", out]
    command = [sys.executable, "-m", "tfdecouple", "doctor", *options]
    printed = read_output(*command, folder=tmp_path, PYTHONPATH=str(ROOT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    plain = json.loads((out / "doctor.json").read_text(encoding="utf-8"))
    assert plain["holds"] and list(plain["checks"]) == ["build", "exactness", "devices", "speed"]
    # docs/results/doctor.md lists the fields.
    documented = (ROOT / "docs" / "results" / "doctor.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in documented for name in plain)
    of = {name: {result["what"]: result for result in results} for name, results in plain["checks"].items()}
    assert {"Keras, CPU:0", "Keras, CPU:1"} == set(of["exactness"])
    assert [result["holds"] for result in of["devices"].values()] == [True]
    phases = {result["figures"]["phase"] for result in of["speed"].values() if "phase" in result["figures"]}
    assert phases == {"train", "eval", "encode", "decode"}
    assert any(result["figures"].get("devices") == 2 for result in of["speed"].values())
    holds = [result["holds"] for every in of.values() for result in every.values()]
    assert holds.count(True) == 3 and False not in holds
    # What people see says the same, and how far it was on the way.
    assert re.search(r"\[ *\d+ s\] exactness: ", printed)
    assert f"All {holds.count(True)} tests passed." in printed


# What Python runs as it starts, in each process: there is no network.
NO_NETWORK = """
import socket, sys

def refuse(*arguments, **options):
    raise OSError("there is no network")

socket.socket.__init__ = socket.getaddrinfo = refuse
print("sockets are refused", file=sys.stderr)
"""


def test_doctor_finds_rounding_without_network_and_writable_folders(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    nowhere = {"HOME": "/proc/nothing", "TMPDIR": "/proc/nothing", "KERAS_HOME": "/proc/nothing"}
    rounds = {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}
    here = {**nowhere, **rounds, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    options = ["--quick", "--only", "numerics", "--timeout", PATIENCE]
    # Nobody may write to the folder /proc, not even root.
    done = run_python("-m", "tfdecouple", "doctor", *options, folder="/proc", **here)
    said = " ".join(done.stdout.split())
    assert done.returncode == 5, said + done.stderr
    assert "sockets are refused" in done.stderr and "not measured" not in said
    assert "numerics: the same numbers" in said and re.search(r"(holds|FAILS) CPU:0, float32 relative", said)
    assert "build, float32 of the CPU: rounded" in said and "What to do: unset ONEDNN_DEFAULT_FPMATH_MODE" in said
    assert "tests failed:" in said

"""Tests that bad options, configs and terminals give one line: no traceback, and no run folder out of place."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
from helpers.places import PATIENCE, ROOT
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from export import pipeline
from export.cli import main as export_main
from tfdecouple import training
from tfdecouple.cli import main, train_main
from tfdecouple.config import Config, list_option_names, parse_config
from tfdecouple.errors import ConfigError
from tfdecouple.runtime.process import run_program
from tfdecouple.storage.files import parse_json

HUGE = "1" + "0" * 400
NAMES = {
    "out of its folder": "../../ESCAPED",
    "the folder above": "..",
    "empty": "",
    "hidden": ".hidden",
    "NUL": "a\0b",
    "escape": "a\x1b[2Jb",
    "lone surrogate": "a\ud800b",
    "too long in bytes": "é" * 150,
}
TEXTS = {
    "NaN": '{"training": {"learning_rate": NaN}}',
    "more than a float32": '{"training": {"clip_norm": 1e300}}',
    "400 digits as a number": f'{{"training": {{"learning_rate": {HUGE}}}}}',
    "5000 digits": f'{{"training": {{"steps": {"9" * 5000}}}}}',
    "nested deeper": "[" * 100_000,
    "objects nested": '{"a":' * 400 + "1" + "}" * 400,
    "many levels": json.dumps({"model": {"steps": [1] * 20_000, "hidden_channels": [8] * 20_000}}),
    "surrogate in a path": '{"data": {"source": "folder:\\ud800"}}',
    "NUL in a path": '{"data": {"data_dir": "a\\u0000b"}}',
    "empty": "",
    "a seed of 33 bits": '{"training": {"seed": 4294967296}}',
    "not UTF-8": b'{"name": "\xe9"}',
}
# Arguments are empty where a shell variable is not set. Python's `int` accepts digits of every script.
COMMAND_LINES = [
    ["train", "--seed", str(2**32)],
    ["train", "--set", "name=../../ESCAPED"],
    ["train", "--preset", "a\x1b[2Jb"],
    ["train", "--set", "model.steps=" + "[" * 900],
    ["train", "--config", "no\udce9/\x1b.json"],
    ["train", "--config", "."],
    ["train", "--set", "data.source=folder:\0"],
    ["train", "--workdir", ""],
    ["train", ""],
    ["train", "--seed", "\uff11"],
    ["train", "--set", "model.steps=[\uff11,\uff12]"],
    ["sample", "--count", "\uff13"],
    ["sample", "--temperature", "\uff11.\uff15"],
    ["sample", "--out", ""],
    ["edit", "--run", "photographs", "--direction", "coffee", "--amounts", "\uff11", "x.png"],
    ["doctor", "--devices", "\uff11"],
    ["switch", "", ""],
    ["export", "--run", "photographs", "--to", ""],
    ["export", "--run", "photographs", "--to", "out", "--version", "\uff11"],
]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The working folder, three folders deep; returns the outermost."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return tmp_path


class TestConfig:
    @pytest.mark.parametrize("kind", NAMES)
    def test_config_name_that_is_no_folder_name_is_refused(self, elsewhere, capsys, kind):
        pathlib.Path("config.json").write_text(json.dumps({"name": NAMES[kind]}))
        line = refused(capsys, lambda: train_main(["--config", "config.json"]))
        assert "name is " in line
        assert [path.name for path in elsewhere.rglob("*") if path.is_file()] == ["config.json"]

    @pytest.mark.parametrize("kind", TEXTS)
    def test_config_file_with_bad_content_is_refused_in_one_line(self, elsewhere, capsys, kind):
        text = TEXTS[kind]
        pathlib.Path("config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        refused(capsys, lambda: train_main(["--config", "config.json"]))

    @settings(max_examples=100, deadline=None)
    @given(
        st.sampled_from(list_option_names()),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text()
            | st.sampled_from([10**30, -(10**400), 1e308]),
            lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=2),
            max_leaves=8,
        ),
    )
    def test_any_value_of_an_option_is_accepted_or_refused_in_one_line(self, name, value):
        *path, last = name.split(".")
        values = {last: value}
        for part in path:
            values = {part: values}
        try:
            config = parse_config(Config, values)
        except ConfigError as error:
            assert len(str(error)) < 1000
        else:
            assert parse_config(Config, parse_json(config.to_json())) == config


@pytest.mark.parametrize("arguments", COMMAND_LINES, ids=lambda words: ascii(" ".join(words))[:60])
def test_bad_command_line_is_refused_before_the_command_starts(elsewhere, monkeypatch, capsys, arguments):
    def fail(*_, **__):
        pytest.fail("the command starts")

    for module in ("sample", "edit", "doctor", "switch"):
        monkeypatch.setattr(importlib.import_module(f"tfdecouple.cli.{module}"), "run", fail)
    monkeypatch.setattr(pipeline, "export", fail)
    monkeypatch.setattr(training, "train", fail)
    program = {"train": train_main, "export": export_main}.get(arguments[0])
    try:
        refused(capsys, lambda: program(arguments[1:]) if program else main(arguments))
    except SystemExit as end:
        # argparse prints its message after the usage.
        assert end.code == 2 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sample", "switch"])
def test_seed_and_count_of_a_command_have_bounds(capsys, command):
    for seed in (-1, 2**31, int(HUGE)):
        assert "--seed is" in refused(capsys, lambda seed=seed: main([command, "--run", "x", "--seed", str(seed)]))
    assert "--count is 1000000000000" in refused(capsys, lambda: main([command, "--run", "x", "--count", str(10**12)]))


def ended(*arguments, shell="", **environment):
    """Runs `python -m tfdecouple` in a shell that ends with these redirections."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    command = ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, "-m", "tfdecouple", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, timeout=PATIENCE)


class TestTerminal:
    def test_output_to_a_full_device_ends_in_one_line(self):
        done = ended("presets", shell=">/dev/full")
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: cannot write") and done.stderr.count(b"\n") == 1

    @pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
    def test_closed_output_is_no_error(self, closed):
        done = ended("presets", shell=closed)
        assert done.returncode == 0 and done.stderr == b""

    def test_ascii_terminal_shows_errors_about_any_name(self):
        done = ended("presets", "fácil ☃ \udce9", PYTHONIOENCODING="ascii")
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: there is no preset") and done.stderr.count(b"\n") == 1


class TestFaults:
    @pytest.mark.parametrize(
        ("error", "status", "says"),
        [
            (MemoryError("3 TiB"), 2, "out of memory"),
            (type("ResourceExhaustedError", (Exception,), {})("OOM when\n\nmore"), 2, "(OOM when)"),
            (ImportError("_imaging.so: failed to map segment from shared object"), 2, "out of memory (_imaging.so"),
            (FileNotFoundError(2, "No such file or directory", "a\nb"), 2, "cannot use"),
            (OSError(28, "No space left on device"), 2, "No space left on device"),
            (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"), 2, "not UTF-8"),
            (KeyError("x"), 1, "a fault of this program, please report it: KeyError: 'x' (test_bad_input.py, line"),
        ],
    )
    def test_unforeseen_exception_is_one_line(self, capsys, monkeypatch, error, status, says):
        monkeypatch.delenv("TFDECOUPLE_TRACEBACK", raising=False)

        def program() -> int:
            raise error

        assert run_program(program) == status
        err = capsys.readouterr().err
        assert err.startswith("error: ") and says in err and err.count("\n") == 1

    def test_traceback_of_a_fault_is_shown_on_request(self, monkeypatch):
        monkeypatch.setenv("TFDECOUPLE_TRACEBACK", "1")
        with pytest.raises(KeyError):
            run_program(lambda: {}["x"])

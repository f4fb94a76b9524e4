"""Tests that bad options, configs and terminals give one line: no traceback, and no run folder out of place."""

from __future__ import annotations

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
from tfdecouple.cli import doctor, main, train_main
from tfdecouple.cli.picture_commands import PictureCommand
from tfdecouple.config import Config, list_option_names, parse_config
from tfdecouple.errors import ConfigError, DataError
from tfdecouple.runtime.process import run_program
from tfdecouple.storage.files import parse_json

HUGE = "1" + "0" * 400
NAMES = {
    "out of its folder": "../../ESCAPED",
    "absolute": "/tmp/ESCAPED",
    "backslashes": "..\\..\\ESCAPED",
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
    "1e999": '{"training": {"learning_rate": 1e999}}',
    "more than a float32": '{"training": {"clip_norm": 1e300}}',
    "400 digits as a number": f'{{"training": {{"learning_rate": {HUGE}}}}}',
    "5000 digits": f'{{"training": {{"steps": {"9" * 5000}}}}}',
    "nested deeper": "[" * 100_000,
    "objects nested": '{"a":' * 400 + "1" + "}" * 400,
    "many levels": json.dumps({"model": {"steps": [1] * 20_000, "hidden_channels": [8] * 20_000}}),
    "surrogate in a path": '{"data": {"source": "folder:\\ud800"}}',
    "NUL in a path": '{"data": {"data_dir": "a\\u0000b"}}',
    "empty": "",
    "no object": "3",
    "a seed of 33 bits": '{"training": {"seed": 4294967296}}',
}
OPTIONS = {
    "seed": ["--seed", str(2**32)],
    "seed of 400 digits": ["--seed", HUGE],
    "NaN": ["--set", "training.learning_rate=NaN"],
    "surrogate": ["--data", "folder:\udce9"],
    "surrogate in an option": ["--set", "\udce9=3"],
    "name": ["--set", "name=../../ESCAPED"],
    "escape": ["--preset", "a\x1b[2Jb"],
    "nested": ["--set", "model.steps=" + "[" * 900],
    "config in no folder": ["--config", "no\udce9/\x1b.json"],
    "config that is a folder": ["--config", "."],
    "NUL": ["--set", "data.source=folder:\0"],
    "workdir of an unset variable": ["--workdir", ""],
    "workdir= of an unset variable": ["--workdir="],
    "config of an unset variable": ["--config", ""],
    "argument of an unset variable": [""],
    "full-width steps": ["--steps", "\uff11\uff12"],
    "full-width seed": ["--seed", "\uff11"],
    "full-width devices": ["--devices", "\uff11"],
    "full-width number of an option": ["--set", "training.steps=\uff11\uff12"],
    "full-width number in a list": ["--set", "model.steps=[\uff11,\uff12]"],
}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The working folder, three folders deep; returns the outermost."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return tmp_path


class TestConfig:
    @pytest.mark.parametrize("kind", NAMES)
    def test_name_is_that_of_a_folder(self, elsewhere, capsys, kind):
        pathlib.Path("config.json").write_text(json.dumps({"name": NAMES[kind]}))
        line = refused(capsys, lambda: train_main(["--config", "config.json"]))
        assert "name is " in line
        assert [path.name for path in elsewhere.rglob("*") if path.is_file()] == ["config.json"]

    @pytest.mark.parametrize("name", ["quickstart", "my run, 2nd try", "fácil", "a.b", "v1.0-rc_2 (new)", "n" * 200])
    def test_ordinary_names_hold(self, name):
        assert Config(name=name).name == name

    @pytest.mark.parametrize("kind", TEXTS)
    def test_text(self, elsewhere, capsys, kind):
        pathlib.Path("config.json").write_text(TEXTS[kind])
        refused(capsys, lambda: train_main(["--config", "config.json"]))

    def test_is_not_utf_8(self, elsewhere, capsys):
        pathlib.Path("config.json").write_bytes(b'{"name": "\xe9"}')
        refused(capsys, lambda: train_main(["--config", "config.json"]))

    @pytest.mark.parametrize("kind", OPTIONS)
    def test_options(self, elsewhere, capsys, kind, monkeypatch):
        if "unset" in kind or "full-width" in kind:
            monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("the training starts"))
        try:
            refused(capsys, lambda: train_main(OPTIONS[kind]))
        except SystemExit as end:
            # argparse says so itself, after the usage.
            assert end.code == 2 and "Traceback" not in capsys.readouterr().err

    @settings(max_examples=300, deadline=None)
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
    def test_any_value_holds_or_is_a_line(self, name, value):
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--count", "\uff13"],
        ["sample", "--temperature", "\uff11.\uff15"],
        ["sample", "--out", ""],
        ["sample", "--out="],
        ["edit", "--run", "photographs", "--direction", "coffee", "--amounts", "\uff11", "x.png"],
        ["doctor", "--devices", "\uff11"],
        ["doctor", "--devices", "1000000000"],
        ["switch", "", ""],
        ["export", "--run", "photographs", "--to", ""],
        ["export", "--run", "photographs", "--to", "out", "--version", "\uff11"],
    ],
    ids=ascii,
)
def test_empty_arguments_and_digits_of_other_scripts_are_refused(elsewhere, monkeypatch, capsys, arguments):
    def fail(*_, **__):
        pytest.fail("the command starts")

    monkeypatch.setattr(PictureCommand, "run", fail)
    monkeypatch.setattr(doctor, "run", fail)
    monkeypatch.setattr(pipeline, "export", fail)
    program = (lambda: export_main(arguments[1:])) if arguments[0] == "export" else lambda: main(arguments)
    try:
        refused(capsys, program)
    except SystemExit as end:
        assert end.code == 2


COMMANDS = ["sample", "reconstruct", "switch", "interpolate", "neighbours", "project"]


@pytest.mark.parametrize("command", COMMANDS)
def test_seed_and_count_of_a_command_are_bounded(capsys, command):
    for seed in (-1, 2**31, int(HUGE)):
        assert "--seed is" in refused(capsys, lambda seed=seed: main([command, "--run", "x", "--seed", str(seed)]))
    assert "--count is 1000000000000" in refused(capsys, lambda: main([command, "--run", "x", "--count", str(10**12)]))


def test_home_of_nobody_is_a_missing_folder(capsys, tmp_path):
    from tfdecouple.config import DataConfig
    from tfdecouple.data import open_source

    for data in (DataConfig(source="folder:~nosuchuser/x"), DataConfig(source="tfds:x", data_dir="~nosuchuser/x")):
        with pytest.raises(DataError, match="nosuchuser|has no data set"):
            open_source(data, (8, 8, 3))


def ended(*arguments, shell="", **environment):
    """Runs `python -m tfdecouple` in a shell that ends with these redirections."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    command = ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, "-m", "tfdecouple", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, timeout=PATIENCE)


class TestTerminal:
    def test_full_device_is_one_line(self):
        done = ended("presets", shell=">/dev/full")
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: cannot write") and done.stderr.count(b"\n") == 1

    @pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
    def test_closed_output_is_no_error(self, closed):
        done = ended("presets", shell=closed)
        assert done.returncode == 0 and done.stderr == b""

    def test_a_refusal_that_nobody_can_read_has_its_status(self):
        assert ended("presets", "nope", shell=">&- 2>&-").returncode == 2
        assert ended("presets", "nope", shell="2>/dev/full").returncode == 2

    def test_of_few_characters_takes_any_name(self):
        done = ended("presets", "fácil ☃ \udce9", PYTHONIOENCODING="ascii")
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: there is no preset") and done.stderr.count(b"\n") == 1

    def test_of_few_characters_takes_any_output(self, monkeypatch):
        import io

        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))

        def program() -> int:
            print("3.36 ± 0.01 … é ☃")
            return 0

        assert run_program(program) == 0
        assert raw.getvalue() == b"3.36 \\xb1 0.01 \\u2026 \\xe9 \\u2603\n"


class TestFaults:
    """What a program meets that nobody foresaw."""

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
    def test_is_one_line(self, capsys, monkeypatch, error, status, says):
        monkeypatch.delenv("TFDECOUPLE_TRACEBACK", raising=False)

        def program() -> int:
            raise error

        assert run_program(program) == status
        err = capsys.readouterr().err
        assert err.startswith("error: ") and says in err and err.count("\n") == 1

    def test_of_our_own_shows_its_traceback_when_asked(self, monkeypatch):
        monkeypatch.setenv("TFDECOUPLE_TRACEBACK", "1")
        with pytest.raises(KeyError):
            run_program(lambda: {}["x"])

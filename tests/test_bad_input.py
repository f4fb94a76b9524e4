import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from helpers.models import TINY
from helpers.places import PATIENCE, ROOT
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st

import tfdecouple
from export import pipeline
from tfdecouple import training
from tfdecouple.cli import main
from tfdecouple.config import Config, DataConfig, list_option_names, parse_config, preset_config
from tfdecouple.data.sources import open_source
from tfdecouple.doctor import check_runner
from tfdecouple.errors import ConfigError, DataError, RunError, UserError
from tfdecouple.model import DecoupledModel
from tfdecouple.networks import architecture
from tfdecouple.networks.architecture import Architecture
from tfdecouple.storage.files import parse_json
from tfdecouple.system import devices, process
from tfdecouple.system.process import run_program

HUGE = "1" + "0" * 400
NAMES = ["../../ESCAPED", "..", "", ".hidden", "a\0b", "a\x1b[2Jb", "a\ud800b", "é" * 150]
TEXTS = {
    **{f"name {name[:9]}": json.dumps({"name": name}) for name in NAMES},
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
COMMAND_LINES = [
    *("train --seed 4294967296", "train --set name=../../ESCAPED", "train --config ."),
    *("train --set model.steps=[\uff11,\uff12]", "train --set model.steps=" + "[" * 900),
    *("sample --count 1000000000000", "sample --seed -1", f"sample --seed {HUGE}", "switch --seed 2147483648"),
    *("sample --temperatures nan", "edit --run photographs --direction coffee --amounts inf x.png"),
    *("train --preset a\x1b[2Jb", "train --config no\udce9/\x1b.json", "train --set data.source=folder:\0"),
    # Arguments are empty where a shell variable is not set.
    *("train --workdir ", "train ", "sample --out ", "switch  ", "export --run photographs --to "),
]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The working folder, three folders deep; returns the outermost."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return tmp_path


class TestConfig:
    @pytest.mark.parametrize("kind", TEXTS, ids=ascii)
    def test_config_file_with_bad_content_is_refused_in_one_line(self, elsewhere, capsys, kind):
        text = TEXTS[kind]
        pathlib.Path("config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        line = refused(capsys, lambda: main(["train", "--config", "config.json"]))
        assert "name is " in line or not kind.startswith("name")
        assert [path.name for path in elsewhere.rglob("*") if path.is_file()] == ["config.json"]

    @settings(max_examples=100, deadline=None)
    @given(
        st.sampled_from(list_option_names()),
        st.recursive(
            st.from_type(bool | int | float | str | None) | st.sampled_from([10**30, -(10**400), 1e308]),
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


@pytest.mark.parametrize("line", COMMAND_LINES, ids=lambda line: ascii(line)[:60])
def test_bad_command_line_is_refused_before_the_command_starts(elsewhere, monkeypatch, capsys, line):
    starts = [(process, "start_tensorflow"), (check_runner, "run_checks"), (pipeline, "export"), (training, "train")]
    for module, function in starts:
        monkeypatch.setattr(module, function, lambda *_, **__: pytest.fail("the command starts"))
    refused(capsys, lambda: main(line.split(" ")))


def ended(*arguments, shell="", **environment):
    """Runs `python -m tfdecouple` in a shell that ends with these redirections."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    command = ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, "-m", "tfdecouple", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, timeout=PATIENCE)


def test_output_to_a_full_device_ends_in_one_line_and_closed_output_is_no_error():
    done = ended("presets", shell=">/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: cannot write") and done.stderr.count(b"\n") == 1
    for closed in (">&-", "<&- >&- 2>&-"):
        done = ended("presets", shell=closed)
        assert (done.returncode, done.stderr) == (0, b"")


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
def test_unforeseen_exception_gives_one_error_line(capsys, monkeypatch, error, status, says):
    monkeypatch.delenv("TFDECOUPLE_TRACEBACK", raising=False)

    def program():
        raise error

    assert says in refused(capsys, lambda: run_program(program), status=status)


TOO_LARGE = {
    "hidden_channels=[4,1000000000]": "model.hidden_channels, 1000000000",
    "prior_hidden=10000000000": "model.prior_hidden, 10000000000",
    "image_shape=[1073741824,1073741824,3]": "1073741824",
    "steps=[1,5000]": "model.steps adds up to 5001 steps",
    "steps=[9000000000000000000,1]": "model.steps adds up to",
}


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(DecoupledModel, "build", lambda *_, **__: pytest.fail("a model is made"))


@pytest.fixture
def enlarged(tiny_run, tmp_path):
    """Makes a copy of `tiny_run` whose config has another value of an option of the model."""

    def make(assignment):
        run = shutil.copytree(tiny_run, tmp_path / "run")
        values, (name, value) = json.loads((run / "config.json").read_text()), assignment.split("=")
        values["model"][name] = json.loads(value)
        (run / "config.json").write_text(json.dumps(values))
        return run

    return make


@pytest.mark.parametrize(("assignment", "says"), TOO_LARGE.items())
def test_too_large_model_is_refused_by_every_program_in_one_line(
    enlarged, no_model, capsys, assignment, says, tmp_path
):
    run = enlarged(assignment)
    # A size that the checkpoint does not have is refused by the checkpoint.
    of_run = "does not fit the config beside it" if "steps" not in assignment else says
    with pytest.raises(UserError, match=of_run):
        tfdecouple.load_model(run)
    new = str(tmp_path / "new")
    for program, message in (
        (lambda: main(["sample", "--run", str(run)]), of_run),
        (lambda: main(["export", "--run", str(run), "--to", str(tmp_path / "exported")]), of_run),
        (lambda: main(["train", "--config", str(run / "config.json"), "--workdir", new]), says),
    ):
        line = refused(capsys, program, begun=True)
        assert message in line and "batch" not in line
    assert not pathlib.Path(new).exists()


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("steps=[1,500]", "flow/.* is of shape .* by the config, and missing in the checkpoint"),
        ("encoder_out_channels=3", "encoder/.* is of shape .* by the config, and of shape .* in the c"),
        ("prior_steps=2", "prior_flow/.* missing in the checkpoint"),
        ('prior="normal"', "prior_flow/.* missing by the config"),
    ],
)
def test_config_that_does_not_fit_the_checkpoint_is_refused(enlarged, no_model, assignment, says):
    with pytest.raises(RunError, match=f"does not fit the config beside it: the weight {says}"):
        tfdecouple.load_model(enlarged(assignment))


class TestMemory:
    def test_model_is_refused_if_its_parameters_exceed_the_memory(self, monkeypatch):
        monkeypatch.setattr(architecture, "read_total_memory", lambda: 2**30)
        Architecture(preset_config("celeba_hq_256").model).require_memory()
        monkeypatch.setattr(
            architecture, "read_total_memory", lambda: 4 * Architecture(TINY).count_parameters()["total"] - 1
        )
        with pytest.raises(ConfigError, match="the model is too large: it needs"):
            Architecture(TINY).require_memory()

    def test_memory_limit_of_a_container_bounds_total_and_free_memory(self, monkeypatch, tmp_path):
        monkeypatch.setattr(devices, "_GROUP_FILES", [])
        total, free = devices.read_total_memory(), devices.read_free_memory()
        assert 2**26 < free < total < 2**50
        monkeypatch.setattr(devices, "_GROUP", str(tmp_path))
        monkeypatch.setattr(devices, "_GROUP_FILES", [("used", "limit", "parts", "inactive_file")])
        for name, text in (("used", "1000\n"), ("limit", "3000\n"), ("parts", "anon 600\ninactive_file 400\n")):
            (tmp_path / name).write_text(text)
        # Cached files, here 400 bytes, count as free.
        assert (devices.read_total_memory(), devices.read_free_memory()) == (3000, 3000 - (1000 - 400))
        (tmp_path / "limit").write_text("max\n")
        assert devices.read_total_memory() == total and devices.read_free_memory() > 2**26


@pytest.mark.parametrize("count", [10**9, 2**62])
def test_crops_that_exceed_memory_are_refused(count):
    data = Config().override([f"data.photograph_crops={count}"]).data
    with pytest.raises(DataError, match=f"data.photograph_crops is {count}"):
        open_source(data, (64, 64, 3))
    open_source(DataConfig(), (8, 8, 3))

import json
import sys

import pytest
from helpers.commands import command, refuse
from helpers.places import run_command, run_python
from helpers.runs import run_config

import tfdecouple
from tfdecouple.cli import COMMANDS, app
from tfdecouple.config import Config, list_option_names, parse_config, preset_config
from tfdecouple.storage.files import write_json
from tfdecouple.system import process

NAMES = [name for name in app if not name.startswith("-")]
HELP = f"""
import sys
from tfdecouple.cli import main

for name in {NAMES}:
    assert main([name, "--help"]) == 0
print("loaded:", {{"tensorflow", "keras", "sklearn", "scipy", "matplotlib", "PIL"}} & set(sys.modules))
"""


class TestHelp:
    def test_help_of_every_command_needs_no_tensorflow(self):
        ended = run_python("-c", HELP)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.endswith("loaded: set()\n")
        assert len(NAMES) == len(COMMANDS) and all(f" {name} " in ended.stdout for name in NAMES)

    @pytest.mark.parametrize("name", NAMES)
    def test_every_option_of_a_command_is_described(self, name):
        arguments = app[name].assemble_argument_collection(parse_docstring=True)
        lacking = [argument.name for argument in arguments if argument.show and not argument.parameter.help]
        assert not lacking

    def test_program_alone_lists_its_commands_and_with_version_its_version(self, capsys):
        command()
        out = capsys.readouterr().out
        assert all(f" {name} " in out for name in NAMES)
        # The summary of `evaluate` stands beside its name, because listing the commands does not import its module.
        assert app["evaluate"].help == app["evaluate"].default_command.__doc__.partition("\n")[0]
        command("--version")
        assert capsys.readouterr().out == f"tfdecouple {tfdecouple.__version__}\n"


def test_bash_completes_commands_options_and_choices(tmp_path):
    script = tmp_path / "tfdecouple.bash"
    script.write_text(run_python("-m", "tfdecouple", "completion", "bash").stdout)
    for typed, completed in (
        ("swi", "switch"),
        ("interpolate --path sl", "slerp"),
        ("evaluate --frec", "--frechet --frechet-images --frechet-split"),
        ("export --fo", "--format"),
    ):
        words = ["tfdecouple", *typed.split()]
        code = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        code += f"_tfdecouple tfdecouple '{words[-1]}' '{words[-2]}'; echo ${{COMPREPLY[*]}}"
        assert run_command("bash", "-c", code).stdout == f"{completed}\n"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_with_every_command(shell, capsys):
    command("completion", shell)
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def no_tensorflow(self, monkeypatch):
        monkeypatch.setattr(process, "start_tensorflow", lambda *_: pytest.fail("TensorFlow was started"))

    @pytest.mark.parametrize(
        ("typed", "parts"),
        [
            # The nearest name of a command or option, and the help of that command.
            ("encode_beam --run x", ['"encode_beam"', 'Did you mean "encode-beam"?', "tfdecouple --help"]),
            ("switch --strenght=1", ["Did you mean --strength?", "switch --help"]),
            ("swich a b", ['Did you mean "switch"?; tfdecouple --help']),
            ("interpolate --path slrp", ["slrp", "--path", '"slerp"?', "interpolate --help"]),
            ("sample --temperatures 0.5 -1", ["--temperatures", "-1", ">= 0"]),
            ("switch --strength 1.5", ["--strength", "1.5", "<= 1"]),
            ("sample --count", ["--count", "requires an argument"]),
            ("import-wolf --config a --weights b --image-shape 1 2 --workdir c", ["--image-shape", "Only got 2"]),
            ("edit --direction x", ["edit", "FILES requires an argument"]),
            ("switch no.png such.png", ["error: no.png does not exist; "]),
            ("switch LICENSE", ["switch got 1 images"]),
            ("switch LICENSE LICENSE --split test", ["--split is for images of a data set", "LICENSE"]),
            ("switch --reference LICENSE docs --data-dir d", ["--data-dir is for images of a data set"]),
            ("switch --reference LICENSE docs", ["--to OUT"]),
            ("directions --run x --labels a --attributes b", ["--labels, --attributes and --statistics"]),
            ("encode --out x", ["encode needs --run RUN"]),
            ("export --run a", ["--to DIR, or --verify DIR"]),
            ("export --verify a --run b", ["--verify", "--run"]),
            ("sample --out LICENSE/deeper", ["LICENSE is no folder", "--out"]),
            ("train --set model.alpha=2", ["model.alpha is 2"]),
            ("train --steps 0", ["training.steps is 0", "at least 1"]),
            ("doctor --only numeric", ['"numeric"', "--only", '"numerics"?']),
            ("doctor --set training.batchsize=1", ["no option 'training.batchsize'"]),
            ("encode --run x --out y --format csv", ["csv", "--format"]),
        ],
    )
    def test_mistake_is_one_line_before_tensorflow_starts(self, capsys, monkeypatch, typed, parts):
        monkeypatch.chdir(tfdecouple.__path__[0] + "/..")
        line = refuse(capsys, *typed.split())
        assert all(part in line for part in parts), line

    @pytest.mark.parametrize("typed", ["curves --run x", "project", "evaluate --outliers noise", "evaluate --classify"])
    def test_missing_matplotlib_is_found_before_tensorflow_starts(self, capsys, monkeypatch, typed):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert "needs matplotlib, which is missing" in refuse(capsys, *typed.split())


def test_printed_preset_is_a_config_that_repeats_it(capsys):
    command("presets", "cifar10")
    out = capsys.readouterr().out
    preset = preset_config("cifar10")
    assert out.count(preset.notes) == out.count(preset.description) == 1
    values = json.loads(out[out.index("\n{\n") :])
    assert parse_config(Config, {**values, "notes": preset.notes, "description": preset.description}) == preset
    assert "did you mean quickstart" in refuse(capsys, "presets", "quickstar")


def test_each_option_is_explained_with_its_default(capsys):
    command("explain")
    texts = capsys.readouterr().out.split("\n\n")
    assert [text.split()[0] for text in texts] == list(list_option_names())
    for text in texts:
        name, _, default = text.partition("\n")[0].partition(" = ")
        assert len(text.splitlines()) > 1 and default == json.dumps(Config().flatten_options()[name])


class TestProgram:
    def test_interrupt_is_one_line_even_if_cleaning_up_fails(self, capsys):
        def interrupted():
            try:
                raise KeyboardInterrupt
            finally:
                raise RuntimeError("no way out")

        assert process.run_program(interrupted) == 130
        assert capsys.readouterr().err == "interrupted\n"

    def test_reader_that_goes_away_is_no_error(self):
        shell = f"set -o pipefail; '{sys.executable}' -m tfdecouple presets | head -n 1"
        ended = run_command("bash", "-c", shell)
        assert ended.stderr == "" and ended.returncode in (0, 141)

    @pytest.mark.slow
    def test_short_training_prints_nothing_on_standard_error(self, image_folder, tmp_path):
        write_json(tmp_path / "config.json", run_config(image_folder, steps=2).to_dict())
        arguments = ["train.py", "--config", tmp_path / "config.json", "--workdir", tmp_path / "run"]
        ended = run_python(*arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "step 2: validation" in ended.stdout and "test: " in ended.stdout
        assert f"tfdecouple.load_model('{tmp_path / 'run'}')" in ended.stdout
        # Batches of 8 images cannot be divided among 3 devices; TensorFlow has started by then, and prints nothing.
        ended = run_python(*arguments[:-1], tmp_path / "other", "--devices", 3)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1
        assert "training.batch_size is 8, no multiple of the 3 devices" in ended.stderr

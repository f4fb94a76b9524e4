import json
import sys

import pytest
from helpers.places import run_command, run_python
from helpers.refusals import refused
from helpers.runs import run_config

import tfdecouple
from tfdecouple.cli import COMMANDS, command_table, evaluate, main
from tfdecouple.cli.train import main as train_main
from tfdecouple.config import Config, list_option_names, parse_config, preset_config, preset_names
from tfdecouple.runtime.process import run_program
from tfdecouple.storage.files import write_json

# The help of every command, one after the other, and the heavy packages that were loaded for it.
HELP = f"""
import sys
from tfdecouple.cli import main
from tfdecouple.cli.train import main as train_main

for call in (lambda: train_main(["--help"]), *(lambda name=name: main([name, "--help"]) for name in {list(COMMANDS)})):
    try:
        call()
    except SystemExit as end:
        assert end.code == 0
print("loaded:", {{"tensorflow", "keras", "sklearn", "scipy", "matplotlib", "PIL"}} & set(sys.modules))
"""


class TestHelp:
    def test_help_of_every_command_needs_no_tensorflow(self):
        ended = run_python("-c", HELP)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.endswith("loaded: set()\n")
        assert all(f"usage: python -m tfdecouple {name}" in ended.stdout for name in COMMANDS)

    @pytest.mark.parametrize("command", ["", "train", "export"])
    @pytest.mark.parametrize("called", ["bin/tfdecouple", "tfdecouple/__main__.py"])
    def test_help_names_the_program_as_it_was_called(self, capsys, monkeypatch, called, command):
        monkeypatch.setattr(sys, "argv", [called])
        with pytest.raises(SystemExit) as end:
            main([command, "--help"] if command else ["--help"])
        out = capsys.readouterr().out
        typed = "tfdecouple" if "bin" in called else "python -m tfdecouple"
        assert end.value.code == 0 and out.startswith(f"usage: {typed} {command}".rstrip())
        assert typed != "tfdecouple" or "python -m" not in out.replace("python -m export", "")

    def test_version_option_prints_the_installed_version(self, capsys):
        with pytest.raises(SystemExit) as end:
            main(["--version"])
        assert (end.value.code, capsys.readouterr().out) == (0, f"tfdecouple {tfdecouple.__version__}\n")


class TestCompletion:
    @pytest.mark.parametrize(
        ("typed", "completed"),
        [
            ("swi", "switch"),
            ("switch --str", "--strength"),
            ("switch --pairing ac", "across"),
            ("switch LICE", "LICENSE"),
            ("evaluate --run doc", "docker docs"),
            ("export --fo", "--format"),
        ],
    )
    def test_bash_completes_commands_options_choices_and_paths(self, script, typed, completed):
        words = ["tfdecouple", *typed.split()]
        command = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        command += f"_shtab_tfdecouple tfdecouple '{words[-1]}' '{words[-2]}'; echo ${{COMPREPLY[*]}}"
        assert run_command("bash", "-c", command).stdout == f"{completed}\n"

    @pytest.fixture(scope="class")
    def script(self, tmp_path_factory):
        script = tmp_path_factory.mktemp("completion") / "tfdecouple.bash"
        script.write_text(run_python("-m", "tfdecouple", "completion", "bash").stdout)
        return script


class TestRefusals:
    def test_mistyped_command_is_answered_with_the_nearest(self, capsys):
        line = refused(capsys, lambda: main(["encode_beam", "--run", "x"]))
        assert "'encode_beam'" in line and "did you mean encode-beam?" in line

    @pytest.mark.parametrize(
        ("typed", "command", "meant"),
        [("--verison", "", "--version"), ("switch --strenght=1", "switch ", "--strength")],
    )
    def test_mistyped_option_is_answered_with_the_nearest(self, capsys, monkeypatch, typed, command, meant):
        monkeypatch.setattr(sys, "argv", ["bin/tfdecouple"])
        line = refused(capsys, lambda: main(typed.split()))
        assert f"did you mean {meant}?" in line and line.endswith(f"; tfdecouple {command}--help lists the options\n")

    @pytest.mark.parametrize("typed", ["switch no.png such.png", "interpolate no.png such.png", "edit no.png"])
    def test_missing_photograph_is_found_before_tensorflow_starts(self, capsys, monkeypatch, typed):
        name, *files = typed.split()
        monkeypatch.setattr(command_table, "start_tensorflow", lambda: pytest.fail("TensorFlow was started"))
        more = ["--run", "photographs", "--direction", "x"] if name == "edit" else []
        assert "there is no image file no.png" in refused(capsys, lambda: main([name, *more, *files]))

    @pytest.mark.parametrize("typed", ["curves --run x", "project", "evaluate --outliers noise", "evaluate --probe"])
    def test_missing_matplotlib_is_found_before_tensorflow_starts(self, capsys, monkeypatch, typed):
        for module in (command_table, evaluate):
            monkeypatch.setattr(module, "start_tensorflow", lambda: pytest.fail("TensorFlow was started"))
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert "needs matplotlib, which is missing" in refused(capsys, lambda: main(typed.split()))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--set", "model.alpha=2"], "model.alpha is 2"),
            (["--steps", "0"], "training.steps is 0; it must be at least 1"),
            (["--step-count", "5"], "unrecognized arguments: --step-count 5; "),
            (["--steps", "many"], "--steps is many; it must be a whole number"),
            (["--data", "photograph"], "did you mean photographs"),
            (["--data", "folder:/no/such/folder"], "/no/such/folder"),
        ],
    )
    def test_mistake_in_the_command_is_one_line(self, capsys, tmp_path, arguments, message):
        assert message in refused(capsys, lambda: train_main([*arguments, "--workdir", str(tmp_path / "run")]))
        assert not (tmp_path / "run").exists()


class TestPresets:
    def test_presets_are_listed_with_descriptions(self, capsys):
        assert main(["presets"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == list(preset_names())
        assert all(line.endswith(f" {preset_config(line.split()[0]).description}") for line in lines)

    def test_printed_preset_is_a_config_that_repeats_it(self, capsys):
        assert main(["presets", "cifar10"]) == 0
        out = capsys.readouterr().out
        preset = preset_config("cifar10")
        assert out.count(preset.notes) == out.count(preset.description) == 1
        values = json.loads(out[out.index("\n{\n") :])
        assert parse_config(Config, {**values, "notes": preset.notes, "description": preset.description}) == preset
        assert "did you mean quickstart" in refused(capsys, lambda: main(["presets", "quickstar"]))


class TestExplain:
    def test_each_option_is_explained_with_its_default(self, capsys):
        assert main(["explain"]) == 0
        texts = capsys.readouterr().out.split("\n\n")
        assert [text.split()[0] for text in texts] == list(list_option_names())
        for text in texts:
            name, _, default = text.partition("\n")[0].partition(" = ")
            assert len(text.splitlines()) > 1 and default == json.dumps(Config().flatten_options()[name])

    def test_explain_finds_options_by_part_of_their_names(self, capsys):
        assert main(["explain", "kl_w", "model.alpha"]) == 0
        names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line and line[0] != " "]
        assert names == ["model.alpha", "training.kl_weight", "training.kl_warmup_steps"]
        assert "did you mean model.alpha" in refused(capsys, lambda: main(["explain", "model.alhpa"]))


class TestProgram:
    @pytest.mark.parametrize("became", [RuntimeError("no way out"), "INTERNAL: KeyboardInterrupt: "])
    def test_interrupt_is_one_line(self, capsys, became):
        """Also where cleaning up failed on the way out, and where TensorFlow made an error of its own of it."""

        def interrupted():
            if isinstance(became, str):
                raise RuntimeError(became)
            try:
                raise KeyboardInterrupt
            finally:
                raise became

        assert run_program(interrupted) == 130
        assert capsys.readouterr().err == "interrupted\n"
        assert run_program(lambda: 1 // 0) == 1

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

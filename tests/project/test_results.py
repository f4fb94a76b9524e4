"""docs/RESULTS.md says what the files in docs/results say: every table to the digit, and every number of its text.

The tables are made of the files (`python benchmarks/results.py`); `helpers/results_text.py` has what each number in the
text is taken from.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shlex
import sys

import numpy as np
import pytest
from helpers.command_lines import trained_config
from helpers.documents import command_lines, split_code
from helpers.places import ROOT
from helpers.results_text import NAMES, config, mistakes, prose
from helpers.runs import log_rows

sys.path.insert(0, str(ROOT))

from benchmarks import results, trials  # noqa: E402
from tfdecouple.exactness import FAR  # noqa: E402

PAGE = results.PAGE.read_text(encoding="utf-8")


def logged_steps(run: str, kind: str) -> list[int]:
    """At which updates a run's log has rows of a kind."""
    return [step for found, step in log_rows(results.FILES / run) if found == kind]


def shown(program: str) -> list[list[str]]:
    """The words of the commands on the page that begin with a program."""
    lines = [line for block in split_code(PAGE)[0] for line in command_lines(block.text)]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


class TestPage:
    def test_tables_are_those_of_the_files(self):
        assert not results.differences(PAGE, results.with_tables(PAGE))

    def test_every_number_of_the_text_is_that_of_a_file(self):
        assert not mistakes(prose(PAGE))

    def test_its_commands_are_those_that_make_the_files(self):
        made = [shlex.split(line) for lines in results.commands().values() for line in lines]
        commands = shown("python")
        assert len(commands) >= 12
        for words in commands:
            if words[1] != "train.py":
                assert sorted(words) in [sorted(each) for each in made], shlex.join(words)

    def test_its_training_commands_are_those_of_the_committed_runs(self):
        def name_of(words):
            return words[words.index("--workdir") + 1].removeprefix("runs/")

        made = [shlex.split(run["command"]) for run in results.load("dequantization.json").values()]
        anew = {name_of(words): sorted(words) for words in made}
        commands = shown("python train.py")
        assert len(commands) == 5 + len(anew) and anew.keys() <= set(map(name_of, commands))
        for words in commands:
            if (name := name_of(words)) in anew:
                assert sorted(words) == anew[name], shlex.join(words)
                continue
            committed = config(name if (results.FILES / name).is_dir() else f"seeds/{name}")
            said = trained_config(words[2:])
            assert (said.model, said.data, said.training) == (committed.model, committed.data, committed.training)
            assert said.notes == committed.notes or name not in results.TITLES

    def test_the_three_are_equal_but_for_where_z_enters(self):
        ours, base, glow = (config(run) for run in results.RUNS)
        # Glow has no KL term.
        of_z = {"kl_weight": ours.training.kl_weight, "kl_warmup_steps": ours.training.kl_warmup_steps}
        assert base.training == ours.training == dataclasses.replace(glow.training, **of_z)
        assert base.data == ours.data == glow.data
        parameters = [results.parameters(run) for run in results.RUNS]
        assert max(parameters) < 1.03 * min(parameters)
        steps = [logged_steps(run, "validation") for run in results.RUNS]
        assert steps[0] == steps[1] == steps[2] and steps[0][-1] == ours.training.steps

    def test_files_are_of_the_committed_weights(self):
        """What `evaluate` and pictures wrote of the runs, but for counts and curves."""
        steps = {run: results.load(f"{run}/summary.json")["best_step"] for run in (*results.TITLES, "photographs")}
        seen = 0
        for run, step in steps.items():
            for folder in ("evaluation", "pictures"):
                for path in (results.FILES / run / folder).rglob("*.json"):
                    if path.name not in ("looks.json", "curves.json"):
                        assert json.loads(path.read_text(encoding="utf-8"))["step"] == step, path
                        seen += 1
        round_trips = [row for name in ("exactness", "every_image") for row in results.load(f"{name}.json")["rows"]]
        for found in [*round_trips, results.load("frechet.json")]:
            assert found["step"] == steps[pathlib.PurePath(found["run"]).name], found
            seen += 1
        assert seen > 70

    @pytest.mark.parametrize("run", results.RUNS)
    def test_every_end_of_the_training_is_a_look_at_the_test_images(self, run):
        assert logged_steps(run, "test") == list(results.by_length(run))

    @pytest.mark.parametrize("run", results.RUNS)
    def test_what_the_text_says_of_longer_training(self, run):
        updates, found = zip(*results.by_length(run).items(), strict=True)
        assert list(updates) == sorted(updates) and updates[-2] == config(run).training.patterns_after
        *bits, bits_now = [each["bits_per_dim"] for each in found]
        *lost, lost_now = [each["noise_lost"] for each in found]
        gains = [(before - after) / more for before, after, more in zip(bits, bits[1:], np.diff(updates), strict=False)]
        assert gains == sorted(gains, reverse=True) and gains[-1] > 0 and bits_now > bits[-1]
        assert lost[-1] > lost[0] == lost_now == 0
        distances = [each["frechet"] for each in found]
        assert abs(distances[-1] - distances[-2]) < 2
        if run == "conditional":
            told = [each["accuracy"] for each in found]
            assert told[:-2] == sorted(told[:-2]) and told[-2] < told[-3] and abs(told[-1] - told[-2]) < 0.005
            assert updates[-3:-1] == (20_000, 46_000) and lost == sorted(lost) and lost[-1] == 256
            assert distances[:-2] == sorted(distances[:-2], reverse=True) and distances[-2] > distances[-3]
        else:
            assert distances == sorted(distances, reverse=run == "base")

    def test_what_the_text_says_of_other_seeds(self):
        _, found = results.seeds()
        pairs = zip(found["conditional"], found["glow"], strict=True)
        assert sorted(glow > ours for ours, glow in pairs) == [False, True, True]
        (far, its_error), (near, error) = map(results.behind, ("base", "glow"))
        assert far > 2 * its_error and near < 2 * error

    def test_what_the_text_says_of_what_comes_back(self):
        rows = results.load("exactness.json")["rows"]
        assert not sum(row["lost"] for row in rows) and {row["alpha"] for row in rows} == {0.5}
        assert not config("photographs").training.patterns
        warned = {(row["run"], row["images"]) for row in rows if row["most_rms"] > FAR}
        kinds = {kind.partition(",")[0].removesuffix(" of 0 and 255") for _, kind in warned}
        assert kinds == {"noise", "checkerboard", "embedded photographs"}
        trained = {(run, f"TFDS {config(run).data.source}/3.0.2") for run in results.RUNS}
        assert not warned & (trained | {("photographs", "embedded photographs")})

    def test_files_that_the_commands_make_are_there(self):
        for line in (line for lines in results.commands().values() for line in lines):
            words = shlex.split(line)
            run = words[words.index("--run") + 1]
            out = words[words.index("--out") + 1] if "--out" in words else f"{run}/evaluation"
            if "--json" in words:
                assert (ROOT / words[words.index("--json") + 1]).is_file(), line
            elif words[3] == "evaluate":
                assert (ROOT / out / "bits_per_dim-test.json").is_file(), line
            else:
                assert list(
                    (ROOT / (out if "--out" in words else f"{run}/pictures")).glob(
                        f"{words[3].removesuffix('s')}*.json"
                    )
                ), line

    def test_table_of_the_trials_is_that_of_the_rows(self):
        page = (ROOT / "docs" / "trials.md").read_text(encoding="utf-8")
        assert results.put(page, "trials", trials.render(trials.read_rows(trials.ROWS))) == page


class TestChanges:
    """A changed digit is found, wherever it is."""

    def test_in_a_table(self):
        place = PAGE.index("**", PAGE.index("<!-- bits -->")) + 4
        changed = f"{PAGE[:place]}{(int(PAGE[place]) + 1) % 10}{PAGE[place + 1 :]}"
        (line,) = results.differences(changed, results.with_tables(changed))
        assert line.startswith("the page says '| ours | ") and "the files say '| ours | " in line

    def test_every_digit_of_the_text(self):
        text = prose(PAGE)
        assert not mistakes(text)
        named = [range(*match.span()) for match in re.finditer(NAMES, text)]
        places = [m.start() for m in re.finditer(r"\d", text) if not any(m.start() in each for each in named)]
        assert len(places) > 150
        # One in seven, which are others in another page.
        for place in places[len(text) % 7 :: 7]:
            changed = f"{text[:place]}{(int(text[place]) + 5) % 10}{text[place + 1 :]}"
            assert mistakes(changed), text[max(place - 40, 0) : place + 20]

    def test_in_a_file(self, monkeypatch):
        load = results.load

        def changed(name):
            found = load(name)
            return found | {"floor": found["floor"] + 0.1} if name == "conditional/evaluation/frechet.json" else found

        monkeypatch.setattr(results, "load", changed)
        floor = load("conditional/evaluation/frechet.json")["floor"]
        before, after = (f"| training images (floor) | {number:.1f} |  |" for number in (floor, floor + 0.1))
        assert results.differences(PAGE, results.with_tables(PAGE)) == [
            f"the page says '{before}', the files say '{after}'"
        ]

"""docs/RESULTS.md and docs/trials.md: their tables are those of the files, which are of the committed weights."""

from __future__ import annotations

import json
import pathlib
import shlex
import sys

from helpers.places import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import results, trials  # noqa: E402

PAGE = results.PAGE.read_text(encoding="utf-8")


class TestPage:
    def test_tables_are_those_of_the_files(self):
        assert not results.differences(PAGE, results.with_tables(PAGE))

    def test_table_of_the_trials_is_that_of_the_rows(self):
        page = (ROOT / "docs" / "trials.md").read_text(encoding="utf-8")
        assert results.put(page, "trials", trials.render(trials.read_rows(trials.ROWS))) == page

    def test_a_changed_digit_in_a_table_is_found(self):
        place = PAGE.index("**", PAGE.index("<!-- bits -->")) + 4
        changed = f"{PAGE[:place]}{(int(PAGE[place]) + 1) % 10}{PAGE[place + 1 :]}"
        (line,) = results.differences(changed, results.with_tables(changed))
        assert line.startswith("the page says '| ours | ") and "the files say '| ours | " in line


class TestFiles:
    def test_are_of_the_committed_weights(self):
        """What `evaluate` and pictures wrote of the runs, but for counts and curves."""
        steps = {run: results.load(f"{run}/summary.json")["best_step"] for run in (*results.TITLES, "quickstart")}
        seen = 0
        for run, step in steps.items():
            for folder in ("evaluation", "pictures"):
                for path in (results.FILES / run / folder).rglob("*.json"):
                    if path.name not in ("curves.json",):
                        assert json.loads(path.read_text(encoding="utf-8"))["step"] == step, path
                        seen += 1
        round_trips = [row for name in ("exactness", "every_image") for row in results.load(f"{name}.json")["rows"]]
        for found in [*round_trips, results.load("frechet.json")]:
            assert found["step"] == steps[pathlib.PurePath(found["run"]).name], found
            seen += 1
        assert seen > 70

    def test_that_the_commands_make_are_there(self):
        for line in (line for lines in results.commands().values() for line in lines):
            words = shlex.split(line)
            run = words[words.index("--run") + 1]
            out = words[words.index("--out") + 1] if "--out" in words else f"{run}/evaluation"
            if "--json" in words:
                assert (ROOT / words[words.index("--json") + 1]).is_file(), line
            elif words[3] == "evaluate":
                assert (ROOT / out / "bits_per_dim-test.json").is_file(), line
            else:
                pictures = ROOT / (out if "--out" in words else f"{run}/pictures")
                assert list(pictures.glob(f"{words[3].removesuffix('s')}*.json")), line

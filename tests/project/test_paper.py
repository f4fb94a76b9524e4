"""The tables of docs/paper.md come from the presets, which have the options of the paper and its authors' code."""

from __future__ import annotations

import re
import sys

import pytest
from helpers.places import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import paper  # noqa: E402
from tfdecouple.config import load_preset, preset_names  # noqa: E402

PAGE = paper.PAGE.read_text(encoding="utf-8")


def run_program(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["paper.py", *arguments])
    return paper.main()


def test_tables_agree_with_the_presets(monkeypatch, capsys):
    assert run_program(monkeypatch, "--check") == 0, capsys.readouterr().out


@pytest.mark.parametrize("right", ["51,860,457", "1,425,000 x 512", "| 1,200 | 150 |", "| `model.latent_dim` |"])
def test_check_finds_a_changed_table_and_the_program_mends_it(right, monkeypatch, capsys, tmp_path):
    assert right in PAGE
    monkeypatch.setattr(paper, "PAGE", tmp_path / "paper.md")
    paper.PAGE.write_text(PAGE.replace(right, "CHANGED", 1), encoding="utf-8")
    assert run_program(monkeypatch, "--check") == 1 and "CHANGED" in capsys.readouterr().out
    assert run_program(monkeypatch) == 0 and paper.PAGE.read_text(encoding="utf-8") == PAGE


@pytest.mark.parametrize("option", paper.OPTIONS)
def test_presets_have_the_stated_options(option):
    _, stated = paper.OPTIONS[option]
    values = [load_preset(name).flatten_options()[option] for name in paper.DATA_SETS.values()]
    by_data_set = isinstance(stated, list) and len(stated) == len(values)
    for value, expected in zip(values, stated if by_data_set else [stated] * len(values), strict=True):
        assert expected is None or value == expected


def test_descriptions_of_presets_have_the_bits_of_the_table():
    in_description = {}
    for name in preset_names():
        description = load_preset(name).description
        if found := re.search(r"([\d.]+) bits/dim\)$", description):
            in_description[name] = found[1]
    assert in_description == paper.BITS


@pytest.mark.parametrize("name", paper.list_models())
def test_hours_are_the_days_that_the_notes_of_the_preset_state(name):
    config = load_preset(name)
    for precision, pattern in {"float32": r"(\d+) days of one", "tf32": r"or (\d+) with TF32"}.items():
        days = float(re.search(pattern, config.notes)[1])
        assert paper.compute_hours(config, precision) / 24 == pytest.approx(days, abs=1)

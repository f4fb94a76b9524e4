"""Tests that the tables of docs/paper.md come from the presets, which have the options of the paper."""

import sys

import pytest
from helpers.places import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import paper  # noqa: E402
from tfdecouple.config import load_preset  # noqa: E402

PAGE = paper.PAGE.read_text(encoding="utf-8")


def test_tables_of_the_paper_page_agree_with_the_presets_and_a_change_is_found(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(paper, "PAGE", tmp_path / "paper.md")
    paper.PAGE.write_text(PAGE.replace("51,860,457", "CHANGED", 1), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["paper.py", "--check"])
    assert paper.main() == 1 and "CHANGED" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["paper.py"])
    assert paper.main() == 0 and paper.PAGE.read_text(encoding="utf-8") == PAGE


@pytest.mark.parametrize("option", paper.OPTIONS)
def test_presets_have_the_options_that_the_paper_page_states(option):
    _, stated = paper.OPTIONS[option]
    values = [load_preset(name).flatten_options()[option] for name in paper.DATA_SETS.values()]
    by_data_set = isinstance(stated, list) and len(stated) == len(values)
    for value, expected in zip(values, stated if by_data_set else [stated] * len(values), strict=True):
        assert expected is None or value == expected

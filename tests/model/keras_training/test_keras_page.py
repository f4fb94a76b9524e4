"""docs/keras.md: its script runs."""

import re

import pytest
from helpers.documents import split_code
from helpers.places import ROOT

PAGE = (ROOT / "docs" / "keras.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_script_of_the_keras_page_runs(tmp_path, monkeypatch):
    from helpers.models import random_images

    (block,) = split_code(PAGE)
    code = re.sub(r"batch_size=64,\n    epochs=10", "batch_size=8,\n    epochs=2", block.text)
    assert code != block.text
    monkeypatch.chdir(tmp_path)
    names = {"images": random_images(20, size=32), "test_images": random_images(5, size=32)}
    exec(compile(code, "docs/keras.md", "exec"), names)
    assert (tmp_path / "best.keras").is_file()

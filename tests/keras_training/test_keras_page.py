"""docs/keras.md: each of its sentences is held by a test, and its script runs."""

import importlib
import re

import pytest
from helpers.documents import split_code
from helpers.places import ROOT
from helpers.sentences import held, sentences

PAGE = (ROOT / "docs" / "keras.md").read_text(encoding="utf-8")
MODULES = ("test_keras_fit", "test_keras_steps", "test_keras_model", "test_keras_use")
# What is no promise.
POINTERS = ("`python train.py` is the other way to train",)


def test_every_sentence_has_a_test():
    for module in MODULES:
        importlib.import_module(module)
    written = {each for each in sentences(PAGE) if not each.startswith(POINTERS)}
    assert written - held() == set(), "sentences without a test"
    assert held() - written == set(), "sentences that the page has no more"


@pytest.mark.slow
def test_its_script_runs(tmp_path, monkeypatch):
    from helpers.models import random_images

    (block,) = split_code(PAGE)[0]
    code = re.sub(r"batch_size=64,\n    epochs=10", "batch_size=8,\n    epochs=2", block.text)
    assert code != block.text
    monkeypatch.chdir(tmp_path)
    names = {"images": random_images(20, size=32), "test_images": random_images(5, size=32)}
    exec(compile(code, "docs/keras.md", "exec"), names)
    assert (tmp_path / "best.keras").is_file()

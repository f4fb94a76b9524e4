"""Benchmarks that compare gradients: of the backward pass by inversion, and of what XLA compiles."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from helpers.models import SMALL, SMALL_SETTINGS
from helpers.places import ROOT

from tfdecouple.config import preset_names

sys.path.insert(0, str(ROOT))

from benchmarks import compiling  # noqa: E402


def test_table_of_compiling_has_every_preset():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    table = page.partition("<!-- compiling -->")[2].partition("<!-- end of compiling -->")[0]
    assert sorted(re.findall(r"^\| (\w+) \| \d", table, re.MULTILINE)) == sorted(preset_names())


@pytest.mark.slow
def test_a_kind_is_compiled_and_computes_the_same():
    kind = list(compiling.kinds_of(SMALL))[0]
    found = compiling.measure(kind, 2)
    assert found["off"] < 1e-5 and found["compiled_s"] > found["xla_s"] > 0 and found["tensorflow_s"] > 0


@pytest.mark.slow
def test_gradients_by_inversion_are_right_until_a_layer_divides_by_nothing(tmp_path):
    changes = [text for assignment in SMALL_SETTINGS for text in ("--set", assignment)]
    options = ["--alphas", "0.5", "--updates", "1", "--precisions", "float32", "--batch", "2", "--break", *changes]
    command = [sys.executable, ROOT / "benchmarks" / "inversion.py", *options, "--json", tmp_path / "found.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"]
    first, *spoiled = [(float(row["error"]), float(row["largest"])) for row in rows]
    assert max(first) < 1e-4 and len(spoiled) == 5
    errors = [error for error, _ in spoiled]
    assert errors == sorted(errors) and errors[-1] > 1e-3

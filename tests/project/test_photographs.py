"""Tests of the table of free photographs, and of the program that makes the folder of photographs."""

import hashlib
import json
import re
import sys

import pytest
from helpers.places import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import photographs  # noqa: E402
from tfdecouple.errors import UserError  # noqa: E402


def test_table_lists_free_photographs_with_unique_names_and_digests():
    table = json.loads(photographs.TABLE.read_text(encoding="utf-8"))
    rows = table["photographs"]
    assert {row["licence"] for row in rows} == {"public domain", "CC0-1.0"}
    assert {row["package"] for row in rows} == table["suites"].keys()
    for field, form in (("file", r"[a-z0-9-]+\.png"), ("sha256", "[0-9a-f]{64}")):
        values = [row[field] for row in rows]
        assert len(set(values)) == len(values) and all(re.fullmatch(form, value) for value in values)


def test_photograph_with_another_digest_is_refused(tmp_path):
    row = {"package": "moors", "path": "heath.jpg", "sha256": hashlib.sha256(b"purple").hexdigest()}
    (tmp_path / "moors").mkdir()
    (tmp_path / "moors" / "heath.jpg").write_bytes(b"purple")
    assert photographs.read_photograph(row, tmp_path) == b"purple"
    (tmp_path / "moors" / "heath.jpg").write_bytes(b"brown")
    with pytest.raises(UserError, match="SHA-256"):
        photographs.read_photograph(row, tmp_path)

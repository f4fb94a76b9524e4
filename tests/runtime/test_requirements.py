"""Tests that a missing optional package is named together with the extra that installs it."""

import importlib.util

import pytest
from helpers.refusals import refused

from export.cli import main as export_main
from tfdecouple.cli import main
from tfdecouple.runtime.process import run_program


@pytest.fixture
def bare(monkeypatch):
    """An installation without any extra."""
    find = importlib.util.find_spec
    gone = ("onnx", "onnxruntime", "tf2onnx", "tensorflow_serving", "pyarrow", "matplotlib", "tensorflow_datasets")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find(name))


def test_command_without_a_package_names_its_extra_before_it_begins(bare, capsys):
    line = refused(capsys, lambda: export_main(["--run", "runs/x", "--to", "y"]))
    assert "the export needs onnx, which is missing: pip install 'tfdecouple[export]'" in line
    line = refused(capsys, lambda: main(["encode", "--run", "x", "--out", "y", "--format", "parquet"]))
    assert "--format parquet needs pyarrow, which is missing: pip install 'tfdecouple[parquet]'" in line


def test_failed_import_of_an_optional_package_names_its_extra(capsys):
    def draw():
        raise ModuleNotFoundError("No module named 'matplotlib.axes'", name="matplotlib.axes")

    line = refused(capsys, lambda: run_program(draw))
    assert "the command needs matplotlib, which is missing: pip install 'tfdecouple[plots]'" in line

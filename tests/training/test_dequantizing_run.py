"""A whole run with variational dequantisation, compiled by XLA and not."""

import dataclasses

import pytest
from helpers.runs import log_rows, run_config
from helpers.variants import VARIANTS

from tfdecouple.training import train

# Without z, of which other tests have XLA compute what it does: of each kind of layer a program is compiled.
MODEL = dataclasses.replace(VARIANTS["dequantization"], conditioning="none")


@pytest.mark.slow
def test_xla_trains_what_tensorflow_trains(image_folder, tmp_path):
    rows = []
    for jit_compile in (False, True):
        options = {"steps": 2, "evaluate_every": 2, "log_every": 1, "pictures": 0, "jit_compile": jit_compile}
        folder = tmp_path / str(jit_compile)
        train(run_config(image_folder, model=MODEL, **options), folder)
        rows.append(log_rows(folder))
    plain, compiled = rows
    for key in (("train", 1), ("train", 2), ("validation", 2), ("test", 2)):
        for figure in ("reconstruction", "dequantization"):
            assert compiled[key][figure] == pytest.approx(plain[key][figure], rel=1e-3, abs=1e-3), (key, figure)
    assert plain["train", 1]["dequantization"] != 0

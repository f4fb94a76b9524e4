"""The recipe of docs/extending.md for a logger, carried out literally in a copy of the package."""

from __future__ import annotations

from helpers.recipes import append_rows, copy_packages, insert_text, read_recipe, run_in_copy

from tfdecouple.loggers import LOGGERS

USE = """
import pathlib
from tfdecouple.config import Config, override
from tfdecouple.errors import ConfigError
from tfdecouple.loggers import LOGGERS, require_loggers
from tfdecouple.runs.metrics_log import MetricsLog

config = override(Config(), ['training.loggers=["tensorboard", "lines"]'])
require_loggers(config.training.loggers)
folder = pathlib.Path("run")
folder.mkdir()
log = MetricsLog(folder, [LOGGERS[name](folder, config) for name in config.training.loggers])
log.open(0)
for step in (10, 20):
    log.write("train", step, {"bits_per_dim": 8 - step / 16, "note": "text"})
log.close()
try:
    override(Config(), ['training.loggers=["line"]'])
except ConfigError as error:
    print(error)
"""


def test_a_logger_is_a_class_and_its_place_in_the_registry(tmp_path):
    folder = copy_packages(tmp_path)
    logger, _, line = read_recipe("logger").partition("\n# in `LOGGERS`\n")
    loggers = folder / "tfdecouple" / "loggers.py"
    insert_text(loggers, "LOGGERS: dict", f"{logger}\n\n\n")
    append_rows(loggers, "LOGGERS", line)
    used = run_in_copy(folder, "-c", USE)
    assert used.returncode == 0, used.stderr
    (said,) = used.stdout.splitlines()
    assert said.endswith(" or 'lines'") and all(repr(name) in said for name in LOGGERS)
    lines = (folder / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["10 train/bits_per_dim 7.375", "20 train/bits_per_dim 6.75"]
    assert (folder / "run" / "tensorboard").is_dir()

"""The recipe of docs/design.md for a logger, carried out literally in a copy of the package."""

from __future__ import annotations

from helpers.recipes import copy_of_packages, insert, recipe, replace_line, run_in

USE = """
import pathlib, sys
from tfdecouple.config import Config, override
from tfdecouple.errors import ConfigError
from tfdecouple.loggers import LOGGERS, require_loggers
print(sorted({"tensorflow", "keras", "numpy"} & set(sys.modules)))

config = override(Config(), ['training.loggers=["csv", "lines"]'])
require_loggers(config.training.loggers)
folder = pathlib.Path("run")
folder.mkdir()
from tfdecouple.training.log import MetricsLog
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


def test_a_logger_is_a_module_and_its_place_in_the_registry(tmp_path):
    folder = copy_of_packages(tmp_path)
    module, _, registered = recipe("logger").partition("# in `loggers/__init__.py`\n")
    place, loggers = module.splitlines()[0].removeprefix("# "), folder / "tfdecouple" / "loggers" / "__init__.py"
    imported, _, line = registered.partition("\n\n")
    (folder / place).write_text(module, encoding="utf-8")
    insert(loggers, "\n# By name", f"{imported}\n")
    replace_line(loggers, "LOGGERS: ", line)
    used = run_in(folder, "-c", USE, anew=True)
    assert used.returncode == 0, used.stderr
    heavy, said = used.stdout.splitlines()
    assert heavy == "[]"
    assert said.endswith("it must be one of 'tensorboard', 'csv', 'wandb', 'mlflow', 'lines'")
    lines = (folder / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["10 train/bits_per_dim 7.375", "20 train/bits_per_dim 6.75"]
    assert (folder / "run" / "train.csv").is_file()

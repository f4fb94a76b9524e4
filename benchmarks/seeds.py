"""Runs that differ by their seed alone: bits/dim after equally many updates, and how sure a difference is."""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tfdecouple.config import Config
from tfdecouple.config import difference as different
from tfdecouple.errors import UserError


class Mean(NamedTuple):
    """The mean over seeds with its standard error, NaN of one seed alone."""

    mean: float
    standard_error: float


def validation(run: pathlib.Path) -> dict[int, float]:
    """Returns the bits/dim on the validation images of a run, by the updates before each evaluation."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["step"]: row["bits_per_dim"] for row in rows if row["kind"] == "validation"}


def at_equal_length(groups: Mapping[str, Sequence[pathlib.Path]]) -> tuple[int, dict[str, dict[int, float]]]:
    """Returns after how many updates all runs were evaluated last, and the bits/dim then, by model and seed.

    Args:
        groups: the run folders of each model; they differ by `training.seed`, and perhaps by how far they have come.

    Raises:
        UserError: where two runs of a model have one seed, where they differ by more, or were never evaluated alike.
    """
    measured: dict[str, dict[int, dict[int, float]]] = {}
    for name, runs in groups.items():
        configs = [Config.from_json(run / "config.json") for run in runs]
        for config, run in zip(configs, runs, strict=True):
            if other := set(different(config, configs[0])) - {"training.seed"}:
                raise UserError(f"{run} is not as {runs[0]} but for its seed: {', '.join(sorted(other))} differ")
        measured[name] = {c.training.seed: validation(run) for c, run in zip(configs, runs, strict=True)}
        if len(measured[name]) < len(runs):
            raise UserError(f"two of {', '.join(map(str, runs))} have one seed")
    common = set.intersection(*(set(rows) for seeds in measured.values() for rows in seeds.values()))
    if not common:
        raise UserError(f"the runs of {', '.join(groups)} were never evaluated after equally many updates")
    last = max(common)
    return last, {name: {seed: rows[last] for seed, rows in seeds.items()} for name, seeds in measured.items()}


def mean_of(values: Sequence[float]) -> Mean:
    """Returns the mean of one value a seed, and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Mean(statistics.fmean(values), error)


def difference(worse: Sequence[float], better: Sequence[float]) -> Mean:
    """Returns by how much the one mean is above the other, with the standard error of that."""
    one, other = mean_of(worse), mean_of(better)
    return Mean(one.mean - other.mean, math.hypot(one.standard_error, other.standard_error))

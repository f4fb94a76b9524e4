"""Arrays on their way between the processes of the gate, and how two of them are compared."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Parity is tried at these batches. The model computes their images in one batch, so that batch freedom is tested too.
BATCHES = (1, 3, 17)
# z, v and bits/dim may differ by this much of the largest value.
TOLERANCE = 1e-4
# Where pixels come from noise, a value may lie on the border of two levels: so many of them may differ, by one level.
BORDERLINE = 1e-3
# What decodes images hides errors below half a level, since codes of images lie in the middle of their bins: decode is
# compared on codes drawn at random as well.
DRAWN = "decode of drawn codes"
LATENCY_BATCHES = (1, 16)

Arrays = dict[str, np.ndarray]
# Calls an endpoint: its name and its inputs by name give its outputs by name.
Call = Callable[[str, Arrays], Arrays]


def save_cases(cases: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes the arrays for the processes of the gate."""
    # Names with slashes would become folders in the archive: they are listed in an array of their own.
    arrays = {f"array_{number}": array for number, array in enumerate(cases.values())}
    np.savez(path, allow_pickle=False, names=np.array(list(cases)), **arrays)


def load_cases(path: pathlib.Path) -> Arrays:
    """Reads what `save_cases` wrote."""
    with np.load(path) as archive:
        return {str(name): archive[f"array_{number}"] for number, name in enumerate(archive["names"])}


def group(cases: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """Returns the arrays whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in cases.items() if name.startswith(prefix)}


@dataclasses.dataclass
class Report:
    """What one process of the gate found.

    Attributes:
        parity: {endpoint: {output: {"max": ..., "mean": ...}}} against the Keras model, over all batches. Of floats the
            differences relative to the largest value, of pixels in levels, and "differing", the fraction of subpixels.
        round_trip: {kind of image: {"images": n, "identical": n}} of encode, then decode.
        latency_ms: {endpoint: {batch: milliseconds}}, medians.
        problems: why the export must not be published, a line each.
        notes: other facts for the card.
    """

    parity: dict[str, dict[str, dict[str, float]]] = dataclasses.field(default_factory=dict)
    round_trip: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    latency_ms: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def save(self, path: pathlib.Path) -> None:
        """Writes the report as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: pathlib.Path) -> Report:
        """Reads what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    # --- the checks that both formats pass ---

    def check_parity(self, endpoint: str, call: Call, cases: Arrays, case: str | None = None) -> None:
        """Compares an endpoint with the Keras model at every batch.

        Args:
            endpoint: its name.
            call: runs it.
            cases: of the gate.
            case: under which name its inputs and outputs are among the cases; by default its own.
        """
        case = case or endpoint
        inputs, expected = group(cases, f"in/{case}/"), group(cases, f"out/{case}/")
        start, answers = 0, []
        for batch in BATCHES:
            try:
                answers.append(call(endpoint, {name: array[start : start + batch] for name, array in inputs.items()}))
            except Exception as error:  # noqa: BLE001 - whatever a runtime raises, the endpoint does not work
                self.problems.append(f"{endpoint} fails at batch {batch}: {reason(error)}")
                return
            start += batch
        self.parity[case] = {}
        if more := sorted({*answers[0]} - {*expected}):
            self.problems.append(f"{endpoint} returns {', '.join(more)} as well, which the model does not")
        for name, right in expected.items():
            parts = [answer.get(name) for answer in answers]
            if any(part is None for part in parts):
                self.problems.append(f"{endpoint} has no output {name}")
                continue
            found = np.concatenate([np.asarray(part) for part in parts])
            if found.shape != right.shape or found.dtype != right.dtype:
                self.problems.append(
                    f"{endpoint} returns {name} as {found.dtype} {list(found.shape)} "
                    f"where the model has {right.dtype} {list(right.shape)}"
                )
                continue
            self.parity[case][name] = difference(found, right)
            # With fewer than 8 bits, neighbouring levels are pixel values that lie apart.
            self._judge(case, name, float(np.gcd.reduce(right, axis=None)) if right.dtype == np.uint8 else None)

    def _judge(self, case: str, name: str, level: float | None) -> None:
        figures = self.parity[case][name]
        if level is not None:
            # What comes from codes of images lies in the middle of its bin and must agree everywhere.
            allowed = 0.0 if case == "decode" else BORDERLINE
            # A single pixel may be far off, where a drawn image is at the edge of what the model can invert.
            if figures["differing"] > allowed or figures["mean"] > 2 * allowed * max(level, 1.0):
                self.problems.append(
                    f"{case}: {figures['differing']:.2%} of the subpixels of {name} differ from the model, by up "
                    f"to {figures['max']:.0f} levels; allowed {allowed:.1%}" + (", by one level" if allowed else "")
                )
        elif not figures["max"] <= TOLERANCE:
            self.problems.append(
                f"{case}: {name} differs from the model by {figures['max']:.1e} of the largest value; "
                f"allowed {TOLERANCE:.0e}"
            )

    def check_round_trip(self, call: Call, cases: Arrays, exact: bool) -> None:
        """Encodes and decodes with the files alone.

        Args:
            call: runs an endpoint.
            cases: of the gate.
            exact: whether extreme images must come back, too: alpha is below 1 and the model itself keeps them.
        """
        kinds = {"real": cases["real"], **group(cases, "extreme/")}
        for kind, images in kinds.items():
            identical = 0
            for start in range(0, len(images), 16):
                part = images[start : start + 16]
                back = call("decode", call("encode", {"images": part}))["images"]
                identical += int((back == part).reshape(len(part), -1).all(1).sum())
            self.round_trip[kind] = {"images": len(images), "identical": identical}
            if identical < len(images) and (exact or kind == "real"):
                self.problems.append(f"decode(encode): {len(images) - identical} of {len(images)} {kind} images differ")

    def measure_latency(self, endpoint: str, call: Call, cases: Arrays) -> None:
        """Times an endpoint; a few calls are enough for a card."""
        inputs = group(cases, f"in/{endpoint}/")
        self.latency_ms[endpoint] = {}
        for batch in LATENCY_BATCHES:
            part = {name: array[:batch] for name, array in inputs.items()}
            call(endpoint, part)
            seconds = median_seconds(functools.partial(call, endpoint, part))
            self.latency_ms[endpoint][str(batch)] = round(1000 * seconds, 3)


def run_check(check: Callable[..., Report], arguments: Sequence[str]) -> int:
    """Runs a process of the gate: its arguments are FOLDER CASES REPORT OPTIONS, the last as JSON."""
    folder, cases, report, options = arguments
    check(pathlib.Path(folder), load_cases(pathlib.Path(cases)), **json.loads(options)).save(pathlib.Path(report))
    return 0


def reason(error: BaseException) -> str:
    """Returns in one line why something failed: of an error raised while another was handled, the first."""
    while error.__context__ is not None:
        error = error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def difference(found: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Returns largest and mean difference: of floats relative to the largest value, of uint8 in levels."""
    change = np.abs(found.astype(np.float64) - right.astype(np.float64))
    if right.dtype == np.uint8:
        return {"max": float(change.max()), "mean": float(change.mean()), "differing": float((change > 0).mean())}
    largest = max(float(np.abs(right).max()), np.finfo(np.float32).tiny)
    return {"max": float(change.max() / largest), "mean": float(change.mean() / largest)}


def median_seconds(call: Callable[[], Any], at_least: int = 3, seconds: float = 1.0, at_most: int = 50) -> float:
    """Returns the median time of a call that has run before."""
    times: Sequence[float] = []
    while len(times) < at_least or (sum(times) < seconds and len(times) < at_most):
        begun = time.perf_counter()
        call()
        times = [*times, time.perf_counter() - begun]
    return statistics.median(times)

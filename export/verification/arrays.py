"""Arrays on their way between the processes of the gate, and what a process reports."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from export.verification.judge import Answer, restored

# A call of 16 is timed where it takes no more seconds than this.
LATENCY_BATCHES = (1, 16)
_LATENCY_SECONDS = 4.0
_PAUSE = 0.02
# Pixels that a file encodes or decodes at once in the round trip.
_PIXELS_AT_ONCE = 16 * 64 * 64

Arrays = dict[str, np.ndarray]
# Calls an endpoint: its name and its inputs by name give its outputs by name.
Call = Callable[[str, Arrays], Arrays]
InOrder = Callable[..., Iterable[Any]]


def batches(side: int) -> tuple[int, int, int]:
    """Returns the sizes of the batches at which parity is tried: fewer of larger images, and never fewer than three.

    The model computes their images in other batches, so that it is tested that none depends on its neighbours.
    """
    for most, largest in ((32, 17), (64, 8), (128, 4)):
        if side <= most:
            return (1, 3, largest)
    return (1, 2, 1)


def save_cases(cases: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes the arrays for the processes of the gate."""
    # Names with slashes would become folders in the archive: they are listed in an array of their own.
    # Endpoints share inputs: what is there before is there once.
    arrays: Arrays = {}
    numbers = []
    known: dict[tuple[object, ...], int] = {}
    for array in cases.values():
        same = (array.shape, array.dtype, hashlib.sha256(array.tobytes()).digest())
        numbers.append(known.setdefault(same, len(known)))
        arrays.setdefault(f"array_{numbers[-1]}", array)
    np.savez_compressed(path, allow_pickle=False, names=np.array(list(cases)), numbers=np.array(numbers), **arrays)


def load_cases(path: pathlib.Path) -> Arrays:
    """Reads what `save_cases` wrote."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files if name.startswith("array_")}
        names = zip(archive["names"], archive["numbers"], strict=True)
        return {str(name): arrays[f"array_{number}"] for name, number in names}


def group(cases: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """Returns the arrays whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in cases.items() if name.startswith(prefix)}


@dataclasses.dataclass
class Report:
    """What one process of the gate found.

    Attributes:
        parity: {endpoint: {output: {"max": ..., "mean": ..., "unstable": n}}} against the Keras model, over all
            images on which the model itself is stable; it is not on n of them. Of floats the differences are relative
            to the largest value, of pixels in levels, and "differing" is the fraction of subpixels.
        round_trip: {kind of image: {"images": n, "identical": n, "model": n, "model_gives_back": n}} of encode, then
            decode; the model itself gives back so many, and as many as "model" says also from codes that are moved.
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

    # --- the checks that all formats pass ---

    def check_files(self, endpoints: Iterable[str], call: Call, cases: Arrays, in_order: InOrder = map) -> None:
        """Compares all endpoints, then encodes and decodes; what fails, ends it.

        Args:
            endpoints: that are there, those that encode and decode among them.
            call: runs one.
            cases: of the gate.
            in_order: calls a function of each of some arguments and gives its results in their order, as `map`.
        """
        answered = self.check_endpoints(endpoints, call, cases, in_order)
        if not self.problems:
            self.check_round_trip(call, cases, answered["encode"], in_order)

    def check_endpoints(
        self, endpoints: Iterable[str], call: Call, cases: Arrays, in_order: InOrder = map
    ) -> dict[str, Arrays]:
        """Compares endpoints in all cases that there are of them; returns what each answered to its plain inputs."""

        def compared(endpoint: str) -> tuple[Report, Arrays]:
            report = Report()
            answered = report.check_parity(endpoint, call, cases)
            if endpoint in report.parity:
                for case in cases_of(cases, endpoint):
                    report.check_parity(endpoint, call, cases, case)
            return report, answered

        every, found = list(endpoints), {}
        for endpoint, (report, answered) in zip(every, in_order(compared, every), strict=True):
            self.parity |= report.parity
            self.problems += report.problems
            found[endpoint] = answered
        return found

    def check_parity(self, endpoint: str, call: Call, cases: Arrays, case: str | None = None) -> Arrays:
        """Compares an endpoint with the Keras model at every batch.

        Args:
            endpoint: its name.
            call: runs it.
            cases: of the gate.
            case: under which name its inputs and outputs are among the cases; by default its own.

        Returns:
            What it answered to all batches, or nothing where it failed.
        """
        case = case or endpoint
        inputs, expected = group(cases, f"in/{case}/"), answers_in(cases, case)
        if not expected:
            self.problems.append(f"{endpoint} cannot be compared: the gate has no answers of the model to it")
            return {}
        start, answers = 0, []
        for batch in cases["batches"].tolist():
            try:
                answers.append(call(endpoint, {name: array[start : start + batch] for name, array in inputs.items()}))
            except Exception as error:  # noqa: BLE001 - whatever a runtime raises, the endpoint does not work
                self.problems.append(f"{endpoint} fails at batch {batch}: {reason(error)}")
                return {}
            start += batch
        self.parity[case] = {}
        if more := sorted({*answers[0]} - {*expected}):
            self.problems.append(f"{endpoint} returns {', '.join(more)} as well, which the model does not")
        whole: Arrays = {}
        for name, answer in expected.items():
            right, parts = answer.right, [made[name] for made in answers if name in made]
            if len(parts) < len(answers):
                self.problems.append(f"{endpoint} has no output {name}")
                continue
            try:
                found = np.concatenate([np.asarray(part) for part in parts])
            except ValueError:
                shapes = ", ".join(str(list(np.shape(part))) for part in parts)
                self.problems.append(f"{endpoint} returns {name} of other shapes at other batches: {shapes}")
                continue
            if found.shape != right.shape or found.dtype != right.dtype:
                self.problems.append(
                    f"{endpoint} returns {name} as {found.dtype} {list(found.shape)} "
                    f"where the model has {right.dtype} {list(right.shape)}"
                )
                continue
            whole[name] = found
            self.parity[case][name], problem = answer.judge(found)
            if problem:
                self.problems.append(f"{case}: {name}: {problem}")
        return whole

    def check_round_trip(
        self, call: Call, cases: Arrays, encoded: Arrays | None = None, in_order: InOrder = map
    ) -> None:
        """Encodes and decodes with the files alone: what the model itself surely keeps, the files must keep.

        Args:
            call: runs an endpoint.
            cases: of the gate.
            encoded: codes of the first real images, where the file has answered to them already.
            in_order: as of `check_files`.
        """
        kinds = {"real": cases["real"], **group(cases, "extreme/")}

        def same(part: tuple[str, Arrays, Arrays]) -> np.ndarray:
            _, inputs, codes = part
            images = inputs["images"]
            return (call("decode", codes or call("encode", inputs))["images"] == images).reshape(len(images), -1).all(1)

        parts = list(_parts(kinds, cases, encoded or {}))
        back: dict[str, list[np.ndarray]] = {}
        for (kind, *_), found in zip(parts, in_order(same, parts), strict=True):
            back.setdefault(kind, []).append(found)
        for kind, images in kinds.items():
            kept, identical = cases[f"kept/{kind}"], np.concatenate(back[kind])
            self.round_trip[kind] = {
                "images": len(images),
                "identical": int(identical.sum()),
                "model": int(kept.sum()),
            }
            # Cases of an older export lack it.
            if (given_back := cases.get(f"given_back/{kind}")) is not None:
                self.round_trip[kind]["model_gives_back"] = int(given_back.sum())
            if len(lost := np.flatnonzero(kept & ~identical)):
                numbers = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
                self.problems.append(
                    f"decode(encode): {len(lost)} of {len(images)} {kind} images differ (number {numbers}) which the "
                    "model itself gives back"
                )

    def measure_latencies(self, endpoints: Iterable[str], call: Call, cases: Arrays) -> None:
        """Times endpoints, where nothing is wrong with them."""
        for endpoint in endpoints if not self.problems else ():
            self._measure_latency(endpoint, call, cases)

    def _measure_latency(self, endpoint: str, call: Call, cases: Arrays) -> None:
        """Times an endpoint; a few calls are enough for a card."""
        inputs = group(cases, f"in/{endpoint}/")
        self.latency_ms[endpoint] = {}
        for batch in LATENCY_BATCHES:
            part = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in inputs.items()}
            begun = time.perf_counter()
            call(endpoint, part)
            first = time.perf_counter() - begun
            seconds = first if first > 1 else median_seconds(functools.partial(call, endpoint, part))
            self.latency_ms[endpoint][str(batch)] = round(1000 * seconds, 3)
            if takes_too_long(seconds):
                return


def _parts(kinds: Mapping[str, np.ndarray], cases: Arrays, encoded: Arrays) -> Iterator[tuple[str, Arrays, Arrays]]:
    """Yields images, some at a time: their kind, what `encode` takes, and their codes where these are known."""
    for kind, images in kinds.items():
        at_once = max(1, min(16, _PIXELS_AT_ONCE // math.prod(images.shape[1:3])))
        inputs = {"images": images}
        if f"labels/{kind}" in cases:
            inputs["labels"] = cases[f"labels/{kind}"]
        known = len(next(iter(encoded.values()))) if encoded and kind == "real" else 0
        for first, end, codes in ((0, known, encoded), (known, len(images), {})):
            for start in range(first, end, at_once):
                some = slice(start, min(start + at_once, end))
                given, coded = ({name: array[some] for name, array in one.items()} for one in (inputs, codes))
                yield kind, given, coded


def images_tried(cases: Arrays, endpoints: int) -> int:
    """Returns how many images a check of so many endpoints sends through a file, about: for its progress."""
    rounds = len(cases["real"]) + sum(map(len, group(cases, "extreme/").values()))
    count = int(cases["batches"].sum())
    return count * (endpoints + 1) + 2 * rounds - count


def takes_too_long(seconds: float) -> bool:
    """Returns whether the largest batch is not worth timing, where one image takes so long."""
    return LATENCY_BATCHES[-1] * seconds > _LATENCY_SECONDS


def cases_of(cases: Arrays, endpoint: str) -> list[str]:
    """Returns the names of what is tried of an endpoint beside its plain inputs: "ENDPOINT of ..."."""
    names = (name.removeprefix("in/").partition("/")[0] for name in cases if name.startswith(f"in/{endpoint} of "))
    return list(dict.fromkeys(names))


def answers_in(cases: Arrays, case: str) -> dict[str, Answer]:
    """Returns the model's answers of a case, by the names of outputs."""
    parts: dict[str, Arrays] = {}
    for name, array in group(cases, f"out/{case}/").items():
        output, _, part = name.rpartition("/")
        parts.setdefault(output, {})[part] = array
    return {output: restored(arrays) for output, arrays in parts.items()}


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


def in_turns(
    calls: Mapping[str, Callable[[], Any]], at_least: int = 3, seconds: float = 2.0, at_most: int = 30
) -> dict[str, float]:
    """Returns the median times of several calls that are made in turns, each once before, fewer where they take long.

    Between two of them is a pause, since threads of a runtime go on waiting actively for a while.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    spent = 0.0
    for round_number in range(at_most):
        if round_number and spent > (seconds if round_number >= at_least else 2 * seconds):
            break
        for name, call in calls.items():
            time.sleep(_PAUSE)
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
            spent += times[name][-1]
    return {name: statistics.median(each) for name, each in times.items()}


def median_seconds(call: Callable[[], Any], at_least: int = 3, seconds: float = 1.0, at_most: int = 50) -> float:
    """Returns the median time of a call that has run before."""
    times: Sequence[float] = []
    while len(times) < at_least or (sum(times) < seconds and len(times) < at_most):
        begun = time.perf_counter()
        call()
        times = [*times, time.perf_counter() - begun]
    return statistics.median(times)

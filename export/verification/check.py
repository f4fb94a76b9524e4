"""One verification of some files, for a process of its own: `python -m export.verification.check` and five arguments.

Whatever the runtime, endpoints are called with the cases and their answers are compared with the model's.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from export.verification.archive import Arrays, answers_in, cases_of, digest, group, load_cases
from export.verification.runtimes import RUNTIMES, Runtime, forms

# A call of 16 is timed where it takes no more seconds than this.
LATENCY_BATCHES = (1, 16)
_LATENCY_SECONDS = 4.0
_CALLS = 3
# Pixels that are encoded or decoded at once in the round trip.
_PIXELS_AT_ONCE = 16 * 64 * 64

# Calls an endpoint: its name and its inputs by name give its outputs by name.
Call = Callable[[str, Arrays], Arrays]


@dataclasses.dataclass
class Report:
    """What one verification found.

    Attributes:
        parity: {case: {output: {"max": ..., "mean": ..., "unstable": n}}} against the Keras model, over all
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

    def compare(self, endpoint: str, call: Call, cases: Arrays, case: str, *, record: bool = True) -> None:
        """Compares what an endpoint answers in a case with the model's answers, at every batch.

        Args:
            endpoint: its name.
            call: runs it.
            cases: inputs and answers.
            case: under which name its inputs and answers are among the cases.
            record: whether figures are taken down.
        """
        inputs, expected = group(cases, f"in/{case}/"), answers_in(cases, case)
        start, answers = 0, []
        for batch in cases["batches"].tolist():
            try:
                answers.append(call(endpoint, {name: array[start : start + batch] for name, array in inputs.items()}))
            except Exception as error:  # noqa: BLE001 - whatever a runtime raises, the endpoint does not work
                self.problems.append(f"{endpoint} fails at batch {batch}: {reason(error)}")
                return
            start += batch
        if more := sorted({*answers[0]} - {*expected}):
            self.problems.append(f"{endpoint} returns {', '.join(more)} as well, which the model does not")
        for name, answer in expected.items():
            parts = [np.asarray(made[name]) for made in answers if name in made]
            shapes = ", ".join(f"{part.dtype} {list(part.shape)}" for part in parts)
            right = [(count, *answer.right.shape[1:]) for count in cases["batches"].tolist()]
            if [part.shape for part in parts] != right or any(part.dtype != answer.right.dtype for part in parts):
                self.problems.append(
                    f"{endpoint} returns {name} as {shapes or 'nothing'} where the model has {answer.right.dtype} "
                    f"{', '.join(str(list(shape)) for shape in right)}"
                )
                continue
            figures, problem = answer.judge(np.concatenate(parts))
            if record:
                self.parity.setdefault(case, {})[name] = figures
            if problem:
                self.problems.append(f"{case}: {name}: {problem}")

    def check_round_trip(self, call: Call, cases: Arrays) -> None:
        """Encodes and decodes with the files alone: what the model itself surely keeps, the files must keep."""
        for kind, images in {"real": cases["real"], **group(cases, "extreme/")}.items():
            at_once = max(1, min(16, _PIXELS_AT_ONCE // math.prod(images.shape[1:3])))
            inputs = {"images": images}
            if f"labels/{kind}" in cases:
                inputs["labels"] = cases[f"labels/{kind}"]
            same = []
            for start in range(0, len(images), at_once):
                given = {name: array[start : start + at_once] for name, array in inputs.items()}
                back = call("decode", call("encode", given))["images"]
                same.append((back == given["images"]).reshape(len(back), -1).all(1))
            kept, identical = cases[f"kept/{kind}"], np.concatenate(same)
            self.round_trip[kind] = {
                "images": len(images),
                "identical": int(identical.sum()),
                "model": int(kept.sum()),
                "model_gives_back": int(cases[f"given_back/{kind}"].sum()),
            }
            if len(lost := np.flatnonzero(kept & ~identical)):
                numbers = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
                self.problems.append(
                    f"decode(encode): {len(lost)} of {len(images)} {kind} images differ (number {numbers}) which the "
                    "model itself gives back"
                )

    def measure_latencies(self, endpoints: Sequence[str], call: Call, cases: Arrays) -> None:
        """Times endpoints; a few calls are enough for a card."""
        for endpoint in endpoints:
            inputs = group(cases, f"in/{endpoint}/")
            self.latency_ms[endpoint] = {}
            for batch in LATENCY_BATCHES:
                part = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in inputs.items()}
                timed = functools.partial(call, endpoint, part)
                seconds = _seconds(timed)
                if seconds <= 1:
                    seconds = statistics.median(_seconds(timed) for _ in range(_CALLS))
                self.latency_ms[endpoint][str(batch)] = round(1000 * seconds, 3)
                # The largest batch is not worth timing where one image takes so long.
                if LATENCY_BATCHES[-1] * seconds > _LATENCY_SECONDS:
                    break


def check(
    runtime: str,
    folder: pathlib.Path,
    cases: Arrays,
    names: Mapping[str, str],
    metadata: Mapping[str, str],
    timed: Sequence[str] = (),
    round_trip: bool = True,
    tell: Callable[[str], Any] = lambda text: None,
    **options: Any,
) -> Report:
    """Checks the files of a folder.

    Args:
        runtime: of `RUNTIMES`.
        folder: holds the files.
        cases: inputs and the model's answers.
        names: of the files, without suffix, by endpoints.
        metadata: what every file must say of its origin.
        timed: endpoints whose calls are timed.
        round_trip: whether all images are encoded and decoded, where both endpoints are there.
        tell: is told how far this is.
        **options: of the runtime.
    """
    report, kind = Report(), RUNTIMES[runtime]
    report.notes[kind.package] = importlib.metadata.version(kind.package)
    try:
        opened = kind(folder, names, **options)
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises of a file that it does not know
        report.problems.append(f"the {kind.title} files cannot be opened: {reason(error)}")
        return report
    with opened:
        if not getattr(opened, "available", True):
            report.notes["unavailable"] = options["provider"]
            return report
        report.problems += [*_weights(opened, cases)]
        for endpoint in [*names, *opened.aliases]:
            of = opened.aliases.get(endpoint, endpoint)
            if not (tried := cases_of(cases, of)):
                report.problems.append(f"{endpoint} cannot be compared: there are no answers of the model to it")
                continue
            wrong = [*_signature(opened, endpoint, of, cases), *_metadata(opened, endpoint, metadata)]
            report.problems += wrong
            for case in () if wrong else tried:
                report.compare(endpoint, opened, cases, case, record=endpoint == of)
                for output, figures in report.parity.get(case, {}).items() if endpoint == of else ():
                    tell(f"  {case}: {output}: {_told(figures)}")
        if not report.problems:
            report.problems += opened.problems(cases)
        if report.problems:
            return report
        if round_trip and {"encode", "decode"} <= {*names}:
            report.check_round_trip(opened, cases)
            trips = (f"{kind} {one['identical']}/{one['images']}" for kind, one in report.round_trip.items())
            tell(f"  identical after encode and decode: {', '.join(trips)}")
        report.measure_latencies(timed, opened, cases)
    return report


def _weights(opened: Runtime, cases: Arrays) -> Iterator[str]:
    """Compares the weights in the files with the deployed ones, to the last bit."""
    known = {*cases[f"weights/{opened.layout}"].tolist()}
    every, ours, others = 0, 0, []
    for name, array in opened.weights():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            yield f"weight {name} is not of finite numbers in float32"
        every += array.size
        if any(digest(form) in known for form in forms(array)):
            ours += array.size
        else:
            others.append(name)
    if ours < opened.share * every:
        more = f" and {len(others) - 1} more" if others[1:] else ""
        yield f"weight {others[0]}{more} has other numbers than the run: {every - ours} of {every}"


def _signature(opened: Runtime, endpoint: str, of: str, cases: Arrays) -> Iterator[str]:
    """Compares names, types and shapes; only the first axis may be free."""
    found = opened.signature(endpoint)
    answers = {name: answer.right for name, answer in answers_in(cases, of).items()}
    for values, expected in zip(found or (), (group(cases, f"in/{of}/"), answers), strict=False):
        right = {name: (str(array.dtype), (None, *array.shape[1:])) for name, array in expected.items()}
        if values != right or (opened.ordered and list(values) != list(right)):
            yield f"{endpoint} has {values} where the model has {right}"


def _metadata(opened: Runtime, endpoint: str, metadata: Mapping[str, str]) -> Iterator[str]:
    said = opened.metadata(endpoint)
    if said is None:
        return
    for key, value in {**metadata, "endpoint": endpoint}.items():
        if said.get(key) != value:
            yield f"the file of {endpoint} says {key} {said.get(key)!r} where the run has {value!r}"


def _told(figures: Mapping[str, float]) -> str:
    if "differing" in figures:
        return f"{figures['differing']:.4%} of subpixels differ, max {figures['max']:.0f}"
    return f"max {figures['max']:.1e}, mean {figures['mean']:.1e} of the largest value"


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def reason(error: BaseException) -> str:
    """Returns in one line why something failed: of an error raised while another was handled, the first."""
    while error.__context__ is not None:
        error = error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def main(arguments: Sequence[str]) -> int:
    """Takes a runtime, the folder, the file of the cases, the report to write, and options as JSON."""
    runtime, folder, cases, result, options = arguments
    report = check(
        runtime,
        pathlib.Path(folder),
        load_cases(pathlib.Path(cases)),
        tell=functools.partial(print, flush=True),
        **json.loads(options),
    )
    pathlib.Path(result).write_text(json.dumps(dataclasses.asdict(report)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

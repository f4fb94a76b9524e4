"""The program that compares the files of one folder with test vectors, and its report.

`python -m export.verification.comparison RUNTIME FOLDER VECTORS OPTIONS` prints lines of progress, and last the
report as JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from export.verification.runtimes import RUNTIMES, Runtime
from export.verification.tolerance import Answer
from tfdecouple.errors import UserError

# Number of pixels that are encoded and decoded at once in the round trip.
_PIXELS_AT_ONCE = 16 * 64 * 64
# Largest number of problems that a message lists.
_NAMED = 5
# Prefix of the line on standard output that has the report.
REPORT = "report: "

Arrays = dict[str, np.ndarray]


class RefusedError(UserError):
    """The error that is raised if the files of an export do not pass their verification."""


@dataclasses.dataclass
class Report:
    """The report of one comparison of files with test vectors.

    Attributes:
        parity: the figures of `tolerance.Answer.compare`, as {endpoint: {output: figures}}. Files for images of any
            size are compared at several sizes, which follow the names of endpoints and kinds.
        round_trip: the numbers of images for each kind: all "images", images that are "identical" after encode and
            decode, and images that the Keras "model" recovers, also from perturbed codes.
        problems: the reasons why the files must not be published, a line each.
        notes: other facts for the card.
    """

    parity: dict[str, dict[str, dict[str, float]]] = dataclasses.field(default_factory=dict)
    round_trip: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


def compare_files(
    runtime: str,
    folder: pathlib.Path,
    vectors: Arrays,
    names: Mapping[str, str],
    provider: str = "",
    report: Callable[[str], Any] = lambda text: None,
) -> Report:
    """Returns the report of comparing the files of a folder with test vectors.

    `names` has the name of each endpoint's file, without suffix, and `provider` is an execution provider of ONNX
    Runtime; "" for the CPU. The test vectors are those of `vectors.make_vectors`, with the digests of
    `folded_weights.digest_weights`. For files of any size the vectors of each size have its name and "/" in front, and
    `sizes` has these names.
    """
    found, kind = Report(), RUNTIMES[runtime]
    found.notes[kind.package] = importlib.metadata.version(kind.package)
    try:
        opened = kind(folder, names, **({"provider": provider} if provider else {}))
    except Exception as error:  # noqa: BLE001 - a runtime raises anything at a file that it cannot read
        found.problems.append(f"the {kind.title} files cannot be opened: {find_first_reason(error)}")
        return found
    with opened:
        if not opened.available:
            found.notes["unavailable"] = provider
            return found
        found.problems += _compare_weights(opened, vectors)
        groups = {f" {size}": select_arrays(vectors, f"{size}/") for size in vectors.get("sizes", ())} or {"": vectors}
        for (size, group), endpoint in itertools.product(groups.items(), [*names, *opened.aliases]):
            problems, figures = _compare_answers(opened, endpoint, group)
            found.problems += [f"{endpoint}{size}: {problem}" for problem in problems]
            if endpoint in names:
                found.parity[endpoint + size] = figures
                for output, values in figures.items():
                    report(f"  {endpoint}{size}: {output}: {_describe(values)}")
        if not found.problems and {"encode", "decode"} <= {*names}:
            for size, group in groups.items():
                _compare_round_trips(opened, group, found, size)
            trips = (f"{kind} {trip['identical']}/{trip['images']}" for kind, trip in found.round_trip.items())
            report(f"  identical after encode and decode: {', '.join(trips)}")
    return found


def _compare_answers(opened: Runtime, endpoint: str, vectors: Arrays) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Returns the problems of an endpoint's answers to all batches, and the figures for each output."""
    own_name = opened.aliases.get(endpoint, endpoint)
    inputs, parts = select_arrays(vectors, f"in/{own_name}/"), select_arrays(vectors, f"out/{own_name}/")
    if not parts:
        return ["it cannot be compared: there are no answers of the model to it"], {}
    sizes, start, answers = vectors["batches"].tolist(), 0, []
    for size in sizes:
        try:
            answers.append(opened.call(endpoint, {name: array[start : start + size] for name, array in inputs.items()}))
        except Exception as error:  # noqa: BLE001 - a runtime raises anything
            return [f"it fails at batch {size}: {find_first_reason(error)}"], {}
        start += size
    expected, returned = list(dict.fromkeys(name.partition("/")[0] for name in parts)), list(answers[0])
    if opened.sorts_outputs:
        returned, expected = sorted(returned), sorted(expected)
    if returned != expected:
        return [f"it returns {', '.join(returned)} where the model returns {', '.join(expected)}"], {}
    problems, figures = [], {}
    for name in expected:
        answer = Answer(**select_arrays(parts, f"{name}/"))
        arrays = [np.asarray(one[name]) for one in answers]
        shapes = _describe_shapes([(array.dtype, array.shape) for array in arrays])
        right = _describe_shapes([(answer.values.dtype, (size, *answer.values.shape[1:])) for size in sizes])
        if shapes != right:
            problems.append(f"{name} is {shapes} where the model has {right}")
            continue
        figures[name], problem = answer.compare(np.concatenate(arrays))
        problems += [f"{name}: {problem}"] if problem else []
    return problems, figures


def _describe_shapes(arrays: list[tuple[np.dtype, tuple[int, ...]]]) -> str:
    return ", ".join(f"{dtype} {list(shape)}" for dtype, shape in arrays)


def _compare_round_trips(opened: Runtime, vectors: Arrays, found: Report, size: str) -> None:
    """Adds to `found` whether the files recover all images from their codes that the model itself recovers."""
    for kind, images in {"real": vectors["real"], **select_arrays(vectors, "extreme/")}.items():
        height, width = images.shape[1:3]
        at_once = max(1, min(16, _PIXELS_AT_ONCE // (height * width)))
        inputs = {"images": images}
        if f"labels/{kind}" in vectors:
            inputs["labels"] = vectors[f"labels/{kind}"]
        same = []
        for start in range(0, len(images), at_once):
            given = {name: array[start : start + at_once] for name, array in inputs.items()}
            decoded = opened.call("decode", opened.call("encode", given))["images"][:, :height, :width]
            same.append((decoded == given["images"]).reshape(len(decoded), -1).all(1))
        kept, identical = vectors[f"kept/{kind}"], np.concatenate(same)
        counts = {"images": len(images), "identical": int(identical.sum()), "model": int(kept.sum())}
        found.round_trip[kind + size] = counts
        if len(lost := np.flatnonzero(kept & ~identical)):
            numbers = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
            found.problems.append(
                f"decode(encode): {len(lost)} of {len(images)} {kind}{size} images differ (number {numbers}) which the "
                "model itself gives back"
            )


def _compare_weights(opened: Runtime, vectors: Arrays) -> Iterator[str]:
    """Yields a line for each problem of the weights in the files, which must equal the deployed weights to the bit."""
    known = {*vectors[f"weights/{opened.layout}"].tolist()}
    every, same, others = 0, 0, []
    for name, array in opened.read_weights():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            yield f"weight {name} is not of finite numbers in float32"
        every += array.size
        if any(digest_array(form) in known for form in reorder_axes(array)):
            same += array.size
        else:
            others.append(name)
    if same < opened.share * every:
        more = f" and {len(others) - 1} more" if others[1:] else ""
        yield f"weight {others[0]}{more} has other numbers than the run: {every - same} of {every}"


def reorder_axes(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields an array in every order of axes, also without axes of length 1, and with one or two in front."""
    for one in (array, array.reshape([side for side in array.shape if side != 1])):
        for order in itertools.permutations(range(one.ndim)):
            turned = one.transpose(order)
            yield from (turned, turned.reshape(1, 1, *turned.shape), turned.reshape(1, *turned.shape))


def digest_array(array: np.ndarray) -> str:
    """Returns the SHA-256 of an array's shape, type and bytes."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).hexdigest()


def select_arrays(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """Returns the arrays whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def join_problems(problems: Sequence[str]) -> str:
    """Returns the number of problems and the first problems, in one line."""
    if len(problems) == 1:
        return problems[0]
    named = [f"({number}) {text}" for number, text in enumerate(problems[:_NAMED], 1)]
    more = [f"and {len(problems) - _NAMED} more"] if problems[_NAMED:] else []
    return f"{len(problems)} problems: " + "; ".join([*named, *more])


def find_first_reason(error: BaseException) -> str:
    """Returns the cause of an error in one line: the first exception of its chain."""
    while error.__context__ is not None:
        error = error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _describe(figures: Mapping[str, float]) -> str:
    if "differing" in figures:
        return f"{figures['differing']:.4%} of subpixels differ, max {figures['max']:.0f}"
    return f"max {figures['max']:.1e}, mean {figures['mean']:.1e} of the largest value"


def main(arguments: Sequence[str]) -> int:
    """Returns exit status 0 after one comparison; the last argument has options of `compare_files` as JSON."""
    runtime, folder, path, options = arguments
    with np.load(path) as archive:
        vectors = dict(archive)
    found = compare_files(
        runtime, pathlib.Path(folder), vectors, report=lambda text: print(text, flush=True), **json.loads(options)
    )
    print(REPORT + json.dumps(dataclasses.asdict(found)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Compares the exported files in one folder with test vectors: inputs, and the Keras model's answers to them.

`python -m export.verification.comparison RUNTIME FOLDER VECTORS OPTIONS` prints lines of progress, and last the
report as JSON.

float32 rounds every number to a relative 6e-8, and every runtime sums in another order. So two programs without a fault
differ, on some images more than on others. The Keras model therefore answers twice (`KerasAnswers`): for inputs, and
for inputs perturbed by a relative 1e-6. A file's answer is accepted if it differs from the first answer by at most 4
times the difference between the two answers. A single number may change little by chance, so it is perturbed six times.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from export import LOG, show_progress
from export.formats.runtimes import Arrays, Runtime
from tfdecouple.registry import FORMATS
from tfdecouple.storage.files import open_npz

# The largest count of pixels in a batch of images that are encoded and decoded.
_PIXELS_AT_ONCE = 16 * 64 * 64
# Prefix of the line on standard output that has the report as JSON.
REPORT = "report: "
# The relative size of random changes of inputs, which show how much rounding can change the Keras model's answers.
PERTURBATION = 1e-6
# If inputs change by `PERTURBATION`, the Keras model's answer changes. This multiple of the change is the tolerance of
# a file's answer. Files without a fault differed from the model by 0.03 to 1.1 times the change.
FACTOR = 4.0
# To allow for rounding, each tolerance is raised by this fraction of the magnitude of the answer.
FLOOR = 2e-6
# An image whose tolerance is at least this many bins is not compared, because rounding alone changes its pixels.
UNSTABLE = 0.5


@dataclasses.dataclass
class Report:
    """The result of one comparison of exported files with test vectors.

    Attributes:
        parity: the differences from the Keras model, {endpoint: {output: differences of `Answer.compare_file`}}. For
            files that take images of any size, the key also has the size: "encode 8x8".
        round_trip: {type of images, such as "real" or "black": {"images": count, "identical": count of images that
            encode and decode leave equal, "model": count of images that the Keras model recovers}}.
        problems: the reasons why the files must not be published, a line each.
        notes: the version of the runtime's package by its name, and under "unavailable" a provider that cannot start.
    """

    parity: dict[str, dict[str, dict[str, float]]] = dataclasses.field(default_factory=dict)
    round_trip: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


def compare_files(
    runtime: str, folder: pathlib.Path, vectors: Arrays, names: Mapping[str, str], provider: str = ""
) -> Report:
    """Runs the exported files in `folder`; returns a `Report` on how their answers differ from the Keras model's.

    Args:
        runtime: the name of the format whose runtime runs the files, a key of `FORMATS`.
        folder: the folder with the exported files.
        vectors: the test vectors, {name: array}: inputs and the Keras model's answers (`vectors.make_test_vectors`),
            digests of weights (`digest_weights`), `metadata`, JSON of {name: text}, and `picture` and `fitted` of
            `vectors.make_picture`. For files that take images of any size, `sizes` has names of sizes, such as "8x6",
            and the names of the arrays for this size begin with "8x6/".
        names: {endpoint: name of its file, without suffix}.
        provider: an execution provider of ONNX Runtime; "" for the CPU.
    """
    found, runtime_class = Report(), FORMATS[runtime]().runtime
    assert runtime_class is not None
    found.notes[runtime_class.package] = importlib.metadata.version(runtime_class.package)
    try:
        opened = runtime_class(folder, names, **({"provider": provider} if provider else {}))
    except Exception as error:  # a runtime raises any class of error for a file that it cannot read
        found.problems.append(f"the {runtime} files cannot be opened: {find_first_reason(error)}")
        return found
    with opened:
        if not opened.available:
            found.notes["unavailable"] = provider
            return found
        found.problems += _compare_weight_digests(opened, vectors)
        groups = {f" {size}": select_arrays(vectors, f"{size}/") for size in vectors.get("sizes", ())} or {"": vectors}
        for (size, group), endpoint in itertools.product(groups.items(), [*names, *opened.aliases]):
            problems, differences = _compare_answers(opened, endpoint, group)
            problems = problems or [*_check_shapes(opened, endpoint, group, bool(size))]
            found.problems += [f"{endpoint}{size}: {problem}" for problem in problems]
            if endpoint in names:
                found.parity[endpoint + size] = differences
                for output, values in differences.items():
                    LOG.info("  %s%s: %s: %s", endpoint, size, output, _describe_differences(values))
        try:
            opened.check_attachments(vectors)
        except Exception as error:  # TensorFlow raises any class of error for a damaged file
            found.problems.append(f"the {opened.attachments} do not pass: {find_first_reason(error)}")
        if not found.problems and {"encode", "decode"} <= {*names}:
            for size, group in groups.items():
                _compare_round_trips(opened, group, found, size)
            counts = [f"{name} {trip['identical']}/{trip['images']}" for name, trip in found.round_trip.items()]
            LOG.info("  identical after encode and decode: %s", ", ".join(counts))
    return found


def _compare_answers(opened: Runtime, endpoint: str, vectors: Arrays) -> tuple[list[str], dict[str, dict[str, float]]]:
    own_name = opened.aliases.get(endpoint, endpoint)
    inputs, parts = select_arrays(vectors, f"in/{own_name}/"), select_arrays(vectors, f"out/{own_name}/")
    if not parts:
        return ["it cannot be compared: there are no answers of the model to it"], {}
    sizes, start, answers = vectors["batches"].tolist(), 0, []
    for size in sizes:
        batch = {name: array[start : start + size] for name, array in inputs.items()}
        try:
            answers.append(opened.call_endpoint(endpoint, batch))
        except Exception as error:  # a runtime raises any class of error
            return [f"it fails at batch {size}: {find_first_reason(error)}"], {}
        start += size
    expected, returned = list(dict.fromkeys(name.partition("/")[0] for name in parts)), list(answers[0])
    if opened.sorts_outputs:
        returned, expected = sorted(returned), sorted(expected)
    if returned != expected:
        return [f"it returns {', '.join(returned)} where the model returns {', '.join(expected)}"], {}
    problems, differences = [], {}
    for name in expected:
        answer = Answer(**select_arrays(parts, f"{name}/"))
        arrays = [np.asarray(answer_arrays[name]) for answer_arrays in answers]
        shapes = _describe_shapes([(array.dtype, array.shape) for array in arrays])
        right = _describe_shapes([(answer.values.dtype, (size, *answer.values.shape[1:])) for size in sizes])
        if shapes != right:
            problems.append(f"{name} is {shapes} where the model has {right}")
            continue
        differences[name], problem = answer.compare_file(np.concatenate(arrays))
        problems += [f"{name}: {problem}"] if problem else []
    return problems, differences


def _check_shapes(opened: Runtime, endpoint: str, vectors: Arrays, any_size: bool) -> Iterator[str]:
    """Yields a problem for each shape that is declared unlike the model's, and each wrong shape that is not refused."""
    name = opened.aliases.get(endpoint, endpoint)
    inputs = {key: array[:2] for key, array in select_arrays(vectors, f"in/{name}/").items()}
    outputs = {key.removesuffix("/values"): array for key, array in select_arrays(vectors, f"out/{name}/").items()}
    for key, shape in opened.read_shapes(endpoint).items():
        sizes = list((inputs | outputs)[key].shape[1:])
        right = [None, *([None, None, *sizes[2:]] if any_size and sizes[2:] else sizes)]
        if [*shape] != right:
            yield f"{key} is declared as {[*shape]} where the model has {right}"
    deeper = {key: array[..., None] for key, array in inputs.items()}
    # An axis that is twice as long would become more images if the graph only reshaped its inputs.
    longer = {
        key: np.repeat(array if array.ndim > 1 else deeper[key], 2, -1 if any_size else 1)
        for key, array in inputs.items()
    }
    for wrong, keys in itertools.product((longer, deeper), [*([key] for key in inputs), [*inputs]]):
        with contextlib.suppress(Exception):
            opened.call_endpoint(endpoint, {**inputs, **{key: wrong[key] for key in keys}})
            yield f"it takes {', '.join(f'{key} of the shape {[*wrong[key].shape]}' for key in keys)}"


def _describe_shapes(arrays: list[tuple[np.dtype, tuple[int, ...]]]) -> str:
    return ", ".join(f"{dtype} {list(shape)}" for dtype, shape in arrays)


def _compare_round_trips(opened: Runtime, vectors: Arrays, found: Report, size: str) -> None:
    """Encodes and decodes the test images with the exported files, and adds the counts of recovered images to `found`.

    Images that only the Keras model recovers are added as problems. `size` is "", or such as " 8x6" for files that take
    images of any size.
    """
    for image_type, images in {"real": vectors["real"], **select_arrays(vectors, "hard/")}.items():
        height, width = images.shape[1:3]
        batch = max(1, min(16, _PIXELS_AT_ONCE // (height * width)))
        inputs = {"images": images}
        if f"labels/{image_type}" in vectors:
            inputs["labels"] = vectors[f"labels/{image_type}"]
        identical = np.zeros(len(images), bool)
        for start in range(0, len(images), batch):
            rows = {name: array[start : start + batch] for name, array in inputs.items()}
            decoded = opened.call_endpoint("decode", opened.call_endpoint("encode", rows))["images"][:, :height, :width]
            identical[start : start + batch] = (decoded == rows["images"]).all((1, 2, 3))
        recovered = vectors[f"kept/{image_type}"]
        counts = {"images": len(images), "identical": int(identical.sum()), "model": int(recovered.sum())}
        found.round_trip[image_type + size] = counts
        if len(lost := np.flatnonzero(recovered & ~identical)):
            numbers = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
            found.problems.append(
                f"decode(encode): {len(lost)} of {len(images)} {image_type}{size} images differ (number {numbers}) "
                "which the model itself gives back"
            )


def _compare_weight_digests(opened: Runtime, vectors: Arrays) -> Iterator[str]:
    """Yields a problem for each weight that is not finite float32, and one if too many have an unknown digest."""
    digests = {*vectors[f"weights/{opened.layout}"].tolist()}
    total, equal, others = 0, 0, []
    for name, array in opened.read_weights():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            yield f"weight {name} is not of finite numbers in float32"
        total += array.size
        if digest_array(array) in digests:
            equal += array.size
        else:
            others.append(name)
    if equal < opened.share * total:
        more = f" and {len(others) - 1} more" if others[1:] else ""
        yield f"weight {others[0]}{more} has other numbers than the run: {total - equal} of {total}"


def digest_array(array: np.ndarray) -> str:
    """Returns the SHA-256 of an array's dtype and sorted values, so that the order of its axes does not matter."""
    # Adding 0 turns -0.0 into 0.0. The two compare equal, so their order after sorting would depend on the axes.
    return hashlib.sha256(array.dtype.str.encode() + (np.sort(array, axis=None) + 0).tobytes()).hexdigest()


def digest_weights(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the sorted digests of the weights `arrays` of an export, as an array of texts."""
    return np.array(sorted(map(digest_array, arrays.values())))


def select_arrays(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """Returns {name without `prefix`: array} of the arrays whose names begin with `prefix`."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def find_first_reason(error: BaseException) -> str:
    """Returns in one line the type and message of the first exception in the chain that led to `error`."""
    while error.__context__ is not None:
        error = error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _describe_differences(differences: Mapping[str, float]) -> str:
    if "differing" in differences:
        return f"{differences['differing']:.4%} of subpixels differ, max {differences['max']:.0f}"
    return f"max {differences['max']:.1e}, mean {differences['mean']:.1e} of the largest value"


@dataclasses.dataclass(frozen=True)
class Answer:
    """The Keras model's answer for one output of an endpoint, and each image's tolerance for the answer of a file.

    Attributes:
        values: the answer: floats, float32 `[n, ...]`, or pixels, uint8 `[n, height, width, channels]`.
        bound: the tolerance for each image, float32 `[n]`; for pixels in units of bins, before rounding. It is infinite
            for an image that is not compared, because the model's answer to the image is unstable or not finite.
        exact: for pixels, bool in the shape of `values`: whether the file's pixel must be equal. False if the value
            before rounding lies within `bound` of a border between two bins; then one bin of difference is accepted.
            Empty for floats.
        step: the difference between the pixels of neighbouring bins, 1 with 8 bits; 0 for floats.
    """

    values: np.ndarray
    bound: np.ndarray
    exact: np.ndarray
    step: np.ndarray

    @classmethod
    def from_floats(cls, values: np.ndarray, perturbed: Sequence[np.ndarray], scale: float = 1.0) -> Answer:
        """Returns the `Answer` for an output of floats, from answers of the Keras model, each float32 `[n, ...]`.

        `values` is the answer to the inputs, `perturbed` are the answers to inputs that are changed by a relative 1e-6.
        `scale` is `Array.scale`, the magnitude of the terms whose sum the output is.
        """
        bound = _compute_tolerances(values, perturbed) + FLOOR * (scale + _find_largest(values))
        bound = np.where(np.isfinite(bound), bound, np.inf).astype(np.float32)
        return cls(values, bound, np.zeros(0, bool), np.array(0))

    @classmethod
    def from_bins(cls, bins: np.ndarray, perturbed: Sequence[np.ndarray], n_bins: int) -> Answer:
        """Returns the `Answer` for an output of pixels, from answers of the Keras model.

        `bins` is the answer to the inputs, `perturbed` are the answers to inputs that are changed by a relative 1e-6;
        each is `[n, height, width, channels]`, in units of bins, before it is rounded down.
        """
        # Values outside the bins count, too: a value of 1e11 that changes by 1e10 may change its sign in a file.
        bound = _compute_tolerances(bins, perturbed, UNSTABLE / 2) + FLOOR * n_bins / 2
        bound[~((bound < UNSTABLE) & np.isfinite(bins).reshape(len(bins), -1).all(1))] = np.inf
        # Values outside the bins all get the pixel of the first or the last bin.
        inside = np.clip(np.nan_to_num(bins.astype(np.float64), nan=-1), -0.5, n_bins + 0.5)
        border = np.clip(np.round(inside), 1, n_bins - 1)
        exact = np.abs(inside - border) > bound.reshape(-1, 1, 1, 1)
        step = 256 // n_bins
        values = (np.clip(np.floor(inside), 0, n_bins - 1) * step).astype(np.uint8)
        return cls(values, bound.astype(np.float32), exact, np.array(step))

    def compare_file(self, found: np.ndarray) -> tuple[dict[str, float], str | None]:
        """Compares an exported file's answer `found` with this answer of the Keras model.

        Returns:
            {"max": largest difference, "mean": mean difference (both of floats: divided by the largest value),
            "unstable": count of images that are not compared, "differing": fraction of the colour values that differ
            (pixels only)}, and the problem in one line, or None.
        """
        compared, pixels = np.isfinite(self.bound), self.values.dtype == np.uint8
        count = len(self.values)
        with np.errstate(invalid="ignore", over="ignore"):
            change = np.abs(found.astype(np.float64) - self.values.astype(np.float64)).reshape(count, -1)
        if pixels:
            wrong = (change > 0) & (self.exact.reshape(count, -1) | (change != self.step))
        else:
            wrong = ~(change <= self.bound[:, None])
        wrong_values = wrong.sum(1) * compared
        largest, compared_change = _find_largest(self.values), change[compared]
        scale = 1.0 if pixels else max(float(largest[compared].max(initial=0)), float(np.finfo(np.float32).tiny))
        differences = {
            "max": float(compared_change.max(initial=0) / scale),
            "mean": float(compared_change.mean() / scale) if compared.any() else 0.0,
            "unstable": int((~compared).sum()),
        }
        if pixels:
            differences["differing"] = float((compared_change > 0).mean()) if compared.any() else 0.0
        if not compared.any():
            return differences, (
                "the Keras model itself has no stable answer to any of the images: inputs perturbed by "
                f"{PERTURBATION:g} change its values by half a bin and more, or the values are not finite"
            )
        if not wrong_values.any():
            return differences, None
        worst = int(np.argmax(np.where(wrong_values, np.nan_to_num(change.max(1), nan=np.inf), -1)))
        others = int((wrong_values > 0).sum()) - 1
        return differences, (
            f"{wrong_values[worst]} values of image {worst} differ from the model, by up to {change[worst].max():.2g} "
            f"where the largest is {largest[worst]:.2g}; allowed is "
            + (f"what changes its values by {self.bound[worst]:.1e} bins" if pixels else f"{self.bound[worst]:.1e}")
            + (f" (and {others} more of {count} images are wrong)" if others else "")
        )


def _compute_tolerances(values: np.ndarray, perturbed: Sequence[np.ndarray], most: float = np.inf) -> np.ndarray:
    """Returns a tolerance for each image, float64 `[n]`: 4 times the largest change from `values` to one `perturbed`.

    They are the Keras model's answers to inputs and to slightly changed inputs. Each tolerance is raised to the
    median over all images, or to `most` if that is smaller, because the change of one image can be small by chance.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        tolerances = FACTOR * np.max([_find_largest(answer.astype(np.float64) - values) for answer in perturbed], 0)
    finite = tolerances[np.isfinite(tolerances)]
    return np.maximum(tolerances, min(np.median(finite), most) if len(finite) else 0)


def _find_largest(values: np.ndarray) -> np.ndarray:
    return np.abs(values.astype(np.float64)).reshape(len(values), -1).max(1)


def main(arguments: Sequence[str]) -> int:
    """Runs `python -m export.verification.comparison`, which compares exported files with test vectors; returns 0.

    `arguments` are the runtime, the folder of the files, the path of the test vectors, and a JSON dict of further
    arguments of `compare_files`. The last line on standard output is the report.
    """
    runtime, folder, path, options = arguments

    with open_npz(path) as arrays:
        vectors = dict(arrays)
    with show_progress(functools.partial(print, flush=True)):
        found = compare_files(runtime, pathlib.Path(folder), vectors, **json.loads(options))
    print(REPORT + json.dumps(dataclasses.asdict(found)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Compares the exported files in one folder with test vectors: inputs, and the Keras model's answers to them.

`python -m export.verification.comparison RUNTIME FOLDER VECTORS OPTIONS` prints lines of progress, and last the
report as JSON.

float32 rounds every number to a relative 6e-8, and every runtime sums in another order. So two programs without a fault
differ, on some images more than on others. The Keras model therefore answers twice (`KerasAnswers`): for inputs, and
for inputs perturbed by a relative 1e-6. A file's answer is accepted if it differs from the first answer by at most 4
times the difference between the two answers. A single number may change little by chance, so it is perturbed six times.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Self

import numpy as np

from export import LOG, show_progress
from export.formats.runtimes import Arrays, Report, Runtime
from tfdecouple.errors import one_line
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


def compare_files(
    runtime: str, folder: pathlib.Path, vectors: Arrays, names: Mapping[str, str], provider: str = ""
) -> Report:
    """Runs the exported files in `folder`; returns a `Report` on how their answers differ from the Keras model's.

    Args:
        runtime: the name of the format whose runtime runs the files, a key of `FORMATS`.
        folder: the folder with the exported files.
        vectors: the test vectors, {name: array} (`vectors.make_test_vectors`), with digests of weights, `metadata` as
            JSON, and `picture` and `fitted`. For files that take images of any size, `sizes` has names of sizes, such
            as "8x6", and the names of the arrays for this size begin with "8x6/".
        names: {endpoint: name of its file}.
        provider: an execution provider of ONNX Runtime; "" for the CPU.
    """
    report, kind = Report(), FORMATS[runtime]()
    report.notes[kind.runtime.package] = importlib.metadata.version(kind.runtime.package)
    try:
        opened = kind.runtime(folder, names, **({"provider": provider} if provider else {}))
    except Exception as error:  # a runtime raises any class of error for a file that it cannot read
        report.problems.append(f"the {runtime} files cannot be opened: {find_first_reason(error)}")
        return report
    if not opened.available:
        report.notes["unavailable"] = provider
        return report
    digests = vectors[f"weights/{'NCHW' if kind.channels_first else 'NHWC'}"]
    report.problems += _compare_weight_digests(opened, {*digests.tolist()})
    groups = {f" {size}": select_arrays(vectors, f"{size}/") for size in vectors.get("sizes", ())} or {"": vectors}
    for (size, group), endpoint in itertools.product(groups.items(), [*names, *opened.aliases]):
        problems, differences = _compare_answers(opened, endpoint, group)
        problems = problems or [*_check_shapes(opened, endpoint, group, bool(size))]
        report.problems += [f"{endpoint}{size}: {problem}" for problem in problems]
        if endpoint in names:
            LOG.info("  %s%s", endpoint, size)
            report.parity[endpoint + size] = differences
    try:
        opened.check_attachments(vectors)
    except Exception as error:  # TensorFlow raises any class of error for a damaged file
        report.problems.append(f"the {opened.attachments} do not pass: {find_first_reason(error)}")
    if not report.problems and {"encode", "decode"} <= {*names}:
        for size, group in groups.items():
            _compare_round_trips(opened, group, report, size)
        counts = [f"{name} {trip['identical']}/{trip['images']}" for name, trip in report.round_trip.items()]
        LOG.info("  identical after encode and decode: %s", ", ".join(counts))
    return report


def _compare_answers(opened: Runtime, endpoint: str, vectors: Arrays) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Returns the problems of an endpoint's answers, and {output: differences from the Keras model}."""
    own_name = opened.aliases.get(endpoint, endpoint)
    inputs, parts = select_arrays(vectors, f"in/{own_name}/"), select_arrays(vectors, f"out/{own_name}/")
    if not parts:
        return ["it cannot be compared: there are no answers of the model to it"], {}
    sizes, answers = vectors["batches"].tolist(), []
    for end, size in zip(itertools.accumulate(sizes), sizes, strict=True):
        try:
            batch = {name: array[end - size : end] for name, array in inputs.items()}
            answers.append(opened.call_endpoint(endpoint, batch))
        except Exception as error:  # a runtime raises any class of error
            return [f"it fails at batch {size}: {find_first_reason(error)}"], {}
    expected, returned = list(dict.fromkeys(name.partition("/")[0] for name in parts)), list(answers[0])
    if opened.sorts_outputs:
        returned, expected = sorted(returned), sorted(expected)
    if returned != expected:
        return [f"it returns {', '.join(returned)} where the model returns {', '.join(expected)}"], {}
    problems, differences = [], {}
    for name in expected:
        right = Answer(**select_arrays(parts, f"{name}/"))
        arrays = [np.asarray(answer[name]) for answer in answers]
        kind = np.dtype("uint8" if right.n_bins else "float32")
        for array, size in zip(arrays, sizes, strict=True):
            if (array.dtype, array.shape) != (kind, shape := (size, *right.values.shape[1:])):
                problems.append(f"{name} is {array.dtype} {[*array.shape]} where the model has {kind} {[*shape]}")
                break
        else:
            differences[name], problem = right.compare_file(np.concatenate(arrays))
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


def _compare_round_trips(opened: Runtime, vectors: Arrays, report: Report, size: str) -> None:
    """Encodes and decodes the test images with the exported files, and adds the counts of recovered images to `report`.

    Images that only the Keras model recovers are added as problems.
    """
    for image_type, images in select_arrays(vectors, "images/").items():
        height, width = images.shape[1:3]
        inputs, recovered = {"images": images}, vectors[f"kept/{image_type}"]
        if f"labels/{image_type}" in vectors:
            inputs["labels"] = vectors[f"labels/{image_type}"]
        decoded, batch = [], max(1, min(16, _PIXELS_AT_ONCE // (height * width)))
        for start in range(0, len(images), batch):
            codes = opened.call_endpoint("encode", {name: a[start : start + batch] for name, a in inputs.items()})
            decoded.append(opened.call_endpoint("decode", codes)["images"][:, :height, :width])
        identical = (np.concatenate(decoded) == images).all((1, 2, 3))
        counts = {"images": len(images), "identical": int(identical.sum()), "model": int(recovered.sum())}
        report.round_trip[image_type + size] = counts
        if len(lost := np.flatnonzero(recovered & ~identical)):
            numbers = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
            report.problems.append(
                f"decode(encode): {len(lost)} of {len(images)} {image_type}{size} images differ (number {numbers}) "
                "which the model itself gives back"
            )


def _compare_weight_digests(opened: Runtime, digests: Set[str]) -> Iterator[str]:
    """Yields a problem for each weight that is not finite float32, and one if too many have an unknown digest."""
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


def select_arrays(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """Returns {name without `prefix`: array} of the arrays whose names begin with `prefix`."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def find_first_reason(error: BaseException) -> str:
    """Returns in one line the type and message of the first exception in the chain that led to `error`."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {one_line(error, 300, first=True)}"


@dataclasses.dataclass(frozen=True)
class Answer:
    """The Keras model's answer for one output of an endpoint, and each image's tolerance for the answer of a file.

    Attributes:
        values: the answer, float32 `[n, ...]`; for pixels in units of bins before rounding, 0 to `n_bins`.
        bound: the tolerance for each image, float32 `[n]`, in the unit of `values`. It is infinite for an image that is
            not compared, because the model's answer to the image is unstable or not finite.
        n_bins: for pixels, the number of bins; 0 for floats.
    """

    values: np.ndarray
    bound: np.ndarray
    n_bins: np.ndarray

    @classmethod
    def from_model(
        cls, values: np.ndarray, perturbed: Sequence[np.ndarray], n_bins: int = 0, scale: float = 1.0
    ) -> Self:
        """Returns the `Answer` for `values`, the Keras model's output, each `[n, ...]`, in units of bins for pixels.

        `perturbed` are the model's outputs for inputs that are changed by a relative 1e-6. A tolerance is 4 times the
        largest change, raised to the median over all images, because the change of one image can be small by chance.
        `scale` is `Array.scale`, the magnitude of the terms whose sum an output of floats is.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            change = FACTOR * np.max([_find_largest(other.astype(np.float64) - values) for other in perturbed], 0)
        finite = change[np.isfinite(change)]
        typical = np.median(finite) if len(finite) else 0.0
        if n_bins:
            # Tolerances come from values before clipping. Far outside the bins, at 1e11 for example, a relative error
            # can move a value across all bins.
            bound = np.maximum(change, min(typical, UNSTABLE / 2)) + FLOOR * n_bins / 2
            is_stable = (bound < UNSTABLE) & np.isfinite(values).reshape(len(values), -1).all(1)
            values = np.clip(np.nan_to_num(values), 0, n_bins)
        else:
            bound = np.maximum(change, typical) + FLOOR * (scale + _find_largest(values))
            is_stable = np.isfinite(bound)
        bound = np.where(is_stable, bound, np.inf).astype(np.float32)
        return cls(values.astype(np.float32), bound, np.array(n_bins))

    def compare_file(self, found: np.ndarray) -> tuple[dict[str, float], str | None]:
        """Compares an exported file's answer `found` with this answer of the Keras model.

        A pixel is right if the model's value lies in the pixel's bin, or outside by at most the tolerance.

        Returns:
            {"max": largest difference, "mean": mean difference (both of floats: divided by the largest value),
            "unstable": count of images that are not compared, "differing": fraction of the colour values that differ
            (pixels only)}, and the problem in one line, or None.
        """
        compared, count = np.isfinite(self.bound), len(self.values)
        values, found = (array.astype(np.float64).reshape(count, -1) for array in (self.values, found))
        if self.n_bins:
            step = 256 // self.n_bins
            outside = np.maximum(found / step - values, values - found / step - 1)
            is_right = (outside <= self.bound[:, None]) & (found % step == 0)
            change = np.abs(found - step * np.minimum(np.floor(values), self.n_bins - 1))
            scale, unit = 1.0, " bins"
        else:
            with np.errstate(invalid="ignore", over="ignore"):
                change = np.abs(found - values)
            is_right = change <= self.bound[:, None]
            scale, unit = max(np.abs(values[compared]).max(initial=0), np.finfo(np.float32).tiny), ""
        errors = change[compared] if compared.any() else np.zeros(1)
        differences = {"max": float(errors.max() / scale), "mean": float(errors.mean() / scale)}
        differences["unstable"] = int((~compared).sum())
        if self.n_bins:
            differences["differing"] = float((errors > 0).mean())
        if not compared.any():
            return differences, (
                "the Keras model itself has no stable answer to any of the images: inputs perturbed by "
                f"{PERTURBATION:g} change its values by half a bin and more, or the values are not finite"
            )
        wrong = (~is_right).sum(1) * compared
        if not wrong.any():
            return differences, None
        worst = int(np.argmax(np.where(wrong, np.nan_to_num(change.max(1), nan=np.inf), -1)))
        others = int((wrong > 0).sum()) - 1
        return differences, (
            f"{wrong[worst]} values of image {worst} differ from the model, by up to {change[worst].max():.2g}; "
            f"allowed is {self.bound[worst]:.1e}{unit}"
            + (f" (and {others} more of {count} images are wrong)" if others else "")
        )


def _find_largest(values: np.ndarray) -> np.ndarray:
    return np.abs(values.astype(np.float64)).reshape(len(values), -1).max(1)


def main(runtime: str, folder: str, path: str, options: str) -> None:
    """Runs `compare_files` with the test vectors at `path` and a JSON dict of `options`; prints progress and report."""
    with open_npz(path) as arrays:
        vectors = dict(arrays)
    with show_progress(functools.partial(print, flush=True)):
        report = compare_files(runtime, pathlib.Path(folder), vectors, **json.loads(options))
    print(REPORT + json.dumps(dataclasses.asdict(report)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

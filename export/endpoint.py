"""What an endpoint is: arrays in and out, the graph behind it, and how the Keras model is asked for the right answer.

Nothing here needs TensorFlow before a graph is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

    from export.deployed.deployed_model import DeployedModel

Tensors = Mapping[str, "tf.Tensor"]
Arrays = dict[str, np.ndarray]
# By outputs: `Floats` or `Pixels` of `export.verification.judge`, as `Reference` returns them.
Answers = dict[str, Any]
# z, None without it, and v.
Codes = tuple[np.ndarray | None, np.ndarray]

# What inputs can hold, beside scalars of a range.
IMAGE, GLOBAL_CODE, LOCAL_CODE, NORMAL, UNIFORM = "image", "global code", "local code", "normal noise", "uniform noise"
LABEL = "label"
# The ends between which the temperatures lie at which samples are compared.
TEMPERATURES = (0.1, 1.0)


@dataclasses.dataclass(frozen=True)
class Array:
    """One input or output.

    Attributes:
        name: as in the signature.
        dtype: "uint8", "float32" or "int32".
        shape: without the batch axis, which always comes first.
        meaning: a few words for the card.
        holds: what an input is given: `IMAGE`, `GLOBAL_CODE`, `LOCAL_CODE`, `NORMAL`, `UNIFORM`, `LABEL`, or the two
            ends of a range for a scalar.
        example: a plain value of a scalar.
        labels: the first label and the one after the last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    meaning: str
    holds: str | tuple[float, ...] = NORMAL
    example: float = 0.0
    labels: tuple[int, int] = (0, 0)

    def spec(self) -> tf.TensorSpec:
        """Returns the specification for TensorFlow, batch free."""
        import tensorflow as tf

        return tf.TensorSpec((None, *self.shape), self.dtype, self.name)

    def plain(self) -> dict[str, object]:
        """Returns plain values for JSON; the batch axis is the word "batch"."""
        return {"name": self.name, "dtype": self.dtype, "shape": ["batch", *self.shape], "meaning": self.meaning}

    def plausible(self, rng: np.random.Generator) -> np.ndarray:
        """Returns one plausible value, batch 1: extreme ones could take paths, or overflow, that no request would."""
        shape = (1, *self.shape)
        if not isinstance(self.holds, str):
            return np.full(shape, self.example, self.dtype)
        if self.holds == IMAGE:
            return rng.integers(96, 160, shape, dtype=np.uint8)
        return self.drawn(rng, 1)

    def drawn(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns noise, labels in turn, or a scalar from one end of its range to the other, for so many images."""
        if not isinstance(self.holds, str):
            first, last = self.holds
            return np.linspace(first, last, count, dtype=np.float32)
        if self.holds == LABEL:
            first, end = self.labels
            return (first + np.arange(count) % (end - first)).astype(np.int32)
        if self.holds == UNIFORM:
            return rng.random((count, *self.shape), np.float32)
        return rng.standard_normal((count, *self.shape), np.float32)


class Reference(Protocol):
    """What an endpoint's `answer` may ask of the Keras model; arrays have the batch first, z is None without it.

    Each question is asked with the inputs given and with inputs moved a little, so that an answer comes with the
    measure of what a file may differ by. What was asked before is not asked again.
    """

    def codes(self, images: np.ndarray, labels: np.ndarray | None = None) -> list[Codes]:
        """Returns z and v of images, and after them those of the images moved, in all what `decode` takes.

        They are no answers themselves. Where z is a function of the label, labels that are not given are all in turn.
        """

    def encode(self, images: np.ndarray, labels: np.ndarray | None = None) -> dict[str, Any]:
        """Returns the answers "z", "z_log_variance" (both only with z, the second with an encoder) and "v"."""

    def decode(self, codes: Codes, *moved: Codes) -> Any:
        """Returns the answer in pixels to codes; where they are computed from images, with those of moved images."""

    def score(
        self,
        images: np.ndarray,
        z_noise: np.ndarray | None,
        u_noise: np.ndarray,
        labels: np.ndarray | None = None,
    ) -> Answers:
        """Returns the answers of `OutlierScores`, "bits_per_dim" and others, by name."""

    def classify(self, images: np.ndarray) -> Any:
        """Returns the answer of log p(y|x) of each label."""

    def z_from_noise(self, noise: np.ndarray | None, labels: np.ndarray | None = None) -> np.ndarray | None:
        """Returns the z of noise of the prior, and of labels, where the model knows them."""

    def drawn(self, count: int) -> Arrays:
        """Returns "v_noise" and "temperature" of so many samples, and "z_noise" and "labels" where they have a part.

        Half of them become images whose every value lies beside the border of two levels. What decodes images hides
        errors below half a level, since codes of images lie in the middle of their bins; the rounding of these shows an
        error of a thousandth of a level.
        """


def _as_given(name: str, reference: Reference, inputs: Arrays) -> dict[str, Arrays]:
    return {name: inputs}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A named function of arrays.

    Attributes:
        name: of the signature.
        summary: what it does, in a sentence.
        inputs: in order; each has the batch as its first axis.
        outputs: in order.
        build: given the deployed model and the inputs by name, returns the outputs by name.
        answer: asks the Keras model what the outputs must be, by name; without it nothing could be published.
        onnx: name of the ONNX file that offers the same, or None.
        on_page: whether the web page runs that file.
        needs_z: whether a model without z lacks it.
        asked_by_others: whether other endpoints ask the Keras model nearly all that `answer` asks: what is asked again
            takes the gate no time.
        cases: given the name, the reference and plain inputs, returns the inputs of each case that is tried, by the
            name of the endpoint or "NAME of ..."; by default the plain ones alone.
    """

    name: str
    summary: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    build: Callable[[DeployedModel, Tensors], dict[str, tf.Tensor]]
    answer: Callable[[Reference, Arrays], Answers]
    onnx: str | None = None
    on_page: bool = False
    needs_z: bool = False
    asked_by_others: bool = False
    cases: Callable[[str, Reference, Arrays], dict[str, Arrays]] = _as_given

    def __post_init__(self) -> None:
        """Refuses names that a file could not tell apart."""
        names = [array.name for array in (*self.inputs, *self.outputs)]
        if len({*names}) < len(names):
            raise ValueError(
                f"endpoint {self.name} names two arrays alike ({', '.join(names)}); ONNX needs them to differ"
            )

"""The network of FID: the Inception network that Google published on 2015-12-05, and the file of its weights.

FID is the Frechet distance by the features of this one network, as Heusel et al. 2017 computed it from Google's frozen
graph. The file read here is that graph's weights as a PyTorch state dict, the conversion by pytorch-fid that
torch-fidelity distributes too; its checksum is public, so that a file either is this network or is not. What the graph
does otherwise than the Inception v3 of today's libraries is kept: images of any size are resized bilinearly as
TensorFlow 1 did, with the corner of a pixel as its place; values are (x - 128) / 128; the averages in the branches
leave the padding out; the last block takes a maximum where the others average.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import itertools
import os
import pathlib
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdecouple.errors import ExtractorError, one_line
from tfdecouple.storage.files import beside, put_in_place, sha256_of
from tfdecouple.storage.torch_state import read_torch, require_torch

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE_NAME}"
SIZE = 95_628_359
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# That brings torch, which reads it.
_EXTRA = "fid"

FEATURES = 2048

# Side of the images that the network looks at.
_SIDE = 299

# Added to the variance in the batch normalisations.
_EPSILON = 1e-3

# Images at once: the widest activations take 11 MB an image.
_AT_ONCE = 32

_SECONDS_WITHOUT_AN_ANSWER, _CHUNK = 60, 2**20


class Unit(NamedTuple):
    """A convolution without bias, a batch normalisation and a ReLU.

    Attributes:
        name: of its weights in the state dict.
        outputs: channels.
        kernel: height and width.
        stride: in both directions.
        padding: "SAME" or "VALID".
    """

    name: str
    outputs: int
    kernel: tuple[int, int]
    stride: int
    padding: str


class Pool(NamedTuple):
    """A pooling over windows of 3 x 3.

    Attributes:
        kind: "AVG", of the values without the padding, or "MAX".
        stride: in both directions.
        padding: "SAME" or "VALID".
    """

    kind: str
    stride: int = 1
    padding: str = "SAME"


class Branches(tuple):
    """Chains of steps with one input, whose outputs are joined along the channels."""


# What a chain consists of.
Step = Unit | Pool | Branches

_DOWN = Pool("MAX", 2, "VALID")


def _chain(prefix: str, *steps: tuple | Step) -> tuple[Step, ...]:
    """Returns a chain, in which `(name, outputs, height, width[, stride, padding])` stands for a unit."""

    def unit(name: str, outputs: int, height: int = 1, width: int = 1, stride: int = 1, padding: str = "SAME") -> Unit:
        return Unit(prefix + name, outputs, (height, width), stride, padding)

    return tuple(step if isinstance(step, Unit | Pool | Branches) else unit(*step) for step in steps)


def _block_35(name: str, pooled: int) -> Branches:
    chain = functools.partial(_chain, f"{name}.branch")

    return Branches(
        [
            chain(("1x1", 64)),
            chain(("5x5_1", 48), ("5x5_2", 64, 5, 5)),
            chain(("3x3dbl_1", 64), ("3x3dbl_2", 96, 3, 3), ("3x3dbl_3", 96, 3, 3)),
            chain(Pool("AVG"), ("_pool", pooled)),
        ]
    )


def _block_17(name: str, inner: int) -> Branches:
    chain = functools.partial(_chain, f"{name}.branch")

    return Branches(
        [
            chain(("1x1", 192)),
            chain(("7x7_1", inner), ("7x7_2", inner, 1, 7), ("7x7_3", 192, 7, 1)),
            chain(
                ("7x7dbl_1", inner),
                ("7x7dbl_2", inner, 7, 1),
                ("7x7dbl_3", inner, 1, 7),
                ("7x7dbl_4", inner, 7, 1),
                ("7x7dbl_5", 192, 1, 7),
            ),
            chain(Pool("AVG"), ("_pool", 192)),
        ]
    )


def _block_8(name: str, kind: str) -> Branches:
    chain = functools.partial(_chain, f"{name}.branch")

    def crossed(branch: str) -> Branches:
        return Branches([chain((f"{branch}a", 384, 1, 3)), chain((f"{branch}b", 384, 3, 1))])

    return Branches(
        [
            chain(("1x1", 320)),
            chain(("3x3_1", 384), crossed("3x3_2")),
            chain(("3x3dbl_1", 448), ("3x3dbl_2", 384, 3, 3), crossed("3x3dbl_3")),
            chain(Pool(kind), ("_pool", 192)),
        ]
    )


def _network() -> tuple[Step, ...]:
    chain = functools.partial(_chain, "Mixed_6a.branch")
    to_17 = Branches(
        [
            chain(("3x3", 384, 3, 3, 2, "VALID")),
            chain(("3x3dbl_1", 64), ("3x3dbl_2", 96, 3, 3), ("3x3dbl_3", 96, 3, 3, 2, "VALID")),
            chain(_DOWN),
        ]
    )
    chain = functools.partial(_chain, "Mixed_7a.branch")
    to_8 = Branches(
        [
            chain(("3x3_1", 192), ("3x3_2", 320, 3, 3, 2, "VALID")),
            chain(("7x7x3_1", 192), ("7x7x3_2", 192, 1, 7), ("7x7x3_3", 192, 7, 1), ("7x7x3_4", 192, 3, 3, 2, "VALID")),
            chain(_DOWN),
        ]
    )
    return _chain(
        "",
        ("Conv2d_1a_3x3", 32, 3, 3, 2, "VALID"),
        ("Conv2d_2a_3x3", 32, 3, 3, 1, "VALID"),
        ("Conv2d_2b_3x3", 64, 3, 3),
        _DOWN,
        ("Conv2d_3b_1x1", 80),
        ("Conv2d_4a_3x3", 192, 3, 3, 1, "VALID"),
        _DOWN,
        _block_35("Mixed_5b", 32),
        _block_35("Mixed_5c", 64),
        _block_35("Mixed_5d", 64),
        to_17,
        _block_17("Mixed_6b", 128),
        _block_17("Mixed_6c", 160),
        _block_17("Mixed_6d", 160),
        _block_17("Mixed_6e", 192),
        to_8,
        _block_8("Mixed_7b", "AVG"),
        _block_8("Mixed_7c", "MAX"),
    )


NETWORK = _network()


def units() -> Iterator[tuple[Unit, int]]:
    """Yields the units of the network, each with its number of input channels."""

    def walk(chain: tuple[Step, ...], channels: int) -> tuple[list[tuple[Unit, int]], int]:
        found: list[tuple[Unit, int]] = []
        for step in chain:
            if isinstance(step, Unit):
                found.append((step, channels))
                channels = step.outputs
            elif isinstance(step, Branches):
                below, widths = zip(*(walk(branch, channels) for branch in step), strict=True)
                found.extend(itertools.chain(*below))
                channels = sum(widths)
        return found, channels

    yield from walk(NETWORK, 3)[0]


def shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the arrays that the network needs, by their names in the state dict."""
    needed: dict[str, tuple[int, ...]] = {}
    for unit, channels in units():
        needed[f"{unit.name}.conv.weight"] = (unit.outputs, channels, *unit.kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            needed[f"{unit.name}.bn.{part}"] = (unit.outputs,)
    return needed


class Inception:
    """The network, from images to the 2,048 averages before its classifier.

    Args:
        state: arrays by the names of `shapes`; others are ignored, the classifier among them.

    Raises:
        ExtractorError: where an array is missing or of another shape.
    """

    def __init__(self, state: Mapping[str, np.ndarray]):
        for name, shape in shapes().items():
            if name not in state:
                raise ExtractorError(f"the weights of the Inception network lack {name}")
            if state[name].shape != shape:
                raise ExtractorError(f"{name} of the Inception network is of shape {state[name].shape}, not {shape}")
        self._weights = {unit.name: _folded(state, unit.name) for unit, _ in units()}
        self._run = tf.function(
            lambda images: self.features(self.scaled(images)),
            input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)],
            autograph=False,
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the features of uint8 images `[n, height, width, 3]` of any size, float32 `[n, 2048]`."""
        features = [self._run(images[start : start + _AT_ONCE]).numpy() for start in range(0, len(images), _AT_ONCE)]
        return np.concatenate([np.zeros((0, FEATURES), np.float32), *features])

    @staticmethod
    def scaled(images: tf.Tensor) -> tf.Tensor:
        """Returns images as the network looks at them, float32 `[n, 299, 299, 3]` from -1 to 127/128."""
        # The operation of TensorFlow 1 itself: today's tf.image.resize takes the centres of pixels.
        large = tf.raw_ops.ResizeBilinear(
            images=tf.cast(images, tf.float32), size=[_SIDE, _SIDE], align_corners=False, half_pixel_centers=False
        )
        return (large - 128) / 128

    def features(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the features of scaled images `[n, height, width, 3]` of at least 75 x 75 pixels."""
        return tf.reduce_mean(self._chain(NETWORK, values), [1, 2])

    def _chain(self, chain: tuple[Step, ...], x: tf.Tensor) -> tf.Tensor:
        for step in chain:
            if isinstance(step, Unit):
                kernel, bias = self._weights[step.name]
                x = tf.nn.relu(tf.nn.conv2d(x, kernel, step.stride, step.padding) + bias)
            elif isinstance(step, Pool):
                x = tf.nn.pool(x, [3, 3], step.kind, [step.stride] * 2, step.padding)
            else:
                x = tf.concat([self._chain(branch, x) for branch in step], -1)
        return x


def _folded(state: Mapping[str, np.ndarray], name: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a unit's kernel, `[height, width, inputs, outputs]`, and bias with its batch normalisation inside."""
    kernel, scale, shift, mean, variance = (
        state[f"{name}.{part}"].astype(np.float64)
        for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    )
    factor = scale / np.sqrt(variance + _EPSILON)
    kernel = kernel.transpose(2, 3, 1, 0) * factor
    return tf.constant(kernel, tf.float32), tf.constant(shift - mean * factor, tf.float32)


def open_inception(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Opens the file of the network.

    Args:
        path: of a file with the checksum `SHA256`.

    Returns:
        A function from uint8 images `[n, height, width, 3]` to float32 features `[n, 2048]`.

    Raises:
        ExtractorError: where torch, which reads the file, is missing or fails.
    """
    return Inception(read_state(path))


def read_state(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a state dict of PyTorch.

    Raises:
        ExtractorError: where torch is missing or cannot read the file.
    """
    state = read_torch(path, _EXTRA, ExtractorError)
    return {name: tensor.numpy() for name, tensor in state.items()}


def cached_path() -> pathlib.Path:
    """Returns where the file is kept: in `tfdecouple` in `$XDG_CACHE_HOME` or `~/.cache`."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    folder = pathlib.Path(stated) if os.path.isabs(stated) else pathlib.Path.home() / ".cache"
    return folder / "tfdecouple" / FILE_NAME


def find_inception(download: bool, say: Callable[[str], None]) -> pathlib.Path:
    """Returns the file of the network in the cache folder.

    Args:
        download: whether to fetch it where it is missing or another file has its place.
        say: called with a line before that.

    Raises:
        ExtractorError: where the file is missing or another and may not be fetched, cannot be fetched, or torch, which
            reads it, is missing.
    """
    require_torch(FILE_NAME, _EXTRA, ExtractorError)
    path = cached_path()
    fault = _fault(path)
    if not fault:
        return path
    if not download:
        raise ExtractorError(
            f"{fault}; add --download to fetch it ({SIZE / 1e6:.0f} MB) or put it there from {URL} (sha256 {SHA256})"
        )
    say(f"downloading the Inception network of FID ({SIZE / 1e6:.0f} MB) to {path}")
    _fetch(path)
    return path


def _fault(path: pathlib.Path) -> str:
    """Returns why a file is not the network's, or "" where it is."""
    if not path.is_file():
        return f"the Inception network of FID is not at {path}"
    try:
        found = sha256_of(path)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error})"
    return "" if found == SHA256 else f"{path} is not the Inception network of FID: its sha256 is {found}"


def _fetch(path: pathlib.Path) -> None:
    """Downloads the file: beside its place first, and renamed in when it is whole and the right one.

    Raises:
        ExtractorError: where it cannot be had, is another or cannot be written; nothing is left behind then.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with beside(path) as temporary:
            answering = urllib.request.urlopen(URL, timeout=_SECONDS_WITHOUT_AN_ANSWER)
            with answering as answer, temporary.open("wb") as file:
                # No more than a little too much is taken of a file that is too long.
                while size <= SIZE and (chunk := answer.read(_CHUNK)):
                    size += len(chunk)
                    digest.update(chunk)
                    file.write(chunk)
            if size < SIZE:
                raise ExtractorError(f"the download of {URL} ended after {size:,} of {SIZE:,} bytes; try again")
            if size > SIZE or digest.hexdigest() != SHA256:
                raise ExtractorError(
                    f"{URL} gave another file than the Inception network of FID, whose sha256 is {SHA256}; "
                    "it was not kept"
                )
            put_in_place(temporary, path)
    except (OSError, http.client.HTTPException) as error:
        raise ExtractorError(
            f"cannot download {URL} to {path}: {one_line(error)}; without a network, put the file there by hand"
        ) from error

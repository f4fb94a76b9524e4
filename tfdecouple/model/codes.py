"""The codes of images: encode, decode, sample, switch, interpolate and edit.

Images that are not, or possibly not, reconstructed exactly from their codes raise errors or warnings.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import tensorflow as tf

from tfdecouple import randomness
from tfdecouple.arguments import (
    ArrayLike,
    as_codes,
    as_image_batches,
    as_images,
    as_labels,
    as_number,
    as_numbers,
    as_whole_number,
    as_z_change,
)
from tfdecouple.config import ModelConfig
from tfdecouple.errors import DataError, ExactnessWarning, InversionError, UserError, warn_user
from tfdecouple.layers.base import disable_autograph
from tfdecouple.model.any_size import Size, find_both_bins, run_in_parts
from tfdecouple.model.base_model import BaseModel, require_initialized
from tfdecouple.model.objective import compute_label_log_probabilities, map_noise_to_z
from tfdecouple.numerics.arithmetic import get_sizes
from tfdecouple.system.devices import read_free_memory

# `sample` and `interpolate` decode at most this many images at once to limit memory; results do not depend on it.
CHUNK = 64
# Codes count as parallel if the sine of the angle between them is at most this. No unique arc connects parallel codes.
_LEAST_SINE = 1e-6
# Rounds of `match_z`. Each decodes and encodes once more; later ones change hardly anything (docs/results/colours.md).
ROUNDS = 8
# An image counts as far from the training data if the root mean square of v is above this value. For images like the
# training data it is near 1 (docs/RESULTS.md, "Reconstruction").
FAR = 3.0


class _CodePair(NamedTuple):
    z: tf.Tensor | None
    v: tf.Tensor


class Codes(_CodePair):
    """The codes of images: a pair of the global code z and the local code v, with the images' size as an attribute.

    >>> codes = Codes(z=None, v=tf.zeros([2, 4, 8, 3]), size=(3, 5))
    >>> z, v = codes
    >>> v.shape.as_list(), codes.size
    ([2, 4, 8, 3], (3, 5))

    TensorFlow and Keras pass on the pair without its size: a `tf.function` returns codes with the size None.

    Attributes:
        z: the global code, float32 `[batch, d_z]`; None for a model without z.
        v: the local code, float32 `[batch, height, width, channels]`; height and width are those of the padded images.
        size: height and width of the images without padding; None if unknown.
    """

    size: Size | None

    def __new__(cls, z: tf.Tensor | None, v: tf.Tensor, size: Size | None = None) -> Self:
        """Returns the pair (z, v) with the attribute `size`."""
        codes = super().__new__(cls, z, v)
        codes.size = size
        return codes


@disable_autograph
class Coding(BaseModel):
    """The methods that compute codes of images, and images of codes."""

    def encode(self, images: ArrayLike, labels: ArrayLike | None = None, verify: bool = False) -> Codes:
        """Returns the codes of images: z is the mean of q(z|x), v the flow's output for x at the centres of the bins.

        Images may have another height and width than `config.image_shape`. Then z is the code of the image resized to
        that shape (`tfdecouple.model.any_size.shrink_images`), and v is the flow's output, given this z, for the image
        at its full size. Sides that the flow cannot halve are padded by repeating the last row and column. A model with
        weights whose shape depends on the image size, as with `conditioning` "base", accepts images of one size only.

        Args:
            images: uint8 images, `[batch, height, width, channels]`.
            labels: labels of the images, whole numbers `[batch]`, for a model whose z is a function of the label.
            verify: whether to decode the codes and check that they reproduce the images. Images far from the training
                data, such as a checkerboard of two saturated colours, are in rare cases not reproduced exactly. Without
                `verify` an `ExactnessWarning` names the images that are `far_from_training`. Within a `tf.function`
                there is neither a warning nor a check.

        Returns:
            `Codes(z, v)`, with the height and width of the images as `size`; v is the code of the padded images.

        Raises:
            InversionError: if codes are not finite, or `verify` finds images that are not reproduced exactly.
            UserError: if `verify` is set within a `tf.function`, or images are too large for the free memory.
        """
        if verify and not tf.executing_eagerly():
            raise UserError(
                "encode(images, verify=True) was called within a tf.function, which cannot look at its values; call it "
                "outside, or leave verify out"
            )
        require_initialized(self)
        fitted = self.any_size.fit_images(images)
        labels = as_labels(labels, get_sizes(fitted.padded)[0], self.config.classes, self.config.has_label_codes)
        z, v = self.any_size.run_within_memory(self._encode_bins, fitted.padded, fitted.shrunk, labels)
        if tf.executing_eagerly():
            require_finite("encode gave codes that are not finite", v, *([] if z is None else [z]))
            if verify:
                # The flow is inverted here, because `decode` would raise another error for pixels that are not finite.
                x = self.any_size.run_within_memory(self._invert_flow, v, z)
                decoded, expected = self.quantizer.round_to_pixels(x), self.quantizer.quantize_pixels(fitted.padded)
                require_exact_images(decoded, x, expected, self.config.bound_of_scales)
            else:
                warn_of_far_images(v)
        return Codes(z, v, fitted.size)

    def _encode_bins(self, images: tf.Tensor, encoder_images: tf.Tensor, labels: tf.Tensor | None) -> Codes:
        bins, encoder_bins = find_both_bins(self.quantizer.find_bins, images, encoder_images)
        z = None if self.code_net is None else self.code_net(labels)
        if self.encoder is not None:
            z = self.encoder.run_inference(self.quantizer.place_at_edges(encoder_bins))[0]
        return Codes(z, self.flow.forward_and_log_det(self.quantizer.place_at_centres(bins), z)[0])

    def _invert_flow(self, v: tf.Tensor, z: tf.Tensor | None) -> tf.Tensor:
        return self.flow.inverse_and_log_det(v, z)[0]

    def decode(self, z: ArrayLike | None, v: ArrayLike, size: Size | None = None) -> tf.Tensor:
        """Returns the images of codes; for `codes = encode(images)`, `decode(*codes, codes.size)` returns the pixels.

        Images of `config.image_shape` need no size: `decode(*encode(images))` returns exactly the pixels of `images`.

        With `n_bits` below 8, each pixel becomes the lowest value in its bin (`quantizer.quantize_pixels`). In rare
        cases pixels differ, which `encode(images, verify=True)` reports.

        Args:
            z: global codes, float32 `[batch, d_z]`; None for a model without z.
            v: local codes, float32 `[batch, height, width, channels]`.
            size: height and width to which the decoded images are cropped, from `Codes.size`; None crops nothing.

        Returns:
            The images, uint8 `[batch, height, width, channels]`.

        Raises:
            InversionError: if images are not finite (not checked within a `tf.function`), or a 1x1 convolution is
                singular.
        """
        require_initialized(self)
        z, v = as_codes(z, v, self._d_z, self.config.image_shape, self.any_size.multiple)
        self.any_size.require_fitting_size(v, size)
        try:
            x = self.any_size.run_within_memory(self._invert_flow, v, z)
        except tf.errors.InvalidArgumentError as error:
            if "not invertible" not in error.message:
                raise
            numbers = format_image_numbers(range(v.shape[0]))
            message = f"a 1x1 convolution is singular or not finite, for image {numbers} of the batch"
            raise InversionError(message) from error
        if tf.executing_eagerly():
            require_finite("decode gave pixels that are not finite", x)
        return self.quantizer.round_to_pixels(x if size is None else x[:, : size[0], : size[1]])

    def sample(
        self, n: int, temperature: float = 1.0, seed: randomness.Seed = None, labels: ArrayLike | None = None
    ) -> tf.Tensor:
        """Returns new images, decoded from z ~ p(z) and v ~ temperature * N(0, I).

        The images are decoded a few at a time. At the end memory must hold two copies of all images.

        Args:
            n: how many images to draw.
            temperature: scale of v; z does not depend on the temperature.
            seed: whole number or `[2]` integer tensor; None for a fresh seed (in a `tf.function`, a fresh one in each
                call).
            labels: labels of the new images, whole numbers `[n]`, or one label for all images. If they are None, a
                model with labels draws labels from p(y).

        Returns:
            The images, uint8 `[n, height, width, channels]`.

        Raises:
            UserError: if an argument has an impossible value, or memory cannot hold so many images.
            InversionError: if an image is not finite.
        """
        require_initialized(self)
        n, temperature = as_whole_number(n, "n"), as_number(temperature, "temperature")
        seed = randomness.make_seed(seed)
        labels = as_labels(labels, n, self.config.classes, required=True) if labels is not None else None
        z_seed, v_seed = randomness.derive_seed(seed, "z"), randomness.derive_seed(seed, "v")
        d_z, values = self.config.latent_dim, math.prod(self.config.image_shape)
        images = []
        try:
            if 2 * n * values > read_free_memory():
                raise MemoryError
            for first in range(0, n, CHUNK):
                last, z = min(first + CHUNK, n), None
                if self.config.has_latent:
                    noise = randomness.draw_normal_part((last - first) * d_z, first * d_z, z_seed)
                    chosen = None if labels is None else labels[first:last]
                    if chosen is None and self.config.has_labels:
                        chosen = draw_labels(self.config, first, last, randomness.derive_seed(seed, "labels"))
                    z = map_noise_to_z(self, tf.reshape(noise, [-1, d_z]), chosen)
                v = randomness.draw_normal_part((last - first) * values, first * values, v_seed)
                images.append(self.decode(z, temperature * tf.reshape(v, [-1, *self.config.image_shape])))
            return tf.concat(images, 0) if images else tf.zeros([0, *self.config.image_shape], tf.uint8)
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            raise UserError(
                f"out of memory with {n:,} images of {values:,} bytes; draw fewer at a time, each part with a seed of "
                "its own"
            ) from error

    def switch(self, a: ArrayLike, b: ArrayLike, labels: ArrayLike | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Exchanges z between the images of two batches, and returns the two batches of new images (paper Figure 1).

        Args:
            a: uint8 images `[batch, height, width, channels]`, of any height and width as for `encode`.
            b: as many images as in a, possibly of another height and width.
            labels: a pair, the labels of a and the labels of b, each as for `encode`; None for no labels.

        Returns:
            (ab, ba), uint8: ab has z of a and v of b, and the size of b; ba has z of b and v of a, and the size of a.
        """
        self._require_latent("a switch of z")
        a, b = as_image_batches("switch", a, b, self.config.image_shape)
        codes_a, codes_b = self._encode_pair(a, b, labels)
        return self.decode(codes_a.z, codes_b.v, codes_b.size), self.decode(codes_b.z, codes_a.v, codes_a.size)

    def match_z(self, z: ArrayLike, v: ArrayLike) -> tf.Tensor:
        """Returns z changed so that the image decoded from it and from v encodes to nearly the z that was given.

        After a switch, the couplings give a part of the old colours and contrast back, so the new image's own z lies
        between the two. Each round adds to z what the new image's z lacks; with `model.colour_map`, only to the colours
        with which z begins. For each image, the round counts whose image lacks least; round 0 is the given z itself.
        Decoding the result with v is still exact.

        Args:
            z: global codes, float32 `[batch, d_z]`, such as those of other images than v.
            v: local codes, float32 `[batch, height, width, channels]`.

        Returns:
            float32 `[batch, d_z]`.
        """
        wanted, v = as_codes(z, v, self._d_z, self.config.image_shape, self.any_size.multiple)
        z = nearest = wanted
        is_matched = tf.range(self._d_z) < (self.config.colour_numbers or self._d_z)
        least = tf.fill([get_sizes(v)[0]], math.inf)
        for _ in range(ROUNDS + 1):
            try:
                own = self.posterior(self.decode(z, v)).mean()
            except InversionError:
                # A changed z can leave the region in which v decodes to finite pixels; the given z raises in `decode`.
                break
            lacking = tf.where(is_matched, wanted - own, 0.0)
            distance = tf.reduce_sum(tf.square(lacking), 1)
            nearest = tf.where((distance < least)[:, None], z, nearest)
            least = tf.minimum(least, distance)
            z += lacking
        return nearest

    def interpolate(
        self,
        a: ArrayLike,
        b: ArrayLike,
        alphas: ArrayLike,
        betas: ArrayLike,
        labels: ArrayLike | None = None,
        path: str = "lerp",
    ) -> tf.Tensor:
        """Returns a grid of images between each image of a and its partner in b: rows change z, columns change v.

        The paper's Figure 5 shows such grids.

        Args:
            a: uint8 images `[batch, height, width, channels]`, of any height and width as for `encode`.
            b: images of the same shape, one partner for each image of a.
            alphas: positions between z of a (0) and z of b (1), a list or one number, ignored by a model without z.
            betas: positions between v of a (0) and v of b (1), a list or one number.
            labels: a pair, the labels of a and the labels of b, each as for `encode`; None for no labels.
            path: path of v: "lerp" for the line between the codes, as in the paper, or "slerp" for the arc around the
                origin. On the arc v is as long in the middle as at the ends, so that images keep their contrast. The
                path of z is always the line.

        Returns:
            uint8 `[batch, len(alphas), len(betas), height, width, channels]`; alpha = beta = 0 gives a, and 1 gives b.
        """
        a, b = as_image_batches("interpolate", a, b, self.config.image_shape)
        of_z, of_v = as_numbers(alphas, "alphas"), as_numbers(betas, "betas")
        for name, positions in (("alphas", of_z), ("betas", of_v)):
            if ((positions < 0) | (positions > 1)).any():
                raise UserError(
                    f"{name} is {positions.tolist()}; positions lie from 0 to 1, such as np.linspace(0, 1, 5)"
                )
        if not a.shape.is_compatible_with(b.shape):
            raise DataError(f"interpolate got images of shapes {tuple(a.shape)} and {tuple(b.shape)}; give one size")
        codes_a, codes_b = self._encode_pair(a, b, labels)
        (z_a, v_a), (z_b, v_b) = codes_a, codes_b
        count, rows, columns = v_a.shape[0], len(of_z), len(of_v)
        if 0 in (count, rows, columns):
            return tf.zeros([get_sizes(v_a)[0], rows, columns, *get_sizes(a)[1:]], tf.uint8)
        v = interpolate_codes(v_a, v_b, of_v, path)
        v = tf.reshape(tf.repeat(v[:, None], rows, 1), [-1, *get_sizes(v_a)[1:]])
        z = None
        if z_a is not None and z_b is not None:
            z = tf.repeat(interpolate_codes(z_a, z_b, of_z)[:, :, None], columns, 2)
            z = tf.reshape(z, [-1, self.config.latent_dim])
        # While a user's function is traced, the batch size may be unknown, and the batch cannot be divided into parts.
        decode = functools.partial(self.decode, size=codes_a.size)
        images = decode(z, v) if v.shape[0] is None else run_in_parts(decode, CHUNK, z, v)
        return tf.reshape(images, [-1, rows, columns, *get_sizes(a)[1:]])

    def edit(
        self, images: ArrayLike, direction: ArrayLike, amount: ArrayLike, labels: ArrayLike | None = None
    ) -> tf.Tensor:
        """Encodes images, adds `amount` times `direction` to z, and returns the images decoded from this z and from v.

        Args:
            images: uint8 images `[batch, height, width, channels]`, of any height and width as for `encode`.
            direction: a direction from `tfdecouple.load_directions`, any vector `[d_z]`, or a vector for each image,
                `[batch, d_z]`.
            amount: multiple of the direction that is added to z: one number, or a number for each image, `[batch]`.
                With 0 the returned pixels are exactly those of `images`.
            labels: labels of the images, as for `encode`.

        Returns:
            The edited images, uint8 of the shape of `images`.
        """
        self._require_latent("a direction in z")
        images = as_images(images, self.config.image_shape, any_size=True)
        step = as_z_change(direction, amount, images.shape[0], self.config.latent_dim)
        codes = self.encode(images, labels)
        return self.decode(codes.z + step, codes.v, codes.size)

    def _encode_pair(self, a: tf.Tensor, b: tf.Tensor, labels: ArrayLike | None) -> tuple[Codes, Codes]:
        try:
            of_a, of_b = (None, None) if labels is None else labels
        except (TypeError, ValueError):
            shown = " ".join(repr(labels).split())[:60]
            raise DataError(f"labels are {shown}; they must be a pair, those of a and those of b") from None
        return self.encode(a, of_a), self.encode(b, of_b)


def draw_labels(config: ModelConfig, first: int, last: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns int32 labels, drawn from p(y) by `seed`, of the samples with the indices `first` to `last` - 1."""
    normal = randomness.draw_normal_part(last - first, first, seed)
    borders = tf.cumsum(tf.exp(compute_label_log_probabilities(config)))[:-1]
    uniform = (1 + tf.math.erf(normal / math.sqrt(2))) / 2
    # As int64 the labels stay on a GPU; TensorFlow would copy int32 results of the search to the host.
    return tf.cast(tf.searchsorted(borders, uniform, side="right", out_type=tf.int64), tf.int32)


def interpolate_codes(
    a: tf.Tensor, b: tf.Tensor, positions: Sequence[float] | np.ndarray, path: str = "lerp"
) -> tf.Tensor:
    """Returns codes at `positions` on the path from a to b; positions 0 and 1 give a and b to the bit.

    Standard normal codes in many dimensions lie near a sphere around the origin. The middle of the line between two
    independent codes has only 1/sqrt(2) of their length, like a sample at a low temperature. On the path "slerp"
    (spherical linear interpolation, Shoemake 1985) the direction turns at a constant speed from a to b, and the length
    changes linearly. The path "lerp" is the line. Any other `path` raises UserError.

    The codes a and b are float32 `[n, ...]`, and the result for k positions is float32 `[n, k, ...]`.
    """
    if path not in ("lerp", "slerp"):
        raise UserError(f"path is {path!r}; it must be lerp or slerp")
    a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
    axes = [1] * (len(a.shape) - 1)
    position = tf.constant(positions, tf.float32)[None]
    of_a, of_b = _weigh_arc(a, b, positions) if path == "slerp" else (1 - position, position)
    of_a, of_b = (tf.reshape(weight, [-1, len(positions), *axes]) for weight in (of_a, of_b))
    # Positions 0 and 1 give a and b exactly, because 1 * a + 0 * b equals a to the bit.
    return of_a * a[:, None] + of_b * b[:, None]


def _weigh_arc(a: tf.Tensor, b: tf.Tensor, positions: Sequence[float] | np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns float32 weights `[n, k]` of a and of b, whose weighted sums are the codes at k positions on the arc."""
    width = math.prod(get_sizes(a)[1:])
    a, b = (tf.reshape(tf.cast(code, tf.float64), [-1, width]) for code in (a, b))
    position = tf.constant(positions, tf.float64)[None]
    length_a, length_b = (tf.norm(code, axis=1)[:, None] for code in (a, b))
    both = length_a * length_b
    cosine = tf.math.divide_no_nan(tf.reduce_sum(a * b, 1)[:, None], both)
    angle = tf.acos(tf.clip_by_value(cosine, -1, 1))
    sine = tf.sin(angle)
    has_arc = (sine > _LEAST_SINE) & (both > 0)
    # For parallel codes `tf.where` computes the quotients below and drops them; divisors of 1 avoid division by zero.
    sine, length_a, length_b = (tf.where(has_arc, value, 1) for value in (sine, length_a, length_b))
    length = (1 - position) * length_a + position * length_b
    of_a = tf.where(has_arc, length / length_a * tf.sin((1 - position) * angle) / sine, 1 - position)
    of_b = tf.where(has_arc, length / length_b * tf.sin(position * angle) / sine, position)
    return tf.cast(of_a, tf.float32), tf.cast(of_b, tf.float32)


def far_from_training(v: ArrayLike) -> np.ndarray:
    """Returns for each image whether it is so unlike the training data that decoding may be inexact, bool `[batch]`.

    Training makes v standard normal, so the root mean square of v is near 1 for images like the training data. Above 3
    (`FAR`) the flow stretches the image so much that float32 may be too inexact for the inverse. This function does not
    decode the images; `encode(images, verify=True)` does.

    >>> far_from_training(np.stack([np.ones([4, 4, 3]), np.full([4, 4, 3], 5.0)])).tolist()
    [False, True]

    Args:
        v: local codes, `[batch, height, width, channels]`.
    """
    v = np.asarray(v)
    # The square of a v above 1e19 is infinite in float32, which rightly counts the image as far.
    with np.errstate(over="ignore"):
        rms = np.sqrt(np.square(v).mean(tuple(range(1, v.ndim))))
    # A comparison with NaN is false, so its negation counts an image whose v contains NaN as far.
    return ~(rms <= FAR)


def warn_of_far_images(v: tf.Tensor) -> None:
    """Warns of images that are `far_from_training`, given the local codes v `[batch, height, width, channels]`."""
    far = np.flatnonzero(far_from_training(v))
    if len(far):
        warn_user(
            f"image {format_image_numbers(far)} of the batch is far from what this model was trained on and may not "
            "be reconstructed exactly; encode(images, verify=True) checks this and names the inexact images",
            ExactnessWarning,
        )


def require_finite(what: str, *arrays: tf.Tensor) -> None:
    """Raises InversionError, which begins with `what` and names images, if an array has NaN or infinity."""
    finite = np.ones(arrays[0].shape[0], bool)
    for array in arrays:
        finite &= np.isfinite(np.asarray(array)).all(tuple(range(1, len(array.shape))))
    if not finite.all():
        raise InversionError(f"{what}, for image {format_image_numbers(np.flatnonzero(~finite))} of the batch")


def require_exact_images(decoded: tf.Tensor, x: tf.Tensor, images: tf.Tensor, alpha: float | None) -> None:
    """Raises InversionError, with the images' indices, if `decoded` differs from `images` or x is not finite.

    All arrays are `[batch, height, width, channels]`; `decoded` is x rounded to pixels. `alpha` is the model's bound
    of the scales of couplings, None if no coupling scales. The message advises a model with a smaller alpha.
    """
    same = (np.asarray(decoded) == np.asarray(images)) & np.isfinite(np.asarray(x))
    lost = np.flatnonzero(~same.all(tuple(range(1, same.ndim))))
    if len(lost):
        advice = "" if alpha is None else f"; a smaller alpha reconstructs more images (this model has {alpha})"
        raise InversionError(
            f"image {format_image_numbers(lost)} of the batch is not reconstructed exactly from its codes{advice}"
        )


def format_image_numbers(indices: Sequence[int] | np.ndarray) -> str:
    """Returns images' indices as text for a message: at most eight of the indices, then the count of the rest.

    >>> format_image_numbers([3, 5]), format_image_numbers(range(10))
    ('3, 5', '0, 1, 2, 3, 4, 5, 6, 7 and 2 more')
    """
    return ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")

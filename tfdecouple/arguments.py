"""Functions that check and convert the arguments of public methods: numbers, arrays, images, labels, codes z and v.

The functions raise UserError, or DataError for images and labels, if a value has a wrong type or shape, or is out of
range.
"""

import math
import operator
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from tfdecouple.errors import DataError, UserError, one_line

# What the methods of a model take for arrays: tensors, NumPy arrays, and nested lists of numbers.
ArrayLike: TypeAlias = tf.types.experimental.TensorLike


def as_tensor(value: ArrayLike, name: str, error: type[UserError] = UserError) -> tf.Tensor:
    """Converts an array, a tensor or nested lists of numbers to a tensor; raises the class `error` for other values."""
    if value is None or isinstance(value, tf.RaggedTensor | tf.SparseTensor):
        raise error(f"{name} is {'None' if value is None else type(value).__name__}; it must be a dense array")
    try:
        if isinstance(value, list | tuple) and value and all(isinstance(part, np.ndarray) for part in value):
            # NumPy stacks the arrays, because TensorFlow would convert a list of uint8 arrays to int32.
            value = np.stack(value)
        return tf.convert_to_tensor(value)
    except (ValueError, TypeError, OverflowError, AttributeError, tf.errors.OpError) as problem:
        shown = f"{name} is a {type(value).__name__} that cannot become a tensor"
        raise error(f"{shown}; it must be an array of numbers, of one shape throughout") from problem


def as_floats(value: ArrayLike, name: str) -> tf.Tensor:
    """Converts integers or floats to a float32 tensor; raises UserError, which names `name`, for any other value."""
    tensor = as_tensor(value, name)
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer):
        raise UserError(f"{name} is of type {tensor.dtype.name}; it must be float32")
    return tf.cast(tensor, tf.float32)


def as_images(value: ArrayLike, image_shape: tuple[int, int, int], any_size: bool = False) -> tf.Tensor:
    """Converts an array of uint8 images to a tensor `[batch, height, width, channels]`; raises DataError otherwise."""
    images = as_tensor(value, "images", DataError)
    require_images(images, image_shape, any_size)
    return images


def require_images(images: ArrayLike, image_shape: tuple[int, int, int], any_size: bool = False) -> None:
    """Raises DataError unless `images`, a tensor or a `tf.TensorSpec`, is uint8 `[batch, *image_shape]`.

    If `any_size` is true, height and width can be others than in `image_shape`, but at least 1 pixel.
    """
    dtype, shape = tf.as_dtype(images.dtype), tf.TensorShape(images.shape)
    if dtype != tf.uint8:
        advice = ": tf.cast(images, tf.uint8)" if dtype.is_integer else ""
        if dtype.is_floating:
            advice = ": tf.cast(tf.round(255 * images), tf.uint8) if pixels are in 0..1, without 255 otherwise"
        raise DataError(f"images are of type {dtype.name}; they must be uint8 with values 0..255{advice}")
    if not _has_shape(shape, image_shape, any_size):
        shown = "unknown" if shape.rank is None else tuple(shape)
        raise DataError(f"images are of shape {shown}; this model needs {_format_batch_shape(image_shape, any_size)}")


def _has_shape(shape: tf.TensorShape, image_shape: tuple[int, int, int], any_size: bool) -> bool:
    if shape.rank == 4 and any_size:
        return shape[-1] == image_shape[-1] and 0 not in shape[1:3]
    return shape.rank == 4 and tuple(shape[1:]) == image_shape


def _format_batch_shape(image_shape: tuple[int, int, int], any_size: bool = False) -> str:
    return f"[batch, {', '.join(map(str, image_shape))}]{', or another height and width' if any_size else ''}"


def as_image_batches(
    what: str, a: ArrayLike, b: ArrayLike, image_shape: tuple[int, int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Converts two batches of images of any size to uint8 tensors; raises DataError unless both have the same count."""
    a, b = as_images(a, image_shape, any_size=True), as_images(b, image_shape, any_size=True)
    if not a.shape[:1].is_compatible_with(b.shape[:1]):
        raise DataError(f"{what} got {a.shape[0]} and {b.shape[0]} images; it needs equally many")
    return a, b


def as_z(value: ArrayLike, latent_dim: int) -> tf.Tensor | None:
    """Converts an array to z, a float32 tensor `[..., latent_dim]`; returns None for a model without z."""
    if not latent_dim:
        if value is not None:
            raise UserError("this model has no z (model.conditioning is 'none'): pass None")
        return None
    if value is None:
        raise UserError(f"this model needs z, an array of shape [batch, {latent_dim}]; it got None")
    z = as_floats(value, "z")
    if z.shape.rank == 0 or z.shape[-1] != latent_dim:
        raise UserError(f"z is of shape {tuple(z.shape)}; this model needs [batch, {latent_dim}]")
    return z


def as_codes(
    z: ArrayLike, v: ArrayLike, latent_dim: int, image_shape: tuple[int, int, int], multiple: int
) -> tuple[tf.Tensor | None, tf.Tensor]:
    """Converts arrays to codes: z, float32 `[batch, d_z]` or None, and v, float32 `[batch, height, width, channels]`.

    UserError is raised for other shapes, or if height and width of v are not multiples of `multiple`.
    """
    z, v = as_z(z, latent_dim), as_floats(v, "v")
    if not _has_shape(v.shape, image_shape, True) or any(side and side % multiple for side in v.shape[1:3]):
        needed = _format_batch_shape(image_shape, True)
        raise UserError(f"v is of shape {tuple(v.shape)}; this model needs {needed} that are multiples of {multiple}")
    if z is not None and (z.shape.rank != 2 or not v.shape[:1].is_compatible_with(z.shape[:1])):
        raise UserError(f"z is of shape {tuple(z.shape)}, and v has {v.shape[0]} images; both must be of equally many")
    return z, v


def as_labels(value: ArrayLike, count: int | tf.Tensor | None, classes: int, required: bool) -> tf.Tensor | None:
    """Converts whole numbers below `classes`, `[count]`, or one for all images, to labels, an int32 tensor `[count]`.

    -1 or None stands for no label, which is an error if labels are `required`. `count` is an int or a scalar tensor;
    None if `value` decides on it.
    """
    if not classes:
        if value is not None:
            raise DataError("this model has no labels (model.classes is 0): pass no labels")
        return None
    valid = f"a whole number from 0 to {classes - 1}"
    if value is None:
        if required:
            raise DataError(f"this model needs the label of each image, {valid}: pass labels")
        return None
    labels = as_tensor(value, "labels", DataError)
    if not labels.dtype.is_integer:
        raise DataError(f"labels are of type {labels.dtype.name}; each must be {valid}")
    if labels.shape.rank == 0:
        labels = tf.fill([1 if count is None else count], labels)
    fixed = count if isinstance(count, int) else None
    if labels.shape.rank != 1 or (fixed is not None and labels.shape[0] not in (None, fixed)):
        images = "image" if fixed is None else f"of the {fixed} images"
        raise DataError(f"labels are of shape {tuple(labels.shape)}; there must be one for each {images}")
    if not _is_symbolic(labels):
        values = labels.numpy()
        wrong = values[(values < (0 if required else -1)) | (values >= classes)]
        if len(wrong) and wrong[0] == -1:
            raise DataError("an image has no label (-1), and this model needs the label of each")
        if len(wrong):
            raise DataError(f"there is no label {wrong[0]}; each must be {valid}")
    return tf.cast(labels, tf.int32)


def as_z_change(direction: ArrayLike, amount: ArrayLike, batch: int | None, latent_dim: int) -> tf.Tensor:
    """Returns amount * direction, what an edit adds to z of each image: float32 `[batch, d_z]` or `[1, d_z]`.

    `direction` is a vector `[d_z]`, an array `[batch, d_z]`, or an object with the attribute `vector`. `amount` is one
    number, or one for each image. `batch` is None if a graph is traced for any count of images.
    """

    def fits(leading: tf.TensorShape) -> bool:
        return leading.rank == 0 or leading[0] in (1, None) or batch in (None, leading[0])

    direction = as_floats(getattr(direction, "vector", direction), "direction")
    shape = direction.shape
    if shape.rank not in (1, 2) or shape[-1] != latent_dim or not fits(shape[:-1]):
        raise UserError(f"direction is of shape {tuple(shape)}; it must be [{latent_dim}] or [batch, {latent_dim}]")
    if not _is_symbolic(direction) and not np.isfinite(direction).all():
        raise UserError("direction is not finite; it must be an array of finite numbers")
    amount = tf.cast(amount if _is_symbolic(amount) else as_numbers(amount, "amount"), tf.float32)
    if amount.shape.rank not in (0, 1) or not fits(amount.shape):
        raise UserError(f"amount is of shape {tuple(amount.shape)}; it must be one number, or one for each image")
    return tf.reshape(amount, [-1, 1]) * direction


def as_noise(value: ArrayLike, name: str, shape: Sequence[int | None], uniform: bool = False) -> tf.Tensor:
    """Converts an array to noise, a float32 tensor of `shape`; raises UserError for others, or outside [0, 1]."""
    noise = as_floats(value, name)
    if not noise.shape.is_compatible_with(shape):
        raise UserError(f"{name} is of shape {tuple(noise.shape)}; this model needs {tuple(shape)} for these images")
    if uniform and not _is_symbolic(noise) and not tf.reduce_all((noise >= 0) & (noise <= 1)):
        raise UserError(f"{name} has values outside of [0, 1]; draw it by tf.random.uniform")
    return noise


def as_whole_number(value: ArrayLike, name: str) -> int:
    """Converts a whole number of any type (Python, NumPy, TensorFlow) to an int; raises UserError if it is below 0."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        whole = operator.index(value.numpy() if isinstance(value, tf.Tensor) else value)
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        whole = -1
    if whole < 0:
        raise UserError(f"{name} is {one_line(repr(value), 60)}; it must be a whole number, at least 0")
    return whole


def as_number(value: ArrayLike, name: str) -> float | tf.Tensor:
    """Converts a finite number >= 0 to a float; returns a symbolic tensor, of a graph being traced, as float32."""
    if _is_symbolic(value) and value.dtype.is_floating and value.shape.rank == 0:
        return tf.cast(value, tf.float32)
    array = _as_finite_array(value)
    if array.shape != () or not array >= 0:
        raise UserError(f"{name} is {one_line(repr(value), 60)}; it must be a finite number, at least 0")
    return float(array)


def as_numbers(value: ArrayLike, name: str) -> np.ndarray:
    """Converts a finite number, or a list of n, to a float64 array `[n]`; raises UserError for any other value."""
    array = np.atleast_1d(_as_finite_array(value))
    if array.ndim != 1 or np.isnan(array).any():
        raise UserError(f"{name} is {one_line(repr(value), 60)}; it must be a number or a list of numbers, all finite")
    return array


def _is_symbolic(value: ArrayLike) -> bool:
    """Returns whether a value is a symbolic tensor, which belongs to a graph being traced and has no numbers yet."""
    return tf.is_tensor(value) and not hasattr(value, "numpy")


def _as_finite_array(value: ArrayLike) -> np.ndarray:
    """Converts finite real numbers to a float64 array of their shape; returns a scalar NaN for any other value."""
    try:
        array = np.asarray(value)
        # Only dtypes of the kinds "i", "u" and "f" are numbers; others are bool, text, or integers beyond 64 bits.
        array = array.astype(np.float64) if array.dtype.kind in "iuf" else np.asarray(math.nan)
    except (ValueError, TypeError, NotImplementedError, OverflowError):
        return np.asarray(math.nan)
    return array if np.isfinite(array).all() else np.asarray(math.nan)

"""Functions that apply a change, which a model made to a small image, to the photograph at its original size.

A model of 64 x 64 pixels determines how colours change in each region, which is enough to change a photograph of any
size likewise. A guided filter (He, Sun and Tang, "Guided image filtering", 2013; at another size as in Chen et al.,
"Bilateral guided upsampling", 2016) describes the change by an affine map of colours around each pixel of the small
image. The maps are interpolated and applied to the pixels of the photograph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageCms, ImageOps
from scipy.ndimage import uniform_filter

from tfdecouple.data.image_file import open_image_file, scale_to_8_bits
from tfdecouple.errors import DataError, one_line
from tfdecouple.model.any_size import shrink_images

# Side of the squares that the colour maps are fitted to, in pixels of the small image.
_WINDOW = 9
# Strength of the ridge term. In a square whose colours (from 0 to 1) have this variance, the map is halfway between the
# fit to the square and the fit to the complete image.
_EVENNESS = 0.01
# Smallest contrast (gain of luminance) of a colour map. It keeps detail that only the photograph has, as in a sky.
_LEAST_CONTRAST = 0.8
_LUMINANCE = (0.299, 0.587, 0.114)
# Number of rows of pixels that are computed at once, so that the memory does not grow with the photograph's height.
_ROWS = 64


def change_at_full_size(photograph: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns a photograph, uint8 `[H, W, channels]`, with colours changed as they change from `before` to `after`.

    The detail of the photograph stays: only colours and light change, smoothly across the picture. The result is no
    output of the model, so encoding it does not give the codes of `after`. If the photograph has the model's size, the
    result is `after`.

    Args:
        photograph: the photograph, uint8 `[H, W, channels]`, with three channels or one.
        before: the photograph shrunk to the model's size, uint8 `[h, w, channels]`.
        after: the image that the model made of `before`, uint8 `[h, w, channels]`.
    """
    if photograph.shape == after.shape:
        return after
    height, width, channels = photograph.shape
    rows_of_maps, columns_of_maps = before.shape[:2]
    maps = _fit_colour_maps(before / np.float32(255), after / np.float32(255)).astype(np.float32)
    planes = [[Image.fromarray(maps[:, :, c, k].copy()) for k in range(channels + 1)] for c in range(channels)]
    result = np.empty_like(photograph)
    for top in range(0, height, _ROWS):
        bottom = min(top + _ROWS, height)
        box = (0, top / height * rows_of_maps, columns_of_maps, bottom / height * rows_of_maps)
        source = photograph[top:bottom] / np.float32(255)
        for channel in range(channels):
            *gains, value = (
                np.asarray(plane.resize((width, bottom - top), Image.Resampling.BILINEAR, box))
                for plane in planes[channel]
            )
            value = value + sum(gain * source[..., k] for k, gain in enumerate(gains))
            result[top:bottom, :, channel] = np.clip(value * 255 + 0.5, 0, 255)
    return result


def _fit_colour_maps(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns, for each pixel, an affine map from colours of `before` to those of `after`, fitted to pixels nearby.

    The images are float32 `[h, w, channels]`, from 0 to 1. The maps are float64 `[h, w, channels, channels + 1]`: the
    gains and the offset of each channel of the result. Each map is a mean of least-squares fits in squares of pixels.
    """
    channels = before.shape[-1]
    identity = np.eye(channels)
    weights = np.array(_LUMINANCE if channels == 3 else [1.0])

    def average_in_square(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, (_WINDOW, _WINDOW, *[0] * (values.ndim - 2)), mode="reflect")

    def average_everywhere(values: np.ndarray) -> np.ndarray:
        return values.mean((0, 1), keepdims=True)

    def fit(average: Callable[[np.ndarray], np.ndarray], ridge: float, default: np.ndarray) -> np.ndarray:
        mean_before, mean_after = average(before), average(after)
        columns = before[..., None, :]
        covariance = average(before[..., None] * columns) - mean_before[..., None] * mean_before[..., None, :]
        joint = average(after[..., None] * columns) - mean_after[..., None] * mean_before[..., None, :]
        # This solves gains @ covariance = joint, transposed; the ridge term pulls the gains towards `default`.
        solved = np.linalg.solve(covariance + ridge * identity, np.swapaxes(joint + ridge * default, -1, -2))
        gains = np.swapaxes(solved, -1, -2)
        contrast = np.einsum("i,...ij->...", weights, gains)
        gains = gains + np.maximum(_LEAST_CONTRAST - contrast, 0)[..., None, None] * identity
        offsets = mean_after - np.einsum("...ij,...j->...i", gains, mean_before)
        return np.concatenate([gains, offsets[..., None]], -1)

    whole = fit(average_everywhere, 1e-3, identity)[..., :-1]
    return average_in_square(fit(average_in_square, _EVENNESS, whole))


# File endings and Pillow's options of the formats that are written; photographs of other formats become PNG files.
_WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "BMP": (".bmp", {}),
    "JPEG": (".jpg", {"quality": 95, "subsampling": 0}),
    "PNG": (".png", {}),
    "TIFF": (".tif", {"compression": "tiff_lzw"}),
    "WEBP": (".webp", {"quality": 95}),
}


@dataclasses.dataclass(frozen=True)
class UserPhotograph:
    """A photograph of the user, from the file `path`; `format` is Pillow's name of the file's format, such as "JPEG".

    Attributes:
        pixels: the upright pixels in sRGB, uint8 `[H, W, 3]`, or `[H, W, 1]` for a model of grey images.
        alpha: the transparency, uint8 `[H, W]`; None for a photograph without transparency.
    """

    path: str
    pixels: np.ndarray
    alpha: np.ndarray | None
    format: str

    def shrink_photograph(self, image_shape: tuple[int, int, int]) -> np.ndarray:
        """Returns the uncropped photograph, resized to `image_shape`, uint8 `[height, width, channels]`."""
        return np.asarray(shrink_images(tf.constant(self.pixels[None]), *image_shape[:2]))[0]

    def encode_photograph(self, pixels: np.ndarray) -> tuple[bytes, str]:
        """Returns the bytes of an image file of `pixels` in the photograph's format, and its ending, such as ".jpg"."""
        image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        kind = self.format if self.format in _WRITTEN else "PNG"
        ending, options = _WRITTEN[kind]
        suffix = pathlib.PurePath(self.path).suffix
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue(), suffix if kind == self.format and suffix else ending


def read_photograph(path: str, channels: int, max_side: int) -> UserPhotograph:
    """Returns a photograph from a file, shrunk if a side is longer than `max_side` pixels.

    The photograph is turned upright as its EXIF data say, and its colours are converted to sRGB. Of an animation, the
    first picture is read. Values of 16 bits become 8 bits. `channels` is 3 for a model of colour images, else 1.

    Raises:
        DataError: if the file is missing, not an image or too large, or `channels` is neither 3 nor 1.
    """
    if channels not in (1, 3):
        raise DataError(f"the model's images have {channels} channels, and photographs have 3 or 1; take --size model")
    if not pathlib.Path(path).exists():
        raise DataError(f"there is no image file {path}; give the paths of image files")
    try:
        with open_image_file(path) as image:
            kind = image.format or "PNG"
            # With `draft` Pillow decodes a large JPEG file at a fraction of its size, which saves most of the time.
            image.draft("RGB", (max_side, max_side))
            profile = image.info.get("icc_profile")
            image = scale_to_8_bits(image)
            has_alpha = image.has_transparency_data and channels == 3
            image = image.convert("RGBA" if has_alpha else "RGB")
            image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
            image = ImageOps.exif_transpose(image)
            alpha = np.asarray(image.getchannel("A")) if has_alpha else None
            image = image.convert("RGB")
            # A photograph whose colour profile is missing or broken is treated as sRGB.
            with contextlib.suppress(ImageCms.PyCMSError, OSError):
                if profile:
                    srgb = ImageCms.createProfile("sRGB")
                    image = ImageCms.profileToProfile(image, io.BytesIO(profile), srgb) or image
            pixels = np.asarray(image if channels == 3 else image.convert("L"))
    # Every exception is caught, because Pillow raises nearly any class of exception for a damaged file.
    except Exception as error:
        raise DataError(f"cannot read the image {path}: {one_line(error)}; give another image file") from error
    return UserPhotograph(path, pixels.reshape(*pixels.shape[:2], channels), alpha, kind)

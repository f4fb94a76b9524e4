"""Functions that read photographs, apply to them the changes of colours that a model made to small copies, and write.

A guided filter (He, Sun and Tang, "Guided image filtering", 2013; at another size as in Chen et al., "Bilateral guided
upsampling", 2016) describes the change by an affine map of colours around each pixel of the small copy. The maps are
interpolated and applied to the pixels of the photograph.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import IFD, Base
from scipy.ndimage import uniform_filter

from tfdecouple.data.image_file import FULL_SIZE, open_image_file, scale_to_8_bits
from tfdecouple.errors import DataError, one_line
from tfdecouple.model import DecoupledModel
from tfdecouple.model.any_size import shrink_images
from tfdecouple.storage.files import write_bytes

# Side of the square windows, in pixels of the small image; an affine map of colours is fitted to each window.
_WINDOW = 9
# Strength of the fit's ridge term: if the colours (from 0 to 1) in a square of pixels have this variance, the square's
# colour map lies halfway between the fit to the square and the fit to the complete image.
_EVENNESS = 0.01
# Smallest gain of luminance of a colour map. A smaller one would wash out detail that the small image lacks.
_LEAST_CONTRAST = 0.8
# Distance to black and white, in 8-bit values, in which values that the filter moves towards them are compressed.
_SHOULDER = np.float32(32)
# Share of a picture from which on a note says what happened to it.
_NOTED = 0.05
_LUMINANCE = (0.299, 0.587, 0.114)


def change_at_full_size(
    photograph: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    unlimited: bool = False,
    notes: dict[str, str] | None = None,
) -> np.ndarray:
    """Changes the colours of a photograph as they change from `before` to `after`; returns uint8 `[H, W, channels]`.

    The photograph keeps its detail: only colours and light change, smoothly across the picture. The model did not
    compute the result, so encoding the result does not give the codes of `after`. If the photograph has the model's
    size, the result is `after`.

    Differences of colours grow at most twofold, and not at all where the photograph is smooth, so that noise and blocks
    of JPEG stay invisible. Values near black and white are compressed instead of clipped. `unlimited` lifts both
    limits. If the first limit takes away a third of the growth in a twentieth of the picture, `notes["limited"]` gets a
    text on it.

    `photograph`, uint8 `[H, W, channels]`, has three channels or one. `before` is the photograph in the size of the
    model's images, and `after` is the image that the model made of `before`; both are uint8 `[h, w, channels]`.
    """
    if photograph.shape == after.shape:
        return after
    maps, limited = _fit_colour_maps(before / np.float32(255), after / np.float32(255), unlimited)
    if notes is not None and limited >= _NOTED:
        notes["limited"] = f" in {limited:.0%} of the picture"
    maps = np.moveaxis(maps, 1, -1).astype(np.float32)
    maps[:, :, -1] *= 255
    # The last row and column are repeated, so that the pixels at the borders also lie between two maps.
    maps = np.pad(maps, [(0, 1), (0, 0), (0, 0), (0, 1)], "edge")
    low_rows, row_shares = _find_neighbours(photograph.shape[0], before.shape[0])
    low_columns, shares = _find_neighbours(photograph.shape[1], before.shape[1])
    maps = maps.take(low_columns, -1) * (1 - shares) + maps.take(low_columns + 1, -1) * shares
    result = np.empty_like(photograph)
    # Each band lies between two rows of maps. Bands keep the float32 copies of the photograph small.
    for row, (upper, lower) in enumerate(zip(maps[:-1], maps[1:], strict=True)):
        first, last = np.searchsorted(low_rows, [row, row + 1])
        source = np.moveaxis(photograph[first:last], -1, 0).astype(np.float32)
        for channel in range(len(source)):
            value = _apply_maps(lower[channel] - upper[channel], source) * row_shares[first:last, None]
            value += _apply_maps(upper[channel], source)
            if not unlimited:
                _compress_highlights(value, source[channel])
                shadows = 255 - value
                _compress_highlights(shadows, 255 - source[channel])
                value = 255 - shadows
            result[first:last, :, channel] = np.clip(value + np.float32(0.5), 0, 255)
    return result


def _apply_maps(maps: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Applies one map per column, float32 `[channels + 1, W]`, to float32 `[channels, rows, W]`; returns `[rows, W]`.

    The last number of each map is the offset, and the numbers before it are the gains of the channels.
    """
    value = maps[-1] + maps[0] * source[0]
    for gain, plane in zip(maps[1:-1], source[1:], strict=True):
        value += gain * plane
    return value


def _compress_highlights(values: np.ndarray, source: np.ndarray) -> None:
    """Compresses in place what exceeds both `source`, the values before a change, and the shoulder below 255.

    The values stay at most 255 where `source` is, and unchanged values stay as they are. Both are float32 `[rows, W]`.
    """
    knees = np.maximum(source, 255 - _SHOULDER)
    # Few values exceed the shoulder; integer indices are faster than a mask.
    bright = np.flatnonzero(values > knees)
    knee = knees.take(bright)
    room, excess = 255 - knee, values.take(bright) - knee
    np.put(values, bright, knee + excess * room / np.sqrt(room * room + excess * excess))


def _find_neighbours(length: int, small_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each pixel along a side, its place between two pixels of a small image, for linear interpolation.

    The result is (indices of the first of the two pixels, weights of the second), int64 and float32 `[length]`.
    """
    places = ((np.arange(length) + 0.5) * small_length / length - 0.5).clip(0, small_length - 1)
    low = places.astype(int)
    return low, (places - low).astype(np.float32)


def _fit_colour_maps(before: np.ndarray, after: np.ndarray, unlimited: bool) -> tuple[np.ndarray, float]:
    """Fits, for each pixel, an affine map of the colours of `before` to the colours of `after` in its neighbourhood.

    The images are float32 `[h, w, channels]`, from 0 to 1. The function returns the maps, float64
    `[h, w, channels, channels + 1]`: for each channel of `after`, the gain of each channel of `before`, and an offset.
    Each map is a mean of least-squares fits in squares of pixels, whose singular values are limited if not `unlimited`.
    Also returned is the share of squares in which the largest singular value was more than 1.5 times its limit.
    """
    channels = before.shape[-1]
    identity = np.eye(channels)
    weights = np.array(_LUMINANCE if channels == 3 else [1.0])
    limited = 0.0

    def average_in_square(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, (_WINDOW, _WINDOW, *[0] * (values.ndim - 2)), mode="reflect")

    def average_everywhere(values: np.ndarray) -> np.ndarray:
        return values.mean((0, 1), keepdims=True)

    def fit(average: Callable[[np.ndarray], np.ndarray], ridge: float, default: np.ndarray, limit: bool) -> np.ndarray:
        mean_before, mean_after = average(before), average(after)
        columns = before[..., None, :]
        covariance = average(before[..., None] * columns) - mean_before[..., None] * mean_before[..., None, :]
        joint = average(after[..., None] * columns) - mean_after[..., None] * mean_before[..., None, :]
        # `solved` is the transpose of `gains` in gains @ covariance = joint; the ridge term pulls gains to `default`.
        solved = np.linalg.solve(covariance + ridge * identity, np.swapaxes(joint + ridge * default, -1, -2))
        gains = np.swapaxes(solved, -1, -2)
        contrast = np.einsum("i,...ij->...", weights, gains)
        gains = gains + np.maximum(_LEAST_CONTRAST - contrast, 0)[..., None, None] * identity
        if limit:
            nonlocal limited
            variance = np.trace(covariance, axis1=-2, axis2=-1)[..., None]
            most = 1 + variance / (variance + ridge)
            left, stretch, right = np.linalg.svd(gains)
            limited = float((stretch[..., :1] > 1.5 * most).mean())
            gains = left * np.minimum(stretch, most)[..., None, :] @ right
        offsets = mean_after - np.einsum("...ij,...j->...i", gains, mean_before)
        return np.concatenate([gains, offsets[..., None]], -1)

    whole = fit(average_everywhere, 1e-3, identity, False)[..., :-1]
    return average_in_square(fit(average_in_square, _EVENNESS, whole, not unlimited)), limited


# {Pillow's name of a file format: (file ending, options of Pillow for saving)}. A photograph in another format is saved
# as a PNG file.
_WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "BMP": (".bmp", {}),
    "JPEG": (".jpg", {"quality": 95, "subsampling": 0}),
    "PNG": (".png", {}),
    # With compression, Pillow cannot write EXIF.
    "TIFF": (".tif", {}),
    "WEBP": (".webp", {"quality": 95}),
}
# Tags of EXIF that results keep, beside the groups of exposure and place.
_EXIF_TAGS = (
    Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime, Base.Artist, Base.HostComputer,
    Base.Copyright, Base.Rating,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class UserPhotograph:
    """A photograph that a user passes to a command, read from the file `path` in Pillow's `format`, such as "JPEG".

    `pixels` are upright and in sRGB, uint8 `[H, W, 3]`, or `[H, W, 1]` for a model of grey images. `alpha` is the alpha
    channel, uint8 `[H, W]`, or None. `metadata` has options of Pillow's `save`: EXIF, colour profile and dots per inch.
    `losses` has a note, {what: details}, if the photograph was shrunk, or had more than 8 bits.
    """

    path: str
    pixels: np.ndarray
    alpha: np.ndarray | None
    format: str
    metadata: dict[str, Any]
    losses: dict[str, str]

    @property
    def is_grey(self) -> bool:
        """Whether the photograph has no colours, whatever its file format: all channels of a pixel are equal."""
        return bool((self.pixels == self.pixels[..., :1]).all())

    def shrink_photograph(self, image_shape: tuple[int, int, int]) -> np.ndarray:
        """Returns this photograph, resized without cropping to height and width of `image_shape`, uint8."""
        # The height is shrunk in strips of 512 columns, because TensorFlow's float32 copy of a strip is small.
        strips = np.split(self.pixels[None], range(512, self.pixels.shape[1], 512), axis=2)
        narrow = [shrink_images(tf.constant(strip), image_shape[0], strip.shape[2]) for strip in strips]
        return np.asarray(shrink_images(tf.concat(narrow, 2), *image_shape[:2]))[0]

    def change_photograph(
        self, before: np.ndarray, after: np.ndarray, unlimited: bool
    ) -> tuple[np.ndarray, dict[str, str]]:
        """Returns `change_at_full_size` of this photograph, and notes, {what: details}, on losses and limits."""
        notes = dict(self.losses)
        pixels = change_at_full_size(self.pixels, before, after, unlimited, notes)
        if self.is_grey and (pixels != pixels[..., :1]).any():
            notes["grey before"] = ""
        clipped = float((np.isin(pixels, (0, 255)) & (pixels != self.pixels)).mean())
        if clipped >= _NOTED:
            notes["clipped"] = f", {clipped:.0%} of the values became 0 or 255"
        return pixels, notes

    def encode_photograph(self, pixels: np.ndarray) -> tuple[bytes, str]:
        """Encodes `pixels`, uint8, in this photograph's file format; returns (bytes, file ending such as ".jpg").

        The file has the photograph's metadata, and its colour profile, to which the pixels are converted.
        """
        image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
        if profile := self.metadata.get("icc_profile"):
            image = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), io.BytesIO(profile)) or image
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        kind, suffix = _choose_format(self.path, self.format)
        buffer = io.BytesIO()
        try:
            # Pillow's TIFF writer takes EXIF as bytes alone.
            metadata = {**self.metadata, "exif": self.metadata["exif"].tobytes()}
            image.save(buffer, kind, **_WRITTEN[kind][1], **metadata)
        # Damaged metadata raise nearly any class of exception.
        except Exception:
            buffer = io.BytesIO()
            image.save(buffer, kind, **_WRITTEN[kind][1], icc_profile=profile)
        return buffer.getvalue(), suffix


def _choose_format(path: str, kind: str) -> tuple[str, str]:
    """Returns Pillow's name and the file ending of the format in which a photograph at `path`, of `kind`, is saved."""
    if kind not in _WRITTEN:
        return "PNG", ".png"
    return kind, pathlib.PurePath(path).suffix or _WRITTEN[kind][0]


@contextlib.contextmanager
def _open_photograph(path: str) -> Iterator[tuple[Image.Image, str]]:
    """A context with a photograph's Pillow image and format; it converts each exception inside to a DataError."""
    try:
        with warnings.catch_warnings(action="ignore"), open_image_file(path) as image:
            # Many telephones write MPO files: a JPEG file with further pictures at its end.
            yield image, "JPEG" if image.format == "MPO" else image.format or "PNG"
    # Pillow raises nearly any class of exception for a damaged file, so each exception becomes DataError.
    except Exception as error:
        raise DataError(f"cannot read the image {path}: {one_line(error)}; give another image file") from error


def find_result_name(path: str) -> str:
    """Returns the name under which a changed photograph is saved: that of `path`, if its format can be written.

    The name ends in .png for a photograph in another format. Only the header of the file is read; DataError is raised
    if it is damaged.
    """
    with _open_photograph(path) as (_, kind):
        return pathlib.PurePath(path).with_suffix(_choose_format(path, kind)[1]).name


def read_photograph(path: str, channels: int, max_side: int) -> UserPhotograph:
    """Reads a `UserPhotograph` from a file, and shrinks it if a side is longer than `max_side` pixels.

    The photograph is turned upright as its EXIF data say, and its colours are converted to sRGB. Of an animation, the
    first picture is read. Values of 16 bits become 8 bits. `channels` is 3 for a model of RGB images, 1 for grey ones;
    for others, or a file that is missing, no image or too large, DataError is raised.
    """
    if channels not in (1, 3):
        raise DataError(f"the model's images have {channels} channels, and photographs have 3 or 1; use --size model")
    with _open_photograph(path) as (image, kind):
        width, height = image.info.get(FULL_SIZE, image.size)
        # After `draft`, Pillow decodes a large JPEG file at a fraction of its size, which saves most of the time.
        image.draft("RGB", (max_side, max_side))
        metadata = {name: image.info[name] for name in ("icc_profile", "dpi") if image.info.get(name)}
        # Pillow has no mode for 16-bit colours: it reads them as 8 bits by a decoder of this name.
        is_deep = image.mode.startswith(("I", "F")) or re.search(r"(RGB[AX]?|LA?);16", str(getattr(image, "tile", "")))
        losses = {"8 bits instead of 16": ""} if is_deep else {}
        image = scale_to_8_bits(image)
        has_alpha = image.has_transparency_data and channels == 3
        mode = "RGBA" if has_alpha else "RGB"
        # `convert` would copy all pixels even if the mode is right.
        image = image if image.mode == mode else image.convert(mode)
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        if max(image.size) < max(width, height):
            losses["shrunk"] = f" from {width} x {height}"
        exif = image.getexif()
        image = ImageOps.exif_transpose(image)
        alpha = np.asarray(image.getchannel("A")) if has_alpha else None
        image = image.convert("RGB")
        # If the colour profile is missing or broken, the colours are taken as sRGB without an error.
        try:
            if profile := metadata.get("icc_profile"):
                srgb = ImageCms.createProfile("sRGB")
                image = ImageCms.profileToProfile(image, io.BytesIO(profile), srgb) or image
                ImageCms.profileToProfile(Image.new("RGB", (1, 1)), srgb, io.BytesIO(profile))
        except (ImageCms.PyCMSError, OSError):
            del metadata["icc_profile"]
        pixels = np.asarray(image if channels == 3 else image.convert("L"))
        if channels == 1:
            metadata.pop("icc_profile", None)
        metadata["exif"] = _copy_exif(exif, image.size)
    return UserPhotograph(path, pixels.reshape(*pixels.shape[:2], channels), alpha, kind, metadata, losses)


def _copy_exif(exif: Image.Exif, size: tuple[int, int]) -> Image.Exif:
    """Returns the tags of `exif` that describe a photograph, not the layout of its file, for a result of `size`."""
    copy = Image.Exif()
    copy.update({tag: exif[tag] for tag in _EXIF_TAGS if tag in exif})
    for group in (IFD.Exif, IFD.GPSInfo):
        if tags := dict(exif.get_ifd(group)):
            if group == IFD.Exif:
                tags |= {Base.ExifImageWidth: size[0], Base.ExifImageHeight: size[1]}
            copy[group] = tags
    return copy


class OwnSizeResults:
    """Writes photographs at their own size, changed as the model changed small copies, into the folder `out`.

    Photographs with a side of more than `max_side` pixels are shrunk. `unlimited` is that of `change_at_full_size`.

    Attributes:
        names: the photographs' file names, without folders and endings.
        small: the photographs, reduced to the model's size and quantised, uint8 `[n, height, width, channels]`.
    """

    def __init__(
        self, paths: Sequence[str], out: pathlib.Path, model: DecoupledModel, max_side: int, unlimited: bool
    ) -> None:
        self._paths, self._out, self._unlimited, self._written = paths, out, unlimited, set[pathlib.Path]()
        shape = model.config.image_shape
        self.names = [pathlib.PurePath(path).stem for path in paths]
        # The memory holds two photographs, because commands write the results of a pair in turns.
        self._read = functools.lru_cache(2)(lambda path: read_photograph(path, shape[-1], max_side))
        small = np.stack([self._read(path).shrink_photograph(shape) for path in paths])
        self.small = np.asarray(model.quantize_images(small))

    def save_photograph(self, index: int, after: np.ndarray, change: str) -> None:
        """Applies the change from `small[index]` to `after` to photograph `index`; writes the result, prints its path.

        `after` is uint8 `[height, width, channels]` of the model's size. With `change` "z-of-b", a.jpg becomes
        a-z-of-b.jpg; a number follows where photographs of different folders have the same name.
        """
        photograph = self._read(self._paths[index])
        pixels, notes = photograph.change_photograph(self.small[index], after, self._unlimited)
        content, suffix = photograph.encode_photograph(pixels)
        numbers = ("", *(f"-{number}" for number in range(2, len(self._written) + 3)))
        names = (f"{self.names[index]}-{change}{number}{suffix}" for number in numbers)
        path = next(self._out / name for name in names if self._out / name not in self._written)
        self._written.add(path)
        write_bytes(path, content)
        size = f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
        print(f"{path}: {'; '.join((size, *map(''.join, notes.items())))}", flush=True)

"""Functions that read image files with Pillow, and crop and resize images to the shape of the model's images.

The functions cut out the centre of an image, in the proportions of the model's images, and resize it with Pillow's
filter BILINEAR on 8-bit pixels. `export/page/resize.js` computes the same bytes in JavaScript.
"""

import contextlib
import ctypes
import functools
import math
import pathlib
import threading
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from tfdecouple.config.shapes import RGB_CHANNELS, ImageShape
from tfdecouple.data.image_formats import PILLOW_MODES
from tfdecouple.errors import DataError, one_line
from tfdecouple.storage.files import get_regular_size

# Images with more pixels (200 MB as RGB) are refused, because a small file can claim an image of any size. A JPEG file
# of at most 178 million pixels, Pillow's own limit, is decoded at half its size.
MOST_PIXELS = 2**26
# Name of an entry in the `info` of a Pillow image that is decoded at half its size: width and height of the file.
FULL_SIZE = "full size"

# Formats that Pillow tries for every file, because users often give a file the ending of another format.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# The ending of NumPy's array files, which are the only accepted format for images with more than four channels.
ARRAY_SUFFIX = ".npy"
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ARRAY_SUFFIX, ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_centre_box(height: int, width: int, image_shape: ImageShape, centre_crop: int) -> tuple[int, int, int, int]:
    """Returns the rectangle to cut out of an image, in pixels: (first row, first column, count of rows, of columns).

    The rectangle has the proportions of `image_shape`. Its shorter side has at most `centre_crop` pixels; 0 stands for
    no limit.

    >>> find_centre_box(100, 300, (32, 32, 3), 0)
    (0, 100, 100, 100)
    >>> find_centre_box(100, 300, (48, 64, 3), 0), find_centre_box(100, 300, (48, 64, 3), 60)
    ((0, 83, 100, 133), (20, 110, 60, 80))
    """
    rows_as, columns_as, _ = image_shape
    rows = min(height, max(width * rows_as // columns_as, 1))
    columns = min(width, max(height * columns_as // rows_as, 1))
    if centre_crop:
        shorter = min(rows_as, columns_as)
        rows = min(rows, centre_crop * rows_as // shorter)
        columns = min(columns, centre_crop * columns_as // shorter)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def crop_and_resize(pixels: np.ndarray, image_shape: ImageShape, centre_crop: int) -> np.ndarray:
    """Cuts out the centre of an image, and resizes the centre if it has another shape; returns uint8 `image_shape`.

    `pixels` are uint8 [H, W, channels], or [H, W] for one channel. With (0, 0, channels) as `image_shape`, the image is
    neither cropped nor resized. The centre's shorter side has at most `centre_crop` pixels before resizing; 0 for no
    limit.
    """
    if image_shape[:2] == (0, 0):
        return pixels.reshape(*pixels.shape[:2], image_shape[2])
    top, left, rows, columns = find_centre_box(pixels.shape[0], pixels.shape[1], image_shape, centre_crop)
    height, width, channels = image_shape
    pixels = pixels[top : top + rows, left : left + columns]
    if pixels.shape[:2] == (height, width):
        return pixels.reshape(image_shape)

    def resize(part: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(part))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    if channels == RGB_CHANNELS:
        return resize(pixels)
    # Each channel is resized separately, because Pillow treats the last of two or four channels as transparency.
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    return np.stack([resize(pixels[..., channel]) for channel in range(channels)], -1)


def crop_and_resize_tensor(image: tf.Tensor, image_shape: ImageShape, centre_crop: int) -> tf.Tensor:
    """Crops and resizes an image tensor, uint8 [H, W, channels], in tf.data; returns a tensor, uint8 `image_shape`.

    The pixels are those of `crop_and_resize`. A grey image becomes RGB if `image_shape` has 3 channels, and an RGB
    image becomes grey if `image_shape` has 1 channel.
    """
    if image.shape == image_shape and not centre_crop:
        return image

    def convert_and_fit(pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[-1] != image_shape[-1]:
            mode = PILLOW_MODES[image_shape[-1]]
            pixels = np.asarray(Image.fromarray(pixels.squeeze(-1) if mode == "RGB" else pixels).convert(mode))
        return crop_and_resize(pixels, image_shape, centre_crop)

    # Pillow resizes, not tf.image.resize, which rounds differently: a tenth of the pixel values would differ by 1.
    return tf.ensure_shape(tf.numpy_function(convert_and_fit, [image], tf.uint8, stateful=False), image_shape)


# All threads together hold at most twice `MOST_PIXELS` decoded pixels in memory, counted in blocks of 2**20 pixels.
_BLOCK = 2**20
_FREE_BLOCKS, _TURN = threading.Semaphore(2 * MOST_PIXELS // _BLOCK), threading.Lock()


@contextlib.contextmanager
def _reserve_memory(pixels: int) -> Iterator[None]:
    blocks = math.ceil(pixels / _BLOCK)
    # One thread at a time takes its blocks, because two threads with a part of their blocks could wait for each other.
    with _TURN:
        for _ in range(blocks):
            _FREE_BLOCKS.acquire()
    try:
        yield
    finally:
        _FREE_BLOCKS.release(blocks)


@functools.cache
def _set_up_pillow() -> None:
    """Makes Pillow allocate memory in blocks of 64 MiB, and its library for TIFF print no messages."""
    # Threads never return smaller blocks to the system.
    Image.core.set_block_size(2**26)
    # Pillow raises an error for a damaged file; a build without this library lacks the functions.
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(Image.core.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def read_image(path: str, image_shape: ImageShape, centre_crop: int, file: BinaryIO | None = None) -> np.ndarray:
    """Reads an image file; returns the image upright (by EXIF), cropped and resized, uint8 of `image_shape`.

    For three channels, grey, palette and CMYK images become RGB, and transparency is dropped. For one channel, all
    images become grey, as Pillow's "L". For another count of channels, the file must have that count: an image of
    Pillow's mode LA, RGBA or CMYK, or a NumPy array (.npy), uint8 [H, W, channels].

    The arguments `image_shape` and `centre_crop` are as in `crop_and_resize`. If `file` is given, an open file, the
    function reads from `file`, and needs `path` only for the ending and for messages.

    DataError, with the path, is raised if the file is not a regular file, is not an image of a format that its ending
    allows, has more than `MOST_PIXELS` pixels, or has another count of channels.
    """
    channels = image_shape[-1]
    try:
        if pathlib.PurePath(path).suffix.lower() == ARRAY_SUFFIX:
            pixels = _open_array(path, file, channels)
            with _reserve_memory(_count_pixels(pixels.shape[1], pixels.shape[0])):
                return crop_and_resize(pixels, image_shape, centre_crop)
        with open_image_file(path, file) as opened, _reserve_memory(opened.width * opened.height):
            ImageOps.exif_transpose(opened, in_place=True)
            image = scale_to_8_bits(opened)
            # The entry is removed, because with it Pillow's convert() warns about transparent colours in a palette.
            image.info.pop("transparency", None)
            if channels in PILLOW_MODES:
                mode = PILLOW_MODES[channels]
                image = image if image.mode == mode else image.convert(mode)
            elif len(bands := image.getbands()) != channels:
                raise ValueError(
                    f"it has {len(bands)} channels ({', '.join(bands)}), and the model's images have {channels} "
                    "(model.image_shape)"
                )
            return crop_and_resize(np.asarray(image), image_shape, centre_crop)
    # Pillow raises exceptions of many classes for damaged files, even SyntaxError, so each exception becomes DataError.
    except Exception as error:
        raise DataError(f"cannot read the image {path}: {one_line(error)}") from error


def _open_array(path: str, file: BinaryIO | None, channels: int) -> np.ndarray:
    """Returns the array in a NumPy file (.npy), uint8 [H, W, channels]; raises ValueError for any other array."""
    if file is None:
        get_regular_size(path)
    pixels: np.ndarray
    try:
        # The file is mapped into memory, not loaded, because the header of an untrusted file can claim any size.
        pixels = np.lib.format.open_memmap(path, mode="r") if file is None else np.lib.format.read_array(file)
    except ValueError as error:
        # NumPy's own message can advise to run code in the file.
        raise ValueError("it is damaged, or no array of numbers that numpy.save wrote") from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != channels or not pixels.size:
        raise ValueError(
            f"it is {pixels.dtype} {list(pixels.shape)}, and the model takes uint8 [height, width, {channels}] "
            "(model.image_shape)"
        )
    return pixels


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Reduces a 16-bit Pillow image to its upper 8 bits, which `convert` would clip; ValueError for 32 bits."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have the mode {image.mode}, not 8 or 16 bits")
    return image


def open_image_file(path: str, file: BinaryIO | None = None) -> Image.Image:
    """Opens an image file, reads its header, and returns the Pillow image; the pixels are read later.

    Raises ValueError if `path` is not a regular file, if the file is not an image, or if the image has more than
    `MOST_PIXELS` pixels. For damaged files, Pillow raises exceptions of other classes.
    """
    if file is None:
        get_regular_size(path)
    _set_up_pillow()
    try:
        image = Image.open(path if file is None else file, formats=_FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is no image of the formats {', '.join(_FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {MOST_PIXELS:,} pixels") from None
    try:
        if image.width * image.height > MOST_PIXELS:
            # Of the formats, only JPEG can be decoded at a fraction of its size; for others `draft` does nothing.
            image.info[FULL_SIZE] = image.size
            image.draft(None, (image.width // 2, image.height // 2))
        _count_pixels(*image.size)
    except ValueError:
        image.close()
        raise
    return image


def _count_pixels(width: int, height: int) -> int:
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MOST_PIXELS:,}")
    return width * height

"""Image files in many formats for tests, and a function that loads the example programs that read them."""

from __future__ import annotations

import importlib.util
import pathlib
import struct
import types
import zlib

import numpy as np
from PIL import Image

from helpers.models import TINY, random_images

SIZE = TINY.image_shape[0]
TURNED = 0x0112  # This EXIF tag holds the orientation of an image.


def load_program(path: pathlib.Path) -> types.ModuleType:
    """Returns a program of examples/ as an imported module."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def smooth(height: int, width: int) -> np.ndarray:
    """Returns a smooth image, uint8 `[height, width, 3]`, that JPEG changes little."""
    y, x, channel = np.ogrid[:height, :width, :3]
    waves = 128 + 90 * np.sin(x / 7 + channel) * np.cos(y / 5) + 30 * np.sin((x + 2 * y) / 2)
    return np.clip(waves, 0, 255).astype(np.uint8)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[TURNED] = orientation
    return exif


def write_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes an image file for each of many formats, sizes and orientations; returns the paths by file name."""
    noise = random_images(1, 61)[0]
    grey = Image.fromarray(noise[:37, :50, 0])
    alpha = random_images(1, 61, seed=1)[0, :, :, 0]
    see_through = np.concatenate([noise, alpha[..., None]], 2)
    palette = Image.fromarray(noise[:40]).quantize(64)
    files = {
        "exact.png": (Image.fromarray(noise[:SIZE, :SIZE]), {}),
        "odd.png": (Image.fromarray(noise[:37, :60]), {}),
        "tall.png": (Image.fromarray(noise[:, :13]), {}),
        "small.png": (Image.fromarray(noise[:3, :5]), {}),
        "one.png": (Image.fromarray(noise[:1, :1]), {}),
        "near.png": (Image.fromarray(noise[: SIZE + 1, : SIZE + 2]), {}),
        "large.png": (Image.fromarray(smooth(1201, 1350)), {}),
        "grey.png": (grey, {}),
        "bits.png": (grey.convert("1"), {}),
        "grey_16.png": (Image.fromarray(noise[:, :40, 0].astype(np.uint16) * 256 + 200), {}),
        "alpha.png": (Image.fromarray(see_through), {}),
        "alpha_exact.png": (Image.fromarray(see_through[:SIZE, :SIZE]), {}),
        "grey_alpha.png": (Image.fromarray(see_through[..., 2:4], "LA"), {}),
        "palette.png": (palette, {}),
        "palette_alpha.png": (palette, {"transparency": bytes(range(0, 256, 4))}),
        "lossless.webp": (Image.fromarray(noise[:, :40]), {"lossless": True}),
        "photograph.jpg": (Image.fromarray(smooth(203, 157)), {"quality": 90}),
        "photograph_444.jpg": (Image.fromarray(smooth(203, 157)), {"quality": 90, "subsampling": 0}),
        "progressive.jpg": (Image.fromarray(smooth(120, 99)), {"progressive": True}),
        "grey.jpg": (Image.fromarray(smooth(90, 91)[..., 0]), {}),
    }
    for orientation in (3, 5, 6):  # EXIF: rotated by 180 degrees, transposed, rotated by 90 degrees.
        files[f"turned_{orientation}.jpg"] = (
            Image.fromarray(smooth(60, 85)),
            {"exif": turned(orientation), "subsampling": 0},
        )
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    return {name: folder / name for name in files}


def claiming(width: int, height: int) -> bytes:
    """Returns the few bytes of a PNG file whose header claims to have width x height pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )

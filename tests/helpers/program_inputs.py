"""Image files in many formats and small ONNX models, inputs of an export's client.py and of the example programs."""

import importlib.util
import pathlib
import re
import struct
import types
import zlib
from collections.abc import Mapping

import numpy as np
import onnx.parser
from PIL import Image

from helpers.models import TINY, random_images

SIZE = TINY.image_shape[0]


def load_program(path: pathlib.Path) -> types.ModuleType:
    """Imports the Python file at `path`, such as a program in examples/, and returns the module."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_smooth_image(height: int, width: int) -> np.ndarray:
    """Returns an image of smooth waves, uint8 `[height, width, 3]`, which JPEG compression changes little."""
    y, x, channel = np.ogrid[:height, :width, :3]
    waves = 128 + 90 * np.sin(x / 7 + channel) * np.cos(y / 5) + 30 * np.sin((x + 2 * y) / 2)
    return np.clip(waves, 0, 255).astype(np.uint8)


def write_picture_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes test images of many formats, sizes and EXIF orientations to a folder; returns {file name: path}."""
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
        "large.png": (Image.fromarray(draw_smooth_image(1201, 1350)), {}),
        "grey.png": (grey, {}),
        "bits.png": (grey.convert("1"), {}),
        "grey_16.png": (Image.fromarray(noise[:, :40, 0].astype(np.uint16) * 256 + 200), {}),
        "alpha.png": (Image.fromarray(see_through), {}),
        "alpha_exact.png": (Image.fromarray(see_through[:SIZE, :SIZE]), {}),
        "grey_alpha.png": (Image.fromarray(see_through[..., 2:4], "LA"), {}),
        "palette.png": (palette, {}),
        "palette_alpha.png": (palette, {"transparency": bytes(range(0, 256, 4))}),
        "lossless.webp": (Image.fromarray(noise[:, :40]), {"lossless": True}),
        "photograph.jpg": (Image.fromarray(draw_smooth_image(203, 157)), {"quality": 90}),
        "photograph_444.jpg": (Image.fromarray(draw_smooth_image(203, 157)), {"quality": 90, "subsampling": 0}),
        "progressive.jpg": (Image.fromarray(draw_smooth_image(120, 99)), {"progressive": True}),
        "grey.jpg": (Image.fromarray(draw_smooth_image(90, 91)[..., 0]), {}),
    }
    for orientation in (3, 5, 6):  # EXIF codes: rotated by 180 degrees, transposed, rotated by 90 degrees.
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = Image.fromarray(draw_smooth_image(60, 85)), {"exif": exif, "subsampling": 0}
        files[f"turned_{orientation}.jpg"] = turned
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    return {name: folder / name for name in files}


def make_png_header(width: int, height: int) -> bytes:
    """Returns the bytes of a broken PNG file, whose header claims width x height pixels, but which holds only a few."""
    return make_png(width, height, zlib.compress(bytes(99)))


def make_png(width, height, data: bytes, depth=8, colour_type=2, interlaced=False) -> bytes:
    """Returns the bytes of a PNG file; `data` are its compressed rows, each with a filter byte before it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# ONNX models, as text, of an encoder and a decoder of 8 x 8 images without z; they use the image as v.
WITHOUT_Z = {
    "encoder": "encoder (uint8[batch, 8, 8, 3] images) => (float[batch, 8, 8, 3] v) { v = Cast <to = 1> (images) }",
    "decoder": "decoder (float[batch, 8, 8, 3] v) => (uint8[batch, 8, 8, 3] images) { images = Cast <to = 2> (v) }",
}


def quantize_to_5_bits(encoder: str) -> str:
    """Returns the text of an ONNX encoder, edited to round pixels down to multiples of 8, as a model of 5 bits does."""
    steps = r"""every = Cast <to = 1> (images)
        step = Constant <value = float {8.0}> ()
        levels = Div (every, step)
        whole = Floor (levels)
        \1 = Mul (whole, step)"""
    return re.sub(r"(\w+) = Cast <to = 1> \(images\)", steps, encoder)


def write_onnx_models(folder: pathlib.Path, texts: Mapping[str, str], **metadata: str) -> pathlib.Path:
    """Writes each model in `texts`, {name: text of an ONNX model}, to `folder / "NAME.onnx"`; returns `folder`."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\n{text}')
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, folder / f"{name}.onnx")
    return folder

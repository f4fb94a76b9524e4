"""Switches the global codes of two images with ONNX Runtime: python switch.py FOLDER a.jpg b.jpg."""

import argparse
import functools
import os
import pathlib
import stat
import sys
import warnings

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

MODES = {1: "L", 3: "RGB"}  # What Pillow makes of any image, by the number of channels.
PROVIDERS = ["CPUExecutionProvider"]  # A GPU's provider goes before it: see README.md.
# Formats for which Pillow starts no other program, and pixels that a file may have: a small one can claim any number.
FORMATS, MOST_PIXELS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"), 2**27


def fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def attempt(what, action, *args, **options):
    """Returns what `action` returns; where it fails, one line says so and the program ends."""
    try:
        return action(*args, **options)
    except Exception as error:  # Pillow and ONNX Runtime raise nearly anything at a damaged file.
        fail(f"cannot {what}: {' '.join(str(error).split())}")


def read_centre(path, shape, crop=0):
    """Returns the centre of an image, uint8 [height, width, channels], made as the training images were.

    It has the proportions of `shape`, and `crop` pixels along its shorter side; it is the largest such part where that
    is 0 or does not fit. An image of the right size stays.
    """
    height, width, channels = shape
    if not stat.S_ISREG(os.stat(path).st_mode):  # A pipe would be waited for without an end.
        raise ValueError("it is no regular file")
    with Image.open(path, formats=FORMATS) as file:
        if file.width * file.height > MOST_PIXELS:
            raise ValueError(f"it has {file.width} x {file.height} pixels, more than {MOST_PIXELS:,}")
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16"):  # convert() would clip 16 bits to 8 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have the mode {image.mode}, not 8 or 16 bits")
    image.info.pop("transparency", None)  # convert() would drop a palette's with a warning.
    rows = min(image.height, max(image.width * height // width, 1))
    columns = min(image.width, max(image.height * width // height, 1))
    if crop:
        shorter = min(height, width)
        rows, columns = min(rows, crop * height // shorter), min(columns, crop * width // shorter)
    left, top = (image.width - columns) // 2, (image.height - rows) // 2
    # Colours before resizing: palette indices have no averages, and transparent pixels count like others.
    centre = image.convert(MODES[channels]).crop((left, top, left + columns, top + rows))
    return np.asarray(centre.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)


def known_images(height, width, channels):
    """Returns 16 images of smooth colour waves, uint8 [16, height, width, channels], the same on every machine."""
    number, y, x, channel = np.ogrid[:16, :height, :width, :channels]
    phase = 256 * ((number % 4 + 1) * x + (number // 4 + 1) * y) // max(height, width) + 85 * channel
    return np.minimum(np.abs(phase % 512 - 256), 255).astype(np.uint8)


def level_step(encoder):
    """What neighbouring levels differ by as pixels: a model of fewer than 8 bits knows multiples of it alone."""
    return 256 >> int(encoder.get_modelmeta().custom_metadata_map.get("n_bits", 8))


def check(encode, decode, names, shape, step):
    """Says how many known images come back from their codes; the exit status is 1 unless all do."""
    images = known_images(*shape) // step * step
    codes = dict(zip(names, encode(names, {"images": images}), strict=True))
    (back,) = decode(codes)
    same = int(np.all(back == images, axis=(1, 2, 3)).sum())
    print(f"{same} of {len(images)} known images come back exactly")
    return 0 if same == len(images) else 1


def switch(encode, decode, images, paths):
    """Writes ab.png (z of the first image, v of the second) and ba.png, and says whether the images come back."""
    z, v = encode(["z", "v"], {"images": images})
    (back,) = decode({"z": z, "v": v})
    for path, lost in zip(paths, np.sum(back != images, axis=(1, 2, 3)), strict=True):
        print(f"{path}: {f'{lost} of {back[0].size} values differ' if lost else 'exactly the same'} after decoding")

    (switched,) = decode({"z": z, "v": v[::-1]})
    for name, pixels, (of_z, of_v) in zip(("ab.png", "ba.png"), switched, (paths, paths[::-1]), strict=True):
        attempt(f"write {name}", Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save, name)
        print(f"{name}: z of {of_z}, v of {of_v}")
    return 0


def main():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # FORMATS and MOST_PIXELS say what is read.
    parser = argparse.ArgumentParser(description=__doc__)
    parser.error = lambda message: fail(f"{message}; {' '.join(parser.format_usage().split())}")
    parser.add_argument("folder", metavar="FOLDER", help="has encoder.onnx and decoder.onnx")
    parser.add_argument("images", metavar="A B", nargs="*", help="two images to switch")
    parser.add_argument("--crop", type=int, default=0, metavar="N", help="keep the middle N x N pixels of an image")
    parser.add_argument("--check", action="store_true", help="send known images through; do they come back?")
    options = parser.parse_intermixed_args()
    if len(options.images) != (0 if options.check else 2):
        parser.error("give two images, or --check and none")
    if options.crop < 0:
        parser.error(f"--crop is {options.crop}; it must not be negative")

    models = [pathlib.Path(options.folder) / name for name in ("encoder.onnx", "decoder.onnx")]
    encoder, decoder = [
        attempt(f"open the model {model}", onnxruntime.InferenceSession, model, providers=PROVIDERS) for model in models
    ]
    encode = functools.partial(attempt, f"encode with {models[0]}", encoder.run)
    decode = functools.partial(attempt, f"decode with {models[1]}", decoder.run, ["images"])
    inputs, names = [given.name for given in encoder.get_inputs()], [code.name for code in encoder.get_outputs()]
    if inputs != ["images"]:
        fail(f"{models[0]} takes {', '.join(inputs)}, and this example gives images alone; client.py takes all")
    (_, *shape), step = encoder.get_inputs()[0].shape, level_step(encoder)
    if options.check:
        return check(encode, decode, names, shape, step)
    if names != ["z", "v"]:
        fail(f"{models[0]} does not encode to z and v: without z there is nothing to switch")
    if shape[-1] not in MODES:
        fail(f"{models[0]} takes {shape[-1]} channels, and image files are read as 1 or 3 here")
    read = [attempt(f"read the image {path}", read_centre, path, shape, options.crop) for path in options.images]
    return switch(encode, decode, np.stack(read) // step * step, options.images)


if __name__ == "__main__":
    sys.exit(main())

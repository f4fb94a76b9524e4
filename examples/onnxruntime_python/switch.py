"""Switches the global codes of two images with ONNX Runtime: python switch.py FOLDER a.jpg b.jpg."""

import pathlib
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

PROVIDERS = ["CPUExecutionProvider"]  # A GPU's provider goes before it: see README.md.


def fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def attempt(what, action, *args, **options):
    """Returns what `action` returns; where it fails, one line says so and the program ends."""
    try:
        return action(*args, **options)
    except Exception as error:  # Pillow and ONNX Runtime raise nearly anything at a damaged file.
        fail(f"cannot {what}: {' '.join(str(error).split())}")


def read_square(path, size):
    """Returns the largest centre square of an image, uint8 [size, size, 3]; an image of that size as it is."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16"):  # convert() would clip 16 bits to 8 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.info.pop("transparency", None)  # convert() would drop a palette's with a warning.
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # RGB before resizing: palette indices have no averages.
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def main(folder, *paths):
    models = [pathlib.Path(folder) / name for name in ("encoder.onnx", "decoder.onnx")]
    encoder, decoder = [
        attempt(f"open the model {model}", onnxruntime.InferenceSession, model, providers=PROVIDERS) for model in models
    ]
    if [code.name for code in encoder.get_outputs()] != ["z", "v"]:
        fail(f"{models[0]} does not encode to z and v: without z there is nothing to switch")
    size = encoder.get_inputs()[0].shape[1]
    images = np.stack([attempt(f"read the image {path}", read_square, path, size) for path in paths])

    z, v = encoder.run(["z", "v"], {"images": images})
    (back,) = attempt(f"decode with {models[1]}", decoder.run, ["images"], {"z": z, "v": v})
    for path, lost in zip(paths, np.sum(back != images, axis=(1, 2, 3)), strict=True):
        print(f"{path}: {f'{lost} of {back[0].size} values differ' if lost else 'exactly the same'} after decoding")

    (switched,) = decoder.run(["images"], {"z": z, "v": v[::-1]})
    for name, pixels, (of_z, of_v) in zip(("ab.png", "ba.png"), switched, (paths, paths[::-1]), strict=True):
        attempt(f"write {name}", Image.fromarray(pixels).save, name)
        print(f"{name}: z of {of_z}, v of {of_v}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        fail("usage: python switch.py FOLDER A B, where FOLDER has encoder.onnx and decoder.onnx, and A, B are images")
    main(*sys.argv[1:])

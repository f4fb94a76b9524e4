"""Runs the ONNX files beside this one; it needs onnxruntime and numpy, and Pillow where it opens picture files.

python client.py --check [FOLDER]      do known images come back exactly from their codes, here?
python client.py a.jpg b.jpg           ab.png: z of a, v of b; and ba.png, into the working folder

from client import Model               in a program: with client.py and the folder onnx beside it
model = Model()                        or Model("folder/onnx", providers=[...])
images = model.fit(picture)[None]      any uint8 [height, width, 3], as MODEL_CARD.md says: cropped and resized
codes = model.encode(images)           {"z": float32 [n, d_z], "v": float32 [n, size, size, 3]}
images = model.decode(**codes)         the very same pixels
"""

import pathlib
import re
import sys

import numpy as np
import onnxruntime


class Model:
    """Encoder and decoder of an export; `size` is the side of their images in pixels."""

    def __init__(self, folder=pathlib.Path(__file__).parent / "onnx", providers=("CPUExecutionProvider",)):
        paths = [str(pathlib.Path(folder, f"{name}.onnx")) for name in ("encoder", "decoder")]
        self.encoder, self.decoder = (onnxruntime.InferenceSession(path, providers=list(providers)) for path in paths)
        about = self.encoder.get_modelmeta().custom_metadata_map
        self.size = int(about["image_size"])
        self.crop = int((re.search(r"\d+", about["crop"]) or ["0"])[0])
        self.needs_labels = any(given.name == "labels" for given in self.encoder.get_inputs())

    def encode(self, images, labels=None):
        """Returns {"z", "v"} of uint8 `[n, size, size, 3]`; of a model without z only v. Some need labels `[n]`."""
        names = [output.name for output in self.encoder.get_outputs()]
        given = {"images": images} | ({"labels": np.asarray(labels, np.int32)} if self.needs_labels else {})
        return dict(zip(names, self.encoder.run(names, given), strict=True))

    def decode(self, **codes):
        """Returns the images of codes, uint8 `[n, size, size, 3]`."""
        return self.decoder.run(["images"], codes)[0]

    def switch(self, a, b, labels_a=None, labels_b=None):
        """Returns images with z of `a` and v of `b`, and those with z of `b` and v of `a`."""
        a, b = self.encode(a, labels_a), self.encode(b, labels_b)
        return self.decode(z=a["z"], v=b["v"]), self.decode(z=b["z"], v=a["v"])

    def fit(self, picture):
        """Returns the centre square of a picture at the model's size, to the byte as training made it."""
        height, width, _ = picture.shape
        side = min(height, width, self.crop or height)
        top, left = (height - side) // 2, (width - side) // 2
        square = picture[top : top + side, left : left + side]
        return square if side == self.size else _resized(_resized(square, self.size, 1), self.size, 0)


def _resized(pixels, size, axis):
    """Resizes uint8 along an axis, bilinearly with antialiasing, in the whole numbers of Pillow's `Image.resize`."""
    scale = pixels.shape[axis] / size
    reach = max(scale, 1.0)
    rows = []
    for centre in (np.arange(size) + 0.5) * scale:
        start, end = max(0, int(centre - reach + 0.5)), min(pixels.shape[axis], int(centre + reach + 0.5))
        shares = np.maximum(0, 1 - np.abs((np.arange(start, end) - centre + 0.5) * (1 / reach)))
        weights = (0.5 + shares / sum(shares.tolist()) * 2**22).astype(np.int64)
        taken = np.take(pixels, range(start, end), axis).astype(np.int64)
        rows.append((np.tensordot(weights, taken, (0, axis)) + 2**21) >> 22)
    return np.stack(rows, axis).astype(np.uint8)


def known_images(size):
    """Returns 16 images of smooth colour waves, 4 of large ones, uint8, the same for every client and machine."""
    number, y, x, channel = np.ogrid[: 16 if size <= 128 else 4, :size, :size, :3]
    phase = 256 * ((number % 4 + 1) * x + (number // 4 + 1) * y) // size + 85 * channel
    return np.minimum(np.abs(phase % 512 - 256), 255).astype(np.uint8)


def main(arguments):
    """The command line: --check, or two picture files."""
    if arguments[:1] == ["--check"]:
        model = Model(*arguments[1:2])
        images = known_images(model.size)
        codes = model.encode(images, np.zeros(len(images)))
        same = int((model.decode(**codes) == images).all((1, 2, 3)).sum())
        print(f"{same} of {len(images)} known images come back exactly")
        return int(same < len(images))
    if len(arguments) != 2 or arguments[0].startswith("-"):
        print("error: give two picture files, or --check", file=sys.stderr)
        return 2
    from PIL import Image, ImageOps

    model = Model()
    if model.needs_labels or "z" not in [output.name for output in model.encoder.get_outputs()]:
        print("error: this model needs labels, or has no z to switch; call Model in a program", file=sys.stderr)
        return 2
    a, b = (np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")) for path in arguments)
    for name, (pixels,) in zip(("ab.png", "ba.png"), model.switch(model.fit(a)[None], model.fit(b)[None]), strict=True):
        Image.fromarray(pixels).save(name)
        print(f"{name}: z of {arguments[name == 'ba.png']}, v of {arguments[name == 'ab.png']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

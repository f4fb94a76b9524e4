"""Runs the ONNX files of an export. It needs onnxruntime and numpy, and Pillow for picture files.

python client.py a.jpg b.jpg           writes ab.png (z of a, v of b) and ba.png (z of b, v of a) to the working folder
python client.py --own-size a.jpg b.jpg    writes these at the pictures' own size; needs guided_filter.py, too
python client.py --own-size a.jpg      encodes and decodes a picture at its own size, for files exported with --any-size
python client.py --sample 8            writes samples.png, 8 new images side by side
python client.py --check [FOLDER]      checks that test images decode exactly on this machine

from client import Model               in a Python program
model = Model()                        or Model(folder of an export, providers=[...], batch=64)
image = model.crop_and_resize(picture) crops and resizes a picture, uint8 [height, width, channels] (see MODEL_CARD.md)
codes = model.encode(image[None])      returns {"z": float32 [n, d_z], "v": float32 [n, *model.shape]}; v of pictures at
                                       their own size is padded, and "size" has their height and width
images = model.decode(**codes)         returns the very same pixels
b, a = model.switch_photographs(a, b)  returns photographs of any size with z of the other one, at their own sizes
images = model.sample(8)               returns new images; options seed=1, temperature=0.7, labels=[...] for some models
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike

FOLDER = pathlib.Path(__file__).parent
MODES = {1: "L", 3: "RGB"}  # {number of channels: mode of Pillow's images}
ROUNDS = 8  # Rounds of `Model.match_z`.
INEXACT = 5  # The exit status if a picture is not decoded exactly.
FAR = 3.0  # The root mean square of v is near 1 for images like the training images, and above this for unlike ones.
# Pillow reads these formats without another program. Pixels are limited, since a small file can hold a huge picture.
FORMATS, MOST_PIXELS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"), 2**26


class Model:
    """Runs the ONNX files of an export on `batch` images at once; `shape` is (height, width, channels) of an image."""

    def __init__(
        self, folder: str | os.PathLike = FOLDER, providers: Sequence = ("CPUExecutionProvider",), batch: int = 16
    ):
        inner = pathlib.Path(folder, "onnx")
        self.folder, self.providers, self.batch = inner if inner.is_dir() else pathlib.Path(folder), providers, batch
        self.encoder, self.decoder = map(self._open_session, ("encoder", "decoder"))
        about = self.encoder.get_modelmeta().custom_metadata_map
        self.shape = tuple(json.loads(about["image_shape"]))
        self.step = 256 >> int(about.get("n_bits") or 8)  # Below 8 bits, images decode to images // step * step.
        self.colours = int(about.get("colours") or 0)  # z begins with so many numbers of the image's colours.
        self.crop = int((re.search(r"\d+", about["crop"]) or ["0"])[0])
        inputs = self.encoder.get_inputs()
        self.needs_labels = any(array.name == "labels" for array in inputs)
        self.any_size = any(isinstance(array.shape[1], str) for array in inputs if array.name == "images")

    def _open_session(self, name: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(str(self.folder / f"{name}.onnx"), providers=list(self.providers))

    def _run_session(self, session: onnxruntime.InferenceSession, inputs: dict) -> dict:
        """Runs an ONNX session in batches; an array with a single row is passed with every batch of the others."""
        names, count = [output.name for output in session.get_outputs()], max(map(len, inputs.values()))
        parts = [
            session.run(names, {k: a if len(a) == 1 else a[start : start + self.batch] for k, a in inputs.items()})
            for start in range(0, max(count, 1), self.batch)
        ]
        return dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))

    def _make_inputs(self, images: np.ndarray, labels: ArrayLike | None) -> dict[str, np.ndarray]:
        return {"images": images} | ({"labels": np.asarray(labels, np.int32)} if self.needs_labels else {})

    def encode(self, images: np.ndarray, labels: ArrayLike | None = None) -> dict:
        """Encodes images, uint8 `[n, *shape]`, to {"z": float32 `[n, d_z]`, "v": float32 `[n, *shape]`}.

        A model without z returns v alone. `labels`, integers `[n]`, are needed if this object's `needs_labels` is true.
        Files of an export with --any-size take images of any size. Then v has the size of the padded images, and the
        result has a third entry, "size", with (height, width) of the images. A warning names images that are unlike the
        training images and may not decode exactly.
        """
        codes = self._run_session(self.encoder, self._make_inputs(images, labels))
        lengths = np.sqrt(np.square(codes["v"], dtype=np.float64).mean((1, 2, 3)))
        if far := np.flatnonzero(~(lengths <= FAR)).tolist():
            warnings.warn(
                f"image {', '.join(map(str, far))} is unlike the training images and may not decode exactly",
                stacklevel=2,
            )
        return codes | ({"size": images.shape[1:3]} if self.any_size else {})

    def decode(self, size: tuple = (None, None), **codes: np.ndarray) -> np.ndarray:
        """Decodes z and v to images, uint8 `[n, *shape]`, and crops the images to `size`, (height, width), if given."""
        return self._run_session(self.decoder, codes)["images"][:, : size[0], : size[1]]

    def sample(
        self, count: int = 1, temperature: float = 0.7, labels: ArrayLike | None = None, seed: int | None = None
    ) -> np.ndarray:
        """Returns `count` new images, uint8 `[count, *shape]`; `temperature` scales v, `seed` seeds the noise."""
        sampler, rng = self._open_session("sampler"), np.random.default_rng(seed)
        shapes = {array.name: (count, *array.shape[1:]) for array in sampler.get_inputs()}
        if "labels" in shapes and labels is None:
            raise ValueError("this model samples by label; call Model.sample(labels=[...]) in a program")
        noise = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items() if "noise" in name}
        inputs = {**noise, "temperature": np.full(count, temperature, np.float32)}
        if "labels" in shapes:
            inputs["labels"] = np.broadcast_to(np.asarray(labels, np.int32), [count])
        return self._run_session(sampler, inputs)["images"]

    def switch(
        self, a: np.ndarray, b: np.ndarray, labels_a: ArrayLike | None = None, labels_b: ArrayLike | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns two arrays of images: from z of images `a` and v of images `b`, and from z of `b` and v of `a`."""
        of_a, of_b = self.encode(a, labels_a), self.encode(b, labels_b)
        return self.decode(**{**of_b, "z": of_a["z"]}), self.decode(**{**of_a, "z": of_b["z"]})

    def switch_photographs(
        self, a: np.ndarray, b: np.ndarray, strength: float = 0.9, labels: ArrayLike | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns photograph `b` with z of `a`, and `a` with z of `b`, each of any size, uint8 `[H, W, channels]`.

        The model changes small copies, and a guided filter applies the change of colours to the photographs, so the
        results do not encode to the same codes. `strength` goes from 0, the photograph's own z, to 1, the other z.
        """
        from guided_filter import change_at_full_size, shrink_photograph

        pair = (a, b)
        before = np.stack([shrink_photograph(photograph, *self.shape[:2]) for photograph in pair])
        before = before // self.step * self.step
        codes, part = self.encode(before, labels), np.float32(strength)
        z = self.match_z((1 - part) * codes["z"] + part * codes["z"][::-1], codes["v"], labels)
        changed_a, changed_b = map(change_at_full_size, pair, before, self.decode(**{**codes, "z": z}))
        return changed_b, changed_a

    def match_z(self, wanted: np.ndarray, v: np.ndarray, labels: ArrayLike | None = None) -> np.ndarray:
        """Returns z, float32 `[n, d_z]`, with which v decodes to images whose z, or its colours, is nearly `wanted`."""
        z, nearest, least = wanted, wanted, np.full(len(wanted), np.inf)
        for _ in range(ROUNDS + 1):
            own = self._run_session(self.encoder, self._make_inputs(self.decode(z=z, v=v), labels))["z"]
            lacking = wanted - own
            lacking[:, self.colours or lacking.shape[1] :] = 0
            distance = np.square(lacking).sum(1)
            nearest = np.where((distance < least)[:, None], z, nearest)
            least = np.fmin(least, distance)
            z = z + lacking
        return nearest

    def crop_and_resize(self, picture: np.ndarray) -> np.ndarray:
        """Crops a picture's centre and resizes it to the model's shape; the pixels equal those of training exactly."""
        (height, width, _), (rows_as, columns_as, _) = picture.shape, self.shape
        rows = min(height, max(width * rows_as // columns_as, 1))
        columns = min(width, max(height * columns_as // rows_as, 1))
        if self.crop:
            shorter = min(rows_as, columns_as)
            rows = min(rows, self.crop * rows_as // shorter)
            columns = min(columns, self.crop * columns_as // shorter)
        top, left = (height - rows) // 2, (width - columns) // 2
        return _resize_axis(_resize_axis(picture[top : top + rows, left : left + columns], columns_as, 1), rows_as, 0)


def _resize_axis(pixels: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Resizes an axis of uint8 pixels to `size`, bilinearly with antialiasing; the result equals Pillow's `resize`."""
    scale = pixels.shape[axis] / size
    if scale == 1:
        return pixels
    reach = max(scale, 1.0)
    resized = []
    for centre in (np.arange(size) + 0.5) * scale:
        start, end = max(0, int(centre - reach + 0.5)), min(pixels.shape[axis], int(centre + reach + 0.5))
        shares = np.maximum(0, 1 - np.abs((np.arange(start, end) - centre + 0.5) * (1 / reach)))
        weights = np.floor(0.5 + shares / sum(shares.tolist()) * 2**22)
        # Floats of 64 bits hold these whole numbers exactly, and NumPy multiplies them much faster than integers.
        slices = np.take(pixels, range(start, end), axis).astype(np.float64)
        resized.append((np.tensordot(weights, slices, (0, axis)) + 2**21) // 2**22)
    return np.stack(resized, axis).astype(np.uint8)


def make_test_images(height: int, width: int, channels: int) -> np.ndarray:
    """Returns 16 images (2 if a side exceeds 128 pixels) of colour waves, uint8 `[n, height, width, channels]`."""
    longer = max(height, width)
    number, y, x, channel = np.ogrid[: 16 if longer <= 128 else 2, :height, :width, :channels]
    phase = 256 * ((number % 4 + 1) * x + (number // 4 + 1) * y) // longer + 85 * channel
    return np.minimum(np.abs(phase % 512 - 256), 255).astype(np.uint8)


def read_picture(path: str | os.PathLike, channels: int, to_srgb: bool = False) -> np.ndarray:
    """Returns the pixels of a picture file, uint8 `[height, width, channels]`, turned upright by its EXIF data.

    Colour profiles are ignored, as in training; with `to_srgb` they are applied, as photographs to look at need.
    """
    from PIL import Image, ImageCms, ImageOps

    if not os.path.isfile(path):  # A pipe is refused, because reading it could take forever.
        raise ValueError("it is no regular file")
    with Image.open(path, formats=FORMATS) as file:
        if file.width * file.height > MOST_PIXELS:
            file.draft(None, (file.width // 2, file.height // 2))  # A JPEG file is then decoded at half its size.
        if file.width * file.height > MOST_PIXELS:
            raise ValueError(f"it has {file.width} x {file.height} pixels, more than {MOST_PIXELS:,}")
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16"):  # Pillow's convert() would clip 16-bit values, not scale them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have the mode {image.mode}, not 8 or 16 bits")
    image.info.pop("transparency", None)  # convert() would warn that it drops a palette's transparency.
    if to_srgb and (profile := image.info.get("icc_profile")):
        image = image.convert("RGB")
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # Colours with a broken profile are taken as sRGB.
            image = ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB")) or image
    return np.asarray(image.convert(MODES[channels])).reshape(image.height, image.width, channels)


def _fail(text: str) -> int:
    """Prints an error and returns 2, the exit status of errors."""
    print(f"error: {text}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _explain_errors(action: str) -> Iterator[None]:
    """A context that ends the program with one line and exit status 2 after any exception of any library."""
    try:
        yield
    except Exception as error:
        sys.exit(_fail(f"cannot {action}: {' '.join(str(error).split())}"))


def main(arguments: list[str] | None = None) -> int:
    """Runs client.py, which switches pictures, samples images or checks the ONNX files, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: sys.exit(_fail(message))  # type: ignore[method-assign]
    parser.add_argument("paths", nargs="*", metavar="PICTURE")
    parser.add_argument("--sample", type=int, metavar="N", help="draw so many images")
    parser.add_argument("--own-size", action="store_true", help="switch two pictures, or decode one, at their own size")
    parser.add_argument(
        "--strength", type=float, default=0.9, metavar="X", help="with --own-size: how far z moves, 0-1"
    )
    parser.add_argument("--check", action="store_true", help="encode and decode test images; status 5: not exact")
    options = parser.parse_args(arguments)
    paths, count = options.paths, options.sample
    counts = (0, 1) if options.check else (1, 2) if options.own_size else (2,) if count is None else (0,)
    if options.check + options.own_size + (count is not None) > 1 or len(paths) not in counts:
        return _fail("give two picture files, --own-size and one or two, --sample N, or --check and at most a folder")
    if count is not None and count < 1:
        return _fail(f"--sample is {count}; it must be at least 1")
    if not 0 <= options.strength <= 1:
        return _fail(f"--strength is {options.strength:g}; it must be from 0 to 1")
    # The commands count lost values or change the pictures anyway, and MOST_PIXELS replaces Pillow's limit.
    warnings.simplefilter("ignore")
    folder = paths[0] if options.check and paths else FOLDER
    with _explain_errors(f"open encoder.onnx and decoder.onnx of an export in {folder}"):
        model = Model(folder)
    if options.check:
        return _check_model(model)
    if model.shape[-1] not in MODES:
        return _fail(f"files have no {model.shape[-1]} channels here; call Model in a program")
    with _explain_errors("use picture files without Pillow (pip install pillow)"):
        import PIL  # noqa: F401
    if len(paths) == 1:
        return _decode_at_own_size(model, *paths)
    if paths:
        return _switch_pictures(model, paths, options.strength if options.own_size else None)
    with _explain_errors(f"draw with sampler.onnx in {model.folder}"):
        samples = model.sample(count)
    return _write_pictures({"samples.png": (np.concatenate(samples, 1), f"{count} new images")})


def _check_model(model: Model) -> int:
    images = make_test_images(*model.shape) // model.step * model.step
    with _explain_errors(f"encode and decode with the files in {model.folder}"):
        codes = model.encode(images, np.zeros(len(images)))
        lost = np.flatnonzero((model.decode(**codes) != images).any((1, 2, 3))).tolist()
    numbers = f"; not exact: {', '.join(map(str, lost))}" if lost else ""
    print(f"{len(images) - len(lost)} of {len(images)} test images decode exactly{numbers}")
    return INEXACT if lost else 0


def _decode_at_own_size(model: Model, path: str) -> int:
    if not model.any_size:
        return _fail(f"these files are for images of {model.shape[1]} x {model.shape[0]}; export with --any-size")
    with _explain_errors(f"read {path}"):
        picture = read_picture(path, model.shape[-1]) // model.step * model.step
    with _explain_errors(f"encode and decode {path} with the files in {model.folder}"):
        (decoded,) = model.decode(**model.encode(picture[None], [0]))  # Pictures decode exactly with any label.
    (height, width, _), lost = picture.shape, int((decoded != picture).sum())
    description = f"{path} decoded at {width} x {height}; {lost:,} of {picture.size:,} values are lost"
    return _write_pictures({"own_size.png": (decoded, description)}) or (INEXACT if lost else 0)


def _switch_pictures(model: Model, paths: list[str], strength: float | None) -> int:
    if model.needs_labels or "z" not in [output.name for output in model.encoder.get_outputs()]:
        return _fail("this model needs labels, or has no z to switch; call Model in a program")
    pictures = []
    for path in paths:
        with _explain_errors(f"read {path}"):
            pictures.append(read_picture(path, model.shape[-1], to_srgb=strength is not None))
    with _explain_errors(f"encode and decode with the files in {model.folder}"):
        if strength is None:
            (ab,), (ba,) = model.switch(*(model.crop_and_resize(picture)[None] for picture in pictures))
        else:
            ab, ba = model.switch_photographs(pictures[0], pictures[1], strength)
    a, b = paths
    return _write_pictures({"ab.png": (ab, f"z of {a}, v of {b}"), "ba.png": (ba, f"z of {b}, v of {a}")})


def _write_pictures(pictures: dict[str, tuple[np.ndarray, str]]) -> int:
    from PIL import Image

    for name, (pixels, description) in pictures.items():
        with _explain_errors(f"write {name}"):
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(name)
        print(f"{name}: {description}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Functions that read a user's photographs, and write them with the changes of colours of `guided_filter`."""

import dataclasses
import io
import pathlib
import re
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import IFD, Base

from tfdecouple.data.image_file import FULL_SIZE, open_image_file, scale_to_8_bits
from tfdecouple.errors import DataError, one_line
from tfdecouple.storage.files import write_bytes
from tfdecouple.visualization.guided_filter import NOTED, change_at_full_size

# {file ending: (Pillow's name of the format, options for saving)}. A photograph in another format is saved as PNG.
_JPEG: tuple[str, dict[str, Any]] = ("JPEG", {"quality": 95, "subsampling": 0})
_WRITTEN = {
    ".bmp": ("BMP", {}),
    ".jpeg": _JPEG,
    ".jpg": _JPEG,
    ".png": ("PNG", {}),
    # With compression, Pillow cannot write EXIF.
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".webp": ("WEBP", {"quality": 95}),
}
# Tags of EXIF that results keep, beside the groups of exposure and place.
_EXIF_TAGS = (
    Base.ImageDescription, Base.Make, Base.Model, Base.Software, Base.DateTime, Base.Artist, Base.HostComputer,
    Base.Copyright, Base.Rating,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class UserPhotograph:
    """A photograph that a user passes to a command, read from the file `path`.

    `pixels` are upright and in sRGB, uint8 `[H, W, 3]`, or `[H, W, 1]` for a model of grey images. `alpha` is the alpha
    channel, uint8 `[H, W]`, or None. `metadata` has options of Pillow's `save`: EXIF, colour profile and dots per inch.
    `losses` has a note, {what: details}, if the photograph was shrunk, or had more than 8 bits.
    """

    path: str
    pixels: np.ndarray
    alpha: np.ndarray | None
    metadata: dict[str, Any]
    losses: dict[str, str]

    def write_changed(
        self, path: pathlib.Path, before: np.ndarray, after: np.ndarray, unlimited: bool
    ) -> dict[str, str]:
        """Writes `change_at_full_size` of this photograph to `path`; returns notes, {what: details}, on what was lost.

        The file ending of `path` is that of `find_result_name`.
        """
        notes = dict(self.losses)
        pixels = change_at_full_size(self.pixels, before, after, unlimited, notes)
        clipped = float((np.isin(pixels, (0, 255)) & (pixels != self.pixels)).mean())
        if clipped >= NOTED:
            notes["clipped"] = f", {clipped:.0%} of the values became 0 or 255"
        write_bytes(path, self.encode_photograph(pixels, path.suffix))
        return notes

    def encode_photograph(self, pixels: np.ndarray, suffix: str) -> bytes:
        """Returns `pixels`, uint8, as the bytes of an image file with the ending `suffix`, such as ".jpg".

        The file has the photograph's metadata, and its colour profile, to which the pixels are converted.
        """
        kind, options = _WRITTEN[suffix.lower()]
        image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
        if profile := self.metadata.get("icc_profile"):
            image = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), io.BytesIO(profile)) or image
        if self.alpha is not None and kind != "JPEG":
            image.putalpha(Image.fromarray(self.alpha))
        buffer = io.BytesIO()
        try:
            # Pillow's TIFF writer takes EXIF as bytes alone.
            metadata = {**self.metadata, "exif": self.metadata["exif"].tobytes()}
            image.save(buffer, kind, **options, **metadata)
        # Damaged metadata raise nearly any class of exception.
        except Exception:
            buffer = io.BytesIO()
            image.save(buffer, kind, **options, icc_profile=profile)
        return buffer.getvalue()


def find_result_name(path: str) -> str:
    """Returns the name under which a changed photograph is saved: that of `path`, ending in .png for other formats.

    >>> [find_result_name(path) for path in ("more/a.JPG", "more/a.gif")]
    ['a.JPG', 'a.png']
    """
    name = pathlib.PurePath(path)
    return name.name if name.suffix.lower() in _WRITTEN else name.with_suffix(".png").name


def read_photograph(path: str, channels: int, max_side: int) -> UserPhotograph:
    """Reads a `UserPhotograph` from a file, and shrinks it if a side is longer than `max_side` pixels.

    The photograph is turned upright as its EXIF data say, and its colours are converted to sRGB. Of an animation, the
    first picture is read. Values of 16 bits become 8 bits. `channels` is 3 for a model of RGB images, 1 for grey ones;
    for others, or a file that is missing, no image or too large, DataError is raised.
    """
    if channels not in (1, 3):
        raise DataError(f"the model's images have {channels} channels, and photographs have 3 or 1; use --size model")
    try:
        with warnings.catch_warnings(action="ignore"), open_image_file(path) as image:
            return _convert_photograph(path, image, channels, max_side)
    # Pillow raises nearly any class of exception for a damaged file, so each exception becomes DataError.
    except Exception as error:
        raise DataError(f"cannot read the image {path}: {one_line(error)}; give another image file") from error


def _convert_photograph(path: str, image: Image.Image, channels: int, max_side: int) -> UserPhotograph:
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
    return UserPhotograph(path, pixels.reshape(*pixels.shape[:2], channels), alpha, metadata, losses)


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

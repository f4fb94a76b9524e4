"""The picture of a confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_FONT = 13
_GAP = 8
_INK, _PAPER = (0, 0, 0), (255, 255, 255)
# The colour of a cell that all images of its class fall into.
_FULL = np.array((31, 78, 140))
# With more classes than this the cells are too small for numbers.
_NUMBERED = 40


def confusion_picture(report: Mapping[str, Any], label_names: Sequence[str]) -> Image.Image:
    """Draws the confusion matrix of a report of `linear_probe` or `classification_report`.

    Rows are the true classes, columns the predicted ones. A cell is as dark as the share of its class's images that
    fall into it, and holds their number.

    Args:
        report: of which `confusion` is used.
        label_names: one name per label, as `Source.label_names`; where there is none, the label's number stands.

    Returns:
        An RGB picture.
    """
    confusion = report["confusion"]
    counts = np.asarray(confusion["counts"])
    names = [label_names[label] if label < len(label_names) else str(label) for label in confusion["labels"]]
    font = ImageFont.load_default(size=_FONT)
    numbered = len(names) <= _NUMBERED
    widest = max(font.getlength(f"{count}") for count in counts.ravel())
    cell = max(round(widest) + _GAP, 3 * _FONT) if numbered else _FONT
    margin = round(max(font.getlength(name) for name in names)) + 2 * _GAP
    title = (
        f"{confusion['features']}, {confusion['classifier']}: {100 * confusion['accuracy']:.1f} % of "
        f"{int(counts.sum()):,} images right. Rows: true class; columns: predicted."
    )
    top = margin + 2 * _FONT
    side = cell * len(names)
    width = max(margin + side, round(font.getlength(title)) + _GAP) + _GAP
    picture = Image.new("RGB", (width, top + side + _GAP), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_GAP, _GAP // 2), title, fill=_INK, font=font)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    for row, name in enumerate(names):
        middle = cell * row + cell // 2
        draw.text((margin - _GAP, top + middle), name, fill=_INK, font=font, anchor="rm")
        upright = Image.new("RGB", (margin - _GAP, _FONT + 4), _PAPER)
        ImageDraw.Draw(upright).text((0, (_FONT + 4) // 2), name, fill=_INK, font=font, anchor="lm")
        turned = upright.transpose(Image.Transpose.ROTATE_90)
        picture.paste(turned, (margin + middle - turned.width // 2, top - _GAP // 2 - turned.height))
        for column, share in enumerate(shares[row]):
            left, upper = margin + cell * column, top + cell * row
            colour = np.rint(255 + share * (_FULL - 255)).astype(int)
            draw.rectangle((left, upper, left + cell - 1, upper + cell - 1), fill=tuple(colour.tolist()))
            if numbered and counts[row, column]:
                ink = _PAPER if share > 0.5 else _INK
                place = (left + cell // 2, upper + cell // 2)
                draw.text(place, str(counts[row, column]), fill=ink, font=font, anchor="mm")
    return picture

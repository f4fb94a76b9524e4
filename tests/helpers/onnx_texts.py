"""Small ONNX models as text with the inputs and outputs of exported models, for tests of programs that run exports."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

import onnx.parser

# An encoder and a decoder for 8 x 8 images without z, whose v is the image itself.
WITHOUT_Z = {
    "encoder": "encoder (uint8[batch, 8, 8, 3] images) => (float[batch, 8, 8, 3] v) { v = Cast <to = 1> (images) }",
    "decoder": "decoder (float[batch, 8, 8, 3] v) => (uint8[batch, 8, 8, 3] images) { images = Cast <to = 2> (v) }",
}


def in_5_bits(encoder: str) -> str:
    """Returns the text of an encoder after adding quantisation to 5 bits, which makes pixels multiples of 8."""
    steps = r"""every = Cast <to = 1> (images)
        step = Constant <value = float {8.0}> ()
        levels = Div (every, step)
        whole = Floor (levels)
        \1 = Mul (whole, step)"""
    return re.sub(r"(\w+) = Cast <to = 1> \(images\)", steps, encoder)


def write_models(folder: pathlib.Path, texts: Mapping[str, str], **metadata: str) -> pathlib.Path:
    """Writes models as files `NAME.onnx` with metadata, and returns the folder."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\n{text}')
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, folder / f"{name}.onnx")
    return folder

"""Results of switch, edit and interpolate at the size of the user's photographs."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfdecouple.cli.options import add_choice, add_number

if TYPE_CHECKING:
    from tfdecouple.model import DecoupledModel

# Largest value of --max-side; files of every format can have this side.
_LONGEST_SIDE = 16_383


def add_size(parser: argparse.ArgumentParser) -> None:
    """Adds the options --size and --max-side to a parser."""
    text = (
        "own: also write each result at your photograph's own size, where a guided filter repeats the change of "
        "colours that the model made at its size; model: only the picture at the model's size, whose pixels are exact"
    )
    add_choice(parser, "--size", ("own", "model"), text)
    text = "shrink larger photographs until both sides have at most N pixels"
    add_number(parser, "--max-side", 2048, text, 1, _LONGEST_SIDE)


class OwnSizeResults:
    """The user's photographs at their own size, and the writer of results at this size.

    Args:
        options: the options of the command.
        paths: paths of the photographs.
        model: the model that changes the photographs.

    Attributes:
        small: the photographs shrunk to the model's size and quantised, uint8 `[n, height, width, channels]`.

    Raises:
        DataError: where a file is missing or no image, or the model's images have neither 1 nor 3 channels.
    """

    def __init__(self, options: argparse.Namespace, paths: Sequence[str], model: DecoupledModel) -> None:
        from tfdecouple.cli.run_images import PICTURES, find_results_folder
        from tfdecouple.visualization.full_size import read_photograph

        self._folder = find_results_folder(options.run, options.out, PICTURES)
        self._written: set[pathlib.Path] = set()
        shape = model.config.image_shape
        self._photographs = [read_photograph(path, shape[-1], options.max_side) for path in paths]
        small = np.stack([photograph.shrink(shape) for photograph in self._photographs])
        self.small = np.asarray(model.quantize_images(small))

    def save(self, index: int, after: np.ndarray, change: str) -> None:
        """Writes a photograph with the change that the model made to its small copy, and prints the path of the file.

        Args:
            index: index of the photograph.
            after: the changed small copy, uint8 `[height, width, channels]`.
            change: name of the change, which follows the photograph's name in the name of the file.

        Raises:
            UserError: where the file cannot be written.
        """
        from tfdecouple.cli.run_images import name_unwritable
        from tfdecouple.storage.files import write_bytes
        from tfdecouple.visualization.full_size import change_at_full_size

        photograph = self._photographs[index]
        pixels = change_at_full_size(photograph.pixels, self.small[index], after)
        content, suffix = photograph.encode_file(pixels)
        name = f"{pathlib.PurePath(photograph.path).stem}-{change}"
        # A number is added, because photographs in several folders may have the same name.
        path, number = self._folder / f"{name}{suffix}", 1
        while path in self._written:
            number += 1
            path = self._folder / f"{name}-{number}{suffix}"
        self._written.add(path)
        with name_unwritable(path):
            write_bytes(path, content)
        print(f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels", flush=True)

"""Results of switch, edit and interpolate at the size of the user's photographs."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfdecouple.cli.options import add_choice, add_number
from tfdecouple.errors import UserError

if TYPE_CHECKING:
    from tfdecouple.model import DecoupledModel

# The longest side that --max-side accepts: one that every format of a result can have.
_LONGEST_SIDE = 16_383


def add_size(parser: argparse.ArgumentParser) -> None:
    """Adds --size and --max-side."""
    text = (
        "own: also write each result at your photograph's own size, where a guided filter repeats the change of "
        "colours that the model made at its size; model: only the picture at the model's size, whose pixels are exact"
    )
    add_choice(parser, "--size", ("own", "model"), text)
    text = "shrink larger photographs until both sides have at most N pixels"
    add_number(parser, "--max-side", 2048, text, 1, _LONGEST_SIDE)


class OwnSizeResults:
    """The user's photographs at their own size, and the files that are made of them.

    Args:
        options: of the command.
        paths: of the photographs; none with `--size model`, which writes no such files.
        model: the model.

    Attributes:
        small: the whole photographs as the model sees them, uint8 `[n, height, width, channels]`.

    Raises:
        DataError: for a file that is missing or no image, or a model whose images are neither in colour nor grey.
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
        """Writes and prints a photograph with the change that the model made to its small copy.

        Args:
            index: of the photograph.
            after: what the model made of its small copy, uint8 `[height, width, channels]`.
            change: what was changed: the end of the file's name, behind that of the photograph.

        Raises:
            UserError: where the file cannot be written.
        """
        from tfdecouple.storage.files import write_bytes
        from tfdecouple.visualization.full_size import change_at_full_size

        photograph = self._photographs[index]
        pixels = change_at_full_size(photograph.pixels, self.small[index], after)
        content, suffix = photograph.encode_file(pixels)
        name = f"{pathlib.PurePath(photograph.path).stem}-{change}"
        # Photographs of one name in several folders get a number.
        path, number = self._folder / f"{name}{suffix}", 1
        while path in self._written:
            number += 1
            path = self._folder / f"{name}-{number}{suffix}"
        self._written.add(path)
        try:
            write_bytes(path, content)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; name another folder with --out"
            ) from error
        print(f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels", flush=True)

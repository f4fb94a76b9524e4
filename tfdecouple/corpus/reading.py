"""Reading codes back."""

from __future__ import annotations

import pathlib

import tensorflow as tf

from tfdecouple.corpus.formats import FORMATS
from tfdecouple.corpus.manifest import Manifest
from tfdecouple.errors import DataError


def read_codes(folder: str | pathlib.Path, split: str | None = None, partial: bool = False) -> tf.data.Dataset:
    """Returns the codes in a folder, in the order of its files; they pass through memory a few at a time.

    Args:
        folder: what `python -m tfdecouple encode` or `encode-beam` wrote, in either format.
        split: "train", "validation" or "test"; None for all that is there.
        partial: whether to read what there is of a folder that is not complete.

    Returns:
        A finite dataset of dicts: "key" string [], "label" int32 [] (-1 for none), and float32 arrays, those of "z"
        [d_z], "z_std" [d_z] and "v" [height, width, channels] that were written; with --scores also the numbers []
        "bits_per_dim", "bits_per_dim_minus_codec", "shell", "typicality" and, of a model with an encoder, "prior_nats".

    Raises:
        DataError: where the folder holds no codes, lacks some, or has no such split.
    """
    folder = pathlib.Path(folder)
    manifest = Manifest.read(folder)
    if manifest is None:
        raise DataError(f"{folder} holds no codes; python -m tfdecouple encode --run RUN --out {folder} writes them")
    if split is not None and split not in manifest.splits:
        raise DataError(f"{folder} has no codes of a split {split!r}; it has {', '.join(manifest.splits)}")
    wanted = [folder / name for name in manifest.names(split)]
    paths = [str(path) for path in wanted if path.is_file()]
    if len(paths) < len(wanted) and not partial:
        raise DataError(
            f"{folder} has {len(paths)} of {len(wanted)} files; end the encoding with the command that began it, or "
            "read what there is with partial=True"
        )
    if not paths:
        raise DataError(f"{folder} has no whole file yet")
    return FORMATS[manifest.format].read(paths, manifest.fields)

"""A folder of published weights: its files, and the manifest with their digests.

    README.md        card: what the model is, of what images, under which licence; with the Hub's YAML header
    config.json      of the run
    summary.json     how its training ended
    metrics.jsonl    its figures, for `curves`
    directions.json  in z, where there are some
    labels.json      names of labels, of a model that knows labels
    checkpoints/     the best weights
    manifest.json    size and SHA-256 of each of them

All but the card and the figures is what a model needs, and all that is fetched from others: JSON and numbers.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Self

from tfdecouple.errors import RunError, UntrustedError
from tfdecouple.storage.files import read_json, sha256_of, write_json

CARD, MANIFEST = "README.md", "manifest.json"
FORMAT = 1
# What is read of a folder that a stranger may have made: by these names and no others.
NEEDED = re.compile(
    r"config\.json|summary\.json|directions\.json|labels\.json|checkpoints/best-\d{9}\.(index|data-\d{5}-of-\d{5})",
    re.ASCII,
)
# Published for people.
BESIDE = (CARD, "metrics.jsonl")
MANIFEST_BYTES = 2**20
_MOST_FILES = 100


@dataclasses.dataclass(frozen=True)
class Published:
    """What a manifest says.

    Attributes:
        files: {name within the folder: (bytes, SHA-256)}.
    """

    files: dict[str, tuple[int, str]]

    @classmethod
    def of(cls, folder: pathlib.Path) -> Self:
        """Returns the manifest that a folder should have."""
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        files = {name: folder / name for name in names if name != MANIFEST}
        return cls({name: (path.stat().st_size, sha256_of(path)) for name, path in files.items()})

    def write(self, folder: pathlib.Path) -> None:
        """Writes manifest.json.

        Raises:
            OSError: where it cannot be written.
        """
        files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in self.files.items()}
        write_json(folder / MANIFEST, {"format": FORMAT, "files": files})

    @classmethod
    def read(cls, path: pathlib.Path, where: str) -> Self:
        """Reads a manifest, which may be a stranger's.

        Args:
            path: of manifest.json.
            where: the folder that it belongs to lies, for messages.

        Raises:
            RunError: where it is none of ours, or lacks a model's files.
            UntrustedError: where it names files that are none of a run's weights.
        """
        try:
            values = read_json(path, MANIFEST_BYTES)
            if not isinstance(values, dict) or values.get("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            files = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in dict(values["files"]).items()}
            if not all(type(size) is int and size >= 0 and type(digest) is str for size, digest in files.values()):
                raise ValueError("a file has no size or no digest")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RunError(f"the manifest of {where} is damaged: {error}; publish the run again") from error
        for name in files:
            if name not in BESIDE and not NEEDED.fullmatch(name):
                raise UntrustedError(f"the manifest of {where} names {json.dumps(name)[:100]}, which is no weights")
        if len(files) > _MOST_FILES or "config.json" not in files or not any("/best-" in name for name in files):
            raise RunError(f"the manifest of {where} is not that of one model: a config and its best weights")
        return cls(files)

    @property
    def needed(self) -> dict[str, tuple[int, str]]:
        """The files that a model needs."""
        return {name: entry for name, entry in self.files.items() if name not in BESIDE}

    def is_same(self, folder: pathlib.Path, name: str) -> bool:
        """Whether a file of a folder is what the manifest says."""
        size, digest = self.files[name]
        return (folder / name).stat().st_size == size and sha256_of(folder / name) == digest

    def require_same(self, folder: pathlib.Path, where: str) -> None:
        """Refuses a folder whose files are not those of the manifest.

        Raises:
            RunError: naming the first file that is missing or changed.
        """
        for name in self.needed:
            if not (folder / name).is_file():
                raise RunError(f"{where} lacks {name}, which its manifest names; fetch or publish it again")
            if not self.is_same(folder, name):
                raise RunError(f"{name} of {where} is not what its manifest says; fetch or publish it again")

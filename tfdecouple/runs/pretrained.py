"""Weights that were trained already: those that come along, and those on the Hugging Face Hub, by its own client.

`python -m tfdecouple publish` makes a folder of them, which is a run folder with a manifest and a card:

    README.md        card: what the model is, of what images, under which licence; with the Hub's YAML header
    config.json      of the run
    summary.json     how its training ended
    metrics.jsonl    its figures, for `curves`
    directions.json  in z, where there are some
    labels.json      names of labels, of a model that knows labels
    checkpoints/     the best weights
    manifest.json    size and SHA-256 of each of them

All but the card and the figures is what a model needs, and all that is fetched from others: JSON and numbers, by the
names in the manifest. Nothing of a repository is run. Where the Hub lies (`HF_ENDPOINT`), where files are kept
(`HF_HOME`) and who one is there is the client's business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any, Self

from tfdecouple.errors import RunError, UntrustedError, UserError, one_line
from tfdecouple.runtime.extras import require
from tfdecouple.storage.files import read_json, sha256_of, write_json

BUNDLED = pathlib.Path(__file__).parents[1] / "pretrained"
# What begins the address of weights on the Hub.
HUB = "hf://"
# What commands take where no run is named.
DEFAULT = "photographs"


def pretrained_names() -> tuple[str, ...]:
    """Returns the names of the weights that come along.

    >>> pretrained_names()
    ('photographs',)
    """
    return tuple(sorted(path.parent.name for path in BUNDLED.glob("*/manifest.json")))


def folder_of(name: str) -> pathlib.Path | None:
    """Returns the folder of weights that come along or lie on the Hub; None where a name is neither.

    Args:
        name: such as "photographs", or an address `hf://OWNER/NAME[@REVISION]`.

    Raises:
        RunError: where the Hub does not have them, or other files than its manifest says.
        UntrustedError: where the manifest names files that are none of a run's weights.
        MissingPackageError: where the Hub's client is not installed.
    """
    if name.startswith(HUB):
        return fetch(name)
    return BUNDLED / name if name in pretrained_names() else None


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


# What requests say that they come from.
_LIBRARY = "tfdecouple"
_COMMIT = re.compile("[0-9a-f]{40}", re.ASCII)
_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/(?P<name>[\w.-]+))(@(?P<revision>[\w.-]+(/[\w.-]+)*))?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Address:
    """Where weights lie on the Hub.

    Attributes:
        repository: OWNER/NAME.
        revision: a commit, branch or tag; None for the newest of the main branch.
    """

    repository: str
    revision: str | None

    @classmethod
    def parsed(cls, text: str) -> Self:
        """Returns the address that a text gives.

        >>> Address.parsed("hf://ada/faces@v1")
        Address(repository='ada/faces', revision='v1')

        Raises:
            UserError: where it gives none.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or ".." in text:
            raise UserError(f"{text!r} is no address on the Hub; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
        return cls(found["repository"], found["revision"])


@functools.lru_cache(maxsize=32)
def fetch(text: str) -> pathlib.Path:
    """Returns the folder of weights from the Hub, in the client's store, once the digests of its files were checked.

    Args:
        text: `hf://OWNER/NAME[@REVISION]`. Only a commit stands for the same weights for ever.

    Raises:
        UserError: for another address.
        RunError: where the Hub cannot be reached, or does not have what the manifest says.
        UntrustedError: where the manifest names files that are none of a run's weights.
        MissingPackageError: where the Hub's client is not installed.
    """
    address = Address.parsed(text)
    require("huggingface_hub", what=text)
    import huggingface_hub

    hub = huggingface_hub.HfApi(library_name=_LIBRARY)
    with _errors(text):
        path = _manifest(hub, address, text)
        try:
            published = Published.read(path, text)
        except RunError:
            _forget(path)
            raise
        # The other files are of the commit that the manifest is of, whatever becomes of the branch meanwhile.
        commit = path.parent.name
        missing = {name: size for name, (size, _) in published.needed.items() if not (path.parent / name).exists()}
        total = sum(missing.values())
        if total > shutil.disk_usage(path.parent).free:
            raise RunError(f"{text} has {total:,} bytes, and {path.parent} has not as much room; set HF_HOME")
        for name, size in missing.items():
            url = huggingface_hub.hf_hub_url(address.repository, name, revision=commit, endpoint=hub.endpoint)
            if hub.get_hf_file_metadata(url=url).size != size:
                raise RunError(f"{name} of {text} has not the {size:,} bytes that its manifest says")
            hub.hf_hub_download(address.repository, name, revision=commit)
    try:
        published.require_same(path.parent, text)
    except RunError:
        for name in published.needed:
            if (path.parent / name).is_file() and not published.is_same(path.parent, name):
                _forget(path.parent / name)
        raise
    return path.parent


def _manifest(hub: Any, address: Address, text: str) -> pathlib.Path:
    """Returns the place of the manifest in the client's store; it is fetched once its size is known.

    Raises:
        RunError: where it is too large for one.
        Exception: of the client, where the Hub has none or cannot be reached.
    """
    import huggingface_hub

    place, revision = address.repository, address.revision
    if _COMMIT.fullmatch(revision or ""):
        known = huggingface_hub.try_to_load_from_cache(place, MANIFEST, revision=revision)
        if isinstance(known, str):
            return pathlib.Path(known)
    url = huggingface_hub.hf_hub_url(place, MANIFEST, revision=revision, endpoint=hub.endpoint)
    size = hub.get_hf_file_metadata(url=url).size
    if size is None or size > MANIFEST_BYTES:
        raise RunError(f"the manifest of {text} has {size or 'untold'} bytes; one has {MANIFEST_BYTES:,} at most")
    return pathlib.Path(hub.hf_hub_download(place, MANIFEST, revision=revision))


def _forget(path: pathlib.Path) -> None:
    """Removes a file from the client's store, which would not fetch it again while it is there."""
    # What lies in the folder of a commit is a link to the content.
    content = path.resolve()
    for each in (path, content):
        with contextlib.suppress(OSError):
            each.unlink()


def upload(folder: pathlib.Path, text: str, *, private: bool, message: str) -> str:
    """Uploads a folder of published weights as one commit of a repository, which is made where there is none.

    Args:
        folder: with its manifest.
        text: `hf://OWNER/NAME[@BRANCH]`.
        private: whether a new repository is.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: for another address.
        RunError: where the Hub cannot be reached, or refuses.
        MissingPackageError: where the Hub's client is not installed.
    """
    address = Address.parsed(text)
    require("huggingface_hub", what=text)
    import huggingface_hub

    hub = huggingface_hub.HfApi(library_name=_LIBRARY)
    names = [*Published.read(folder / MANIFEST, str(folder)).files, MANIFEST]
    files = [huggingface_hub.CommitOperationAdd(name, folder / name) for name in names]
    with _errors(text):
        hub.create_repo(address.repository, private=private, exist_ok=True)
        if address.revision:
            hub.create_branch(address.repository, branch=address.revision, exist_ok=True)
        done = hub.create_commit(address.repository, files, commit_message=message, revision=address.revision)
    return f"hf://{address.repository}@{done.oid}"


@contextlib.contextmanager
def _errors(text: str) -> Iterator[None]:
    """Makes one line of whatever the client raises."""
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except UserError:
        raise
    except RepositoryNotFoundError as error:
        raise RunError(
            f"{text}: there is no such repository, or you may not see it; `hf auth login` says who you are"
        ) from error
    except RevisionNotFoundError as error:
        raise RunError(f"{text}: the repository has no such branch, tag or commit") from error
    except EntryNotFoundError as error:
        # Also where the Hub cannot be reached and the file is not here.
        raise RunError(f"{text}: no {MANIFEST}, or a file that it names is missing: {one_line(error)}") from error
    except Exception as error:
        raise RunError(f"{text}: {one_line(error)}") from error

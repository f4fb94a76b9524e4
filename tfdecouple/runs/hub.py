"""Weights on the Hugging Face Hub, through its own client: fetched by their manifest, and uploaded.

Nothing of a repository is run: the manifest, config and weights are fetched by name, and are JSON and numbers. Where
the Hub lies (`HF_ENDPOINT`), where files are kept (`HF_HOME`) and who one is there is the client's business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any, Self

from tfdecouple.errors import RunError, UserError, one_line
from tfdecouple.runs.published import MANIFEST, MANIFEST_BYTES, Published
from tfdecouple.runtime.extras import require

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

"""Published weights: bundled with the installation, or on the Hugging Face Hub.

`tfdecouple publish` makes a folder of published weights: a run folder (see `run_folder`) with a model card, and with
manifest.json, which has the size and SHA-256 of every other file. Only the files that a model needs are downloaded:
JSON and checkpoints. No code of a repository is run. The Hub's client chooses the address of the Hub (`HF_ENDPOINT`),
the folder of downloaded files (`HF_HOME`) and the user's account. Its own download is not used, because it limits
neither bytes nor seconds, and takes the names of files from headers of the answer.
"""

import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import threading
import time
import unittest.mock
import urllib.parse
from collections.abc import Iterator
from typing import Literal, Self

import pydantic

from tfdecouple.errors import RunError, UntrustedError, UserError, one_line
from tfdecouple.storage.files import FileDigest, read_model, replace_file, write_text
from tfdecouple.system.requirements import require_packages

BUNDLED = pathlib.Path(__file__).parents[1] / "pretrained"
# Prefix of addresses on the Hugging Face Hub, such as hf://OWNER/NAME.
HUB = "hf://"
CARD, MANIFEST = "README.md", "manifest.json"
MANIFEST_BYTES = 2**20
# A download fails after this many seconds plus the time that its files take at this many bytes per second.
_PATIENCE, _BYTES_PER_SECOND = 60, 100_000
# Limits of the files that a manifest names: their count, and the bytes of all together.
_MOST_FILES, _MOST_BYTES = 100, 2**33
_MOST_REDIRECTS = 5
# Pattern of the names of the files that a model needs; no other files are downloaded from the Hub.
NEEDED = re.compile(
    r"config\.json|summary\.json|directions\.json|labels\.json|checkpoints/best-\d{9}\.safetensors",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+(/[\w.-]+)*))?", re.ASCII)


def list_pretrained() -> tuple[str, ...]:
    """Returns the names of the weights that are bundled with the installation."""
    return tuple(sorted(path.parent.name for path in BUNDLED.glob("*/manifest.json")))


class WeightsManifest(pydantic.BaseModel):
    """The content of a manifest.json: the size and SHA-256 of each published file, by the file's path in the folder."""

    model_config = pydantic.ConfigDict(strict=True)
    format: Literal[1] = 1
    files: dict[str, FileDigest]

    @classmethod
    def from_folder(cls, folder: pathlib.Path) -> Self:
        """Returns the manifest of all files in a folder and its sub-folders, except an existing manifest.json."""
        paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return cls(files={name: FileDigest.from_file(path) for name, path in paths.items() if name != MANIFEST})

    @classmethod
    def read(cls, path: pathlib.Path, where: str) -> Self:
        """Returns the manifest in an untrusted manifest.json (`path`); `where` names its folder in error messages.

        RunError is raised if it is damaged, or lacks files that a model needs, UntrustedError if it names others.
        """
        try:
            manifest = read_model(path, cls, MANIFEST_BYTES)
        except (OSError, ValueError) as error:
            raise RunError(f"the manifest of {where} is damaged: {error}; fetch {path.resolve()} again") from error
        for name in manifest.model_files:
            if not NEEDED.fullmatch(name):
                raise UntrustedError(f"the manifest of {where} names {json.dumps(name)[:100]}, which no model needs")
        total = sum(facts.bytes for facts in manifest.model_files.values())
        if len(manifest.files) > _MOST_FILES or total > _MOST_BYTES:
            most = f"at most {_MOST_FILES} of {_MOST_BYTES:,}"
            raise UntrustedError(f"the manifest of {where} names {len(manifest.files)} files, {total:,} bytes; {most}")
        if "config.json" not in manifest.files or not any("/best-" in name for name in manifest.files):
            raise RunError(f"the manifest of {where} must name the files of one model: a config and its best weights")
        return manifest

    @property
    def model_files(self) -> dict[str, FileDigest]:
        """The size and SHA-256 of each published file that a model needs: a dict by the file's path in its folder."""
        return {name: facts for name, facts in self.files.items() if name not in (CARD, "metrics.jsonl")}

    def require_matching_files(self, folder: pathlib.Path, where: str) -> None:
        """Raises RunError unless `folder` has all files that a model needs, with this manifest's sizes and SHA-256."""
        for name, facts in self.model_files.items():
            path = folder / name
            if not path.is_file():
                raise RunError(f"{where} lacks {name}, which its manifest names; fetch or publish it again")
            if facts != FileDigest.from_file(path):
                advice = f"remove {path.resolve()} and fetch it again"
                raise RunError(f"{name} of {where} differs from its manifest; {advice}")


def parse_hub_address(address: str) -> tuple[str, str | None]:
    """Splits an address on the Hugging Face Hub into repository and revision (None if the address has no revision).

    UserError is raised for a text that is no such address.

    >>> parse_hub_address("hf://ada/faces@v1")
    ('ada/faces', 'v1')
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or ".." in address:
        raise UserError(f"{address!r} is no address on the Hub; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return match["repository"], match["revision"]


@functools.lru_cache(maxsize=32)
def download_weights(address: str) -> pathlib.Path:
    """Downloads weights from the Hub, compares sizes and digests with the manifest, and returns the weights' folder.

    The folder is in the cache of the Hub's client. UserError is raised if this fails or takes too long.
    """
    repository, revision = parse_hub_address(address)
    require_packages("huggingface_hub", what=address)
    from huggingface_hub import constants

    store = pathlib.Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    snapshots, reference = store / "snapshots", store / "refs" / (revision or "main")
    # A branch may get a newer commit at any time, so all files are downloaded from the manifest's commit.
    commit = revision if _COMMIT.fullmatch(revision or "") else None
    with _convert_hub_errors(address):
        if commit is None or not (snapshots / commit / MANIFEST).is_file():
            try:
                commit = _download_file(address, MANIFEST, revision or "main", snapshots, _PATIENCE)
            except UserError:
                raise
            except Exception:
                # Without a network, the branch means the commit of the last download.
                if not reference.is_file():
                    raise
                commit = reference.read_text(encoding="utf-8")
        folder = snapshots / commit
        manifest = WeightsManifest.read(folder / MANIFEST, address)
        missing = {name: facts for name, facts in manifest.model_files.items() if not (folder / name).is_file()}
        total, free = sum(facts.bytes for facts in missing.values()), shutil.disk_usage(snapshots).free
        if total > free:
            raise RunError(f"{address} has {total:,} bytes, and {free:,} are free in {store}; set HF_HOME")
        end = time.monotonic() + _PATIENCE + total / _BYTES_PER_SECOND
        for name, facts in missing.items():
            _download_file(address, name, commit, snapshots, end - time.monotonic(), facts)
        manifest.require_matching_files(folder, address)
        # Without a network, only a complete download is used. The folder may be read-only.
        if commit != revision and not (reference.is_file() and reference.read_text(encoding="utf-8") == commit):
            write_text(reference, commit)
    return folder


def _download_file(
    address: str, name: str, revision: str, snapshots: pathlib.Path, seconds: float, facts: FileDigest | None = None
) -> str:
    """Downloads a file from the Hub into the folder of its commit in `snapshots`, and returns the commit.

    RunError is raised for a file that is missing or differs from `facts` (None: has more than `MANIFEST_BYTES`), and
    TimeoutError if the file is not complete after `seconds`, or the Hub sends nothing for the time that its client has.
    """
    result = concurrent.futures.Future[str]()

    def download() -> None:
        try:
            result.set_result(_stream_file(address, name, revision, snapshots, facts, time.monotonic() + seconds))
        except Exception as error:
            result.set_exception(error)

    # The Hub's client has no limit for the time of a whole answer, only for the time between two parts of it.
    threading.Thread(target=download, daemon=True).start()
    try:
        return result.result(max(seconds, 0))
    except Exception as error:
        # Other classes are ReadTimeout and ConnectTimeout of httpx or of httpx2, by the version of the Hub's client.
        if not type(error).__name__.endswith(("Timeout", "TimeoutError")):
            raise
        text = f"{name} is not complete, after the longest time that files of this size may take; try again later"
        raise TimeoutError(text) from error
    finally:
        # The thread may still wait for the Hub.
        for path in snapshots.rglob(f".{pathlib.PurePath(name).name}.{os.getpid()}.tmp"):
            path.unlink(missing_ok=True)


def _stream_file(
    address: str, name: str, revision: str, snapshots: pathlib.Path, facts: FileDigest | None, deadline: float
) -> str:
    from huggingface_hub import constants, get_token, hf_hub_url
    from huggingface_hub.utils import get_session

    url = hf_hub_url(parse_hub_address(address)[0], name, revision=revision)
    most = facts.bytes if facts else MANIFEST_BYTES
    # The client's own headers are not used: for them, it would ask the Hub for names of environment variables (2.4).
    # Without compression, the answer has as many bytes as the file.
    headers = {"user-agent": "tfdecouple", "Accept-Encoding": "identity"}
    if not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and (token := get_token()):
        headers["authorization"] = f"Bearer {token}"
    patience = constants.HF_HUB_DOWNLOAD_TIMEOUT
    commit = revision if _COMMIT.fullmatch(revision) else ""
    for _ in range(_MOST_REDIRECTS):
        with get_session().stream("GET", url, headers=headers, timeout=patience, follow_redirects=False) as response:
            commit = commit or response.headers.get("X-Repo-Commit", "")
            if response.has_redirect_location:
                before, url = url, urllib.parse.urljoin(url, response.headers["Location"])
                if urllib.parse.urlsplit(before)[:2] != urllib.parse.urlsplit(url)[:2]:
                    # The user's token is for the Hub only.
                    headers.pop("authorization", None)
                continue
            if response.status_code != 200:
                says = f"{response.status_code} {one_line(response.reason_phrase, 100)}"
                raise RunError(f"{address}: {says} for {name}; private weights need hf auth login")
            if not _COMMIT.fullmatch(commit):
                raise RunError(f"{address}: the answer names no commit, so HF_ENDPOINT names no Hub")
            path = snapshots / commit / name
            with replace_file(path) as temporary:
                with temporary.open("wb") as file:
                    for chunk in response.iter_raw():
                        if file.tell() + len(chunk) > most:
                            raise RunError(f"{name} of {address} has more than the {most:,} bytes that it should have")
                        if time.monotonic() > deadline:
                            raise TimeoutError
                        file.write(chunk)
                if facts and FileDigest.from_file(temporary) != facts:
                    raise RunError(f"{name} of {address} differs from its manifest; fetch or publish it again")
            return commit
    raise RunError(f"{address}: more than {_MOST_REDIRECTS} redirects for {name}")


def upload_weights(folder: pathlib.Path, address: str, *, private: bool, message: str) -> str:
    """Uploads a folder of published weights in one commit, and returns the address of the commit.

    `address` is `hf://OWNER/NAME[@BRANCH]`. A missing repository is created, as a private one if `private` is true.
    """
    repository, branch = parse_hub_address(address)
    require_packages("huggingface_hub", what=address)
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    hub = HfApi(library_name="tfdecouple")
    names = [*WeightsManifest.read(folder / MANIFEST, str(folder)).files, MANIFEST]
    files = [CommitOperationAdd(name, folder / name) for name in names]
    # With telemetry, the client would ask the Hub for names of environment variables, and say which are set here (2.4).
    no_telemetry = unittest.mock.patch.object(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    with _convert_hub_errors(address), no_telemetry:
        hub.create_repo(repository, private=private, exist_ok=True)
        if branch:
            hub.create_branch(repository, branch=branch, exist_ok=True)
        done = hub.create_commit(repository, files, commit_message=message, revision=branch)
    return f"hf://{repository}@{done.oid}"


@contextlib.contextmanager
def _convert_hub_errors(address: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise RunError(f"{address}: {one_line(error)}") from error

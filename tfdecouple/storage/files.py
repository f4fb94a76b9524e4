"""Functions that read untrusted files up to a size limit, and write files completely or not at all."""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import stat
import zipfile
from collections.abc import Iterator
from typing import Annotated, Any, Self, TypeAlias, TypeVar

import pydantic

from tfdecouple.errors import one_line

Model = TypeVar("Model", bound=pydantic.BaseModel)
# Values of a JSON object by name, such as a summary, a row of a log, or measured figures.
Facts: TypeAlias = dict[str, Any]

# Pattern of the names of temporary files, which a program leaves behind if it is killed while it writes.
TEMPORARY = ".*.tmp"
# Pattern of a list of numbers in indented JSON. It matches in no JSON string, because JSON strings have no line breaks.
_NUMBER_LIST = re.compile(r'\[\n([^][{}"]*)\]')
# JSON whose lists and dicts are nested more deeply than this is refused; files of this project need fewer levels.
_MOST_NESTING = 50


def get_regular_size(path: str | pathlib.Path) -> int:
    """Returns a file's size in bytes; OSError, or ValueError if it is not regular: reading a pipe could never end."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    return status.st_size


def count_records(path: str | pathlib.Path, least: int = 0, most: int = 2**28) -> int:
    """Returns the count of records in an untrusted TFRecord file, from the lengths before and between its records.

    OSError, or ValueError if the file is not regular, ends within a record, or a record has less than `least` or more
    than `most` bytes. Call it before TensorFlow opens the file, because TensorFlow (2.21) ends the process if a record
    claims more bytes than the machine's memory.
    """
    size, place, count = get_regular_size(path), 0, 0
    with open(path, "rb") as file:
        while place < size:
            length = int.from_bytes(file.read(12)[:8], "little")
            # Before a record are its length in 8 bytes and their checksum in 4, and the record's checksum follows.
            place += 16 + length
            if place > size or not least <= length <= most:
                raise ValueError(f"record {count} claims {length:,} bytes, in a file of {size:,}")
            file.seek(place)
            count += 1
    return count


def open_npz(path: str | pathlib.Path) -> Any:
    """Opens an untrusted .npz file without objects; returns NumPy's context manager, a mapping of names to arrays.

    OSError, or ValueError if the file is no archive, or its arrays would take far more memory than the file has bytes.
    """
    import numpy as np

    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive of arrays")
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    # Weights and test vectors compress by 1 to 4.
    if size > 2**28 + 20 * os.path.getsize(path):
        raise ValueError(f"its arrays would take {size:,} bytes of memory, too many for its size")
    return np.load(path, allow_pickle=False)


def read_bytes(path: str | pathlib.Path, at_most: int) -> bytes:
    """Returns an untrusted file's content; OSError, or ValueError if it is not regular or exceeds `at_most` bytes."""
    size = get_regular_size(path)
    if size > at_most:
        raise ValueError(f"it has {size:,} bytes, and at most {at_most:,} are read")
    with open(path, "rb") as file:
        return file.read(at_most)


def read_json(path: str | pathlib.Path, at_most: int = 2**20) -> Any:
    """Returns an untrusted JSON file's content. Raises OSError, or ValueError if it is too large or no valid JSON."""
    return parse_json(read_bytes(path, at_most))


def read_model(path: str | pathlib.Path, model: type[Model], at_most: int = 2**20) -> Model:
    """Returns the content of an untrusted JSON file as an instance of `model`, a class of pydantic.

    Beside the errors of `read_json`, ValueError is raised if a value does not fit `model`; the message names the value.
    """
    try:
        return model.model_validate(read_json(path, at_most))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = f"{'.'.join(map(str, first['loc']))} is {one_line(repr(first['input']), 80)}: " if first["loc"] else ""
        raise ValueError(f"{where}{first['msg']}") from None


def parse_json(text: str | bytes) -> Any:
    """Returns the content of an untrusted JSON text, or of the bytes of such a text in UTF-8.

    ValueError is raised if the text is no JSON or no UTF-8, is nested too deeply, or has a number that is NaN, infinite
    or an integer of more than 64 bits.
    """
    try:
        values = json.loads(text.decode() if isinstance(text, bytes) else text, parse_constant=float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_values(values, _MOST_NESTING)
    return values


def _check_values(value: object, levels: int) -> None:
    if isinstance(value, int) and abs(value) >= 2**63 or isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the number {str(value)[:20]} is not finite or has more than 64 bits")
    if isinstance(value, dict | list):
        if not levels:
            raise ValueError("it is nested too deeply")
        for inner in value.values() if isinstance(value, dict) else value:
            _check_values(inner, levels - 1)


@contextlib.contextmanager
def convert_tensorflow_errors() -> Iterator[None]:
    """Returns a context that raises OSError for an error of TensorFlow in writing a file, ENOSPC for a full disk."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        # TensorFlow raises the same class of error for exhausted memory, and names the cause in the message.
        if re.search("OOM|allocat|out of memory", str(error), re.IGNORECASE):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, one_line(error, first=True)) from error


@contextlib.contextmanager
def replace_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Returns a context with a hidden path beside `path`; a file written there replaces `path` at the context's end.

    After an error, also of the final flush to the disk (fsync), `path` is unchanged, and the new file is removed. The
    folder of `path` is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # A full disk raises an error without a file's name.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def hash_file(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileDigest(pydantic.BaseModel):
    """The size of a file in bytes, and the hexadecimal SHA-256 of its content, as in a manifest.json."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)
    bytes: Annotated[int, pydantic.Field(ge=0)]
    sha256: str

    @classmethod
    def from_file(cls, path: pathlib.Path) -> Self:
        """Returns a `FileDigest` with the size and the SHA-256 of the file at `path`."""
        return cls(bytes=path.stat().st_size, sha256=hash_file(path))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes bytes to a file, completely or not at all."""
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text to a file in UTF-8, completely or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: pathlib.Path, values: object) -> None:
    """Writes indented JSON, completely or not at all, with a list of numbers in one line, and null for NaN."""
    indented = json.dumps(_replace_nan_by_none(values), indent=2, allow_nan=False)
    text = _NUMBER_LIST.sub(lambda match: f"[{' '.join(match[1].split())}]", indented)
    write_text(path, text + "\n")


def _replace_nan_by_none(value: object) -> object:
    if isinstance(value, dict):
        return {name: _replace_nan_by_none(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan_by_none(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

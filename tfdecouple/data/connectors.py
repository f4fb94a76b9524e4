"""Which Python classes the metadata of a prepared TFDS data set may name: TFDS' own feature connectors.

A data set that TFDS has no code for is read by its files alone, and TFDS imports whichever classes these name for its
features. In files from a stranger that would be code of the stranger's, so the names are checked before TFDS reads.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tfdecouple.errors import DataError, UntrustedError

# Folders between that of a data set and its metadata: a version, or a config and a version.
_DEPTHS = ("*", "*/*", "*/*/*")

# Under these names features.json has the class of a feature: today's spellings, and that of older versions of TFDS.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_TEMPLATE_KEYS = ("filepathTemplate", "filepath_template")


def require_known_connectors(folder: Any) -> None:
    """Looks through the metadata of a prepared data set before TFDS reads them; imports nothing that they name.

    Args:
        folder: of the data set, with all its configs and versions, as a `tfds.core.Path`; it need not exist.

    Raises:
        UntrustedError: where a feature is of a class that is not TFDS' own, or the metadata lead out of the folder.
        DataError: where the metadata cannot be read.
    """
    own = _own_connectors()
    for pattern in _DEPTHS:
        for path in folder.glob(f"{pattern}/features.json"):
            _require_own(path, _read(path), own)
        for path in folder.glob(f"{pattern}/dataset_info.json"):
            info = _read(path)
            _require_own(path, info.get("features"), own)
            for template in _strings(info.get("splits"), _TEMPLATE_KEYS):
                _require_name(path, template)
    common = folder / ".config" / "metadata.json"
    if common.exists():
        for name in _strings(_read(common), ("default_config_name",)):
            _require_name(common, name)


def _own_connectors() -> frozenset[str]:
    import tensorflow_datasets as tfds

    classes = (getattr(tfds.features, name) for name in dir(tfds.features))
    return frozenset(
        f"{cls.__module__}.{cls.__name__}"
        for cls in classes
        if isinstance(cls, type) and issubclass(cls, tfds.features.FeatureConnector)
    )


def _read(path: Any) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"the metadata {path} of a TFDS data set cannot be read ({type(error).__name__}); prepare it again"
        ) from error
    if not isinstance(values, dict):
        raise DataError(f"the metadata {path} of a TFDS data set are no JSON object; prepare it again")
    return values


def _require_own(path: Any, values: Any, own: frozenset[str]) -> None:
    for name in _strings(values, _CLASS_KEYS):
        if name not in own:
            raise UntrustedError(
                f"{path} names the class {name[:200]!r}, which is none of TFDS' own features: opening the data set "
                "would run its code; use a data set whose features are tfds.features"
            )


def _require_name(path: Any, name: str) -> None:
    if "/" in name or "\\" in name or ".." in name:
        raise UntrustedError(f"{path} leads to {name[:200]!r}, out of the folder of its data set; use another data set")


def _strings(values: Any, keys: tuple[str, ...]) -> Iterator[str]:
    """Yields the texts under these keys, however deep they lie, also within texts that are JSON themselves."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from (value[key] for key in keys if isinstance(value.get(key), str))
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        # TFDS keeps what old connectors say of themselves as a text in the JSON.
        elif isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            with contextlib.suppress(ValueError, RecursionError):
                waiting.append(json.loads(value))

"""Plain JSON values made into the dataclasses of a config, each with the type that it must have."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfdecouple.config.checks import check, shown
from tfdecouple.errors import ConfigError

T = typing.TypeVar("T")

# TensorFlow's whole numbers have 64 bits, and its numbers 32 in most places.
_LARGEST = {int: 2.0**63 - 2**10, float: 1e38}

# Options that say the same in two ways: whoever sets one no longer has the other.
INSTEAD = {"model.image_size": "model.image_shape", "model.image_shape": "model.image_size"}


def build(cls: type[T], values: Mapping[str, Any], names: Sequence[str], prefix: str = "") -> T:
    """Builds a dataclass from plain JSON values; what is absent takes its default.

    Args:
        cls: the dataclass.
        values: by the names of its fields.
        names: dotted names of all options, for a hint where one is unknown.
        prefix: of the dotted names of its fields.

    Raises:
        ConfigError: for an unknown name, a wrong type or an impossible value.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'the config'} is {shown(values)}; it must be a JSON object")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise unknown(prefix + str(key), names)
    return cls(**{key: _coerce(hints[key], value, prefix + key, names) for key, value in values.items()})


def settle_types(config: Any, prefix: str) -> None:
    """Gives the fields of a config that was made in Python the types that they have in one read from JSON.

    Raises:
        ConfigError: for a wrong type.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        # What has its type already stays what it is, such as a NaN for a check that says more of it.
        if not _is_of(hint, value):
            object.__setattr__(config, name, _coerce(hint, value, prefix + name, ()))


def _is_of(hint: Any, value: Any) -> bool:
    """Whether a value is of a plain type, or a tuple of such values, without any change."""
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_of(typing.get_args(hint)[0], inner) for inner in value)
    return type(value) is hint


def unknown(name: str, names: Sequence[str]) -> ConfigError:
    """Returns the error for an option that does not exist, with the nearest of those that do."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not near:
        # Somebody who forgets the section types the bare name: find it in whichever section has it.
        near = [full for full in names if full.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    hint = f"did you mean {near[0]}?" if near else "python -m tfdecouple explain explains all"
    return ConfigError(f"there is no option {shown(name)}; {hint}")


def plain(value: Any) -> Any:
    """Returns a value with lists in the place of tuples, at any depth, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def _coerce(hint: Any, value: Any, name: str, names: Sequence[str]) -> Any:
    """Returns `value` as the type `hint`, or raises ConfigError; JSON lists become tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, names, name + ".")
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _coerce(option, value, name, names)
            except ConfigError:
                continue
    elif origin is Literal:
        if isinstance(value, str) and value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_coerce(arguments[0], inner, f"{name}[{i}]", names) for i, inner in enumerate(value))
    elif hint is type(None):
        if value is None:
            return None
    elif hint in (int, float):
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            # NumPy's become Python's.
            number = int(value) if isinstance(value, numbers.Integral) else float(value)
            # Not so for NaN either.
            check(abs(number) <= _LARGEST[hint], f"{name} is {shown(value)}; it must be at most {_LARGEST[hint]:.2g}")
            if hint is float or number == int(number):
                return hint(number)
    elif hint is str:
        if isinstance(value, str):
            # TensorFlow and file systems take neither.
            check("\0" not in value, f"{name} is {shown(value)}; it must not hold a NUL")
            check(_is_unicode(value), f"{name} is {shown(value)}, which is not UTF-8; rename what it names")
            return value
    elif isinstance(value, hint):
        return value
    raise ConfigError(f"{name} is {shown(value)}; it must be {_describe(hint)}")


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate, as Python makes them of bytes that are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return f"a list of {_describe(arguments[0])}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, str(hint))

"""Functions that turn JSON values into the dataclasses of a config; pydantic checks type and range of each field."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import pydantic

from tfdecouple.errors import ConfigError

# Types of fields with a range: whole numbers from 0 or 1 on, and numbers from 0 on.
Count = Annotated[int, pydantic.Field(ge=0)]
Positive = Annotated[int, pydantic.Field(ge=1)]
NonNegative = Annotated[float, pydantic.Field(ge=0)]
# Types of fields with numbers in (0, 1] and in [0, 1).
Fraction = Annotated[float, pydantic.Field(gt=0, le=1)]
Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]

# Largest values by type, because TensorFlow's whole numbers have 64 bits and its floats mostly 32.
_LARGEST = {int: 2.0**63 - 2**10, float: 1e38}
# Descriptions of the accepted values, by the types of pydantic's errors.
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "UTF-8; rename what it names",
    "tuple_type": "a list",
    "none_required": "null",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
}


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with this message if the condition is False."""
    if not condition:
        raise ConfigError(message)


def format_value(value: Any) -> str:
    """Returns a value as a text of one line for a message; a long text is cut short."""
    text = " ".join(repr(value).splitlines())
    return text if len(text) <= 120 else f"{text[:100]} ... ({len(text):,} characters)"


def require_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises ConfigError if the value of the option `name` is not among the choices."""
    choices = tuple(choices)
    require(value in choices, f"{name} is {format_value(value)}; it must be one of {', '.join(map(repr, choices))}")


def check_fields(config: Any, prefix: str = "") -> None:
    """Converts the fields of a config to their types, in place; fields that are sections stay unchanged.

    Raises:
        ConfigError: where a value has a wrong type or is out of its range.
    """
    for name, (hint, adapter) in _adapters(typing.cast(typing.Hashable, type(config))).items():
        value = getattr(config, name)
        try:
            object.__setattr__(config, name, adapter.validate_python(_to_python(value, prefix + name)))
        except pydantic.ValidationError as error:
            errors = error.errors(include_url=False)
            first = errors[0]
            place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
            given = first["input"] if len(errors) == 1 else value
            expected = " or ".join(dict.fromkeys(map(_describe_right_values, errors)))
            if type(None) in typing.get_args(hint):
                expected += " or null"
            raise ConfigError(f"{prefix}{name}{place} is {format_value(given)}; it must be {expected}") from None


@functools.cache
def _adapters(cls: type) -> dict[str, tuple[Any, pydantic.TypeAdapter]]:
    adapters = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if typing.get_origin(hint) is tuple:
            # Any number of entries is accepted here, because a config checks it with a better message.
            hint = tuple[typing.get_args(hint)[0], ...]  # type: ignore[misc]
        if not dataclasses.is_dataclass(hint):
            adapters[name] = hint, pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(strict=True))
    return adapters


def _describe_right_values(error: Mapping[str, Any]) -> str:
    """Returns a description of the accepted values, for an error of pydantic's."""
    if error["type"].startswith("int_") and isinstance(error["input"], float) and abs(error["input"]) > _LARGEST[int]:
        return f"at most {_LARGEST[int]:.2g}"
    bounds = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in error.get("ctx", {}).items()}
    return _EXPECTED.get(error["type"], error["msg"]).format(**bounds)


def _to_python(value: Any, name: str) -> Any:
    """Returns a value with tuples instead of lists and Python's numbers instead of NumPy's, whole numbers as int."""
    if isinstance(value, list | tuple):
        return tuple(_to_python(inner, f"{name}[{index}]") for index, inner in enumerate(value))
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        largest = _LARGEST[int if isinstance(value, numbers.Integral) else float]
        # The comparison lets NaN pass, which the later check of the range refuses.
        number: Any = value
        require(not abs(number) > largest, f"{name} is {format_value(value)}; it must be at most {largest:.2g}")
        is_whole = isinstance(value, numbers.Integral) or (abs(number) <= _LARGEST[int] and number == int(number))
        return int(number) if is_whole else float(number)
    # A NUL character is refused, because TensorFlow and file systems cannot take it.
    require(not isinstance(value, str) or "\0" not in value, f"{name} is {format_value(value)}; it must not hold a NUL")
    return value


def to_plain(value: Any) -> Any:
    """Returns a value with lists instead of tuples at any depth, as in JSON."""
    if isinstance(value, Mapping):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    return value

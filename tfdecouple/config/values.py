"""Checks and conversions of the values of options; pydantic checks the type and the range of each value."""

import dataclasses
import functools
import json
import numbers
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from tfdecouple.errors import ConfigError, make_printable

# Types of numeric options; pydantic checks the range.
Count = Annotated[int, pydantic.Field(ge=0)]
Positive = Annotated[int, pydantic.Field(ge=1)]
NonNegative = Annotated[float, pydantic.Field(ge=0)]
Fraction = Annotated[float, pydantic.Field(gt=0, le=1)]
BelowOne = Annotated[float, pydantic.Field(ge=0, lt=1)]

# Largest value of an option of each type: TensorFlow's integers have 64 bits, and most of its floats have 32 bits.
_LARGEST = {int: 2.0**63 - 2**10, float: 1e38}
# {type of pydantic's error: text on what the option must be}; the bounds in the error replace the braces.
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
    """Raises ConfigError with the text `message` unless the condition is true."""
    if not condition:
        raise ConfigError(message)


def format_value(value: object) -> str:
    """Returns the value of an option as a text of one line for an error message; a long text is cut short."""
    return make_printable(repr(value), 120)


def validate_options(config: object, prefix: str = "") -> None:
    """Checks all options of a config, and converts each value in place to the type that its option declares.

    Sections of the config, such as `model`, are skipped, because each section was checked when it was made. ConfigError
    is raised where a value has a wrong type or is out of its range, or a list has a name twice.
    """
    for name, (hint, adapter) in _make_type_adapters(typing.cast(typing.Hashable, type(config))).items():
        value = getattr(config, name)
        try:
            value = adapter.validate_python(_convert_numbers(value, prefix + name))
        except pydantic.ValidationError as error:
            errors = error.errors(include_url=False)
            first = errors[0]
            place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
            given = first["input"] if len(errors) == 1 else value
            expected = " or ".join(dict.fromkeys(map(_describe_accepted_values, errors)))
            if type(None) in typing.get_args(hint):
                expected += " or null"
            raise ConfigError(f"{prefix}{name}{place} is {format_value(given)}; it must be {expected}") from None
        has_names = isinstance(value, tuple) and all(isinstance(entry, str) for entry in value)
        require(
            not has_names or len(set(value)) == len(value),
            f"{prefix}{name} is {format_value(to_json_values(value))}; each may occur only once",
        )
        object.__setattr__(config, name, value)


@functools.cache
def _make_type_adapters(cls: type) -> dict[str, tuple[object, pydantic.TypeAdapter]]:
    adapters = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if typing.get_origin(hint) is tuple:
            # A tuple of any length is accepted here, because the config checks the length with a better message.
            hint = tuple[typing.get_args(hint)[0], ...]  # type: ignore[misc]
        if not dataclasses.is_dataclass(hint):
            adapters[name] = hint, pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(strict=True))
    return adapters


def _describe_accepted_values(error: Mapping[str, Any]) -> str:
    if error["type"].startswith("int_") and isinstance(error["input"], float) and abs(error["input"]) > _LARGEST[int]:
        return f"at most {_LARGEST[int]:.2g}"
    bounds = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in error.get("ctx", {}).items()}
    return _EXPECTED.get(error["type"], error["msg"]).format(**bounds)


def _convert_numbers(value: object, name: str) -> Any:
    """Converts NumPy's numbers and lists to Python's numbers and tuples; ConfigError for a number too large."""
    if isinstance(value, list | tuple):
        return tuple(_convert_numbers(inner, f"{name}[{index}]") for index, inner in enumerate(value))
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        largest = _LARGEST[int if isinstance(value, numbers.Integral) else float]
        # NaN passes this comparison, but pydantic then refuses NaN when it checks the option's range.
        number: Any = value
        require(not abs(number) > largest, f"{name} is {format_value(value)}; it must be at most {largest:.2g}")
        is_whole = isinstance(value, numbers.Integral) or (abs(number) <= _LARGEST[int] and number == int(number))
        return int(number) if is_whole else float(number)
    # NUL characters are refused, because TensorFlow and file systems do not accept them.
    require(not isinstance(value, str) or "\0" not in value, f"{name} is {format_value(value)}; it must not hold a NUL")
    return value


def to_json_values(value: object) -> Any:
    """Returns a copy of nested dicts, lists and tuples in which all tuples are lists, as in JSON."""
    return json.loads(json.dumps(value))

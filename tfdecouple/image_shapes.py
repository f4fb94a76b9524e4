"""Shapes of images, (height, width, channels): what they are called, and how files say them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shape = tuple[int, int, int]

# Channels of an image of which nothing else is said: its colours.
COLOURS = 3
# By the number of channels, what every picture can be made, whatever it is: Pillow's modes.
CONVERTED = {1: "L", COLOURS: "RGB"}
_KINDS = {1: "grey images", COLOURS: "images"}


def square(image_shape: Shape) -> int | None:
    """Returns the side of a square of RGB; None for another shape.

    >>> square((32, 32, 3)), square((32, 32, 1))
    (32, None)
    """
    height, width, channels = image_shape
    return height if height == width and channels == COLOURS else None


def facts(image_shape: Shape) -> dict[str, Any]:
    """Returns what a file says of the shape: the `image_size` of squares of RGB, the `image_shape` of others.

    >>> facts((32, 32, 3)), facts((28, 28, 1))
    ({'image_size': 32}, {'image_shape': [28, 28, 1]})
    """
    side = square(image_shape)
    return {"image_shape": list(image_shape)} if side is None else {"image_size": side}


def from_facts(values: Mapping[str, Any]) -> Shape:
    """Returns the shape that a file says, as `facts` does.

    Raises:
        KeyError: where it says none.
    """
    if "image_shape" in values:
        height, width, channels = values["image_shape"]
        return height, width, channels
    return (values["image_size"], values["image_size"], COLOURS)


def colours(channels: int) -> str:
    """Returns what so many channels are, for people: "grey", "RGB" or their number.

    >>> [colours(channels) for channels in (1, 3, 5)]
    ['grey', 'RGB', '5 channels']
    """
    return {1: "grey", COLOURS: "RGB"}.get(channels, f"{channels} channels")


def whole(image_shape: int | Shape) -> Shape:
    """Returns a shape, which a number says of squares of RGB."""
    return (image_shape, image_shape, COLOURS) if isinstance(image_shape, int) else image_shape


def described(image_shape: Shape) -> str:
    """Returns what the images are, for people: "grey images of 28 x 28 pixels", height first.

    >>> described((32, 32, 3)), described((48, 64, 5))
    ('images of 32 x 32 pixels', 'images of 48 x 64 pixels and 5 channels')
    """
    height, width, channels = image_shape
    more = "" if channels in _KINDS else f" and {channels} channels"
    return f"{_KINDS.get(channels, 'images')} of {height} x {width} pixels{more}"

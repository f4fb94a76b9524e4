"""AutoGraph, which rewrites all Python that a user's `tf.function` calls, kept from what is made for graphs already."""

from __future__ import annotations

import inspect
from typing import TypeVar

import tensorflow as tf

_Class = TypeVar("_Class", bound=type)


def unconverted(owner: _Class) -> _Class:
    """Keeps AutoGraph from rewriting the public methods that a class defines, and all that they call.

    There is no Python control flow on tensors in them to be turned into graphs, and rewriting this project's code, call
    by call, was a large part of the time of a user's first step.
    """
    for name, member in list(vars(owner).items()):
        if inspect.isfunction(member) and not name.startswith("_"):
            setattr(owner, name, tf.autograph.experimental.do_not_convert(member))
    return owner

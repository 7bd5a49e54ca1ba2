"""Checks the types of values from a config.json or a checkpoint. Anybody may have written them."""

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

__all__ = ["check_types"]


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless each value has the type of its hint. Values without a hint are not checked.

    A list may stand for a tuple, and a whole number for a float. A tuple hint with one type allows any length, as in
    timm's hints.

    Args:
        where: Where the values come from, for the message.
    """
    for key, value in values.items():
        hint = hints.get(key, Any)
        if not _fits(value, hint):
            text = " ".join(repr(value).split())
            text = text if len(text) <= 80 else f"{text[:77]}..."
            is_class = isinstance(hint, type) and not get_args(hint)
            expected = hint.__name__ if is_class else str(hint).replace("typing.", "")
            raise ValueError(f"{where}: {key} is {text}, expected {expected}")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            return False
        types = [arg for arg in args if arg is not Ellipsis]
        if len(types) == 1:
            types *= len(value)
        return len(types) == len(value) and all(map(_fits, value, types))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)

"""The settings of adaptive gradient clipping, as one record for functions, parameter groups and kernels."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["CLIP_EPS", "CLIP_FACTOR", "Clipping"]

# The authors' values, for batches of 4096.
CLIP_FACTOR, CLIP_EPS = 0.01, 1e-3


class Clipping(NamedTuple):
    """The settings of adaptive clipping.

    Its fields are also keyword arguments of optimizers, and entries of their parameter groups.

    Args:
        clip_factor: Largest ratio of gradient norm to weight norm.
        clip_eps: Lower bound of the weight norm.
    """

    clip_factor: float = CLIP_FACTOR
    clip_eps: float = CLIP_EPS

    @staticmethod
    def of(settings: Mapping[str, Any]) -> "Clipping | None":
        """Return the settings in a parameter group, or None if its ``clip_factor`` is None, which disables clipping.

        Missing ones have their default values. Text such as "0.01" is converted to a number.

        Raises:
            ValueError: If another value is not a number above 0.
        """
        values = {**Clipping._field_defaults, **{k: v for k, v in settings.items() if k in Clipping._fields}}
        if values["clip_factor"] is None:
            return None
        return Clipping(**{name: _positive(name, value) for name, value in values.items()})

    @staticmethod
    def entries(**settings: Any) -> dict[str, Any]:
        """Return the entries of a parameter group for these settings, as numbers. Others have their default values.

        Raises:
            TypeError: If there is no such setting.
            ValueError: As ``of``.
        """
        group = Clipping(**settings)._asdict()
        clipping = Clipping.of(group)
        return group if clipping is None else clipping._asdict()

    @staticmethod
    def taken_from(kwargs: dict[str, Any]) -> dict[str, Any]:
        """Remove the settings from ``kwargs``, and return them."""
        return {name: kwargs.pop(name) for name in Clipping._fields if name in kwargs}


def _positive(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(
            f"{name}={value!r}: expected a number above 0, such as the authors' clip_factor=0.01 and clip_eps=0.001. "
            "Use clip_factor=None to switch adaptive clipping off"
        )
    return number

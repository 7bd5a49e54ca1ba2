"""The settings of adaptive gradient clipping, as one record for parameter groups and kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["CLIP_EPS", "CLIP_FACTOR", "Clipping", "settings_of_each"]

# The authors' values, for batches of 4096.
CLIP_FACTOR, CLIP_EPS = 0.01, 1e-3


class Clipping(NamedTuple):
    """The settings of adaptive clipping. Its fields are also entries of an optimizer's parameter groups.

    Args:
        clip_factor: Largest ratio of gradient norm to weight norm.
        clip_eps: Lower bound of the weight norm.
    """

    clip_factor: float = CLIP_FACTOR
    clip_eps: float = CLIP_EPS

    @staticmethod
    def of(settings: Mapping[str, Any]) -> Clipping | None:
        """Return the settings in a parameter group, or None if its ``clip_factor`` is None, which disables clipping.

        Text such as "0.01" is converted to a number.

        Raises:
            ValueError: If another value is not a number above 0.
        """
        values = {name: settings[name] for name in Clipping._fields}
        is_off = values["clip_factor"] is None
        if is_off:
            values["clip_factor"] = CLIP_FACTOR
        record = Clipping(**{name: _positive(name, value) for name, value in values.items()})
        return None if is_off else record


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


def settings_of_each(settings: list[float]) -> list[tuple[float, ...]]:
    """Split the flat list ``[clip_factor, clip_eps, clip_factor, ...]`` into one tuple for each tensor."""
    count = len(Clipping._fields)
    return list(zip(*(settings[i::count] for i in range(count)), strict=True))

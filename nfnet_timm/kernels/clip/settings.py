"""The settings of adaptive gradient clipping, as one record for functions, parameter groups and kernels."""

import math
from typing import Any, NamedTuple

__all__ = ["CLIP_EPS", "CLIP_FACTOR", "Clipping", "as_number"]

# The authors' values, for batches of 4096.
CLIP_FACTOR, CLIP_EPS = 0.01, 1e-3
_EXPECTED = (
    "a number above 0, such as the authors' clip_factor=0.01 and clip_eps=0.001. Use clip_factor=None to switch "
    "adaptive clipping off"
)


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
    def of(clip_factor: Any, clip_eps: Any) -> "Clipping | None":
        """Return the settings as numbers, or None if ``clip_factor`` is None, which disables clipping.

        Raises:
            ValueError: If another value is not a number above 0.
        """
        if clip_factor is None:
            return None
        return Clipping(
            as_number("clip_factor", clip_factor, _EXPECTED, above_0=True),
            as_number("clip_eps", clip_eps, _EXPECTED, above_0=True),
        )

    @staticmethod
    def entries(clip_factor: Any, clip_eps: Any) -> dict[str, Any]:
        """Return the entries of a parameter group for these settings; for errors see ``of``."""
        return dict(zip(Clipping._fields, Clipping.of(clip_factor, clip_eps) or (None, clip_eps), strict=True))


def as_number(name: str, value: Any, expected: str, above_0: bool = False) -> float:
    """Return ``value`` as a finite number of at least 0, or above 0. Text is converted: YAML reads 2e-5 as text.

    Raises:
        ValueError: If it is none; the message contains ``name`` and ``expected``.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (0 <= number < math.inf) or (above_0 and number == 0):
        raise ValueError(f"{name}={value!r}: expected {expected}")
    return number

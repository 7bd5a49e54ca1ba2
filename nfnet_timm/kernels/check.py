"""The first use of a Triton kernel on a device compares it with torch's operations.

If the kernel is wrong, torch's operations are used on that device. Without this comparison, a kernel that does not
compile on a device, or computes wrong numbers there, would break every training run on it.
"""

import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from nfnet_timm.compat.torch import has_dispatch_modes

__all__ = ["KERNELS", "Comparison", "compare", "has_right_kernel"]

# Largest allowed difference from torch's operations, relative to the largest value of a row: a few rounding errors.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6}
SCALE, EPS = 1.7, 1e-4

_is_right: dict[tuple[str, torch.device], bool] = {}


@dataclass(frozen=True)
class Comparison:
    """A kernel compared with torch's operations on one device.

    Args:
        difference: Largest relative difference over all cases, in units of ``TOLERANCE``.
        error: The exception that the kernel raised, if any.
        seconds: Time of the comparison. It includes the compilation of the kernel.
    """

    difference: float
    error: Exception | None
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether the kernel ran without an error and agrees with torch's operations."""
        return self.error is None and self.difference <= 1

    def __str__(self) -> str:
        if self.error is not None:
            return f"{type(self.error).__name__}: {' '.join(str(self.error).split())[:200]}"
        return f"differs by {self.difference:.2g} times the allowed rounding, {self.seconds:.2f} s"


def has_right_kernel(name: str, device: torch.device) -> bool:
    """Return whether the kernel ``name`` agrees with torch's operations on ``device``.

    The first call for each device compares them, and later calls return the same result. Nothing is compared while a
    CUDA graph is captured or a dispatch mode is active. If there is no earlier result, the function then returns False.

    Args:
        name: A key of ``KERNELS``.
    Warns:
        RuntimeWarning: Once for each device, if the kernel is wrong.
    """
    found = _is_right.get((name, device))
    if found is None:
        if not is_wanted():
            return False
        if (device.type == "cuda" and torch.cuda.is_current_stream_capturing()) or has_dispatch_modes():
            return False
        result = compare(name, device)
        found = _is_right[name, device] = result.is_right
        if not found:
            where = torch.cuda.get_device_name(device) if device.type == "cuda" else device
            warnings.warn(
                f"nfnet_timm's Triton kernel {name} is wrong on {where}: {result}. torch's operations are used there "
                "instead, and they are slower. Set NFNET_TIMM_TRITON=0 to use them without this comparison",
                RuntimeWarning,
                stacklevel=2,
            )
    return found


@cache
def is_wanted() -> bool:
    """Return whether Triton is installed and ``NFNET_TIMM_TRITON`` is not 0."""
    return find_spec("triton") is not None and os.environ.get("NFNET_TIMM_TRITON") != "0"


@torch.no_grad()
def compare(name: str, device: torch.device) -> Comparison:
    """Compare the kernel ``name`` with torch's operations on small tensors that reach each of its branches."""
    start, difference, error = time.perf_counter(), 0.0, None
    try:
        with torch.autocast(device.type, enabled=False):
            for found, expected in KERNELS[name](device):
                difference = max(difference, _difference(found, expected))
    except Exception as exception:  # compilers and drivers raise exceptions of many types
        error = exception
    return Comparison(difference, error, time.perf_counter() - start)


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return float("inf")
    tolerance = TOLERANCE[found.dtype]
    found, expected = (x.double().reshape(len(x), -1) for x in (found, expected))
    # At least 0.1: some rows are zero except for rounding errors.
    relative = (found - expected).abs().amax(1) / expected.abs().amax(1).clamp(min=0.1)
    return float(relative.nan_to_num(nan=float("inf")).max()) / tolerance


def _numbers(shape: tuple[int, ...], device: torch.device, frequency: float) -> Tensor:
    """Return numbers that look random and are the same on every device. The state of random generators stays."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float64) * frequency).sin().float().view(shape).to(device)


def _weight_and_gain(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a weight with these rows: clamped (0), without variance (1), far from zero (2), large (3); and a gain."""
    weight = _numbers((6, 27, 3, 3), device, 12.9898)  # fan-in 243 is not a power of two
    weight[0] *= 1e-4
    weight[1] = 0.25
    weight[2] += 3
    weight[3] *= 100
    return weight, _numbers((6,), device, 3.1) + 2


def _standardize(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    from nfnet_timm.kernels.standardize import triton as standardize_triton
    from nfnet_timm.kernels.standardize.operation import standardize_by_torch

    weight, gain = _weight_and_gain(device)
    for dtype in (*TOLERANCE, *TOLERANCE):  # the second launch of a kernel is a direct one
        found = standardize_triton.standardize(weight, gain, SCALE, EPS, dtype)
        yield found, standardize_by_torch(weight, gain, SCALE, EPS, dtype)


def _standardize_backward(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    from nfnet_timm.kernels.standardize import triton as standardize_triton
    from nfnet_timm.kernels.standardize.operation import backward_by_torch

    weight, gain = _weight_and_gain(device)
    for dtype in (*TOLERANCE, *TOLERANCE):
        grad = _numbers(tuple(weight.shape), device, 7.7).to(dtype)
        found = standardize_triton.standardize_backward(grad, weight, gain, SCALE, EPS)
        expected = backward_by_torch(grad, weight, gain, SCALE, EPS)
        yield found[0], expected[0]
        yield found[1].view(-1, 1), expected[1].view(-1, 1)


def _clip(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    from nfnet_timm.kernels.clip import triton as clip_triton
    from nfnet_timm.kernels.clip.reference import clip_by_torch_
    from nfnet_timm.kernels.clip.settings import Clipping

    # Among them: a unit that is longer than a block, a unit of one element, a scalar and a vector.
    shapes = [(5, 3, 3, 3), (3, 1300), (4, 1), (), (40,)]
    clippings = [Clipping(clip_factor=0.02)] * len(shapes)
    for dtype, scale in itertools.product(TOLERANCE, (None, torch.tensor(8.0, device=device))):
        weights = [_numbers(shape, device, 12.9898 + i) for i, shape in enumerate(shapes)]
        weights[1][1] = 0  # the limit is clip_factor * clip_eps
        grads = [_numbers(shape, device, 7.7 + i).to(dtype) for i, shape in enumerate(shapes)]
        grads[1][0] *= 1e-4  # too small to be clipped
        for tensors in (weights, grads):
            tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
        expected = [grad.clone() for grad in grads]
        clip_triton.clip_(weights, grads, clippings, scale)
        clip_by_torch_(weights, expected, clippings, scale)
        for found, other in zip(grads, expected, strict=True):
            unit = other.abs().max() + 1e-9  # clipped gradients are too small for an absolute tolerance
            yield (found / unit).reshape(1, -1), (other / unit).reshape(1, -1)


KERNELS: dict[str, Callable[[torch.device], Iterator[tuple[Tensor, Tensor]]]] = {
    "standardize": _standardize,
    "standardize_backward": _standardize_backward,
    "clip": _clip,
}

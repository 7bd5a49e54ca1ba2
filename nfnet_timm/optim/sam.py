"""Sharpness-aware minimization, around any optimizer.

Source: arXiv 2010.01412; arXiv 2102.06171, appendix A.4, for NFNet-F5 and F6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from nfnet_timm.compat.torch import foreach_add_, foreach_copy_, foreach_mul_, foreach_norm

__all__ = ["SAM"]


class SAM(Optimizer):
    """Steps with the gradients at ``w + rho * g / |g|``, where g are those at ``w``, the norm that of all together.

    ::

        optimizer = SAM(create_optimizer(model, "sgd", lr=0.1), rho=0.05)

        def closure():
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        loss = optimizer.step(closure)

    The optimizer inside makes the step: groups, state and hooks are its own, and where it clips adaptively, it clips
    the gradients that it steps with. Those of the ascent are not clipped, and only their direction counts; the paper
    does not say whether its authors clipped them. After the ascent the weights come back to the bit, also where a
    closure raises. The weights are kept a second time while the closure runs.

    Args:
        rho: Length of the ascent; the entry ``sam_rho`` of each parameter group, so it is saved and may be changed.
            0.05 is the paper's for fine-tuning; for F5 and F6 on ImageNet it gives none.
    Raises:
        ValueError: If ``rho`` is negative or not finite, or ``optimizer`` runs closures itself, as L-BFGS does.
    Differs from timm: it has none.
    """

    def __init__(self, optimizer: Optimizer, rho: float = 0.05):
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, (LBFGS, SAM)):
            raise ValueError(
                f"optimizer is {type(optimizer).__name__}: expected an instance of an optimizer that steps once, such "
                'as nfnet_timm.optim.create_optimizer(model, "sgd", lr=0.1)'
            )
        if not 0 <= rho < math.inf:
            raise ValueError(f"rho={rho}: expected a finite length of at least 0, such as the paper's 0.05")
        # Not torch's constructor: whatever is not defined here is that of the optimizer inside, see __getattr__.
        self.optimizer = optimizer
        optimizer.defaults.setdefault("sam_rho", rho)  # for groups that are added later
        for group in optimizer.param_groups:
            group.setdefault("sam_rho", rho)

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # of a copy that is being filled
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        ascent: Callable[[], Any] | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Any:
        """Run ``closure`` for the ascent, run it again on the way, step, and return what the second run returned.

        Gradients are set to None before each run. With a scaler, call ``scaler.update()`` afterwards, as always.

        Args:
            closure: Runs the forward and the backward pass. It may have several of each, which add up.
            ascent: Runs instead of ``closure`` for the ascent: on a share of the same images (the paper: a fifth, at
                equal accuracy; of other images the gain is lost), or under ``no_sync()`` of
                ``DistributedDataParallel``, so that each process ascends by itself (the paper's way).
            scaler: One whose ``scale`` the closures use.
        Raises:
            ValueError: If there is no closure.
        """
        if closure is None:
            raise ValueError(
                "step() without a closure: expected step(closure), as sharpness-aware minimization runs the forward "
                "and the backward pass twice"
            )
        self.zero_grad()
        with torch.enable_grad():
            (ascent or closure)()
        with self._ascended():
            self.zero_grad()
            with torch.enable_grad():
                loss = closure()
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
        return loss

    @contextmanager
    @torch.no_grad()
    def _ascended(self) -> Iterator[None]:
        groups = [([p for p in group["params"] if p.grad is not None], group["sam_rho"]) for group in self.param_groups]
        groups = [(params, rho) for params, rho in groups if params]
        weights = [_local(p) for params, _ in groups for p in params]
        kept = [weight.clone() for weight in weights]
        norm = _norm([p.grad for params, _ in groups for p in params])
        try:
            for params, rho in groups:
                grads = [_local(p.grad) for p in params]
                foreach_mul_(grads, rho / norm)
                foreach_add_([_local(p) for p in params], grads)
            yield
        finally:
            if weights:
                foreach_copy_(weights, kept)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients to None, or to zero."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer inside."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer inside; its groups have the radius."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned, or the state of the optimizer inside from a run without SAM."""
        rho = self.optimizer.defaults["sam_rho"]
        self.optimizer.load_state_dict(state_dict)
        for group in self.param_groups:
            group.setdefault("sam_rho", rho)

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"SAM({self.optimizer!r})"


def _local(x: Any) -> Tensor:
    """Return what this process holds of a tensor that may be sharded."""
    return x.to_local() if hasattr(x, "to_local") else x


def _norm(grads: list[Any]) -> Tensor:
    """Return the norm of all together, in every process that shares them; not 0, so that one may divide by it."""
    dtype = reduce(torch.promote_types, {grad.dtype for grad in grads}, torch.float32)
    if any(hasattr(grad, "full_tensor") for grad in grads):  # sharded: torch's foreach norm of those takes no dtype
        norms = [torch.linalg.vector_norm(grad, dtype=dtype) for grad in grads]
    else:
        norms = list(foreach_norm(grads, 2, dtype=dtype)) if grads else [torch.zeros(())]
    norm: Any = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return norm.clamp(min=torch.finfo(norm.dtype).tiny)

"""Sharpness-aware minimization, around any optimizer.

Source: arXiv 2010.01412; arXiv 2102.06171, appendix A.4, for NFNet-F5 and F6.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from nfnet_timm.compat.torch import foreach_add_, foreach_copy_, foreach_mul_, foreach_norm
from nfnet_timm.kernels.clip.settings import as_number
from nfnet_timm.optim.agc import local_grad
from nfnet_timm.optim.param_groups import set_entries

__all__ = ["SAM"]

_EXPECTED = "a finite length of at least 0, such as the paper's 0.05"


class SAM(Optimizer):
    """Step from ``w`` with the gradients at ``w + rho * g / |g|``, where g are the gradients at ``w``.

    ``|g|`` is the norm of the gradients of all parameters together.

    ::

        optimizer = SAM(create_optimizer(model, "sgd", lr=0.1), rho=0.05)

        def closure():
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        loss = optimizer.step(closure)

    The optimizer inside makes the step. It has its own groups, state and hooks. If it clips adaptively, it clips the
    gradients of the step. It does not clip those of the ascent, which give only a direction. The paper does not say
    whether the authors clipped them.

    After the ascent the weights are restored bit by bit, also if a closure raises an error. A copy of the weights is
    kept while the closure runs.

    Args:
        rho: Length of the ascent. It becomes the entry ``sam_rho`` of each parameter group, so it is saved, and you can
            change it. The paper uses 0.05 for fine-tuning, and gives no value for F5 and F6 on ImageNet.
    Raises:
        ValueError: If ``rho`` is negative or not finite, or ``optimizer`` runs closures itself, as L-BFGS does.
    Differs from timm: timm has no SAM.
    """

    def __init__(self, optimizer: Optimizer, rho: float = 0.05):
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, (LBFGS, SAM)):
            raise ValueError(
                f"optimizer is {type(optimizer).__name__}: expected an optimizer that runs its closure once, such "
                'as nfnet_timm.optim.create_optimizer(model, "sgd", lr=0.1)'
            )
        # torch's constructor is not called: __getattr__ takes all other attributes from the optimizer inside.
        self.optimizer = optimizer
        set_entries(optimizer, {"sam_rho": as_number("rho", rho, _EXPECTED)})

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # a copy without state, before __setstate__
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        ascent: Callable[[], Any] | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Any:
        """Run ``closure`` at ``w``, run it a second time after the ascent, step, and return its second result.

        Gradients are set to None before each run. With a scaler, call ``scaler.update()`` after the step, as usual.

        Args:
            closure: Runs the forward and the backward pass. It may run several of each; the gradients add up.
            ascent: Runs instead of ``closure`` for the ascent. It may use a part of the same images: the paper uses a
                fifth, with equal accuracy, but loses the gain with other images. It may also run under ``no_sync()`` of
                ``DistributedDataParallel``, so that each process computes its own ascent, as in the paper.
            scaler: The gradient scaler whose ``scale`` the closures use.
        Raises:
            ValueError: If there is no closure.
        """
        if closure is None:
            raise ValueError(
                "step() without a closure: expected step(closure), because sharpness-aware minimization runs the "
                "forward and the backward pass twice. If torch.distributed.checkpoint calls it, pass it the attribute "
                "`optimizer` of SAM"
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
        groups = []
        for group in self.param_groups:
            # The optimizer inside may have loaded the state of a run without SAM.
            rho = as_number("sam_rho", group.setdefault("sam_rho", self.defaults["sam_rho"]), _EXPECTED)
            if params := [p for p in group["params"] if p.grad is not None]:
                groups.append((params, rho))
        weights = [_local(p) for params, _ in groups for p in params]
        kept = [weight.clone() for weight in weights]
        grads_of_groups = [[local_grad(p) for p in params] for params, _ in groups]
        norm = _norm([p.grad for params, _ in groups for p in params])
        try:
            for (params, rho), grads in zip(groups, grads_of_groups, strict=True):
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
        """Return the state of the optimizer inside; its groups contain ``sam_rho``."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state from ``state_dict()``, or from a run with the same optimizer without SAM."""
        self.optimizer.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"SAM({self.optimizer!r})"


def _local(x: Any) -> Tensor:
    """Return this process's part of a tensor that may be sharded."""
    return x.to_local() if hasattr(x, "to_local") else x


def _norm(grads: list[Any]) -> Tensor:
    """Return the norm of all gradients together, the same in all processes; it is above 0, so division is possible."""
    dtype = reduce(torch.promote_types, {grad.dtype for grad in grads}, torch.float32)
    if any(hasattr(grad, "full_tensor") for grad in grads):  # sharded: torch's foreach norm has no dtype for these
        norms = [torch.linalg.vector_norm(grad, dtype=dtype) for grad in grads]
    else:
        norms = list(foreach_norm(grads, 2, dtype=dtype)) if grads else [torch.zeros(())]
    norm: Any = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return norm.clamp(min=torch.finfo(norm.dtype).tiny)

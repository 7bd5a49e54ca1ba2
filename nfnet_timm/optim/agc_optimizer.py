"""Any optimizer with adaptive gradient clipping before each step."""

from __future__ import annotations

from functools import cache, wraps
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nfnet_timm.optim.agc import CLIP_EPS, CLIP_FACTOR, ClippedParam, Clipping, clip_each_
from nfnet_timm.optim.param_groups import known_classifier_weights

__all__ = ["agc_class", "attach_agc"]


def attach_agc(
    optimizer: Optimizer,
    clip_factor: float | None = CLIP_FACTOR,
    clip_eps: float = CLIP_EPS,
) -> Optimizer:
    """Make ``optimizer`` clip adaptively before each step, and return it; it may be of any library.

    ``clip_factor`` and ``clip_eps`` become entries of each parameter group that has none, and of groups that are added
    later: they are saved in ``state_dict()`` and can be changed at any time. A ``clip_factor`` of None switches the
    clipping of a group off. The classifier's weight of the networks here is not clipped, whatever group it is in.
    Gradients are clipped in place, after a gradient scaler has unscaled them, once per step however many backward
    passes it has, and after each run of a closure. Copies clip too; an unpickled optimizer clips in a process that has
    imported timm or this module.

    Raises:
        ValueError: If a setting is not a number above 0, or the optimizer differentiates gradients, which clipping
            would change under it, or does not run torch's hooks.
    """
    plain = _innermost(optimizer)
    if getattr(plain, "is_second_order", False):
        raise ValueError(
            f"{type(plain).__name__} differentiates gradients, and would differentiate the clipping too: expected an "
            "optimizer that does not. timm's create_optimizer_v2 builds it without clipping"
        )
    if not getattr(type(plain).step, "hooked", False):  # set by the constructor of torch's Optimizer
        raise ValueError(
            f"the step of {type(plain).__name__} runs no hooks, as it does not call the constructor of "
            "torch.optim.Optimizer: call nfnet_timm.adaptive_clip_grad_(parameters) before each step instead"
        )
    settings = _checked(clip_factor, clip_eps)
    is_new = "clip_factor" not in plain.defaults
    plain.defaults.update(settings)  # for groups that are added later
    for group in plain.param_groups:
        for key, value in settings.items():
            if is_new:
                group.setdefault(key, value)  # agc_param_groups has set some
            elif group.get(key) is not None:
                group[key] = value
    return optimizer


def _checked(clip_factor: float | None, clip_eps: float) -> dict[str, Any]:
    """Return the settings as numbers."""
    settings = {"clip_factor": clip_factor, "clip_eps": clip_eps}
    clipping = Clipping.of(settings)
    return settings if clipping is None else clipping._asdict()


def _innermost(optimizer: Any) -> Any:
    """Return the optimizer that makes the step where ``optimizer`` wraps another one, as Lookahead and SAM do."""
    for inner in vars(optimizer).values():
        if isinstance(inner, Optimizer) and inner.param_groups is optimizer.param_groups:
            return _innermost(inner)
    return optimizer


def _clip_before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if "clip_factor" not in optimizer.defaults:
        return None
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        _clip(optimizer)
        return None

    @wraps(closure)
    def clipped() -> Any:  # the gradients are those that the closure leaves
        loss = closure()
        _clip(optimizer)
        return loss

    if len(args) > 1:
        return (args[0], clipped, *args[2:]), kwargs
    return args, {**kwargs, "closure": clipped}


# One hook for all optimizers, as torch drops an optimizer's own hooks from its copies.
register_optimizer_step_pre_hook(_clip_before_step)


def _clip(optimizer: Optimizer) -> None:
    exempt = known_classifier_weights()
    limits = []
    for group in optimizer.param_groups:
        for key in Clipping._fields:
            group.setdefault(key, optimizer.defaults[key])  # the state of an optimizer without clipping has none
        clipping = Clipping.of(group)
        if clipping is not None:
            limits += [ClippedParam(p, clipping) for p in group["params"] if id(p) not in exempt]
    # A fused optimizer unscales in its step; until then the gradients have the gradient scaler's factor.
    clip_each_(limits, grad_scale=getattr(optimizer, "grad_scale", None))


@cache
def agc_class(plain: Any) -> type[Optimizer]:
    """Return the subclass of ``plain`` that clips adaptively before each step.

    It takes ``clip_factor`` and ``clip_eps`` by keyword beside the arguments of ``plain``; see ``attach_agc``.
    """

    class Agc(plain):
        # ``inspect.signature`` shows the arguments of ``plain``, as timm's tests expect.
        @wraps(plain.__init__)  # type: ignore[misc]
        def __init__(
            self,
            params: Any,
            *args: Any,
            clip_factor: float | None = CLIP_FACTOR,
            clip_eps: float = CLIP_EPS,
            **kwargs: Any,
        ) -> None:
            super().__init__(params, *args, **kwargs)
            attach_agc(self, clip_factor, clip_eps)

        def __reduce_ex__(self, protocol: Any) -> Any:  # pickle does not find a class that is made in a function
            return _empty, (plain,), self.__getstate__()

    Agc.__name__ = Agc.__qualname__ = f"Agc{plain.__name__}"
    Agc.__doc__ = f"{plain.__name__} that clips adaptively before each step; see ``nfnet_timm.optim.attach_agc``."
    return Agc


def _empty(plain: Any) -> Optimizer:
    """Return an instance for a copy or a pickle to fill."""
    clipping: Any = agc_class(plain)
    return clipping.__new__(clipping)

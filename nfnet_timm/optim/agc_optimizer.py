"""Add adaptive gradient clipping to any optimizer, before each step.

Importing this registers ``agc-sgd``, ``agc-adamw`` and so on with timm: timm's optimizers, with clipping.
"""

from dataclasses import replace
from functools import cache, wraps
from typing import Any

from timm.optim import OptimInfo, list_optimizers
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nfnet_timm.compat.timm import optimizer_registry
from nfnet_timm.kernels.clip.settings import CLIP_EPS, CLIP_FACTOR, Clipping
from nfnet_timm.optim.agc import clip_each_
from nfnet_timm.optim.param_groups import known_classifier_weights, set_entries

__all__ = ["attach_agc"]


def attach_agc(optimizer: Optimizer, clip_factor: float | None = CLIP_FACTOR, clip_eps: float = CLIP_EPS) -> Optimizer:
    """Make ``optimizer``, from any library, clip adaptively before each step, and return it.

    The settings become entries of each parameter group that does not have them, and of groups that are added later.
    They are saved in ``state_dict()``, and you can change them at any time. ``clip_factor=None`` disables clipping for
    a group. A second call changes only groups that still have the values of the first call. The classifier's weight in
    a network of this package is never clipped.

    Gradients are clipped in place, once for each step and after each run of a closure. This happens after a gradient
    scaler has unscaled them, and after all backward passes of the step, but before the optimizer's own step pre-hooks.
    Copies of the optimizer clip, too. An unpickled one clips if ``timm.optim`` has been imported in its process.

    Raises:
        ValueError: If ``optimizer`` differentiates gradients or its step, or runs no hooks, or a setting is not a
            number above 0.
    """
    plain = _innermost(optimizer)
    if getattr(plain, "is_second_order", False) or getattr(plain, "defaults", {}).get("differentiable"):
        raise ValueError(
            f"{type(plain).__name__} differentiates gradients or its step, but clipping has no derivative: expected an "
            "optimizer that does not. To use it without clipping, build it by timm's create_optimizer_v2"
        )
    if not getattr(getattr(type(plain), "step", None), "hooked", False):  # the constructor of torch's Optimizer sets it
        raise ValueError(
            f"the step of {type(plain).__name__} runs no hooks, because it does not call the constructor of "
            "torch.optim.Optimizer: call nfnet_timm.adaptive_clip_grad_(parameters) before each step instead"
        )
    set_entries(plain, Clipping.entries(clip_factor, clip_eps))
    return optimizer


def _innermost(optimizer: Any) -> Any:
    """Return the innermost optimizer, which makes the step, if ``optimizer`` is a wrapper such as Lookahead or SAM."""
    for inner in vars(optimizer).values():
        if isinstance(inner, Optimizer) and inner.param_groups is optimizer.param_groups:
            return _innermost(inner)
    return optimizer


def _clip_before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # This hook runs for every optimizer of the process. attach_agc sets all fields; a wrapper may have some of them.
    if not all(key in optimizer.defaults for key in Clipping._fields):
        return None
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        _clip(optimizer)
        return None

    @wraps(closure)
    def clipped() -> Any:  # the closure computes the gradients, so they are clipped after it
        loss = closure()
        _clip(optimizer)
        return loss

    if len(args) > 1:
        return (args[0], clipped, *args[2:]), kwargs
    return args, {**kwargs, "closure": clipped}


# One global hook, because copies of an optimizer do not have the optimizer's own hooks.
register_optimizer_step_pre_hook(_clip_before_step)


def _clip(optimizer: Optimizer) -> None:
    exempt = known_classifier_weights()
    clipped = []
    for group in optimizer.param_groups:
        # The state of an optimizer without clipping has no settings.
        clipping = Clipping.of(*(group.setdefault(key, optimizer.defaults[key]) for key in Clipping._fields))
        if clipping is not None:
            clipped += [(p, clipping) for p in group["params"] if id(p) not in exempt]
    # A fused optimizer unscales in its step. Before that, the gradients contain the factor of the gradient scaler.
    clip_each_(clipped, grad_scale=getattr(optimizer, "grad_scale", None))


@cache
def _agc_class(plain: Any) -> type[Optimizer]:
    """Return the subclass of ``plain`` with ``attach_agc``, which takes the fields of ``Clipping`` as keywords."""

    class Agc(plain):
        # ``inspect.signature`` shows the arguments of ``plain``, as timm's tests expect.
        @wraps(plain.__init__)  # type: ignore[misc]
        def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
            settings = {name: kwargs.pop(name) for name in Clipping._fields if name in kwargs}
            super().__init__(params, *args, **kwargs)
            attach_agc(self, **settings)

    Agc.__name__ = Agc.__qualname__ = f"Agc{plain.__name__}"
    Agc.__doc__ = f"{plain.__name__} that clips adaptively before each step; see ``nfnet_timm.optim.attach_agc``."
    return Agc


def _register() -> None:
    registry = optimizer_registry()
    for name in map(str, list_optimizers()):
        info: OptimInfo = registry.get_optimizer_info(name)
        plain: Any = info.opt_class
        # Not for optimizers that timm imports by name, because they need a GPU. Not for those that differentiate the
        # gradients.
        if isinstance(plain, str) or info.second_order or name.startswith("agc-"):
            continue
        clipping = _agc_class(plain)
        globals()[clipping.__name__] = clipping  # pickle finds a class by its name
        registry.register(
            replace(
                info,
                name=f"agc-{name}",
                opt_class=clipping,
                description=f"{info.description.rstrip('.')}, with adaptive gradient clipping (nfnet_timm)",
            )
        )


_register()

"""An optimizer that clips adaptively before each step, whichever it is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, wraps
from typing import Any

from torch.optim import Optimizer

from nfnet_timm.optim import clip_mode
from nfnet_timm.optim.agc import Limit, clip_each_
from nfnet_timm.optim.classifiers import known_classifier_weights
from nfnet_timm.optim.fused_step import fuse_step
from nfnet_timm.optim.groups import CLIPPING, split_off_classifiers

__all__ = ["attach_agc", "clipping_twin"]


def attach_agc(
    optimizer: Optimizer,
    clip_factor: float = CLIPPING["clip_factor"],
    clip_eps: float = CLIPPING["clip_eps"],
) -> Optimizer:
    """Make ``optimizer`` clip adaptively before each step, and return it.

    ``clip_factor`` and ``clip_eps`` are entries of each parameter group, so they are saved in ``state_dict()`` and can
    be changed at any time; a ``clip_factor`` of None leaves a group alone. The classifier's weight of the networks here
    is left alone in whatever group it came or comes. Gradients are clipped in place, after a gradient scaler has
    unscaled them, once per step however many backward passes it has, and after each run of a closure. ``optimizer``
    becomes an instance of ``clipping_twin`` of its class; its copies and pickles clip too.

    Raises:
        ValueError: If ``optimizer`` differentiates gradients, which clipping would change under it.
    """
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(
            f"{type(optimizer).__name__} differentiates gradients, and would differentiate what clipping does to them: "
            "expected an optimizer that does not. Without clipping it is timm's create_optimizer_v2 that builds it"
        )
    # A Lookahead shares the groups of the optimizer that it wraps, and calls its step.
    base: Any = getattr(optimizer, "_base_optimizer", optimizer)
    if not isinstance(base, _Clipping):
        plain: Any = type(base)
        base.__class__ = clipping_twin(plain)
    base.clip_from_now_on({"clip_factor": clip_factor, "clip_eps": clip_eps})
    return optimizer


class _Clipping(Optimizer):
    """What a clipping twin has before its base: groups without classifiers, and hooks that survive copies."""

    base: type[Optimizer]

    def __init__(self, params: Iterable[Any], *args: Any, **kwargs: Any) -> None:
        clipping = {key: kwargs.pop(key, value) for key, value in CLIPPING.items()}
        super().__init__(params, *args, **kwargs)
        self.clip_from_now_on(clipping)

    def clip_from_now_on(self, clipping: dict[str, float]) -> None:
        """Put the setting into the groups that have none, and the hooks in place."""
        self.defaults.update(clipping)  # for groups that are added later
        for group in self.param_groups:
            for key, value in clipping.items():
                group.setdefault(key, value)
        for hook in (_clip_before_step, fuse_step):
            if hook not in self._optimizer_step_pre_hooks.values():
                self.register_step_pre_hook(hook)
        clip_mode.watch()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for part in split_off_classifiers(param_group):
            super().add_param_group(part)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        for group in state["param_groups"]:
            if group.get("fused") and self.defaults["fused"] is None:  # fuse_step's choice, for this step only
                group["fused"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch drops hooks from copies and pickles.
        self.clip_from_now_on({key: self.defaults[key] for key in CLIPPING})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty_twin, (self.base,), self.__getstate__()


@cache
def clipping_twin(plain: Any) -> type[Optimizer]:
    """Return the subclass of ``plain`` that clips adaptively before each step; see ``attach_agc``.

    It takes ``clip_factor`` and ``clip_eps`` by keyword beside the options of ``plain``.
    """

    class Twin(_Clipping, plain):
        base = plain

        # Whoever asks which options it takes, as timm's tests do, is told those of ``plain``.
        @wraps(plain.__init__)  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    Twin.__name__ = Twin.__qualname__ = f"Agc{plain.__name__}"
    Twin.__doc__ = f"{plain.__name__} that clips adaptively before each step; see ``nfnet_timm.optim.attach_agc``."
    return Twin


def _empty_twin(plain: Any) -> Optimizer:
    """Return an instance for a copy or a pickle to fill."""
    twin: Any = clipping_twin(plain)
    return twin.__new__(twin)


def _clip_before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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


def _clip(optimizer: Optimizer) -> None:
    left_alone = known_classifier_weights()  # a Lookahead adds groups without asking the optimizer that it wraps
    limits = [
        Limit(p, **{key: group[key] for key in CLIPPING})
        for group in optimizer.param_groups
        if group["clip_factor"] is not None
        for p in group["params"]
        if id(p) not in left_alone
    ]
    clip_mode.warn_if_clipped_by_timm(limits)
    # A fused optimizer unscales in its step; the gradient scaler has left the scale here.
    clip_each_(limits, grad_scale=getattr(optimizer, "grad_scale", None))

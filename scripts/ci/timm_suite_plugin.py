"""A pytest plugin for timm_suite.sh: selects the tests of timm's suite that concern this package and run offline.

timm's suite has exceptions for optimizers by name. The plugin applies them to the names with ``agc-`` before them, too.
``DEVIATIONS`` contains the intended differences: these tests are expected to fail, and the suite fails if they pass.
"""

import os
from fnmatch import fnmatch
from typing import Any

import pytest
import timm

from nfnet_timm.models.variants import VARIANTS

# One of each family and kind, for TIMM_SUITE_QUICK=1.
QUICK = ("nfnet_f0", "nfnet_f0_plus", "dm_nf_resnet50", "dm_nf_seresnet50", "dm_nf_regnet_b0")
QUICK_OPTIMIZERS = ("agc-sgd", "agc-adamw", "agc-lamb")

# They download weights.
ONLINE = ("test_model_inference", "test_model_load_pretrained", "test_model_features_pretrained")

DEVIATIONS = (
    (
        "test_optimizer_grad_unchanged",
        "agc-*",
        "gradients are clipped in place, as torch's clip_grad_norm_ does: a copy would take the memory of the weights",
    ),
    (
        "test_optimizer_tensor_lr",
        "agc-muon",
        "clipping depends on the weights, so the rounding of the learning rate to float32 reaches the gradient, and "
        "Muon's bfloat16 iteration makes 1.6e-5 of it (limit 1e-5)",
    ),
)

quick = bool(os.environ.get("TIMM_SUITE_QUICK"))
models = QUICK if quick else tuple(VARIANTS)
list_models = timm.list_models
# The suite makes its cases from this list. Those of timm's other 1,200 networks would take a minute to collect.
timm.list_models = lambda *args, **kwargs: [
    name for name in list_models(*args, **kwargs) if name.split(".")[0] in models
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of other models and tests that download; mark the intended deviations."""
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        test: str = item.originalname  # type: ignore[attr-defined]
        params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        if item.path.name == "test_optim.py":
            _adopt_names(item.module)  # type: ignore[attr-defined]
            config_name, _ = params.get("config", ("", {}))
            optimizer = str(params.get("optimizer", config_name))
            # timm's suite leaves out kron* there
            left_out = test == "test_optim_factory" and optimizer.startswith("agc-kron")
            keep = (not quick or optimizer in QUICK_OPTIMIZERS) and not left_out
            for name, pattern, reason in DEVIATIONS:
                if test == name and fnmatch(optimizer, pattern):
                    item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
        else:
            keep = str(params.get("model_name", "")).split(".")[0] in models and test not in ONLINE
        (kept if keep else dropped).append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def _adopt_names(module: Any) -> None:
    if not hasattr(module, "_PROPERTY_EXCEPTIONS") or getattr(module, "adopted", False):
        return
    for exceptions in module._PROPERTY_EXCEPTIONS.values():
        exceptions.update({f"agc-{pattern}": reason for pattern, reason in exceptions.items()})
    create = module._create_optimizer

    def create_deterministic(optimizer: str, params: Any, kwargs: Any = None, **extra: Any) -> Any:
        if optimizer.startswith("agc-kron"):  # timm's function does so for kron*
            extra.setdefault("deterministic", True)
        return create(optimizer, params, kwargs, **extra)

    module._create_optimizer = create_deterministic
    module.adopted = True

"""A pytest plugin for timm_suite.sh: keep the tests of timm's suite that concern this package, and can run offline."""

import os

import pytest

from nfnet_timm.variants import VARIANTS

# One of each family and kind, for TIMM_SUITE_QUICK=1.
QUICK = ("nfnet_f0", "nfnet_f0_plus", "dm_nf_resnet50", "dm_nf_seresnet50", "dm_nf_regnet_b0")

# They download weights.
ONLINE = ("test_model_inference", "test_model_load_pretrained", "test_model_features_pretrained")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is about other models, or online."""
    names = QUICK if os.environ.get("TIMM_SUITE_QUICK") else tuple(VARIANTS)
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        callspec = getattr(item, "callspec", None)
        model = callspec.params.get("model_name") if callspec else None
        ours = model is not None and model.split(".")[0] in names
        concerns_us = ours or (item.path.name == "test_optim.py" and names is not QUICK)
        (kept if concerns_us and item.originalname not in ONLINE else dropped).append(item)  # type: ignore[attr-defined]
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept

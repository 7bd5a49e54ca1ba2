"""The networks equal the papers' tables."""

import json

import pytest
from golden import DATA

from nfnet_timm.models.variants import VARIANTS
from nfnet_timm.publish.card import multiply_adds
from nfnet_timm.publish.checkpoints import load_published

CHECKPOINTS = load_published()["checkpoints"]


def test_numbers_of_parameters_are_the_published_ones():
    counts = json.loads((DATA / "parameter_counts.json").read_text())  # which test_state_dict.py counts
    for checkpoint, published in CHECKPOINTS.items():
        assert counts[checkpoint.split(".")[0]]["parameters"] / 1e6 == pytest.approx(published["parameters"], abs=0.05)


@pytest.mark.parametrize(  # F3 and larger networks have the same blocks, and more of them
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (i > 2)) for i, name in enumerate(CHECKPOINTS)]
)
def test_multiply_adds_are_the_published_ones(name):
    found = multiply_adds(name.split(".")[0])
    assert found == pytest.approx(CHECKPOINTS[name]["multiply_adds"], abs=0.005)


def test_checkpoints_are_the_default_weights():
    hubs = {f"{name}.dm_in1k": v.hf_hub_id for name, v in VARIANTS.items() if v.hf_hub_id}
    assert {name: c["hub"] for name, c in CHECKPOINTS.items()} == hubs


def test_timms_accuracy_is_within_a_fifth_of_a_point_of_the_papers():
    for checkpoint in CHECKPOINTS.values():
        assert abs(checkpoint["timm_top1"] - checkpoint["top1"]) <= 0.2

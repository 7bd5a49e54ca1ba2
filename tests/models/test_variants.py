"""What hub/checkpoints.toml says of the networks is true of the code, and the README's table says the same."""

import subprocess
import sys

import pytest
import timm
import torch
from golden import ROOT
from torch.utils.flop_counter import FlopCounterMode

from nfnet_timm.models.variants import VARIANTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FACTS = tomllib.loads((ROOT / "hub" / "checkpoints.toml").read_text())


def test_every_network_has_its_facts():
    assert list(FACTS["networks"]) == list(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_facts_are_those_of_the_network(name):
    facts, variant = FACTS["networks"][name], VARIANTS[name]
    assert (facts["train_size"], facts["test_size"]) == (variant.train_size, variant.test_size)
    model = timm.create_model(name, device="meta").eval()
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, variant.test_size, variant.test_size, device="meta"))
    assert facts["multiply_adds"] == pytest.approx(counter.get_total_flops() / 2e9, abs=0.005)


def test_checkpoints_are_the_default_weights():
    hubs = {f"{name}.dm_in1k": v.hf_hub_id for name, v in VARIANTS.items() if v.hf_hub_id}
    assert {name: c["hub"] for name, c in FACTS["checkpoints"].items()} == hubs


def test_timms_accuracy_is_within_a_fifth_of_a_point_of_the_papers():
    for checkpoint in FACTS["checkpoints"].values():
        assert abs(checkpoint["timm_top1"] - checkpoint["top1"]) <= 0.2


def test_the_readmes_table_is_up_to_date():
    result = subprocess.run([sys.executable, ROOT / "scripts" / "render_tables.py", "--check"], capture_output=True)
    assert result.returncode == 0, result.stderr

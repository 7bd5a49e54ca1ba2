"""What a GPU is asked for in eager mode, counted."""

import subprocess
import sys

import pytest
import timm
import torch
from benchmark_launches import Launches, step
from golden import ROOT
from timm.utils.agc import adaptive_clip_grad

from nfnet_timm.layers import WSConv2d
from nfnet_timm.optim.agc import adaptive_clip_grad_

CONVOLUTIONS = 57  # of F0 that are standardized


@pytest.fixture(scope="module")
def ours():
    return step("nfnet_f0", adaptive_clip_grad_, 8, 192, bfloat16=False)


@pytest.fixture(scope="module")
def timms():
    return step("dm_nfnet_f0", adaptive_clip_grad, 8, 192, bfloat16=False)


def test_a_step_asks_for_fewer_operations_than_timms_and_moves_less(ours, timms):
    assert ours["forward"].total <= 300
    assert ours["backward"].total <= timms["backward"].total
    assert ours["clipping"].total <= 40
    assert (timms["forward"].total, timms["backward"].total, timms["clipping"].total) == (429, 478, 2310)
    for part, counted in ours.items():
        assert counted.bytes.total() < timms[part].bytes.total()


def test_standardization_is_one_launch_of_a_convolution_in_each_direction(ours):
    assert ours["forward"].names["standardize"] == ours["forward"].names["convolution"] == CONVOLUTIONS
    assert ours["backward"].names["standardize_backward"] == CONVOLUTIONS
    assert ours["forward"].bytes["standardize"] <= 0.6e9
    assert ours["backward"].bytes["standardize_backward"] <= 0.9e9


def test_no_part_of_a_step_waits_for_the_device(ours):
    assert [counted.host_reads for counted in ours.values()] == [0, 0, 0]


def test_reading_a_value_back_is_counted_as_waiting():
    with Launches() as launches:
        torch.ones(3).sum().item()
    assert launches.host_reads == 1


def test_under_autocast_the_standardized_weight_is_written_in_its_dtype_by_the_same_launch():
    counted = step("nfnet_f0", adaptive_clip_grad_, 8, 192, bfloat16=True)
    convolutions = [m for m in timm.create_model("nfnet_f0", device="meta").modules() if isinstance(m, WSConv2d)]
    read = sum(conv.weight.nbytes + conv.gain.nbytes for conv in convolutions)
    written = sum(2 * conv.weight.numel() for conv in convolutions)
    assert counted["forward"].names["standardize"] == CONVOLUTIONS
    assert counted["forward"].bytes["standardize"] == read + written
    assert [part.host_reads for part in counted.values()] == [0, 0, 0]


@pytest.mark.parametrize("arguments", [[], ["--dtype", "bfloat16", "--batch", "2", "--pixels", "64"]])
def test_the_command_prints_the_table(arguments):
    command = [sys.executable, ROOT / "scripts" / "benchmark.py", "launches", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "| forward | " in result.stdout
    if not arguments:
        assert "| forward | 297 | 429 |" in result.stdout

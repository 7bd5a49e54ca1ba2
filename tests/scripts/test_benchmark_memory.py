"""Peaks that are predicted without allocating anything are those that are measured."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from benchmark_memory import WAYS, inference_peak, largest_batch, training_peak
from benchmark_networks import memory
from golden import ROOT
from timm.optim import create_optimizer_v2

BATCH, PIXELS = 4, 128


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nfnet_f0", "dm_nf_resnet50"])
@pytest.mark.parametrize("way", WAYS)
def test_the_peak_of_a_training_step_is_predicted_within_a_tenth(name, way):
    model = timm.create_model(name, recompute_acts=way == "recompute_acts").train()
    model.set_grad_checkpointing(way == "set_grad_checkpointing")
    optimizer = create_optimizer_v2(model, "agc-sgd", lr=1e-4, momentum=0.9)
    x = torch.randn(BATCH, 3, PIXELS, PIXELS)

    def step():
        logits = model(x)
        logits.backward(torch.ones_like(logits))
        del logits
        optimizer.step()
        optimizer.zero_grad()

    step()  # the first makes the momentum
    there = 2 * sum(p.nbytes for p in model.parameters()) + x.nbytes  # before a step begins
    measured = there + memory(step, "cpu")["peak_mib"] * 2**20
    assert training_peak(name, way, BATCH, PIXELS, bfloat16=False) == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nfnet_f0", "dm_nf_resnet50"])
def test_the_peak_of_inference_is_predicted_within_a_tenth(name):
    model, x = timm.create_model(name).eval(), torch.randn(BATCH, 3, PIXELS, PIXELS)

    @torch.no_grad()
    def forward():
        model(x)

    forward()
    measured = sum(p.nbytes for p in model.parameters()) + x.nbytes + memory(forward, "cpu")["peak_mib"] * 2**20
    assert inference_peak(name, BATCH, PIXELS, bfloat16=False) == pytest.approx(measured, rel=0.1)


def test_nothing_is_allocated():
    """A batch that no machine has the memory for is predicted all the same."""
    assert training_peak("nfnet_f0", WAYS[0], 1 << 20, 192, bfloat16=False) > 50 * 2**40


def test_a_batch_that_fits_is_the_largest_and_sharding_leaves_room_for_more():
    bytes_of = {"state": 16 * 2**30, "fixed": 17 * 2**30, "each": 2**28}
    assert largest_batch(bytes_of, 24) == 28
    assert largest_batch(bytes_of, 24, shards=8) == 28 + 14 * 4
    assert largest_batch(bytes_of, 16) == 0


def test_the_batch_that_the_docs_name_fits_and_a_little_more_does_not():
    bytes_of = json.loads((ROOT / "benchmarks" / "memory.json").read_text())["nfnet_f0, as it is"]
    batch = largest_batch(bytes_of, 24)
    assert training_peak("nfnet_f0", WAYS[0], batch, 192, True, ema=True) <= 24.05 * 2**30
    assert training_peak("nfnet_f0", WAYS[0], round(1.01 * batch), 192, True, ema=True) > 24 * 2**30


def test_bfloat16_takes_less_and_an_average_as_much_as_the_weights():
    plain = training_peak("nfnet_f0", WAYS[0], 8, 96, bfloat16=True)
    assert plain < training_peak("nfnet_f0", WAYS[0], 8, 96, bfloat16=False)
    assert training_peak("nfnet_f0", WAYS[0], 8, 96, True, ema=True) - plain == 4 * 71_489_284


@pytest.mark.parametrize(
    ("name", "status", "said"), [("dm_nf_resnet50", 0, "| inference | "), ("resnet50", 2, "--name resnet50: expected")]
)
def test_the_command_prints_the_table_or_a_line(name, status, said):
    command = [sys.executable, ROOT / "scripts" / "benchmark.py", "memory", "--name", name, "--pixels", "64"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == status
    assert said in result.stdout + result.stderr

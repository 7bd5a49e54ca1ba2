"""The benchmarks: a small run of each, and what they claim of the package."""

import json
import runpy
from pathlib import Path

import pytest
import timm
import torch
from golden import ROOT
from peak_memory import memory
from timm.optim import create_optimizer_v2

from nfnet_timm.layers.ws_conv import WSConv2d

FOLDER = Path("scripts/benchmarks")


@pytest.fixture
def results(run_script, tmp_path):
    """Run a benchmark and return what it writes."""

    def run(name, *arguments):
        status, _, error = run_script(FOLDER / name, *arguments, "--json", tmp_path / "results.json")
        assert status == 0, error
        return json.loads((tmp_path / "results.json").read_text())

    return run


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_step_launches_one_kernel_for_each_weight_never_waits_and_moves_less_than_timms(results, dtype):
    counted = results("launches.py", "--dtype", dtype)
    step = counted["this package"]
    by_name = {part: step[part]["by_name"] for part in step}
    convolutions = [m for m in timm.create_model("nfnet_f0", device="meta").modules() if isinstance(m, WSConv2d)]
    assert by_name["forward"]["standardize"][0] == len(convolutions)
    assert by_name["backward"]["standardize_backward"][0] == len(convolutions)
    assert by_name["clipping"]["clip_"][0] == 1
    assert [part["host_reads"] for part in step.values()] == [0, 0, 0]
    for part, ours in step.items():
        assert ours["bytes"] < counted["timm"][part]["bytes"], part
    # Each weight and gain is read once in float32, and each weight is written once, in bfloat16 under autocast.
    read = sum(conv.weight.nbytes + conv.gain.nbytes for conv in convolutions)
    written = sum(conv.weight.numel() for conv in convolutions) * (2 if dtype == "bfloat16" else 4)
    assert by_name["forward"]["standardize"][1] == read + written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ways"), [("nfnet_f0", ["recompute_acts"]), ("dm_nf_resnet50", ["as it is", "set_grad_checkpointing"])]
)
def test_the_peak_of_memory_is_predicted_within_a_tenth(results, name, ways):
    predicted = results("memory.py", "--name", name, "--batch", 4, "--pixels", 96)
    for way in ways:
        model = timm.create_model(name, recompute_acts=way == "recompute_acts").train()
        model.set_grad_checkpointing(way == "set_grad_checkpointing")
        optimizer = create_optimizer_v2(model, "agc-sgd", lr=1e-4, momentum=0.9)
        x = torch.randn(4, 3, 96, 96)

        def step(model=model, optimizer=optimizer, x=x):
            logits = model(x)
            logits.backward(torch.ones_like(logits))
            del logits
            optimizer.step()
            optimizer.zero_grad()

        step()  # the first makes the momentum
        before = 2 * sum(p.nbytes for p in model.parameters()) + x.nbytes  # weights, momentum, images
        assert predicted[f"training step, {way}"] == pytest.approx(before + memory(step)[0], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "other"),
    [
        ("agc", []),
        ("inference --batch 1 --pixels 32", ["nfnet_timm, reparameterized"]),
        ("train --batch 2 --pixels 32", ["nfnet_timm, recompute_acts"]),
    ],
)
def test_each_network_is_measured(results, command, other):
    (record,) = results("speed.py", *command.split(), "--repeat", "1")
    assert [row["network"] for row in record["rows"]] == ["nfnet_timm", *other, "timm", "floor"]
    assert all(len(row["milliseconds"]) == 1 and min(row["milliseconds"]) > 0 for row in record["rows"])


@pytest.mark.filterwarnings("ignore")  # of Opacus and of what it imports
def test_per_sample_gradients_are_compared_with_plain_convolutions(results):
    pytest.importorskip("opacus")
    (record,) = results("privacy.py", "--name", "dm_nf_regnet_b0", "--batch", "1", "--pixels", "32", "--repeat", "1")
    assert set(record["ratios"]) == set(record["growth"])


def test_a_later_run_replaces_its_own_results_and_keeps_others(tmp_path):
    add_record = runpy.run_path(str(ROOT / FOLDER / "results.py"))["add_record"]
    for settings, value in ((0, 1), (1, 2), (0, 3)):
        record = {"settings": settings, "value": value}
        add_record(tmp_path / "results.json", record, lambda old, settings=settings: old["settings"] == settings)
    records = json.loads((tmp_path / "results.json").read_text())
    assert [(record["settings"], record["value"]) for record in records] == [(1, 2), (0, 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]

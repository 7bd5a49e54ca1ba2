"""The benchmarks: a small run of each, and what they claim of the package."""

import json
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from golden import ROOT
from peak_memory import peak_memory
from timm.optim import create_optimizer_v2

from nfnet_timm.layers.ws_conv import WSConv2d

FOLDER = Path("scripts/benchmarks")
CONVOLUTIONS = 57  # of F0 that are standardized


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
    assert by_name["forward"]["standardize"][0] == by_name["backward"]["standardize_backward"][0] == CONVOLUTIONS
    assert by_name["clipping"]["clip_"][0] == 1
    assert [part["host_reads"] for part in step.values()] == [0, 0, 0]
    for part, ours in step.items():
        assert ours["bytes"] < counted["timm"][part]["bytes"], part
    # Each weight and gain is read once in float32, and each weight is written once, in bfloat16 under autocast.
    convolutions = [m for m in timm.create_model("nfnet_f0", device="meta").modules() if isinstance(m, WSConv2d)]
    read = sum(conv.weight.nbytes + conv.gain.nbytes for conv in convolutions)
    written = sum(conv.weight.numel() for conv in convolutions) * (2 if dtype == "bfloat16" else 4)
    assert by_name["forward"]["standardize"][1] == read + written


@pytest.mark.slow
def test_the_peak_of_memory_is_predicted_for_a_batch_that_no_machine_can_hold(results):
    predicted = results("memory.py", "--name", "dm_nf_regnet_b0", "--batch", 1 << 20)
    for way in ("set_grad_checkpointing", "recompute_acts"):
        assert 2**40 < predicted[f"training step, {way}"] <= predicted["training step, as it is"], way


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nfnet_f0", "dm_nf_resnet50"])
def test_the_peak_of_memory_is_predicted_within_a_tenth(results, name):
    predicted = results("memory.py", "--name", name, "--batch", 4, "--pixels", 128)
    for way in ("as it is", "recompute_acts", "set_grad_checkpointing"):
        model = timm.create_model(name, recompute_acts=way == "recompute_acts").train()
        model.set_grad_checkpointing(way == "set_grad_checkpointing")
        optimizer = create_optimizer_v2(model, "agc-sgd", lr=1e-4, momentum=0.9)
        x = torch.randn(4, 3, 128, 128)

        def step(model=model, optimizer=optimizer, x=x):
            logits = model(x)
            logits.backward(torch.ones_like(logits))
            del logits
            optimizer.step()
            optimizer.zero_grad()

        step()  # the first makes the momentum
        before = 2 * sum(p.nbytes for p in model.parameters()) + x.nbytes  # weights, momentum, images
        assert predicted[f"training step, {way}"] == pytest.approx(before + peak_memory(step), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "networks"),
    [
        (("agc",), ["nfnet_timm", "timm", "floor"]),
        (
            ("inference", "--batch", "1", "--pixels", "32", "--profile"),
            ["nfnet_timm", "nfnet_timm, reparameterized", "timm", "floor"],
        ),
        (("train", "--batch", "2", "--pixels", "32"), ["nfnet_timm", "nfnet_timm, recompute_acts", "timm", "floor"]),
    ],
)
def test_each_network_is_measured(results, command, networks):
    (record,) = results("speed.py", *command, "--repeat", "1")
    assert [row["network"] for row in record["rows"]] == networks
    assert all(len(row["milliseconds"]) == 1 and min(row["milliseconds"]) > 0 for row in record["rows"])


@pytest.mark.slow
def test_an_error_is_collected_from_the_test_that_measures_it(results):
    found = results("parity.py", "-k", "nf_regnet_b0_64x64")
    recorded = json.loads((ROOT / "benchmarks" / "results" / "parity.json").read_text())
    assert list(found) == ["nf_regnet_b0_64x64"]
    assert 1 / 3 < found["nf_regnet_b0_64x64"] / recorded["nf_regnet_b0_64x64"] < 3


def test_per_sample_gradients_are_compared_with_plain_convolutions(results):
    pytest.importorskip("opacus")
    (record,) = results("privacy.py", "--batch", "1", "--pixels", "32", "--repeat", "1")
    assert set(record["ratios"]) == set(record["growth"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("speed.py", ("train", "--batch", "0"), "--batch: '0'"),
        ("speed.py", ("agc", "--repeat", "x"), "--repeat: 'x'"),
        ("speed.py", ("agc", "--json", "nowhere/out.json"), "nowhere"),
        ("speed.py", ("agc", "--device", "cuda"), "--device cuda"),
        ("step_time.py", ("--device", "cuda"), "--device cuda"),
        ("memory.py", ("--name", "resnet50"), "--name resnet50"),
        ("memory.py", ("--json", "."), ". is a folder"),
        ("launches.py", ("--pixels", "-1"), "--pixels: '-1'"),
    ],
)
def test_a_mistake_is_an_error_that_names_the_option(run_script, monkeypatch, name, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, error = run_script(FOLDER / name, *arguments)
    assert (status, out) == (2, "")
    assert message in error.splitlines()[-1]


def test_runs_at_the_same_time_keep_the_results_of_both_and_a_later_run_replaces_its_own(tmp_path):
    add_record = runpy.run_path(str(ROOT / FOLDER / "records.py"))["add_record"]
    file = tmp_path / "results.json"

    def run(settings, value):
        add_record(file, {"settings": settings, "value": value}, lambda old: old["settings"] == settings)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(20), range(20)))
    run(3, 100)
    records = json.loads(file.read_text())
    assert {r["settings"]: r["value"] for r in records} == {i: i if i != 3 else 100 for i in range(20)}
    assert len(records) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("content", ["not json", '{"a": 1}'])
def test_a_file_without_earlier_results_is_refused_before_anything_is_measured(run_script, tmp_path, content):
    file = tmp_path / "results.json"
    file.write_text(content)
    status, _, error = run_script(FOLDER / "speed.py", "agc", "--json", file)
    assert status == 2
    assert str(file) in error.splitlines()[-1]
    assert file.read_text() == content

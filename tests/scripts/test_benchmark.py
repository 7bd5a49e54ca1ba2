"""What scripts/benchmark.py says is what it measured."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from golden import ROOT

SCRIPTS = ROOT / "scripts"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def run(monkeypatch, *args: str) -> None:
    import benchmark

    monkeypatch.setattr(sys, "argv", ["benchmark.py", *args])
    benchmark.main()


RECORD = {
    "benchmark": "train",
    "what": "Training step",
    "machine": "a machine",
    "settings": "f0",
    "rows": [
        {"case": "batch 2", "network": "nfnet_timm", "milliseconds": [1.0, 2.0, 9.0], "peak_mib": 3.4, "kept_mib": 2.0},
        {"case": "batch 2", "network": "timm", "milliseconds": [3.0, 3.0, 4.0], "peak_mib": 5.6, "kept_mib": 4.0},
        {"case": "batch 2", "network": "floor", "milliseconds": [1.0, 1.0, 1.0], "peak_mib": 1.0, "kept_mib": 1.0},
    ],
}


def test_ratios_are_those_of_each_repetition():
    from benchmark import markdown

    lines = markdown(RECORD).splitlines()
    assert lines[-3] == "| 2 | nfnet_timm | 2.0 (1.0 to 9.0) | 1.50 (0.44 to 3.00) | 2.00 (1.00 to 9.00) | 3 | 2 |"
    assert lines[-1] == "| 2 | floor | 1.0 (1.0 to 1.0) | 3.00 (3.00 to 4.00) | 1.00 (1.00 to 1.00) | 1 | 1 |"


def test_the_profile_has_the_slowest_operations_first():
    from benchmark import markdown

    operations = [{"all": 9.0, "aten::mul": 1.0}, {"all": 8.0, "aten::conv2d": 7.5}]
    rows = [{**row, "operations": times} for row, times in zip(RECORD["rows"][:2], operations, strict=True)]
    lines = markdown({**RECORD, "rows": rows}).splitlines()
    assert lines[-3:] == ["| all | 9.0 | 8.0 |", "| conv2d | - | 7.5 |", "| mul | 1.0 | - |"]


def test_the_readmes_table_has_timm_and_the_floor_beside_ours():
    from render_tables import speed_table

    assert speed_table([RECORD]).splitlines()[-1] == "| F0, training step, batch 2 | 2 | 3 | 1 | 1.50 | 2 | 4 |"
    assert len(speed_table([{**RECORD, "settings": "f0, bfloat16"}]).splitlines()) == 2


def test_memory_is_what_was_allocated():
    from benchmark_networks import memory

    def allocate() -> None:
        kept = torch.empty(2**20)
        del kept
        torch.empty(2**18)

    assert memory(allocate, "cpu") == {"peak_mib": 4.0}


def test_the_floor_computes_what_timms_network_does():
    from benchmark_networks import floor_of, same_weights

    ours, theirs = (network.eval() for network in same_weights("f0"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(x)
        # But for timm's eps of the variance, which the floor's weights are made without.
        assert (floor_of(theirs)(x) - expected).norm() < 0.05 * expected.norm()
        assert (ours(x) - expected).norm() < 0.1 * expected.norm()  # and its erf


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "--batch", "0"), "argument --batch: '0': expected a whole number of at least 1"),
        (("agc", "--repeat", "x"), "argument --repeat: 'x': expected"),
        (("agc", "--json", "nowhere/out.json"), "there is no folder nowhere; make it first"),
        (("agc", "--device", "cuda"), "torch finds no GPU here"),
    ],
)
def test_a_mistake_is_said_before_anything_is_measured(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "networks"),
    [
        (("inference", "--profile", "--batch", "1"), ["nfnet_timm", "nfnet_timm, reparameterized", "timm", "floor"]),
        (("train", "--batch", "2"), ["nfnet_timm", "nfnet_timm, recompute_acts", "timm", "floor"]),
        (("agc",), ["nfnet_timm", "timm", "floor"]),
    ],
)
def test_each_network_is_measured_and_a_later_run_takes_the_place_of_an_earlier(
    monkeypatch, tmp_path, capsys, command, networks
):
    pixels = () if command == ("agc",) else ("--pixels", "32")
    for _ in range(2):
        run(monkeypatch, *command, *pixels, "--repeat", "2", "--json", str(tmp_path / "out.json"))
    (record,) = json.loads((tmp_path / "out.json").read_text())
    assert [row["network"] for row in record["rows"]] == networks
    assert all(len(row["milliseconds"]) == 2 and min(row["milliseconds"]) > 0 for row in record["rows"])
    assert f"torch {torch.__version__}" in capsys.readouterr().out


def test_runs_that_end_at_the_same_time_lose_no_figures(tmp_path):
    from common import add_record

    file = tmp_path / "figures.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add_record(file, {"run": i}, lambda earlier: False), range(16)))
    assert sorted(record["run"] for record in json.loads(file.read_text())) == list(range(16))
    add_record(file, {"run": "last"}, lambda earlier: earlier["run"] != 3)
    assert json.loads(file.read_text()) == [{"run": 3}, {"run": "last"}]
    assert list(tmp_path.iterdir()) == [file]

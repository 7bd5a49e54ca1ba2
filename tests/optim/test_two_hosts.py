"""Training on two hosts, which share only a network, gives the weights of one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_hosts import hosts, torchrun

WORKER = Path(__file__).parents[1] / "support" / "distributed_worker.py"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_hosts_train_to_the_weights_of_one_process(how, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(WORKER.parent))
    subprocess.run([sys.executable, WORKER, "single", tmp_path / "single.pt"], check=True, timeout=120)
    with hosts():
        runs = [torchrun(host, WORKER, how, tmp_path / "out.pt") for host in (0, 1)]
        outputs = [run.communicate(timeout=240)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)
    expected = torch.load(tmp_path / "single.pt", weights_only=False)["parameters"]
    for name, p in torch.load(tmp_path / "out.pt", weights_only=False)["parameters"].items():
        torch.testing.assert_close(p.view_as(expected[name]), expected[name], rtol=1e-5, atol=1e-5, msg=name)

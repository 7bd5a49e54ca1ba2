"""Several processes train to the parameters of one process on the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import train_alone
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard

WORKER = Path(__file__).parents[1] / "support" / "distributed_worker.py"
WAYS = ("ddp", "fsdp2", "fsdp2-groups", "fsdp2-wrapped")
PROCESSES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Train in every way, each in the same four processes, and return the folder of the results."""
    folder = tmp_path_factory.mktemp("distributed")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, WORKER, folder, *WAYS, "nonfinite", "fsdp1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone():
    return train_alone()


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_three_steps_equal_those_of_one_process(folder, alone, how):
    result = torch.load(folder / f"{how}.pt", weights_only=False)
    assert set(result["parameters"]) == set(alone)
    for name, p in alone.items():
        difference = (result["parameters"][name].reshape(p.shape) - p).norm() / p.norm().clamp(min=1e-3)
        assert difference < 1e-5, name
    # Each process clips its own rows of kernels and matrices. All vectors together take one collective in each step.
    assert result["collectives"] == ([0] * 3 if how == "ddp" else [1] * 3)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_on_one_rank_raises_on_all(folder):
    """A rank that continued would wait for the others without end."""
    for rank in range(PROCESSES):
        found = torch.load(folder / f"nonfinite.{rank}.pt")
        assert found[0] == ""
        assert all("a gradient is NaN" in error for error in found[1:])


@pytest.mark.slow
def test_parameters_flattened_by_fsdp1_are_refused(folder):
    found = torch.load(folder / "fsdp1.0.pt")
    assert len(found) == 2
    assert all("was flattened by FSDP1, which leaves no rows to clip" in error for error in found)


def test_skip_gains_load_into_either_shape(tiny):
    model = tiny()
    prepared = tiny().vectorize_skip_gains()
    assert prepared.stages[0][0].skipinit_gain.shape == (1,)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(prepared(x), model(x))
    prepared.load_state_dict(model.state_dict())
    model.load_state_dict(prepared.state_dict())
    assert model.stages[0][0].skipinit_gain.shape == ()


def test_weights_of_one_process_load_into_a_sharded_network(tiny):
    """torch's set_model_state_dict shards the arrays, but not the scalars, which skip gains are in one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        saved, model = tiny().state_dict(), fully_shard(tiny().vectorize_skip_gains())
        for i, (name, array) in enumerate(saved.items()):
            if name.endswith("skipinit_gain"):
                array.fill_(i)
        set_model_state_dict(model, dict(saved), options=StateDictOptions(full_state_dict=True))
        loaded = {name: p.full_tensor() for name, p in model.named_parameters()}
    finally:
        torch.distributed.destroy_process_group()
    for name, array in saved.items():
        assert torch.equal(loaded[name].reshape(array.shape), array), name

"""Training in several processes: each takes three steps in each way; rank 0 saves the parameters.

``launch`` runs this file in the processes, and returns what rank 0 has saved.
"""

import os
import subprocess
import sys

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from golden import TINY
from timm.optim import create_optimizer_v2
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_module
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from nfnet_timm import optim
from nfnet_timm.models.block import NormFreeBlock

PROCESSES, GLOBAL_BATCH, STEPS = 4, 8, 3


def launch(folder, *ways: str) -> dict:
    """Train in all ``ways`` in the same processes, because their start takes most of the time."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, __file__, folder, *ways],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return {how: torch.load(folder / f"{how}.pt", weights_only=False) for how in ways}


def build() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("nfnet_f0", **TINY)
    for name, p in model.named_parameters():
        if name.endswith("skipinit_gain"):
            nn.init.constant_(p, 0.5)
    return model


def train_alone() -> dict[str, nn.Parameter]:
    """Return the parameters after three steps of one process."""
    model = build()
    train(model, create_optimizer_v2(model, "agc-sgd", lr=0.1, weight_decay=1e-4), 0, 1)
    return dict(model.named_parameters())


def train(model, optimizer, rank: int, world: int) -> list[int]:
    """Take three steps on this rank's share of each batch; return the number of collectives of each optimizer step."""
    counts = []
    share = GLOBAL_BATCH // world
    for step in range(STEPS):
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(GLOBAL_BATCH, 3, 32, 32, generator=g), torch.randint(10, (GLOBAL_BATCH,), generator=g)
        mine = slice(rank * share, (rank + 1) * share)
        # The factor makes the gradients so large that most units are clipped.
        (100 * F.cross_entropy(model(x[mine]), y[mine])).backward()
        with CommDebugMode() as comms:
            optimizer.step()
        counts.append(comms.get_total_counts())
        optimizer.zero_grad()
    return counts


def train_clipped(how: str, rank: int, mesh) -> tuple[nn.Module, list[int]]:
    """Train with adaptive clipping; return the network and the number of collectives of each optimizer step."""
    model = build()
    if how == "ddp":
        optimizer = create_optimizer_v2(model, "agc-sgd", lr=0.1, weight_decay=1e-4)
        wrapped = DistributedDataParallel(model)
    else:
        model.vectorize_skip_gains()
        for module in model.modules():
            if isinstance(module, NormFreeBlock):
                fully_shard(module, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
        if how == "fsdp2-groups":
            optimizer = optim.create_optimizer(model, "sgd", lr=0.1, weight_decay=1e-4)
        else:
            optimizer = create_optimizer_v2(model, "agc-sgd", lr=0.1, weight_decay=1e-4)
    return model, train(wrapped, optimizer, rank, mesh.size())


def sam_case():
    """Return a network, and for each process two samples and their targets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    return model, torch.randn(PROCESSES, 2, 5), torch.randn(PROCESSES, 2, 3)


def train_with_sam(how: str, rank: int, mesh) -> nn.Module:
    """Take three steps of SAM on this rank's samples; return the network."""
    model, x, y = sam_case()
    x, y = x[rank], y[rank]
    if how == "sam-parts":  # each process has a part of the sum that is the gradient
        model = distribute_module(model, mesh)
        x, y = (DTensor.from_local(t, mesh, [Shard(0)]) for t in (x, y))
    else:
        model = fully_shard(model) if how == "sam-fsdp2" else DistributedDataParallel(model)
    sam = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.3)

    def closure():
        loss = (model(x) - y).square().sum() / y.numel()  # the mean; torch multiplies the gradients of a DTensor's mean
        loss.backward()

    def ascent():
        with model.no_sync():
            closure()

    for _ in range(STEPS):
        sam.step(closure, ascent if how == "sam-unsynchronised" else None)
    return getattr(model, "module", model)


def main() -> None:
    """Write ``FOLDER/HOW.pt`` for each way of training: ``distributed_worker.py FOLDER HOW...``."""
    folder, *ways = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    for how in ways:
        if how.startswith("sam"):
            model, counts = train_with_sam(how, rank, mesh), None
        else:
            model, counts = train_clipped(how, rank, mesh)
        parameters = {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach() for name, p in model.named_parameters()
        }
        gathered = [None] * world
        dist.all_gather_object(gathered, parameters)
        for name, p in parameters.items():
            assert all(p.equal(other[name]) for other in gathered), f"the processes have different values of {name}"
        if rank == 0:
            torch.save({"parameters": parameters, "collectives": counts}, f"{folder}/{how}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Skip the interpreter's shutdown: a rank once aborted there after its work ("terminate called without an active
    # exception").
    os._exit(0)


if __name__ == "__main__":
    main()

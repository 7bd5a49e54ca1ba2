"""One rank of test_distributed.py: takes three steps in each way; rank 0 saves parameters and collective counts."""

import os
import sys

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from golden import TINY
from timm.optim import create_optimizer_v2
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from nfnet_timm import optim
from nfnet_timm.models.block import NormFreeBlock

GLOBAL_BATCH, STEPS = 8, 3


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("nfnet_f0", **TINY)
    for name, p in model.named_parameters():
        if name.endswith("skipinit_gain"):
            torch.nn.init.constant_(p, 0.5)
    return model


def train_alone() -> dict[str, torch.nn.Parameter]:
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
        if dist.is_initialized():
            with CommDebugMode() as comms:
                optimizer.step()
            counts.append(comms.get_total_counts())
        else:
            optimizer.step()
        optimizer.zero_grad()
    return counts


def main() -> None:
    """Write ``FOLDER/HOW.pt`` for each way of training: ``distributed_worker.py FOLDER HOW...``."""
    folder, *ways = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    for how in ways:
        model = build()
        if how == "ddp":
            optimizer = create_optimizer_v2(model, "agc-sgd", lr=0.1, weight_decay=1e-4)
            wrapped = DistributedDataParallel(model)
        else:
            mesh = init_device_mesh("cpu", (world,))
            model.vectorize_skip_gains()
            for module in model.modules():
                if isinstance(module, NormFreeBlock):
                    fully_shard(module, mesh=mesh)
            wrapped = fully_shard(model, mesh=mesh)
            if how == "fsdp2":
                optimizer = create_optimizer_v2(model, "agc-sgd", lr=0.1, weight_decay=1e-4)
            elif how == "fsdp2-wrapped":  # the wrapper hides the network
                optimizer = create_optimizer_v2(torch.nn.Sequential(model), "agc-sgd", lr=0.1, weight_decay=1e-4)
            else:
                optimizer = optim.create_optimizer(model, "sgd", lr=0.1, weight_decay=1e-4)
        counts = train(wrapped, optimizer, rank, world)
        parameters = {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach() for name, p in model.named_parameters()
        }
        if rank == 0:
            torch.save({"parameters": parameters, "collectives": counts}, f"{folder}/{how}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # Skip the interpreter's shutdown: a rank once aborted there after its work ("terminate called without an active
    # exception").
    os._exit(0)


if __name__ == "__main__":
    main()

"""The networks that speed.py compares, and the time and memory of their forward pass and training step."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2dSame
from timm.models import model_parameters
from timm.optim import create_optimizer_v2
from timm.utils import dispatch_clip_grad, reparameterize_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

import nfnet_timm  # noqa: F401  registers the networks, also where the package is not installed
from nfnet_timm.kernels.standardize import standardize


def inference(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each batch size and network: ours as trained and reparameterized, timm's, and the floor."""
    ours, theirs = same_weights()
    networks = {"nfnet_timm": ours, "nfnet_timm, reparameterized": reparameterize_model(ours), "timm": theirs}
    networks["floor"] = floor_of(theirs)

    def forward(network: nn.Module, x: Tensor, _: Tensor) -> None:
        with torch.inference_mode(), autocast(args):
            network(x)

    return measured({name: partial(forward, placed(net.eval(), args)) for name, net in networks.items()}, args)


def training(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each batch size and network: a step of SGD with adaptive clipping; the floor is not clipped.

    timm's clips as its train.py does. The rate is low, as the labels are random.
    """
    ours, theirs = same_weights()
    again = timm.create_model("nfnet_f0", recompute_acts=True)
    again.load_state_dict(ours.state_dict())
    networks = {"nfnet_timm": ours, "nfnet_timm, recompute_acts": again, "timm": theirs, "floor": floor_of(theirs)}

    def step(name: str, network: Any, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        with autocast(args):
            loss = F.cross_entropy(network(x), y)
        with record_function("end of forward"):
            loss = loss.clone()
        loss.backward()
        if name == "timm":
            dispatch_clip_grad(model_parameters(networks[name], exclude_head=True), 0.01, "agc")
        optimizer.step()
        optimizer.zero_grad()

    steps: dict[str, Callable[[Tensor, Tensor], None]] = {}
    for name, network in networks.items():
        opt = "agc-sgd" if name.startswith("nfnet_timm") else "sgd"
        optimizer = create_optimizer_v2(network.to(args.device), opt, lr=1e-4, momentum=0.9, weight_decay=2e-5)
        steps[name] = partial(step, name, placed(network.train(), args), optimizer)
    return measured(steps, args)


def with_skip_gains(name: str, gain: float = 0.5, **kwargs: Any) -> nn.Module:
    """Return a network with random weights whose skip gains are not zero, so that its branches reach the output."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **kwargs)
    for key, p in model.named_parameters():
        if key.endswith("skipinit_gain"):
            nn.init.constant_(p, gain)
    return model


def same_weights() -> tuple[nn.Module, nn.Module]:
    """Return our F0 and timm's with the same random weights."""
    ours = with_skip_gains("nfnet_f0")
    theirs = timm.create_model("dm_nfnet_f0")
    theirs.load_state_dict({k: v.view(-1, 1, 1, 1) if k.endswith(".gain") else v for k, v in ours.state_dict().items()})
    return ours, theirs


def floor_of(theirs: nn.Module) -> nn.Module:
    """Return timm's network with a plain convolution in place of each that standardizes its weight."""
    floor = copy.deepcopy(theirs)
    for name, module in list(floor.named_modules()):
        if isinstance(module, ScaledStdConv2dSame):
            plain: Any = Conv2dSame if module.stride[0] > 1 else nn.Conv2d
            padding = 0 if module.stride[0] > 1 else module.kernel_size[0] // 2
            shape = module.in_channels, module.out_channels, module.kernel_size, module.stride, padding
            conv: Any = plain(*shape, groups=module.groups)
            conv.weight.data = standardize(module.weight, module.gain.flatten(), 1.0, 1e-4).detach()
            conv.bias.data.copy_(module.bias)
            floor.set_submodule(name, conv)
    return floor


def placed(network: nn.Module, args: argparse.Namespace) -> Any:
    """Return ``network`` on its device, in its memory format, compiled if asked for."""
    network = network.to(args.device).to(memory_format=layout(args))
    return torch.compile(network) if args.compile else network


def layout(args: argparse.Namespace) -> torch.memory_format:
    """Return the memory format of images and weights."""
    return torch.channels_last if args.channels_last else torch.contiguous_format


def autocast(args: argparse.Namespace) -> torch.autocast:
    """Return the context in which networks run."""
    return torch.autocast(args.device, torch.bfloat16, args.dtype == "bfloat16")


def measured(functions: dict[str, Callable[[Tensor, Tensor], None]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time ``functions`` of images and labels in turn, then measure the memory of each, for every batch size."""
    rows = []
    for batch in args.batch:
        x = torch.randn(batch, 3, args.pixels, args.pixels).to(args.device, memory_format=layout(args))
        y = torch.randint(1000, (batch,), device=args.device)
        times: dict[str, list[float]] = {name: [] for name in functions}
        passes: dict[str, Callable[[], None]] = {name: partial(function, x, y) for name, function in functions.items()}
        timed = {name: captured(run) for name, run in passes.items()} if args.cuda_graph else passes
        for i in range(args.repeat + 2):  # the first two are not counted
            # Back and forth: the caches that a network finds depend on the network before it.
            for name, run in list(timed.items())[:: 1 if i % 2 else -1]:
                start = now(args.device)
                run()
                if i >= 2:
                    times[name].append(1000 * (now(args.device) - start) / batch)
        del timed  # and the memory of the graphs
        for name, run in passes.items():
            row: dict[str, Any] = {"case": f"batch {batch}", "network": name, "milliseconds": times[name]}
            rows.append({**row, **peak_memory(run, args.device)})
    return rows


def captured(function: Callable[[], None]) -> Callable[[], None]:
    """Return a function that replays ``function`` as one CUDA graph: its time is the device's, without the host's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles kernels and creates the optimizer's state
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def now(device: str) -> float:
    """Return the time in seconds, after ``device`` has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(function: Callable[[], None], device: str) -> dict[str, float]:
    """Return the MiB that ``function`` allocates at its peak and, where it trains, has kept at the end of its forward.

    Both count from its start, so that weights and the optimizer's state are not in them.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    kind = torch.autograd.DeviceType.CUDA if device == "cuda" else torch.autograd.DeviceType.CPU
    forward = [event.start_ns() for event in events if event.name() == "end of forward"]
    allocations = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]" and e.device_type() == kind]
    total = peak = kept = 0
    for time_ns, size in sorted(allocations):
        total += size
        peak = max(peak, total)
        if forward and time_ns < forward[0]:
            kept = total
    return {"peak_mib": peak / 2**20, **({"kept_mib": kept / 2**20} if forward else {})}

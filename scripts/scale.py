"""What many GPUs would do, on paper: communication of a training step, memory under FSDP2, and the step on 8, 64, 512.

    python scripts/scale.py
    python scripts/scale.py --step-ms nfnet_f1=95 --images 64 --network-gbps 400 --dtype bfloat16

Every assumption is an argument. By default a device takes the published time of a step of 32 images on one V100 in
float16 (arXiv 2102.06171, table 3), 8 devices to a machine share NVLink, and machines a network of 100 Gbit/s each way
for each machine. Gradients are summed by rings, first in the machine and then between machines; a share of the backward
pass, which is two thirds of the step, hides that. Nothing here is measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import timm
from common import positive

from nfnet_timm.hub.published import load_published
from nfnet_timm.models.variants import VARIANTS

DEVICES = (1, 8, 64, 512)
NETWORKS = [name for name in VARIANTS if name.startswith("nfnet_f") and not name.endswith("_plus")]


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the machines.

    Args:
        per_machine: Devices in a machine.
        nvlink_gbs: Gigabytes a second that a device sends to its neighbour in the machine.
        network_gbps: Gigabits a second that a machine sends to another.
        hidden: Share of the backward pass during which gradients are summed.
        latency_us: Microseconds of one collective on one link.
        gradient_bytes: Of each number of a gradient: 4 in float32, 2 in bfloat16.
    """

    per_machine: int = 8
    nvlink_gbs: float = 100.0
    network_gbps: float = 100.0
    hidden: float = 0.9
    latency_us: float = 20.0
    gradient_bytes: int = 4

    def sum_ms(self, numbers: int, devices: int) -> float:
        """Return the milliseconds that a sum of ``numbers`` over all devices takes."""
        inside, machines = min(devices, self.per_machine), -(-devices // self.per_machine)
        size = numbers * self.gradient_bytes
        ms = 0.0
        for ring, bytes_a_second in ((inside, self.nvlink_gbs * 1e9), (machines, self.network_gbps * 1e9 / 8)):
            if ring > 1:  # each link carries all but a share of it twice: to sum, and to hand out the sums
                ms += 2 * (ring - 1) / ring * size / bytes_a_second * 1e3 + 2 * (ring - 1) * self.latency_us / 1e3
        return ms

    def step_ms(self, alone_ms: float, numbers: int, devices: int) -> float:
        """Return the milliseconds of a step that takes ``alone_ms`` on one device."""
        return alone_ms + max(0.0, self.sum_ms(numbers, devices) - self.hidden * alone_ms * 2 / 3)


def counts(name: str) -> tuple[int, int]:
    """Return how many parameters a network has, and how many of its tensors are vectors."""
    params = list(timm.create_model(name, device="meta").parameters())
    return sum(p.numel() for p in params), sum(p.dim() <= 1 for p in params)


def communication_table(cluster: Cluster) -> str:
    """Return what a step sends: gradients, and with FSDP2 the norms of vectors for adaptive clipping."""
    lines = ["| | parameters | gradients, MB | clipping under FSDP2, kB |", "|---|---:|---:|---:|"]
    for name in NETWORKS:
        parameters, vectors = counts(name)
        # A weight's and a gradient's norm of each vector, in float64, in one collective; rows lie whole.
        lines.append(
            f"| `{name}` | {parameters / 1e6:.1f} M | {parameters * cluster.gradient_bytes / 1e6:.0f} | "
            f"{vectors * 2 * 8 / 1e3:.1f} |"
        )
    return "\n".join(lines) + "\n"


def memory_table() -> str:
    """Return the bytes on each device of weights, gradients, momentum and moving average, all float32."""
    header = " | ".join(f"{devices} device{'s' if devices > 1 else ''}" for devices in DEVICES)
    lines = [f"| GB on each of | {header} |", "|---|" + "---:|" * len(DEVICES)]
    for name in NETWORKS:
        parameters, _ = counts(name)
        sizes = " | ".join(f"{parameters * 4 * 4 / devices / 1e9:.2f}" for devices in DEVICES)
        lines.append(f"| `{name}` | {sizes} |")
    return "\n".join(lines) + "\n"


def scaling_table(cluster: Cluster, alone: dict[str, float]) -> str:
    """Return the step under DDP, and its efficiency: how much of a device's speed alone is left."""
    header = " | ".join(f"{devices} device{'s' if devices > 1 else ''}" for devices in DEVICES)
    lines = [f"| ms, efficiency | {header} |", "|---|" + "---:|" * len(DEVICES)]
    for name, alone_ms in alone.items():
        parameters, _ = counts(name)
        steps = [cluster.step_ms(alone_ms, parameters, devices) for devices in DEVICES]
        lines.append(f"| `{name}` | " + " | ".join(f"{ms:.0f}, {100 * alone_ms / ms:.0f} %" for ms in steps) + " |")
    return "\n".join(lines) + "\n"


def tpu_table(images: int) -> str:
    """Return what the paper's 32 TPUv3 cores imply."""
    lines = [
        "| | ms of a step | images a second | TFLOP/s of a core | gradients, GB/s of a core at least |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, released in load_published()["checkpoints"].items():
        network = name.split(".")[0]
        variant, ms = VARIANTS[network], released["tpuv3_ms"]
        # Published multiply-adds are of the test size; a step is three forward passes, of two operations each.
        share = (variant.train_size / variant.test_size) ** 2
        tera = released["multiply_adds"] * 1e9 * share * 2 * 3 * images / ms / 1e9
        # A ring over 32 cores sends 31 / 32 of the gradients twice; bfloat16, as the authors compute.
        traffic = 2 * 31 / 32 * released["parameters"] * 1e6 * 2 / (ms / 1e3) / 1e9
        sam = ", with SAM" if network == "nfnet_f6" else ""
        lines.append(f"| `{network}`{sam} | {ms:.0f} | {32 * images / ms * 1e3:,.0f} | {tera:.0f} | {traffic:.1f} |")
    return "\n".join(lines) + "\n"


def published_steps() -> dict[str, float]:
    """Return the published milliseconds of a step of 32 images on one V100."""
    checkpoints = load_published()["checkpoints"]
    return {name.split(".")[0]: c["v100_ms"] for name, c in checkpoints.items() if "v100_ms" in c}


def _step(text: str) -> tuple[str, float]:
    name, _, ms = text.partition("=")
    try:
        value = float(ms)
    except ValueError:
        value = 0.0
    if name not in NETWORKS or not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=MILLISECONDS, such as nfnet_f1=133.9")
    return name, value


def main() -> None:
    """Print the tables for the assumptions on the command line."""
    assumed = Cluster()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--step-ms", type=_step, nargs="+", metavar="NAME=MS", help="measured on one device, instead")
    parser.add_argument("--per-machine", type=positive, default=assumed.per_machine, help="devices (%(default)s)")
    parser.add_argument("--nvlink-gbs", type=float, default=assumed.nvlink_gbs, help="GB/s of a device (%(default)s)")
    parser.add_argument("--network-gbps", type=float, default=assumed.network_gbps, help="of a machine (%(default)s)")
    parser.add_argument("--hidden", type=float, default=assumed.hidden, help="share of backward (%(default)s)")
    parser.add_argument("--latency-us", type=float, default=assumed.latency_us, help="of a collective (%(default)s)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of gradients (%(default)s)"
    )
    parser.add_argument("--images", type=positive, default=32, help="on each TPU core (%(default)s)")
    args = parser.parse_args()
    for option in ("nvlink_gbs", "network_gbps"):
        if not getattr(args, option) > 0:
            parser.error(f"--{option.replace('_', '-')} {getattr(args, option)}: expected more than 0")
    if not 0 <= args.hidden <= 1 or args.latency_us < 0:
        parser.error(f"--hidden {args.hidden} --latency-us {args.latency_us}: expected 0 to 1, and at least 0")
    size = 2 if args.dtype == "bfloat16" else 4
    cluster = Cluster(args.per_machine, args.nvlink_gbs, args.network_gbps, args.hidden, args.latency_us, size)
    print("What a step sends\n", communication_table(cluster), sep="\n")
    print("Memory under FSDP2, without activations\n", memory_table(), sep="\n")
    print(
        "A step under DDP\n",
        scaling_table(cluster, dict(args.step_ms) if args.step_ms else published_steps()),
        sep="\n",
    )
    print("What the paper's 32 TPUv3 cores imply\n", tpu_table(args.images), sep="\n")


if __name__ == "__main__":
    main()

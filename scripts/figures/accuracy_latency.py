"""Draws ImageNet accuracy against the time of a training step, the figure of arXiv 2102.06171.

    python scripts/benchmarks/step_time.py --json times.json            measures on your machine
    python scripts/figures/accuracy_latency.py --json times.json        draws accuracy-latency/accuracy_latency.png

Without --json, draws benchmarks/results/step_time.json, which was measured on two CPU cores. Prints how many
times as long as NFNet-F1 EfficientNet-B7 takes, which has the same published top-1: 8.7 on TPUv3 in the paper.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import figures
from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "step_time.json"
COLORS = {"NFNet": "tab:blue", "EfficientNet": "tab:orange"}


def main() -> None:
    """Draw, and print the paper's ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=RESULTS, help="measured times (%(default)s)")
    parser.add_argument("--out", type=figures.folder, default=Path("accuracy-latency"), help="folder (%(default)s)")
    args = parser.parse_args()
    record = figures.read(parser, args.json)
    figures.write_picture(parser, draw, record, args.out / "accuracy_latency.png")
    rows = {row["name"]: row for row in record["rows"]}
    pairs = zip(rows["tf_efficientnet_b7"]["milliseconds"], rows["nfnet_f1"]["milliseconds"], strict=True)
    low, middle, high = _quartiles([b7 / f1 for b7, f1 in pairs])
    print(
        f"EfficientNet-B7 takes {middle:.1f} (middle half: {low:.1f} to {high:.1f}) times as long as NFNet-F1, "
        "which has the same published top-1 of 84.7; the paper: 8.7 on TPUv3"
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw top-1 over milliseconds per image, a line for each family."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for family in dict.fromkeys(row["family"] for row in record["rows"]):
        rows = sorted((row for row in record["rows"] if row["family"] == family), key=lambda row: row["top1"])
        color = COLORS.get(family, "tab:green" if "NFNet" in family else "tab:grey")
        xs, ys = [median(row["milliseconds"]) for row in rows], [row["top1"] for row in rows]
        spread = list(zip(*map(_spread, rows), strict=True))
        axes.errorbar(xs, ys, xerr=spread, color=color, linewidth=1.5 if len(rows) > 1 else 0, elinewidth=1)
        for x, row in zip(xs, rows, strict=True):
            published = row["by"] == "published"
            axes.plot(x, row["top1"], "o", color=color, markerfacecolor=color if published else "white", markersize=7)
            label = row["name"].removeprefix("nfnet_").removeprefix("tf_efficientnet_").replace("_", " ")
            axes.annotate(label, (x, row["top1"]), (6, -11), textcoords="offset points", fontsize=9, color=color)
    axes.plot([], [], "o", color="black", label="top-1 published")
    axes.plot([], [], "o", color="black", markerfacecolor="white", label="top-1 measured by timm")
    axes.set(
        xscale="log",
        xlabel=f"milliseconds for each image of a training step, batch {record['batch']} (median, middle half)",
        ylabel="ImageNet top-1 (%)",
    )
    axes.set_title(
        f"Further left is faster to train for its accuracy ({record['machine']}, {record['dtype']})", fontsize=11
    )
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000) if _within(t, record)]
    axes.set_xticks(ticks, labels=[f"{t:,}" for t in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right")
    axes.margins(x=0.12)
    figures.clean(axes)
    figure.savefig(path)


def _spread(row: dict[str, Any]) -> tuple[float, float]:
    """Return how far the middle half of the times reaches below and above their median."""
    low, middle, high = _quartiles(row["milliseconds"])
    return middle - low, high - middle


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = quantiles(values, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return low, middle, high


def _within(tick: float, record: dict[str, Any]) -> bool:
    times = [ms for row in record["rows"] for ms in row["milliseconds"]]
    return min(times) / 2 < tick < max(times) * 2


if __name__ == "__main__":
    main()

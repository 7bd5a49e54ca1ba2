"""What the scripts that draw a picture have in common: figures into JSON, and the picture from that alone."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import explain_module, missing, write_text

from nfnet_timm.publish.staging import written_beside

try:
    import matplotlib
    import sklearn  # noqa: F401  # the digits
    from matplotlib.axes import Axes
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(missing(error, "demo"))

__all__ = ["clean", "in_processes", "run"]

Record = dict[str, Any]

matplotlib.rcParams["savefig.dpi"] = 120


def run(
    parser: argparse.ArgumentParser,
    name: str,
    measure: Callable[[argparse.Namespace], Record],
    draw: Callable[[Record, Path], None],
) -> Record:
    """Measure, write ``name``.json, draw ``name``.png from it, and return the figures.

    With --from-json nothing is measured. Ctrl-C ends the program, and nothing is written then.
    """
    parser.add_argument("--out", type=Path, default=Path(name.replace("_", "-")), help="folder (%(default)s)")
    parser.add_argument("--from-json", action="store_true", help="draw again from the figures that are there")
    args = parser.parse_args()
    figures, picture = args.out / f"{name}.json", args.out / f"{name}.png"
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file: expected a folder, new or there")
    if args.from_json and not figures.exists():
        parser.error(f"--from-json: there is no {figures}; leave the option out to make it")
    try:
        text = figures.read_text(encoding="utf-8") if args.from_json else json.dumps(measure(args), indent=1) + "\n"
        try:
            record = json.loads(text)  # in any case, so that the same figures give the same picture
        except ValueError as error:
            parser.error(f"--from-json: {figures} is not JSON ({error}); leave the option out to make it")
        with written_beside(picture, overwrite=True) as partial:
            draw(record, partial)
            if not args.from_json:
                write_text(figures, text)
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing was written")
    print(f"picture: {picture}, figures: {figures}")
    return record


def in_processes(function: Callable[[Record], float], settings: list[Record], processes: int) -> list[float]:
    """Return what ``function`` gives for each setting, several at a time, with a thread each and a progress bar."""
    with multiprocessing.get_context("spawn").Pool(processes, _alone) as pool:  # which ends them where this is left
        return list(tqdm(pool.imap(function, settings), total=len(settings), unit="run"))


def _alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    torch.set_num_threads(1)


def clean(axes: Axes) -> None:
    """Take away what is not data."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    explain_module(__doc__, "scripts/agc_stability.py or another script that draws")

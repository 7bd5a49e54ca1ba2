"""What the scripts of this folder share: options, a JSON file with the results, and the picture made from that file."""

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

from nfnet_timm.installation import to_install

try:
    import matplotlib
    import sklearn  # noqa: F401  # the digits
    from matplotlib.axes import Axes
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: {to_install('demo')}")

__all__ = ["clean", "in_processes", "run"]

Record = dict[str, Any]

matplotlib.rcParams["savefig.dpi"] = 120


def run(
    parser: argparse.ArgumentParser,
    name: str,
    measure: Callable[[argparse.Namespace], Record],
    draw: Callable[[Record, Path], None],
) -> Record:
    """Measure, write ``name``.json, draw ``name``.png from it, and return the results.

    All numbers among the options of ``parser`` must be positive. With --from-json nothing is measured. Ctrl-C ends the
    measurement, and nothing is written then.
    """
    parser.add_argument("--out", type=_folder, default=Path(name.replace("_", "-")), help="folder (%(default)s)")
    parser.add_argument("--from-json", action="store_true", help="draw again from the results of an earlier run")
    args = parser.parse_args()
    for option, value in vars(args).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            parser.error(f"--{option} {value}: expected a number above 0")
    results, picture = args.out / f"{name}.json", args.out / f"{name}.png"
    if not args.from_json:
        try:
            text = json.dumps(measure(args), indent=1) + "\n"
        except KeyboardInterrupt:
            sys.exit("\nstopped; nothing was written")
        args.out.mkdir(parents=True, exist_ok=True)
        results.write_text(text, encoding="utf-8")
    try:
        record: Record = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"{results}: {error}; expected the results of an earlier run")
    draw(record, picture)
    print(f"results: {results}\npicture: {picture}")
    return record


def _folder(text: str) -> Path:
    path = Path(text)
    if path.is_file():
        raise argparse.ArgumentTypeError(f"{path} is a file: expected a folder")
    return path


def in_processes(function: Callable[[Record], float], settings: list[Record], processes: int) -> list[float]:
    """Return the result of ``function`` for each setting: ``processes`` at a time, one thread each, a progress bar."""
    with multiprocessing.get_context("spawn").Pool(processes, _alone) as pool:  # an exception ends them
        return list(tqdm(pool.imap(function, settings), total=len(settings), unit="run"))


def _alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    torch.set_num_threads(1)


def clean(axes: Axes) -> None:
    """Remove the frame of ``axes`` and add a light grid."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)

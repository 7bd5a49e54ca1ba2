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
from nfnet_timm.publish.staging import written_beside

try:
    import matplotlib
    import sklearn  # noqa: F401  # the digits
    from matplotlib.axes import Axes
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: {to_install('demo')}")

__all__ = ["clean", "folder", "in_processes", "read", "run", "write_picture"]

Record = dict[str, Any]

matplotlib.rcParams["savefig.dpi"] = 120


def run(
    parser: argparse.ArgumentParser,
    name: str,
    measure: Callable[[argparse.Namespace], Record],
    draw: Callable[[Record, Path], None],
) -> Record:
    """Measure, draw ``name``.png, write ``name``.json, and return the results.

    All numbers among the options of ``parser`` must be positive. With --from-json nothing is measured. Ctrl-C ends the
    program, and nothing is written then.
    """
    parser.add_argument("--out", type=folder, default=Path(name.replace("_", "-")), help="folder (%(default)s)")
    parser.add_argument("--from-json", action="store_true", help="draw again from the results of an earlier run")
    args = parser.parse_args()
    for option, values in vars(args).items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int | float) and not isinstance(value, bool) and not 0 < value < float("inf"):
                parser.error(f"--{option} {value}: expected a number above 0")
    results = args.out / f"{name}.json"
    try:
        # Both ways go through JSON, so that the same results give the same picture.
        text = "" if args.from_json else json.dumps(measure(args), indent=1) + "\n"
        record = read(parser, results) if args.from_json else json.loads(text)
        write_picture(parser, draw, record, args.out / f"{name}.png")
        if text:
            with written_beside(results, overwrite=True) as partial:
                partial.write_text(text, encoding="utf-8")
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing was written")
    print(f"results: {results}")
    return record


def folder(text: str) -> Path:
    """Return the path of a folder, existing or new; the type of an option."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a file: expected a folder")
    return path


def read(parser: argparse.ArgumentParser, results: Path) -> Record:
    """Return the results in a file of an earlier run."""
    try:
        record = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"{results}: {error}; expected the results of an earlier run")
    if not isinstance(record, dict):
        parser.error(f"{results}: expected the results of an earlier run, it contains a {type(record).__name__}")
    return record


def write_picture(
    parser: argparse.ArgumentParser, draw: Callable[[Record, Path], None], record: Record, picture: Path
) -> None:
    """Draw ``record`` into ``picture``, completely or not at all."""
    with written_beside(picture, overwrite=True) as partial:
        try:
            draw(record, partial)
        except (KeyError, TypeError) as error:
            parser.error(f"the results are not those of {parser.prog} ({type(error).__name__}: {error})")
    print(f"picture: {picture}")


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


if __name__ == "__main__":
    raise SystemExit("figures.py is not a program: run agc_stability.py or another script of this folder")

"""What the scripts of this folder share: options, a JSON file with the results, and the picture made from that file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nfnet_timm.installation import to_install

try:
    import matplotlib
    import sklearn  # noqa: F401  # the digits
    import tqdm  # noqa: F401
    from matplotlib.axes import Axes
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is not installed: {to_install('demo')}")

__all__ = ["clean", "run"]

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
    parser.add_argument("--out", type=Path, default=Path(name.replace("_", "-")), help="folder (%(default)s)")
    parser.add_argument("--from-json", action="store_true", help="draw again from the results of an earlier run")
    args = parser.parse_args()
    if args.out.is_file():
        parser.error(f"--out {args.out} is a file: expected a folder")
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
        draw(record, picture)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if not args.from_json:
            raise
        parser.error(f"{results}: {error!r}; expected the results of an earlier run of this script")
    print(f"results: {results}\npicture: {picture}")
    return record


def clean(axes: Axes) -> None:
    """Remove the frame of ``axes`` and add a light grid."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)

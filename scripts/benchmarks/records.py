"""The files in benchmarks/results/, and the options that name them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "ROOT", "add_record", "new_file", "positive", "records_file", "write_json"]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def positive(text: str) -> int:
    """Return the number that ``text`` is, of at least 1; the type of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def new_file(text: str) -> Path:
    """Return the path of a file in a folder that exists; the type of an option."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: expected a file")
    return path


def records_file(text: str) -> Path:
    """Return the path of a new file or of one with earlier results; the type of an option."""
    path = new_file(text)
    try:
        _read(path)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}; expected earlier results or a new file") from None
    return path


def write_json(path: Path, results: Any) -> None:
    """Write ``results`` to ``path``, completely or not at all."""
    _write(path, lambda: results)


def add_record(path: Path, record: dict[str, Any], is_replaced: Callable[[dict[str, Any]], bool]) -> None:
    """Add ``record`` to the results in ``path`` and remove those for which ``is_replaced`` is true."""
    _write(path, lambda: [*(earlier for earlier in _read(path) if not is_replaced(earlier)), record])


def _write(path: Path, results: Callable[[], Any]) -> None:
    # Not at the top: it imports torch, and the memory of a process counts for the processes that it starts.
    from nfnet_timm.publish.staging import written_beside

    with written_beside(path, overwrite=True) as partial:  # a second run waits here, and then reads
        partial.write_text(json.dumps(results(), indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> list[dict[str, Any]]:
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if not isinstance(records, list):
        raise ValueError(f"it contains a {type(records).__name__}, not a list of results")
    return records


if __name__ == "__main__":
    raise SystemExit("records.py is not a program: run speed.py or another benchmark of this folder")

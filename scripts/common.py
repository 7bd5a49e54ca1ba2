"""What the scripts have in common: options, and files of figures that several runs may write at a time."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nfnet_timm.installation import to_install

__all__ = ["add_record", "explain_module", "missing", "parse_nothing", "positive", "records_file", "write_text"]


def parse_nothing(doc: str) -> None:
    """Print help for --help, and end with an error for any other option: for a script that takes none."""
    argparse.ArgumentParser(description=doc.split("\n")[0]).parse_args()


def explain_module(doc: str, script: str) -> None:
    """Say which ``script`` to run instead of a file that is only imported; print help for --help."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0], epilog=f"Not a program by itself: run {script}.")
    parser.parse_args()
    parser.error(f"not a program by itself: run {script}")


def positive(text: str) -> int:
    """Return the number that ``text`` is, of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def records_file(text: str) -> Path:
    """Return the path that ``text`` is, of a file of earlier figures or a new one in a folder that exists."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: there is no folder {path.parent}; make it first")
    try:
        _read(path)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}; expected a file of earlier figures, or a new one") from None
    return path


def missing(error: ModuleNotFoundError, extra: str) -> str:
    """Return a line that says which package is missing and which of this package's extras installs it."""
    return f"error: {error.name} is not installed: {to_install(extra)}"


def write_text(path: Path, text: str) -> None:
    """Write ``path`` completely or not at all; a second run waits."""
    from nfnet_timm.publish.staging import (
        written_beside,  # not at the top: it imports torch, whose memory children inherit
    )

    with written_beside(path, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")


def add_record(path: Path, record: dict[str, Any], is_replaced: Callable[[dict[str, Any]], bool]) -> None:
    """Add ``record`` to a file of figures, in place of those for which ``is_replaced`` is true."""
    from nfnet_timm.publish.staging import written_beside

    with written_beside(path, overwrite=True) as partial:
        records = [earlier for earlier in _read(path) if not is_replaced(earlier)]
        partial.write_text(json.dumps([*records, record], indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> list[dict[str, Any]]:
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if not isinstance(records, list):
        raise ValueError(f"it holds a {type(records).__name__}, not a list of figures")
    return records


if __name__ == "__main__":
    explain_module(__doc__, "scripts/benchmark.py or another script")

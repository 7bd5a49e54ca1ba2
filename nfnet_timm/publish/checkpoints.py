"""Reads the published numbers in hub/checkpoints.toml, and finds the template of the model cards in hub/."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["data_file", "load_published", "released_checkpoints"]


def data_file(name: str) -> Path:
    """Return the path of a file of hub/. The wheel has these files inside the package."""
    inside = Path(__file__).with_name(name)
    return inside if inside.exists() else Path(__file__).parents[2] / "hub" / name


@cache
def load_published() -> dict[str, Any]:
    """Return the content of hub/checkpoints.toml."""
    return tomllib.loads(data_file("checkpoints.toml").read_text(encoding="utf-8"))


def released_checkpoints() -> dict[str, dict[str, Any]]:
    """Return the entries of all released weights by name: files, and Orbax directories."""
    published = load_published()
    return {**published["checkpoints"], **published["orbax"]}

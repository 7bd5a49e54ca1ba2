"""Writes what was shown of other libraries to the file that COMPAT_JSON names, for the table in docs/compat.md.

A claim is the docstring of a test that has the marker ``library``, with the version that it was tried with.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path

OUTCOMES: dict[tuple[str, str], bool] = {}


def pytest_itemcollected(item):
    marker, claim = item.get_closest_marker("library"), (item.function.__doc__ or "").strip()
    if marker and claim:
        item.user_properties.append(("claim", [marker.args[0], claim]))


def pytest_runtest_logreport(report):
    claim = dict(report.user_properties).get("claim")
    if claim and report.when == "call":
        OUTCOMES[tuple(claim)] = OUTCOMES.get(tuple(claim), True) and report.passed


def pytest_sessionfinish():
    if OUTCOMES and "COMPAT_JSON" in os.environ:
        shown: dict[str, list[str]] = {}
        for (library, claim), passed in sorted(OUTCOMES.items()):
            if passed:
                shown.setdefault(library, []).append(claim)
        rows = [{"library": name, "version": version(name), "shown": claims} for name, claims in shown.items()]
        Path(os.environ["COMPAT_JSON"]).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

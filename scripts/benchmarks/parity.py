"""Measures how far the logits are from the authors', for each reference value in tests/data.

    python scripts/benchmarks/parity.py       some minutes on two cores

Runs the tests that compare the logits and collects the relative errors that they report, whether they pass or not.
Writes benchmarks/results/parity.json; the table in docs/fidelity.md is made from it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from results import RESULTS, ROOT, run, write_json

TESTS = (
    "tests/models/test_nfnet.py::test_logits_features_and_signal_equal_the_authors",
    "tests/models/test_nfnet.py::test_timms_error_equals_the_documented_one",
)


def main() -> None:
    """Measure, and write the errors with two digits."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", *TESTS, f"--junit-xml={report}", "-o", "junit_family=xunit1"]
        subprocess.run(command, cwd=ROOT, check=False)
        if not report.exists():
            raise SystemExit("parity.py: error: pytest did not run, see above; install it with: pip install '.[test]'")
        properties = ElementTree.parse(report).iter("property")
        errors = {p.attrib["name"]: float(f"{float(p.attrib['value']):.1e}") for p in properties}
    for reference, error in errors.items():
        print(f"{reference:32} {error:.1e}")
    write_json(RESULTS / "parity.json", errors)


if __name__ == "__main__":
    run(main)

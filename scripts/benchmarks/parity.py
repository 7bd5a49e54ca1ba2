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

from results import RESULTS, ROOT, new_file, run, write_json

TESTS = (
    "tests/models/test_nfnet.py::test_logits_features_and_signal_equal_the_authors",
    "tests/models/test_nfnet.py::test_timms_error_equals_the_documented_one",
)


def main() -> None:
    """Measure, and write the errors with two digits."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-k", metavar="EXPRESSION", default="", help="measure only these references, as pytest's -k")
    parser.add_argument("--json", type=new_file, help="file to write (without -k: benchmarks/results/parity.json)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", *TESTS, "-k", args.k]
        command += [f"--junit-xml={report}", "-o", "junit_family=xunit1"]
        subprocess.run(command, cwd=ROOT, check=False)
        if not report.exists():
            raise SystemExit("parity.py: error: pytest did not run, see above; install it with: pip install '.[test]'")
        properties = ElementTree.parse(report).iter("property")
        errors = {p.attrib["name"]: float(f"{float(p.attrib['value']):.1e}") for p in properties}
    if not errors:
        raise SystemExit(f"parity.py: error: -k {args.k}: no reference has this name")
    for reference, error in errors.items():
        print(f"{reference:32} {error:.1e}")
    path = args.json or (None if args.k else RESULTS / "parity.json")
    if path:
        write_json(path, errors)


if __name__ == "__main__":
    run(main)

"""What the package promises stands beside the tests that hold it to it, in docs/promises.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = re.findall(r"^\| (.+?) \| `(\S+)` \| (.+) \|$", (ROOT / "docs" / "promises.md").read_text(), flags=re.MULTILINE)


def words(text):
    """``text`` without the breaks of lines, and what begins them in comments."""
    return " ".join(re.sub(r"^\s*#", "", text, flags=re.MULTILINE).split())


def test_there_are_promises():
    assert len(ROWS) > 90


@pytest.mark.parametrize(("promise", "where"), [row[:2] for row in ROWS])
def test_the_promise_is_made_there(promise, where):
    text = words((ROOT / where).read_text())
    # A sentence in the code goes on over the end of a string.
    assert promise in text or promise in re.sub(r'" f?"', "", text)


def test_each_has_tests_that_are_there():
    named = {
        (file, test)
        for _, _, tests in ROWS
        for file, names in re.findall(r"`(tests/\S+\.py)`: ((?:`test_\w+`(?:, )?)+)", tests)
        for test in re.findall(r"test_\w+", names)
    }
    there = {
        (str(path.relative_to(ROOT)), node.name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert named - there == set()
    assert all("`tests/" in tests or "check.sh" in tests for _, _, tests in ROWS)

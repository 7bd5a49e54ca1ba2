"""The blocks of docs/export.md that need another library, each after the plain blocks of the page before it."""

import re
import subprocess
import sys

import pytest
from golden import ROOT

FENCES = re.findall(r"```python *(\w*)\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("at", [i for i, (library, _) in enumerate(FENCES) if library], ids=lambda i: FENCES[i][0])
def test_the_block_for_a_library_runs(at, tmp_path):
    library, _ = FENCES[at]
    if library != "aotinductor":  # a part of torch
        pytest.importorskip(library, exc_type=ImportError)
    code = "\n".join(block for needed, block in FENCES[: at + 1] if needed in ("", library))
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=580)
    assert result.returncode == 0, result.stderr

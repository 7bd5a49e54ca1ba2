"""Every script and example: --help does nothing else, a mistake is one line and writes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "scripts").rglob("*.py"), *(ROOT / "examples").glob("*.py")])
MODULES = [path for path in FILES if " is not a program: " in path.read_text()]
PROGRAMS = [path for path in FILES if path not in MODULES]
SHELL = [path for path in (ROOT / "scripts").rglob("*.sh") if path.name != "setup_env.sh"] + [ROOT / ".ci" / "run"]
# What a program needs beside the demo's extra, which the tests have.
NEEDS = {"privacy.py": "opacus"}


def name_of(path):
    return str(path.relative_to(ROOT))


def written():
    """When each file that a script may write was written."""
    pages = [*ROOT.glob("*.md"), *(p for d in ("benchmarks", "docs", "hub") for p in (ROOT / d).rglob("*.*"))]
    return {page: page.stat().st_mtime_ns for page in pages}


@pytest.fixture
def run(run_script, tmp_path, monkeypatch):
    """Run a program in an empty folder, which stays empty; return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    before = written()

    def run(path, *arguments):
        result = run_script(path, *arguments)
        assert list(tmp_path.iterdir()) == []
        assert written() == before
        return result

    return run


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_help_is_printed_and_a_misspelt_option_is_an_error(run, path):
    pytest.importorskip(NEEDS.get(path.name, "sys"))
    status, out, _ = run(path, "--help")
    assert status == 0
    assert f"usage: {path.name}" in out
    status, _, error = run(path, "--no-such-option")
    assert status == 2
    assert error.splitlines()[-1].startswith(f"{path.name}: error: ")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_names_the_script_to_run_instead(run, path):
    status, _, error = run(path)
    assert status == 1
    assert any(program.name in error for program in [*PROGRAMS, *SHELL])


@pytest.mark.parametrize(
    ("path", "module", "extra"),
    [
        ("examples/features.py", "matplotlib", "demo"),
        ("examples/fine_tune.py", "accelerate", "examples"),
        ("examples/private.py", "opacus", "privacy,demo"),
        ("examples/private.py", "sklearn", "privacy,demo"),
        ("examples/sam.py", "tqdm", "demo"),
        ("scripts/figures/agc_stability.py", "sklearn", "demo"),
        ("scripts/figures/batch_size.py", "matplotlib", "demo"),
        ("scripts/benchmarks/privacy.py", "opacus", "privacy"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(run, monkeypatch, path, module, extra):
    for name in (module, *(name for name in sys.modules if name.startswith(f"{module}."))):
        monkeypatch.setitem(sys.modules, name, None)
    if module != "opacus" and "private" in path:
        monkeypatch.setitem(sys.modules, "opacus", type(sys)("opacus"))
        sys.modules["opacus"].PrivacyEngine = None
    _, _, error = run(ROOT / path, *(["DATA", "--dataset", "hfds/org/name"] if "fine_tune" in path else []))
    (line,) = error.splitlines()
    assert module in line
    assert f"pip install '.[{extra}]'" in line


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sam.py", ["--epochs", "0"]),
        ("sam.py", ["--rho", "nan"]),
        ("features.py", ["--out", "."]),
        ("features.py", ["--out", "x.doc"]),
        ("private.py", ["--epochs", "0"]),
        ("private.py", ["--epsilon", "nan"]),
        ("private.py", ["--batch-size", "0"]),
        ("fine_tune.py", [".", "--epochs", "0"]),
        ("fine_tune.py", [".", "--batch-size", "0"]),
        ("fine_tune.py", [".", "--lr", "inf"]),
        ("fine_tune.py", [".", "--seed", "-1"]),
    ],
)
def test_an_impossible_value_is_an_error_that_names_the_option(run, name, arguments):
    status, _, error = run(ROOT / "examples" / name, *arguments)
    assert status == 2
    assert arguments[-2] in error.splitlines()[-1]


@pytest.mark.parametrize("path", SHELL, ids=name_of)
def test_help_of_a_shell_script_is_its_first_comment(path):
    result = subprocess.run(["bash", path, "--help"], capture_output=True, text=True, timeout=10)
    first = next(line for line in path.read_text().splitlines() if not line.startswith("#!"))
    assert (result.returncode, result.stdout.splitlines()[0], result.stderr) == (0, first.removeprefix("# "), "")


@pytest.mark.parametrize(
    "name",
    [
        "scripts/benchmarks/benchmark_cpu.sh",
        "scripts/benchmarks/benchmark_gpu.sh",
        "scripts/check.sh",
        "scripts/ci/sdist.sh",
        ".ci/run",
    ],
)
def test_a_shell_script_without_options_refuses_them(name):
    result = subprocess.run(["bash", ROOT / name, "--no-such-option"], capture_output=True, text=True, timeout=10)
    assert result.returncode == 2
    assert "--no-such-option" in result.stderr


@pytest.mark.parametrize("arguments", ["", "on", "on 0", "on 2 true", "kill", "kill x", "up now", "nonsense"])
def test_two_hosts_explains_itself_after_a_mistake(arguments):
    command = ["bash", ROOT / "scripts" / "ci" / "two_hosts.sh", *arguments.split()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert result.returncode == 2
    assert "two_hosts.sh on 0 COMMAND" in result.stderr
    assert "unbound" not in result.stderr

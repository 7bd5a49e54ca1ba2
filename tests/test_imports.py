"""Who imports whom: the rules written in nfnet_timm/__init__.py, for every module that is found."""

import ast
import importlib
from pathlib import Path

import pytest

import nfnet_timm

PACKAGE = Path(nfnet_timm.__file__).parent
# timm imports these, so they may import timm; what they import may not, at the top.
ENTRY_POINTS = {"nfnet_timm.models.nfnet", "nfnet_timm.optim.twins"}


def modules():
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imported_at_the_top(path):
    """Names of what a module imports when it is imported: not in functions, not for the type checker."""
    waiting = list(ast.parse(path.read_text()).body)
    names = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return names


def with_parents(name):
    parts = name.split(".")
    return {".".join(parts[: i + 1]) for i in range(len(parts))}


def imported_with(names):
    """All modules of the package that importing ``names`` imports."""
    found, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        named = {parent for each in imported_at_the_top(MODULES[name]) for parent in with_parents(each)}
        waiting |= (with_parents(name) | named) & MODULES.keys() - found
    return found


IMPORTED_WHILE_TIMM_IS = sorted(imported_with(ENTRY_POINTS))


def test_the_closure_is_what_python_imports(run_python):
    ours = "sorted(name for name in sys.modules if name.split('.')[0] == 'nfnet_timm')"
    code = f"import sys, timm, timm.optim; print(*{ours})"
    assert run_python(code).split() == IMPORTED_WHILE_TIMM_IS


def test_what_timm_imports_of_us_imports_timm_in_functions_only():
    at_fault = {
        name: imports
        for name in IMPORTED_WHILE_TIMM_IS
        if name not in ENTRY_POINTS
        if (imports := sorted(each for each in imported_at_the_top(MODULES[name]) if each.split(".")[0] == "timm"))
    }
    assert at_fault == {}


@pytest.mark.parametrize("package", ["nfnet_timm", "nfnet_timm.models", "nfnet_timm.optim", "nfnet_timm.layers"])
def test_a_package_hands_on_its_public_names_and_names_them_for_a_wrong_one(package):
    module = importlib.import_module(package)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(
        AttributeError, match="nfnets" if package.endswith("layers") else f"'nfnets'.*{module.__all__[0]}"
    ):
        module.nfnets  # noqa: B018

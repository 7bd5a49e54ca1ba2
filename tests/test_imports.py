"""Every module follows the import rules in nfnet_timm/__init__.py."""

import ast
import importlib
from pathlib import Path

import pytest
from fresh_process import run_fresh

import nfnet_timm

PACKAGE = Path(nfnet_timm.__file__).parent
# timm imports these modules. They may import timm at their top, but the modules that they import may not.
ENTRY_POINTS = {"nfnet_timm.models.nfnet", "nfnet_timm.optim.agc_optimizer"}


def modules():
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imported_at_the_top(path):
    """Return the names that a module imports at its top, without imports in functions or for the type checker."""
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
    """Return all modules of the package that are imported when ``names`` are imported."""
    found, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        named = {parent for each in imported_at_the_top(MODULES[name]) for parent in with_parents(each)}
        waiting |= (with_parents(name) | named) & MODULES.keys() - found
    return found


IMPORTED_WHILE_TIMM_IS = sorted(imported_with(ENTRY_POINTS))


def test_computed_imports_are_those_of_python():
    ours = "sorted(name for name in sys.modules if name.split('.')[0] == 'nfnet_timm')"
    code = f"import sys, timm, timm.optim; print(*{ours})"
    assert run_fresh(code).split() == IMPORTED_WHILE_TIMM_IS


def test_modules_that_timm_imports_import_timm_in_functions_only():
    at_fault = {
        name: imports
        for name in IMPORTED_WHILE_TIMM_IS
        if name not in ENTRY_POINTS
        if (imports := sorted(each for each in imported_at_the_top(MODULES[name]) if each.split(".")[0] == "timm"))
    }
    assert at_fault == {}


@pytest.mark.parametrize("package", ["nfnet_timm", "nfnet_timm.optim", "nfnet_timm.layers"])
def test_package_exports_its_public_names_and_lists_them_for_a_wrong_name(package):
    module = importlib.import_module(package)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(
        AttributeError, match="nfnets" if package.endswith("layers") else f"'nfnets'.*{module.__all__[0]}"
    ):
        module.nfnets  # noqa: B018

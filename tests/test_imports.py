"""The import rules in nfnet_timm/__init__.py that import-linter cannot check."""

import importlib

import pytest
from fresh_process import run_fresh


def test_modules_that_timm_imports_import_timm_in_functions_only():
    """timm imports two of them, and these may import timm, but not the modules that they import."""
    listed = run_fresh("import sys, timm, timm.optim; print(*(m for m in sys.modules if m.startswith('nfnet_timm')))")
    modules = set(listed.split()) - {"nfnet_timm.models.nfnet", "nfnet_timm.optim.agc_optimizer"}
    assert {"nfnet_timm.models.block", "nfnet_timm.optim.agc"} <= modules
    run_fresh(
        "import importlib, sys\n"
        "sys.modules['timm'] = None  # an import of timm raises an error\n"
        f"for name in {sorted(modules)}: importlib.import_module(name)"
    )


@pytest.mark.parametrize("package", ["nfnet_timm", "nfnet_timm.optim", "nfnet_timm.layers"])
def test_package_exports_its_public_names_and_lists_them_for_a_wrong_name(package):
    module = importlib.import_module(package)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(
        AttributeError, match="nfnets" if package.endswith("layers") else f"'nfnets'.*{module.__all__[0]}"
    ):
        module.nfnets  # noqa: B018


def test_only_privacy_imports_opacus_and_its_error_says_what_to_install():
    code = (
        "import sys, timm, nfnet_timm; timm.create_model('dm_nf_regnet_b0', device='meta')\n"
        "print('opacus' in sys.modules); sys.modules['opacus'] = None\n"
        "try:\n    import nfnet_timm.privacy\nexcept ImportError as error:\n    print(error)"
    )
    imported, error = run_fresh(code).splitlines()
    assert imported == "False"
    assert "nfnet_timm.privacy needs Opacus" in error
    assert "pip install '.[privacy]'" in error

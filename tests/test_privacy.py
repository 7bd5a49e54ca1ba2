"""Tests of nfnet_timm.privacy without Opacus. Those with Opacus are in tests/compat/test_opacus.py."""

from fresh_process import run_fresh


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

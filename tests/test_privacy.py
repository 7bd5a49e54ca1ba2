"""Tests of nfnet_timm.privacy without Opacus. Those with Opacus are in tests/compat/test_opacus.py."""


def test_error_without_opacus_says_what_to_install(run_python):
    code = "import sys; sys.modules['opacus'] = None; import nfnet_timm.privacy"
    assert "nfnet_timm.privacy needs Opacus" in run_python(code, check=False)
    assert "pip install '.[privacy]'" in run_python(code, check=False)


def test_no_other_module_imports_privacy(run_python):
    code = "import timm, nfnet_timm, sys; timm.create_model('dm_nf_regnet_b0'); print('opacus' in sys.modules)"
    assert run_python(code).strip() == "False"

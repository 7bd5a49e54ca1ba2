"""What of privacy needs no Opacus; the rest is in tests/compat/test_opacus.py."""


def test_without_opacus_the_way_out_is_told(run_python):
    code = "import sys; sys.modules['opacus'] = None; import nfnet_timm.privacy"
    assert "nfnet_timm.privacy needs Opacus" in run_python(code, check=False)
    assert "pip install '.[privacy]'" in run_python(code, check=False)


def test_nothing_else_imports_it(run_python):
    code = "import timm, nfnet_timm, sys; timm.create_model('dm_nf_regnet_b0'); print('opacus' in sys.modules)"
    assert run_python(code).strip() == "False"

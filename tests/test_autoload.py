"""timm finds the plugin in a fresh process. A plugin that is broken or switched off does not break timm."""

import json
import subprocess
import sys
import sysconfig
from importlib.metadata import requires
from pathlib import Path

import pytest
from fresh_process import run_fresh
from packaging.requirements import Requirement

from nfnet_timm.autoload import OLDEST_TIMM
from nfnet_timm.models.variants import VARIANTS

ROOT = Path(__file__).parent.parent
OFF = {"NFNET_TIMM_AUTOLOAD": "0"}
OURS = "import timm; print(type(timm.create_model('nfnet_f0', device='meta')).__module__)"


@pytest.mark.parametrize(
    "first",
    [
        "",
        "import timm.optim",
        "import timm.models.nfnet",
        "import nfnet_timm.models.nfnet",
        "from nfnet_timm import NormFreeNet",
        "import timm, nfnet_timm; nfnet_timm.autoload.install(); nfnet_timm.autoload.install()",
    ],
)
def test_timm_has_our_networks_without_a_warning_for_any_import_order(first):
    assert run_fresh(f"{first}\n{OURS}", warnings="error") == "nfnet_timm.models.nfnet\n"


def test_package_that_is_not_installed_registers_on_import():
    hidden = (
        "import importlib.metadata as m\n"
        "every = m.entry_points\n"
        "m.entry_points = lambda **k: [] if k.get('group', '').startswith('timm.') else every(**k)\n"
    )
    optimizers = "from timm.optim import list_optimizers; print('agc-sgd' in list_optimizers())"
    out = run_fresh(f"{hidden}import nfnet_timm\n{OURS}\n{optimizers}", **OFF)
    assert out == "nfnet_timm.models.nfnet\nTrue\n"


def test_timm_has_its_own_networks_when_autoload_is_off_until_an_explicit_import():
    """Torch's own switch is tried in test_doctor.py."""
    out = run_fresh(f"{OURS}; print(timm.list_models('dm_nf_resnet*')); import nfnet_timm\n{OURS}", **OFF)
    assert out == "timm.models.nfnet\n[]\nnfnet_timm.models.nfnet\n"


LISTED = """
import hashlib, json, timm, torch
outputs = {}
for name in ("nf_regnet_b0", "nfnet_l0"):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for p in model.parameters():
        if p.ndim == 0: torch.nn.init.ones_(p)
    digest = hashlib.sha256(model(torch.randn(1, 3, 32, 32)).detach().numpy().tobytes()).hexdigest()
    outputs[name] = type(model).__module__, digest
print(json.dumps([timm.list_models(include_tags=True), timm.list_pretrained("nfnet_f?*"), outputs]))
"""


def test_only_our_model_names_change_and_other_models_of_timm_give_identical_outputs():
    (names, pretrained, outputs), (before, _, expected) = (json.loads(run_fresh(LISTED, **each)) for each in ({}, OFF))
    assert {name.split(".")[0] for name in set(names) ^ set(before)} == set(VARIANTS) - {"nfnet_f7"}  # no tag in either
    assert {f"nfnet_f{i}.dm_in1k" for i in range(7)} <= set(pretrained)
    assert "nfnet_f7" not in {name.split(".")[0] for name in pretrained}
    assert outputs == expected


def test_importing_the_package_imports_neither_torch_nor_timm(run_python):
    code = "import sys, nfnet_timm, nfnet_timm.autoload; print([m for m in ('torch', 'timm') if m in sys.modules])"
    assert run_python(code) == "[]\n"


def test_importing_torch_does_not_import_timm_or_the_models():
    code = "print([m for m in ('timm', 'nfnet_timm', 'nfnet_timm.models.nfnet') if m in with_torch])"
    assert run_fresh(code) == "['nfnet_timm']\n"


def plugin(folder: Path, name: str, code: str, group: str = "timm.models") -> None:
    """Install a package with one entry point into ``folder``."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}\n")


THIRD_PARTY = """
from timm.models import register_model
@register_model
def third_party_net(pretrained=False, **kwargs):
    return "third party"
"""


def test_other_packages_are_loaded_through_the_same_groups(tmp_path):
    plugin(tmp_path, "third_party", THIRD_PARTY)
    plugin(tmp_path, "third_party_optim", "print('loaded')", "timm.optim")
    code = f"{OURS}; print(timm.models.model_entrypoint('third_party_net')()); import timm.optim"
    assert run_fresh(code, [tmp_path]) == "nfnet_timm.models.nfnet\nthird party\nloaded\n"


@pytest.mark.parametrize(("broken", "warnings"), [("import no_such_module", None), ("syntax error", "error")])
def test_a_plugin_that_raises_gives_one_warning_and_nothing_else(tmp_path, broken, warnings):
    plugin(tmp_path, "broken_plugin", broken)
    out = run_fresh(OURS, [tmp_path], warnings=warnings)
    assert out.count("RuntimeWarning") == 1
    assert "'broken_plugin'" in out
    assert "pip install --upgrade broken_plugin" in out
    assert "nfnet_timm.models.nfnet\n" in out


@pytest.mark.parametrize(
    ("version", "message", "warnings"),
    [
        ("1.0.28", "timm is 1.0.28: expected 1.0.29 or newer", 1),
        ("unknown", "failed to load, and timm works without it: InvalidVersion", 2),
    ],
)
def test_a_timm_of_an_old_or_unreadable_version_keeps_its_own_networks_with_a_warning(
    tmp_path, version, message, warnings
):
    for name, code in (("", f"__version__ = {version!r}"), ("models", ""), ("optim", "")):
        (tmp_path / "timm" / name).mkdir()
        (tmp_path / "timm" / name / "__init__.py").write_text(code)
    out = run_fresh("import sys, timm.models, timm.optim; print('nfnet_timm.models' in sys.modules)", [tmp_path])
    assert out.count("RuntimeWarning") == warnings
    assert message in out
    assert out.endswith("False\n")


def test_oldest_timm_is_that_of_the_package_metadata():
    requirement = next(r for r in map(Requirement, requires("nfnet-timm")) if r.name == "timm")
    assert str(requirement.specifier) == f">={OLDEST_TIMM}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["editable", "wheel"])
def test_timm_has_our_networks_after_each_kind_of_install(run_python, tmp_path, mode):
    """The test environment sees the packages of this one, but its own nfnet-timm comes first."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "outer.pth").write_text(sysconfig.get_path("purelib"))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    install += ["--no-build-isolation", "--force-reinstall", "--disable-pip-version-check", "--root-user-action=ignore"]
    subprocess.run([*install, *(["--editable"] if mode == "editable" else []), ROOT], check=True)
    out = run_python(f"{OURS}; import nfnet_timm; print(nfnet_timm.__file__)", python=str(python))
    module, file = out.splitlines()
    assert module == "nfnet_timm.models.nfnet"
    assert Path(file).is_relative_to(ROOT if mode == "editable" else venv)

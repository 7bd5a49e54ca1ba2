"""timm finds the plugin in a fresh process. A plugin that is broken or switched off does not break timm."""

import json
import os
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from fresh_process import run_fresh
from packaging.requirements import Requirement
from test_imports import IMPORTED_WHILE_TIMM_IS

from nfnet_timm.autoload import OLDEST_TIMM
from nfnet_timm.models.variants import VARIANTS

ROOT = Path(__file__).parent.parent
OFF = {"NFNET_TIMM_AUTOLOAD": "0"}
OURS = "import timm; print(type(timm.create_model('nfnet_f0', device='meta')).__module__)"


def lines(out: str) -> list[str]:
    return out.strip().splitlines()


FIRST_IMPORTS = [
    "",
    "import timm.optim",
    "import timm.models.nfnet",
    "from timm.models import create_model",
    "import nfnet_timm.models.nfnet",
    "import nfnet_timm; import nfnet_timm.models.nfnet",
    "from nfnet_timm import NormFreeNet",
    "import timm, nfnet_timm; nfnet_timm.autoload.install(); nfnet_timm.autoload.install()",
]


@pytest.mark.parametrize("first", FIRST_IMPORTS)
def test_timm_has_our_networks_without_a_warning_for_any_import_order(first):
    assert lines(run_fresh(f"{first}\n{OURS}", warnings="error")) == ["nfnet_timm.models.nfnet"]


@pytest.mark.slow
def test_any_module_that_timm_imports_can_be_imported_first():
    """timm imports each of these modules, so it may find one half imported."""
    for name in IMPORTED_WHILE_TIMM_IS:
        out = run_fresh(f"import {name}\n{OURS}", warnings="error", **OFF)
        assert lines(out) == ["nfnet_timm.models.nfnet"], name


def test_package_that_is_not_installed_registers_on_import():
    hidden = (
        "import importlib.metadata as m\n"
        "every = m.entry_points\n"
        "m.entry_points = lambda **k: [] if k.get('group', '').startswith('timm.') else every(**k)\n"
    )
    optimizers = "from timm.optim import list_optimizers; print('agc-sgd' in list_optimizers())"
    out = run_fresh(f"{hidden}import nfnet_timm\n{OURS}\n{optimizers}", **OFF)
    assert lines(out) == ["nfnet_timm.models.nfnet", "True"]


def test_timm_has_its_own_networks_when_autoload_is_off_until_an_explicit_import():
    """Torch's own switch is tried in test_doctor.py."""
    out = run_fresh(f"{OURS}; print(timm.list_models('dm_nf_resnet*')); import nfnet_timm\n{OURS}", **OFF)
    assert lines(out) == ["timm.models.nfnet", "[]", "nfnet_timm.models.nfnet"]
    assert lines(run_fresh(f"import nfnet_timm\n{OURS}", **OFF)) == ["nfnet_timm.models.nfnet"]


LISTED = """
import hashlib, json, timm, torch
outputs = {}
for name in ("dm_nfnet_f0", "nf_resnet50", "nf_regnet_b0", "eca_nfnet_l0", "nfnet_l0"):
    outputs[name] = type(timm.create_model(name, device="meta")).__module__
    if name in ("nf_regnet_b0", "nfnet_l0"):
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        for p in model.parameters():
            if p.ndim == 0: torch.nn.init.ones_(p)
        digest = hashlib.sha256(model(torch.randn(1, 3, 32, 32)).detach().numpy().tobytes()).hexdigest()
        outputs[name] = outputs[name], digest
print(json.dumps([timm.list_models(include_tags=True), timm.list_pretrained("nfnet_f?*"), outputs]))
"""


def test_only_our_model_names_change_and_other_models_of_timm_give_identical_outputs():
    (names, pretrained, outputs), (before, _, expected) = (json.loads(run_fresh(LISTED, **each)) for each in ({}, OFF))
    assert len(names) == len(set(names))
    architectures = {name.split(".")[0] for name in names}
    assert {name.split(".")[0] for name in before} <= architectures
    assert {name.split(".")[0] for name in set(names) ^ set(before)} == set(VARIANTS) - {"nfnet_f7"}  # no tag in either
    assert {f"nfnet_f{i}.dm_in1k" for i in range(7)} <= set(pretrained)
    assert "nfnet_f7" not in {name.split(".")[0] for name in pretrained}
    assert outputs == expected


def test_importing_the_package_imports_neither_torch_nor_timm(run_python):
    code = "import sys, nfnet_timm, nfnet_timm.autoload; print([m for m in ('torch', 'timm') if m in sys.modules])"
    assert lines(run_python(code)) == ["[]"]


def test_importing_torch_does_not_import_timm_or_the_models():
    code = "print([m for m in ('timm', 'nfnet_timm', 'nfnet_timm.models.nfnet') if m in with_torch])"
    assert lines(run_fresh(code)) == ["['nfnet_timm']"]


def plugin(folder: Path, name: str, code: str, group: str = "timm.models") -> str:
    """Install a package with one entry point into ``folder``, and return the folder."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}\n")
    return str(folder)


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
    assert lines(run_fresh(code, [tmp_path])) == ["nfnet_timm.models.nfnet", "third party", "loaded"]


@pytest.mark.parametrize("broken", ["raise RuntimeError('no luck')", "import no_such_module", "syntax error"])
def test_a_plugin_that_raises_gives_one_warning_and_nothing_else(tmp_path, broken):
    plugin(tmp_path, "broken_plugin", broken)
    out = run_fresh(f"import torch; print(torch.ones(1).item()); {OURS}", [tmp_path])
    assert out.count("RuntimeWarning") == 1
    assert "'broken_plugin'" in out
    assert "pip install --upgrade broken_plugin" in out
    assert "1.0\n" in out
    assert "nfnet_timm.models.nfnet\n" in out


def test_plugin_that_raises_does_not_break_imports_when_warnings_are_errors(tmp_path):
    plugin(tmp_path, "broken_plugin", "raise RuntimeError('no luck')")
    out = run_fresh(OURS, [tmp_path], warnings="error")
    assert "nfnet_timm.models.nfnet\n" in out
    assert "no luck" in out


@pytest.mark.slow
def test_a_real_old_timm_keeps_its_own_networks_with_one_warning(tmp_path):
    version = "1.0.20"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    if subprocess.run([*install, f"timm=={version}"], capture_output=True).returncode:
        pytest.skip(f"pip cannot download timm {version}")
    code = "import timm, timm.optim; print(timm.__version__, timm.list_models('dm_nf_*')); "
    code += "print(timm.models.model_entrypoint('nfnet_f0').__module__)"
    out = run_fresh(code, [tmp_path])
    assert {f"{version} []", "timm.models.nfnet"} <= set(lines(out))
    warned = [line for line in lines(out) if "RuntimeWarning" in line]
    assert len(warned) == 1
    assert version in warned[0]
    assert "1.0.21" in warned[0]


def test_oldest_timm_is_that_of_the_package_metadata():
    requirement = next(r for r in map(Requirement, requires("nfnet-timm")) if r.name == "timm")
    assert str(requirement.specifier) == f">={OLDEST_TIMM}"


def test_a_broken_timm_raises_its_own_error_and_torch_works(tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise ImportError('broken timm')")
    code = "import torch\ntry:\n    import timm\nexcept ImportError as error:\n    print(error, torch.ones(1).item())"
    assert lines(run_fresh(code, [tmp_path])) == ["broken timm 1.0"]


@pytest.mark.slow
def test_timm_has_our_networks_after_the_installation_of_a_wheel(run_python, tmp_path):
    """Other tests run an editable one. The environment sees the packages of this one, with its own nfnet-timm first."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    (site,) = venv.glob("lib/python*/site-packages")
    import timm

    (site / "outer.pth").write_text(str(Path(timm.__file__).parent.parent))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    install += ["--no-build-isolation", "--force-reinstall", "--disable-pip-version-check"]
    subprocess.run([*install, ROOT], check=True, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"})
    out = run_python(f"{OURS}; import nfnet_timm; print(nfnet_timm.__file__)", python=str(python))
    module, file = lines(out)
    assert module == "nfnet_timm.models.nfnet"
    assert Path(file).is_relative_to(venv)

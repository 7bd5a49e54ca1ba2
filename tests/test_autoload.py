"""timm finds the plugin in a fresh process. A plugin that is broken or switched off does not break timm."""

import os
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_imports import IMPORTED_WHILE_TIMM_IS

from nfnet_timm.autoload import OLDEST_TIMM
from nfnet_timm.models.variants import VARIANTS

ROOT = Path(__file__).parent.parent
OURS = "import timm; print(type(timm.create_model('nfnet_f0', device='meta')).__module__)"


def lines(out: str) -> list[str]:
    return out.strip().splitlines()


OTHER_FIRST_IMPORTS = [
    "import torch",
    "import timm; import torch",
    "import timm.optim",
    "from timm.models import create_model",
    "import nfnet_timm.autoload",
    "import torch; import nfnet_timm; import nfnet_timm.models.nfnet",
    "from nfnet_timm import NormFreeNet",
    # timm imports each of these modules, so it may find one half imported.
    *(f"import {name}" for name in IMPORTED_WHILE_TIMM_IS),
]


@pytest.mark.parametrize(
    "first",
    [
        "",
        "import timm.models.nfnet",
        "import nfnet_timm.models.nfnet",
        "import timm, nfnet_timm; nfnet_timm.autoload.install(); nfnet_timm.autoload.install()",
        *(pytest.param(first, marks=pytest.mark.slow) for first in OTHER_FIRST_IMPORTS),
    ],
)
def test_timm_has_our_networks_without_a_warning_for_any_import_order(run_python, first):
    assert lines(run_python(f"{first}\n{OURS}", args=("-W", "error"))) == ["nfnet_timm.models.nfnet"]


def test_package_that_is_not_installed_registers_on_import(run_python):
    hidden = (
        "import importlib.metadata as m\n"
        "every = m.entry_points\n"
        "m.entry_points = lambda **k: [] if k.get('group', '').startswith('timm.') else every(**k)\n"
    )
    optimizers = "from timm.optim import list_optimizers; print('agc-sgd' in list_optimizers())"
    out = run_python(f"{hidden}import nfnet_timm\n{OURS}\n{optimizers}", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert lines(out) == ["nfnet_timm.models.nfnet", "True"]


@pytest.mark.parametrize("switch", ["TORCH_DEVICE_BACKEND_AUTOLOAD", "NFNET_TIMM_AUTOLOAD"])
def test_timm_has_its_own_networks_when_autoload_is_off(run_python, switch):
    out = run_python(f"{OURS}; print(timm.list_models('dm_nf_resnet*'))", **{switch: "0"})
    assert lines(out) == ["timm.models.nfnet", "[]"]


@pytest.mark.parametrize(
    ("switch", "first"),
    [
        ("TORCH_DEVICE_BACKEND_AUTOLOAD", "import nfnet_timm"),
        ("NFNET_TIMM_AUTOLOAD", "import timm, nfnet_timm"),
    ],
)
def test_an_explicit_import_registers_also_when_autoload_is_off(run_python, switch, first):
    assert lines(run_python(f"{first}\n{OURS}", **{switch: "0"})) == ["nfnet_timm.models.nfnet"]


def test_only_our_model_names_change(run_python):
    code = "import timm; print('\\n'.join(timm.list_models(include_tags=True)))"
    with_plugin, without = (lines(run_python(code, NFNET_TIMM_AUTOLOAD=flag)) for flag in "10")
    assert len(with_plugin) == len(set(with_plugin))
    architectures = {name.split(".")[0] for name in with_plugin}
    assert {name.split(".")[0] for name in without} <= architectures
    assert {name.split(".")[0] for name in set(with_plugin) ^ set(without)} == set(VARIANTS) - {
        "nfnet_f7"
    }  # no tag in either


def test_pretrained_names_are_listed(run_python):
    out = run_python(
        "import timm; print(timm.list_pretrained('nfnet_f?*')); print(timm.is_model_pretrained('nfnet_f3'))"
    )
    assert all(f"nfnet_f{i}.dm_in1k" in out for i in range(7))
    assert "nfnet_f7" not in out
    assert "True" in out


def test_other_models_of_timm_give_identical_outputs(run_python):
    code = (
        "import hashlib, timm, torch\n"
        "for name in ('dm_nfnet_f0', 'nf_resnet50', 'nf_regnet_b0', 'eca_nfnet_l0', 'nfnet_l0'):\n"
        "    torch.manual_seed(0)\n"
        "    model = timm.create_model(name).eval()\n"
        "    for p in model.parameters():\n"
        "        if p.ndim == 0: torch.nn.init.ones_(p)\n"
        "    out = model(torch.randn(1, 3, 64, 64))\n"
        "    print(name, type(model).__module__, hashlib.sha256(out.detach().numpy().tobytes()).hexdigest())"
    )
    with_plugin, without = (run_python(code, NFNET_TIMM_AUTOLOAD=flag) for flag in "10")
    assert with_plugin == without
    assert len(lines(without)) == 5


def test_importing_the_package_imports_neither_torch_nor_timm(run_python):
    code = "import sys, nfnet_timm, nfnet_timm.autoload; print([m for m in ('torch', 'timm') if m in sys.modules])"
    assert lines(run_python(code)) == ["[]"]


def test_importing_torch_does_not_import_timm_or_the_models(run_python):
    code = "import sys, torch; print([m for m in ('timm', 'nfnet_timm.models.nfnet') if m in sys.modules])"
    assert lines(run_python(code)) == ["[]"]


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


def test_a_third_party_package_is_loaded_through_the_same_group(run_python, tmp_path):
    path = plugin(tmp_path, "third_party", THIRD_PARTY)
    code = f"{OURS}; print(timm.models.model_entrypoint('third_party_net')())"
    assert lines(run_python(code, PYTHONPATH=path)) == ["nfnet_timm.models.nfnet", "third party"]


def test_group_of_optimizers_is_loaded(run_python, tmp_path):
    path = plugin(tmp_path, "third_party_optim", "print('loaded')", "timm.optim")
    assert lines(run_python("import torch; print('torch'); import timm.optim", PYTHONPATH=path)) == ["torch", "loaded"]


@pytest.mark.parametrize(
    "broken",
    [
        "raise RuntimeError('no luck')",
        pytest.param("import no_such_module", marks=pytest.mark.slow),
        pytest.param("syntax error", marks=pytest.mark.slow),
    ],
)
def test_a_plugin_that_raises_gives_one_warning_and_nothing_else(run_python, tmp_path, broken):
    path = plugin(tmp_path, "broken_plugin", broken)
    out = run_python(f"import torch; print(torch.ones(1).item()); {OURS}", PYTHONPATH=path)
    assert out.count("RuntimeWarning") == 1
    assert "'broken_plugin'" in out
    assert "pip install --upgrade broken_plugin" in out
    assert "1.0\n" in out
    assert "nfnet_timm.models.nfnet\n" in out


def test_plugin_that_raises_does_not_break_imports_when_warnings_are_errors(run_python, tmp_path):
    path = plugin(tmp_path, "broken_plugin", "raise RuntimeError('no luck')")
    out = run_python(OURS, PYTHONPATH=path, args=("-W", "error"))
    assert "nfnet_timm.models.nfnet\n" in out
    assert "no luck" in out


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.0.3", "1.0.12", "1.0.20"])
def test_a_real_old_timm_keeps_its_own_networks_with_one_warning(run_python, tmp_path, version):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    if subprocess.run([*install, f"timm=={version}"], capture_output=True).returncode:
        pytest.skip(f"pip cannot download timm {version}")
    code = "import timm, timm.optim; print(timm.__version__, timm.list_models('dm_nf_*')); "
    code += "print(timm.models.model_entrypoint('nfnet_f0').__module__)"
    out = run_python(code, PYTHONPATH=str(tmp_path))
    assert lines(out)[:2] == [f"{version} []", "timm.models.nfnet"]
    warned = [line for line in lines(out) if "RuntimeWarning" in line]
    assert len(warned) == 1
    assert version in warned[0]
    assert "1.0.21" in warned[0]


def test_oldest_timm_is_that_of_the_package_metadata():
    requirement = next(r for r in map(Requirement, requires("nfnet-timm")) if r.name == "timm")
    assert str(requirement.specifier) == f">={OLDEST_TIMM}"


def test_a_broken_timm_raises_its_own_error_and_torch_works(run_python, tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise ImportError('broken timm')")
    code = "import torch\ntry:\n    import timm\nexcept ImportError as error:\n    print(error, torch.ones(1).item())"
    assert lines(run_python(code, PYTHONPATH=str(tmp_path))) == ["broken timm 1.0"]


SPAWN = """
import timm, torch
from torch.utils.data import DataLoader, Dataset

class Names(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        import timm
        return type(timm.create_model("nfnet_f0", device="meta")).__module__

if __name__ == "__main__":
    loader = DataLoader(Names(), batch_size=1, num_workers=2, multiprocessing_context="spawn")
    print(sorted(name for batch in loader for name in batch))
"""

RANK = """
import timm, torch
import torch.distributed as dist
dist.init_process_group("gloo")
ours = type(timm.create_model("nfnet_f0", device="meta")).__module__ == "nfnet_timm.models.nfnet"
count = torch.tensor([int(ours)])
dist.all_reduce(count)
if dist.get_rank() == 0:
    print("ranks with our network:", count.item())
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_spawned_workers_have_the_networks(tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=True).stdout
    assert out.strip() == "['nfnet_timm.models.nfnet', 'nfnet_timm.models.nfnet']"


@pytest.mark.slow
def test_every_rank_of_torchrun_has_the_networks(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert "ranks with our network: 2" in result.stdout, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["editable", "wheel"])
def test_timm_has_our_networks_after_each_kind_of_install(run_python, tmp_path, mode):
    """The test environment sees the packages of this one, but its own nfnet-timm comes first."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    (site,) = venv.glob("lib/python*/site-packages")
    import timm

    (site / "outer.pth").write_text(str(Path(timm.__file__).parent.parent))
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    install += ["--force-reinstall", "--disable-pip-version-check"]
    source = ["--editable", ROOT] if mode == "editable" else [ROOT]
    subprocess.run([*install, *source], check=True, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"})
    out = run_python(f"{OURS}; import nfnet_timm; print(nfnet_timm.__file__)", python=str(python))
    module, file = lines(out)
    assert module == "nfnet_timm.models.nfnet"
    assert Path(file).is_relative_to(ROOT if mode == "editable" else venv)

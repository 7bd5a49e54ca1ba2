"""``nfnet-timm doctor``: shows what is installed, whether timm finds this package, and what to do if not.

It must work when torch or timm is missing, too old or broken. So it imports neither before it has checked the versions.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from packaging.requirements import Requirement

from nfnet_timm.autoload import OURS
from nfnet_timm.installation import to_install, to_upgrade

__all__ = ["Finding", "examine"]

# Runs in a fresh process that imports only timm, and prints which module defines nfnet_f0.
_WHOSE = "import timm; print(timm.models.model_entrypoint('nfnet_f0').__module__)"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        subject: What was checked.
        found: What was found.
        remedy: What to do; None if nothing is wrong.
    """

    subject: str
    found: str
    remedy: str | None = None


def examine() -> Iterator[Finding]:
    """Yield the findings one by one, because some take seconds."""
    yield Finding("Python", f"{platform.python_version()}, {sys.executable}")
    yield from _packages()
    yield from _switches()
    yield from _plugins()
    yield _whose_nfnet()
    yield from _accelerators()
    yield from _hub()


def _packages() -> Iterator[Finding]:
    try:
        yield Finding("nfnet-timm", version("nfnet-timm"))
    except PackageNotFoundError:  # torch calls only the entry points of installed packages
        yield Finding("nfnet-timm", "not installed, but Python finds its modules", to_install())
        return
    for requirement in map(Requirement, requires("nfnet-timm") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        install = f"pip install --upgrade '{requirement.name}{requirement.specifier}'"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(requirement.name, "missing", install)
            continue
        is_right = requirement.specifier.contains(found, prereleases=True)
        yield Finding(requirement.name, found, None if is_right else f"expected {requirement.specifier}: {install}")


def _switches() -> Iterator[Finding]:
    for name, whose in (("TORCH_DEVICE_BACKEND_AUTOLOAD", "torch's, of all plugins"), ("NFNET_TIMM_AUTOLOAD", "ours")):
        is_off = os.environ.get(name) == "0"
        remedy = f"unset {name}, or `import nfnet_timm` in each program" if is_off else None
        yield Finding(f"autoload, {whose}", f"off, by {name}=0" if is_off else "on", remedy)


def _plugins() -> Iterator[Finding]:
    for group in OURS:
        try:
            import_module(group)
        except Exception as error:
            remedy = "repair or reinstall the package named above: pip install -U timm"
            yield Finding(f"import {group}", _described(error), remedy)
            continue
        for plugin in entry_points(group=group):
            package = plugin.dist.name if plugin.dist else plugin.value
            subject = f"plugin {plugin.name} of {group}"
            try:
                plugin.load()
            except Exception as error:
                yield Finding(subject, f"{package}: {_described(error)}", f"{to_upgrade(package)}, or uninstall it")
            else:
                yield Finding(subject, f"{package}: loads")


def _whose_nfnet() -> Finding:
    subject = "timm's nfnet_f0"
    result = subprocess.run([sys.executable, "-c", _WHOSE], capture_output=True, text=True)
    if result.returncode:
        return Finding(subject, (result.stderr.strip().splitlines() or ["no answer"])[-1], "see above")
    module = result.stdout.strip()
    if module.startswith("nfnet_timm."):
        return Finding(subject, "ours")
    said = result.stderr.strip().replace("\n", " ")
    remedy = f"{to_install()}, and check above that autoload is on; or uninstall another plugin that has nfnet_f0"
    return Finding(subject, f"not ours, but of {module}{': ' + said if said else ''}", remedy)


def _accelerators() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding("GPU", f"not checked: {_described(error)}")
        return
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    names += [kind.upper() for kind in ("xpu", "mps") if getattr(torch, kind).is_available()]
    yield Finding("GPU", ", ".join(names) or "none that torch can use")
    try:
        yield Finding("Triton", version("triton"))
    except PackageNotFoundError:
        yield Finding("Triton", "not installed; torch's own operations are used on GPUs")
        return
    yield from _kernels([torch.device("cuda", i) for i in range(torch.cuda.device_count())])


def _kernels(devices: list[Any]) -> Iterator[Finding]:
    if not devices:
        yield Finding("Triton kernels", "no GPU, so nothing to check")
        return
    from nfnet_timm.kernels.check import KERNELS, compare, is_wanted

    if not is_wanted():
        yield Finding("Triton kernels", "off, by NFNET_TIMM_TRITON=0; torch's own operations are used")
        return
    for device in devices:
        for name in KERNELS:
            result = compare(name, device)
            remedy = (
                "nothing: torch's operations are used instead. NFNET_TIMM_TRITON=0 selects them without a warning. "
                "Please report this line with the name of the GPU"
            )
            yield Finding(f"Triton kernel {name} on {device}", str(result), None if result.is_right else remedy)


def _hub() -> Iterator[Finding]:
    try:
        from huggingface_hub import constants, get_token
    except Exception as error:
        names = ", ".join(sorted(name for name in os.environ if name.startswith("HF_"))) or "none"
        remedy = f"reinstall huggingface_hub, or unset a variable that has a wrong value; these are set: {names}"
        yield Finding("Hub", f"not checked: {_described(error)}", remedy)
        return
    yield Finding("Hub", constants.ENDPOINT + (", offline by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else ""))
    cache = Path(constants.HF_HUB_CACHE).absolute()
    if problem := _cannot_write(cache):
        remedy = "set HF_HOME, or HF_HUB_CACHE if you use that, to a folder that you may write to"
        yield Finding("Hub's cache", f"{cache} cannot be written: {problem}", remedy)
    else:
        yield Finding("Hub's cache", str(cache))
    try:
        yield Finding("access token", "there" if get_token() else "none; `hf auth login` stores one, to publish")
    except (OSError, ValueError) as error:
        remedy = "log in again with `hf auth login`, or set HF_TOKEN_PATH to a file"
        yield Finding("access token", f"cannot be read: {_described(error)}", remedy)


def _cannot_write(folder: Path) -> str | None:
    """Return why files cannot be written to ``folder``, or None. ``folder`` may not exist yet."""
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    try:
        with TemporaryFile(dir=there):
            return None
    except OSError as error:
        return f"{there}: {error.strerror}"


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

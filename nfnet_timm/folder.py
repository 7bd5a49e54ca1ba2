"""A model as a folder in the Hub's layout: what ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from nfnet_timm.progress import bytes_bar
from nfnet_timm.weights_file import write_weights

__all__ = ["FILES", "check_folder", "file_hashes", "identify", "load_folder", "logits_of", "save_folder"]

FILES = ("model.safetensors", "config.json", "README.md")

# Tokens of the Hub, GitHub and AWS, and private keys.
_SECRETS = re.compile(rb"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY")


def save_folder(
    model: nn.Module,
    folder: str | Path,
    model_args: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    model_config: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Write ``model`` to ``folder`` as weights, config.json and README.md: all or none, always the same bytes.

    Args:
        model_args: Arguments of ``create_model`` beside the name, needed to build the model again.
        metadata: Strings for the header of model.safetensors, beside ``format: pt``.
        model_config: Further entries of config.json in timm's schema: ``label_names``, ``label_descriptions``.
        card: The text of README.md; there is none without.
    Raises:
        ValueError: If ``folder`` holds anything else; nothing is written then.
        OSError: If the disk is full or not writable; the folder is as it was.
    Differs from timm: ``save_for_hf`` writes no metadata, without which some readers refuse the file, and by default a
        pickle beside it.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder, new or empty")
    others = sorted(p.name for p in folder.iterdir() if p.name not in FILES) if folder.exists() else []
    if others:
        raise ValueError(f"{folder} holds other files ({', '.join(others[:3])}): expected a folder, new or empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_weights(model.state_dict(), partial / "model.safetensors", metadata or {})
        args: Any = dict(model_args or {})
        save_config_for_hf(model, partial / "config.json", model_config=dict(model_config or {}), model_args=args)  # type: ignore[arg-type]
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        (folder / "README.md").unlink(missing_ok=True)
        for path in partial.iterdir():
            os.replace(path, folder / path.name)
    except OSError as error:
        raise OSError(f"cannot write {folder}: {error}. Nothing was changed") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_folder(folder: str | Path) -> Any:
    """Return the model in ``folder``, pretrained and in eval mode."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    """Return what a model in eval mode says of one 64-pixel image that is the same everywhere: (num_classes,)."""
    chans = model.pretrained_cfg["input_size"][0]
    wave = torch.arange(chans * 64 * 64, dtype=torch.float32).mul_(0.37).sin_()
    return model(wave.view(1, chans, 64, 64))[0]


def check_folder(folder: str | Path, model: Any, secrets: tuple[str, ...] = ()) -> None:
    """Raise unless ``folder`` is ready to be published: complete, loadable, and nothing in it that must not be public.

    It holds exactly model.safetensors, config.json and README.md; timm loads it, with the arrays of ``model`` to the
    bit, and its logits; the card says what it is, under which licence and for which library; there is no pickle and no
    secret.

    Args:
        secrets: Strings that must not occur in it, beside all that looks like a token or a private key.
    Raises:
        ValueError: If anything is not so; the message names the file.
    """
    folder = Path(folder)
    found = sorted(path.name for path in folder.iterdir())
    if found != sorted(FILES):
        raise ValueError(f"{folder} holds {', '.join(found)}: expected {', '.join(sorted(FILES))} and nothing else")
    for name in FILES:
        path = folder / name
        if name == "model.safetensors":
            with safe_open(path, "pt") as weights:  # raises if it is anything else, such as a pickle
                text = json.dumps(weights.metadata() or {}).encode()
        else:
            text = path.read_bytes()
        if _SECRETS.search(text) or any(secret.encode() in text for secret in secrets):
            raise ValueError(
                f"{path} holds what looks like an access token or a private key: remove it before publishing"
            )
    data = ModelCard.load(folder / "README.md").data.to_dict()
    missing = [key for key in ("license", "library_name", "pipeline_tag", "tags") if not data.get(key)]
    if missing:
        raise ValueError(f"{folder / 'README.md'} lacks {', '.join(missing)} in the block that begins it")
    loaded = load_folder(folder)
    theirs = model.state_dict()
    wrong = [key for key, tensor in loaded.state_dict().items() if not tensor.equal(theirs[key])]
    if wrong:
        raise ValueError(f"{folder} has other values than the source in {', '.join(wrong[:3])}: build it again")
    ours, expected = logits_of(loaded), logits_of(model)
    if not math.isfinite(float(ours.sum())):
        raise ValueError(f"{folder} gives logits that are not finite: is the checkpoint of a run that diverged?")
    # Not to the bit: where a tensor lies in memory decides how its products are summed.
    if not torch.allclose(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())):
        difference = float((ours - expected).abs().max())
        raise ValueError(
            f"{folder} gives logits that differ by up to {difference:.1e} from the source's: build it again"
        )


def file_hashes(path: Path) -> tuple[str, str]:
    """Return the SHA-256 of a file, and git's id of it (the SHA-1 of a blob): the Hub goes by one or the other."""
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    _feed(path, sha256, sha1)
    return sha256.hexdigest(), sha1.hexdigest()


def identify(path: Path) -> dict[str, str]:
    """Return the name, size and hashes of a file, as they stand in the header of what is made from it.

    Of a directory, the size is that of all its files, and the SHA-256 that of what ``sha256sum`` says of them, sorted
    by name; there is no MD5.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        listing = "".join(f"{file_hashes(p)[0]}  {p.relative_to(path).as_posix()}\n" for p in files)
        size, sha256 = sum(p.stat().st_size for p in files), hashlib.sha256(listing.encode())
        return {"source": path.name, "source_bytes": str(size), "source_sha256": sha256.hexdigest()}
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    _feed(path, sha256, md5)
    return {
        "source": path.name,
        "source_bytes": str(path.stat().st_size),
        "source_sha256": sha256.hexdigest(),
        "source_md5": md5.hexdigest(),
    }


def _feed(path: Path, *hashes: Any) -> None:
    """Update ``hashes`` with a file in one pass, each in a thread."""
    bar = bytes_bar(path.stat().st_size, f"hashing {path.name}")
    with path.open("rb") as file, bar, ThreadPoolExecutor(len(hashes)) as pool:
        while chunk := file.read(1 << 22):
            list(pool.map(lambda h, chunk=chunk: h.update(chunk), hashes))
            bar.update(len(chunk))

"""Whether a folder is fit to be published."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from nfnet_timm.hub.fingerprints import logits_of
from nfnet_timm.hub.folder import FILES, load_folder

__all__ = ["check_folder"]

# Tokens of the Hub, GitHub and AWS, and private keys.
_SECRETS = re.compile(rb"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY")


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

"""Whether a folder is fit to be published."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from nfnet_timm.formats.safetensors_writer import read_header
from nfnet_timm.hub.class_names import check_class_names
from nfnet_timm.hub.config_json import read_json
from nfnet_timm.hub.fingerprints import logits_of
from nfnet_timm.hub.folder import FILES, load_folder
from nfnet_timm.hub.readme import card_metadata

__all__ = ["check_folder"]

# Tokens of the Hub, GitHub and AWS, and private keys.
_SECRETS = re.compile(rb"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY")


def check_folder(folder: str | Path, model: Any, secrets: tuple[str, ...] = ()) -> None:
    """Raise unless ``folder`` is ready to be published: complete, loadable, and nothing in it that must not be public.

    It holds exactly model.safetensors, config.json and README.md; timm loads it, with the arrays of ``model`` to the
    bit, and its logits; names of classes are one for each class; the card says what it is, under which licence and for
    which library; there is no pickle and no secret.

    Args:
        secrets: Strings that must not occur in it, beside all that looks like a token or a private key.
    Raises:
        ValueError: If anything is not so; the message contains the file's name.
    """
    folder = Path(folder)
    found = sorted(path.name for path in folder.iterdir())
    if found != sorted(FILES):
        raise ValueError(
            f"there are the files {', '.join(found)}: expected {', '.join(sorted(FILES))} and nothing else"
        )
    header = read_header(folder / "model.safetensors")
    texts = {name: (folder / name).read_bytes() for name in ("config.json", "README.md")}
    for name, text in {**texts, "the header of model.safetensors": json.dumps(header).encode()}.items():
        if _SECRETS.search(text) or any(secret.encode() in text for secret in secrets):
            raise ValueError(
                f"{name} has what looks like an access token or a private key: remove it before publishing"
            )
    metadata = card_metadata(texts["README.md"].decode(), "README.md")
    missing = [key for key in ("license", "library_name", "pipeline_tag", "tags") if not metadata.get(key)]
    if missing:
        raise ValueError(f"README.md lacks {', '.join(missing)} in the block that begins it")
    config = read_json(folder / "config.json")
    license = config["pretrained_cfg"].get("license")
    if license != metadata["license"]:
        raise ValueError(
            f"README.md says license: {metadata['license']}, but the weights have {license}: change it there, or "
            "remove that file to have a new one"
        )
    if config.get("label_names") is not None:
        check_class_names(config["label_names"], model.num_classes, "config.json")
    loaded = load_folder(folder)
    theirs = model.state_dict()
    wrong = [key for key, tensor in loaded.state_dict().items() if not tensor.equal(theirs[key])]
    if wrong:
        raise ValueError(
            f"model.safetensors has other values than its source in {', '.join(wrong[:3])}: build it again"
        )
    ours, expected = logits_of(loaded), logits_of(model)
    if not math.isfinite(float(ours.sum())):
        raise ValueError("the logits are not finite: did the run diverge? Publish an earlier checkpoint")
    # Not to the bit: where a tensor lies in memory decides how its products are summed.
    if not torch.allclose(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())):
        difference = float((ours - expected).abs().max())
        raise ValueError(f"the logits differ by up to {difference:.1e} from those of the source: build it again")

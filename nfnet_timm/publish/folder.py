"""Writes a model and its card to a folder in the Hub's layout, and checks it.

``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads it.
"""

from __future__ import annotations

import filecmp
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import constants, get_token
from torch import nn

from nfnet_timm.compat.timm import save_config
from nfnet_timm.formats.safetensors_file import arrays_hash, read_header, read_layout, write_weights
from nfnet_timm.publish.card import render_card
from nfnet_timm.publish.checkpoints import released_checkpoints
from nfnet_timm.publish.fingerprints import RECORDED, check_logits, logits_of
from nfnet_timm.publish.locks import names_in
from nfnet_timm.publish.read_folder import LABELS, card_metadata, load_folder, read_card, read_config, read_json
from nfnet_timm.publish.sources import Source
from nfnet_timm.publish.staging import put_in_place, staged_folder

__all__ = ["build_repo", "check_folder", "save_folder", "show_repo"]

# Tokens of the Hub, GitHub and AWS, and private keys.
_SECRETS = re.compile(rb"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY")

_FILES = ("model.safetensors", "config.json", "README.md")
# Entries of config.json that depend on the card.
_FROM_CARD = ("license", "origin_url", "tag")


def save_folder(
    model: nn.Module,
    folder: str | Path,
    model_args: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    model_config: Mapping[str, Any] | None = None,
    card: str | None = None,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write ``model`` to ``folder`` as model.safetensors, config.json and README.md: all of them or none.

    The same model gives the same bytes. After an error or Ctrl-C, ``folder`` is unchanged. After SIGKILL, the next call
    restores it and removes incomplete files. Waits while another run writes ``folder``.

    Args:
        model_args: Arguments of ``create_model`` other than the name.
        metadata: More strings for the header of model.safetensors.
        model_config: ``label_names`` and ``label_descriptions`` for config.json.
        card: The text of README.md. If None, there is no README.md.
        overwrite: Whether to replace files in ``folder`` that have the same names and other content.
        finish: A function that may check and change the new files in this temporary folder, before any is replaced.
    Raises:
        ValueError: If ``folder`` has files of other names, or files with other content and ``overwrite`` is not set.
            A config.json that differs only in entries from the card needs no ``overwrite``.
        OSError: If the disk is full or not writable.
    Differs from timm: ``save_for_hf`` writes a pickle by default. Its safetensors have no metadata, so some readers
        refuse them.
    """
    folder = Path(folder)
    with staged_folder(folder, _FILES) as staged:
        others = [name for name in names_in(folder) if name not in _FILES]
        if others:
            raise ValueError(
                f"{folder} contains other files ({', '.join(others[:3])}): move them away, or choose a new folder"
            )
        write_weights(model.state_dict(), staged / "model.safetensors", metadata or {})
        _write_config(model, staged / "config.json", model_config or {}, model_args or {})
        if card is not None:
            (staged / "README.md").write_bytes(card.encode())
        if finish is not None:
            finish(staged)
        changed = _changed(folder, staged)
        only_card_entries = changed == ["config.json"] and _same_config(folder, staged)
        if changed and names_in(folder) and not overwrite and not only_card_entries:
            lost = "; copy README.md first if you have edited it" if "README.md" in changed else ""
            raise ValueError(
                f"{folder} exists, and {', '.join(changed)} would change: pass --overwrite to replace it, or "
                f"choose another folder with --out{lost}"
            )
        if changed:
            put_in_place(folder, _FILES)


def _write_config(model: nn.Module, path: Path, model_config: Mapping[str, Any], model_args: Mapping[str, Any]) -> None:
    """Write config.json as timm does, but with no arguments beside ``model_args``, and with each entry only once.

    transformers reads the same file and raises an error if it gets an argument twice. timm also writes the number of
    classes to ``model_args``, and the labels of a model that it has loaded to ``pretrained_cfg``.
    """
    save_config(model, path, dict(model_config), dict(model_args))
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_args"] = {key: value for key, value in model_args.items() if key != "num_classes"}
    if not config["model_args"]:
        del config["model_args"]
    for name in LABELS:
        config["pretrained_cfg"].pop(name, None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _changed(folder: Path, staged: Path) -> list[str]:
    """Return the names of the files that would be removed, added or changed in ``folder``."""
    theirs, ours = set(names_in(folder)), set(names_in(staged))
    both = theirs & ours
    return sorted(
        (theirs ^ ours) | {name for name in both if not filecmp.cmp(folder / name, staged / name, shallow=False)}
    )


def _same_model(folder: Path, staged: Path) -> bool:
    """Return whether two folders have the same arrays and the same config.json, apart from entries from the card.

    The headers of the weights may differ: another machine rounds the logits in a header differently.
    """
    theirs, ours = folder / "model.safetensors", staged / "model.safetensors"
    try:
        read_layout(theirs)  # raises ValueError if it is damaged
    except (ValueError, OSError):
        return False
    return _same_config(folder, staged) and arrays_hash(theirs) == arrays_hash(ours)


def _same_config(folder: Path, staged: Path) -> bool:
    configs = []
    for path in (folder / "config.json", staged / "config.json"):
        try:
            read_config(path)  # raises ValueError if an entry has another type
        except (ValueError, OSError):
            return False
        config = read_json(path)
        cfg = config.get("pretrained_cfg", {})
        configs.append({**config, "pretrained_cfg": {k: v for k, v in cfg.items() if k not in _FROM_CARD}})
    return configs[0] == configs[1]


def check_folder(folder: Path, model: Any) -> None:
    """Raise ValueError unless a folder that ``save_folder`` wrote can be published.

    Checks that:

    - no file contains the user's access token, or text that has the form of a token or a private key;
    - the metadata of the card have a licence, a library, a task and tags, and config.json has the same licence;
    - timm loads the model, its arrays are exactly those of ``model``, and its logits agree.
    """
    token = get_token()
    header = read_header(folder / "model.safetensors")
    texts = {name: (folder / name).read_bytes() for name in ("config.json", "README.md")}
    for name, text in {**texts, "the header of model.safetensors": json.dumps(header).encode()}.items():
        if _SECRETS.search(text) or (token and token.encode() in text):
            raise ValueError(f"{name} contains text like an access token or a private key: remove it before publishing")
    metadata = card_metadata(texts["README.md"].decode(), "README.md")
    missing = [key for key in ("license", "library_name", "pipeline_tag", "tags") if not metadata.get(key)]
    if missing:
        raise ValueError(f"README.md lacks {', '.join(missing)} in the metadata at its top: add them")
    loaded = load_folder(folder)
    license = loaded.pretrained_cfg.get("license")
    if license != metadata["license"]:
        raise ValueError(
            f"README.md says license: {metadata['license']}, but the weights have {license}: change it there, or "
            "remove README.md to get a new one"
        )
    theirs = model.state_dict()
    wrong = [key for key, tensor in loaded.state_dict().items() if not tensor.equal(theirs[key])]
    if wrong:
        raise ValueError(f"model.safetensors differs from its source in {', '.join(wrong[:3])}: build it again")
    ours, expected = logits_of(loaded), logits_of(model)
    if not math.isfinite(float(ours.sum())):
        raise ValueError("the logits are not finite: did the run diverge? Publish an earlier checkpoint")
    try:
        check_logits(ours, expected)
    except ValueError as error:
        raise ValueError(f"{error} from those of the source: build it again") from None


def build_repo(source: Source, repo_id: str, folder: Path, license: str | None = None, overwrite: bool = False) -> bool:
    """Write the content of the repo ``repo_id`` to ``folder`` and check it. Needs no network.

    If the source has a card, copy it. Else, if ``folder`` has a card of the same model for the same repo, keep it,
    because its owner may have edited it. Write the files as ``save_folder`` does.

    Returns:
        Whether ``folder`` kept a card that differs from a new one.
    Raises:
        ValueError: If it cannot be published (see ``check_folder`` and ``render_card``), or if ``folder`` has other
            content and ``overwrite`` is not set.
        OSError: If ``folder`` cannot be written.
    """
    infinite = [name for name, tensor in source.model.state_dict().items() if not bool(tensor.isfinite().all())]
    if infinite:
        raise ValueError(
            f"{source.metadata.get('source', source.architecture)} has NaN or infinite values in "
            f"{', '.join(infinite[:3])}: did the run diverge? Publish an earlier checkpoint"
        )
    if source.card and (others := _other_repos(source.card, repo_id)):
        raise ValueError(
            f"README.md loads {', '.join(map(repr, others))} and not 'hf-hub:{repo_id}': correct the name in it, or "
            "remove README.md to get a new one"
        )
    card = source.card or render_card(source, repo_id, license)
    # config.json gets the licence of the card, and no origin that the config.json of a source states.
    about = {**dict.fromkeys(_FROM_CARD), "license": _checked_license(card, license)}
    if "url" in released_checkpoints().get(source.checkpoint or "", {}):
        of_timm: Any = timm.get_pretrained_cfg(source.architecture)
        about = {key: getattr(of_timm, key) for key in _FROM_CARD}
    source.model.pretrained_cfg = {**source.model.pretrained_cfg, **about}
    labels = {"label_names": source.label_names, "label_descriptions": source.label_descriptions}
    kept = False

    def finish(staged: Path) -> None:
        nonlocal kept
        if source.card is None and (folder / "README.md").is_file() and _same_model(folder, staged):
            theirs = read_card(folder / "README.md")
            if not _other_repos(theirs, repo_id):
                _checked_license(theirs, license)
                kept = theirs != card
                shutil.copyfile(folder / "README.md", staged / "README.md")
        check_folder(staged, source.model)

    save_folder(
        source.model,
        folder,
        source.model_args,
        {**source.metadata, "logits": json.dumps(_logits(source))},
        {key: value for key, value in labels.items() if value},
        card,
        overwrite,
        finish,
    )
    return kept


def _other_repos(card: str, repo_id: str) -> list[str]:
    """Return the names of the repos that the code of a card loads; [] if ``repo_id`` is one of them."""
    names = set(re.findall(r"hf-hub:[\w.-]+/[\w.-]*\w", card))
    return [] if f"hf-hub:{repo_id}" in names else sorted(names)


def _checked_license(card: str, license: str | None) -> str | None:
    """Return the licence in the metadata of a card; raise ValueError if it is not ``license``."""
    stated = card_metadata(card, "README.md").get("license")
    if license is not None and stated is None:
        raise ValueError(
            f"--license {license}: README.md states no licence: write it into the metadata between two lines --- at "
            "the very top (no byte order mark before them), or remove README.md to get a new one"
        )
    if license not in (None, stated):
        raise ValueError(
            f"--license {license}: the existing card says {stated}; change it in README.md, or remove README.md to get "
            "a new one"
        )
    return stated


def _logits(source: Source) -> list[float]:
    """Return the logits for the header: the recorded ones if the computed ones agree with them.

    Another machine, which rounds differently, may have recorded them. So the header stays the same on all machines.
    """
    logits = logits_of(source.model)[:RECORDED]
    recorded = torch.tensor(source.logits or [])
    if recorded.shape == logits.shape and torch.allclose(recorded, logits, rtol=1e-4, atol=1e-5):
        return source.logits or []
    return [float(f"{value:.7g}") for value in logits.tolist()]


def show_repo(folder: Path, repo_id: str, revision: str) -> str:
    """Return a text that shows what would be pushed: address, files, sizes, and the card's metadata."""
    lines = [f"{constants.ENDPOINT}/{repo_id}, branch {revision}:"]
    lines += [f"  {(folder / name).stat().st_size:>13,} bytes  {name}" for name in names_in(folder)]
    card = (folder / "README.md").read_text(encoding="utf-8")
    return "\n".join(
        [*lines, "", yaml.safe_dump(card_metadata(card, "README.md"), sort_keys=False, allow_unicode=True)]
    )

"""From a model to a repo on the Hub: build the folder, check it, show it, push it, verify it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import constants, get_token

from nfnet_timm.hub import client
from nfnet_timm.hub.card import render_card
from nfnet_timm.hub.check import check_folder
from nfnet_timm.hub.fingerprints import RECORDED, logits_of
from nfnet_timm.hub.folder import same_model, save_folder
from nfnet_timm.hub.known_model import KnownModel
from nfnet_timm.hub.published import released_checkpoints
from nfnet_timm.hub.readme import card_metadata, read_card
from nfnet_timm.hub.verify import Report, verify

__all__ = ["build_repo", "publish", "show_repo"]


def build_repo(
    known: KnownModel, repo_id: str, folder: Path, license: str | None = None, overwrite: bool = False
) -> bool:
    """Write ``folder`` as it shall stand in ``repo_id``, checked; needs no network, gives the same bytes each time.

    A model that has a card keeps it. So does ``folder``, if its card is of the same model in the same repo: its owner
    may have edited it. Returns whether ``folder`` kept a card that differs from what would be written.

    Raises:
        ValueError: If it is not fit to be published, see ``check_folder`` and ``render_card``, or ``folder`` has other
            content and ``overwrite`` is not set.
        OSError: If it cannot be written.
        In both cases ``folder`` is as it was.
    """
    infinite = [name for name, tensor in known.model.state_dict().items() if not bool(tensor.isfinite().all())]
    if infinite:
        more = f" and {len(infinite) - 1} more" if len(infinite) > 1 else ""
        raise ValueError(
            f"{known.metadata.get('source')} has NaN or infinite values in {infinite[0]}{more}: did the run diverge? "
            "Publish an earlier checkpoint"
        )
    card = known.card or render_card(known, repo_id, license)
    owned = card_metadata(card, "README.md").get("license")
    _check_license(card, license)
    # What config.json says of the weights' licence and origin is not taken from the folder of others.
    about = {"license": owned, "origin_url": None, "tag": None}
    if "url" in released_checkpoints().get(known.checkpoint or "", {}):
        theirs: Any = timm.get_pretrained_cfg(known.architecture)
        about = {key: getattr(theirs, key) for key in about}
    known.model.pretrained_cfg = {**known.model.pretrained_cfg, **about}
    labels = {"label_names": known.label_names, "label_descriptions": known.label_descriptions}
    token = get_token()
    kept = False

    def finish(staged: Path) -> None:
        nonlocal kept
        if known.card is None and (folder / "README.md").is_file() and same_model(folder, staged):
            theirs = read_card(folder / "README.md")
            if f"hf-hub:{repo_id}" in theirs or "hf-hub:" not in theirs:
                _check_license(theirs, license)
                kept = theirs != card
                shutil.copyfile(folder / "README.md", staged / "README.md")
        check_folder(staged, known.model, (token,) if token else ())

    save_folder(
        known.model,
        folder,
        known.model_args,
        {**known.metadata, "logits": json.dumps(_logits(known))},
        {key: value for key, value in labels.items() if value},
        card,
        overwrite,
        finish,
    )
    return kept


def _check_license(card: str, license: str | None) -> None:
    stated = card_metadata(card, "README.md").get("license")
    if license not in (None, stated):
        raise ValueError(
            f"--license {license}: the card that is there says {stated}; change it in README.md, or remove that file "
            "to have a new one"
        )


def _logits(known: KnownModel) -> list[float]:
    """Return the logits for the header: those that a folder has, if they are right; rounding differs elsewhere."""
    logits = logits_of(known.model)[:RECORDED]
    recorded = torch.tensor(known.logits or [])
    if recorded.shape == logits.shape and torch.allclose(recorded, logits, rtol=1e-4, atol=1e-5):
        return known.logits or []
    return [float(f"{value:.7g}") for value in logits.tolist()]


def show_repo(folder: Path, repo_id: str, revision: str) -> str:
    """Return what would be pushed where: files, sizes, and the card's metadata."""
    lines = [f"{constants.ENDPOINT}/{repo_id}, branch {revision}:"]
    lines += [f"  {path.stat().st_size:>13,} bytes  {path.name}" for path in sorted(folder.iterdir())]
    card = (folder / "README.md").read_text(encoding="utf-8")
    return "\n".join(
        [*lines, "", yaml.safe_dump(card_metadata(card, "README.md"), sort_keys=False, allow_unicode=True)]
    )


def publish(
    known: KnownModel,
    folder: Path,
    repo_id: str,
    private: bool = False,
    revision: str = "main",
    tag: str | None = None,
    message: str | None = None,
    force: bool = False,
) -> tuple[Report, bool]:
    """Push a folder that ``build_repo`` wrote, verify what arrived, tag it; return the report, and whether it is new.

    Raises:
        ValueError, OSError: See ``client.push``, ``verify`` and ``client.tag``.
    """
    commit, new = client.push(folder, repo_id, private, revision, tag, message, force)
    try:
        report = verify(repo_id, commit, known.model)
    except (ValueError, OSError) as error:
        kind = ValueError if isinstance(error, ValueError) else OSError
        raise kind(f"{repo_id} is complete at commit {commit}, but was not verified: {error}") from None
    if tag is not None:
        client.tag(repo_id, tag, commit)
    return report, new

"""From a model to a repo on the Hub: build the folder, check it, show it, push it, verify it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, constants, get_token

from nfnet_timm.hub import client
from nfnet_timm.hub.card import render_card
from nfnet_timm.hub.check import check_folder
from nfnet_timm.hub.fingerprints import logits_of
from nfnet_timm.hub.folder import save_folder
from nfnet_timm.hub.known_model import KnownModel
from nfnet_timm.hub.lock import names_in
from nfnet_timm.hub.published import released_checkpoints
from nfnet_timm.hub.verify import Report, verify

__all__ = ["build_repo", "publish", "show_repo"]


def build_repo(
    known: KnownModel, repo_id: str, folder: Path, license: str | None = None, overwrite: bool = False
) -> None:
    """Write ``folder`` as it shall stand in ``repo_id``, checked; needs no network, gives the same bytes each time.

    A model that has a card keeps it.

    Raises:
        ValueError: If it is not fit to be published, see ``check_folder`` and ``render_card``, or ``folder`` has other
            content and ``overwrite`` is not set.
        OSError: If it cannot be written.
        In both cases ``folder`` is as it was.
    """
    card = known.card or render_card(known, repo_id, license)
    if license is not None and ModelCard(card).data.get("license") != license:
        raise ValueError(
            f"--license {license}: the card that is there says {ModelCard(card).data.get('license')}; change it in "
            "README.md, or remove that file to have a new one"
        )
    released = released_checkpoints().get(known.checkpoint or "")
    if released is None or "url" not in released:  # the variant's own entries are about the authors' weights
        own = {"license": ModelCard(card).data.get("license"), "origin_url": None}
        known.model.pretrained_cfg = {**known.model.pretrained_cfg, **own}
    logits = [float(f"{value:.7g}") for value in logits_of(known.model)[:8].tolist()]
    labels: dict[str, Any] = {"label_names": known.label_names, "label_descriptions": known.label_descriptions}
    token = get_token()
    save_folder(
        known.model,
        folder,
        known.model_args,
        {**known.metadata, "logits": json.dumps(logits)},
        {key: value for key, value in labels.items() if value},
        card,
        overwrite,
        check=partial(check_folder, model=known.model, secrets=(token,) if token else ()),
    )


def show_repo(folder: Path, repo_id: str, revision: str) -> str:
    """Return what would be pushed where: files, sizes, and the card's metadata."""
    lines = [f"{constants.ENDPOINT}/{repo_id}, branch {revision}:"]
    lines += [f"  {(folder / name).stat().st_size:>13,} bytes  {name}" for name in names_in(folder)]
    return "\n".join([*lines, "", str(ModelCard.load(folder / "README.md").data)])


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

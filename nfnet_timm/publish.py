"""From a file of weights to a repo on the Hub: build the folder, check it, show it, push it, verify it."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCard, constants, get_token

from nfnet_timm import hub
from nfnet_timm.card import render_card
from nfnet_timm.facts import released_checkpoints
from nfnet_timm.folder import check_folder, logits_of, save_folder
from nfnet_timm.sources import Source

__all__ = ["build_repo", "publish", "show_repo"]


def build_repo(source: Source, repo_id: str, folder: Path, license: str | None = None) -> None:
    """Write ``folder`` as it shall stand in ``repo_id``, checked; needs no network, gives the same bytes each time.

    Raises:
        ValueError: If it is not fit to be published, see ``check_folder`` and ``render_card``.
        OSError: If it cannot be written; it is as it was.
    """
    released = released_checkpoints().get(source.checkpoint or "")
    if released is None or "url" not in released:  # the variant's own entries are about the authors' weights
        own = {"license": released["license"] if released else license, "origin_url": None}
        source.model.pretrained_cfg = {**source.model.pretrained_cfg, **own}
    logits = [float(f"{value:.7g}") for value in logits_of(source.model)[:8].tolist()]
    metadata = {**source.metadata, "logits": json.dumps(logits)}
    config = {"label_names": source.label_names} if source.label_names else {}
    card = render_card(source, repo_id, license)
    save_folder(source.model, folder, source.model_args, metadata, config, card)
    token = get_token()
    check_folder(folder, source.model, (token,) if token else ())


def show_repo(folder: Path, repo_id: str, revision: str) -> str:
    """Return what would be pushed where: files, sizes, and the card's metadata."""
    lines = [f"{constants.ENDPOINT}/{repo_id}, branch {revision}:"]
    lines += [f"  {path.stat().st_size:>13,} bytes  {path.name}" for path in sorted(folder.iterdir())]
    return "\n".join([*lines, "", str(ModelCard.load(folder / "README.md").data)])


def publish(
    source: Source,
    folder: Path,
    repo_id: str,
    private: bool = False,
    revision: str = "main",
    tag: str | None = None,
    message: str | None = None,
    force: bool = False,
) -> tuple[hub.Report, bool]:
    """Push a folder that ``build_repo`` wrote, verify what arrived, tag it; return the report, and whether it is new.

    Raises:
        ValueError, OSError: See ``hub.push``, ``hub.verify`` and ``hub.tag``.
    """
    commit, new = hub.push(folder, repo_id, private, revision, message, force)
    try:
        report = hub.verify(repo_id, commit, source.model)
    except (ValueError, OSError) as error:
        kind = ValueError if isinstance(error, ValueError) else OSError
        raise kind(f"{repo_id} is complete at commit {commit}, but was not verified: {error}") from None
    if tag is not None:
        hub.tag(repo_id, tag, commit)
    return report, new

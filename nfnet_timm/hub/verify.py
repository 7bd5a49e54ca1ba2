"""What is on the Hub, compared: hashes with those that the Hub records, logits with the source's.

``huggingface_hub`` does not compare what it downloads with what the Hub records: a flipped byte is cached, and served
from the cache ever after.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import validate_repo_id

from nfnet_timm.formats.safetensors_writer import read_header
from nfnet_timm.hub.client import explained, recorded_hash
from nfnet_timm.hub.config_json import is_ours, read_json
from nfnet_timm.hub.fingerprints import RECORDED, file_hashes, logits_of, recorded_logits
from nfnet_timm.hub.folder import load_folder

__all__ = ["Report", "remove_cached", "verify"]

# The most that logits may differ between two machines, relative: float32 rounding through the deepest network.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Report:
    """What ``verify`` found.

    Args:
        commit: The commit that was looked at.
        hashes: SHA-256 of each file that was downloaded and is what the Hub records.
        difference: Largest relative difference of the logits; None if there was nothing to compare them with.
        bad_cached: Files of the user's own cache that are not what the Hub records.
    """

    commit: str
    hashes: dict[str, str]
    difference: float | None
    bad_cached: list[Path]


def verify(repo_id: str, revision: str = "main", expected: Any = None) -> Report:
    """Download ``repo_id`` into an empty cache and compare it with what the Hub records, and its logits.

    Logits are compared with those of the model ``expected``, or with those that ``publish`` left in the header of
    model.safetensors. What the user's own cache holds of the same commit is compared too.

    Raises:
        ValueError: If a download or the logits differ, with the file and both hashes, or if what the repo says of a
            network of ours cannot be read.
        OSError: If the Hub cannot be reached, or there is no such repo.
    """
    validate_repo_id(repo_id)
    with explained(f"reading {repo_id}"):
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    siblings = [s for s in info.siblings or [] if s.rfilename.endswith((".safetensors", ".json", ".md"))]
    commit = str(info.sha)
    hashes: dict[str, str] = {}
    bad_cached: list[Path] = []
    difference = root = None
    with tempfile.TemporaryDirectory() as empty:
        for sibling in siblings:
            name = sibling.rfilename
            with explained(f"downloading {name} of {repo_id}"):
                path = Path(hf_hub_download(repo_id, name, revision=commit, cache_dir=empty))
            root = path.parents[name.count("/")]
            recorded = recorded_hash(sibling)
            found = file_hashes(path)
            if recorded not in found:
                raise ValueError(
                    f"the download of {name} is not what the Hub records: expected {recorded}, found {found[0]}. Run "
                    "the command again; if it stays so, the connection or the Hub's copy is damaged"
                )
            hashes[name] = found[0]
            cached = try_to_load_from_cache(repo_id, name, revision=commit)
            if isinstance(cached, str) and recorded not in file_hashes(Path(cached)):
                bad_cached.append(Path(cached))
        if root is not None and {"config.json", "model.safetensors"} <= set(hashes):
            try:
                difference = _difference(root, expected)
            except ValueError as error:  # the folder is about to be removed
                raise ValueError(str(error).replace(str(root), repo_id)) from None
    if difference is not None and not difference <= TOLERANCE:
        raise ValueError(
            f"the logits of {repo_id} at {commit} differ by {difference:.1e} (relative) from those recorded: expected "
            f"at most {TOLERANCE:.0e}. The files are what the Hub records: it is the weights, or this machine"
        )
    return Report(commit, hashes, difference, bad_cached)


def remove_cached(path: Path) -> None:
    """Remove a file from the Hub's cache, so that it is downloaded again when it is next asked for."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _difference(folder: Path, expected: Any) -> float | None:
    """Return the relative difference of the logits; None if none are recorded, or it is another network than ours."""
    if expected is not None:
        theirs = logits_of(expected)
        ours = logits_of(load_folder(folder))
    else:
        header = read_header(folder / "model.safetensors")
        if "logits" not in header or not is_ours(read_json(folder / "config.json")):
            return None
        theirs = torch.tensor(recorded_logits(header))
        ours = logits_of(load_folder(folder))[:RECORDED]
    if theirs.shape != ours.shape:
        raise ValueError(f"there are {len(theirs)} logits to compare with, expected {len(ours)}")
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))

"""A repo of the Hub compared with what the Hub records of it, and its logits with the recorded ones.

A download is not compared with the Hub's hashes by itself: a damaged file is cached, and later loaded from the cache.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import validate_repo_id

from nfnet_timm.formats.safetensors_writer import read_header
from nfnet_timm.publish.config_json import is_ours, load_folder, read_json
from nfnet_timm.publish.fingerprints import RECORDED, logits_of, recorded_logits
from nfnet_timm.publish.hub_errors import hub_errors_explained

__all__ = ["Report", "remove_cached", "verify"]

# Largest relative difference of logits between two machines: float32 rounding through the deepest network.
TOLERANCE = 1e-3
_VERIFIED = ("*.safetensors", "*.json", "*.md")


@dataclass(frozen=True)
class Report:
    """The result of ``verify``.

    Args:
        commit: The commit that was verified.
        files: Names of the files that were downloaded and have the hashes that the Hub records.
        difference: Largest relative difference of the logits; None if there was nothing to compare them with.
        bad_cached: Files of the user's own cache that do not have the hashes that the Hub records.
    """

    commit: str
    files: list[str]
    difference: float | None
    bad_cached: list[Path]


def verify(repo_id: str, revision: str = "main", expected: Any = None) -> Report:
    """Download ``repo_id`` into an empty cache, and compare hashes with the Hub's and logits with the recorded ones.

    Logits are compared with those of the model ``expected``, or with those in the header of model.safetensors. Files of
    the same commit in the user's own cache are compared too.

    Raises:
        ValueError: If a download or the logits differ, with the file and both hashes, or the config.json or header of a
            network of this package cannot be read.
        OSError: If the Hub cannot be reached, or there is no such repo.
    """
    validate_repo_id(repo_id)
    api = HfApi()
    with hub_errors_explained(f"reading {repo_id}"):
        commit = str(api.model_info(repo_id, revision=revision).sha)
    with tempfile.TemporaryDirectory() as empty:
        with hub_errors_explained(f"downloading {repo_id}"):
            folder = Path(snapshot_download(repo_id, revision=commit, cache_dir=empty, allow_patterns=[*_VERIFIED]))
            found = api.verify_repo_checksums(repo_id, revision=commit, cache_dir=empty)
        for mismatch in found.mismatches:
            raise ValueError(
                f"the download of {mismatch['path']} is not what the Hub records: expected {mismatch['expected']}, "
                f"found {mismatch['actual']}. Run the command again; if it stays so, the Hub's copy is damaged"
            )
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        difference = None
        if {"config.json", "model.safetensors"} <= set(files):
            try:
                difference = _difference(folder, expected)
            except ValueError as error:  # the folder is about to be removed
                raise ValueError(str(error).replace(str(folder), repo_id)) from None
    if difference is not None and not difference <= TOLERANCE:
        raise ValueError(
            f"the logits of {repo_id} at {commit} differ by {difference:.1e} (relative) from those recorded: expected "
            f"at most {TOLERANCE:.0e}. The files are what the Hub records, so the weights or this machine are the cause"
        )
    return Report(commit, files, difference, _bad_cached(api, repo_id, commit))


def _bad_cached(api: HfApi, repo_id: str, commit: str) -> list[Path]:
    try:
        with hub_errors_explained(f"reading {repo_id}"):
            found = api.verify_repo_checksums(repo_id, revision=commit)
    except ValueError:  # the commit is not in the cache
        return []
    return [found.verified_path / mismatch["path"] for mismatch in found.mismatches]


def remove_cached(path: Path) -> None:
    """Remove a file from the Hub's cache, so that its next use downloads it again."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _difference(folder: Path, expected: Any) -> float | None:
    """Return the relative difference of the logits; None if none are recorded, or timm's own network is meant."""
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

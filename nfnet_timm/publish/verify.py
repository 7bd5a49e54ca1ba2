"""Compares the files of a Hub repo with the hashes that the Hub records, and its logits with the recorded ones.

``huggingface_hub`` does not check these hashes. It keeps a damaged file in its cache and loads it each time.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.utils import validate_repo_id

from nfnet_timm.formats.safetensors_file import checked_header
from nfnet_timm.publish.fingerprints import RECORDED, logits_of, recorded_logits
from nfnet_timm.publish.hub_errors import hub_errors_explained
from nfnet_timm.publish.read_folder import is_ours, load_folder, read_json

__all__ = ["Report", "verify"]

# Largest relative difference of logits between two machines, due to float32 rounding in the deepest network.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Report:
    """The result of ``verify``.

    Args:
        commit: The commit that was verified.
        files: Names of the downloaded files, which have the hashes that the Hub records.
        difference: Relative difference of the logits; None if there are no recorded logits.
        bad_cached: Files in the user's cache whose hashes are not those that the Hub records.
    """

    commit: str
    files: list[str]
    difference: float | None
    bad_cached: list[Path]


def verify(repo_id: str, revision: str = "main", expected: Any = None) -> Report:
    """Download ``repo_id`` into an empty cache, and compare its hashes with those of the Hub, and its logits.

    The logits are compared with those of the model ``expected`` or, if it is None, with those in the header of
    model.safetensors. The hashes of files of the same commit in the user's cache are compared, too.

    Raises:
        ValueError: If a hash in the download or the logits differ, if the config.json or the header of a network of
            this package cannot be read, or if there is no safetensors file.
        OSError: If the Hub cannot be reached, or the repo does not exist.
    """
    validate_repo_id(repo_id)
    if not revision:
        raise ValueError("the revision is empty: expected a branch, a tag or a commit")
    api = HfApi()
    with hub_errors_explained(f"reading {repo_id}"):
        info = api.model_info(repo_id, revision=revision)
    commit, names = str(info.sha), [file.rfilename for file in info.siblings or []]
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(
            f"{repo_id} has no safetensors file, but {', '.join(names[:5]) or 'no files'}: expected a repo with "
            "model.safetensors, as `nfnet-timm publish` pushes it; publish the weights again with it"
        )
    with tempfile.TemporaryDirectory() as empty:
        with hub_errors_explained(f"downloading {repo_id}"):
            for name in names:  # snapshot_download has threads, which go on after Ctrl-C until their requests time out
                if name.endswith((".safetensors", ".json", ".md")):
                    hf_hub_download(repo_id, name, revision=commit, cache_dir=empty)
            found = api.verify_repo_checksums(repo_id, revision=commit, cache_dir=empty)
        folder = found.verified_path
        for mismatch in found.mismatches:
            raise ValueError(
                f"the hash of the download of {mismatch['path']} is {mismatch['actual']}: the Hub records "
                f"{mismatch['expected']}. Run the command again; if the hash stays the same, the Hub's copy is damaged"
            )
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        difference = None
        if {"config.json", "model.safetensors"} <= set(files):
            try:
                difference = _difference(folder, expected)
            except ValueError as error:  # the folder is temporary, so the message must not name it
                raise ValueError(str(error).replace(str(folder), repo_id)) from None
    if difference is not None and not difference <= TOLERANCE:
        raise ValueError(
            f"the logits of {repo_id} at {commit} differ by {difference:.1e} (relative) from the recorded logits: "
            f"expected at most {TOLERANCE:.0e}. The hashes of the files are right, so the weights or this machine are "
            "the cause"
        )
    return Report(commit, files, difference, _bad_cached(api, repo_id, commit))


def _bad_cached(api: HfApi, repo_id: str, commit: str) -> list[Path]:
    try:
        with hub_errors_explained(f"reading {repo_id}"):
            found = api.verify_repo_checksums(repo_id, revision=commit)
    except ValueError:  # the commit is not in the cache
        return []
    return [found.verified_path / mismatch["path"] for mismatch in found.mismatches]


def _difference(folder: Path, expected: Any) -> float | None:
    """Return the relative difference of the logits.

    None if there are no recorded logits, or if config.json does not describe a network of this package.
    """
    if expected is not None:
        theirs = logits_of(expected)
        ours = logits_of(load_folder(folder))
    else:
        header = checked_header(folder / "model.safetensors")
        if "logits" not in header:
            return None
        if "arrays_sha256" not in header and not is_ours(read_json(folder / "config.json")):
            return None  # another program wrote the logits
        theirs = torch.tensor(recorded_logits(header))
        ours = logits_of(load_folder(folder))[:RECORDED]
    if theirs.shape != ours.shape:
        raise ValueError(f"there are {len(theirs)} logits to compare with, expected {len(ours)}")
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))

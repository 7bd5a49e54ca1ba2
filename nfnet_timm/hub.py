"""A folder onto the Hugging Face Hub in one commit, and back again to see whether it arrived.

``huggingface_hub`` does the talking, Xet included. It does not compare what it downloads with what the Hub records: a
flipped byte is cached, and served from the cache ever after. ``verify`` does compare.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, HfApi, get_token, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from nfnet_timm.folder import file_hashes, load_folder, logits_of

__all__ = ["Report", "push", "remove_cached", "tag", "verify"]

# The most that logits may differ between two machines, relative: float32 rounding through the deepest network.
TOLERANCE = 1e-3

_ADVICE = {
    401: "the Hub does not accept the access token: log in again with `hf auth login`, or set HF_TOKEN",
    403: "the access token has no right to write there: make one that has, and log in with `hf auth login`",
    404: "there is no such repo or revision, or it is private and the access token may not read it",
    412: "somebody else has pushed in between, and nothing of this was: see what they did, and run the command again",
    429: "the Hub asks for a pause: run the command again in some minutes",
}


def push(
    folder: Path,
    repo_id: str,
    private: bool = False,
    revision: str = "main",
    message: str | None = None,
    force: bool = False,
) -> tuple[str, bool]:
    """Make ``repo_id`` hold the files of ``folder``, in one commit or none; return the commit, and whether it is new.

    The repo and the branch are made if they do not exist. Content that is there already makes no new commit.
    Other files of the repo stay.

    Raises:
        ValueError: If there is no access token, if the repo has other content and ``force`` is not set, or if it is
            public and ``private`` is set.
        OSError: If the Hub cannot be reached or refuses; the repo is as it was, unless the message says otherwise.
    """
    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r}: expected ORGANIZATION/NAME, or USER/NAME")
    if not get_token():
        raise ValueError("no access token: log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    hashes = {path.name: file_hashes(path) for path in sorted(folder.iterdir())}
    with explained(f"making {repo_id}"):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    with explained(f"reading {repo_id}"):
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
    if private and not info.private:
        raise ValueError(f"{repo_id} exists and is public: make it private in its settings, or leave out --private")
    different = _different(info, hashes)
    if not different:
        return str(info.sha), False
    present = {sibling.rfilename for sibling in info.siblings or []} - {".gitattributes"}
    if present and not force:
        raise ValueError(
            f"{repo_id} has other content at {revision}: {', '.join(sorted(different))} would change. Nothing was "
            "pushed; pass --force to make a commit that replaces them, or --revision to use another branch"
        )
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in hashes]
    try:
        with explained(f"pushing to {repo_id}"):
            commit = api.create_commit(
                repo_id,
                operations=operations,
                commit_message=message or f"Publish {folder.name}",
                revision=revision,
                parent_commit=info.sha,
            )
        return commit.oid, True
    except OSError:
        # The answer may be what got lost, or the client may have asked twice.
        try:
            now = api.model_info(repo_id, revision=revision, files_metadata=True)
        except Exception:
            now = info
        if now.sha != info.sha and not _different(now, hashes):
            return str(now.sha), True
        raise


def tag(repo_id: str, name: str, commit: str) -> None:
    """Give ``commit`` the tag ``name``.

    Raises:
        ValueError: If another commit has it.
        OSError: If the Hub cannot be reached or refuses.
    """
    api = HfApi()
    with explained(f"tagging {repo_id}"):
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
        if name not in tags:
            api.create_tag(repo_id, tag=name, revision=commit)
    if tags.get(name, commit) != commit:
        raise ValueError(f"{repo_id} has the tag {name} at {tags[name]}: the tag was not moved, choose another name")


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
        ValueError: If a download or the logits differ; the message names the file and both hashes.
        OSError: If the Hub cannot be reached, or there is no such repo.
    """
    validate_repo_id(repo_id)
    with explained(f"reading {repo_id}"):
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    siblings = [s for s in info.siblings or [] if s.rfilename.endswith((".safetensors", ".json", ".md"))]
    commit = str(info.sha)
    hashes: dict[str, str] = {}
    bad_cached: list[Path] = []
    difference = None
    with tempfile.TemporaryDirectory() as empty:
        for sibling in siblings:
            name = sibling.rfilename
            with explained(f"downloading {name} of {repo_id}"):
                path = Path(hf_hub_download(repo_id, name, revision=commit, cache_dir=empty))
            recorded = _recorded(sibling)
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
        if {"config.json", "model.safetensors"} <= set(hashes):
            difference = _difference(path.parent, expected)
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
    if expected is None:
        with safe_open(folder / "model.safetensors", "pt") as weights:
            recorded = (weights.metadata() or {}).get("logits")
        if recorded is None:
            return None
        theirs = torch.tensor(json.loads(recorded))
    else:
        theirs = logits_of(expected)
    ours = logits_of(load_folder(folder))[: len(theirs)]
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def _recorded(sibling: Any) -> str:
    lfs = sibling.lfs
    return str((lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256) if lfs else sibling.blob_id)


def _different(info: Any, hashes: dict[str, tuple[str, str]]) -> set[str]:
    recorded = {sibling.rfilename: _recorded(sibling) for sibling in info.siblings or []}
    return {name for name, found in hashes.items() if recorded.get(name) not in found}


@contextmanager
def explained(doing: str, advice: dict[int, str] | None = None) -> Iterator[None]:
    """Turn what the client raises into an OSError that says what failed and what to do, without the access token.

    Args:
        advice: What to do, by HTTP status; what to do about the Hub, where it is not given.
    """
    try:
        yield
    except Exception as error:
        # An upload's errors come as RuntimeErrors.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        # httpx, httpx2 and requests are the HTTP libraries of the clients' versions.
        library = type(cause).__module__.split(".")[0]
        if not isinstance(cause, OSError) and library not in ("httpx", "httpx2", "httpcore", "huggingface_hub"):
            raise
        status = getattr(getattr(cause, "response", None), "status_code", None)
        again = "run the same command again: what has arrived is not sent twice"
        known = _ADVICE if advice is None else advice
        to_do = known.get(status or 0, again) if isinstance(cause, HfHubHTTPError) else again
        reason = " ".join(str(cause).split()) or type(cause).__name__
        token = get_token()
        if token:
            reason = reason.replace(token, "***")
        raise OSError(f"{doing} failed: {reason[:300].rstrip('.')}. To do: {to_do}") from None

"""A folder onto the Hugging Face Hub in one commit; ``huggingface_hub`` does the talking, Xet included."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from nfnet_timm.hub.fingerprints import file_hashes
from nfnet_timm.hub.lock import names_in

__all__ = ["check_destination", "explained", "push", "recorded_hash", "tag"]

_REF = r"[A-Za-z0-9_][A-Za-z0-9._/-]*"  # of a branch or a tag

_ADVICE = {
    401: "the Hub does not accept the access token: log in again with `hf auth login`, or set HF_TOKEN",
    403: "the access token has no right to write there: make one that has, and log in with `hf auth login`",
    404: "there is no such repo or revision, or it is private and the access token may not read it",
    412: "somebody else has pushed in between, and nothing of this was: see what they did, and run the command again",
    429: "the Hub asks for a pause: run the command again in some minutes",
}


def check_destination(repo_id: str, revision: str = "main", tag: str | None = None) -> None:
    """Raise ValueError unless these can be names of a repo, a branch and a tag; needs no network."""
    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r}: expected ORGANIZATION/NAME, or USER/NAME")
    for kind, name in (("branch", revision), ("tag", tag)):
        if name is not None and (not re.fullmatch(_REF, name) or ".." in name or name.endswith((".lock", ".", "/"))):
            raise ValueError(f"{name!r} cannot be the name of a {kind}: expected letters, digits and . _ - / alone")


def push(
    folder: Path,
    repo_id: str,
    private: bool = False,
    revision: str = "main",
    tag: str | None = None,
    message: str | None = None,
    force: bool = False,
) -> tuple[str, bool]:
    """Make ``repo_id`` hold the files of ``folder``, in one commit or none; return the commit, and whether it is new.

    The repo and the branch are made if they do not exist; a new branch begins as the main one, whose content it then
    replaces. Content that is there already makes no new commit. Other files of the repo stay.

    Args:
        tag: The name that the commit is going to get: another commit must not have it.
    Raises:
        ValueError: If there is no access token, if the branch has other content and ``force`` is not set, if another
            commit has the tag, or if the repo is public and ``private`` is set.
        OSError: If the Hub cannot be reached or refuses.
        In both cases the repo is as it was, unless the message says otherwise; but it is there.
    """
    check_destination(repo_id, revision, tag)
    if not get_token():
        raise ValueError("no access token: log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    hashes = {name: file_hashes(folder / name) for name in names_in(folder)}
    with explained(f"making {repo_id}"):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    with explained(f"reading {repo_id}"):
        refs = api.list_repo_refs(repo_id)
        is_new_branch = revision not in {"main", *(ref.name for ref in refs.branches)}
        info = api.model_info(repo_id, revision="main" if is_new_branch else revision, files_metadata=True)
    if private and not info.private:
        raise ValueError(f"{repo_id} exists and is public: make it private in its settings, or leave out --private")
    different = _different(info, hashes)
    tagged = {ref.name: ref.target_commit for ref in refs.tags}.get(tag or "")
    if tagged is not None and (different or tagged != info.sha):
        raise ValueError(
            f"{repo_id} has the tag {tag} at {tagged}, which is not moved: choose another name. Nothing was pushed"
        )
    if not different:
        if is_new_branch:
            with explained(f"making the branch {revision} of {repo_id}"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        return str(info.sha), False
    present = {sibling.rfilename for sibling in info.siblings or []} - {".gitattributes"}
    if present and not force and not is_new_branch:
        raise ValueError(
            f"{repo_id} has other content at {revision}: {', '.join(sorted(different))} would change. Nothing was "
            "pushed; pass --force to make a commit that replaces them, or --revision to use another branch"
        )
    if is_new_branch:
        with explained(f"making the branch {revision} of {repo_id}"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
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
    except BaseException as error:
        now = _arrived(api, repo_id, revision, info, hashes) if isinstance(error, OSError) else None
        if now is not None:
            return now, True
        if is_new_branch:
            _remove_branch(api, repo_id, revision, info)
        raise


def _arrived(api: HfApi, repo_id: str, revision: str, before: Any, hashes: dict[str, tuple[str, str]]) -> str | None:
    """Return the commit that has the files after all: the answer may be what got lost."""
    try:
        now = api.model_info(repo_id, revision=revision, files_metadata=True)
    except Exception:
        return None
    return str(now.sha) if now.sha != before.sha and not _different(now, hashes) else None


def _remove_branch(api: HfApi, repo_id: str, revision: str, before: Any) -> None:
    """Remove a branch that was made for a commit that did not come, if it can be reached and nobody has used it."""
    try:
        if api.model_info(repo_id, revision=revision).sha == before.sha:
            api.delete_branch(repo_id, branch=revision)
    except Exception:
        return


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


def recorded_hash(sibling: Any) -> str:
    """Return the hash that the Hub records of a file: SHA-256, or git's id of what is no large file."""
    lfs = sibling.lfs
    return str((lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256) if lfs else sibling.blob_id)


def _different(info: Any, hashes: dict[str, tuple[str, str]]) -> set[str]:
    recorded = {sibling.rfilename: recorded_hash(sibling) for sibling in info.siblings or []}
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

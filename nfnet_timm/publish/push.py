"""Pushes a folder to the Hugging Face Hub in one commit and verifies it. ``huggingface_hub`` does the transfer."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.utils import validate_repo_id
from torch import nn

from nfnet_timm.formats.typed import check_types
from nfnet_timm.publish.class_names import check_class_names
from nfnet_timm.publish.folder import build_repo
from nfnet_timm.publish.hub_errors import hub_errors_explained
from nfnet_timm.publish.in_memory import open_network
from nfnet_timm.publish.locks import names_in
from nfnet_timm.publish.sources import Source
from nfnet_timm.publish.verify import Report, verify
from nfnet_timm.signals import stop_if_interrupted

__all__ = ["check_destination", "publish", "push", "push_to_hub"]

_GIVEN: dict[str, Any] = {
    "model": nn.Module,
    "repo_id": str,
    "revision": str,
    "license": str,
    "dataset": str | None,
    "label_names": list[str] | None,
    "metrics": dict[str, float],
}
_REF = r"[A-Za-z0-9_][A-Za-z0-9._/-]*"  # a branch or a tag


@contextmanager
def _float32_on_the_cpu() -> Iterator[None]:
    """Compute in float32 on the CPU, whatever the user has set, because the logits are recorded for all machines."""
    onednn: Any = torch.backends.mkldnn  # computes in bfloat16 after torch.set_float32_matmul_precision("medium")
    dtype, enabled = torch.get_default_dtype(), onednn.enabled
    torch.set_default_dtype(torch.float32)
    onednn.enabled = False
    try:
        with torch.device("cpu"), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(dtype)
        onednn.enabled = enabled


@_float32_on_the_cpu()
def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    license: str,
    label_names: Sequence[str] | None = None,
    metrics: Mapping[str, float] | None = None,
    dataset: str | None = None,
    private: bool = False,
    revision: str = "main",
    force: bool = False,
) -> Report:
    """Publish the network in ``model`` as ``nfnet-timm publish`` does, and return the report of ``verify``.

    ``model`` is not changed. The weights are published in float32, with the preprocessing in the network's
    ``pretrained_cfg``. In distributed training, call this in one process only.

    Args:
        model: A network of this package, or a module that contains one and no other parameters: a LightningModule,
            ``ModelEmaV3``, ``torch.compile``, DDP.
        repo_id: ``ORG/NAME``. The repo is created if it does not exist.
        license: Licence of the weights, by its name on the Hub, such as "apache-2.0".
        label_names: Names of the classes, in the order of the outputs.
        metrics: Values by name, such as ``{"top1": 87.5}``. The card shows them as stated by the owner.
        dataset: The data on which the metrics were measured: the id of a dataset on the Hub, or any name.
        private: Whether a new repo is private.
        revision: The branch. It is created if it does not exist.
        force: Whether to replace other content of the repo.
    Raises:
        ValueError: If ``timm.create_model`` cannot build the network in ``model`` again, if an argument has the wrong
            type, or if the repo has other content. See also ``push`` and ``verify``.
        OSError: If the Hub cannot be reached or refuses.
    Differs from timm: ``push_to_hf_hub`` does not check the files, and also writes a pickle.
    """
    names: Any = label_names
    # check_types refuses a set and a mapping: their order need not be that of the outputs.
    if not isinstance(names, str | Set | Mapping | None):
        names = list(names)
    figures: Any = {} if metrics is None else metrics
    if isinstance(figures, Mapping):
        figures = {name: _number(value) for name, value in figures.items()}
    given = {"model": model, "repo_id": repo_id, "revision": revision, "license": license, "dataset": dataset}
    check_types({**given, "label_names": names, "metrics": figures}, _GIVEN, "push_to_hub")
    for name in ("top1", "top5"):
        if not 0 <= figures.get(name, 0) <= 100:
            raise ValueError(f"metrics: {name} is {figures[name]}, expected a percentage, 0 to 100")
    check_destination(repo_id, revision)
    source = open_network(model)
    source.metrics, source.dataset = figures, dataset
    if names is not None:
        source.label_names = check_class_names(names, source.model.num_classes, "label_names")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / repo_id.split("/")[-1]
        build_repo(source, repo_id, folder, license)
        return publish(source, folder, repo_id, private=private, revision=revision, force=force)[0]


def _number(value: Any) -> Any:
    """Return the number in a scalar of torch or NumPy; else ``value``."""
    try:
        return value.item()
    except (AttributeError, ValueError, RuntimeError):
        return value


def publish(source: Source, folder: Path, repo_id: str, tag: str | None = None, **options: Any) -> tuple[Report, bool]:
    """Push a folder that ``build_repo`` wrote, verify the commit, and tag it. For errors see the functions it calls.

    Args:
        options: Further arguments of ``push``.
    Returns:
        The report of ``verify``, and whether the commit is new.
    """
    commit, new = push(folder, repo_id, tag=tag, **options)
    try:
        report = verify(repo_id, commit, source.model)
    except (ValueError, OSError) as error:
        kind = ValueError if isinstance(error, ValueError) else OSError
        raise kind(f"{repo_id} was pushed as commit {commit}, but was not verified: {error}") from None
    if tag is not None:
        with hub_errors_explained(f"tagging {repo_id}"):
            HfApi().create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)
    return report, new


def check_destination(repo_id: str, revision: str = "main", tag: str | None = None) -> None:
    """Raise ValueError unless these are valid names of a repo, a branch and a tag. Needs no network."""
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r}: expected ORGANIZATION/NAME, or USER/NAME")
    validate_repo_id(repo_id)
    for kind, name in (("branch", revision), ("tag", tag)):
        if name is not None and (not re.fullmatch(_REF, name) or ".." in name or name.endswith((".lock", ".", "/"))):
            raise ValueError(f"{name!r} cannot be the name of a {kind}: expected letters, digits and . _ - /")


def push(
    folder: Path,
    repo_id: str,
    private: bool = False,
    revision: str = "main",
    tag: str | None = None,
    message: str | None = None,
    force: bool = False,
) -> tuple[str, bool]:
    """Push the files of ``folder`` to ``repo_id`` in one commit; return the commit, and whether it is new.

    Creates the repo and the branch if they do not exist. A new branch starts from main. If the repo has the same
    content, there is no new commit. Other files of the repo stay. After an error, the repo has all the files or none.

    Args:
        tag: The tag that ``publish`` will create. No other commit may have it.
    Raises:
        ValueError: If there is no access token, if the branch has other content and ``force`` is not set, if another
            commit has the tag, if a branch and a tag would have the same name, or if the repo is public and
            ``private`` is set.
        OSError: If the Hub cannot be reached or refuses.
    """
    if not get_token():
        raise ValueError("no access token: log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    stop_if_interrupted()
    with hub_errors_explained(f"creating {repo_id}"):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    with hub_errors_explained(f"reading {repo_id}"):
        refs = api.list_repo_refs(repo_id)
        branches = {"main", *(ref.name for ref in refs.branches)}
        tags = {ref.name: ref.target_commit for ref in refs.tags}
        is_new_branch = revision not in branches
        info = api.model_info(repo_id, revision="main" if is_new_branch else revision)
        head = str(info.sha)
        different = _different(api, repo_id, head, folder)
    if private and not info.private:
        raise ValueError(
            f"{repo_id} exists and is public: make it private in its settings, or do not ask for a private one"
        )
    if both := {revision, tag} & {*branches, revision} & {*tags, tag}:
        raise ValueError(
            f"{both.pop()} would be a branch and a tag of {repo_id}, and its users would not know which one they get: "
            "choose another name. Nothing was pushed"
        )
    tagged = tags.get(tag or "")
    if tagged is not None and (different or tagged != head):
        raise ValueError(
            f"{repo_id} has the tag {tag} at {tagged}: choose another name for the tag. Nothing was pushed"
        )
    present = {sibling.rfilename for sibling in info.siblings or []} - {".gitattributes"}
    if different and present and not force and not is_new_branch:
        raise ValueError(
            f"{repo_id} has other content at {revision}: {', '.join(different)} would change. Nothing was "
            "pushed; pass --force (force=True) to make a commit that replaces them, or --revision to use another branch"
        )
    if is_new_branch:
        with hub_errors_explained(f"creating the branch {revision} of {repo_id}"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    if not different:
        return head, False
    names = names_in(folder)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names]
    try:
        stop_if_interrupted()
        with hub_errors_explained(f"pushing to {repo_id}"):
            commit = api.create_commit(
                repo_id,
                operations=operations,
                commit_message=message or f"Publish {folder.name}",
                revision=revision,
                parent_commit=head,
            )
        return commit.oid, True
    except BaseException as error:
        is_lost = isinstance(error, OSError)  # the Hub may have made the commit, and only its answer was lost
        with suppress(Exception):
            now = str(api.model_info(repo_id, revision=revision).sha) if is_lost or is_new_branch else head
            if now == head and is_new_branch:
                api.delete_branch(repo_id, branch=revision)
            if now != head and is_lost and not _different(api, repo_id, now, folder):
                return now, True
        raise


def _different(api: HfApi, repo_id: str, commit: str, folder: Path) -> list[str]:
    """Return the names of the files of ``folder`` that the repo does not have, or has with other content."""
    found = api.verify_repo_checksums(repo_id, revision=commit, local_dir=folder)
    return sorted({*found.extra_paths, *(mismatch["path"] for mismatch in found.mismatches)} & set(names_in(folder)))

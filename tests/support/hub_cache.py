"""Writes a repository to a Hub cache, as huggingface_hub does after a download."""

import torch
from timm.models import save_for_hf

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_hub_cache(home, name: str, model: torch.nn.Module) -> None:
    """Write a repository in timm's form to a Hub cache, with the symbolic links that huggingface_hub creates."""
    repo = home / "hub" / f"models--timm--{name.replace('/', '--')}"
    snapshot, blobs = repo / "snapshots" / COMMIT, repo / "blobs"
    for folder in (snapshot, blobs, repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    save_for_hf(model, blobs, safe_serialization=True)
    for i, file in enumerate(("config.json", "model.safetensors")):
        blob = blobs / f"{i:040x}"
        (blobs / file).rename(blob)
        (snapshot / file).symlink_to(f"../../blobs/{blob.name}")

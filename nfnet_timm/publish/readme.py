"""Reads the model card (README.md) of a folder. Its owner may have written or edited it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from nfnet_timm.formats.typed import check_types

__all__ = ["card_metadata", "read_card"]

# Entries that check_folder requires, with their types.
_TYPES = {"license": str | None, "library_name": str | None, "pipeline_tag": str | None, "tags": list[str] | None}


def read_card(path: Path) -> str:
    """Return the text of a README.md, with the line endings of the file.

    Raises:
        ValueError: If it is not UTF-8, or if ``card_metadata`` cannot read its metadata.
        OSError: If it cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None
    card_metadata(text, str(path))
    return text


def card_metadata(text: str, where: str) -> dict[str, Any]:
    """Return the metadata of a model card (the YAML block at its top), or {} if there are none.

    Args:
        where: The name of the card in messages.
    Raises:
        ValueError: If the block is not YAML, or has entries of other types than the Hub expects.
    """
    block = REGEX_YAML_BLOCK.search(text)
    try:
        metadata = (yaml.safe_load(block[2]) if block else None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
            raise ValueError("expected a value for each name")
        check_types(metadata, _TYPES, "between them")
        # Raises if the evaluation results are not in the Hub's form.
        results: Any = {"model-index": metadata.get("model-index")}
        ModelCardData(**results)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())  # YAML's message has several lines
        raise ValueError(f"the metadata of {where}, between its two ---, cannot be read: {reason}") from None
    return metadata

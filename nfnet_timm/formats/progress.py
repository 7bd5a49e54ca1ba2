"""A progress bar in bytes for work that takes longer than a second."""

from typing import Any

from huggingface_hub.utils import tqdm

__all__ = ["bytes_bar"]


def bytes_bar(total: int, doing: str) -> Any:
    """Return a tqdm bar of ``total`` bytes; several threads may ``update`` it.

    It appears after a second, and only on a terminal. ``HF_HUB_DISABLE_PROGRESS_BARS=1`` hides it.
    """
    return tqdm(total=total, desc=doing, unit="B", unit_scale=True, delay=1, leave=False, disable=None)

"""A progress bar in bytes for what takes longer than a second; none where nobody watches."""

from typing import Any

from huggingface_hub.utils import tqdm

__all__ = ["bytes_bar"]


def bytes_bar(total: int, doing: str) -> Any:
    """Return a tqdm bar to ``update`` with numbers of bytes, also from several threads.

    It appears after a second, on a terminal only, and not at all under ``HF_HUB_DISABLE_PROGRESS_BARS``.
    """
    return tqdm(total=total, desc=doing, unit="B", unit_scale=True, delay=1, leave=False, disable=None)

"""Downloads the authors' files and compares their MD5 with the recorded one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from nfnet_timm.publish.checkpoints import load_published
from nfnet_timm.publish.fingerprints import identify
from nfnet_timm.publish.hub_errors import hub_errors_explained
from nfnet_timm.publish.locks import locked
from nfnet_timm.publish.staging import refuse_irregular

__all__ = ["download"]

_RANGE_NOT_SATISFIABLE = 416  # the HTTP status
_ADVICE = {
    404: "the file no longer exists: check whether deepmind-research/nfnets lists another address",
    403: "the file is no longer public: check whether deepmind-research/nfnets lists another address",
    429: "the server got too many requests: run the command again in some minutes",
}


def download(name: str, folder: Path) -> tuple[Path, bool]:
    """Download the released file of ``name`` to ``folder``; return its path, and whether it was downloaded now.

    A file that exists and has the recorded MD5 is not downloaded again. The name of an incomplete file ends in .part.
    If the connection breaks, the next call continues this file. Waits while another run downloads the same file.

    Args:
        name: A name in hub/checkpoints.toml, such as "nfnet_f0.dm_in1k", or its short form "f0".
    Raises:
        ValueError: If no file of this name was released, or if the downloaded or an existing file has another MD5.
        OSError: If the server cannot be reached or refuses, or if the disk is full.
    """
    files = {_short(full): released for full, released in load_published()["checkpoints"].items()}
    if _short(name.lower()) not in files:
        raise ValueError(f"no file was released for {name!r}: expected one of {', '.join(files)}")
    released = files[_short(name.lower())]
    path, md5 = folder / released["file"], released["md5"]
    partial = path.with_name(f"{path.name}.part")
    for file in (path, partial):
        refuse_irregular(file)
    if _is_there(path, md5):
        return path, False
    with locked(folder, path.name):
        if _is_there(path, md5):  # another run has downloaded it while this one waited
            return path, False
        resumed = partial.exists()
        _fetch(released, partial)
        if resumed and _md5(partial) != md5:  # the old .part file may be the start of another file
            partial.unlink()
            _fetch(released, partial)
        found = _md5(partial)
        if found != md5:
            partial.unlink()
            raise ValueError(
                f"{released['url']} sends another file: its MD5 is {found}, expected {md5}. It was not kept. Run the "
                "command again; if the MD5 stays, look at the address in a browser: a login page may answer"
            )
        os.replace(partial, path)
    return path, True


def _short(name: str) -> str:
    return name.removeprefix("nfnet_").removesuffix(".dm_in1k")


def _is_there(path: Path, md5: str) -> bool:
    if not path.exists():
        return False
    found = _md5(path)
    if found != md5:
        raise ValueError(
            f"{path} exists and is not the released file: its MD5 is {found}, expected {md5}. Move it away, or choose "
            "another folder with --to"
        )
    return True


def _fetch(released: dict[str, Any], partial: Path) -> None:
    try:
        with partial.open("ab") as file, hub_errors_explained(f"downloading {released['url']}", _ADVICE):
            there = file.tell()
            try:
                http_get(released["url"], file, resume_size=there, displayed_filename=released["file"])
            except HfHubHTTPError as error:
                # The .part file is complete, or it is longer than the released file. The caller compares its MD5.
                if not (there and error.response.status_code == _RANGE_NOT_SATISFIABLE):
                    raise
    except BaseException:
        if partial.exists() and not partial.stat().st_size:
            partial.unlink()
        raise


def _md5(path: Path) -> str:
    return identify(path)["source_md5"]

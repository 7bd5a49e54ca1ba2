"""The authors' files from where they were released, complete and right or not there at all."""

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

__all__ = ["download"]

_RANGE_NOT_SATISFIABLE = 416  # the HTTP status
_ADVICE = {
    404: "the file is no longer there: look whether deepmind-research/nfnets names another address",
    403: "the file may not be read any more: look whether deepmind-research/nfnets names another address",
    429: "the server asks for a pause: run the command again in some minutes",
}


def download(name: str, folder: Path) -> tuple[Path, bool]:
    """Fetch the released file of ``name`` into ``folder``; return its path, and whether it had to be fetched.

    What has arrived when the connection breaks stays beside it, and the next call goes on from there. It is moved into
    place when its size, where that is known, and its MD5 are the recorded ones. A file that is there and right is not
    fetched again. While another run fetches the same file into ``folder``, this one waits.

    Args:
        name: A name of hub/checkpoints.toml, such as "nfnet_f0.dm_in1k", or its short form "f0".
    Raises:
        ValueError: If there is no such file, what is sent is another one, or another one is in its place.
        OSError: If the server cannot be reached or refuses, or the disk is full.
    """
    released = _released(name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder, name one with --to")
    path = folder / released["file"]
    if _is_there(path, released["md5"]):
        return path, False
    with locked(folder, path.name):
        if _is_there(path, released["md5"]):  # another run has fetched it meanwhile
            return path, False
        _fetch_checked(released, path)
    return path, True


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


def _fetch_checked(released: dict[str, Any], path: Path) -> None:
    partial = path.with_name(f"{path.name}.part")
    resumed = partial.exists()
    _fetch(released, partial)
    if resumed and _md5(partial) != released["md5"]:  # its beginning may be another file's
        partial.unlink()
        _fetch(released, partial)
    found = _md5(partial)
    if found != released["md5"]:
        partial.unlink()
        raise ValueError(
            f"{released['url']} sends another file: its MD5 is {found}, expected {released['md5']}. It was not kept"
        )
    os.replace(partial, path)


def _released(name: str) -> dict[str, Any]:
    checkpoints = load_published()["checkpoints"]
    for full, released in checkpoints.items():
        if name.lower() in (full, full.split(".")[0], full.split(".")[0].removeprefix("nfnet_")):
            return released
    short = ", ".join(full.split(".")[0].removeprefix("nfnet_") for full in checkpoints)
    raise ValueError(f"no file was released for {name!r}: expected one of {short}")


def _fetch(released: dict[str, Any], partial: Path) -> None:
    with hub_errors_explained(f"downloading {released['url']}", _ADVICE), partial.open("ab") as file:
        there = file.tell()
        try:
            http_get(
                released["url"],
                file,
                resume_size=there,
                expected_size=released.get("bytes"),
                displayed_filename=released["file"],
            )
        except HfHubHTTPError as error:
            # Nothing follows what is there: all of it is, or it is another file's. Its MD5 tells.
            if not (there and error.response.status_code == _RANGE_NOT_SATISFIABLE):
                raise


def _md5(path: Path) -> str:
    return identify(path)["source_md5"]

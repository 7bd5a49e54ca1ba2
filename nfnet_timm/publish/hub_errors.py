"""Turns errors of the Hub's client into one line that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError

from huggingface_hub import get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

__all__ = ["hub_errors_explained"]

# The client's versions use the HTTP libraries httpx, httpx2 or requests. Errors of requests are OSErrors.
_LIBRARIES = ("httpx", "httpx2", "httpcore", "huggingface_hub")
# From the client if a proxy has answered, or if the answer is incomplete.
_Unreadable = JSONDecodeError | KeyError | TypeError | AttributeError
_ADVICE = {
    401: "the Hub does not accept the access token: log in again with `hf auth login`, or set HF_TOKEN",
    403: "the access token has no write access there: create one with write access, and log in with `hf auth login`",
    404: "the repo or revision does not exist, or it is private and the access token may not read it: check the name, "
    "or log in with `hf auth login`",
    412: "another push came first and yours was not made: look at the repo, then run the command again",
    429: "the Hub got too many requests: run the command again in some minutes",
}


@contextmanager
def hub_errors_explained(doing: str, advice: dict[int, str] | None = None) -> Iterator[None]:
    """Turn errors of the Hub's client into an OSError that says what failed and what to do.

    The message never contains the access token. Other errors are raised unchanged.

    Args:
        doing: The action, such as "reading org/name".
        advice: What to do, by HTTP status. The default is advice for the Hub.
    """
    try:
        yield
    except Exception as error:
        # Errors of an upload arrive as RuntimeErrors.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        token = get_token()
        if isinstance(cause, UnicodeEncodeError) and token and not token.isascii():  # it cannot be sent
            raise OSError(
                f"{doing} failed: the access token contains characters other than ASCII. To do: copy it again, and log "
                "in with `hf auth login`, or set HF_TOKEN"
            ) from None
        library = type(cause).__module__.split(".")[0]
        if not isinstance(cause, OSError | _Unreadable) and library not in _LIBRARIES:
            raise
        status = getattr(getattr(cause, "response", None), "status_code", None)
        retry = "run the same command again; data that has arrived is not sent again"
        known = _ADVICE if advice is None else advice
        to_do = known.get(status or 0, retry) if isinstance(cause, HfHubHTTPError) else retry
        if isinstance(cause, GatedRepoError):
            to_do = "ask for access on the page of the repo, and log in with `hf auth login`"
        elif isinstance(cause, RepositoryNotFoundError):
            to_do = _ADVICE[404]  # the Hub's status is 401 if there is no access token
        elif isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            to_do = "make room on this disk (TMPDIR sets that of temporary files), then run the same command again"
        elif isinstance(cause, OfflineModeIsEnabled):
            to_do = "offline mode is on: unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, then run the command again"
        reason = " ".join(str(cause).split()) or type(cause).__name__
        if isinstance(cause, _Unreadable):
            reason = f"the answer cannot be read: {type(cause).__name__} {reason}"
        if token:
            reason = reason.replace(token, "***")
        raise OSError(f"{doing} failed: {reason[:300].rstrip('.')}. To do: {to_do}") from None

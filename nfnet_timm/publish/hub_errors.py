"""Errors of the Hub's client as one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError

__all__ = ["hub_errors_explained"]

_ADVICE = {
    401: "the Hub does not accept the access token: log in again with `hf auth login`, or set HF_TOKEN",
    403: "the access token has no right to write there: make one that has, and log in with `hf auth login`",
    404: "there is no such repo or revision, or it is private and the access token may not read it",
    412: "somebody else has pushed at the same time; your files were not pushed: look at the repo, then run this again",
    429: "the Hub asks for a pause: run the command again in some minutes",
}


@contextmanager
def hub_errors_explained(doing: str, advice: dict[int, str] | None = None) -> Iterator[None]:
    """Turn what the client raises into an OSError with what failed and what to do, without the access token.

    Args:
        doing: What is being done, such as "reading org/name".
        advice: What to do, by HTTP status; by default what helps with the Hub.
    """
    try:
        yield
    except Exception as error:
        # Errors of an upload arrive as RuntimeErrors.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        # httpx, httpx2 and requests are the HTTP libraries of the client's versions.
        library = type(cause).__module__.split(".")[0]
        if not isinstance(cause, OSError) and library not in ("httpx", "httpx2", "httpcore", "huggingface_hub"):
            raise
        status = getattr(getattr(cause, "response", None), "status_code", None)
        again = "run the same command again; what has arrived is not sent twice"
        known = _ADVICE if advice is None else advice
        to_do = known.get(status or 0, again) if isinstance(cause, HfHubHTTPError) else again
        reason = " ".join(str(cause).split()) or type(cause).__name__
        token = get_token()
        if token:
            reason = reason.replace(token, "***")
        raise OSError(f"{doing} failed: {reason[:300].rstrip('.')}. To do: {to_do}") from None

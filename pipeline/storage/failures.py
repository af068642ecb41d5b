"""Which failures of a store would come again: no such file, no permission. Everything else may pass."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["causes", "http_status", "is_permanent", "status_of"]

_STATUSES = frozenset({401, 403, 404, 405, 410, 411, 416, 501})  # not 400, which S3 gives for timeouts too
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_permanent(error: BaseException) -> bool:
    """Whether trying again is pointless, by what caused the error in the first place, as far as that can be told.

    The first cause decides, not the last error: fsspec's HTTP client says "not found" of a server that does not
    answer, too. Timeouts, dropped connections, throttling, 5xx and whatever is not known are not permanent.
    """
    for cause in causes(error):
        verdict = _verdict(cause)
        if verdict is not None:
            return verdict
    return False


def causes(error: BaseException) -> Sequence[BaseException]:
    """What caused the error in the first place, and so on up to the error itself."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain[::-1]


def status_of(error: BaseException) -> int | None:
    """The HTTP status that this very error, of a store's client, carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", None)  # Azure's, and httpx's, which Hugging Face's hub is asked by
        if status is None:
            status = getattr(error, "status", None)  # aiohttp's
        if status is None and type(error).__module__.startswith("gcsfs"):
            status = getattr(error, "code", None)
    return status if isinstance(status, int) else None


def http_status(error: BaseException | None) -> int | None:
    """The status with which a web server refused, as far as it is known."""
    while error is not None:
        status = getattr(error, "status", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def _verdict(error: BaseException) -> bool | None:
    status = status_of(error)
    if status is not None:
        return status in _STATUSES
    if isinstance(error, ConnectionError | TimeoutError):
        return False
    return True if isinstance(error, _PERMANENT) else None

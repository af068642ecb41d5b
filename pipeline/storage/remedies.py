"""What to do about a store that refuses or does not answer, by what caused the error in the first place."""

from __future__ import annotations

from typing import Literal

from tatok.pipeline.storage.failures import causes, status_of

__all__ = ["NO_PACKAGE_REMEDY", "SILENT_REMEDY", "access_remedy", "spelling_remedy"]

SILENT_REMEDY = "the store does not answer: check storage's endpoint_url, and the network"
NO_PACKAGE_REMEDY = "install the extra of the scheme, such as tatok[s3] or tatok[gcs]"

_Trouble = Literal["forbidden", "no credentials", "silent", "missing", "no package"]

_BY_STATUS: dict[int, _Trouble] = {401: "no credentials", 403: "forbidden", 404: "missing", 410: "missing"}
# Classes by name, of which a store's client need not be installed: those of botocore, aiohttp, google-auth, azure-core
# and httpx, and the system's.
_BY_CLASS: dict[str, _Trouble] = {
    "NoCredentialsError": "no credentials",
    "PartialCredentialsError": "no credentials",
    "CredentialRetrievalError": "no credentials",
    "TokenRetrievalError": "no credentials",
    "GoogleAuthError": "no credentials",
    "CredentialUnavailableError": "no credentials",
    "ConnectionError": "silent",
    "HTTPClientError": "silent",
    "ClientConnectionError": "silent",
    "ServiceRequestError": "silent",
    "ServiceResponseError": "silent",
    "TransportError": "silent",
    "TimeoutError": "silent",
    "gaierror": "silent",
    "PermissionError": "forbidden",
    "FileNotFoundError": "missing",
    "ImportError": "no package",
}


def access_remedy(error: BaseException, url: str, verb: Literal["read", "write"]) -> str | None:
    """What to do where `error` came of reading or writing at a URL or path; None where its cause is not known."""
    match next((trouble for cause in causes(error) if (trouble := _trouble(cause)) is not None), None):
        case "forbidden" if "://" not in url:
            return f"whoever runs the job may not {verb} there: check the permissions of the folder and those above"
        case "forbidden":
            return f"the credentials in use may not {verb} there: check the role or the key, and the bucket's policy"
        case "no credentials":
            return "there are no usable credentials: a role, a profile, or variables named in `storage`"
        case "silent":
            return SILENT_REMEDY
        case "missing":
            return spelling_remedy(url)
        case "no package":
            return NO_PACKAGE_REMEDY
    return None


def spelling_remedy(url: str) -> str:
    """What to do where nothing is found at a URL or path."""
    return f"check the spelling of the {'bucket and path' if '://' in url else 'path'}"


def _trouble(error: BaseException) -> _Trouble | None:
    status = status_of(error)
    if status is not None:
        return _BY_STATUS.get(status)
    return next((_BY_CLASS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _BY_CLASS), None)

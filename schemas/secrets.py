"""What looks like a credential, and so must never be in a job file, a log, a run document or a job's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from urllib.parse import parse_qsl, urlsplit

__all__ = ["REMEDY", "credential_in_url", "is_signed_by_a_store", "literal_credentials", "names_a_credential"]

REMEDY = "give credentials by reference: a profile, an instance role, or the name of an environment variable"

_WORDS = frozenset({
    "auth", "authorization", "cookie", "cookies", "credential", "credentials", "key", "passwd", "password", "pwd",
    "sas", "secret", "secrets", "sig", "signature", "token",
})  # fmt: skip
_SAFE_NAMES = frozenset({"anon_key", "key_prefix", "sort_keys", "key_file", "ssekms_key_id"})
_NAMES_A_FILE = ("_file", "_filename", "_path")
# What gcsfs takes as `token` that is a way to log in, not a credential.
_WAYS_TO_LOG_IN = frozenset({"anon", "google_default", "cloud", "cache", "browser"})
_IN_ONE_WORD = re.compile(r"(signature|accesstoken|accesskey|apikey)", re.IGNORECASE)
# What comes beside the signature of AWS, Google, CloudFront and Azure, in lower case.
_SIGNERS = frozenset({
    "x-amz-signature", "x-amz-security-token", "awsaccesskeyid", "x-goog-signature", "googleaccessid", "key-pair-id",
})  # fmt: skip


def names_a_credential(name: str) -> bool:
    """Whether a variable's or an option's name says that it holds a credential: a word of it is `secret`, `key`, ..."""
    if name.lower() in _SAFE_NAMES:
        return False
    words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+", name)
    return any(word.lower() in _WORDS for word in words) or name.lower() in ("connection_string", "connectionstring")


def credential_in_url(url: str) -> str | None:
    """What in a URL is a credential ("a password", the parameter of a signature); None where nothing is."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if not parts.scheme:
        return None
    if parts.password:
        return "a password"
    if parts.username and parts.scheme in ("http", "https"):  # elsewhere it is a container, as in abfs://photos@account
        return "a user name"
    found = next((name for name, value in parse_qsl(parts.query) if _is_credential(name, value)), None)
    return None if found is None else f"the parameter {found}"


def _is_credential(name: str, value: str) -> bool:
    if name.lower() == "key" and "/" in value:  # an object's
        return False
    return names_a_credential(name) or _IN_ONE_WORD.search(name) is not None


def is_signed_by_a_store(url: str) -> bool:
    """Whether who knows this URL may read what it names for a while: signed for S3, Google Cloud, CloudFront, Azure.

    Narrower than `credential_in_url`: a row of somebody's list of images may well have parameters of other kinds.
    """
    try:
        names = {name.lower() for name, _ in parse_qsl(urlsplit(url).query)}
    except ValueError:
        return False
    return bool(names & _SIGNERS) or {"sig", "sv"} <= names


def literal_credentials(options: Mapping[str, object], place: str) -> Iterator[str]:
    """The dotted names, below `place`, of options that hold a credential itself instead of a reference to one.

    A reference is a mapping {env: NAME}, the file that an option named so (`key_file`) names, and what
    Google's `token` may be instead of a token: a file's path, or a way to log in.
    """
    for name, value in options.items():
        yield from _literal(name, value, f"{place}.{name}")


def _literal(name: str, value: object, here: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        if set(value) != {"env"}:
            yield from literal_credentials(value, here)
    elif isinstance(value, list | tuple):
        is_pair = len(value) == 2 and isinstance(value[0], str)  # of a header's name and its value
        found = _literal(str(value[0]), value[1], here) if is_pair else iter(())
        yield from islice(chain(found, *(_literal(name, each, here) for each in value)), 1)
    elif isinstance(value, str):
        is_path = value.startswith(("/", "~"))
        of_google = here.endswith((".gs.token", ".gcs.token"))
        is_reference = (is_path or value in _WAYS_TO_LOG_IN) if of_google else name.endswith(_NAMES_A_FILE)
        if (names_a_credential(name) and not is_reference) or credential_in_url(value):
            yield here

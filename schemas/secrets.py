"""What looks like a credential, and so must never stand in a job file, a log, run.json or a job's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, urlsplit

__all__ = ["REMEDY", "credential_in_url", "literal_credentials", "names_a_credential"]

REMEDY = "give credentials by reference: a profile, an instance role, or the name of an environment variable"

_WORDS = frozenset({
    "auth", "authorization", "cookie", "credential", "credentials", "key", "passwd", "password", "pwd", "sas",
    "secret", "secrets", "sig", "signature", "token",
})  # fmt: skip
_SAFE_NAMES = frozenset({"anon_key", "key_prefix", "sort_keys", "key_file", "ssekms_key_id"})
# What gcsfs takes as `token` that is a way to log in, not a credential.
_WAYS_TO_LOG_IN = frozenset({"anon", "google_default", "cloud", "cache", "browser"})
_SIGNED = re.compile(r"(signature|credential|security-token|access_?token|api_?key|^sig$|^sas$|^token$)", re.IGNORECASE)


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
    if parts.scheme and parts.password:
        return "a password"
    signed = [name for name, _ in parse_qsl(parts.query) if _SIGNED.search(name)] if parts.scheme else []
    return f"the parameter {signed[0]}" if signed else None


def literal_credentials(options: Mapping[str, object], place: str) -> Iterator[str]:
    """The dotted names, below `place`, of options that hold a credential itself instead of a reference to one.

    A reference is a mapping {env: NAME}; a path to a file is one, too.
    """
    for name, value in options.items():
        here = f"{place}.{name}"
        if isinstance(value, Mapping):
            if set(value) != {"env"}:
                yield from literal_credentials(value, here)
        elif isinstance(value, str):
            is_reference = value.startswith(("/", "~")) or value in _WAYS_TO_LOG_IN
            if (names_a_credential(name) and not is_reference) or credential_in_url(value):
                yield here

"""A job's storage options, over defaults that bound every wait -> this process's fsspec, which opens every URL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fsspec.config import conf

from tatok.schemas.errors import ConfigError

__all__ = ["options_of", "storage_options", "use_storage"]

# The schemes that a file system answers to. fsspec reads the options of all of them, the last one's over the first's.
_FAMILIES = (("s3", "s3a"), ("gs", "gcs"), ("az", "abfs", "abfss"), ("http", "https"))
_S3_CONNECT_S, _S3_READ_S = 5, 15
_S3_REPEATS = 2  # by botocore, of what a server answers with 5xx, too; around them s3fs makes five attempts of its own
_AZ_CONNECT_S, _AZ_READ_S = 5, 20  # of each of the four attempts that Azure's client makes
_GS_REQUEST_S = 120  # of a whole request: a block that is read, or 50 MiB of a part
_WEB_TIMEOUT = {"total": None, "sock_connect": 10, "sock_read": 20}  # a tar that is one long answer may take hours


def use_storage(storage: Mapping[str, Mapping[str, Any]]) -> None:
    """Let every file system that this process opens from now on have the options of its URL's scheme.

    `storage` is `JobConfig.storage`; {env: NAME} stands for that variable of this process's environment, and the value
    goes nowhere else. What it does not say stays as fsspec's own configuration has it, else as here: no server that is
    silent is waited for without end. Raises ConfigError if there is no such variable.
    """
    # fsspec's own place for defaults reaches plans, parts, checkpoints and whatever a library opens for us.
    conf.update(_configuration(storage))


@contextmanager
def storage_options(storage: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """`use_storage` for the time of a `with` block."""
    before = dict(conf)
    use_storage(storage)
    try:
        yield
    finally:
        conf.clear()
        conf.update(before)


def options_of(scheme: str) -> dict[str, Any]:
    """The options with which a URL of this scheme is opened now; with the defaults, even before any `use_storage`."""
    options: dict[str, Any] = {}
    for family in _FAMILIES:
        if scheme in family:
            configured = _configuration({})
            for name in family:
                options = _merged(options, configured.get(name, {}))
    return options or dict(conf.get(scheme, {}))


def _configuration(storage: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    options = {
        scheme: _merged(conf.get(scheme, {}), _resolved(given, f"storage.{scheme}"))
        for scheme, given in storage.items()
    }
    for family in _FAMILIES:
        below = _defaults(family[0])
        for scheme in family:
            given = options.get(scheme, conf.get(scheme))
            if scheme == family[0] or given is not None:
                below = options[scheme] = _merged(below, given or {})
    return options


def _defaults(scheme: str) -> dict[str, Any]:
    match scheme:
        case "s3":
            # botocore's own variables say the same thing to all of its users, and so go before.
            retries: dict[str, Any] = {}
            if "AWS_RETRY_MODE" not in os.environ:
                retries["mode"] = "standard"
            if "AWS_MAX_ATTEMPTS" not in os.environ:
                retries["max_attempts"] = _S3_REPEATS  # what is set as total_max_attempts goes before it
            waits = {"connect_timeout": _S3_CONNECT_S, "read_timeout": _S3_READ_S}
            return {"config_kwargs": waits | ({"retries": retries} if retries else {})}
        case "gs":
            return {"requests_timeout": _GS_REQUEST_S}
        case "az":
            return {"connection_timeout": _AZ_CONNECT_S, "read_timeout": _AZ_READ_S}
        case _:
            return {"client_kwargs": {"timeout": _WEB_TIMEOUT}, "get_client": _web_client}


async def _web_client(*, timeout: Any = None, **options: Any) -> Any:
    """An aiohttp session whose `timeout` may be seconds in all, or aiohttp's own names for its kinds."""
    import aiohttp  # only the web needs it

    if isinstance(timeout, int | float):
        timeout = aiohttp.ClientTimeout(total=timeout)
    elif isinstance(timeout, Mapping):
        timeout = aiohttp.ClientTimeout(**timeout)
    return aiohttp.ClientSession(timeout=timeout, **options)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """All options of both, those of `above` where both have one; within options that are mappings, too."""
    merged = dict(below)
    for name, value in above.items():
        other = merged.get(name)
        merged[name] = _merged(other, value) if isinstance(other, Mapping) and isinstance(value, Mapping) else value
    return merged


def _resolved(options: Mapping[str, Any], place: str) -> dict[str, Any]:
    return {name: _value(value, f"{place}.{name}") for name, value in options.items()}


def _value(value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if set(value) != {"env"}:
        return _resolved(value, name)
    variable = str(value["env"])
    if variable not in os.environ:
        raise ConfigError(
            f"{name} refers to the environment variable {variable}, which is not set in this process; set it on every "
            "machine of the cluster, by its secrets or before `ray start`"
        )
    return os.environ[variable]

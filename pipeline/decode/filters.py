"""A user's filter: a function over what is known of a sample, named by its import path, which keeps or drops it."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tatok.schemas.errors import ConfigError
from tatok.schemas.records import FILTERED, Clip, Reject, Sample, SampleFacts

__all__ = ["Filter", "apply_filter", "filter_identity", "load_filter"]

Filter = Callable[[SampleFacts], bool | str]
"""True keeps the sample, False drops it, a text drops it and says why."""


def load_filter(path: str) -> Filter:
    """The function at `module:function`; modules are also found in the current folder.

    Raises ConfigError if it cannot be imported or is not callable.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"filter {path!r}: name a function as module:function, such as my_filters:keep")
    if os.getcwd() not in sys.path:  # installed commands do not look there
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # whatever the user's module does when it is imported
        raise ConfigError(
            f"filter {path!r} cannot be imported: {type(error).__name__}: {error}; put its module on PYTHONPATH, "
            "on every node"
        ) from error
    if not callable(found):
        raise ConfigError(f"filter {path!r} is a {type(found).__name__}, not a function")
    return found


def filter_identity(path: str | None) -> dict[str, str]:
    """What a dataset remembers of its filter: where it was, and the hash of its module's source; empty for none."""
    if path is None:
        return {}
    try:
        source = inspect.getsourcefile(load_filter(path))
        digest = hashlib.sha256(Path(source or "").read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):
        digest = "no source"
    return {"filter": f"{path} ({digest})"}


def apply_filter(keep: Filter, sample: Sample, decoded: Iterable[Clip | Reject]) -> Iterator[Clip | Reject]:
    """The clips and rejects of a sample that the filter keeps; else one reject of stage "filter".

    The filter is asked once a sample, when its first clip gives the size; what is dropped is not decoded further.
    Reasons: "filtered", "filtered: TEXT" where it returned a text, "filter_error" where it raised or returned
    something else.
    """
    asked = False
    for result in decoded:
        if isinstance(result, Clip) and not asked:
            asked = True
            dropped = _verdict(keep, sample, result)
            if dropped is not None:
                yield dropped
                return
        yield result


def _verdict(keep: Filter, sample: Sample, clip: Clip) -> Reject | None:
    facts = SampleFacts(
        key=clip.key,
        uri=clip.uri,
        index=clip.index,
        media=clip.media,
        extension=sample.extension,
        num_bytes=len(sample.payload),
        sha256=clip.sha256,
        width=clip.width,
        height=clip.height,
        caption=clip.caption,
        label=clip.label,
        metadata=clip.metadata,
    )
    try:
        verdict = keep(facts)
    except Exception as error:  # the user's code: one sample's failure is that sample's reject
        return _reject(clip, "filter_error", f"{type(error).__name__}: {error}")
    if isinstance(verdict, str):
        return _reject(clip, f"{FILTERED}: {verdict}", verdict)
    if not isinstance(verdict, bool):
        return _reject(clip, "filter_error", f"it returned {verdict!r}, neither a bool nor a text")
    return None if verdict else _reject(clip, FILTERED, "the filter returned False")


def _reject(clip: Clip, reason: str, detail: str) -> Reject:
    return Reject(
        key=clip.key,
        uri=clip.uri,
        index=clip.index,
        stage="filter",
        reason=reason,
        detail=detail,
        clip_index=clip.clip_index,
    )

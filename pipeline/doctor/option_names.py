"""Names in a job's storage options that look misspelt: nobody would read them, and nobody would say so."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
from fsspec.registry import known_implementations

__all__ = ["doubtful_options"]

_ALIKE = 0.8


def doubtful_options(storage: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One line for each scheme that fsspec does not know, and each option that is nearly one of its file system's.

    Options that are like none are not doubted: file systems hand what they do not know to a library below, as s3fs does
    with `profile`.
    """
    for scheme, options in storage.items():
        try:
            kind = fsspec.get_filesystem_class(scheme)
        except ValueError:
            near = difflib.get_close_matches(scheme, known_implementations, n=1, cutoff=0.5)
            yield f"storage.{scheme}: fsspec knows no such scheme{f'; did you mean {near[0]}?' if near else ''}"
            continue
        except ImportError:
            continue  # whatever needs it says what to install
        constructors = [vars(each)["__init__"] for each in kind.__mro__[:-1] if "__init__" in vars(each)]
        known = set[str]().union(*(inspect.signature(each).parameters for each in constructors))
        for name in options:
            near = [] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)
            if near:
                yield f"storage.{scheme}.{name}: {kind.__name__} has no such option; did you mean {near[0]}?"

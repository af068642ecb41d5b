"""Sections that crash and hang after a first measurement: what the kit must survive."""

from __future__ import annotations

import os
import time

from benchmarks.gpu.measure import Section


def crash(section: Section) -> None:
    """Die without a word, as a process does whose driver aborts it."""
    section.attempt("before", lambda: {"value": 1})
    os.abort()


def hang(section: Section) -> None:
    """Never return."""
    section.attempt("before", lambda: {"value": 1})
    while True:
        time.sleep(1)

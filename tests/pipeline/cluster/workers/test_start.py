"""A process that starts looks for no garbage, and does so again afterwards, however the start ended."""

from __future__ import annotations

import gc

import pytest

from tatok.pipeline.cluster.workers.start import without_collections


def test_garbage_is_looked_for_again() -> None:
    assert gc.isenabled()
    with without_collections():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="cannot start"), without_collections():
        raise ValueError("cannot start")
    assert gc.isenabled()


def test_where_nobody_looked_before_nobody_does_after() -> None:
    gc.disable()
    try:
        with without_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

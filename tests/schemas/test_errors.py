"""Errors cross processes whole."""

from __future__ import annotations

import pickle

import pytest

from tatok.schemas.errors import CommitError, ConfigError, DecodeError, SourceError, TatokError, together


@pytest.mark.parametrize("kind", [TatokError, ConfigError, SourceError, CommitError])
def test_an_error_pickles_with_its_remedy(kind: type[TatokError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a.tar is not there", remedy="check the spelling")))
    assert (type(error), str(error), error.remedy) == (kind, "a.tar is not there", "check the spelling")


def test_a_decode_error_pickles_with_its_reason() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("truncated", "ends early")))
    assert (error.reason, error.detail, str(error), error.remedy) == ("truncated", "ends early", "ends early", None)


def test_several_errors_are_one_that_lists_each_once() -> None:
    gone, full = ConfigError("a.tar is not there", remedy="check the spelling"), CommitError("the disk is full")
    assert together([gone], "it") is gone
    both = together([gone, full, ConfigError("a.tar is not there")], "the job")
    assert type(both) is ConfigError
    assert str(both) == (
        "2 things stand in the way of the job:\n"
        "  1. a.tar is not there\n"
        "     remedy: check the spelling\n"
        "  2. the disk is full"
    )
    alike = together([full, CommitError("no permission", remedy="ask")], "the job")
    assert type(alike) is CommitError
    assert str(alike).endswith("  2. no permission\n     remedy: ask")

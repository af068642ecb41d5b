"""Errors cross processes whole."""

from __future__ import annotations

import pickle

import pytest

from tatok.schemas.errors import CommitError, ConfigError, DecodeError, SourceError, TatokError


@pytest.mark.parametrize("kind", [TatokError, ConfigError, SourceError, CommitError])
def test_an_error_pickles_with_its_remedy(kind: type[TatokError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a.tar is not there", remedy="check the spelling")))
    assert (type(error), str(error), error.remedy) == (kind, "a.tar is not there", "check the spelling")


def test_a_decode_error_pickles_with_its_reason() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("truncated", "ends early")))
    assert (error.reason, error.detail, str(error), error.remedy) == ("truncated", "ends early", "ends early", None)

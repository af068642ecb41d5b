from __future__ import annotations

import pickle

import pyarrow as pa
import pytest

from tatok.schemas.errors import ConfigError, DecodeError
from tatok.schemas.tokens import code_type, token_schema


@pytest.mark.parametrize(
    ("vocab_size", "expected"), [(1, pa.uint16()), (65_536, pa.uint16()), (65_537, pa.uint32()), (2**32, pa.uint32())]
)
def test_codes_take_the_narrowest_type(vocab_size: int, expected: pa.DataType) -> None:
    assert code_type(vocab_size) == expected


@pytest.mark.parametrize("vocab_size", [0, -1, 2**32 + 1])
def test_impossible_codebook(vocab_size: int) -> None:
    with pytest.raises(ConfigError, match=str(vocab_size)):
        code_type(vocab_size)


def test_patch_entropy_is_optional() -> None:
    with_it = set(token_schema(512, patch_entropy=True).names)
    assert with_it - set(token_schema(512, patch_entropy=False).names) == {"patch_entropy_bits"}


def test_patch_worth_stands_beside_it_where_it_is_asked_for() -> None:
    without, with_it = token_schema(512, patch_entropy=True), token_schema(512, patch_entropy=True, patch_worth=True)
    place = without.get_field_index("patch_entropy_bits") + 1
    assert with_it.remove(place) == without
    assert with_it.field(place).with_name("patch_entropy_bits") == without.field(place - 1)


def test_decode_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("corrupt", "byte 7")))
    assert (error.reason, error.detail, str(error)) == ("corrupt", "byte 7", "byte 7")

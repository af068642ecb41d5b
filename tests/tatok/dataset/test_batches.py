"""Batches on their way from a worker process: few bytes, and the same batch."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tatok.dataset.batches import PackedBatch, TokenRow
from tatok.dataset.dataset import TokenDataset
from tatok.dataset.packing import Bucketing, Packing
from tests.support.synthetic_tokens import write_synthetic

# The ends of every type of integer, and just beyond.
EDGES = [0, -1, 127, 128, -128, -129, 255, 256, 2**15 - 1, 2**15, -(2**15) - 1, 2**16 - 1, 2**16]
EDGES += [2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32 - 1, 2**32, 2**63 - 1, -(2**63)]


def row(tokens: torch.Tensor) -> TokenRow:
    empty = torch.empty((0, 3), dtype=torch.int32)
    return TokenRow(tokens=tokens, kinds=torch.zeros(0), positions=empty, grid=(1, 1, 1), columns={"key": "a"}, row=3)


def assert_same(found: object, expected: object) -> None:
    assert type(found) is type(expected)
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if isinstance(value, torch.Tensor):
            assert other.dtype == value.dtype, name
            assert other.shape == value.shape, name
            assert torch.equal(other, value), name
        else:
            assert other == value, name


@pytest.mark.parametrize("low", EDGES)
@pytest.mark.parametrize("high", EDGES)
def test_integers_of_any_size_arrive_as_they_were(low: int, high: int) -> None:
    sent = row(torch.tensor([low, high], dtype=torch.int64))
    assert_same(pickle.loads(pickle.dumps(sent)), sent)


def test_what_arrives_may_be_written_to() -> None:
    sent = row(torch.arange(5))
    arrived = pickle.loads(pickle.dumps(sent))
    arrived.tokens.add_(1)
    assert arrived.tokens.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("batching", [Packing(tokens=2000, fixed_size=True), Bucketing(tokens=2000)], ids=str)
def test_a_batch_travels_in_a_third_of_its_bytes(tmp_path: Path, batching: Packing | Bucketing) -> None:
    write_synthetic(str(tmp_path), 200)
    (sent, *_) = TokenDataset(tmp_path, columns=("label",)).stream(batching)
    content = pickle.dumps(sent)
    assert_same(pickle.loads(content), sent)
    assert len(content) < sum(v.nbytes for v in vars(sent).values() if isinstance(v, torch.Tensor)) / 3


def test_positions_are_those_of_the_grid(tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 50)
    dataset = TokenDataset(tmp_path)
    (batch,) = dataset.stream(Packing(tokens=1 << 16), shuffle=False)
    assert isinstance(batch, PackedBatch)
    assert batch.positions.is_contiguous()
    stored = dataset._reader.sources[0].read_all(["positions", "num_global_tokens"]).to_pylist()
    expected = [
        place
        for each in stored
        for place in [(-1, -1, -1)] * each["num_global_tokens"] + [(0, *divmod(p, 16)) for p in each["positions"]]
    ]
    assert np.array_equal(batch.positions.numpy(), np.array(expected))

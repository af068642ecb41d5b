"""The order of batches: the same for any ranks and workers, exactly once an epoch, and resumable."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tatok.dataset.dataset import TokenDataset
from tatok.dataset.order import Blocks
from tatok.dataset.packing import Batch, Bucketing, Packing, Rows
from tatok.dataset.stream import TokenStream
from tatok.dataset.windows import WindowReader
from tatok.schemas.errors import ConfigError
from tests.support.synthetic_tokens import write_synthetic

# Several rounds of several windows: a window is a third of the buffer, and at least fifty batches.
NUM_ROWS = 1500
SMALL = {"buffer_rows": 800, "lanes": 3}
BATCHINGS = [Packing(tokens=310), Bucketing(tokens=310), Rows(rows=5)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("stream")
    write_synthetic(str(folder), NUM_ROWS, rows_per_part=300, row_group_rows=70)
    return TokenDataset(folder, seed=5)


def rows_of(batch: Batch) -> tuple[int, ...]:
    documents = getattr(batch, "documents", None)
    return tuple(row.row for row in documents) if documents is not None else tuple(batch.rows.tolist())  # type: ignore[union-attr]


def streams(
    data: TokenDataset, world_size: int, batching: object = BATCHINGS[0], **options: object
) -> list[TokenStream]:
    return [
        data.stream(batching, rank=rank, world_size=world_size, **(SMALL | options))  # type: ignore[arg-type]
        for rank in range(world_size)
    ]


def dealt(batches: Sequence[Sequence[Batch]]) -> list[Batch]:
    """What ranks got, put together step by step."""
    longest = max(len(rank) for rank in batches)
    return [rank[step] for step in range(longest) for rank in batches if step < len(rank)]


def global_order(data: TokenDataset, world_size: int, **options: object) -> list[tuple[int, ...]]:
    return [rows_of(b) for b in dealt([list(stream) for stream in streams(data, world_size, **options)])]


@pytest.mark.parametrize("batching", BATCHINGS, ids=str)
def test_an_epoch_has_every_row_once_in_an_order_without_ranks(data: TokenDataset, batching: object) -> None:
    alone = global_order(data, 1, batching=batching)
    assert sorted(row for batch in alone for row in batch) == list(range(NUM_ROWS))
    for world_size in (2, 4, 7):
        assert global_order(data, world_size, batching=batching) == alone


@pytest.mark.parametrize("world_size", [1, 2, 4, 7])
def test_workers_do_not_change_the_order(data: TokenDataset, world_size: int) -> None:
    alone = global_order(data, 1)
    by_workers = [list(DataLoader(stream, batch_size=None, num_workers=2)) for stream in streams(data, world_size)]
    assert [rows_of(batch) for batch in dealt(by_workers)] == alone


def test_epochs_differ_and_seeds_differ(data: TokenDataset) -> None:
    both = global_order(data, 1, epochs=2)
    half = global_order(data, 1)
    assert both[: len(half)] == half
    assert sorted(row for batch in both[len(half) :] for row in batch) == list(range(NUM_ROWS))
    assert both[len(half) :] != half
    assert global_order(TokenDataset(data._reader.sources[0].url, seed=6), 1) != half


def test_batches_mix_parts(data: TokenDataset) -> None:
    parts = [len({row // 300 for row in batch}) for batch in global_order(data, 1)]
    assert np.mean(parts) > 1.5


class Orders(list[list[tuple[int, ...]]]):
    """Hypothesis prints its arguments, and warns where they are long."""

    def __repr__(self) -> str:
        return "two epochs"


@pytest.fixture(scope="module")
def two_epochs(data: TokenDataset) -> list[list[tuple[int, ...]]]:
    """The global order of two epochs, for each of BATCHINGS."""
    return Orders(global_order(data, 1, batching=batching, epochs=2) for batching in BATCHINGS)


def test_there_are_several_rounds_of_several_windows(data: TokenDataset) -> None:
    states = [batch.state for batch in streams(data, 1)[0]]
    assert {state["round"] for state in states} == {0, 1}
    assert len(states) > 200


def after(stream: TokenStream, state: object) -> Iterator[Batch]:
    stream.load_state_dict(state)  # type: ignore[arg-type]
    return iter(stream)


@settings(max_examples=25, deadline=None)
@given(
    before=st.sampled_from([1, 2, 4, 7]),
    then=st.sampled_from([1, 2, 4, 7]),
    workers=st.sampled_from([0, 0, 0, 2]),
    steps=st.integers(1, 200),
    batching=st.sampled_from(BATCHINGS),
    told_by=st.integers(0, 6),
)
# A step that two rounds share: the ranks' states name the same place from either round.
@example(before=4, then=1, workers=0, steps=144, batching=BATCHINGS[1], told_by=0)
@example(before=4, then=7, workers=0, steps=144, batching=BATCHINGS[1], told_by=3)
def test_killed_anywhere_and_resumed_anyhow_every_row_is_seen_once(
    data: TokenDataset,
    two_epochs: list[list[tuple[int, ...]]],
    before: int,
    then: int,
    workers: int,
    steps: int,
    batching: object,
    told_by: int,
) -> None:
    """Two epochs; every rank trains on `steps` batches, is killed, and others go on from one rank's saved state."""
    running = [iter(stream) for stream in streams(data, before, batching, epochs=2)]
    seen = [[batch for _, batch in zip(range(steps), rank, strict=False)] for rank in running]
    if len(seen[-1]) < steps:
        return  # the epochs were over
    state = seen[told_by % before][-1].state
    resumed = streams(data, then, batching, epochs=2)
    for stream in resumed:
        stream.load_state_dict(state)
    loaders = [DataLoader(s, batch_size=None, num_workers=workers) if workers else s for s in resumed]
    rest = [list(loader) for loader in loaders]
    together = [rows_of(batch) for batch in [*dealt(seen), *dealt(rest)]]
    assert together == two_epochs[BATCHINGS.index(batching)]  # type: ignore[arg-type]


def test_the_only_reader_reads_each_row_group_once(data: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int, int]] = []
    original = WindowReader._read

    def noted(self: WindowReader, source: int, part: int, row_group: int, names: tuple[str, ...]) -> pa.Table:
        read.append((source, part, row_group))
        return original(self, source, part, row_group, names)

    monkeypatch.setattr(WindowReader, "_read", noted)
    (stream,) = streams(data, 1)
    list(stream)
    described = data._reader.sources[0].parts
    assert sorted(read) == [
        (0, part, g) for part, each in enumerate(described) for g in range(len(each.row_group_rows))
    ]


def test_the_first_batch_waits_for_no_later_window(data: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    (stream,) = streams(data, 1)
    expected = [rows_of(batch) for batch in stream]
    first = next(stream._places(0, 1, 0)).windows[0]
    of_first = set(data._blocks.first_row_B[first].tolist())
    may_go_on = threading.Event()
    original = WindowReader.block

    def held(self: WindowReader, blocks: Blocks, index: int, epoch: int) -> pa.Table:
        if int(blocks.first_row_B[index]) not in of_first:
            assert may_go_on.wait(60)
        return original(self, blocks, index, epoch)

    monkeypatch.setattr(WindowReader, "block", held)
    batches = iter(stream)
    found = [rows_of(next(batches))]
    assert not may_go_on.is_set()
    may_go_on.set()
    assert found + [rows_of(batch) for batch in batches] == expected


def test_state_dict_without_workers_is_the_last_batch_s(data: TokenDataset) -> None:
    stream = streams(data, 1)[0]
    start = stream.state_dict()
    whole = [rows_of(batch) for batch in stream]
    running = iter(DataLoader(stream, batch_size=None))
    for _ in range(9):
        batch = next(running)
    assert stream.state_dict() == batch.state
    assert [rows_of(b) for b in after(streams(data, 1)[0], stream.state_dict())] == whole[9:]
    assert [rows_of(b) for b in after(streams(data, 1)[0], start)] == whole


def test_main_process_of_workers_refuses_to_guess(data: TokenDataset) -> None:
    stream = streams(data, 1)[0]
    for _ in DataLoader(stream, batch_size=None, num_workers=1):
        pass
    with pytest.raises(ConfigError, match=r"save `batch\.state`"):
        stream.state_dict()


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 under torch 2.13
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_resumes(data: TokenDataset, workers: int) -> None:
    def loader() -> StatefulDataLoader:
        return StatefulDataLoader(streams(data, 2)[1], batch_size=None, num_workers=workers)

    whole = [rows_of(batch) for batch in loader()]
    running = loader()
    first = [rows_of(batch) for _, batch in zip(range(7), running, strict=False)]
    resumed = loader()
    resumed.load_state_dict(running.state_dict())
    assert first + [rows_of(batch) for batch in resumed] == whole


def test_a_worker_s_state_wants_the_same_ranks(data: TokenDataset) -> None:
    stream, other = streams(data, 2)
    worker_state = dict(next(iter(stream)).state) | {"rank": 0, "world_size": 2, "worker": 1, "workers": 2}
    with pytest.raises(ConfigError, match=r"batch\.state"):
        other.load_state_dict(worker_state)


@pytest.mark.parametrize(
    "change", [{"buffer_rows": 1200}, {"batching": Packing(tokens=311)}, {"shuffle": False}], ids=str
)
def test_a_state_of_another_stream_is_refused(data: TokenDataset, change: dict[str, object]) -> None:
    state = next(iter(streams(data, 1)[0])).state
    with pytest.raises(ConfigError, match="other data or with other settings"):
        streams(data, 1, **change)[0].load_state_dict(state)


def test_set_epoch_reaches_persistent_workers(data: TokenDataset) -> None:
    stream = streams(data, 1)[0]
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        epochs.append([rows_of(batch) for batch in loader])
    both = global_order(data, 1, epochs=2)
    assert epochs[0] + epochs[1] == both


def test_set_epoch_after_a_resume_goes_on_within_the_epoch(data: TokenDataset) -> None:
    stream = streams(data, 1)[0]
    stream.set_epoch(3)
    whole = [rows_of(batch) for batch in stream]
    running = iter(stream)
    state = [next(running) for _ in range(5)][-1].state
    resumed = streams(data, 1)[0]
    resumed.load_state_dict(state)
    resumed.set_epoch(3)
    assert [rows_of(batch) for batch in resumed] == whole[5:]
    resumed.set_epoch(4)
    assert sorted(row for batch in resumed for row in rows_of(batch)) == list(range(NUM_ROWS))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_drop_last_gives_every_rank_as_many(data: TokenDataset, world_size: int) -> None:
    whole = global_order(data, 1, epochs=2)
    counts = {len(list(stream)) for stream in streams(data, world_size, epochs=2, drop_last=True)}
    assert counts == {len(whole) // world_size}


def test_drop_last_looks_back_beyond_a_short_last_round(data: TokenDataset) -> None:
    options = {"batching": Rows(rows=5), "lanes": 1, "buffer_rows": 1, "epochs": 2}
    states = [batch.state for batch in streams(data, 1, **options)[0]]
    total, last = len(states), states[-1]["batch"]
    # So many ranks that the last round holds only a part of the last, incomplete step.
    world_size = next(size for size in range(2, total) if total % size > int(last))
    counts = {len(list(stream)) for stream in streams(data, world_size, drop_last=True, **options)}
    assert counts == {total // world_size}


def test_an_endless_stream_passes_from_epoch_to_epoch(data: TokenDataset) -> None:
    three = global_order(data, 1, epochs=3)
    endless = iter(streams(data, 1, epochs=None)[0])
    assert [rows_of(next(endless)) for _ in range(len(three))] == three


def test_without_shuffling_rows_keep_their_order(data: TokenDataset) -> None:
    order = global_order(data, 1, batching=Rows(rows=8), shuffle=False)
    assert [row for batch in order for row in batch] == list(range(NUM_ROWS))


def test_rank_comes_from_the_environment(data: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [rows_of(b) for b in data.stream(Packing(tokens=310), **SMALL)] == [rows_of(b) for b in streams(data, 2)[1]]  # type: ignore[arg-type]


def test_wrong_settings_are_named(data: TokenDataset) -> None:
    for options in ({"rank": 2, "world_size": 2}, {"rank": 0}, {"lanes": 0}, {"epochs": 0}):
        with pytest.raises(ConfigError, match=r"rank|lanes|epochs"):
            data.stream(Packing(tokens=310), **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="does not fit into a batch of 20"):
        next(iter(data.stream(Packing(tokens=20))))


def test_a_batch_goes_to_a_device_whole(data: TokenDataset) -> None:
    batch = next(iter(streams(data, 1)[0])).to("meta")  # type: ignore[union-attr]
    assert batch.tokens.device == batch.cu_seqlens.device == torch.device("meta")


def test_a_part_replaced_while_reading_is_noticed(tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 60, rows_per_part=30)
    data = TokenDataset(tmp_path, filters=[("num_tokens", "<", 60)])
    stream = data.stream(Packing(tokens=310))
    write_synthetic(str(tmp_path), 60, rows_per_part=30, seed=1)
    with pytest.raises(Exception, match=r"the part was replaced"):
        list(stream)

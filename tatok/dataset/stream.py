"""TokenStream: one global sequence of batches, dealt out to ranks and workers, that can resume from any batch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from tatok.dataset.batches import RowArrays, State
from tatok.dataset.order import Blocks, interleave, plan_rounds
from tatok.dataset.packing import Batch, Batching
from tatok.dataset.parts import numbers
from tatok.dataset.windows import WindowReader, pick
from tatok.schemas.errors import ConfigError

__all__ = ["StreamOrder", "TokenStream"]

# Reading from a bucket waits, reading from a disk computes; more threads than cores would delay the first batch.
NUM_READERS, NUM_REMOTE_READERS = min(os.cpu_count() or 1, 8), 8
_ENDLESS = -1
# Places in the shared control tensor.
_FIRST_EPOCH, _STOP_EPOCH, _ROUND, _BATCH, _IN_WORKERS = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOrder:
    """What fixes the global sequence of batches; `recipe` is a hash of all of it, and of the datasets."""

    blocks: Blocks
    batching: Batching
    seed: int
    shuffle: bool
    window_rows: int
    num_lanes: int
    recipe: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A round of an epoch: the block indices of each of its windows."""

    epoch: int
    number: int
    windows: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """A round as one worker holds it: which window each of its batches is of, and the rows of the worker's own."""

    num_batches: int
    window_P: np.ndarray
    loading: dict[int, Future[deque[RowArrays]]]


class TokenStream(IterableDataset[Batch]):
    """Batches in an order that depends neither on the number of ranks nor on that of workers.

    Of the global sequence, rank r of W gets the batches r, r + W, r + 2 W, ...; a DataLoader's workers share those in
    turn, so that a DataLoader (batch_size=None) yields them in the same order for any num_workers. At the end of the
    last epoch some ranks may get one batch more than others; `drop_last` leaves those batches out.

    Reading runs ahead in threads: num_workers=0 is a good choice where the training step leaves a core idle.

    To resume after a stop, save `batch.state` of the last batch trained on: any rank's will do, and it stays true
    with other numbers of ranks and workers. `state_dict` gives that too where no worker processes are used; in a
    worker, where torchdata's StatefulDataLoader calls it, it is that worker's own and wants the same ranks and workers
    again.
    """

    def __init__(
        self,
        reader: WindowReader,
        order: StreamOrder,
        *,
        epochs: int | None,
        drop_last: bool,
        rank: int,
        world_size: int,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of world_size {world_size}; it must be in 0 .. {world_size - 1}")
        self._reader, self._order = reader, order
        self._rank, self._world_size, self._drop_last = rank, world_size, drop_last
        # In shared memory, so that set_epoch reaches the workers that a DataLoader keeps.
        stop = _ENDLESS if epochs is None else epochs
        self._control = torch.tensor([0, stop, 0, 0, 0], dtype=torch.int64).share_memory_()
        self._worker_start: tuple[int, int, int] | None = None
        self._last: dict[str, int | str] | None = None

    def __repr__(self) -> str:
        stop = int(self._control[_STOP_EPOCH])
        epochs = "for ever" if stop == _ENDLESS else f"up to epoch {stop}"
        num_rows = int(self._order.blocks.num_rows_B.sum())
        return (
            f"TokenStream({num_rows:,} rows an epoch, {epochs}, as {self._order.batching}; "
            f"rank {self._rank} of {self._world_size})"
        )

    def set_epoch(self, epoch: int) -> None:
        """Let every following iteration be this one epoch; a loaded state of the same epoch still says where in it."""
        if int(self._control[_FIRST_EPOCH]) != epoch:
            self._control[_ROUND] = self._control[_BATCH] = 0
        self._control[_FIRST_EPOCH], self._control[_STOP_EPOCH] = epoch, epoch + 1
        self._last = None

    def state_dict(self) -> dict[str, int | str]:
        """Where to resume: after the last batch that this process took from the stream.

        Raises ConfigError in the main process of a DataLoader with workers, which cannot know; use `batch.state`.
        """
        if get_worker_info() is None and self._control[_IN_WORKERS]:
            raise ConfigError(
                "the batches of this stream come from a DataLoader's workers; save `batch.state` of the last batch "
                "that you trained on, or use torchdata's StatefulDataLoader"
            )
        if self._last is not None:
            return dict(self._last)
        first, _, number, batch, _ = self._control.tolist()
        return self._state(first, number, batch)

    def load_state_dict(self, state: State) -> None:
        """Begin every following iteration at a saved state, until set_epoch.

        Raises ConfigError where the state belongs to another dataset or other settings.
        """
        if state.get("recipe") != self._order.recipe:
            raise ConfigError(
                "this state was saved by a stream over other data or with other settings (dataset, seed, filters, "
                "weights, batching, buffer_rows, lanes): build the stream as it was, or start anew"
            )
        start = int(state["epoch"]), int(state["round"]), int(state["batch"])
        if "workers" not in state:
            self._control[[_FIRST_EPOCH, _ROUND, _BATCH]] = torch.tensor(start)
            self._last = dict(state)
            return
        here = self._topology()
        if any(state[name] != value for name, value in here.items()):
            raise ConfigError(
                f"this state is of worker {state['worker']} of {state['workers']} on rank {state['rank']} of "
                f"{state['world_size']}, loaded into {here}; with other ranks or workers resume from a `batch.state`"
            )
        self._worker_start, self._last = start, dict(state)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        self._control[_IN_WORKERS] = int(info is not None)
        epoch, stop, number, batch, _ = self._control.tolist()
        if self._worker_start is not None:
            (epoch, number, batch), self._worker_start = self._worker_start, None
        else:
            batch += worker * self._world_size + self._rank
        return self._batches(epoch, stop, number, batch, stride=self._world_size * num_workers)

    def _batches(self, epoch: int, stop: int, number: int, batch: int, *, stride: int) -> Iterator[Batch]:
        """Every `stride`th batch, from the `batch`th after the beginning of a round on."""
        is_remote = not all(source.is_local for source in self._reader.sources)
        readers = ThreadPoolExecutor(NUM_REMOTE_READERS if is_remote else NUM_READERS)
        try:
            if stride == 1:
                yield from self._all_batches(readers, self._places(epoch, stop, number), batch, is_remote=is_remote)
            else:
                yield from self._own_batches(readers, self._places(epoch, stop, number), batch, stride)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)

    def _all_batches(
        self, readers: ThreadPoolExecutor, places: Iterator[_Place], batch: int, *, is_remote: bool
    ) -> Iterator[Batch]:
        """What `_own_batches` gives to the only reader: it reads each row group once, and waits for no later window."""

        def begun() -> Iterator[tuple[_Place, list[Future[deque[RowArrays]]]]]:
            for number, place in enumerate(places):
                windows = []
                for window in range(len(place.windows)):
                    windows.append(self._begin(readers, place, window))
                    if is_remote and not (number or window):
                        wait(windows)  # nobody can do anything before: the others would only share the line with it
                yield place, windows

        rounds = begun()
        current = next(rounds, None)
        while current is not None:
            following = next(rounds, None)  # read ahead by one round: behind this one's windows in the queue
            place, windows = current
            index = 0
            while windows:
                left = []
                for window in windows:
                    if window.result():
                        rows = window.result().popleft()
                        if index >= batch:
                            yield self._take(*self._collated(rows, place, index, stride=1))
                        index += 1
                        left.append(window)
                windows = left
            batch, current = max(batch - index, 0), following

    def _begin(self, readers: ThreadPoolExecutor, place: _Place, window: int) -> Future[deque[RowArrays]]:
        """Begin to read a window, and to make batches of its rows."""
        order = self._order
        blocks = order.blocks.take(place.windows[window])
        tables = [readers.submit(self._reader.block, blocks, index, place.epoch) for index in range(len(blocks) - 1)]

        def make() -> deque[RowArrays]:
            # Its tables are before it in the queue, so that some thread has begun each of them.
            last = self._reader.block(blocks, len(blocks) - 1, place.epoch)
            table = pa.concat_tables([*(each.result() for each in tables), last])
            lengths_R = numbers(table.column("num_tokens")).astype(np.int64)
            groups = order.batching.plan(
                lengths_R, (order.seed, place.epoch, place.number, window), shuffle=order.shuffle
            )
            rows = pick(table, np.concatenate(groups), self._reader.columns)
            return deque(rows.split([len(group) for group in groups]))

        return readers.submit(make)

    def _own_batches(
        self, readers: ThreadPoolExecutor, places: Iterator[_Place], batch: int, stride: int
    ) -> Iterator[Batch]:
        coordinator = ThreadPoolExecutor(1)
        try:
            place = next(places, None)
            before = self._rank - batch  # batches between the beginning of a step and of this round, modulo world_size
            held: tuple[Batch, dict[str, int | str]] | None = None  # of a step that only later rounds can complete
            missing = 0  # batches of later rounds that it takes
            opening = None if place is None else coordinator.submit(self._open, readers, place, batch, stride)
            while place is not None and opening is not None:
                current = opening.result()
                following = next(places, None)
                own = range(batch, current.num_batches, stride)
                first_of_next = batch + len(own) * stride - current.num_batches
                opening = None
                if following is not None:  # read ahead by one round: behind this round's windows in the queue
                    opening = coordinator.submit(self._open, readers, following, first_of_next, stride)
                if held is not None and current.num_batches >= missing:
                    yield self._take(*held)
                    held = None
                missing -= current.num_batches
                before += current.num_batches
                incomplete = current.num_batches - before % self._world_size  # where the round's incomplete step begins
                for index in own:
                    collated = self._collate(current, place, index, stride)
                    if self._drop_last and index >= incomplete:
                        held, missing = collated, -before % self._world_size
                    else:
                        yield self._take(*collated)
                batch, place = first_of_next, following
        finally:
            coordinator.shutdown(wait=False, cancel_futures=True)

    def _places(self, epoch: int, stop: int, number: int) -> Iterator[_Place]:
        """The rounds to come, from round `number` of `epoch` on."""
        order = self._order
        while stop == _ENDLESS or epoch < stop:
            rounds = plan_rounds(
                order.blocks.num_rows_B,
                seed=order.seed,
                epoch=epoch,
                window_rows=order.window_rows,
                num_lanes=order.num_lanes,
                shuffle=order.shuffle,
            )
            for later in range(number, len(rounds)):
                yield _Place(epoch=epoch, number=later, windows=tuple(rounds[later]))
            epoch, number = epoch + 1, 0

    def _open(self, readers: ThreadPoolExecutor, place: _Place, batch: int, stride: int) -> _Round:
        """Plan the batches of a round, all of them, and begin to read the windows of our own."""
        order = self._order
        blocks_W = [order.blocks.take(window) for window in place.windows]

        def plan(window: int) -> list[np.ndarray]:
            lengths_R = self._reader.lengths(blocks_W[window], place.epoch)
            return order.batching.plan(
                lengths_R, (order.seed, place.epoch, place.number, window), shuffle=order.shuffle
            )

        def load(window: int, groups: list[np.ndarray]) -> deque[RowArrays]:
            rows = self._reader.load(blocks_W[window], place.epoch, np.concatenate(groups))
            return deque(rows.split([len(group) for group in groups]))

        plans = list(readers.map(plan, range(len(blocks_W))))
        window_P, number_P = interleave(np.array([len(groups) for groups in plans], dtype=np.int64))
        ours: dict[int, list[np.ndarray]] = {}
        for index in range(batch, len(window_P), stride):
            window = int(window_P[index])
            ours.setdefault(window, []).append(plans[window][int(number_P[index])])
        loading = {window: readers.submit(load, window, groups) for window, groups in ours.items()}
        return _Round(num_batches=len(window_P), window_P=window_P, loading=loading)

    def _take(self, batch: Batch, after: dict[str, int | str]) -> Batch:
        self._last = after
        return batch

    def _collate(self, current: _Round, place: _Place, index: int, stride: int) -> tuple[Batch, dict[str, int | str]]:
        rows = current.loading[int(current.window_P[index])].result().popleft()
        return self._collated(rows, place, index, stride)

    def _collated(self, rows: RowArrays, place: _Place, index: int, stride: int) -> tuple[Batch, dict[str, int | str]]:
        """A batch, and what `state_dict` gives once it is taken."""
        after = self._state(place.epoch, place.number, index + self._world_size - self._rank)
        own = after
        if get_worker_info() is not None:
            own = self._state(place.epoch, place.number, index + stride) | self._topology()
        return self._order.batching.collate(rows, epoch=place.epoch, state=after), own

    def _state(self, epoch: int, number: int, batch: int) -> dict[str, int | str]:
        return {"epoch": epoch, "round": number, "batch": batch, "recipe": self._order.recipe}

    def _topology(self) -> dict[str, int | str]:
        info = get_worker_info()
        return {
            "rank": self._rank,
            "world_size": self._world_size,
            "worker": 0 if info is None else info.id,
            "workers": 1 if info is None else info.num_workers,
        }

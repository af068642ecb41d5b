"""A device that is given batches ahead: how many, in which order, what is counted, and what becomes of its errors."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tatok.pipeline.tokenization import ahead
from tatok.pipeline.tokenization.ahead import MOST_AHEAD, DeviceLost, EncodeAhead
from tatok.pipeline.tokenization.reorder import Encoded
from tatok.pipeline.tokenization.tokenize import TooLarge
from tatok.schemas.errors import TatokError
from tatok.schemas.records import TokenSequence
from tatok.tokenizer.protocol import EncodesAhead
from tests.support.fake_tokenizer import FakeTokenizer, load_fake
from tests.support.runs import job, rows, run

ILLEGAL = "CUDA error: an illegal memory access was encountered"
LACKING = "CUDA out of memory. Tried to allocate 2.00 GiB"
_WAIT_S = 60.0


class Batch:
    """A pending one: the device has done its part when `done` is set, and `error` comes out of it then."""

    def __init__(self, sequences: list[TokenSequence], error: Exception | None) -> None:
        self.done = threading.Event()
        self._sequences = sequences
        self._error = error

    def is_done(self) -> bool:
        return self.done.is_set()

    def wait(self) -> None:
        assert self.done.wait(_WAIT_S)
        if self._error is not None:
            raise self._error

    def result(self) -> list[TokenSequence]:
        assert self.done.is_set()
        return self._sequences


@dataclass(frozen=True, kw_only=True)
class Device(FakeTokenizer):
    """Notes what it is given. `errors` by the number of the launch: at once ("launch") or when waited for ("wait")."""

    launched: list[Batch] = field(default_factory=list)
    encoded: list[int] = field(default_factory=list)  # how many clips, without being asked ahead
    errors: dict[tuple[int, str], Exception] = field(default_factory=dict)
    is_quick: bool = False
    most_alone: int = 1 << 30

    def encode_clips(self, pixels: torch.Tensor) -> list[TokenSequence]:
        self.encoded.append(len(pixels))
        if len(pixels) > self.most_alone:
            raise torch.OutOfMemoryError(LACKING)
        return super().encode_clips(pixels)

    def encode_clips_async(self, pixels: torch.Tensor) -> Batch:
        number = len(self.launched)
        if error := self.errors.get((number, "launch")):
            self.launched.append(Batch([], None))
            raise error
        batch = Batch(super().encode_clips(pixels), self.errors.get((number, "wait")))
        self.launched.append(batch)
        if self.is_quick:
            batch.done.set()
        return batch


def clips(number: int, count: int = 2, side: int = 32) -> torch.Tensor:
    pixels = np.random.default_rng(number).integers(0, 256, (count, 1, 3, side, side), dtype=np.uint8)
    return torch.from_numpy(pixels)


def codes(sequences: object) -> list[list[int]]:
    return [sequence.codes.tolist() for sequence in sequences]  # type: ignore[attr-defined]


def alone(number: int) -> list[list[int]]:
    return codes(FakeTokenizer().encode_clips(clips(number)))


def given(encode: EncodeAhead, number: int) -> Encoded:
    encoded = encode(clips(number))
    assert isinstance(encoded, Encoded)
    return encoded


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_the_next_batch_is_with_the_device_before_the_last_one_is_done_and_no_further_one(
    pool: ThreadPoolExecutor,
) -> None:
    device = Device()
    assert isinstance(device, EncodesAhead)
    assert not isinstance(FakeTokenizer(), EncodesAhead)
    encode = EncodeAhead(device)
    first = given(encode, 0)
    assert not first.is_done()
    second = given(encode, 1)
    third = pool.submit(given, encode, 2)
    time.sleep(0.1)
    assert len(device.launched) == MOST_AHEAD, "the third waits for room"
    device.launched[0].done.set()
    assert not third.result(_WAIT_S).is_done()
    assert (first.is_done(), second.is_done()) == (True, False)
    for batch in device.launched:
        batch.done.set()
    # In whatever order they are asked for.
    assert [codes(each.result()) for each in (third.result(), second, first)] == [alone(2), alone(1), alone(0)]
    assert device.encoded == [], "nothing was encoded but ahead"


def test_pixels_are_held_no_longer_than_the_device_needs_them() -> None:
    device = Device()
    encode = EncodeAhead(device)
    pixels = clips(0)
    held = weakref.ref(pixels)
    encoded = encode(pixels)
    del pixels
    assert held() is not None, "they may have to be encoded again"
    device.launched[0].done.set()
    until(lambda: isinstance(encoded, Encoded) and encoded.is_done())
    gc.collect()
    assert held() is None, "rows may wait for long"


def test_what_is_done_at_once_takes_no_room_and_no_thread() -> None:
    encode = EncodeAhead(Device(is_quick=True))
    before = set(threading.enumerate())  # of other tests, too, some of which end meanwhile
    many = [given(encode, number) for number in range(3 * MOST_AHEAD)]
    assert not set(threading.enumerate()) - before
    assert [codes(each.result()) for each in many] == [alone(number) for number in range(3 * MOST_AHEAD)]


def test_a_tokenizer_that_cannot_be_asked_ahead_encodes_at_once() -> None:
    encode = EncodeAhead(FakeTokenizer())
    sequences = encode(clips(0))
    assert not isinstance(sequences, Encoded)
    assert codes(sequences) == alone(0) == codes(encode.now(clips(0)))


def test_the_device_is_busy_once_however_many_batches_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(ahead.time, "monotonic", lambda: now)  # type: ignore[attr-defined]
    device = Device()
    encode = EncodeAhead(device)
    first, second = given(encode, 0), given(encode, 1)
    now = 103.0
    device.launched[0].done.set()
    until(first.is_done)
    until(lambda: encode.encode_s == 3.0)
    now = 104.0
    device.launched[1].done.set()
    until(lambda: encode.encode_s == 4.0)
    assert encode.s_a_byte == pytest.approx(1.0 / clips(1).nbytes), (
        "the second had the device for itself for one second"
    )
    now = 110.0
    assert second.is_done()
    second.result()
    third = given(encode, 2)
    now = 111.0
    device.launched[2].done.set()
    until(third.is_done)
    until(lambda: encode.encode_s == 5.0)


@pytest.mark.parametrize("when", ["launch", "wait"])
def test_what_does_not_fit_beside_others_is_encoded_alone_and_in_parts(when: str, pool: ThreadPoolExecutor) -> None:
    device = Device(errors={(1, when): torch.OutOfMemoryError(LACKING)}, most_alone=1)
    encode = EncodeAhead(device)
    first = given(encode, 0)
    second = pool.submit(encode.now, clips(1))
    until(lambda: len(device.launched) == 2)
    time.sleep(0.1)
    assert device.encoded == [], "the device still has the first"
    for batch in device.launched:
        batch.done.set()
    assert codes(second.result(_WAIT_S)) == alone(1)
    assert device.encoded == [2, 1, 1]
    assert codes(first.result()) == alone(0)
    assert codes(encode.now(clips(3))) == alone(3)
    assert len(device.launched) == 2, "for a while nothing is asked ahead"


def test_a_clip_that_does_not_fit_is_told_from_a_device_that_others_fill() -> None:
    error = torch.OutOfMemoryError(LACKING)
    device = Device(is_quick=True, errors={(0, "wait"): error, (2, "wait"): error}, most_alone=0)
    encode = EncodeAhead(device)
    (too_large, _) = encode.now(clips(0))
    assert isinstance(too_large, TooLarge)
    device = replace(device, launched=[Batch([], None)])
    encode = EncodeAhead(device)
    encode.now(clips(1))
    with pytest.raises(TatokError, match="though so much did fit before"):
        encode.now(clips(2))


@pytest.mark.parametrize("when", ["launch", "wait"])
def test_a_broken_device_is_told_once_and_works_no_more(when: str) -> None:
    device = Device(is_quick=True, errors={(1, when): RuntimeError(ILLEGAL)})
    encode = EncodeAhead(device)
    assert codes(encode.now(clips(0))) == alone(0)
    with pytest.raises(DeviceLost, match="the device works no more: CUDA error") as met:
        encode.now(clips(1))
    assert (met.value.is_first, encode.broken) == (True, ILLEGAL)
    with pytest.raises(DeviceLost, match="another shard met a device that works no more") as told:
        encode.now(clips(2))
    assert not told.value.is_first
    assert len(device.launched) == 2


def test_a_broken_device_is_known_before_anybody_asks_for_a_result() -> None:
    """The batch behind fails, too, but it is the first that met it."""
    device = Device(errors={(number, "wait"): RuntimeError(ILLEGAL) for number in range(2)})
    encode = EncodeAhead(device)
    first, second = given(encode, 0), given(encode, 1)
    assert encode.broken is None
    for batch in device.launched:
        batch.done.set()
    until(lambda: encode.broken == ILLEGAL)
    for encoded, is_first in ((second, False), (first, True)):
        with pytest.raises(DeviceLost) as lost:
            encoded.result()
        assert lost.value.is_first == is_first
    with pytest.raises(DeviceLost, match="another shard"):
        encode(clips(2))


@pytest.mark.parametrize("when", ["launch", "wait"])
def test_an_error_of_the_tokenizers_own_is_raised_as_it_is_and_takes_no_room(when: str) -> None:
    wrong = ValueError("sides are no multiples of the patch")
    device = Device(is_quick=True, errors={(number, when): wrong for number in range(1, 9)})
    encode = EncodeAhead(device)
    for number in range(2 * MOST_AHEAD + 1):
        if number:
            with pytest.raises(ValueError, match="multiples of the patch"):
                encode.now(clips(number))
        else:
            assert codes(encode.now(clips(0))) == alone(0)
    assert encode.broken is None


@dataclass(frozen=True, kw_only=True)
class SlowDevice(FakeTokenizer):
    """Works by a thread of its own; leaves a mark where it is given a batch before the last one is done."""

    folder: str
    at_work: list[int] = field(default_factory=list)

    def encode_clips_async(self, pixels: torch.Tensor) -> Batch:
        if self.at_work:
            (Path(self.folder) / "ahead").touch()
        self.at_work.append(1)
        batch = Batch(super().encode_clips(pixels), None)

        def work() -> None:
            time.sleep(0.05)
            self.at_work.pop()
            batch.done.set()

        threading.Thread(target=work, daemon=True).start()
        return batch


def load_slow_device(folder: str, device: str) -> SlowDevice:
    return SlowDevice(folder=folder, device_name=device)


@pytest.mark.usefixtures("local_ray")
def test_a_job_gives_the_device_batches_ahead_and_its_rows_are_the_same(
    photo_shards: Callable[..., str], tmp_path: Path
) -> None:
    source = photo_shards(num_shards=3, photos_per_shard=30)
    assert run(job(source, tmp_path / "alone"), load_tokenizer=load_fake).num_rows == 90
    config = job(source, tmp_path / "out")
    assert run(config, load_tokenizer=partial(load_slow_device, str(tmp_path))).num_rows == 90
    assert (tmp_path / "ahead").exists()
    assert rows(tmp_path / "out") == rows(tmp_path / "alone")

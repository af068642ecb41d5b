"""Batches that a device is given before the ones before them are done, so that it never waits for Python."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tatok.pipeline.tokenization.accelerator_errors import is_broken_accelerator, is_out_of_memory
from tatok.pipeline.tokenization.tokenize import Encoded, FittingEncode, TooLarge
from tatok.tokenizer.protocol import AnyTokenizer, EncodesAhead, Pending

if TYPE_CHECKING:
    import torch

    from tatok.schemas.records import TokenSequence

__all__ = ["MOST_AHEAD", "DeviceLost", "EncodeAhead"]

MOST_AHEAD = 2  # one that the device works on, and one that it takes up at once


class DeviceLost(Exception):
    """The device works no more; `is_first`: it was this batch that met it."""

    def __init__(self, message: str, *, is_first: bool) -> None:
        super().__init__(message)
        self.is_first = is_first


class EncodeAhead:
    """An `EncodeLater` of a process's device, for the threads of all its shards, which take turns.

    At most MOST_AHEAD batches are with the device; who brings another one waits until one is done. A tokenizer that is
    no `EncodesAhead`, or is done at once, has one batch at a time. What does not fit the device's memory is encoded
    again when the device has nothing else, in parts (`FittingEncode`). Once the device is broken, every batch raises
    DeviceLost, and `broken` says why.
    """

    def __init__(self, tokenizer: AnyTokenizer) -> None:
        self._launch = tokenizer.encode_clips_async if isinstance(tokenizer, EncodesAhead) else None
        self._fitting = FittingEncode(tokenizer.encode_clips)
        self._device = threading.Lock()  # who gives it work
        self._room = threading.Semaphore(MOST_AHEAD)
        self._ahead = queue.SimpleQueue[_Ahead]()
        self._waiter: threading.Thread | None = None
        self._noting = threading.Lock()
        self._free_at = 0.0  # when the last batch that is counted was done
        self.broken: str | None = None
        self.encode_s = 0.0  # in which the device had something to do
        self.s_a_byte: float | None = None  # of pixels, in the last batch

    def __call__(self, pixels_BTCHW: torch.Tensor) -> Encoded | Sequence[TokenSequence | TooLarge]:
        """The sequences of the clips, or the batch on its way.

        Raises DeviceLost, as the batch's result does.
        """
        with self._device:
            self._check()
            if self._launch is None or not self._fitting.fits_all:
                return self._encode_alone(pixels_BTCHW)
            self._room.acquire()
            ahead = _Ahead(self, pixels_BTCHW, time.monotonic())
            try:
                ahead.pending = self._launch(pixels_BTCHW)
            except RuntimeError as error:
                self._room.release()
                if (lost := self.lost_by(error)) is not None:
                    raise lost from error
                if not is_out_of_memory(error):
                    raise
            except BaseException:
                self._room.release()
                raise
            else:
                self._wait_for(ahead)
                return ahead
            return self._encode_alone(pixels_BTCHW)  # here the failed call's tensors are gone

    def now(self, pixels_BTCHW: torch.Tensor) -> Sequence[TokenSequence | TooLarge]:
        """The sequences of the clips, waited for."""
        encoded = self(pixels_BTCHW)
        return encoded if isinstance(encoded, Sequence) else encoded.result()

    def encode_again(self, pixels_BTCHW: torch.Tensor) -> Sequence[TokenSequence | TooLarge]:
        """A batch for which there was no memory beside others."""
        with self._device:
            self._check()
            return self._encode_alone(pixels_BTCHW)

    def note_fitted(self, shape: tuple[int, ...]) -> None:
        """The device's memory is large enough for clips [T, 3, H, W] of that shape."""
        self._fitting.note_fitted(shape)

    def lost_by(self, error: Exception) -> DeviceLost | None:
        """What to raise for an error of a batch which says that the device is broken; from then on that is known."""
        if not is_broken_accelerator(error):
            return None
        with self._noting:
            if self.broken is not None:
                return self._lost_before()
            self.broken = (str(error).strip() or type(error).__name__).splitlines()[0]
        return DeviceLost(f"the device works no more: {self.broken}", is_first=True)

    def _wait_for(self, ahead: _Ahead) -> None:
        if ahead.is_done_by_device():  # as on a CPU, always
            self._finish(ahead)
            return
        if self._waiter is None:
            self._waiter = threading.Thread(target=self._finish_all, name="tatok-ahead", daemon=True)
            self._waiter.start()
        self._ahead.put(ahead)

    def _finish_all(self) -> None:
        while True:
            self._finish(self._ahead.get())

    def _finish(self, ahead: _Ahead) -> None:
        ahead.wait_for_device()
        self._note(ahead.started, ahead.num_bytes)
        self._room.release()

    def _encode_alone(self, pixels_BTCHW: torch.Tensor) -> Sequence[TokenSequence | TooLarge]:
        for _ in range(MOST_AHEAD):  # until the device has nothing else
            self._room.acquire()
        started = time.monotonic()
        try:
            sequences = self._fitting(pixels_BTCHW)
        except RuntimeError as error:
            if (lost := self.lost_by(error)) is not None:
                raise lost from error
            raise
        finally:
            self._room.release(MOST_AHEAD)
        self._note(started, pixels_BTCHW.nbytes)
        return sequences

    def _note(self, started: float, num_bytes: int) -> None:
        """A batch is done; the time that others had the device meanwhile is not counted twice."""
        with self._noting:
            now = time.monotonic()
            seconds = now - max(started, self._free_at)
            self._free_at = now
            self.encode_s += seconds
            self.s_a_byte = seconds / num_bytes if num_bytes else self.s_a_byte

    def _check(self) -> None:
        if self.broken is not None:
            raise self._lost_before()

    def _lost_before(self) -> DeviceLost:
        return DeviceLost(f"another shard met a device that works no more: {self.broken}", is_first=False)


class _Ahead:
    """A batch that was given to the device; an `Encoded`.

    It holds its pixels until the device has done with them, or longer where they are to be encoded again: rows may wait
    for others that come before them.
    """

    def __init__(self, encode: EncodeAhead, pixels_BTCHW: torch.Tensor, started: float) -> None:
        self.pending: Pending | None = None
        self.started = started
        self.num_bytes = pixels_BTCHW.nbytes
        self._encode = encode
        self._shape = tuple(pixels_BTCHW.shape[1:])
        self._pixels_BTCHW: torch.Tensor | None = pixels_BTCHW
        self._error: Exception | None = None
        self._is_over = threading.Event()

    def is_done_by_device(self) -> bool:
        assert self.pending is not None
        return self.pending.is_done()

    def wait_for_device(self) -> None:
        assert self.pending is not None
        try:
            self.pending.wait()
        except Exception as error:  # for whoever asks for the result
            self._error, self.pending = self._encode.lost_by(error) or error, None
        else:
            self._pixels_BTCHW = None
        self._is_over.set()

    def is_done(self) -> bool:
        return self._is_over.is_set()

    def result(self) -> Sequence[TokenSequence | TooLarge]:
        self._is_over.wait()
        error, self._error = self._error, None
        if error is None:
            assert self.pending is not None
            sequences = self.pending.result()
            self._encode.note_fitted(self._shape)
            return sequences
        if not is_out_of_memory(error):
            raise error
        del error  # which holds what was computed so far
        pixels_BTCHW, self._pixels_BTCHW = self._pixels_BTCHW, None
        assert pixels_BTCHW is not None
        return self._encode.encode_again(pixels_BTCHW)

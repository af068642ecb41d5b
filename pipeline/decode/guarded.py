"""Sample -> clips or rejects in a child process: what hangs, crashes or exhausts memory there is found and rejected.

Decoding is done here after a decoder process was lost, and only for that shard: a sample that can take its process
with it is then known by name, whatever killed it, and the others continue. A child is started anew after each loss.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import IO, Self

from tatok.schemas.job import Limits, Preprocessing
from tatok.schemas.records import Clip, Reject, Sample

__all__ = ["Decode", "GuardedDecoder"]

Decode = Callable[[Sample, Preprocessing, Limits], Iterable[Clip | Reject]]
"""`decode_sample` is one."""

_LENGTH = struct.Struct("<Q")
_START_S = 60.0
_PR_SET_PDEATHSIG = 1


class _Lost(Exception):
    """The child hangs or is dead; `reason` and `detail` are the reject's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class GuardedDecoder:
    """Decodes samples one at a time in a child process with a deadline for each clip and a bound on its memory.

    Clips come over one by one: the child waits, with one clip in hand, until the last one is taken. Use as a context
    manager; at its end, and when this process dies, the child is gone. `decode` must pickle.
    """

    def __init__(self, preprocessing: Preprocessing, limits: Limits, *, deadline_s: float, decode: Decode) -> None:
        self._start = pickle.dumps((decode, preprocessing, limits))
        self._max_decode_bytes = limits.max_decode_bytes
        self._deadline_s = deadline_s
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def decode(self, sample: Sample) -> Iterator[Clip | Reject]:
        """The clips and rejects of a sample; rejects besides those of decoding: "decoder_hang", "decoder_crash".

        Raises RuntimeError if a child cannot be started at all.
        """
        child = self._child or self._spawn()
        num_results, is_done = 0, False
        try:
            _send(child, pickle.dumps(sample))
            while answer := _receive(child, self._deadline_s):
                result = pickle.loads(answer)
                assert isinstance(result, Clip | Reject)
                num_results += 1
                yield result
            is_done = True
        except _Lost as lost:
            yield Reject(
                key=sample.key,
                uri=sample.uri,
                index=sample.index,
                stage="decode",
                reason=lost.reason,
                detail=lost.detail,
                clip_index=num_results,
            )
        finally:
            if not is_done:  # lost, or whoever asked wants no more: what it still says must not answer another question
                self._kill()

    def _spawn(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = f"import sys; sys.path[:] = {sys.path!r}; from tatok.pipeline.decode.guarded import _serve; _serve()"
        self._child = child = subprocess.Popen(
            [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        try:
            hello = pickle.dumps((os.getpid(), self._max_decode_bytes, self._start))
            _send(child, hello)
            _receive(child, _START_S)
        except _Lost as lost:
            self._kill()
            raise RuntimeError(f"the process that decodes one sample at a time does not start: {lost.detail}") from None
        return child

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):  # what was still to be written has no reader any more
                    pipe.close()
            self._child = None


def _send(child: subprocess.Popen[bytes], message: bytes) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(_LENGTH.pack(len(message)) + message)
        child.stdin.flush()
    except BrokenPipeError:
        raise _dead(child) from None


def _receive(child: subprocess.Popen[bytes], deadline_s: float) -> bytes:
    """Wait for one answer; raises _Lost if it does not come within `deadline_s`."""
    assert child.stdout is not None
    deadline = time.monotonic() + deadline_s
    answer, wanted = bytearray(), _LENGTH.size
    while len(answer) < wanted:
        readable, _, _ = select.select([child.stdout], [], [], max(deadline - time.monotonic(), 0))
        if not readable:
            raise _Lost("decoder_hang", f"not decoded within {deadline_s:g} s (resources.decode_timeout_s)")
        block = os.read(child.stdout.fileno(), min(wanted - len(answer), 1 << 20))  # the next answer may follow at once
        if not block:
            raise _dead(child)
        answer += block
        if wanted == _LENGTH.size and len(answer) >= wanted:
            wanted += _LENGTH.unpack_from(answer)[0]
    return bytes(answer[_LENGTH.size :])


def _dead(child: subprocess.Popen[bytes]) -> _Lost:
    code = child.wait()
    if code == -signal.SIGKILL:
        return _Lost("decoder_crash", "its decoder was killed (SIGKILL); the machine may have run out of memory")
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return _Lost("decoder_crash", f"its decoder {how}")


def _serve() -> None:
    """The child: answers each sample with its clips and rejects and an empty message, until its input ends."""
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints must not get among the answers
    parent, max_decode_bytes, start = pickle.loads(_message(source) or b"")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a child that hangs hears nothing else
    if os.getppid() != parent:
        return
    decode, preprocessing, limits = pickle.loads(start)
    _limit_memory(max_decode_bytes)
    _answer(answers, ())
    while (message := _message(source)) is not None:
        _answer(answers, decode(pickle.loads(message), preprocessing, limits))


def _answer(answers: IO[bytes], results: Iterable[Clip | Reject]) -> None:
    for result in results:
        answer = pickle.dumps(result)
        answers.write(_LENGTH.pack(len(answer)))
        answers.write(answer)
        answers.flush()
    answers.write(_LENGTH.pack(0))
    answers.flush()


def _message(source: IO[bytes]) -> bytes | None:
    head = source.read(_LENGTH.size)
    return source.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else None


def _limit_memory(num_bytes: int) -> None:
    """Bound what is allocated from now on; where it does not suffice, Python and Pillow raise MemoryError."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))

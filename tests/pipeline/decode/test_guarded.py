"""A sample that takes its decoder process with it is found, and the samples after it are decoded."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tatok.pipeline.decode.guarded import Decode, GuardedDecoder
from tatok.pipeline.decode.sample import decode_sample
from tatok.schemas.job import Limits, Preprocessing
from tatok.schemas.records import Clip, Reject, Sample
from tests.support.photos import encoded, jpeg
from tests.support.places import ROOT

PREPROCESSING = Preprocessing(image_size=64)


def sample(payload: bytes, index: int = 0) -> Sample:
    return Sample(key=f"k{index}", uri="a.tar", index=index, media="image", extension="jpg", payload=payload)


def poisoned(image: Sample, preprocessing: Preprocessing, limits: Limits) -> Iterator[Clip | Reject]:
    """`decode_sample`, but for a few payloads that do what broken decoders do."""
    match image.payload:
        case b"hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            time.sleep(600)
        case b"segfault":
            ctypes.string_at(0)
        case b"abort":
            os.abort()
        case b"exit":
            os._exit(3)
        case b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"chatter":
            print("x" * 100_000, flush=True)
            yield from decode_sample(sample(jpeg(0)), preprocessing, limits)
        case b"clips" | b"clips, then a crash" | b"clips, then a hang":
            [clip] = decode_sample(sample(jpeg(0), image.index), preprocessing, limits)
            assert isinstance(clip, Clip)
            for clip_index in range(5):
                yield replace(clip, clip_index=clip_index)
            if image.payload.endswith(b"crash"):
                os.abort()
            if image.payload.endswith(b"hang"):
                time.sleep(600)
        case _:
            yield from decode_sample(image, preprocessing, limits)


def only(results: Iterable[Clip | Reject]) -> Clip | Reject:
    [result] = results
    return result


def guarded(
    decode: Decode = decode_sample,
    *,
    deadline_s: float = 60,
    preprocessing: Preprocessing = PREPROCESSING,
    **limits: int,
) -> GuardedDecoder:
    return GuardedDecoder(PREPROCESSING, Limits(**limits), deadline_s=deadline_s, decode=decode)  # type: ignore[arg-type]


def test_the_same_as_in_this_process() -> None:
    with guarded() as decoder:
        for index, payload in enumerate([jpeg(1), b"", jpeg(2)[:300], encoded(3, 90, 70, "PNG"), b"text"]):
            here, there = (
                only(decode_sample(sample(payload, index), PREPROCESSING, Limits())),
                only(decoder.decode(sample(payload, index))),
            )
            assert type(here) is type(there)
            if isinstance(here, Clip) and isinstance(there, Clip):
                assert np.array_equal(here.pixels, there.pixels)
                assert here.sha256 == there.sha256
            else:
                assert here == there


@pytest.mark.parametrize(
    ("payload", "reason", "detail"),
    [
        (b"segfault", "decoder_crash", "SIGSEGV"),
        (b"abort", "decoder_crash", "SIGABRT"),
        (b"exit", "decoder_crash", "exit code 3"),
        (b"kill", "decoder_crash", "out of memory"),
    ],
)
def test_a_crash_costs_one_sample(payload: bytes, reason: str, detail: str) -> None:
    with guarded(poisoned) as decoder:
        assert isinstance(only(decoder.decode(sample(jpeg(0), 0))), Clip)
        reject = only(decoder.decode(sample(payload, 1)))
        assert isinstance(reject, Reject)
        assert (reject.key, reject.index, reject.stage, reject.reason) == ("k1", 1, "decode", reason)
        assert detail in reject.detail
        assert isinstance(only(decoder.decode(sample(jpeg(2), 2))), Clip)


def test_a_hang_costs_one_sample() -> None:
    with guarded(poisoned, deadline_s=3) as decoder:
        assert isinstance(only(decoder.decode(sample(jpeg(0)))), Clip)
        started = time.monotonic()
        reject = only(decoder.decode(sample(b"hang")))  # which hangs for ever
        assert isinstance(reject, Reject)
        assert reject.reason == "decoder_hang"
        assert "within 3 s" in reject.detail
        assert time.monotonic() - started >= 3
        assert isinstance(only(decoder.decode(sample(jpeg(0)))), Clip)


def test_clips_before_the_loss_are_kept() -> None:
    with guarded(poisoned, deadline_s=3) as decoder:
        for payload, reason in (
            (b"clips", None),
            (b"clips, then a crash", "decoder_crash"),
            (b"clips, then a hang", "decoder_hang"),
        ):
            results = list(decoder.decode(sample(payload, 1)))
            assert [result.clip_index for result in results] == list(range(5 if reason is None else 6))
            assert all(isinstance(result, Clip) for result in results[:5])
            if reason is not None:
                assert isinstance(results[5], Reject)
                assert results[5].reason == reason
        assert isinstance(only(decoder.decode(sample(jpeg(0)))), Clip)


def test_clips_come_one_by_one_and_what_is_not_taken_is_dropped() -> None:
    with guarded(poisoned) as decoder:
        first = next(stream := decoder.decode(sample(b"clips, then a hang")))
        assert first.clip_index == 0
        stream.close()
        assert isinstance(only(decoder.decode(sample(jpeg(0)))), Clip), "the next answer is the next sample's"


def test_memory_is_bounded() -> None:
    large = encoded(0, 6000, 6000, "PNG")  # 144 MB of pixels, and as much again for the crop
    with guarded(max_decode_bytes=128 << 20) as decoder:
        reject = only(decoder.decode(sample(large)))
        assert isinstance(reject, Reject)
        assert reject.reason == "out_of_memory"
        assert isinstance(only(decoder.decode(sample(jpeg(0)))), Clip)
    with guarded() as decoder:
        assert isinstance(only(decoder.decode(sample(large))), Clip)


def test_a_slow_image_is_a_hang() -> None:
    with guarded(deadline_s=0.2) as decoder:
        started = only(decoder.decode(sample(jpeg(0))))
        assert isinstance(started, Clip), "starting the process is not part of the sample's time"
        reject = only(decoder.decode(sample(encoded(0, 12_000, 12_000, "PNG"))))
        assert isinstance(reject, Reject)
        assert reject.reason == "decoder_hang"


def test_prints_of_a_decoder_do_no_harm(capfd: pytest.CaptureFixture[str]) -> None:
    with guarded(poisoned) as decoder:
        assert isinstance(only(decoder.decode(sample(b"chatter"))), Clip)


def test_a_large_sample_fits_through() -> None:
    payload = os.urandom(20 << 20)
    with guarded() as decoder:
        reject = only(decoder.decode(sample(payload)))
        assert isinstance(reject, Reject)
        assert reject.reason == "not_an_image"


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}]
from tests.pipeline.decode.test_guarded import guarded, jpeg, only, poisoned, sample
decoder = guarded(poisoned)
only(decoder.decode(sample(jpeg(0))))
print(decoder._child.pid, flush=True)
only(decoder.decode(sample(b"hang")))
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_that_cannot_start_is_an_error() -> None:
    class Unreadable:
        def __reduce__(self) -> tuple[object, ...]:
            return (functools.partial(int, "no number"), ())

        def __call__(self, *_: object) -> Reject:
            raise AssertionError

    with guarded(Unreadable()) as decoder, pytest.raises(RuntimeError, match="does not start"):
        only(decoder.decode(sample(b"")))

"""A long video that is begun here and goes on in pieces: the rows of the whole, whatever becomes of the pieces."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from tatok.pipeline.decode.pieces import ELSEWHERE, LongVideos, SamplePiece
from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.tokenization.chunks import StillThere
from tatok.pipeline.tokenization.clip_chunk import ClipChunk
from tatok.pipeline.tokenization.shared_decoding import Decode, HelperLost, Item, SharedDecoding
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, Reject, Sample
from tests.support.synthetic_videos import noise, video_bytes

Told = tuple[Any, ...]


def job(**settings: Any) -> JobConfig:
    fields = {
        "source": ["videos"],
        "output": "tokens",
        "preprocessing": {"image_size": 16},
        "video": {"frames_per_clip": 8, "fps": 8.0, "last_clip": "keep"},
    }
    return JobConfig.model_validate(fields | settings)


@cache
def payload(num_frames: int = 420) -> bytes:
    return video_bytes(num_frames, pictures=([*noise(60), *reversed(noise(60))] * 4)[:num_frames], g="20")


def samples(tmp_path: Path, payloads: Sequence[bytes]) -> list[Item]:
    """Videos that are files, others that were in a tar, and an image that is no image between them."""
    items = list[Item]()
    for number, content in enumerate(payloads):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(content)
        in_a_tar = Sample(
            key=f"v{number}",
            uri="u.tar",
            index=number,
            media="video",
            extension="mp4",
            payload=content,
            attachments={"txt": b"a caption", "json": b'{"a": 1}'},
        )
        a_file = replace(in_a_tar, payload=b"", payload_uri=str(path), payload_bytes=len(content))
        broken = replace(in_a_tar, key=f"i{number}", media="image", extension="png")
        items += [in_a_tar, broken, a_file]
    return items


class Sent:
    def __init__(self, items: Sequence[Item], results: Iterator[Clip | Reject], fate: str, *, done: bool) -> None:
        self.items, self.results, self.fate, self.done = items, results, fate, done

    def is_done(self) -> bool:
        return self.done

    def chunks(self) -> Iterator[ClipChunk | StillThere]:
        yield StillThere()
        if self.fate == "elsewhere" and isinstance(self.items[0], SamplePiece):
            yield ClipChunk.of([self.items[0].reject(ELSEWHERE, "no such file")])
            return
        for number, result in enumerate(self.results):
            if self.fate == "lost" and number == 1:
                raise HelperLost
            yield ClipChunk.of([result])


class SomeHelpers:
    """Are there from some moment on, have room at times, and meet their fates by chance."""

    def __init__(self, long: LongVideos, decode: Decode, seed: int, fates: Sequence[str]) -> None:
        self.long, self.decode, self.fates = long, decode, fates
        self.random = random.Random(seed)
        self.asked, self.there_from = 0, self.random.randrange(6)
        self.sent = list[Sent]()

    def __bool__(self) -> bool:
        self.asked += 1
        return self.asked > self.there_from

    def send(self, items: Sequence[Item]) -> Sent | None:
        if not self or self.random.random() < 0.3:
            return None
        fate, done = self.random.choice(self.fates), self.random.random() < 0.5
        self.sent.append(Sent(items, self._results(items), fate, done=done))
        return self.sent[-1]

    def _results(self, items: Sequence[Item]) -> Iterator[Clip | Reject]:
        for item in items:
            if isinstance(item, SamplePiece):
                yield from self.long.decode(item)
            else:
                yield from [item] if isinstance(item, Reject) else self.decode(item)


def told(results: Iterator[Clip | Reject | ClipChunk | StillThere]) -> list[Told]:
    """Everything of every row and reject, in order."""
    found = list[Told]()
    for each in results:
        if isinstance(each, StillThere):
            continue
        chunk = each if isinstance(each, ClipChunk) else ClipChunk.of([each])
        facts = iter(chunk.facts.to_pylist())
        for run in chunk.runs():
            if isinstance(run, Reject):
                found.append((run.key, run.index, run.reason, run.detail, run.clip_index))
            else:
                found += [(repr(next(facts)), pixels.tobytes()) for pixels in run.pixels]
    return found


def decoder(config: JobConfig) -> Decode:
    return partial(decode_sample, preprocessing=config.preprocessing, limits=config.limits, video=config.video)


def alone(items: Sequence[Item], config: JobConfig) -> list[Told]:
    return told(each for item in items if isinstance(item, Sample) for each in decoder(config)(item))


def shared(
    config: JobConfig, seed: int, fates: Sequence[str], *, ahead_bytes: int
) -> tuple[SharedDecoding, SomeHelpers]:
    decode, long = decoder(config), LongVideos(config, least_bytes=10_000, piece_bytes=8 * 16 * 16 * 3)
    helpers = SomeHelpers(long, decode, seed, fates)

    @contextmanager
    def guarded() -> Iterator[Decode]:
        yield decode

    sharing = SharedDecoding(decode, guarded, helpers, long=long, list_bytes=1 << 20, ahead_bytes=ahead_bytes)  # type: ignore[arg-type]
    return sharing, helpers


@pytest.mark.parametrize("fates", [["good"], ["good", "good", "elsewhere"], ["good", "good", "lost"], ["elsewhere"]])
@pytest.mark.parametrize("ahead_bytes", [0, 1 << 20])
def test_rows_are_those_of_the_whole(tmp_path: Path, fates: Sequence[str], ahead_bytes: int) -> None:
    items = samples(tmp_path, [payload()])
    expected = alone(items, job())
    for seed in range(3):
        sharing, helpers = shared(job(), seed, fates, ahead_bytes=ahead_bytes)
        assert told(sharing.results(iter(items))) == expected
        assert sum(isinstance(sent.items[0], SamplePiece) for sent in helpers.sent) > 1
        assert not any(
            isinstance(item, Sample) and item.media == "video" for sent in helpers.sent for item in sent.items
        )


def test_a_damaged_video_is_what_the_whole_says(tmp_path: Path) -> None:
    damaged = bytearray(payload())
    at = damaged.index(b"mdat") + (len(damaged) - damaged.index(b"mdat")) * 3 // 4
    damaged[at : at + 300] = random.Random(0).randbytes(300)
    items = samples(tmp_path, [bytes(damaged), payload()[:-20_000]])
    expected = alone(items, job())
    ends = [each[2] for each in expected if len(each) == 5 and each[0].startswith("v")]
    assert ends == ["corrupt", "corrupt", "truncated", "truncated"]
    for seed in range(4):
        sharing, helpers = shared(job(), seed, ["good"], ahead_bytes=1 << 20)
        assert told(sharing.results(iter(items))) == expected
        assert any(isinstance(sent.items[0], SamplePiece) for sent in helpers.sent)


def test_all_crops_of_a_clip_are_given_before_the_video_is_cut(tmp_path: Path) -> None:
    config = job(
        preprocessing={"image_size": 16, "mode": "random_crop", "flips": "both", "random_crops": {"num_crops": 2}}
    )
    items = samples(tmp_path, [payload()])
    sharing, helpers = shared(config, 0, ["good"], ahead_bytes=1 << 20)
    assert told(sharing.results(iter(items))) == alone(items, config)
    assert all(
        item.first_result % 4 == 0 for sent in helpers.sent for item in sent.items if isinstance(item, SamplePiece)
    )


def test_what_is_not_long(tmp_path: Path) -> None:
    [in_a_tar, image, a_file] = samples(tmp_path, [payload()])
    assert isinstance(in_a_tar, Sample)
    assert isinstance(image, Sample)
    assert isinstance(a_file, Sample)
    long = LongVideos(job(), least_bytes=10_000)
    assert [each in long for each in (in_a_tar, image, a_file)] == [True, False, True]
    assert in_a_tar not in LongVideos(job())
    assert replace(a_file, payload_bytes=None) not in long, "nobody said how large it is"
    asked_once = LongVideos(job(filter="tests.support.tokenizers.filters:keep"), least_bytes=10_000)
    assert a_file not in asked_once, "a filter is asked once a sample"

"""Video samples -> clips and rejects: rows to be, with their times; damage, crops, files, tars, and the whole job."""

from __future__ import annotations

import hashlib
import pickle
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from tatok.pipeline.decode.guarded import GuardedDecoder
from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.run import run_job
from tatok.pipeline.video.local_video import content_digest, local_video
from tatok.schemas.errors import SourceError
from tatok.schemas.job import JobConfig, Limits, Preprocessing
from tatok.schemas.preprocessing import Video
from tatok.schemas.records import Clip, Reject, Sample
from tests.support.fake_tokenizer import load_fake
from tests.support.photos import tar_bytes
from tests.support.synthetic_videos import GREY_STEP, noise, video_bytes

PREPROCESSING, LIMITS = Preprocessing(image_size=32), Limits()


def sample(payload: bytes, **fields: object) -> Sample:
    return Sample(key="v", uri="u.tar", index=3, media="video", extension="mp4", payload=payload, **fields)  # type: ignore[arg-type]


def numbers(clip: Clip) -> list[int]:
    """The numbers that the pictures of a clip tell."""
    return [round((float(frame[:, 12:20, 12:20].mean()) - 40) / GREY_STEP) for frame in clip.pixels]


def decoded(payload: bytes, preprocessing: Preprocessing = PREPROCESSING, **video: object) -> list[Clip | Reject]:
    settings = Video.model_validate({"frames_per_clip": 8} | video)
    return list(decode_sample(sample(payload), preprocessing, LIMITS, settings))


def test_a_video_becomes_clips_with_their_times() -> None:
    payload = video_bytes(20)
    first, second = decoded(payload)
    assert isinstance(first, Clip)
    assert isinstance(second, Clip)
    assert first.pixels.shape == (8, 3, 32, 32)
    assert (numbers(first), numbers(second)) == (list(range(8)), list(range(8, 16)))
    assert (first.clip_index, second.clip_index) == (0, 1)
    assert second.clip_start_s == pytest.approx(0.32)
    assert second.frame_pts_s == pytest.approx([i / 25 for i in range(8, 16)])
    assert second.fps == pytest.approx(25)
    assert (first.width, first.height, first.crop.left, first.crop.width) == (96, 64, 16, 64)
    assert (first.media, first.sha256) == ("video", hashlib.sha256(payload).hexdigest())


def test_the_damaged_clip_is_a_reject_and_the_good_ones_before_it_stay() -> None:
    payload = video_bytes(40, pictures=noise(40))
    whole = decoded(payload)
    *clips, reject = decoded(payload[: int(0.75 * len(payload))])
    assert isinstance(reject, Reject)
    assert 1 <= len(clips) < len(whole)
    for clip, good in zip(clips, whole, strict=False):
        assert isinstance(clip, Clip)
        assert isinstance(good, Clip)
        assert np.array_equal(clip.pixels, good.pixels)
    assert (reject.stage, reject.reason, reject.clip_index) == ("decode", "truncated", len(clips))
    assert "s on" in reject.detail


def test_what_is_too_short_or_no_video_is_a_reject() -> None:
    [short] = decoded(video_bytes(5))
    [other] = decoded(b"no video")
    assert isinstance(short, Reject)
    assert isinstance(other, Reject)
    assert (short.reason, other.reason) == ("too_short", "not_a_video")
    [kept] = decoded(video_bytes(5), last_clip="keep")
    assert isinstance(kept, Clip)
    assert len(kept.pixels) == 5


def test_crops_and_flips_are_rows_of_their_own_and_the_same_for_all_clips() -> None:
    preprocessing = Preprocessing(image_size=32, mode="random_crop", random_crops={"num_crops": 2}, flips="both")  # type: ignore[arg-type]
    clips = decoded(video_bytes(16), preprocessing)
    assert [clip.clip_index for clip in clips] == list(range(8))
    assert all(isinstance(clip, Clip) for clip in clips)
    views = [(clip.crop, clip.flipped) for clip in clips if isinstance(clip, Clip)]
    assert views[:4] == views[4:]
    assert len(set(views[:4])) == 4


def test_both_decoders_give_the_same_clips() -> None:
    payload = video_bytes(16, width=128, pictures=noise(16, width=128))  # of 96 wide, some processors' decord is wrong
    for one, other in zip(decoded(payload), decoded(payload, decoder="decord"), strict=True):
        assert isinstance(one, Clip)
        assert isinstance(other, Clip)
        assert np.array_equal(one.pixels, other.pixels)


def test_files_are_read_in_place_and_from_buckets_through_a_copy(tmp_path: Path) -> None:
    payload = video_bytes(16)
    (tmp_path / "a.mp4").write_bytes(payload)
    fsspec.filesystem("memory").pipe("/videos/a.mp4", payload)
    for uri in (str(tmp_path / "a.mp4"), "memory://videos/a.mp4"):
        with local_video(sample(b"", payload_uri=uri)) as local:
            clips = list(decode_sample(local, PREPROCESSING, LIMITS, Video(frames_per_clip=8)))
        assert [clip.clip_index for clip in clips] == [0, 1]
        assert isinstance(clips[0], Clip)
        assert clips[0].sha256 == hashlib.sha256(payload).hexdigest()
        assert content_digest(sample(b"", payload_uri=uri)) == hashlib.sha256(payload).digest()
    assert local.payload_uri is not None
    assert not Path(local.payload_uri).exists()
    with pytest.raises(SourceError), local_video(sample(b"", payload_uri="memory://videos/gone.mp4")):
        pass
    [gone] = decode_sample(sample(b"", payload_uri=str(tmp_path / "gone.mp4")), PREPROCESSING, LIMITS)
    assert isinstance(gone, Reject)
    assert gone.reason == "missing"


def test_folders_and_tars_of_videos_reach_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.mp4").write_bytes(video_bytes(8))
    members = [("b.mkv", video_bytes(8, container="mkv")), ("b.txt", b"a caption")]
    (tmp_path / "videos.tar").write_bytes(tar_bytes(members))
    for source, caption in ((tmp_path / "folder", None), (tmp_path / "videos.tar", "a caption")):
        [shard] = plan_shards((str(source),))
        [found] = read_samples(shard, ReadOptions(max_sample_bytes=1 << 20))
        assert isinstance(found, Sample)
        assert found.media == "video"
        with local_video(found) as local:
            [clip] = decode_sample(local, PREPROCESSING, LIMITS, Video(frames_per_clip=8))
        assert isinstance(clip, Clip)
        assert (numbers(clip), clip.caption) == (list(range(8)), caption)


def test_a_guarded_child_hands_over_clip_by_clip() -> None:
    decode = partial(decode_sample, video=Video(frames_per_clip=8))
    assert pickle.loads(pickle.dumps(decode))
    with GuardedDecoder(PREPROCESSING, LIMITS, deadline_s=60, decode=decode) as guard:
        clips = list(guard.decode(sample(video_bytes(16))))
    assert [clip.clip_index for clip in clips if isinstance(clip, Clip)] == [0, 1]


@pytest.mark.usefixtures("local_ray")
def test_a_job_over_a_folder_of_good_and_damaged_videos(tmp_path: Path) -> None:
    """Rows, times and rejects in the dataset, by a real Ray; the damage names its second."""
    source = tmp_path / "videos"
    source.mkdir()
    good = video_bytes(40, pictures=noise(40))
    (source / "a.mp4").write_bytes(good)
    (source / "b.mp4").write_bytes(good[: int(0.9 * len(good))])
    config = JobConfig.model_validate(
        {
            "source": [str(source)],
            "output": str(tmp_path / "out"),
            "preprocessing": {"image_size": 32},
            "video": {"frames_per_clip": 4},
            "resources": {"num_tokenizers": 1, "num_decoders": 1, "batch_size": 2},
        }
    )
    run_job(config, load_tokenizer=load_fake, on_event=lambda event: None)  # type: ignore[arg-type,return-value]
    table = pq.read_table(tmp_path / "out" / "data").sort_by([("key", "ascending"), ("clip_index", "ascending")])
    rows = table.to_pylist()
    whole = [row for row in rows if row["key"] == "a.mp4"]
    assert [(row["clip_index"], row["num_frames"], row["media"]) for row in whole] == [
        (i, 4, "video") for i in range(10)
    ]
    assert [row["clip_start_s"] for row in whole] == pytest.approx([0.16 * i for i in range(10)])
    assert whole[1]["frame_pts_s"] == pytest.approx([0.16, 0.2, 0.24, 0.28])
    [reject] = pq.read_table(tmp_path / "out" / "_rejects").to_pylist()
    assert (reject["key"], reject["reason"]) == ("b.mp4", "truncated")
    assert reject["clip_index"] == len(rows) - 10 > 0
    assert reject["detail"].endswith("s on")

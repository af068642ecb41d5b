"""Which parts of an image become rows: sizes, chance that repeats itself, and pixels that are where the row says."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tatok.dataset.lookup import find_rows
from tatok.dataset.parts import TokenizedData
from tatok.dataset.rows import token_sequences
from tatok.pipeline.decode.originals import Recipe, read_originals, source_places
from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.images.crops import bucket_sizes, planned_views
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig, Limits
from tatok.schemas.preprocessing import Buckets, Preprocessing, RandomCrops
from tatok.schemas.records import Clip, Crop, Sample
from tatok.schemas.settings import validated
from tatok.tokenizer.tokenizer import Tokenizer
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.photos import encoded, tar_bytes
from tests.support.real_data import write_real_data

BUCKETS = Preprocessing(mode="buckets", image_size=64)
RANDOM = Preprocessing(mode="random_crop", image_size=32, random_crops=RandomCrops(num_crops=4, min_scale=0.5))


def clips_of(preprocessing: Preprocessing, payload: bytes, *, index: int = 0) -> list[Clip]:
    sample = Sample(key="k", uri="u", index=index, media="image", extension="png", payload=payload)
    clips = list(decode_sample(sample, preprocessing, Limits()))
    assert all(isinstance(clip, Clip) for clip in clips), clips
    assert [clip.clip_index for clip in clips] == list(range(len(clips)))
    return clips  # type: ignore[return-value]


def test_buckets_have_the_budget_the_multiple_and_the_shapes() -> None:
    sizes = bucket_sizes(256, 16, 4.0)
    assert (256, 256) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % 16 == height % 16 == 0
        assert 0.8 * 256 * 256 < width * height <= 256 * 256
        assert max(width, height) <= 4 * min(width, height)
    assert {width / height for width, height in sizes} >= {0.25, 1.0, 4.0}


@given(width=st.integers(16, 3000), height=st.integers(16, 3000))
def test_buckets_keep_as_much_of_the_image_as_their_shape_allows(width: int, height: int) -> None:
    [view] = planned_views(width, height, BUCKETS, "s")
    crop = view.crop
    assert (view.width, view.height) in bucket_sizes(64, 16, 4.0)
    assert crop.width == width or crop.height == height
    assert crop.left + crop.width <= width
    assert crop.top + crop.height <= height
    # Pixels stay square, but for the rounding of the crop to whole pixels.
    assert abs(crop.width * view.height - crop.height * view.width) <= max(view.width, view.height)
    if max(width, height) <= 4 * min(width, height):
        assert crop.width * crop.height >= 0.6 * width * height


@given(width=st.integers(16, 3000), height=st.integers(16, 3000))
def test_resize_keeps_the_whole_image(width: int, height: int) -> None:
    [view] = planned_views(width, height, Preprocessing(mode="resize", image_size=64), "s")
    assert view.crop == Crop(left=0, top=0, width=width, height=height)
    assert min(view.width, view.height) == 64
    assert view.width % 16 == view.height % 16 == 0
    exact = max(width, height) * 64 / min(width, height)
    assert abs(max(view.width, view.height) - exact) <= 8


@given(width=st.integers(16, 500), height=st.integers(16, 500), sample_id=st.text(max_size=8))
def test_random_crops_lie_inside_and_repeat_themselves(width: int, height: int, sample_id: str) -> None:
    views = planned_views(width, height, RANDOM, sample_id)
    assert views == planned_views(width, height, RANDOM, sample_id)
    for view in views:
        crop = view.crop
        assert crop.width == crop.height
        assert 0.5 * min(width, height) - 1 <= crop.width <= min(width, height)
        assert 0 <= crop.left <= width - crop.width
        assert 0 <= crop.top <= height - crop.height


def test_chance_depends_on_the_sample_the_seed_and_the_crop() -> None:
    crops = [view.crop for sample in "abcdefgh" for view in planned_views(400, 300, RANDOM, sample)]
    assert len(set(crops)) == len(crops) == 32
    other = planned_views(400, 300, RANDOM.model_copy(update={"seed": 1}), "a")
    assert {view.crop for view in other}.isdisjoint(crops)
    lefts = [planned_views(400, 300, RANDOM, str(i))[0].crop.left for i in range(300)]
    assert 0 <= min(lefts) < 20
    assert max(lefts) > 180
    # Written down, because every dataset made so far rests on it.
    assert planned_views(400, 300, RANDOM, "a")[0].crop == Crop(left=66, top=19, width=279, height=279)


def test_flips() -> None:
    both = planned_views(400, 300, RANDOM.model_copy(update={"flips": "both"}), "a")
    assert [view.flipped for view in both] == [False, True] * 4
    assert [view.crop for view in both[::2]] == [view.crop for view in both[1::2]]
    chance = RANDOM.model_copy(update={"flips": "random"})
    flipped = [view.flipped for i in range(200) for view in planned_views(400, 300, chance, str(i))]
    assert 300 < sum(flipped) < 500
    assert len(flipped) == 800


def test_rows_hold_the_pixels_that_they_tell() -> None:
    payload = encoded(1, 120, 80, "PNG")
    preprocessing = RANDOM.model_copy(update={"flips": "both"})
    clips = clips_of(preprocessing, payload)
    assert len(clips) == 8
    with Image.open(io.BytesIO(payload)) as image:
        for clip in clips:
            crop = clip.crop
            box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
            expected = np.asarray(image.crop(box).resize((32, 32), Image.Resampling.BICUBIC))
            expected = expected[:, ::-1] if clip.flipped else expected
            assert np.array_equal(clip.pixels[0].transpose(1, 2, 0), expected)
    again = clips_of(preprocessing, payload)
    assert [clip.pixels.tobytes() for clip in again] == [clip.pixels.tobytes() for clip in clips]
    elsewhere = clips_of(preprocessing, payload, index=1)
    assert {clip.crop for clip in elsewhere}.isdisjoint(clip.crop for clip in clips)


@pytest.mark.parametrize(("width", "height"), [(300, 100), (100, 300), (128, 128), (640, 40), (17, 400)])
def test_shapes_of_pixels(width: int, height: int) -> None:
    payload = encoded(2, width, height, "PNG")
    [bucketed] = clips_of(BUCKETS, payload)
    frames, channels, rows, columns = bucketed.pixels.shape
    assert (frames, channels) == (1, 3)
    assert (columns, rows) in bucket_sizes(64, 16, 4.0)
    assert (columns > rows) == (width > height)
    [whole] = clips_of(Preprocessing(mode="resize", image_size=48), payload)
    assert min(whole.pixels.shape[2:]) == 48


def test_many_rows_of_a_sample_from_source_to_original(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    source = photo_shards(2, 6)
    crops = {"num_crops": 3, "min_scale": 0.5}
    output = str(tmp_path / "out")
    write_real_data(
        output,
        (source,),
        image_size=32,
        tokenizer=FakeTokenizer(),
        mode="random_crop",
        random_crops=crops,
        flips="both",
    )
    verified = verify_output(output, [source])
    assert (verified.findings, verified.num_rows, verified.num_samples) == ((), 12 * 6, 12)
    data = TokenizedData.open(output)
    table = data.read_all()
    assert len(set(table["sample_id"].to_pylist())) == 72
    assert table["clip_index"].to_pylist() == list(range(6)) * 12
    assert table["flipped"].to_pylist() == [False, True] * 36
    # Each row's original is its own crop, mirrored where it was: the tokens are those of its pixels.
    places = source_places(table)
    found = read_originals(places, Recipe.of_run(data.run))
    for place, tokens in zip(places, table["tokens"].to_pylist(), strict=True):
        clip = found[place]
        assert isinstance(clip, Clip)
        assert FakeTokenizer().encode(torch.from_numpy(clip.pixels))[0].codes.tolist() == tokens
    with pytest.raises(ConfigError, match=r"fit 'photo-0003'[^$]*clip 5"):
        find_rows(data, ["photo-0003"])


def test_buckets_with_the_shipped_tokenizer(tmp_path: Path) -> None:
    members = [
        (f"{number}.png", encoded(number, width, height, "PNG"))
        for number, (width, height) in enumerate([(300, 100), (100, 300), (200, 200), (320, 100), (128, 96)])
    ]
    (tmp_path / "photos.tar").write_bytes(tar_bytes(members))
    output = str(tmp_path / "out")
    write_real_data(output, (str(tmp_path / "photos.tar"),), image_size=96, mode="buckets")
    table = TokenizedData.open(output).read_all()
    assert table["key"].to_pylist() == ["0", "1", "2", "3", "4"]
    shapes = list(zip(table["grid_width"].to_pylist(), table["grid_height"].to_pylist(), strict=True))
    patch = Tokenizer.load(device="cpu").patch_size
    allowed = {(width // patch, height // patch) for width, height in bucket_sizes(96, 16, 4.0)}
    assert set(shapes) <= allowed
    assert len(set(shapes)) >= 4
    decoded = Tokenizer.load(device="cpu").decode(token_sequences(table.slice(0, 1)))
    assert decoded.shape[2:] == (shapes[0][1] * patch, shapes[0][0] * patch)


def test_settings_that_do_not_fit_are_refused() -> None:
    job = {"source": "a", "output": "b"}
    for wrong, text in (
        ({"mode": "buckets", "image_size": 250}, "multiple"),
        ({"decoder": "simplejpeg", "resample": "lanczos"}, "lanczos"),
        ({"random_crops": {"num_crops": 0}}, "num_crops"),
        ({"buckets": {"max_aspect": 2}}, "max_aspect"),
    ):
        with pytest.raises(ConfigError, match=text):
            validated(JobConfig, job | {"preprocessing": wrong}, origin="job.yaml")
    assert Preprocessing(buckets=Buckets(max_aspect_ratio=2)).sides_divide_by == 256
    assert BUCKETS.sides_divide_by == 16

"""Every format in every layout in every store: the same photos and words (docs/reference/source-layouts.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.read import Place, ReadOptions, read_places, read_samples
from tatok.schemas.errors import SourceError
from tatok.schemas.job import Limits, Preprocessing
from tatok.schemas.records import Clip, Sample
from tests.support.layouts import CAPTIONS, LABELS, LAYOUTS, PHOTOS, STORES, WITHOUT_LISTING, Put, list_txt
from tests.support.services.hub import REPOSITORY
from tests.support.services.web_server import serving


@pytest.fixture
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Put]:
    """The store that the test's parameter names."""

    def put_local(name: str, data: bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    match request.param:
        case "local":
            yield put_local
        case "s3" | "gs" | "az" as scheme:
            bucket = request.getfixturevalue({"s3": "s3_bucket", "gs": "gcs_bucket", "az": "azure_container"}[scheme])
            root = f"{bucket}/layouts/{tmp_path.name}"
            fs = fsspec.filesystem(scheme)

            def put_object(name: str, data: bytes) -> str:
                fs.pipe_file(f"{root}/{name}", data)
                return f"{scheme}://{root}/{name}"

            yield put_object
        case "hf":
            hub = request.getfixturevalue("hub")

            def put_file(name: str, data: bytes) -> str:
                hub.files[name] = data
                return f"hf://datasets/{REPOSITORY}/{name}"

            yield put_file
        case "http":
            with serving(tmp_path) as web:
                yield lambda name, data: put_local(name, data).replace(str(tmp_path), web.url)


def content(sample: Sample) -> bytes:
    """The bytes, which a video that is a file of its own leaves where they lie."""
    if sample.payload_uri is None:
        return sample.payload
    assert sample.payload == b""
    with fsspec.open(sample.payload_uri, "rb") as file:
        return bytes(file.read())


@pytest.mark.parametrize("put", STORES, indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layout_in_store(layout: Callable[[Put], str], put: Put, request: pytest.FixtureRequest) -> None:
    if layout in WITHOUT_LISTING and "http" in request.node.name:
        pytest.skip("a web server has no listing: name its files in a list")
    source = layout(put)
    shards = plan_shards([source])
    samples = [sample for shard in shards for sample in read_samples(shard, ReadOptions(max_sample_bytes=1 << 20))]
    assert len(samples) == len(PHOTOS)
    for sample, key in zip(samples, PHOTOS, strict=True):
        assert isinstance(sample, Sample)
        assert key in sample.key
        assert content(sample) == PHOTOS[key]
        assert sample.media == ("video" if key == "p7" else "image")
        if sample.media == "image":
            [clip] = decode_sample(sample, Preprocessing(image_size=16), Limits())
            assert isinstance(clip, Clip), (key, clip)
        if layout is not list_txt:
            assert sample.attachments["txt"].decode() == CAPTIONS[key]
            assert sample.attachments["cls"].decode() == LABELS[key]
    places = [place for shard in shards for place in read_places(shard, ReadOptions(max_sample_bytes=1 << 20))]
    assert places == [Place(sample.uri, sample.index, sample.key) for sample in samples]
    assert len({(place.uri, place.index) for place in places}) == len(PHOTOS)
    assert plan_shards([source]) == shards, "ids are stable"


def test_an_address_with_a_query(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTOS["p0"])
    with serving(tmp_path) as web:
        [shard] = plan_shards([f"{web.url}/a.jpg?width=100"])
        [sample] = read_samples(shard, ReadOptions(max_sample_bytes=1 << 20))
    assert isinstance(sample, Sample)
    assert (sample.payload, sample.extension) == (PHOTOS["p0"], "jpg")


def test_folder_of_a_web_server_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with serving(tmp_path) as web, pytest.raises(SourceError, match="list"):
        plan_shards([f"{web.url}/photos/"])

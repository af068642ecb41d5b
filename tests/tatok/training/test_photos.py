"""Sources of photos: folders beside tars and Parquet files, and photos that cannot be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tatok.model.pixels import in_batches
from tatok.schemas.errors import ConfigError, SourceError
from tatok.training.config import TrainingConfig
from tatok.training.photos import RandomCrops, centre_crops, encoded_photos, expand_sources, shorter_side
from tests.support.photos import encoded, jpeg, photo_members, tar_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in class folders, a tar, a Parquet file, and what is none of these."""
    folder = tmp_path / "photos"
    for name in ("b/2.png", "a/1.jpg", "a/3.WEBP"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(
            encoded(len(name), 40, 32, {"g": "JPEG", "G": "PNG", "P": "WEBP"}[name[-1].upper()])
        )
    (folder / "c.tar").write_bytes(tar_bytes(photo_members(0, 2)))
    pq.write_table(pa.table({"image": [jpeg(7)]}), folder / "d.parquet")
    (folder / "notes.txt").write_text("no photo")
    (folder / "a" / "._1.jpg").write_bytes(b"a file manager's")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "1.jpg").write_bytes(jpeg(1))
    return folder


def test_a_folder_stands_for_its_tars_parquet_files_and_images(folder: Path) -> None:
    files = expand_sources([str(folder)])
    assert [str(Path(file).relative_to(folder)) for file in files] == [
        "a/1.jpg",
        "a/3.WEBP",
        "b/2.png",
        "c.tar",
        "d.parquet",
    ]
    assert list(encoded_photos(files[0])) == [(folder / "a" / "1.jpg").read_bytes()]
    crops = list(centre_crops(files, 16))
    assert len(crops) == 6
    assert all(crop.shape == (3, 16, 16) and crop.dtype == torch.uint8 for crop in crops)
    assert len(list(centre_crops(files, 16, limit=4))) == 4
    stream = iter(RandomCrops(files, 16, seed=0, shuffle_buffer=4))
    assert next(stream).shape == (3, 16, 16)


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no photo")
    with pytest.raises(ConfigError, match=r"no file matches .*or a folder of jpg, jpeg, png, webp files"):
        expand_sources([str(tmp_path)])


def test_a_photo_that_cannot_be_decoded_is_named(folder: Path) -> None:
    (folder / "b" / "2.png").write_bytes((folder / "b" / "2.png").read_bytes()[:200])
    with pytest.raises(SourceError, match=r"photo 0 of .*2.png cannot be decoded"):
        list(centre_crops(expand_sources([str(folder)]), 16))
    (folder / "junk.jpg").write_bytes(b"junk")
    with pytest.raises(SourceError, match=r"the first photo of .*junk.jpg cannot be decoded"):
        shorter_side([str(folder / "junk.jpg")])


def test_the_shorter_side_of_the_first_photo(folder: Path) -> None:
    assert shorter_side(expand_sources([str(folder)])) == 32
    (folder / "empty.tar").write_bytes(tar_bytes([("notes.txt", b"no photo")]))
    assert shorter_side([str(folder / "empty.tar"), str(folder / "c.tar")]) == 64
    with pytest.raises(SourceError, match=r"no image in .*empty.tar"):
        shorter_side([str(folder / "empty.tar")])


def test_batches() -> None:
    images = torch.arange(5 * 3 * 2 * 2).view(5, 3, 2, 2)
    batches = list(in_batches(images, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), images)
    assert list(in_batches([], 2)) == []


def test_photos_come_from_parquet_as_from_tars(tmp_path: Path) -> None:
    images = [jpeg(i) for i in range(3)]
    pq.write_table(pa.table({"image": [{"bytes": b, "path": None} for b in images]}), tmp_path / "struct.parquet")
    pq.write_table(pa.table({"image": images}), tmp_path / "plain.parquet")
    for name in ("struct", "plain"):
        assert list(encoded_photos(str(tmp_path / f"{name}.parquet"))) == images


def test_the_crop_stream_repeats_for_a_seed(config: TrainingConfig) -> None:
    paths = expand_sources(config.photos)

    def first(seed: int, rank: int = 0) -> torch.Tensor:
        stream = iter(RandomCrops(paths, 32, seed, shuffle_buffer=8, rank=rank))
        return torch.stack([next(stream) for _ in range(20)])

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert not torch.equal(first(1), first(1, rank=1))  # each rank sees other crops


@pytest.mark.parametrize(("buffer", "num_readings"), [(8, 3), (3, 3 * 7)], ids=["few", "many"])
def test_files_are_read_once_where_a_block_holds_all_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int, num_readings: int
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(tar_bytes(photo_members(10 * number, 2)))
    files, read = expand_sources([str(tmp_path)]), list[str]()

    def counted(path: str) -> Iterator[bytes]:
        read.append(path)
        return encoded_photos(path)

    def given() -> list[torch.Tensor]:
        return [crop for crop, _ in zip(RandomCrops(files, 16, seed=0, shuffle_buffer=buffer), range(38), strict=False)]

    with monkeypatch.context() as patch:
        patch.setattr("tatok.training.photos._FewPhotos.of", lambda few, path: encoded_photos(path))
        always_read = given()
    monkeypatch.setattr("tatok.training.photos.encoded_photos", counted)
    assert all(map(torch.equal, given(), always_read))
    assert len(read) == num_readings


def test_missing_photos_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file matches .*nothing"):
        expand_sources([str(tmp_path / "nothing-*.tar")])
    with pytest.raises(ConfigError, match=r"absent-1.tar does not exist"):
        expand_sources([str(tmp_path / "absent-{1..2}.tar")])
    with pytest.raises(SourceError, match=r"absent.tar"):
        list(encoded_photos(str(tmp_path / "absent.tar")))

"""What readers and planner lose without a word, verification finds, though it reads by the same readers and planner."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tatok.pipeline.planning import plan
from tatok.pipeline.planning.plan import ShardSizes, plan_shards
from tatok.pipeline.readers import read
from tatok.pipeline.storage.listing import ListedFile
from tatok.pipeline.verify import dataset
from tatok.pipeline.verify.dataset import Verification, verify_output
from tatok.schemas.errors import SourceError
from tests.support import real_data
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.layouts import LAYOUTS, PHOTOS, Put, list_csv, list_jsonl, list_txt, tars_by_braces
from tests.support.photos import jpeg, photo_members, tar_bytes
from tests.support.real_data import write_real_data
from tests.support.synthetic_videos import video_bytes

T = TypeVar("T")


def tokenize(source: str, output: Path) -> None:
    write_real_data(str(output), (source,), image_size=32, tokenizer=FakeTokenizer())


def counted(verification: Verification) -> list[tuple[str, str]]:
    return [(finding.file, finding.message) for finding in verification.findings if finding.check == "count"]


def others(verification: Verification) -> set[str]:
    return {finding.check for finding in verification.findings} - {"count"}


def put_in(folder: Path) -> Put:
    def put(name: str, data: bytes) -> str:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return str(folder / name)

    return put


def without_third(function: Callable[..., Iterator[T]]) -> Callable[..., Iterator[T]]:
    """What a function gives, but for its third."""

    def losing(*args: object, **options: object) -> Iterator[T]:
        items = iter(function(*args, **options))
        yield from islice(items, 2)
        next(items, None)
        yield from items

    return losing


def tsv(put: Put) -> str:
    """A caption of each is a lone quote."""
    for key, photo in PHOTOS.items():
        put(f"{key}.jpg", photo)
    return put("list.tsv", "\n".join(["url\tcaption", *(f'{key}.jpg\t"' for key in PHOTOS)]).encode())


ALL = (*LAYOUTS, tsv)
ENDS = ("has 7 of it", "has 2 of it", "has 4 of it")


@pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.__name__)
def test_every_layout_as_it_is(layout: Callable[[Put], str], tmp_path: Path) -> None:
    source = layout(put_in(tmp_path / "source"))
    tokenize(source, tmp_path / "out")
    whole = verify_output(str(tmp_path / "out"), [source])
    assert (whole.findings, whole.uncounted) == ((), ())
    assert whole.num_rows + whole.num_rejects == whole.num_samples == len(PHOTOS)


@pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.__name__)
def test_a_sample_that_the_reader_drops(
    layout: Callable[[Put], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("read_tar", "read_parquet", "read_parquet_keys", "read_files"):
        monkeypatch.setattr(read, name, without_third(getattr(read, name)))
    monkeypatch.setattr(read, "unpack_group", without_third(read.unpack_group))  # by which verify reads groups
    source = layout(put_in(tmp_path / "source"))
    tokenize(source, tmp_path / "out")
    short = verify_output(str(tmp_path / "out"), [source])
    assert others(short) == set()  # its other checks see what the reader sees
    assert not short.passed
    assert len(counted(short)) == (2 if layout is tars_by_braces else 1)
    for file, message in counted(short):
        assert file.startswith(str(tmp_path / "source"))
        # The tars that braces name hold three and five.
        assert "the dataset nothing of 1 of them" in message or message[-len("has 7 of it") :] in ENDS


@pytest.mark.parametrize("layout", [list_txt, list_csv, list_jsonl, tsv], ids=lambda layout: layout.__name__)
def test_a_row_that_the_parser_of_lists_drops(
    layout: Callable[[Put], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "listed_files", without_third(plan.listed_files))
    source = layout(put_in(tmp_path / "source"))
    tokenize(source, tmp_path / "out")
    short = verify_output(str(tmp_path / "out"), [source])
    assert others(short) == set()
    assert counted(short) == [(source, "holds 8 rows by its lines, the dataset has 7 of it")]


def mixed_folder(folder: Path) -> str:
    """Photos, a tar and a table, at several depths."""
    put = put_in(folder)
    for number in range(4):
        put(f"{number}.jpg", jpeg(number, 40, 40))
        put(f"deep/{number}.png", jpeg(9 + number, 40, 40))
    put("deep/a.tar", tar_bytes(photo_members(0, 3)))
    put("deep/er/b.tar", tar_bytes(photo_members(3, 2)))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [jpeg(1, 40, 40)] * 5}), buffer)
    put("t.parquet", buffer.getvalue())
    return str(folder)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("2.jpg", "has 8 images and videos by its listing, the dataset nothing of 1 of them, first {0}/2.jpg"),
        (
            "deep/3.png",
            "has 8 images and videos by its listing, the dataset nothing of 1 of them, first {0}/deep/3.png",
        ),
        ("deep/er/b.tar", "holds 2 samples by its headers, the dataset has 0 of it"),
        ("t.parquet", "holds 5 rows by its footer, the dataset has 0 of it"),
    ],
)
def test_a_file_that_the_walk_of_folders_drops(
    lost: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = mixed_folder(tmp_path / "source")
    tokenize(source, tmp_path / "whole")
    assert verify_output(str(tmp_path / "whole"), [source]).findings == ()
    walk = plan.list_below

    def losing(*args: object) -> Iterator[ListedFile]:
        return (file for file in walk(*args) if file.path != lost)  # type: ignore[arg-type]

    monkeypatch.setattr(plan, "list_below", losing)
    tokenize(source, tmp_path / "out")
    short = verify_output(str(tmp_path / "out"), [source])
    assert others(short) == set()
    assert [told for _, told in counted(short)] == [message.format(source)]


def test_a_file_that_is_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the planner takes and no listing has is a finding, too."""
    source = mixed_folder(tmp_path / "source")
    (tmp_path / "source" / ".hidden.jpg").write_bytes(jpeg(1, 40, 40))
    walk = plan.list_below

    def taking(*args: object) -> Iterator[ListedFile]:
        yield ListedFile(".hidden.jpg", None, "")
        yield from walk(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(plan, "list_below", taking)
    tokenize(source, tmp_path / "out")
    more = verify_output(str(tmp_path / "out"), [source])
    assert others(more) == set()
    assert counted(more) == [(source, "does not list 1 file that the dataset has of it")]


def test_ranges_of_one_file_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.tar").write_bytes(tar_bytes(photo_members(0, 20)))
    pq.write_table(pa.table({"image": [jpeg(n, 40, 40) for n in range(20)]}), source / "t.parquet", row_group_size=3)
    small = partial(plan_shards, sizes=ShardSizes(tar_bytes=16384, parquet_bytes=1 << 20, parquet_rows=6))
    monkeypatch.setattr(real_data, "plan_shards", small)
    monkeypatch.setattr(dataset, "plan_shards", small)
    tokenize(str(source), tmp_path / "out")
    whole = verify_output(str(tmp_path / "out"), [str(source)])
    assert (whole.findings, whole.num_counted) == ((), 2)
    assert whole.num_parts > 5

    def losing(shard: object, **options: object) -> Iterator[object]:
        samples = read_tar(shard, **options)  # type: ignore[arg-type]
        return (
            islice(samples, 1, None) if getattr(shard, "start", 0) else samples
        )  # the first of all but the first range

    read_tar = read.read_tar
    monkeypatch.setattr(read, "read_tar", losing)
    tokenize(str(source), tmp_path / "short")
    short = verify_output(str(tmp_path / "short"), [str(source)])
    assert others(short) == set()
    [(file, message)] = counted(short)
    assert file == str(source / "a.tar")
    assert message.startswith("holds 20 samples by its headers, the dataset has 1")


def test_clips_of_a_video_are_one_sample(tmp_path: Path) -> None:
    video = video_bytes(50)
    (tmp_path / "a.tar").write_bytes(tar_bytes([("v.mp4", video), ("w.mp4", video[: len(video) // 2])]))
    tokenize(f"{tmp_path}/a.tar", tmp_path / "out")
    whole = verify_output(str(tmp_path / "out"), [f"{tmp_path}/a.tar"])
    assert (whole.findings, whole.num_samples) == ((), 2)


def test_damaged_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those samples must be there that lie before the damage, and a reject for the rest."""
    data = tar_bytes(photo_members(0, 10))
    source = tmp_path / "source"
    source.mkdir()
    (source / "cut.tar").write_bytes(data[: len(data) * 2 // 3 - 100])
    (source / "none.tar").write_bytes(b"no tar at all" * 100)
    tokenize(str(source), tmp_path / "out")
    whole = verify_output(str(tmp_path / "out"), [str(source)])
    assert (whole.findings, whole.num_counted) == ((), 2)
    monkeypatch.setattr(read, "read_tar", without_third(read.read_tar))
    tokenize(str(source), tmp_path / "short")
    [(file, message)] = counted(verify_output(str(tmp_path / "short"), [str(source)]))
    assert file == f"{source}/cut.tar"
    assert message.startswith("holds at least ")


def test_damaged_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reject stands for the rest of its row group, and for no row of another one."""
    source = tmp_path / "source"
    source.mkdir()
    photos = [jpeg(number, 40, 40) for number in range(12)]
    pq.write_table(pa.table({"image": photos}), source / "t.parquet", row_group_size=4, compression="zstd")
    column = pq.read_metadata(source / "t.parquet").row_group(1).column(0)
    data = bytearray((source / "t.parquet").read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 400] = bytes(400)
    (source / "t.parquet").write_bytes(data)
    (source / "none.parquet").write_bytes(b"no table")
    tokenize(str(source), tmp_path / "out")
    whole = verify_output(str(tmp_path / "out"), [str(source)])
    assert whole.findings == ()
    assert (whole.num_rows, whole.num_rejects) == (8, 2)
    for name in ("read_parquet", "read_parquet_keys"):
        monkeypatch.setattr(read, name, without_third(getattr(read, name)))
    tokenize(str(source), tmp_path / "short")
    [(file, message)] = counted(verify_output(str(tmp_path / "short"), [str(source)]))
    assert file == f"{source}/t.parquet"
    assert message == "holds 12 rows by its footer, the dataset has 8 of it, where rejects stand for 3 more behind them"


def test_what_has_no_part_yet_is_not_told_twice(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "source")
    tokenize(source, tmp_path / "out")
    put = put_in(tmp_path / "source")
    put("new.jpg", jpeg(50, 40, 40))
    put("new.tar", tar_bytes(photo_members(0, 1)))
    grown = verify_output(str(tmp_path / "out"), [source])
    assert {finding.check for finding in grown.findings} == {"shards"}
    assert len(grown.findings) == 2


def test_a_file_that_changed_is_not_told_twice(tmp_path: Path) -> None:
    """Its old version's part is unplanned, and holds other files of the source."""
    source = mixed_folder(tmp_path / "source")
    tokenize(source, tmp_path / "out")
    (tmp_path / "source" / "1.jpg").write_bytes(jpeg(77, 60, 60))
    changed = verify_output(str(tmp_path / "out"), [source])
    assert {finding.check for finding in changed.findings} == {"shards"}
    listed = list_csv(put_in(tmp_path / "listed"))
    tokenize(listed, tmp_path / "of-list")
    text = (tmp_path / "listed" / "list.csv").read_text()
    (tmp_path / "listed" / "list.csv").write_text(text.replace("ünïcödé", "another", 1))
    changed = verify_output(str(tmp_path / "of-list"), [listed])
    assert {finding.check for finding in changed.findings} == {"shards"}


def test_what_cannot_be_counted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = mixed_folder(tmp_path / "source")
    tokenize(source, tmp_path / "out")

    def failing(uri: str) -> tuple[int, int]:
        raise SourceError("the store has failed")

    monkeypatch.setattr("tatok.pipeline.census.source.count_tar", failing)
    found = verify_output(str(tmp_path / "out"), [source])
    assert found.passed
    assert found.num_counted == 9
    assert sorted(found.uncounted) == [f"{source}/deep/{name}.tar: the store has failed" for name in ("a", "er/b")]
    run = CliRunner().invoke(app, ["verify", str(tmp_path / "out"), "--source", source])
    assert run.exit_code == 0, run.output
    assert "counted without the readers: 9 source files; not: 2" in run.output
    assert "deep/a.tar: the store has failed" in run.output
    document = json.loads(
        CliRunner().invoke(app, ["verify", str(tmp_path / "out"), "--source", source, "--json"]).output
    )
    assert (document["num_counted"], len(document["uncounted"]), document["checks"]["count"]) == (9, 2, 0)

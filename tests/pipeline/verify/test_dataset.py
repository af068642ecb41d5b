"""Verification finds nothing in a sound dataset, and names each kind of damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tatok.dataset.parts import TokenizedData
from tatok.jobs.cli import app
from tatok.pipeline.export.compact import compact
from tatok.pipeline.verify.dataset import Verification, verify_output
from tatok.schemas.errors import SourceError
from tatok.schemas.identity import sample_id
from tatok.schemas.manifest import LAYOUT
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.photos import jpeg, photo_members, tar_bytes, write_photo_shards
from tests.support.real_data import write_real_data


@dataclass(frozen=True, kw_only=True)
class Written:
    """A sound dataset of three shards, of which the last has two samples that are no images."""

    source: str
    output: Path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("sound")
    write_photo_shards(folder, 2, 6)
    members = [*photo_members(12, 4), ("bad-a.jpg", b"no photo"), ("bad-b.jpg", b"")]
    (folder / "source" / "photos-0002.tar").write_bytes(tar_bytes(members))
    source = f"{folder}/source/photos-{{0000..0002}}.tar"
    write_real_data(str(folder / "out"), (source,), image_size=64, tokenizer=FakeTokenizer())
    return Written(source=source, output=folder / "out")


@pytest.fixture
def damaged(sound: Written, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(sound.output, tmp_path / "out")
    return tmp_path / "out"


def found(verification: Verification) -> set[tuple[str, str]]:
    """(check, folder of the file) of every finding."""
    return {(finding.check, finding.file.partition("/")[0]) for finding in verification.findings}


def part_of(output: Path, number: int = 0) -> Path:
    """The part of shard `number`."""
    [path] = [
        path
        for path in (output / "data").iterdir()
        if f"photos-{number:04}" in json.loads(pq.read_metadata(path).metadata[b"tatok.shard"])["uri"]
    ]
    return path


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows of a part and leave its footer's metadata as it was."""
    metadata = {
        key: value for key, value in (pq.read_metadata(path).metadata or {}).items() if key.startswith(b"tatok.")
    }
    table = change(pq.read_table(path))
    path.unlink()
    pq.write_table(table.replace_schema_metadata(metadata), path)


def with_lists(table: pa.Table, name: str, lists: list[list[int]]) -> pa.Table:
    return table.set_column(
        table.schema.get_field_index(name),
        table.schema.field(name),
        pa.array(lists, type=table.schema.field(name).type),
    )


def with_number(table: pa.Table, name: str, value: float) -> pa.Table:
    """The first row's value replaced."""
    values = table[name].to_pylist()
    kind = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), kind, pa.array([value, *values[1:]], type=kind.type))


def test_a_sound_data_set_passes(sound: Written) -> None:
    alone = verify_output(str(sound.output))
    assert (alone.findings, alone.num_parts, alone.num_rows, alone.num_rejects) == ((), 3, 16, 2)
    assert alone.num_samples is None
    assert "keys" not in alone.checks
    seen: list[tuple[int, int]] = []
    with_source = verify_output(str(sound.output), [sound.source], on_part=lambda *done: seen.append(done))
    assert (with_source.findings, with_source.num_samples) == ((), 18)
    assert (with_source.num_counted, with_source.uncounted) == (3, ())
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert set(with_source.checks.values()) == {0}


def test_a_compacted_data_set_passes(sound: Written, tmp_path: Path) -> None:
    compact(TokenizedData.open(sound.output), str(tmp_path / "large"), target_bytes=1 << 30)
    whole = verify_output(str(tmp_path / "large"), [sound.source])
    assert (whole.findings, whole.num_parts, whole.num_samples) == ((), 1, 18)


def keep_first_code_high(table: pa.Table) -> pa.Table:
    codes = table["tokens"].to_pylist()
    codes[0][0] = 1024
    return with_lists(table, "tokens", codes)


def swap_positions(table: pa.Table) -> pa.Table:
    lists = table["positions"].to_pylist()
    row = next(i for i, kept in enumerate(lists) if len(kept) > 1)
    lists[row][:2] = lists[row][1::-1]
    return with_lists(table, "positions", lists)


def last_position_outside(table: pa.Table) -> pa.Table:
    lists = table["positions"].to_pylist()
    next(kept for kept in lists if kept)[-1] = 16
    return with_lists(table, "positions", lists)


def without_a_row(table: pa.Table) -> pa.Table:
    return table.slice(1)


def a_row_twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(0, 1)])


def renamed_key(table: pa.Table) -> pa.Table:
    keys = ["another", *table["key"].to_pylist()[1:]]
    return table.set_column(table.schema.get_field_index("key"), table.schema.field("key"), pa.array(keys))


def second_clip_of_nothing(table: pa.Table) -> pa.Table:
    """The first row says that it is its sample's second one, which has no first."""
    row = table.slice(0, 1).to_pylist()[0]
    ids = [sample_id(row["source_uri"], row["source_index"], row["key"], 1), *table["sample_id"].to_pylist()[1:]]
    table = table.set_column(0, table.schema.field("sample_id"), pa.array(ids))
    return with_number(table, "clip_index", 1)


def clip_without_places(table: pa.Table) -> pa.Table:
    """The first row says that it is a clip, which would have to place its globals."""
    table = with_number(table, "grid_frames", 2)
    entropies = table["patch_entropy_bits"].to_pylist()
    entropies[0] *= 2
    return with_lists(table, "patch_entropy_bits", entropies)


@pytest.mark.parametrize(
    ("change", "checks", "with_source"),
    [
        (clip_without_places, {"positions"}, set()),
        (keep_first_code_high, {"codes"}, set()),
        (swap_positions, {"positions"}, set()),
        (last_position_outside, {"positions"}, set()),
        (without_a_row, {"footer", "manifest"}, {"keys", "count"}),
        (a_row_twice, {"footer", "manifest", "duplicates"}, {"keys"}),
        (renamed_key, {"rows"}, {"keys"}),
        (second_clip_of_nothing, {"rows"}, {"keys", "count"}),
        (lambda table: with_number(table, "num_tokens", 1), {"codes"}, set()),
        (lambda table: with_number(table, "entropy_bits", float("nan")), {"rows"}, set()),
        (lambda table: with_number(table, "surprisal_bits", -1.0), {"rows"}, set()),
        (lambda table: with_number(table, "crop_width", 1000), {"rows"}, set()),
        (lambda table: table.drop_columns(["caption"]), {"schema"}, {"keys", "count"}),
        (
            lambda table: table.set_column(3, "source_index", pc.add(table["source_index"], 100)),
            {"schema"},
            {"keys", "count"},
        ),
    ],
)
def test_wrong_rows(
    sound: Written,
    damaged: Path,
    change: Callable[[pa.Table], pa.Table],
    checks: set[str],
    with_source: set[str],
) -> None:
    rewrite(part_of(damaged), change)
    alone = verify_output(str(damaged))
    assert found(alone) == {(check, "data") for check in checks | {"checksum"} | ({"manifest"} & checks)}
    again = verify_output(str(damaged), [sound.source])
    of_source = {(check, "" if check == "count" else "data") for check in with_source}  # counts name the source file
    assert found(again) - found(alone) == of_source
    assert all(str(damaged) not in finding.file for finding in alone.findings)


def test_damaged_bytes(damaged: Path) -> None:
    path = part_of(damaged)
    whole = bytearray(path.read_bytes())
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    assert found(verify_output(str(damaged))) == {("checksum", "data"), ("footer", "data")}
    rng = np.random.default_rng(0)
    for _ in range(30):  # wherever a bit flips, it is noticed
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        assert ("checksum", "data") in found(verify_output(str(damaged)))


def test_missing_and_extra_files(sound: Written, damaged: Path) -> None:
    path = part_of(damaged)
    path.unlink()
    assert found(verify_output(str(damaged))) == {("manifest", "data"), ("rejects", "_rejects")}
    with_source = verify_output(str(damaged), [sound.source])
    assert {finding.check for finding in with_source.findings} == {"manifest", "rejects", "shards"}
    (damaged / LAYOUT.rejects_of(path.name)).unlink()
    shutil.copy(part_of(damaged, 1), damaged / "data" / "part-other.parquet")
    again = verify_output(str(damaged))
    assert found(again) == {("manifest", "data"), ("footer", "data"), ("rejects", "_rejects"), ("duplicates", "data")}


def test_missing_documents(damaged: Path) -> None:
    (damaged / "_SUCCESS").unlink()
    (damaged / "_manifest.json").unlink()
    assert {finding.file for finding in verify_output(str(damaged)).findings} >= {"_SUCCESS", "_manifest.json"}
    (damaged / "_run.json").write_text("{")
    [finding] = verify_output(str(damaged)).findings
    assert (finding.check, finding.file) == ("run", "_run.json")
    (damaged / "_run.json").unlink()
    [finding] = verify_output(str(damaged)).findings
    assert "is missing" in finding.message
    with pytest.raises(SourceError, match="holds no tokenized dataset"):
        verify_output(str(damaged / "nowhere"))


def test_wrong_rejects(sound: Written, damaged: Path) -> None:
    path = damaged / LAYOUT.rejects_of(part_of(damaged, 2).name)
    rewrite(path, lambda table: table.slice(1))
    assert found(verify_output(str(damaged))) == {("rejects", "_rejects")}
    assert {("keys", "data"), ("count", "")} <= found(verify_output(str(damaged), [sound.source]))
    path.unlink()
    assert found(verify_output(str(damaged))) == {("rejects", "_rejects")}


def test_a_source_that_changed(sound: Written, damaged: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.tar").write_bytes(tar_bytes(photo_members(0, 3)))
    output = tmp_path / "grown"
    write_real_data(str(output), (str(source),), image_size=64, tokenizer=FakeTokenizer())
    (source / "a.tar").write_bytes(tar_bytes(photo_members(0, 5)))
    stale = verify_output(str(output), [str(source)])
    assert {finding.check for finding in stale.findings} == {"shards"}
    write_real_data(str(output), (str(source),), image_size=64, tokenizer=FakeTokenizer())
    twice = verify_output(str(output))
    assert [finding.check for finding in twice.findings] == ["duplicates"]
    assert str(source / "a.tar") in twice.findings[0].message


def test_the_command(sound: Written, damaged: Path) -> None:
    run = CliRunner().invoke(app, ["verify", str(sound.output), "--source", sound.source])
    assert run.exit_code == 0, run.output
    assert "3 parts, 16 rows, 2 rejects; the source: 18 samples" in run.output
    assert "wrong" not in run.output
    rewrite(part_of(damaged), keep_first_code_high)
    run = CliRunner().invoke(app, ["verify", str(damaged)])
    assert run.exit_code == 3
    assert "a code of 1024 or more in 1 row, first in row 0 ('photo-0000')" in run.output
    run = CliRunner().invoke(app, ["verify", str(damaged), "--json"])
    document = json.loads(run.output)
    assert (run.exit_code, document["passed"], document["checks"]["codes"]) == (3, False, 1)
    assert {finding["check"] for finding in document["findings"]} == {"codes", "checksum"}


def test_in_a_bucket(s3_bucket: str, sound: Written) -> None:
    import s3fs

    url = f"s3://{s3_bucket}/verified"
    s3fs.S3FileSystem().put(str(sound.output), url, recursive=True)
    assert found(verify_output(url)) == set()


def test_a_file_in_two_parts_is_found(tmp_path: Path) -> None:
    """As after two runs at the same time over a folder that changed between them."""
    photos, output = tmp_path / "photos", str(tmp_path / "out")
    photos.mkdir()
    for i in range(3):
        (photos / f"{i}.jpg").write_bytes(jpeg(i, 64, 64))
    write_real_data(output, (str(photos),), image_size=64, tokenizer=FakeTokenizer())
    (photos / "3.jpg").write_bytes(jpeg(3, 64, 64))
    assert verify_output(output).passed
    write_real_data(output, (str(photos),), image_size=64, tokenizer=FakeTokenizer())
    [finding] = verify_output(output).findings
    assert finding.check == "duplicates"
    assert "3 files" in finding.message

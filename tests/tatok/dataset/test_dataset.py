"""What a row and a batch hold, against the Parquet itself; filters, mixtures, buckets, caches."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from torch.utils.data import DataLoader

import tatok.dataset.parts
from tatok.dataset.batches import PackedBatch, PaddedBatch, TokenRow, pack, pad
from tatok.dataset.dataset import TokenDataset
from tatok.dataset.packing import Bucketing, Packing, Rows
from tatok.dataset.parts import TokenizedData
from tatok.schemas.errors import ConfigError, SourceError
from tests.support.synthetic_tokens import write_synthetic

NUM_ROWS = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write_synthetic(str(folder), NUM_ROWS, rows_per_part=120, row_group_rows=50)
    return folder


@pytest.fixture(scope="module")
def stored(folder: Path) -> list[dict[str, object]]:
    return TokenizedData.open(folder).read_all().to_pylist()


def check(row: TokenRow, stored: dict[str, object]) -> None:
    num_global = stored["num_global_tokens"]
    assert row.tokens.tolist() == stored["tokens"]
    assert row.kinds.tolist() == [0] * num_global + [1] * stored["num_patch_tokens"]  # type: ignore[operator]
    assert (row.positions[:num_global] == -1).all()
    width = stored["grid_width"]
    expected = [[0, place // width, place % width] for place in stored["positions"]]  # type: ignore[operator, union-attr]
    assert row.positions[num_global:].tolist() == expected
    assert row.grid == (1, 16, 16)
    assert row.columns == {"label": stored["label"], "caption": stored["caption"]}


def unpacked(batch: PackedBatch) -> list[TokenRow]:
    cuts = batch.cu_seqlens.tolist()
    return [
        TokenRow(
            tokens=batch.tokens[start:stop],
            kinds=batch.kinds[start:stop],
            positions=batch.positions[start:stop],
            grid=tuple(batch.grids[number].tolist()),
            columns={name: values[number] for name, values in batch.columns.items()},
            row=int(batch.rows[number]),
        )
        for number, (start, stop) in enumerate(itertools.pairwise(cuts))
    ]


def unpadded(batch: PaddedBatch) -> list[TokenRow]:
    return [
        TokenRow(
            tokens=batch.tokens[number][mask],
            kinds=batch.kinds[number][mask],
            positions=batch.positions[number][mask],
            grid=tuple(batch.grids[number].tolist()),
            columns={name: values[number] for name, values in batch.columns.items()},
            row=int(batch.rows[number]),
        )
        for number, mask in enumerate(batch.mask)
    ]


def test_rows_are_the_table_s(folder: Path, stored: list[dict[str, object]]) -> None:
    data = TokenDataset(folder, columns=["label", "caption"])
    assert len(data) == NUM_ROWS
    for number in (0, 49, 50, 119, 120, 499):
        check(data[number], stored[number])
        assert data[number].row == number
    assert data[-1].row == 499
    assert [row.row for row in data.__getitems__([300, 2, 300, 49])] == [300, 2, 300, 49]
    assert data.vocab_size == 4096
    for wrong in (500, -501):
        with pytest.raises(IndexError, match="500 rows"):
            data[wrong]


def test_packed_batches_hold_the_rows(folder: Path, stored: list[dict[str, object]]) -> None:
    data = TokenDataset(folder, columns=["label", "caption"])
    seen = []
    for batch in data.stream(Packing(tokens=2000)):
        assert batch.tokens.dtype == batch.kinds.dtype == batch.rows.dtype == torch.int64
        assert batch.cu_seqlens.dtype == batch.document_ids.dtype == batch.positions.dtype == torch.int32
        assert batch.max_seqlen == max(len(row.tokens) for row in unpacked(batch))
        assert batch.document_ids.tolist() == [i for i, row in enumerate(unpacked(batch)) for _ in row.tokens]
        for row in unpacked(batch):
            check(row, stored[row.row])
            seen.append(row.row)
    assert sorted(seen) == list(range(NUM_ROWS))


def test_fixed_size_batches_are_padded_at_the_end(folder: Path) -> None:
    data = TokenDataset(folder)
    loose = list(data.stream(Packing(tokens=2000)))
    for batch, same in zip(data.stream(Packing(tokens=2000, fixed_size=True)), loose, strict=True):
        num = int(batch.cu_seqlens[-1])
        assert all(len(t) == 2000 for t in (batch.tokens, batch.kinds, batch.positions, batch.document_ids))
        assert torch.equal(batch.tokens[:num], same.tokens)
        assert torch.equal(batch.positions[:num], same.positions)
        assert (batch.document_ids[num:] == -1).all()
        assert (batch.positions[num:] == -1).all()
        assert not batch.tokens[num:].any()


def test_bucketed_batches_hold_the_rows(folder: Path, stored: list[dict[str, object]]) -> None:
    data = TokenDataset(folder, columns=["label", "caption"])
    seen = []
    for batch in data.stream(Bucketing(tokens=2000)):
        assert batch.mask.numel() <= 2000
        assert batch.mask.sum(1).tolist() == batch.lengths.tolist()
        assert not batch.tokens[~batch.mask].any()
        for row in unpadded(batch):
            check(row, stored[row.row])
            seen.append(row.row)
    assert sorted(seen) == list(range(NUM_ROWS))


def test_row_batches_hold_the_rows(folder: Path, stored: list[dict[str, object]]) -> None:
    data = TokenDataset(folder, columns=["label", "caption"])
    documents = [document for batch in data.stream(Rows(rows=32)) for document in batch.documents]
    for document in documents:
        check(document, stored[document.row])
    assert len(documents) == NUM_ROWS


def test_map_style_under_a_dataloader(folder: Path, stored: list[dict[str, object]]) -> None:
    data = TokenDataset(folder, columns=["label", "caption"])
    for collate, undo in ((pack, unpacked), (pad, unpadded)):
        loader = DataLoader(data, batch_size=64, shuffle=True, collate_fn=collate, num_workers=1)
        rows = [row for batch in loader for row in undo(batch)]
        for row in rows:
            check(row, stored[row.row])
        assert sorted(row.row for row in rows) == list(range(NUM_ROWS))


def test_grids_may_differ_within_a_batch(folder: Path) -> None:
    narrow = TokenRow(
        tokens=torch.tensor([7, 8, 9]),
        kinds=torch.tensor([0, 1, 1]),
        positions=torch.tensor([[-1, -1, -1], [0, 1, 2], [1, 0, 0]], dtype=torch.int32),
        grid=(2, 2, 4),
        columns={},
        row=3,
    )
    wide = TokenDataset(folder)[0]
    assert torch.equal(unpacked(pack([narrow, wide]))[0].positions, narrow.positions)
    assert torch.equal(unpadded(pad([wide, narrow]))[1].positions, narrow.positions)


def test_filters(folder: Path, stored: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    filters = [("num_tokens", "<", 40), ("label", "in", ["1", "2"])]
    wanted = [n for n, row in enumerate(stored) if row["num_tokens"] < 40 and row["label"] in ("1", "2")]  # type: ignore[operator]
    data = TokenDataset(folder, filters=filters, columns=["label", "caption"])
    assert len(data) == len(wanted) > 10
    for number, at in enumerate(wanted):
        assert data[number].tokens.tolist() == stored[at]["tokens"]
    batches = list(data.stream(Packing(tokens=2000)))
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(len(wanted)))
    for row in unpacked(batches[0]):
        check(row, stored[wanted[row.row]])
    either = TokenDataset(folder, filters=[[("num_tokens", "<", 20)], [("num_tokens", ">", 200)]])
    assert len(either) == sum(row["num_tokens"] < 20 or row["num_tokens"] > 200 for row in stored)  # type: ignore[operator]


def test_row_groups_ruled_out_by_statistics_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = TokenizedData.read

    def counted(self: TokenizedData, name: str, **options: object) -> object:
        read.append((name, options["row_groups"]))
        return original(self, name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tatok.dataset.parts.TokenizedData, "read", counted)
    data = TokenDataset(folder, filters=[("key", ">=", "row-000000490")])
    assert len(data) == 10
    assert len(read) == 1
    assert len(TokenDataset(folder, filters=[("num_tokens", ">", 10_000)])) == 0


def test_wrong_filters_and_columns_are_named(folder: Path) -> None:
    for filters in (["num_tokens < 3"], [("num_tokens", "~", 3)], [("num_tokens", "<", "many")]):
        with pytest.raises(ConfigError, match="filters"):
            TokenDataset(folder, filters=filters)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no column colour; it has .*caption"):
        TokenDataset(folder, columns=["colour"])
    with pytest.raises(ConfigError, match="no column colour"):
        TokenDataset(folder, filters=[("colour", "=", 1)])
    with pytest.raises(ConfigError, match="no row passes the filters"):
        TokenDataset(folder, filters=[("num_tokens", ">", 10_000)]).stream(Packing(tokens=2000))
    with pytest.raises(SourceError, match="holds no tokenized dataset"):
        TokenDataset(folder / "nowhere")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("second")
    write_synthetic(str(folder), 200, rows_per_part=90, seed=3)
    return folder


def drawn(data: TokenDataset, epoch: int) -> Counter[int]:
    stream = data.stream(Packing(tokens=2000))
    stream.set_epoch(epoch)
    return Counter(row for batch in stream for row in batch.rows.tolist())


def test_two_data_sets_in_one(folder: Path, second: Path, stored: list[dict[str, object]]) -> None:
    data = TokenDataset([folder, second])
    assert len(data) == 700
    assert data[3].tokens.tolist() == stored[3]["tokens"]
    other = TokenizedData.open(second).read_all(["tokens"]).column("tokens").to_pylist()
    assert data[500 + 7].tokens.tolist() == other[7]
    assert set(drawn(data, 0).values()) == {1}


def test_weights_share_out_the_epoch(folder: Path, second: Path) -> None:
    data = TokenDataset([folder, second], weights=[1, 3])
    counts = drawn(data, 0)
    first, other = [n for row, n in counts.items() if row < 500], [n for row, n in counts.items() if row >= 500]
    assert sum(first) == pytest.approx(700 / 4, abs=5)
    assert set(first) == {1}
    assert sum(other) == pytest.approx(700 * 3 / 4, abs=5)
    assert len(other) == 200  # 2.6 times each: all of them twice or thrice
    assert set(other) == {2, 3}
    assert drawn(data, 0) == counts
    assert drawn(data, 1) != counts
    over_time = sum((drawn(data, epoch) for epoch in range(20)), Counter[int]())
    assert len(over_time) == 700


def test_weights_that_do_not_fit_are_refused(folder: Path, second: Path) -> None:
    for weights in ([1], [1, -1], [0, 0], [1, float("nan")]):
        with pytest.raises(ConfigError, match="weights"):
            TokenDataset([folder, second], weights=weights)


def test_tokens_of_two_tokenizers_do_not_mix(folder: Path, second: Path, tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 50)
    run = tmp_path / "_run.json"
    run.write_text(run.read_text().replace('"synthetic"', '"other"'))
    with pytest.raises(ConfigError, match=r"different tokenizers \(tokenizer.weights_sha256\)"):
        TokenDataset([folder, tmp_path])


def test_a_data_set_travels_to_other_processes(folder: Path) -> None:
    data = pickle.loads(pickle.dumps(TokenDataset(folder)))
    assert data[3].row == 3
    loader = DataLoader(data.stream(Rows(rows=50)), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert sorted(row.row for batch in loader for row in batch.documents) == list(range(NUM_ROWS))


def test_from_a_bucket_through_a_cache(s3_bucket: str, folder: Path, tmp_path: Path) -> None:
    url = f"s3://{s3_bucket}/loader"
    write_synthetic(url, NUM_ROWS, rows_per_part=120, row_group_rows=50)
    here = [batch.tokens.tolist() for batch in TokenDataset(folder).stream(Packing(tokens=2000))]

    def there(workers: int = 0) -> list[list[int]]:
        data = TokenDataset(url, cache=tmp_path / "cache")
        return [b.tokens.tolist() for b in DataLoader(data.stream(Packing(tokens=2000)), None, num_workers=workers)]

    assert there(workers=2) == here
    kept = sorted((tmp_path / "cache").iterdir())
    assert kept
    assert all(path.suffix == ".arrow" for path in kept)
    assert there() == here
    assert sorted((tmp_path / "cache").iterdir()) == kept
    for path in kept[:3]:
        path.unlink()
    kept[3].write_bytes(kept[3].read_bytes()[:500])  # as a full disk or a power cut may leave it
    kept[4].write_bytes(b"")
    assert there() == here
    assert kept[4].stat().st_size > 500


def test_the_cache_is_read(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"s3://{s3_bucket}/loader-cache"
    write_synthetic(url, 100)
    data = TokenDataset(url, cache=tmp_path)
    before = [batch.tokens.tolist() for batch in data.stream(Packing(tokens=2000))]

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("read from the bucket again")

    monkeypatch.setattr(TokenizedData, "read", fail)
    assert [batch.tokens.tolist() for batch in data.stream(Packing(tokens=2000))] == before


def test_a_cache_that_cannot_be_written_is_named(s3_bucket: str, tmp_path: Path) -> None:
    url = f"s3://{s3_bucket}/loader-nocache"
    write_synthetic(url, 20)
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot write to the cache"):
        list(TokenDataset(url, cache=tmp_path / "cache").stream(Packing(tokens=2000)))


def test_means_hold(folder: Path) -> None:
    lengths = TokenizedData.open(folder).read_all(["num_tokens"]).column("num_tokens")
    assert TokenDataset(folder).mean_tokens == pytest.approx(pc.mean(lengths).as_py())
    assert np.isclose(TokenDataset(folder).mean_tokens, 61, atol=10)

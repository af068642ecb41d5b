"""Keys and sample ids -> rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tatok.dataset.lookup import RowPlace, find_rows, read_rows
from tatok.dataset.parts import TokenizedData
from tatok.pipeline.output.commit import commit_shard
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.tokenize import tokenize_clips
from tatok.schemas.errors import ConfigError
from tatok.schemas.identity import sample_id
from tests.support.parts import FAKE, clip, shard
from tests.support.synthetic_tokens import write_synthetic


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenizedData:
    folder = tmp_path_factory.mktemp("lookup")
    write_synthetic(str(folder), 700, rows_per_part=300, row_group_rows=128)
    return TokenizedData.open(folder)


def test_keys_and_sample_ids(data: TokenizedData) -> None:
    names = ["row-000000699", "row-000000000", f"{300:032x}", "row-000000427"]
    places = find_rows(data, names)
    assert [place.row for place in places] == [99, 0, 0, 127]
    rows = read_rows(data, places)
    assert rows.column("key").to_pylist() == ["row-000000699", "row-000000000", "row-000000300", "row-000000427"]
    assert rows.schema.names == data.schema.names
    [last] = read_rows(data, [RowPlace(part=data.parts[1].name, row=128)], ["key"]).to_pylist()
    assert last == {"key": "row-000000428"}
    assert len(read_rows(data, [])) == 0


def test_a_prefix_that_fits_one_row(data: TokenizedData) -> None:
    with pytest.raises(ConfigError, match=r"no row with the key or sample id '0000000'"):
        find_rows(data, ["0000000"])  # fewer than 8 digits are no sample id
    with pytest.raises(ConfigError, match="700 rows") as caught:
        find_rows(data, ["0" * 8])
    message = str(caught.value)
    assert "'row-000000000'  s3://photos/shard-000000000.tar [0]" in message
    assert "and 690 more" in message
    with pytest.raises(ConfigError, match="16 rows"):
        find_rows(data, [f"{0x123:032x}"[:31]])


def test_a_key_goes_before_a_sample_id(tmp_path: Path) -> None:
    store = OutputStore.open(str(tmp_path / "out"))
    first = clip(0)
    namesake = replace(clip(1), key=sample_id(first.uri, first.index, first.key)[:8])
    batches = tokenize_clips([first, namesake], FAKE.encode_clips, batch_size=2, vocab_size=1024, patch_entropy=True)
    commit_shard(store, shard(), batches, fingerprint={}, vocab_size=1024, patch_entropy=True, row_group_rows=10)
    data = TokenizedData.open(store.url)
    name = sample_id(first.uri, first.index, first.key)
    assert [place.row for place in find_rows(data, [name[:8], name[:9], name])] == [1, 0, 0]


def test_an_unknown_key_names_close_ones(data: TokenizedData) -> None:
    with pytest.raises(ConfigError, match="close to it: 'row-000000123'"):
        find_rows(data, ["ROW-000000123"])
    with pytest.raises(ConfigError, match="close to it: 'row-"):
        find_rows(data, ["row-00000l23"])
    with pytest.raises(ConfigError) as caught:
        find_rows(data, ["zebra"])
    assert "close" not in str(caught.value)

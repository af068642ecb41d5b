"""hf://, over the few answers of Hugging Face's hub that it needs: a stand-in in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tatok import Rows, TokenDataset, statistics
from tatok.dataset.parts import TokenizedData
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.errors import SourceError
from tests.support.photos import photo_members, tar_bytes
from tests.support.services.hub import REPOSITORY, Hub
from tests.support.synthetic_tokens import write_synthetic

PLACE = f"hf://datasets/{REPOSITORY}"


def test_a_dataset_is_read_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    """One that was written elsewhere and uploaded as it is."""
    write_synthetic(str(tmp_path / "tokens"), 40, rows_per_part=20, rejects_per_part=3)
    for path in (tmp_path / "tokens").rglob("*"):
        if path.is_file():
            hub.files[str(path.relative_to(tmp_path))] = path.read_bytes()
    data = TokenizedData.open(f"{PLACE}/tokens")
    assert (data.complete, data.num_rows) == (True, 40)
    assert statistics.query(data, "SELECT count(*) AS n FROM rejects").to_pylist() == [{"n": 6}]
    batches = list(TokenDataset(data.url).stream(Rows(rows=10), epochs=1))
    assert sum(len(row.tokens) for batch in batches for row in batch.documents) == data.num_tokens
    assert not {finding.check for finding in verify_output(data.url).findings} & {"run", "manifest", "schema"}


def test_a_repository_that_refuses_or_is_not_there(hub: Hub) -> None:
    hub.files["photos.tar"] = tar_bytes(photo_members(0, 2))
    [shard] = plan_shards([f"{PLACE}/photos.tar"])
    hub.status = 403
    with pytest.raises(SourceError) as refused:
        list(read_samples(shard, ReadOptions(max_sample_bytes=1 << 20)))
    assert refused.value.is_permanent
    assert "the credentials in use may not read there" in str(refused.value.remedy)
    with pytest.raises(SourceError, match="no tokenized dataset"):
        TokenizedData.open("hf://datasets/people/nothing")
    with pytest.raises(SourceError, match="nothing"):
        plan_shards(["hf://datasets/people/nothing/photos.tar"])

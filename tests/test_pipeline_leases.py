from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pipeline_commit import shard

from pipeline.leases import MAX_ATTEMPTS, MAX_TIMEOUTS, Failure, ShardLedger
from schemas.records import Shard, ShardReport


def report(leased: Shard) -> ShardReport:
    return ShardReport(
        shard=leased,
        num_rows=1,
        num_tokens=1,
        rejects={"corrupt": 2},
        seconds=0,
        part_bytes=1,
        row_group_rows=(1,),
        part_sha256="x",
    )


def test_failed_shard_goes_to_the_end() -> None:
    ledger = ShardLedger([shard("a"), shard("b")])
    first = ledger.lease()
    assert ledger.fail(first, Failure(kind="source", message="lost"))
    assert ledger.lease() == shard("b")
    assert ledger.lease() == first


@pytest.mark.parametrize(("kind", "attempts"), [("decoder_died", MAX_ATTEMPTS), ("decode_timeout", MAX_TIMEOUTS)])
def test_attempts_are_bounded(kind: str, attempts: int) -> None:
    ledger = ShardLedger([shard("a")])
    failure = Failure(kind=kind, message="again")  # type: ignore[arg-type]
    for _ in range(attempts - 1):
        assert ledger.fail(ledger.lease(), failure)
    assert not ledger.fail(ledger.lease(), failure)
    assert ledger.is_finished
    assert ledger.failed == {shard("a"): failure}


@given(
    st.integers(0, 6),
    st.lists(st.tuples(st.booleans(), st.sampled_from(["decoder_died", "decode_timeout", "source"])), max_size=60),
)
def test_every_shard_ends_up_committed_or_failed_once(num_shards: int, outcomes: list[tuple[bool, str]]) -> None:
    shards = [shard(f"s{i}") for i in range(num_shards)]
    ledger = ShardLedger(shards)
    script = iter(outcomes)
    while ledger.has_waiting:
        leased = ledger.lease()
        is_good, kind = next(script, (True, ""))
        if is_good:
            ledger.commit(report(leased))
        else:
            ledger.fail(leased, Failure(kind=kind, message="x"))  # type: ignore[arg-type]
    assert ledger.is_finished
    settled = [item.shard for item in ledger.reports] + list(ledger.failed)
    assert sorted(settled, key=lambda item: item.shard_id) == shards
    assert ledger.rejects()["corrupt"] == 2 * len(ledger.reports)

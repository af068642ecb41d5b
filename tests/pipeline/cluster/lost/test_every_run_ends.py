"""Whatever a shard does to those that work on it, again and again, at whatever moment: the run ends, and names it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import example, given, settings
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError

from tatok.pipeline.cluster.leases import Attempt, Failure, FailureKind
from tatok.pipeline.cluster.scheduler import Scheduler
from tatok.pipeline.cluster.sizes import Sizes, plan_sizes
from tatok.schemas.job import JobConfig, Limits
from tests.support.parts import shard
from tests.support.simulated_calls import SimulatedCalls

NUM_GOOD = 8
A_DAY_S = 24 * 3600.0

Ending = Literal["stands still", "kills its process"] | FailureKind
ENDINGS: tuple[Ending, ...] = (
    "stands still",
    "kills its process",
    "decode_timeout",
    "decoder_died",
    "source",
    "device_lost",
    "commit",
    "error",
)


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What comes of every attempt at a shard, and after how long."""

    ending: Ending
    after_s: float


class Doomed(SimulatedCalls):
    """Shards of these names meet their fates; what a tokenizer was at dies with it."""

    def __init__(self, fates: Mapping[str, Fate]) -> None:
        super().__init__(0, failing=0.0, slow=0.0)
        self._fates = fates
        self._given = defaultdict[Any, list[int]](list)  # tokenizer -> references to what it works on
        self._fatal = dict[int, Any]()  # references that are the end of a tokenizer, once they are due
        self._dead = set[int]()
        self._num_tokenizers = 0

    def start_tokenizer(self, sizes: Sizes) -> Any:
        self._num_tokenizers = sizes.num_tokenizers
        return super().start_tokenizer(sizes)

    def run_shard(self, tokenizer: Any, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> Any:
        fate = self._fates.get(attempt.shard.shard_id)
        if fate is None:
            reference = super().run_shard(tokenizer, attempt, decoder, fingerprint)
        elif fate.ending == "stands still":
            reference = self._due(10 * A_DAY_S, None)
        elif fate.ending == "kills its process":
            reference = self._due(fate.after_s, None)
            self._fatal[reference] = tokenizer
        else:
            reference = self._due(fate.after_s, Failure(kind=fate.ending, message="again"))
        self._given[tokenizer].append(reference)
        return reference

    def wait(self, references: Iterable[Any], *, timeout_s: float) -> Sequence[Any]:
        assert self.now() < A_DAY_S, "it goes on for ever"
        return super().wait(references, timeout_s=timeout_s)

    def result(self, reference: Any) -> Any:
        result = super().result(reference)
        tokenizer = self._fatal.pop(reference, None)
        if tokenizer is not None:
            self._dead.add(reference)
            self.interrupt(tokenizer)
        if reference in self._dead:
            raise ActorDiedError
        return result

    def interrupt(self, actor: Any) -> None:
        for reference in self._given.pop(actor, ()):
            self._dead.add(reference)
            if reference in self._due_at:  # else it is settled, or about to be
                self._push(self.now(), reference)

    def resources(self) -> Mapping[str, float]:
        return {"CPU": 4.0 * self._num_tokenizers, "GPU": float(self._num_tokenizers)}


@given(
    st.lists(
        st.builds(Fate, ending=st.sampled_from(ENDINGS), after_s=st.sampled_from([0.5, 20.0, 45.0, 200.0])),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=60)
@example([Fate(ending="decode_timeout", after_s=45.0)], 2, False)
@example([Fate(ending="kills its process", after_s=0.5)] * 3, 1, True)
def test_every_run_ends_and_names_the_shards(fates: list[Fate], num_tokenizers: int, has_gpus: bool) -> None:
    doomed = {f"doomed-{number}": fate for number, fate in enumerate(fates)}
    shards = [shard(name) for name in (*doomed, *(f"good-{number}" for number in range(NUM_GOOD)))]
    config = JobConfig(source=("a",), output="o", limits=Limits(max_failed_shards=100))
    sizes = plan_sizes(
        config,
        num_shards=len(shards),
        num_cpus=4 * num_tokenizers if has_gpus else num_tokenizers,
        num_gpus=num_tokenizers if has_gpus else 0,
    )
    outcome = Scheduler(config, shards, sizes, Doomed(doomed), lambda spec: {}, lambda event: None).run()
    assert sorted(each.shard.shard_id for each in outcome.reports) == [f"good-{number}" for number in range(NUM_GOOD)]
    assert {each.shard_id for each in outcome.failed} == set(doomed)

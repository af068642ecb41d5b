"""What becomes of an actor that cannot start: its own error is handed on, a killed process is told from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from tatok.pipeline.cluster.scheduler import Scheduler
from tatok.pipeline.cluster.sizes import Sizes, plan_sizes
from tatok.pipeline.cluster.workers.deaths import death_text, is_blameless, start_error, was_killed
from tatok.pipeline.cluster.workers.reports import Ready
from tatok.pipeline.monitoring.events import Event, Notice
from tatok.schemas.errors import ConfigError, TatokError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import ShardReport
from tests.support.parts import shard
from tests.support.simulated_calls import SimulatedCalls

DEATHS = (
    ActorDiedError(),
    ActorUnavailableError("busy", None),
    OutOfMemoryError("the memory monitor killed it, for somebody else's memory"),
    NodeDiedError("the node went away"),
    WorkerCrashedError(),
    ObjectLostError("00", None, ""),
)


def raised_remotely(cause: Exception) -> RayTaskError:
    return RayTaskError("ready", f"a traceback\nof several lines\n{cause}", cause).as_instanceof_cause()


def test_a_tatok_error_keeps_its_words_and_its_remedy() -> None:
    found = start_error("tokenizer", raised_remotely(ConfigError("no such checkpoint:\nx", remedy="name another")))
    assert isinstance(found, ConfigError)
    assert (str(found), found.remedy) == ("the tokenizer cannot start: no such checkpoint:\nx", "name another")


def test_another_error_is_named() -> None:
    found = start_error("decoder", raised_remotely(ValueError("not a number")))
    assert (str(found), found.remedy) == ("the decoder cannot start: ValueError: not a number", None)


def test_a_class_that_cannot_be_loaded_is_named() -> None:
    missing = ModuleNotFoundError("No module named 'mine'")
    error = ActorDiedError(
        RayTaskError("__init__", f"a traceback\nModuleNotFoundError: {missing}", missing, actor_id="a")
    )
    assert not was_killed(error)
    assert "cannot start: ModuleNotFoundError: No module named 'mine'" in str(start_error("tokenizer", error))


@pytest.mark.parametrize("error", DEATHS, ids=lambda error: type(error).__name__)
def test_a_process_that_is_gone_was_killed(error: RayError) -> None:
    assert was_killed(error)


@pytest.mark.parametrize("error", [ActorUnschedulableError("no such node"), RuntimeEnvSetupError("no such package")])
def test_what_would_be_the_same_again_is_no_death(error: RayError) -> None:
    assert not was_killed(error)


class Dying(SimulatedCalls):
    """Every actor's first start and every third lease end by `error`."""

    def __init__(self, error: RayError) -> None:
        super().__init__(0, failing=0.0, slow=0.0)
        self.error, self.num_starts, self.num_deaths = error, 0, 0

    def ready(self, actor: Any) -> Any:
        self.num_starts += 1
        return self._due(0.1, self.error) if self.num_starts == 1 else super().ready(actor)

    def result(self, reference: Any) -> Any:
        result = super().result(reference)
        is_lease = isinstance(result, ShardReport)
        if result is self.error or (is_lease and self.num_leases % 3 == 0):
            self.num_deaths += 1
            raise self.error
        return result


@pytest.mark.parametrize("num_gpus", [0, 2], ids=["in place", "with decoders"])
@pytest.mark.parametrize("error", DEATHS, ids=lambda error: type(error).__name__)
def test_a_run_outlives_whatever_ray_raises_and_no_shard_pays_for_it(error: RayError, num_gpus: int) -> None:
    config = JobConfig(source=("a",), output="o")
    sizes = plan_sizes(config, num_shards=40, num_cpus=6, num_gpus=num_gpus)
    calls = Dying(error)
    shards = [shard(f"s{number}") for number in range(40)]
    outcome = Scheduler(config, shards, sizes, calls, lambda spec: {}, lambda event: None).run()
    assert calls.num_deaths > 5
    assert (len(outcome.reports), outcome.failed) == (40, {})


class MemoryTaken(SimulatedCalls):
    """For a while the memory monitor kills whatever starts or works; then somebody gives the memory back."""

    def __init__(self, seconds: float, *, while_starting: bool) -> None:
        super().__init__(0, failing=0.0, slow=0.0)
        self.until, self.while_starting = seconds, while_starting
        self.started_at = list[float]()

    def start_tokenizer(self, sizes: Sizes) -> Any:
        self.started_at.append(self.now())
        return super().start_tokenizer(sizes)

    def result(self, reference: Any) -> Any:
        result = super().result(reference)
        is_at_work = isinstance(result, ShardReport) or (self.while_starting and isinstance(result, Ready))
        if is_at_work and self.now() < self.until:
            raise OutOfMemoryError("2 worker(s) were killed due to the node running low on memory.")
        return result

    def resources(self) -> Mapping[str, float]:
        return {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize("while_starting", [True, False], ids=["while starting", "at work"])
@pytest.mark.parametrize("num_gpus", [0, 2], ids=["in place", "with decoders"])
def test_a_run_waits_until_memory_is_there_again(num_gpus: int, while_starting: bool) -> None:
    """However many processes that costs: each of the shards at work has died several times over."""
    config = JobConfig(source=("a",), output="o")
    sizes = plan_sizes(config, num_shards=6, num_cpus=8, num_gpus=num_gpus)
    calls = MemoryTaken(200, while_starting=while_starting)
    events: list[Event] = []
    shards = [shard(f"s{number}") for number in range(6)]
    outcome = Scheduler(config, shards, sizes, calls, lambda spec: {}, events.append).run()
    assert (len(outcome.reports), outcome.failed) == (6, {})
    told = [event.message for event in events if isinstance(event, Notice)]
    assert any("processes die in a row" in message and "low on memory" in message for message in told)
    assert len(calls.started_at) < 60 * len(shards), "they are not started as fast as they die"


def test_memory_that_never_comes_back_ends_the_run_with_the_reason() -> None:
    config = JobConfig(source=("a",), output="o")
    sizes = plan_sizes(config, num_shards=6, num_cpus=8, num_gpus=0)
    shards = [shard(f"s{number}") for number in range(6)]
    with pytest.raises(TatokError, match=r"died \d+ times without a shard in between.*low on memory"):
        Scheduler(config, shards, sizes, MemoryTaken(1e9, while_starting=False), lambda spec: {}, id).run()


def test_what_ray_says_of_memory_and_nodes_is_nobodys_doing() -> None:
    assert [is_blameless(error) for error in DEATHS] == [False, False, True, True, False, False]
    gone = ActorDiedError()
    gone.error_msg = (
        "The actor died unexpectedly before finishing this task.\n\tpid: 25740\nThe actor died because its node has "
        "died. Node Id: d866\n\tthe actor's node was terminated unexpectedly: health check failed"
    )
    assert is_blameless(gone)
    assert death_text(gone) == "The actor died because its node has died. Node Id: d866"


def test_an_error_of_its_own_is_no_death() -> None:
    assert not was_killed(raised_remotely(ConfigError("no such checkpoint")))

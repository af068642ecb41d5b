"""What becomes of an actor that cannot start: its own error is handed on, a killed process is told from it."""

from __future__ import annotations

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

from tatok.pipeline.cluster.actors import start_error, was_killed
from tatok.pipeline.cluster.scheduler import Scheduler
from tatok.pipeline.cluster.sizes import plan_sizes
from tatok.schemas.errors import ConfigError
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
def test_a_run_outlives_whatever_ray_raises(error: RayError, num_gpus: int) -> None:
    """With every third lease dying, a shard may use up its attempts; the run comes to its end all the same."""
    sizes = plan_sizes(JobConfig(source=("a",), output="o"), num_shards=40, num_cpus=6, num_gpus=num_gpus)
    calls = Dying(error)
    shards = [shard(f"s{number}") for number in range(40)]
    outcome = Scheduler(JobConfig(source=("a",), output="o"), shards, sizes, calls, lambda spec: {}, id).run()
    assert calls.num_deaths > 5
    assert len(outcome.reports) + len(outcome.failed) == 40
    assert len(outcome.reports) > len(outcome.failed)


def test_an_error_of_its_own_is_no_death() -> None:
    assert not was_killed(raised_remotely(ConfigError("no such checkpoint")))

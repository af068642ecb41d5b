"""What becomes of an actor that cannot start: its own error is handed on, a killed process is told from it."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from tatok.pipeline.cluster.actors import start_error, was_killed
from tatok.schemas.errors import ConfigError


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


@pytest.mark.parametrize("error", [ActorDiedError(), ActorUnavailableError("busy", None)])
def test_a_process_that_is_gone_was_killed(error: ActorDiedError | ActorUnavailableError) -> None:
    assert was_killed(error)


def test_an_error_of_its_own_is_no_death() -> None:
    assert not was_killed(raised_remotely(ConfigError("no such checkpoint")))

"""What Ray says of a process that is gone or cannot start."""

from __future__ import annotations

from ray.exceptions import (
    ActorUnschedulableError,
    AuthenticationError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from tatok.schemas.errors import ConfigError, TatokError

__all__ = ["death_text", "first_line", "is_blameless", "start_error", "was_killed"]

_NODE_IS_GONE = "its node has died"  # in what Ray says of an actor
_NO_DEATHS = (RayTaskError, ActorUnschedulableError, AuthenticationError, RuntimeEnvSetupError)


def first_line(error: BaseException) -> str:
    """What an error says, without its traceback."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def was_killed(error: RayError) -> bool:
    """Whether an actor's process is gone, as opposed to one that cannot start: an error of its own, or of its class.

    Ray's errors are no closed list: whatever it raises that is neither the code's own nor the same every time is taken
    for a death. The memory monitor's OutOfMemoryError and NodeDiedError, for two, are no RayActorError.
    """
    return not isinstance(error, _NO_DEATHS) and not getattr(error, "actor_init_failed", False)


def death_text(error: RayError) -> str:
    """Why Ray holds a process for dead, in one line."""
    lines = str(error).strip().splitlines()
    return next((line.strip() for line in lines if " because " in line), first_line(error))


def is_blameless(error: RayError) -> bool:
    """Whether Ray says that a process that died did so with its node, or because the node's memory was short."""
    node_is_gone = getattr(error, "preempted", False) or _NODE_IS_GONE in str(error)
    return node_is_gone or isinstance(error, OutOfMemoryError | NodeDiedError | LocalRayletDiedError)


def start_error(what: str, error: RayError) -> TatokError:
    """What an actor that could not start says."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, TatokError):
        return ConfigError(f"the {what} cannot start: {str(cause).strip()}", remedy=cause.remedy)
    if cause is not None:
        return ConfigError(f"the {what} cannot start: {type(cause).__name__}: {cause}")
    return ConfigError(f"the {what} cannot start: {(str(error).strip() or type(error).__name__).splitlines()[-1]}")

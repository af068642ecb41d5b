"""Mappings -> validated, frozen pydantic models; unknown keys are errors that name the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from tatok.schemas.errors import ConfigError

__all__ = ["AnySection", "Section", "validated"]


class Section(BaseModel):
    """A group of settings: immutable, and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


AnySection = TypeVar("AnySection", bound=Section)


def validated(
    kind: type[AnySection],
    document: Mapping[str, Any],
    *,
    origin: str,
    places: Mapping[tuple[str | int, ...], str] | None = None,
) -> AnySection:
    """The settings in `document`; `origin` is how messages call what they come from, `places` where each is there.

    Raises ConfigError, which names each wrong setting, its place, and for an unknown one the nearest that exists.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        lines = []
        found = error.errors()
        for each in found:
            loc = each["loc"]
            if each["type"] == "too_short" and any(
                other["loc"][: len(loc)] == loc for other in found if other is not each
            ):
                continue  # what is wrong in a list makes pydantic count it as shorter
            name = ".".join(str(part) for part in loc) or "(top level)"
            message = each["msg"].removeprefix("Value error, ")
            if each["type"] == "extra_forbidden":
                message = "no such setting" + _suggestion(kind, loc)
            place = next((f"{places[loc[:n]]}: " for n in range(len(loc), 0, -1) if places and loc[:n] in places), "")
            lines.append(f"  {place}{name}: {message}")
        raise ConfigError(f"{origin}: wrong settings\n" + "\n".join(lines)) from error


def _suggestion(kind: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    wanted, section = str(loc[-1]), kind
    for part in loc[:-1]:
        below = _section_of(section, str(part))
        if below is None:
            return ""
        section = below
    beside = {".".join([*map(str, loc[:-1]), name]) for name in section.model_fields}

    def likeness(name: str) -> float:
        key = name.rpartition(".")[2]
        ratio = difflib.SequenceMatcher(None, wanted, key).ratio()
        if name not in beside:
            return ratio - 0.1  # perhaps the right key in the wrong section
        num_shared = len(set(wanted.split("_")) & set(key.split("_")))
        return max(ratio, 0.7 + 0.05 * num_shared) if num_shared else ratio

    nearest = max(_all_names(kind), key=likeness)
    if likeness(nearest) >= 0.6:
        return f"; did you mean {nearest}?"
    return f"; there are {', '.join(section.model_fields)}"


def _section_of(kind: type[BaseModel], name: str) -> type[BaseModel] | None:
    info = kind.model_fields.get(name)
    kinds = (info.annotation, *get_args(info.annotation)) if info is not None else ()
    return next((each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)), None)


def _all_names(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in kind.model_fields:
        yield prefix + name
        below = _section_of(kind, name)
        if below is not None:
            yield from _all_names(below, f"{prefix}{name}.")

"""A commented job file for a source: what it needs is set, every other setting is a comment with its default."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from tatok.jobs.job_file import yaml_value
from tatok.schemas.job import JobConfig
from tatok.schemas.settings import Section

__all__ = ["commented_job"]

_WIDTH = 120


def commented_job(values: Mapping[str, Any], found: Sequence[str], *, name: str = "JOB.yaml") -> str:
    """The text of a job file with these settings, nested as in a job file; `found` are lines about the source.

    `name` is how commands call the file.

    A line that begins with `#` and no single space is a setting: without its `#` it sets what is the default now.
    """
    width = len(f"tatok tokenize {name} --dry-run")
    lines = [
        *(f"# {line}".rstrip() for line in found),
        "#",
        f"#     tatok tokenize {name} --dry-run   what would be done",
        f"#     {f'tatok doctor {name}':{width}}   what would go wrong, and how long it takes",
        f"#     tatok tokenize {name}",
        "#",
        "# Lines such as `#device: null` are settings with their defaults: take the # away to change one, and that of",
        "# its section. Options of the command line and --set override the file. Relative paths start at the current",
        "# folder.",
        *_section(JobConfig, values, depth=0),
    ]
    return "\n".join(lines) + "\n"


def _section(kind: type[Section], values: Mapping[str, Any], *, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in kind.model_fields.items():
        is_set = name in values
        mark = "" if is_set else "#"
        if not depth:
            yield ""
        yield from _purpose(field, depth)
        if isinstance(field.default, Section):
            yield f"{mark}{indent}{name}:"
            yield from _section(type(field.default), values.get(name, {}), depth=depth + 1)
        else:
            value = values[name] if is_set else json.loads(json.dumps(field.default))
            yield f"{mark}{indent}{name}: {yaml_value(value)}"


def _purpose(field: FieldInfo, depth: int) -> Iterator[str]:
    """What the setting, or the section, is for, as comments."""
    text = field.description
    if text is None and isinstance(field.default, Section):
        text = (type(field.default).__doc__ or "").partition("\n")[0]
    if text:
        yield from textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=f"# {'  ' * depth}",
            subsequent_indent=f"# {'  ' * depth}",
            break_long_words=False,
            break_on_hyphens=False,
        )

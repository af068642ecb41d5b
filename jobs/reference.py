"""The pages of docs/reference that are written from the code: job file, columns, commands.

    python -m tatok.jobs.reference docs/reference

`make reference` runs it; a test fails where a stored page is not what this writes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
import typer
import typer.main
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tatok.jobs.help import shown_parameters
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Reject
from tatok.schemas.settings import Section
from tatok.schemas.tokens import REJECTS_SCHEMA, REPEATS, SCHEMA_VERSION, token_schema

__all__ = ["columns_page", "commands_page", "job_file_page", "pages", "write_pages"]

_WRITTEN_BY = "<!-- written by `make reference`; change the code, not this page -->\n"

_OF_REJECTS = {
    "clip_index": "how many rows of the sample come before it: those of a video up to its damage",
    "stage": f"where it was given up: {', '.join(get_args(get_type_hints(Reject)['stage']))}",
    "reason": "why, in a word, such as `truncated`",
    "detail": "the same in a sentence, with what the library said",
}


def pages() -> dict[str, str]:
    """Every generated page: its file name and its text."""
    return {"job-file.md": job_file_page(), "columns.md": columns_page(), "commands.md": commands_page()}


def write_pages(folder: Path) -> list[Path]:
    """Write every page into a folder; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in pages().items():
        paths.append(folder / name)
        paths[-1].write_text(text, encoding="utf-8")
    return paths


# --- the job file ---------------------------------------------------------------------------------------------------


def job_file_page() -> str:
    """Every setting of a job file with its type, its default and what it does."""
    parts = [
        "# The job file",
        _WRITTEN_BY,
        "Every setting, by section. How files, environment variables and options combine: "
        "[job files](../guides/job-files.md). `tatok config schema` prints the same as a JSON Schema, "
        "`tatok config show JOB.yaml` what a file comes to. An unknown key is an error.",
        *_section(JobConfig, ""),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(section: type[Section], prefix: str) -> Iterator[str]:
    """A section's table, then those of the sections within it."""
    inner = {name: field for name, field in section.model_fields.items() if _is_section(field.annotation)}
    plain = {name: field for name, field in section.model_fields.items() if name not in inner}
    yield f"## `{prefix.removesuffix('.')}`" if prefix else "## The top level"
    yield _sentence(section)
    rows = [
        (f"`{prefix}{name}`", _type_text(field.annotation), _default_text(field), _with_bounds(field))
        for name, field in plain.items()
    ]
    yield _table(("setting", "type", "default", ""), rows)
    for name, field in inner.items():
        yield from _section(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _sentence(section: type[Section]) -> str:
    return " ".join((inspect.getdoc(section) or "").split())


def _type_text(annotation: Any) -> str:
    """A type as readers of YAML say it."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_type_text(each) for each in inside if each is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inside)
    if origin is tuple and inside[-1] is not Ellipsis:
        return f"list of {len(inside)}: {', '.join(_type_text(each) for each in inside)}"
    if origin is tuple:
        return f"{_type_text(inside[0])}, or a list"
    if origin is dict:
        return "mapping"
    names: dict[Any, str] = {str: "text", bool: "true or false", int: "integer", float: "number"}
    return names.get(annotation, "any")


def _default_text(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return ""
    return f"`{json.dumps(field.default)}`" if not isinstance(field.default, str) else f"`{field.default}`"


def _with_bounds(field: FieldInfo) -> str:
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    bounds = [
        f"{sign} {getattr(constraint, name):,}"
        for constraint in field.metadata
        for name, sign in signs.items()
        if getattr(constraint, name, None) is not None
    ]
    said = " ".join((field.description or "").split())
    return f"{said} ({', '.join(bounds)})".strip() if bounds else said


# --- the columns ----------------------------------------------------------------------------------------------------


def columns_page() -> str:
    """The columns of the token table and of the rejects table."""
    from tatok.pipeline.export.hub_card import COLUMNS

    tokens = token_schema(4096, patch_entropy=True, patch_worth=True)
    parts = [
        "# Columns",
        _WRITTEN_BY,
        f"The Parquet files that `tatok tokenize` writes, schema version {SCHEMA_VERSION}. "
        "[Which column answers which question](../explanation/entropy-columns.md), and why columns that follow from "
        "others (*repeats*) are there; what the entropy columns mean: "
        "[the method](../explanation/method.md#the-entropy-columns).",
        "## `data/`: one row an image or clip",
        _columns(tokens, COLUMNS),
        "Codes are `uint32` where a codebook has more than 65,536. `patch_entropy_bits` is there unless "
        "`write.patch_entropy` is false, `patch_worth_bits` where `write.patch_worth` is true. All columns of bits are "
        "null in datasets of a [tokenizer of your own](../guides/tokenizers.md) that says no entropies; where it gives "
        "several codes a position, `positions` repeats it.",
        "## `_rejects/`: one row a sample that did not become one",
        _columns(REJECTS_SCHEMA, COLUMNS | _OF_REJECTS),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _columns(schema: pa.Schema, meaning: dict[str, str]) -> str:
    rows = [
        (
            f"`{field.name}`",
            _arrow_text(field.type),
            "may be null" if field.nullable else "",
            meaning[field.name] + (f"; *repeats* `{REPEATS[field.name]}`" if field.name in REPEATS else ""),
        )
        for field in schema
    ]
    return _table(("column", "type", "", ""), rows)


def _arrow_text(kind: pa.DataType) -> str:
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)


# --- the commands ---------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its arguments and options."""
    from tatok.jobs.cli import app

    group: Any = typer.main.get_command(app)
    parts = [
        "# Commands",
        _WRITTEN_BY,
        "`tatok COMMAND --help` prints the same. `--debug` before a command, or `TATOK_DEBUG=1`, shows the traceback "
        "of an error.",
    ]
    for name, command in sorted(_commands(group, "tatok")):
        parts += list(_command(name, command))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _command(name: str, command: Any) -> Iterator[str]:
    context = typer.Context(command, info_name=name)
    yield f"## `{name}`"
    yield f"```\n{name} {' '.join(command.collect_usage_pieces(context))}\n```"
    yield _paragraphs(command.help or "")
    shown = (each for each in shown_parameters(command, context) if each.name != "help")
    records = [parameter.get_help_record(context) for parameter in shown]
    yield _table(("", ""), [(f"`{_plain(record[0])}`", _plain(record[1])) for record in records if record])
    yield _paragraphs(command.epilog or "")


def _paragraphs(text: str) -> str:
    """A docstring's paragraphs, each on one line."""
    paragraphs = [_plain(paragraph) for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text))]
    return "\n\n".join(f"`{each}`" if each.startswith("#") else each for each in paragraphs)


def _plain(text: str) -> str:
    return " ".join(text.replace("\b", "").replace("\f", "").split())


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def main() -> None:
    """Write the pages into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="docs/reference")
    for path in write_pages(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()

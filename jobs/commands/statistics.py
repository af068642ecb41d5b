"""The commands that ask about a dataset: stats, query."""

from __future__ import annotations

from typing import Annotated

import typer

from tatok.jobs.text.query import OutputFormat
from tatok.schemas.errors import ConfigError

__all__ = ["query", "stats"]

Dataset = Annotated[str, typer.Argument(metavar="OUTPUT", help="The dataset: the folder or URL that tokenize wrote.")]


def stats(
    output: Dataset,
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Rows, tokens and entropy for each value of this column.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="With --by: show so many groups, those with most rows.")] = 20,
    exact: Annotated[bool, typer.Option("--exact", help="Read every row and token, however many there are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Summarize a dataset: counts, distributions, codebook use, rejects, size, throughput.

    Of large datasets a sample of evenly spread row groups is read, and the result says how many rows it rests on.
    """
    from tatok.jobs.text.statistics import groups_text, statistics_text
    from tatok.statistics.groups import group_by
    from tatok.statistics.summary import summarize

    if by is not None:
        grouped = group_by(output, by, limit=limit, exact=exact)
        print(grouped.to_json() if as_json else groups_text(grouped), end="")
    else:
        statistics = summarize(output, exact=exact)
        print(statistics.to_json() if as_json else statistics_text(statistics), end="")


def query(
    output: Dataset,
    sql: Annotated[str, typer.Argument(help="One SELECT statement (DuckDB's SQL) over the tables tokens and rejects.")],
    table: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A further table: a Parquet, CSV or JSON file or URL. May be repeated."),
    ] = None,
    output_format: Annotated[
        OutputFormat | None,
        typer.Option("--format", help="Default: what FILE of --output ends in, else a table.", show_default=False),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--output", metavar="FILE", help="Write here, all or nothing, instead of printing.")
    ] = None,
) -> None:
    """Ask a dataset a question in SQL. It can only be read, and no file but those of --table besides it.

    Recipes are in docs/guides/query.md.
    """
    from tatok.jobs.text.query import format_of, print_result, write_result
    from tatok.statistics.sql import open_query

    chosen = format_of(output_format, file)
    with open_query(output, sql, tables=_named_tables(table or [])) as result:
        if file is None:
            print_result(result, chosen)
        else:
            write_result(result, chosen, file)


def _named_tables(options: list[str]) -> dict[str, str]:
    tables: dict[str, str] = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--table {option!r} must be NAME=FILE, such as captions=captions.parquet")
        if name in tables:
            raise ConfigError(f"--table names {name} twice; give each file a name of its own")
        tables[name] = path
    return tables

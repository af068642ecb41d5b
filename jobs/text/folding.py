"""Lines that end where the terminal does, between words; in a pipe or a file they stay whole, for other tools."""

from __future__ import annotations

import shutil
import textwrap
from typing import TextIO

__all__ = ["folded"]


def folded(text: str, stream: TextIO) -> str:
    """The text with its lines broken between words where `stream` is a terminal; what is broken is indented further."""
    if not stream.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    return "\n".join(_folded_line(line, columns) for line in text.splitlines())


def _folded_line(line: str, columns: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line.lstrip(),
        columns,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )

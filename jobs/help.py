"""How `--help` reads: flags without a type, `--no-` forms in words, commands in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from inspect import cleandoc
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

__all__ = ["HelpedCommand", "HelpedGroup", "group_commands", "shown_parameters"]


class HelpedCommand(TyperCommand):
    """A command whose help has room for its sentences on 80 columns."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of a copy: what is shown here differently is parsed as it was."""
        super(HelpedCommand, _read(self)).format_help(ctx, formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """OPTIONS and the arguments, each as its metavar has it; in brackets where it may be left out."""
        arguments = [param for param in self.get_params(ctx) if isinstance(param, TyperArgument) and not param.hidden]
        return [
            *([self.options_metavar] if self.options_metavar else []),
            *(_usage(param) for param in arguments),
        ]


class HelpedGroup(TyperGroup):
    """A group of commands whose help reads in the same way."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of a copy."""
        super(HelpedGroup, _read(self)).format_help(ctx, formatter)


def group_commands(app: typer.Typer, panels: Mapping[str, Sequence[str]]) -> None:
    """Put the commands under headings, in the order of `panels`: heading -> names; and have them all read as above.

    Raises ValueError where a command is in no panel, or a panel names one that is not there.
    """
    panel_of = {name: panel for panel, names in panels.items() for name in names}
    order = list(panel_of)
    by_name: dict[str, Any] = {_name_of(each): each for each in (*app.registered_commands, *app.registered_groups)}
    if panel_of.keys() != by_name.keys():
        raise ValueError(f"panels and commands differ: {sorted(panel_of.keys() ^ by_name.keys())}")
    for name, each in by_name.items():
        each.rich_help_panel = panel_of[name]
    app.registered_commands.sort(key=lambda command: order.index(_name_of(command)))
    app.registered_groups.sort(key=lambda group: order.index(_name_of(group)))
    _let_help_read(app)


def _let_help_read(app: typer.Typer) -> None:
    for command in app.registered_commands:
        command.cls = HelpedCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            group.cls = HelpedGroup
            _let_help_read(group.typer_instance)


def _usage(param: TyperArgument) -> str:
    name = param.display_name_raw
    if param.nargs != 1 and "..." not in name:
        name += "..."
    return name if param.required else f"[{name}]"


def _name_of(registered: Any) -> str:
    return registered.name or registered.callback.__name__


def shown_parameters(command: Any, ctx: Any) -> list[Any]:
    """Copies of a command's parameters as its help has them."""
    return [_shown(param, ctx) for param in command.get_params(ctx)]


def _read(command: Any) -> Any:
    shown = copy(command)
    shown.help = _unwrapped(command.help)
    shown.get_params = lambda ctx: shown_parameters(command, ctx)
    return shown


def _unwrapped(text: str | None) -> str | None:
    """Without the line ends of the source code inside of paragraphs: the terminal has its own."""
    if text is None:
        return None
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in cleandoc(text).split("\n\n"))


def _shown(param: Any, ctx: Any) -> Any:
    shown = copy(param)
    if isinstance(param, TyperArgument):
        shown.display_type_rich = lambda ctx: None  # its name says what it is
    elif param.is_flag or param.count:
        shown.metavar = ""
    elif param.metavar is None:  # of a list what one is; the range has a place of its own
        shown.metavar = param.display_type(ctx).replace("list[", "").replace("]", "").replace(" range", "")
    if isinstance(param, TyperOption) and shown.secondary_opts:
        shown.secondary_opts = []
        shown.help = f"{(shown.help or '').rstrip()} Off: {', '.join(param.secondary_opts)}."
    return shown

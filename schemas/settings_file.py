"""A YAML file of settings, with environment variables put in, overridden by name, and the line of every key known.

output: s3://${BUCKET}/tokens       the value of BUCKET; an error where there is none
output: ${OUTPUT:-data/tokens}      data/tokens where there is none; $${ is a plain ${
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tatok.schemas.errors import ConfigError
from tatok.schemas.secrets import REMEDY, names_a_credential
from tatok.schemas.settings import AnySection, validated

__all__ = ["OVERRIDE_PREFIX", "SettingsFile", "parse_assignment", "read_settings"]

OVERRIDE_PREFIX = "TATOK__"
_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}")
# PyYAML lets through what dates that are none, numbers of 5,000 digits and 3,000 brackets raise in it.
_NOT_YAML = (yaml.YAMLError, ValueError, AttributeError, RecursionError)

Place = tuple[str | int, ...]


@dataclass(slots=True, kw_only=True)
class SettingsFile:
    """Settings as they were written: `values`, and where each is ("line 7", "--set").

    `origin` is what messages call the whole: the file, or the command line.
    """

    origin: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Place, str] = field(default_factory=dict)

    def validated(self, kind: type[AnySection]) -> AnySection:
        """The settings as a section; raises ConfigError, which names each wrong one with its line."""
        return validated(kind, self.values, origin=self.origin, places=self.places)

    def override(self, name: str, value: Any, *, place: str) -> None:
        """Put a value under its dotted name, such as resources.batch_size."""
        *sections, leaf = parts = tuple(name.split("."))
        target = self.values
        for section in sections:
            below = target.get(section)
            target[section] = below = dict(below) if isinstance(below, dict) else {}
            target = below
        target[leaf] = value
        self.places = {at: text for at, text in self.places.items() if at[: len(parts)] != parts}
        self.places[parts] = place

    def override_from(self, environment: Mapping[str, str]) -> None:
        """Apply the variables TATOK__SECTION__NAME=value, such as TATOK__RESOURCES__BATCH_SIZE=64."""
        for variable, text in sorted(environment.items()):
            if variable.startswith(OVERRIDE_PREFIX):
                name = variable.removeprefix(OVERRIDE_PREFIX).replace("__", ".").lower()
                self.override(name, _parse(text, variable), place=f"the environment's {variable}")

    def override_with(self, assignments: list[str]) -> None:
        """Apply assignments NAME=VALUE, as `--set` takes them."""
        for assignment in assignments:
            name, value = parse_assignment(assignment)
            self.override(name, value, place=f"--set {name}")


def read_settings(path: str | Path, *, environment: Mapping[str, str] | None = None) -> SettingsFile:
    """Read a YAML file of settings without validating them; `environment` defaults to this process's.

    Raises ConfigError, which names file and line, where it cannot be read, is no mapping, sets a key twice, or asks
    for an environment variable that is not there or whose name says that it is a credential.
    """
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path} must hold a mapping of settings, lines such as `output: data/tokens`")
        walk = _Walk(str(path), os.environ if environment is None else environment, loader)
        walk.visit(root, ())
        return SettingsFile(origin=str(path), values=loader.construct_document(root), places=walk.places)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except _NOT_YAML as error:
        raise ConfigError(f"{path} is not valid YAML: {error or type(error).__name__}") from error


def parse_assignment(text: str, option: str = "--set") -> tuple[str, Any]:
    """ "NAME=VALUE" -> the dotted name, and the value as YAML would read it. Raises ConfigError."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{option} {text!r} is no assignment; write NAME=VALUE, such as resources.batch_size=64")
    return name.strip(), _parse(value, f"{option} {name}")


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except _NOT_YAML as error:
        raise ConfigError(f"{what}: {text!r} is not valid YAML: {error or type(error).__name__}") from error


class _Walk:
    """Visits the nodes of a document: notes their lines, refuses keys that are there twice, puts variables in."""

    def __init__(self, path: str, environment: Mapping[str, str], loader: yaml.SafeLoader) -> None:
        self.places: dict[Place, str] = {}
        self._path = path
        self._environment = environment
        self._loader = loader
        self._seen: set[int] = set()  # nodes that an alias names again

    def visit(self, node: yaml.Node, place: Place) -> None:
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = set()
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.value in keys:
                    raise ConfigError(f"{self._path}, line {line}: {key.value} is set twice; keep one")
                if isinstance(key, yaml.ScalarNode):
                    keys.add(key.value)
                    self.places[*place, key.value] = f"line {line}"
                    self.visit(value, (*place, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                self.places[*place, number] = f"line {value.start_mark.line + 1}"
                self.visit(value, (*place, number))
        elif isinstance(node, yaml.ScalarNode) and "${" in node.value:
            node.value = self._substituted(node)
            if node.style is None:  # unquoted: what the variable holds may be a number or null
                node.tag = self._loader.resolve(yaml.ScalarNode, node.value, (True, False))

    def _substituted(self, node: yaml.ScalarNode) -> str:
        where = f"{self._path}, line {node.start_mark.line + 1}"

        def value_of(match: re.Match[str]) -> str:
            name, default = match["name"], match["default"]
            if name is None:
                return "${"
            if names_a_credential(name):
                raise ConfigError(
                    f"{where}: ${{{name}}} looks like a credential, and settings are written to _run.json; {REMEDY} "
                    f"(storage: {{s3: {{secret: {{env: {name}}}}}}})"
                )
            if name in self._environment:
                return self._environment[name]
            if default is None:
                raise ConfigError(f"{where}: the environment has no {name}; set it, or write ${{{name}:-default}}")
            return str(default)

        return _VARIABLE.sub(value_of, node.value)

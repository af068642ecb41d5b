"""A tokenizer that a job names: made by a function of a module, of a user's file, or of one of tatok's adapters."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tatok.schemas.errors import ConfigError
from tatok.user_code import UserFunction

if TYPE_CHECKING:
    from tatok.tokenizer.fixed_rate import FixedRate, WithIdentity

__all__ = ["ADAPTERS", "NamedTokenizer", "load_tokenizer"]

ADAPTERS: Mapping[str, str] = {
    name: f"tatok.adapters.{name}:load" for name in ("transformers", "diffusers", "torchscript")
}
"""Short names, and the functions that they stand for."""

_GIVEN = ("device", "precision")  # by the job, to functions that take them
_EXAMPLE = "my_tokenizer.py:load, or one of " + ", ".join(ADAPTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTokenizer:
    """A function that makes a tokenizer, and its options; pickles, and brings the text of a user's file along.

    An option {env: NAME} stands for that variable of the process that loads. The function is given `device`, and
    `precision` if it takes one, and returns either tier of protocol.py.
    """

    name: str
    function: UserFunction
    options: Mapping[str, Any]

    @staticmethod
    def of(name: str, options: Mapping[str, Any] | None = None) -> NamedTokenizer:
        """Raises ConfigError where the name is none, or its file cannot be read; nothing is run yet."""
        function = UserFunction.named(ADAPTERS.get(name, name), "tokenizer", example=_EXAMPLE)
        return NamedTokenizer(name=name, function=function, options=dict(options or {}))

    def check(self, precision: str = "float32") -> None:
        """Raise ConfigError where the function cannot be imported or does not take the options or the precision."""
        function = self.function.load()
        try:
            signature = inspect.signature(function)
        except ValueError:  # of some built-in functions, and of no Python one
            return
        taken = signature.parameters
        if precision != "float32" and "precision" not in taken:
            raise ConfigError(
                f"precision is {precision}, which the tokenizer {self.name!r} does not take; leave it out, or let its "
                "function have a parameter precision"
            )
        asked = sorted(set(_GIVEN) & set(self.options))
        if asked:
            raise ConfigError(f"tokenizer_options holds {', '.join(asked)}, which are settings of the job itself")
        try:
            signature.bind(**self._arguments("cpu", precision, taken))
        except TypeError as error:
            raise ConfigError(
                f"the tokenizer {self.name!r} cannot be made: {error}; its function takes ({', '.join(taken)}), "
                f"tokenizer_options has ({', '.join(self.options)})"
            ) from error

    def load(self, device: str, precision: str = "float32") -> FixedRate | WithIdentity:
        """Make the tokenizer. Raises ConfigError as `check` does, and where what is made is no tokenizer."""
        from tatok.tokenizer.fixed_rate import FixedRate, WithIdentity

        self.check(precision)
        function = self.function.load()
        taken = inspect.signature(function).parameters
        options = self._arguments(device, precision, taken)
        options |= {name: _resolved(value, name) for name, value in self.options.items()}
        made = function(**options)
        if made is None:
            raise ConfigError(f"the tokenizer {self.name!r}: its function returned nothing")
        also = self._identity(made, precision if "precision" in taken else None)
        what = f"the tokenizer {self.name!r}"
        if hasattr(made, "fingerprint"):
            return WithIdentity(made, also, what)
        return FixedRate(made, device, name=what, also=also)

    def _arguments(self, device: str, precision: str, taken: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
        given = {"device": device, "precision": precision}
        return {name: value for name, value in given.items() if name in taken} | dict(self.options)

    def _identity(self, made: Any, precision: str | None) -> dict[str, str]:
        covered = set(getattr(made, "covered_options", ()))
        options = {name: value for name, value in self.options.items() if name not in covered}
        # Of an adapter its name says enough: what changes tokens is in its own identity.
        entries = {"code": self.name if self.name in ADAPTERS else self.function.identity}
        if options:
            entries["options"] = json.dumps(options, sort_keys=True)
        if precision is not None:
            entries["precision"] = precision
        return entries


def load_tokenizer(
    name: str, device: str = "cpu", *, options: Mapping[str, Any] | None = None, precision: str = "float32"
) -> FixedRate | WithIdentity:
    """The tokenizer that a job's `tokenizer` and `tokenizer_options` name, such as my_tokenizer.py:load.

    It is an `AnyTokenizer` whose `encode` and `decode` take images of every kind, too, as those of `Tokenizer` do.
    Raises ConfigError where there is none, or it cannot be made.
    """
    return NamedTokenizer.of(name, options).load(device, precision)


def _resolved(value: Any, name: str) -> Any:
    if not isinstance(value, Mapping) or set(value) != {"env"}:
        return value
    variable = str(value["env"])
    if variable not in os.environ:
        raise ConfigError(
            f"tokenizer_options.{name} refers to the environment variable {variable}, which is not set in this "
            "process; set it on every machine of the cluster"
        )
    return os.environ[variable]

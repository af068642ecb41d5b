"""A function that a user names in a job: module:function, or file.py:function."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import linecache
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tatok.schemas.errors import ConfigError

__all__ = ["UserFunction", "names_a_file"]

_importing = threading.Lock()


def names_a_file(name: str) -> bool:
    """Whether a name is of the kind file.py:function."""
    return name.rpartition(":")[0].endswith(".py")


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFunction:
    """Where a function is; pickles, and brings a file's text along, so that other machines need not have the file.

    `what` is what messages call it. `file` is the file's absolute path on the machine that read it; both it and
    `source` are "" for a module, which each process imports for itself.
    """

    name: str
    what: str
    file: str = ""
    source: str = ""

    @staticmethod
    def named(name: str, what: str, *, example: str) -> UserFunction:
        """The function of this name; nothing is run yet. Raises ConfigError where there is no such file."""
        place, _, function = name.rpartition(":")
        if not place or not function.isidentifier():
            raise ConfigError(f"{what} {name!r}: name a function as module:function, such as {example}")
        if not names_a_file(name):
            return UserFunction(name=name, what=what)
        path = Path(place).expanduser().absolute()
        try:
            return UserFunction(name=name, what=what, file=str(path), source=path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(
                f"{what} {name!r}: cannot read {path}: {said}",
                remedy="run from the folder that holds it, or name it by its path",
            ) from error

    @property
    def file_name(self) -> str:
        """The last part of the file's path; "" for a module."""
        return Path(self.file).name

    @property
    def identity(self) -> str:
        """What a dataset remembers of the function: its name, and the hash of the text of its file or module.

        A file's folder is not in it: the file may be moved. Raises ConfigError as `load` does.
        """
        if self.file:
            return f"{self.file_name}:{self.name.rpartition(':')[2]} ({_digest(self.source.encode())})"
        try:
            digest = _digest(Path(inspect.getsourcefile(self.load()) or "").read_bytes())
        except (TypeError, OSError):
            digest = "no source"
        return f"{self.name} ({digest})"

    def load(self) -> Callable[..., Any]:
        """Import it; modules are also found in the current folder, and what a file imports in the file's.

        Raises ConfigError, whatever the user's code raises meanwhile.
        """
        place, _, function = self.name.rpartition(":")
        try:
            module = self._file_as_module() if self.file else _imported(place)
            found: Callable[..., Any] = getattr(module, function)
        except Exception as error:  # whatever the user's module does when it is imported
            where = (
                "put what it imports into the same file, or install it" if self.file else "put its module on PYTHONPATH"
            )
            raise ConfigError(
                f"{self.what} {self.name!r} cannot be imported: {type(error).__name__}: {error}; {where}, on every node"
            ) from error
        if not callable(found):
            raise ConfigError(f"{self.what} {self.name!r} is a {type(found).__name__}, not a function")
        return found

    def _file_as_module(self) -> ModuleType:
        name = f"tatok_user_{Path(self.file).stem}_{_digest(self.source.encode())}"
        with _importing:
            if name in sys.modules:
                return sys.modules[name]
            _search(str(Path(self.file).parent))
            # Tracebacks and torch.jit.script look up lines here, where there may be no such file.
            linecache.cache[self.file] = (len(self.source), None, self.source.splitlines(keepends=True), self.file)
            module = ModuleType(name)
            module.__file__ = self.file
            sys.modules[name] = module  # where pickle and dataclasses look for what it defines
            try:
                exec(compile(self.source, self.file, "exec"), module.__dict__)
            except BaseException:
                del sys.modules[name]
                raise
            return module


def _imported(module: str) -> ModuleType:
    _search(os.getcwd())  # installed commands do not look there
    return importlib.import_module(module)


def _search(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]

"""A training run's folder, on a disk or under any fsspec URL: its state, checkpoint, figures and pictures."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractFileSystem

from tatok.schemas.errors import CommitError, ConfigError
from tatok.schemas.urls import filesystem_of

__all__ = ["EndedRun", "RunFolder", "ended_before", "is_url"]

METRICS, SUMMARY = "metrics.jsonl", "summary.json"


def is_url(path: str) -> bool:
    """Whether `path` is for fsspec rather than for this machine's file system."""
    return "://" in path


class RunFolder:
    """The folder as the one process that writes it sees it; names are relative to it and use "/".

    A file appears under its name complete or not at all: by a rename on a disk, by one PUT in a store. Figures are a
    list of records. On a disk each is appended as it comes, for those who watch; in a store, which cannot append, the
    list is written whole by `sync_records`. Keep `num_records` in the state and give it to `keep_records` on resuming:
    steps that are done again then leave no second record.
    """

    def __init__(self, location: str) -> None:
        """Raises ConfigError where the URL has no usable fsspec backend."""
        self.location = location.rstrip("/") if is_url(location) else location
        try:
            self._fs: AbstractFileSystem = filesystem_of(location)[0]
        except (ImportError, ValueError) as error:
            raise ConfigError(f"output is {location!r}: {error}; install the scheme's fsspec package") from error
        self._lines: list[str] = []
        self.num_dropped = 0

    @property
    def num_records(self) -> int:
        """Records so far."""
        return len(self._lines)

    @property
    def records(self) -> list[dict[str, Any]]:
        """All of them."""
        return [json.loads(line) for line in self._lines]

    def path(self, name: str) -> str:
        """The full path or URL of a file or folder."""
        return f"{self.location}/{name}" if is_url(self.location) else str(Path(self.location) / name)

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None where there is no such file; raises ConfigError where it cannot be read."""
        self._fs.invalidate_cache()
        try:
            return self._fs.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"cannot read {self.path(name)}: {error}; check the path and your permissions") from error

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file atomically; raises CommitError where it cannot be written."""
        path = self.path(name)
        try:
            if is_url(path):
                self._fs.pipe_file(path, data)
                return
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(path + ".tmp", "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(path + ".tmp", path)
            except BaseException:  # a second Ctrl-C among them
                Path(path + ".tmp").unlink(missing_ok=True)
                raise
        except OSError as error:
            raise CommitError(f"cannot write {path}: {error}; free space or fix permissions, then run again") from error

    def write_checkpoint(self, name: str, save: Callable[[str], None]) -> None:
        """Write or replace a checkpoint folder with what `save` writes into the folder it is given, weights first."""
        if not is_url(self.location):
            save(self.path(name))
            return
        with tempfile.TemporaryDirectory(prefix="tatok-checkpoint-") as folder:
            save(folder)
            files = sorted(Path(folder).iterdir(), key=lambda path: path.suffix != ".safetensors")
            for path in files:
                self.write(f"{name}/{path.name}", path.read_bytes())

    def end(self, recipe: str, said: str) -> None:
        """Note that the run of a recipe, of this digest, has ended, its checkpoint written; `said` is of it."""
        self.write(SUMMARY, (json.dumps({"recipe": recipe, "said": said}, indent=2) + "\n").encode())

    def keep_records(self, count: int | None) -> None:
        """Take up the records of an earlier run: its first `count`, or all; the others are dropped, from the file too.

        `num_dropped` says how many these were, a line that was cut off among them. Raises ConfigError where fewer are
        there than `count`.
        """
        lines = (self.read(METRICS) or b"").decode("utf-8").splitlines(keepends=True)
        if count is not None and len(lines) < count:
            raise ConfigError(
                f"{self.path(METRICS)} has {len(lines)} lines, but the state beside it was saved after {count}; "
                "put the file back, or choose another output"
            )
        self._lines = lines[:count]
        self.num_dropped = len(lines) - len(self._lines)
        if len(self._lines) < len(lines):
            self.write(METRICS, "".join(self._lines).encode())

    def add_record(self, record: Mapping[str, object]) -> None:
        """Add one record to the figures."""
        line = json.dumps(record) + "\n"
        self._lines.append(line)
        if not is_url(self.location):
            path = Path(self.path(METRICS))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line)

    def sync_records(self) -> None:
        """Make sure that all records are in the folder; to be called before the state that counts them is written."""
        if is_url(self.location):
            self.write(METRICS, "".join(self._lines).encode())
        elif self._lines:  # a state must not outlive, after a power cut, the records that it counts
            with open(self.path(METRICS), "rb") as file:
                os.fsync(file.fileno())


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """A run that has ended: what was said of it, and where its checkpoint is."""

    said: str
    checkpoint: str


def ended_before(location: str, recipe: str, checkpoint: str) -> EndedRun | None:
    """The run of a recipe, of this digest, that has ended in a folder, its checkpoint there; None if there is none.

    None, too, where the folder cannot be read: whoever writes into it is told why.
    """
    try:
        folder = RunFolder(location)
        summary, config = folder.read(SUMMARY), folder.read(f"{checkpoint}/config.json")
    except Exception:  # every fsspec backend has exceptions of its own
        return None
    document = {} if summary is None or config is None else json.loads(summary)
    if document.get("recipe") != recipe:
        return None
    return EndedRun(said=str(document["said"]), checkpoint=folder.path(checkpoint))

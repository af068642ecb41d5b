"""What a pattern or a folder was found to name, as lists side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fsspec.spec import AbstractFileSystem

from tatok.pipeline.storage.listing import is_local
from tatok.schemas.urls import text_of_path

__all__ = ["Found", "Way", "uri_of"]

Way = Literal["name", "glob", "folder"]


@dataclass(frozen=True, slots=True)
class Found:
    """Files and folders of one store, in order: paths, what fsspec says of each, and how each was found.

    `uris` are their addresses, as text that every file takes. There may be millions: a list of objects would be gone
    through by Python's collector again and again while the plan is made.
    """

    fs: AbstractFileSystem
    paths: Sequence[str]
    infos: Sequence[dict[str, Any]]
    ways: Sequence[Way]
    uris: Sequence[str]

    @staticmethod
    def of(fs: AbstractFileSystem, paths: Sequence[str], infos: Sequence[dict[str, Any]], ways: Sequence[Way]) -> Found:
        """With the address of each path."""
        return Found(fs, paths, infos, ways, [uri_of(fs, path) for path in paths])

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Sequence[int]) -> Found:
        """Those at some places, in that order."""
        if len(indices) == len(self):
            return self
        columns = (self.paths, self.infos, self.ways, self.uris)
        return Found(self.fs, *([column[index] for index in indices] for column in columns))  # type: ignore[arg-type]

    def is_folder(self, index: int) -> bool:
        """Whether that one holds others."""
        return bool(self.infos[index]["type"] == "directory")

    def num_bytes(self, index: int) -> int:
        """The size of that one; 0 where the store does not say."""
        return int(self.infos[index].get("size") or 0)


def uri_of(fs: AbstractFileSystem, path: str) -> str:
    """The address of a path in a store, as text that every file takes."""
    return text_of_path(path) if is_local(fs) else str(fs.unstrip_protocol(path))

"""The samples of a tar: consecutive members of one key, by webdataset's rules (docs/guides/sources.md)."""

from __future__ import annotations

from tatok.pipeline.census.forward import DAMAGE, Forward, open_stored
from tatok.pipeline.census.tar_headers import BadEnd, CutMember, TarDamage, members

__all__ = ["count_tar", "is_hidden"]

# Whoever decompresses in pieces loses the piece in which damage lies; how large it is, is the reader's business.
_PIECE_BYTES = 16 << 20


def count_tar(uri: str) -> tuple[int, int | None]:
    """At least and at most how many samples the tar holds; the same number unless it is damaged.

    What is damaged is a reject for all that comes after it, so the samples that begin before it, and one more, are
    the least. Raises SourceError if the store fails.
    """
    with open_stored(uri) as stored:
        file = Forward(stored)
        groups = _Groups()
        before = sure = 0  # complete samples as of one and two pieces ago
        mark = _PIECE_BYTES
        try:
            for member in members(file):
                if not member.is_folder and not is_hidden(member.name):
                    groups.add(member.name)
                if file.position > mark:
                    before, sure, mark = max(groups.num_begun - 1, 0), before, file.position + _PIECE_BYTES
        except BadEnd:
            return groups.num_begun + 1, groups.num_begun + 1
        except (TarDamage, *DAMAGE) as damage:
            if file.is_compressed:
                return sure + 1, None
            # A sample that ends within one of its members is itself the reject.
            return max(groups.num_begun + (not isinstance(damage, CutMember)), 1), None
        if file.position == 0:
            return 1, 1  # an empty file is no archive
        return groups.num_begun, groups.num_begun


def is_hidden(name: bytes) -> bool:
    """Whether a component begins with a dot, other than "." and ".."."""
    return any(part.startswith(b".") and part not in (b".", b"..") for part in name.split(b"/"))


class _Groups:
    """Counts samples as their members come."""

    def __init__(self) -> None:
        self.num_begun = 0
        self._key: bytes | None = None
        self._extensions: set[str] = set()

    def add(self, name: bytes) -> None:
        folder, slash, base = name.rpartition(b"/")
        stem, dot, rest = base.partition(b".")
        key, extension = folder + slash + stem, rest.decode("utf-8", "surrogateescape").lower()
        if not dot or key != self._key or extension in self._extensions:
            self.num_begun += 1
            self._extensions = set()
        self._key = key if dot else None  # without an extension it is a sample of its own
        self._extensions.add(extension)

"""512-byte blocks of a tar -> the names of its members, as POSIX (ustar, pax) and GNU define them.

No content is looked at: whether a member can be read says nothing of how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tatok.pipeline.census.forward import Forward

__all__ = ["BLOCK", "BadEnd", "CutMember", "Member", "TarDamage", "members"]

BLOCK = 512
_LONGEST_RECORD = 1 << 20  # of names and pax records; more is damage
_NO_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, FIFOs: their size says nothing
_NUMBERS = ((100, 108), (108, 116), (116, 124), (136, 148), (329, 337), (337, 345))  # mode, owner, time, device
_ZEROS = bytes(BLOCK)


class TarDamage(Exception):
    """The archive cannot be followed any further."""


class CutMember(TarDamage):
    """It ends within the member that came last."""


class BadEnd(Exception):
    """All members were there; the archive's end is not the file's, or is missing."""


class Member(NamedTuple):
    """A member's name, and whether it is a folder, or as little a file: a folder's listing, an archive's label."""

    name: bytes
    is_folder: bool


def members(file: Forward) -> Iterator[Member]:
    """Every member in order; raises TarDamage or BadEnd after the last, or whatever decompressing raises."""
    everywhere: dict[bytes, bytes] = {}
    extended: dict[bytes, bytes] = {}  # of the next member; what comes first is the outer, and counts
    pending = False
    while True:
        header = file.read(BLOCK)
        if len(header) < BLOCK or header == _ZEROS:
            if pending:
                raise TarDamage("a long name or pax record belongs to nothing")
            _end(file, header)
            return
        size, kind = _checked(header), header[156:157]
        if kind in (b"L", b"K"):
            text = _data(file, size).partition(b"\0")[0]
            extended.setdefault(b"path" if kind == b"L" else b"linkpath", text)
            pending = True
        elif kind in (b"x", b"X"):
            for name, value in _records(_data(file, size)).items():
                extended.setdefault(name, value)
            pending = True
        elif kind == b"g":
            everywhere |= _records(_data(file, size))
        else:
            records = everywhere | extended
            member = _member(header, records)
            yield member
            if b"size" in records:
                size = _number(records[b"size"], 10)
            if kind == b"S":
                _skip_sparse_maps(file, header)
            if kind not in _NO_DATA and (kind != b"\0" or not member.is_folder):
                _skip_content(file, size)
            extended, pending = {}, False


def _member(header: bytes, records: Mapping[bytes, bytes]) -> Member:
    kind, name = header[156:157], _text(header[:100])
    is_folder = kind in (b"5", b"D", b"V") or (kind == b"\0" and name.endswith(b"/"))
    prefix = _text(header[345:500])
    if prefix and kind != b"S":  # where GNU's sparse members have their map
        name = prefix + b"/" + name
    return Member(records.get(b"GNU.sparse.name", records.get(b"path", name)), is_folder)


def _skip_sparse_maps(file: Forward, header: bytes) -> None:
    more = header[482]
    while more:
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise CutMember("ends within a sparse member's map")
        more = block[504]


def _end(file: Forward, block: bytes) -> None:
    """What follows the last member, of which `block` was read."""
    if not block:
        if file.position:
            raise BadEnd
        return  # an empty file
    if len(block) < BLOCK:
        raise TarDamage("ends within a header")
    second = file.read(BLOCK)
    if second.count(0) != len(second):
        raise TarDamage("a zero block before further data")
    if not file.is_zero_to_the_end():
        raise BadEnd


def _checked(header: bytes) -> int:
    """The size that a header says; raises TarDamage where its checksum is another."""
    rest = header[:148] + b" " * 8 + header[156:]
    told = _number(_text(header[148:156]), 8)
    if told != sum(rest) and told != sum(rest) - 256 * sum(byte > 127 for byte in rest):  # old tars add signed bytes
        raise TarDamage("a header's checksum is wrong")
    for start, stop in _NUMBERS:
        _number_of(header[start:stop])
    return _number_of(header[124:136])


def _number_of(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0xFF:
        raise TarDamage("a negative number")
    return _number(_text(field), 8)


def _number(text: bytes, base: int) -> int:
    try:
        number = int(text.strip() or b"0", base)
    except ValueError as error:
        raise TarDamage(f"{text!r} is no number") from error
    if number < 0:
        raise TarDamage("a negative number")
    return number


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _data(file: Forward, size: int) -> bytes:
    if size > _LONGEST_RECORD:
        raise TarDamage(f"a name or record of {size} bytes")
    padded = -(-size // BLOCK) * BLOCK
    data = file.read(padded)
    if len(data) < padded:
        raise TarDamage("ends within a name or record")
    return data[:size]


def _skip_content(file: Forward, size: int) -> None:
    if not file.skip(size):
        raise CutMember("ends within a member")
    if not file.skip(-size % BLOCK):
        raise TarDamage("ends behind a member, within its last block")


def _records(data: bytes) -> dict[bytes, bytes]:
    """The "LENGTH NAME=VALUE\\n" of a pax header."""
    records: dict[bytes, bytes] = {}
    while data.rstrip(b"\0"):
        digits, space, _ = data.partition(b" ")
        length = _number(digits, 10)
        name, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not space or not equals or data[length - 1 : length] != b"\n":
            raise TarDamage("a pax record that is none")
        records[name] = value
        data = data[length:]
    return records

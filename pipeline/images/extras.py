"""Formats that Pillow reads by a plug-in of its own, each an extra of tatok: HEIC and HEIF, and JPEG XL.

A plug-in is registered in the process that decodes, when the first file of its format comes: it says nothing of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec

__all__ = ["EXTRAS", "HEAD_BYTES", "HEIF_BRANDS", "Extra", "extra_of", "installed_versions", "registered"]

HEIF_BRANDS = (
    *(b"heic", b"heix", b"heim", b"heis"),  # one picture, by HEVC
    *(b"hevc", b"hevx", b"hevm", b"hevs"),  # a sequence, by HEVC
    *(b"mif1", b"mif2", b"msf1", b"miaf"),  # by whatever; AVIF, too
)
HEAD_BYTES = 12
"""How many first bytes `extra_of` looks at."""
_JXL_STREAM, _JXL_BOX = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """One of tatok's extras that read images: `name` is what stands in `pip install 'tatok[...]'`.

    `image_format` is Pillow's name for it, `package` the distribution, `module` what is imported.
    """

    name: str
    image_format: str
    extensions: tuple[str, ...]
    package: str
    module: str
    begins: Callable[[bytes], bool]
    register: Callable[[], None]

    @property
    def is_installed(self) -> bool:
        """Whether this process can import it; nothing is imported."""
        return _is_importable(self.module)


def _begins_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS


def _begins_jxl(head: bytes) -> bool:
    return head.startswith((_JXL_STREAM, _JXL_BOX))


def _register_heif() -> None:
    import pillow_heif

    # One thread: the processes that decode are as many as there are cores.
    pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)


def _register_jxl() -> None:
    from pillow_jxl import JpegXLImagePlugin  # importing it registers it

    JpegXLImagePlugin.DECODE_THREADS = 0


EXTRAS: Mapping[str, Extra] = {
    extra.name: extra
    for extra in (
        Extra(
            name="heif",
            image_format="HEIF",
            extensions=("heic", "heics", "heif", "heifs", "hif"),
            package="pillow-heif",
            module="pillow_heif",
            begins=_begins_heif,
            register=_register_heif,
        ),
        Extra(
            name="jxl",
            image_format="JXL",
            extensions=("jxl",),
            package="pillow-jxl-plugin",
            module="pillow_jxl",
            begins=_begins_jxl,
            register=_register_jxl,
        ),
    )
}


def extra_of(head: bytes) -> Extra | None:
    """The extra for what a file's first bytes (HEAD_BYTES suffice) begin; files of AVIF may begin as HEIF, too."""
    return next((extra for extra in EXTRAS.values() if extra.begins(head)), None)


@cache
def registered(name: str) -> bool:
    """Whether Pillow reads the extra's format in this process; registers it where it is installed."""
    extra = EXTRAS[name]
    if not extra.is_installed:
        return False
    extra.register()
    return True


@cache
def _is_importable(module: str) -> bool:
    return find_spec(module) is not None


def installed_versions() -> dict[str, str]:
    """The version of each plug-in that is installed, by its package."""
    return {extra.package: version(extra.package) for extra in EXTRAS.values() if extra.is_installed}

"""Pictures of rows that draw themselves in a notebook and can be saved."""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from tatok.jobs.pictures import DrawnRow, DrawnSheet, write_whole
from tatok.schemas.errors import CommitError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Shown"]


class Shown:
    """What `OpenedDataset.show` drew: a notebook shows the picture, elsewhere there are `picture` and `save`.

    `rows` are the rows one by one, each with its picture, its sequence, and for a clip `moving`, an animated WebP.
    """

    def __init__(self, sheet: DrawnSheet) -> None:
        self.picture: Image.Image = sheet.picture
        self.rows: tuple[DrawnRow, ...] = sheet.rows
        self._name = sheet.name

    def __repr__(self) -> str:
        keys = ", ".join(row.key for row in self.rows[:3]) + (", ..." if len(self.rows) > 3 else "")
        missing = sum(row.why_no_original is not None for row in self.rows)
        without = f"; {missing} without original" if missing else ""
        return f"Shown({keys[:60]}: {self.picture.width}x{self.picture.height} pixels{without})"

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.picture.save(png, "PNG")
        return png.getvalue()

    def save(self, path: str | PathLike[str] | None = None) -> Path:
        """Write the picture, whole or not at all: a PNG, or what the name ends in; default: a name from the keys.

        Returns where. Raises CommitError where it cannot be written.
        """
        chosen = Path(path or f"{self._name}.png")
        if chosen.suffix.lower() in ("", ".png"):
            write_whole(chosen, self.picture)
            return chosen
        encoded = io.BytesIO()
        try:
            self.picture.save(encoded, _format_of(chosen))
        except (KeyError, OSError) as error:
            raise CommitError(
                f"cannot write {chosen} as {chosen.suffix}: {error}; name a .png, .jpg or .webp"
            ) from error
        write_whole(chosen, encoded.getvalue())
        return chosen


def _format_of(path: Path) -> str:
    from PIL import Image

    return Image.registered_extensions()[path.suffix.lower()]

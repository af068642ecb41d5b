"""A checkout laid out as it is installed, by links: python -m benchmarks.layout CHECKOUT FOLDER

FOLDER/tatok holds the checkout's four packages in one. What works from there, without an installation: a type checker,
which does not follow editable installs; a machine without pip; a second checkout beside an installed one, whose
`tatok.pipeline` an editable install would otherwise give the first one's modules.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["lay_out"]

_BESIDE = ("schemas", "pipeline", "jobs", "examples")


def lay_out(checkout: Path, folder: Path) -> Path:
    """Fill the folder, made where it is not there, with links; returns what belongs on PYTHONPATH."""
    package = folder / "tatok"
    package.mkdir(parents=True, exist_ok=True)
    for link in package.iterdir():
        link.unlink()
    entries = [path for path in (checkout / "tatok").iterdir() if path.name != "__pycache__"]
    for path in [*entries, *(checkout / top for top in _BESIDE)]:
        (package / path.name).symlink_to(path.absolute())
    return folder


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]), Path(sys.argv[2]))

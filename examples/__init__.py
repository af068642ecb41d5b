"""Demo photos and training recipes that are bundled with tatok; photos/README.md names their sources."""

from __future__ import annotations

from pathlib import Path

from tatok.schemas.errors import ConfigError

__all__ = ["demo_photos", "recipe_names", "recipe_path"]

_FOLDER = Path(__file__).parent


def demo_photos() -> str:
    """The brace pattern of the demo photos; raises ConfigError where they were left out."""
    folder = _FOLDER / "photos"
    if not (folder / "demo-0000.tar").exists():
        raise ConfigError(f"the demo photos are not at {folder}; name tars of your own with --photos")
    return f"{folder}/demo-{{0000..0002}}.tar"


def recipe_names() -> list[str]:
    """The bundled training recipes, such as train-photos-256."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(named: str) -> Path:
    """The recipe of a path; where there is no such file, the bundled one of that name.

    `train-photos-256`, `train-photos-256.yaml` and `examples/train-photos-256.yaml` name the same one. Raises
    ConfigError that lists their names.
    """
    path = Path(named).expanduser()
    if path.is_file():
        return path
    name = path.name.removesuffix(".yaml")
    if name not in recipe_names() or path.parent not in (Path(), Path("examples")):
        raise ConfigError(
            f"there is no recipe {named}: it is neither a file here nor a bundled one, which are "
            f"{', '.join(recipe_names())}"
        )
    return _FOLDER / f"{name}.yaml"

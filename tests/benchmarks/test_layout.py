"""A checkout laid out by links is the package as it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.layout import lay_out
from tests.support.places import ROOT


def imported_from(path: str) -> str:
    """Where a Python without installed packages of ours finds the pipeline."""
    environment = {"PYTHONPATH": path, "PATH": os.environ["PATH"]}
    command = [sys.executable, "-S", "-c", "import tatok.pipeline; print(tatok.pipeline.__file__)"]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_links_are_the_installed_layout(tmp_path: Path) -> None:
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    assert "No module named 'tatok.schemas'" in imported_from(f"{ROOT}{os.pathsep}{packages}")
    for _ in range(2):  # again: over what is there
        folder = lay_out(ROOT, tmp_path / "layout")
    found = imported_from(os.pathsep.join((str(folder), packages)))
    assert found == str(folder / "tatok" / "pipeline" / "__init__.py")

"""Imports run one way, jobs -> pipeline -> tatok -> schemas, and only the cluster files know Ray."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("schemas", "tatok", "pipeline", "jobs")  # each may import those before it
ON_RAY = {
    ROOT / "jobs" / "submission.py",
    ROOT / "pipeline" / "cluster.py",
    ROOT / "pipeline" / "cluster_actors.py",
    ROOT / "pipeline" / "cluster_probe.py",
    ROOT / "pipeline" / "dedup_cluster.py",
    ROOT / "pipeline" / "gpu_wait.py",
    ROOT / "pipeline" / "ray_metrics.py",
    ROOT / "pipeline" / "scheduler.py",
    ROOT / "pipeline" / "training_cluster.py",
}
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import absolutely, so that this test can see it"
            packages.add((node.module or "").partition(".")[0])
    return packages


def test_every_layer_has_modules() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    assert not imported_packages(path) & above


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_cluster_files_import_ray(path: Path) -> None:
    if path not in ON_RAY:
        assert "ray" not in imported_packages(path)


@pytest.mark.parametrize("path", sorted((ROOT / "schemas").rglob("*.py")), ids=lambda path: path.name)
def test_schemas_are_light(path: Path) -> None:
    assert not imported_packages(path) & {"torch", "ray"}

"""The sections of the kit, by value: what is measured first, and how long each may take."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REHEARSALS", "SECTIONS", "Spec", "spec_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One section: `function` of `module` is called in a process of its own.

    `deadline_s` is the most that it may take; with less than `least_s` left it is not started.
    """

    name: str
    module: str
    function: str = "run"
    deadline_s: float
    least_s: float = 12.0
    needs_cuda: bool = False


SECTIONS = (
    Spec(name="machine", module="benchmarks.gpu.sections.machine", deadline_s=60, least_s=8),
    Spec(name="agreement", module="benchmarks.gpu.sections.agreement", deadline_s=75),
    Spec(name="speed", module="benchmarks.gpu.sections.speed", deadline_s=75),
    Spec(name="rows", module="benchmarks.gpu.sections.rows", deadline_s=50),
    Spec(name="failures", module="benchmarks.gpu.sections.failures", deadline_s=60, needs_cuda=True),
    Spec(name="jpeg", module="benchmarks.gpu.sections.jpeg", deadline_s=35),
    Spec(name="large", module="benchmarks.gpu.sections.large", deadline_s=35),
    Spec(name="processes", module="benchmarks.gpu.sections.processes", deadline_s=35),
    Spec(name="generator", module="benchmarks.gpu.sections.generation", deadline_s=40),
    Spec(name="graph", module="benchmarks.gpu.sections.graphs", function="run_graph", deadline_s=30, needs_cuda=True),
    Spec(
        name="compile", module="benchmarks.gpu.sections.graphs", function="run_compile", deadline_s=120, needs_cuda=True
    ),
)

REHEARSALS = (
    Spec(name="crash", module="benchmarks.gpu.sections.rehearsals", function="crash", deadline_s=20, least_s=0),
    Spec(name="hang", module="benchmarks.gpu.sections.rehearsals", function="hang", deadline_s=8, least_s=0),
)
"""Sections that fail on purpose; they run only when they are named."""


def spec_of(name: str) -> Spec:
    """The section of that name; raises KeyError where there is none."""
    return {spec.name: spec for spec in (*SECTIONS, *REHEARSALS)}[name]

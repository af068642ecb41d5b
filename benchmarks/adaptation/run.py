"""DTF over frozen fixed-rate tokenizers: train them, adapt them, and compare kept sets and fills on held-out images.

`make bench-adapt`; docs/results/adapt.md says what is measured and what came of it. Trainings and results are kept in
--work: the same command resumes after an interruption.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer
from pydantic import TypeAdapter

from benchmarks.adaptation.cases import CASES, Case, adaptation_config, document, frozen_config
from benchmarks.adaptation.compare import Adapted, Cost, compare, cost
from benchmarks.adaptation.report import CaseResults, tables
from benchmarks.document import put_between
from benchmarks.machine import processor, versions
from tatok.adaptation.run import adapt
from tatok.schemas.errors import ConfigError
from tatok.training.run import train

__all__ = ["MARK", "measure_case"]

MARK = "frozen tokenizer"


def measure_case(case: Case, work: Path) -> CaseResults:
    """Train, adapt and measure one case, as far as that is not done; raises ConfigError if `work` is of another."""
    _same(work / "case.json", document(case))
    device = torch.device("cpu")
    frozen = work / "frozen" / "checkpoint"
    _once(work / "frozen.json", dict, lambda: {"checkpoint": train(frozen_config(case, work / "frozen"), device)})
    adapted = []
    for seed in case.seeds:

        def measured(seed: int = seed) -> Adapted:
            recipe = adaptation_config(case, seed, frozen=frozen, output=work / f"adapted-{seed}")
            return compare(case, seed, Path(adapt(recipe, device)))

        adapted.append(_once(work / f"adapted-{seed}.json", Adapted, measured))
    first = work / f"adapted-{case.seeds[0]}" / "checkpoint"
    return CaseResults(
        name=case.name,
        title=case.title,
        num_global=case.num_global,
        num_positions=case.num_positions,
        adapted=tuple(adapted),
        cost=_once(work / "cost.json", Cost, lambda: cost(case, first)),
    )


def _same(path: Path, settings: object) -> None:
    text = json.dumps(settings, indent=1, sort_keys=True)
    if path.exists() and path.read_text() != text:
        raise ConfigError(f"{path.parent} has results of other settings; delete it, or choose another --work")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


T = TypeVar("T")


def _once(path: Path, kind: type[T], make: Callable[[], T]) -> T:
    """What `make` returns, kept in a file and not made again."""
    if not path.exists():
        scratch = path.with_suffix(".tmp")
        scratch.write_bytes(TypeAdapter(kind).dump_json(make(), indent=1))
        os.replace(scratch, path)
    return TypeAdapter(kind).validate_json(path.read_bytes())


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Cases: {', '.join(CASES)}; default: all.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of trainings and single results.")] = Path("runs/adapt"),
    results: Annotated[Path, typer.Option("--json", help="File of all figures.")] = Path("docs/results/adapt.json"),
    page: Annotated[Path, typer.Option("--document", help="The page.")] = Path("docs/results/adapt.md"),
) -> None:
    """Measure, write the figures, and the tables of the page."""
    found = [measure_case(CASES[name], work / name) for name in names or CASES]
    machine = {"processor": processor(), **versions(("torch", "torchmetrics"))}
    about = {"machine": machine, "settings": [document(CASES[case.name]) for case in found]}
    cases = TypeAdapter(list[CaseResults]).dump_python(found, mode="json")
    results.write_text(json.dumps({**about, "cases": cases}, indent=1) + "\n", encoding="utf-8")
    page.write_text(put_between(page.read_text(encoding="utf-8"), MARK, tables(found)), encoding="utf-8")
    print(f"figures: {results}; tables: {page}")


if __name__ == "__main__":
    typer.run(main)

"""DTF over frozen fixed-rate tokenizers: train them, adapt them, and compare kept sets and fills on held-out images.

`make bench-adapt`; docs/results/adapt.md says what is measured and what came of it. Trainings and results are kept in
--work: the same command resumes after an interruption.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import TypeAdapter

from benchmarks.adaptation.cases import CASES, Case, adaptation_config, document, frozen_config
from benchmarks.adaptation.compare import Adapted, Cost, compare, cost
from benchmarks.adaptation.report import CaseResults, tables
from benchmarks.document import put_between
from benchmarks.kept_results import once, same_settings
from benchmarks.machine import processor, versions
from tatok.adaptation.run import adapt
from tatok.training.run import train

__all__ = ["MARK", "measure_case"]

MARK = "frozen tokenizer"


def measure_case(case: Case, work: Path) -> CaseResults:
    """Train, adapt and measure one case, as far as that is not done; raises ConfigError if `work` is of another."""
    same_settings(work / "case.json", document(case))
    device = torch.device("cpu")
    frozen = work / "frozen" / "checkpoint"
    once(work / "frozen.json", dict, lambda: {"checkpoint": train(frozen_config(case, work / "frozen"), device)})
    adapted = []
    for seed in case.seeds:

        def measured(seed: int = seed) -> Adapted:
            recipe = adaptation_config(case, seed, frozen=frozen, output=work / f"adapted-{seed}")
            return compare(case, seed, Path(adapt(recipe, device)))

        adapted.append(once(work / f"adapted-{seed}.json", Adapted, measured))
    first = work / f"adapted-{case.seeds[0]}" / "checkpoint"
    return CaseResults(
        name=case.name,
        title=case.title,
        num_global=case.num_global,
        num_positions=case.num_positions,
        adapted=tuple(adapted),
        cost=once(work / "cost.json", Cost, lambda: cost(case, first)),
    )


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

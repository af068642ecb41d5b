"""The claims bench: is TaTok with DTF better than fixed-rate tokens, and does a generator sample faster from it?

`make claims` runs it at the small setting; docs/results/claims.md says what is measured and what came of it. Every
model, and every generator, is a step whose result is kept in --work; the same command resumes after an interruption.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.claims.entropy import ConditionalEntropy, conditional_entropies
from benchmarks.claims.generation import Budget, Generation, Tokenization, generate, tokenize
from benchmarks.claims.images import as_tars
from benchmarks.claims.models import SETTINGS, Setting, Variant, variants
from benchmarks.claims.reconstruction import Reconstruction, encoded, reconstruct, run_folder
from benchmarks.claims.results import Results, machine, write_results
from benchmarks.claims.samples import Sampling, sample
from benchmarks.claims.speed import Speed, measure_speed
from benchmarks.claims.steps import Step, read_result, run_steps, same_settings
from tatok.model.checkpoint import load_checkpoint
from tatok.schemas.errors import ConfigError, TatokError
from tatok.training.run import CHECKPOINT

__all__ = ["claims"]


def claims(
    setting_name: Annotated[str, typer.Option("--setting", help=f"How large: {', '.join(SETTINGS)}.")] = "small",
    images: Annotated[
        str, typer.Option(help="Training images: tars, Parquet files (glob, brace pattern), or a folder.")
    ] = "../shared/corpus/cifar10-train.parquet",
    heldout: Annotated[
        str, typer.Option(help="Images to measure on, never trained on.")
    ] = "../shared/corpus/cifar10-test.parquet",
    work: Annotated[Path, typer.Option(help="Folder of models, tokens and single results.")] = Path("runs/claims"),
    results: Annotated[Path, typer.Option(help="File of all figures.")] = Path("docs/results/claims.json"),
    processes: Annotated[
        int | None, typer.Option(min=0, help="Models trained at a time; default: one a core, one a GPU; 0: in here.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="torch device; default: cuda where there is one.")] = None,
) -> None:
    """Train every model of the comparison, measure all of them, and write the figures."""
    if setting_name not in SETTINGS:
        raise typer.BadParameter(f"{setting_name}: there are {', '.join(SETTINGS)}", param_hint="--setting")
    setting = SETTINGS[setting_name]
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        bench = _Bench(setting, images, heldout, work / setting.name, chosen, processes)
        bench.run()
        write_results(results, bench.results())
    except TatokError as error:
        raise typer.Exit(_refuse(str(error))) from error
    print(f"figures: {results}; the report: make claims-report")


def _refuse(message: str) -> int:
    typer.secho(f"error: {message}", fg="red", err=True)
    return 1


class _Bench:
    """The steps of one setting, in order, and their results."""

    def __init__(
        self, setting: Setting, images: str, heldout: str, work: Path, device: str, processes: int | None
    ) -> None:
        self.setting, self.work, self.device = setting, work, device
        self.folder = work / "results"
        self.sources = (images, heldout)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        self.processes = (cores if device == "cpu" else 1) if processes is None else processes
        self.threads = max(1, cores // max(1, self.processes))
        self.variants = variants(setting)
        # The full rate's first, whose time is a budget; the coarse grid's samples as fast as TaTok's.
        self.generators: tuple[tuple[str, Budget], ...] = (
            ("full-rate", "tokens"),
            ("tatok", "tokens"),
            ("tatok", "time"),
            (f"grid-{setting.headline}", "tokens"),
        )
        same_settings(self.folder, {"setting": asdict(setting), "images": self.sources})
        self.train = as_tars(images, work / "images" / "train", setting.num_train)
        self.heldout = as_tars(heldout, work / "images" / "heldout", max(setting.num_heldout, setting.num_samples))

    def run(self) -> None:
        """Everything that has no result yet; one seed of it all first: an interrupted bench has the whole picture."""
        first, *others = self.setting.seeds
        self._steps(self._reconstructions((first,)), self.processes)
        alone = min(1, self.processes)
        self._steps([self._entropy()], alone)
        self._steps([self._tokenization(self._variant(name)) for name in self._tokenized], alone)
        for each in self.generators:  # one after another: the first says how much time TaTok's may take
            self._steps([self._generation(*each)], alone)
        self._steps([self._sampling(*each) for each in self.generators], self.processes)
        self._steps([self._speed()], alone)
        self._steps(self._reconstructions(tuple(others)), self.processes)

    def results(self) -> Results:
        """The figures of all steps."""
        return Results(
            setting=self.setting,
            images=self.sources[0],
            heldout=self.sources[1],
            machine=machine(self.device, self.processes, self.threads),
            reconstructions=tuple(
                self._read(step.name, Reconstruction) for step in self._reconstructions(self.setting.seeds)
            ),
            entropies=self._read("entropy", tuple[ConditionalEntropy, ...]),
            tokenizations=tuple(self._read(f"tokens-{name}", Tokenization) for name in self._tokenized),
            generations=tuple(self._generated(*each) for each in self.generators),
            samplings=tuple(self._read(f"samples-{name}-{budget}", Sampling) for name, budget in self.generators),
            speed=self._read("speed", Speed),
        )

    def _steps(self, steps: list[Step], processes: int) -> None:
        threads = self.threads if processes > 1 else None
        run_steps(steps, self.folder, num_processes=processes, num_threads=threads)

    def _read(self, name: str, kind: object) -> object:
        found = read_result(self.folder, name, kind)
        if found is None:
            raise ConfigError(f"{self.folder} has no result of {name}; run the bench again")
        return found

    def _variant(self, name: str) -> Variant:
        return next(variant for variant in self.variants if variant.name == name)

    def _reconstructions(self, seeds: tuple[int, ...]) -> list[Step]:
        """The models of these seeds: all of the setting's first one, and those with a spread of the others."""
        chosen = [
            (variant, seed)
            for seed in seeds
            for variant in self.variants
            if seed == self.setting.seeds[0] or variant.has_spread
        ]
        return [
            Step(
                name=f"model-{variant.name}-{seed}",
                call=partial(
                    reconstruct,
                    variant,
                    self.setting,
                    seed,
                    work=self.work,
                    photos=self.train,
                    heldout=self.heldout,
                    device=self.device,
                ),
            )
            for variant, seed in chosen
        ]

    def _checkpoint(self, variant: Variant) -> Path:
        return run_folder(self.work, variant, self.setting.seeds[0]) / CHECKPOINT

    def _entropy(self) -> Step:
        call = partial(
            _measure_entropies, self._checkpoint(self._variant("tatok")), self.setting, self.train, self.heldout
        )
        return Step(name="entropy", call=partial(call, self.device))

    def _tokenization(self, variant: Variant) -> Step:
        call = partial(
            tokenize,
            variant,
            self.setting,
            self._checkpoint(variant),
            work=self.work,
            photos=self.train,
            heldout=self.heldout,
            device=self.device,
        )
        return Step(name=f"tokens-{variant.name}", call=call)

    @property
    def _tokenized(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self.generators))

    def _generation(self, name: str, budget: Budget) -> Step:
        of_time = self._generated(*self.generators[0]).spent.seconds if budget == "time" else None
        call = partial(
            generate,
            self._read(f"tokens-{name}", Tokenization),
            self.setting,
            budget,
            self.setting.seeds[0],
            seconds=of_time,
            work=self.work,
            device=self.device,
        )
        return Step(name=f"generator-{name}-{budget}", call=call)

    def _sampling(self, name: str, budget: Budget) -> Step:
        call = partial(
            sample,
            self._read(f"tokens-{name}", Tokenization),
            self.setting,
            budget,
            self.setting.seeds[0],
            work=self.work,
            heldout=self.heldout,
            device=self.device,
        )
        return Step(name=f"samples-{name}-{budget}", call=call)

    def _speed(self) -> Step:
        tokens = self._read("tokens-tatok", Tokenization)
        assert isinstance(tokens, Tokenization)
        return Step(name="speed", call=partial(_measure_speed, tokens, self.setting, self.device))

    def _generated(self, name: str, budget: Budget) -> Generation:
        found = self._read(f"generator-{name}-{budget}", Generation)
        assert isinstance(found, Generation)
        return found


def _measure_entropies(
    checkpoint: Path, setting: Setting, photos: list[str], heldout: list[str], device: str
) -> tuple[ConditionalEntropy, ...]:
    images = encoded(checkpoint, heldout, setting, device)
    return tuple(
        conditional_entropies(
            load_checkpoint(checkpoint).model.to(device),
            photos,
            images,
            image_size=setting.image_size,
            steps=setting.recipe.prior_steps,
            batch_size=setting.recipe.batch_size,
            seed=setting.seeds[0],
        )
    )


def _measure_speed(tokens: Tokenization, setting: Setting, device: str) -> Speed:
    return measure_speed(
        tokens.heldout,
        checkpoint=load_checkpoint(tokens.checkpoint),
        device=torch.device(device),
        batch=setting.speed_batch,
        num_rounds=setting.speed_rounds,
        images_a_round=4,
        width=setting.generator_width,
        num_layers=setting.generator_layers,
    )


if __name__ == "__main__":
    typer.run(claims)

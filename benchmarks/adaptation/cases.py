"""What the bench adapts, and how: a frozen VQ tokenizer, trained here, and globals and a prior over it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from tatok.adaptation.settings import AdaptationConfig
from tatok.model.config import TaTokConfig
from tatok.training.config import KeptMixture, Stage, TrainingConfig

__all__ = ["CASES", "Case", "adaptation_config", "frozen_config"]

PATCH = 4
EVERY_PATCH = KeptMixture(none=0, full=1, random=0, energy=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One frozen tokenizer and what is trained over it; `seeds` are of the adaptation, the frozen one has the first.

    Steps are of `batch_size` images: the frozen tokenizer's and its decoder's alone, then the globals' and the prior's.
    Kept sets are compared at each of `shares` of the frozen tokenizer's tokens, globals counted.
    """

    name: str
    title: str
    images: str
    heldout: str
    num_heldout: int
    image_size: int
    batch_size: int
    frozen_steps: int
    decoder_steps: int
    globals_steps: int
    prior_steps: int
    seeds: tuple[int, ...]
    num_global: int = 16
    codebook_size: int = 1024
    width: int = 96
    num_heads: int = 3
    num_start_crops: int = 2048
    shares: tuple[float, ...] = (0.4, 0.6)

    @property
    def num_positions(self) -> int:
        """Tokens of an image by the frozen tokenizer."""
        return (self.image_size // PATCH) ** 2


CORPUS = "../shared/corpus"
CASES = {
    case.name: case
    for case in (
        Case(
            name="cifar10",
            title="CIFAR-10, 32x32, 64 tokens",
            images=f"{CORPUS}/cifar10-train.parquet",
            heldout=f"{CORPUS}/cifar10-test.parquet",
            num_heldout=500,
            image_size=32,
            batch_size=32,
            frozen_steps=1600,
            decoder_steps=500,
            globals_steps=250,
            prior_steps=200,
            seeds=(0, 1, 2),
        ),
        Case(
            name="photos",
            title="photos, 64x64, 256 tokens",
            images=f"{CORPUS}/mini64-train.parquet",
            heldout=f"{CORPUS}/mini64-test.parquet",
            num_heldout=300,
            image_size=64,
            batch_size=16,
            frozen_steps=1200,
            decoder_steps=300,
            globals_steps=200,
            prior_steps=200,
            seeds=(0,),
        ),
    )
}


def frozen_config(case: Case, output: Path) -> TrainingConfig:
    """The fixed-rate rival of the claims bench: 2-D patch tokens, all of them kept, and no prior."""

    def stage(name: str, part: str, steps: int, learning_rate: float) -> Stage:
        return Stage(
            name=name,
            train=(part,),  # type: ignore[arg-type]
            steps=steps,
            batch_size=case.batch_size,
            image_size=case.image_size,
            smallest_crop=1.0,
            learning_rate=learning_rate,
            warmup_steps=min(50, steps // 4),
            kept=EVERY_PATCH,
        )

    return TrainingConfig(
        output=str(output),
        photos=(case.images,),
        heldout=(case.heldout,),
        num_heldout=min(256, case.num_heldout),
        seed=case.seeds[0],
        num_loader_workers=0,
        num_start_crops=2 * case.num_start_crops,
        log_every_steps=max(1, case.frozen_steps // 8),
        save_every_steps=max(1, case.frozen_steps // 4),
        model=TaTokConfig(
            patch_size=PATCH,
            num_global=0,
            codebook_size=case.codebook_size,
            code_dim=12,
            width=case.width,
            num_heads=case.num_heads,
            num_trunk_layers=1,
            num_base_layers=1,
            num_refiner_layers=1,
            num_decoder_layers=2,
            num_prior_layers=2,
            cell_size=5,
        ),
        stages=(
            stage("tokenizer", "tokenizer", case.frozen_steps, 1e-3),
            stage("decoder", "decoder", case.decoder_steps, 5e-4),
        ),
    )


def adaptation_config(case: Case, seed: int, *, frozen: Path, output: Path) -> AdaptationConfig:
    """Globals and a prior over the checkpoint `frozen`."""
    shared = {"batch_size": case.batch_size, "image_size": case.image_size, "smallest_crop": 1.0, "learning_rate": 1e-3}
    sizes = {"num_global": case.num_global, "width": case.width, "num_heads": case.num_heads}
    layers = {"num_trunk_layers": 1, "num_base_layers": 1, "num_prior_layers": 2}
    steps = {"globals": ("tokenizer", case.globals_steps), "prior": ("prior", case.prior_steps)}
    stages = [
        {**shared, "name": name, "train": [part], "steps": number, "warmup_steps": min(50, number // 4)}
        for name, (part, number) in steps.items()
    ]
    return AdaptationConfig.model_validate(
        {
            "tokenizer": "benchmarks.adaptation.vq:load",
            "tokenizer_options": {"checkpoint": str(frozen)},
            "output": str(output),
            "photos": [case.images],
            "heldout": [case.heldout],
            "num_heldout": min(64, case.num_heldout),
            "seed": seed,
            "num_loader_workers": 0,
            "num_start_crops": case.num_start_crops,
            "log_every_steps": max(1, case.globals_steps // 4),
            "save_every_steps": max(1, case.globals_steps // 4),
            "model": {**sizes, **layers},
            "stages": stages,
        }
    )


def document(case: Case) -> dict[str, object]:
    """What the results were made with, as JSON-ready values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(case).items()}

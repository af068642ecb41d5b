"""The claims bench's models: TaTok, its fixed-rate rivals and its ablations, of one backbone and one recipe."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from tatok.model.autoencoder import TaTokConfig
from tatok.model.dtf import DTFSettings
from tatok.training.config import KeptMixture, Stage, TrainingConfig

__all__ = ["MORE_CELLS", "SETTINGS", "Recipe", "Setting", "Variant", "training_config", "variants"]

Group = Literal["tatok", "fixed", "ablation"]

KEPT_NONE = KeptMixture(none=1, full=0, random=0, energy=0)
KEPT_ALL = KeptMixture(none=0, full=1, random=0, energy=0)
KEPT_ANY = KeptMixture()
KEPT_BY_DTF = KeptMixture(none=0.05, full=0.1, random=0.05, energy=0, dtf=0.8)
RATE_WEIGHT = 0.02  # squared error, in [-1, 1], that a bit a pixel value is worth in joint training
MORE_CELLS = 6  # of a coarse grid that has more bits than TaTok with its positions
DTF = DTFSettings(criterion="distance", threshold_kind="distortion", threshold=1.0)  # calibrated at each mean count


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Steps of a model's stages and the images of a step; the same for every model of a setting."""

    batch_size: int
    tokenizer_steps: int
    prior_steps: int
    decoder_steps: int
    num_start_crops: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How large the bench runs.

    `headline` is the mean count at which models are compared; `curve` has those of the rate-distortion curve. Variants
    in the tables with a spread are trained with all `seeds`, the others with the first. `num_heldout` images are
    evaluated. A generator is trained on `generator_tokens` tokens, and samples `num_samples` images, which are
    compared with the first as many held-out ones; sampling is timed in `speed_rounds` turns at batches of
    `speed_batch` full-rate images. `grids` are coarse grids beside those of the headline, `fewer_globals` TaTok's
    ablations.
    """

    name: str
    recipe: Recipe
    backbone: TaTokConfig
    image_size: int
    headline: int
    curve: tuple[int, ...]
    seeds: tuple[int, ...]
    num_heldout: int
    num_train: int | None
    generator_width: int
    generator_layers: int
    generator_tokens: int
    generator_batch_tokens: int
    num_samples: int
    speed_batch: int
    speed_rounds: int
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    grids: tuple[int, ...] = (16, 20, 25)
    fewer_globals: tuple[int, ...] = (0, 4, 8)


BACKBONE = TaTokConfig(
    patch_size=4,
    num_global=16,
    codebook_size=1024,
    code_dim=12,
    width=96,
    num_heads=3,
    num_trunk_layers=1,
    num_base_layers=1,
    num_refiner_layers=1,
    num_decoder_layers=2,
    num_prior_layers=2,
    cell_size=5,
)

SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            name="tiny",
            recipe=Recipe(batch_size=8, tokenizer_steps=2, prior_steps=2, decoder_steps=1, num_start_crops=64),
            backbone=replace(BACKBONE, codebook_size=32, width=32, num_heads=2, num_decoder_layers=1),
            image_size=32,
            headline=30,
            curve=(25,),
            seeds=(0,),
            num_heldout=64,
            num_train=256,
            generator_width=32,
            generator_layers=1,
            generator_tokens=4000,
            generator_batch_tokens=1024,
            num_samples=64,
            speed_batch=8,
            speed_rounds=2,
            grids=(16,),
            fewer_globals=(0,),
        ),
        Setting(
            name="small",
            recipe=Recipe(batch_size=32, tokenizer_steps=1600, prior_steps=800, decoder_steps=500),
            backbone=BACKBONE,
            image_size=32,
            headline=30,
            curve=(20, 25, 36),
            seeds=(0, 1, 2),
            num_heldout=2000,
            num_train=None,
            generator_width=192,
            generator_layers=4,
            generator_tokens=4_000_000,
            generator_batch_tokens=4096,
            num_samples=10_000,
            speed_batch=64,
            speed_rounds=7,
        ),
        Setting(
            name="large",
            recipe=Recipe(batch_size=256, tokenizer_steps=20_000, prior_steps=8000, decoder_steps=5000),
            backbone=replace(
                BACKBONE,
                width=256,
                num_heads=4,
                num_trunk_layers=3,
                num_base_layers=2,
                num_refiner_layers=3,
                num_decoder_layers=6,
                num_prior_layers=6,
            ),
            image_size=32,
            headline=30,
            curve=(20, 25, 36, 44),
            seeds=(0, 1, 2),
            num_heldout=10_000,
            num_train=None,
            generator_width=512,
            generator_layers=12,
            generator_tokens=400_000_000,
            generator_batch_tokens=65_536,
            num_samples=10_000,
            speed_batch=256,
            speed_rounds=7,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model of the comparison.

    `fixed_tokens` is what a fixed-rate model spends on every image; None where DTF chooses. `has_spread` asks for all
    seeds. `is_joint` trains the prior with the tokenizer in the second half of its steps.
    """

    name: str
    title: str
    group: Group
    model: TaTokConfig
    kept: KeptMixture = KEPT_ANY
    fixed_tokens: int | None = None
    has_spread: bool = False
    is_joint: bool = False
    settings: DTFSettings = field(default=DTF)


def variants(setting: Setting) -> list[Variant]:
    """Everything that is trained, TaTok first.

    A coarse grid of k tokens is TaTok's own thumbnail of k cells and nothing else: the same encoder and decoder, with
    all positions of the decoder filled in from it. Its cells are of 6 pixels, which did best before training.
    """
    backbone, count = setting.backbone, setting.headline
    num_patches = (setting.image_size // backbone.patch_size) ** 2
    every = num_patches + backbone.num_global

    def grid(num: int, *, has_spread: bool = False) -> Variant:
        return Variant(
            name=f"grid-{num}",
            title=f"coarse grid, {num} tokens",
            group="fixed",
            model=replace(backbone, num_global=num, cell_size=6),
            kept=KEPT_NONE,
            fixed_tokens=num,
            has_spread=has_spread,
        )

    def ablation(name: str, title: str, model: TaTokConfig, *, is_joint: bool = False) -> Variant:
        return Variant(name=name, title=title, group="ablation", model=model, is_joint=is_joint)

    models = [
        Variant(
            name="tatok",
            title=f"TaTok, M = {backbone.num_global}",
            group="tatok",
            model=backbone,
            has_spread=True,
        ),
        grid(count, has_spread=True),
        grid(count + MORE_CELLS, has_spread=True),
        Variant(
            name="full-rate",
            title=f"2-D patch tokens at full rate, {num_patches}",
            group="fixed",
            model=replace(backbone, num_global=0),
            kept=KEPT_ALL,
            fixed_tokens=num_patches,
            has_spread=True,
        ),
        Variant(
            name="free-queries",
            title=f"1-D tokens (free queries), {count}",
            group="fixed",
            model=replace(backbone, num_global=count, anchored=False),
            kept=KEPT_NONE,
            fixed_tokens=count,
            has_spread=True,
        ),
        *(grid(num) for num in setting.grids),
        Variant(
            name="patch-8",
            title="2-D patch tokens of 8x8 pixels, 16",
            group="fixed",
            model=replace(backbone, num_global=0, patch_size=8),
            kept=KEPT_ALL,
            fixed_tokens=(setting.image_size // 8) ** 2,
        ),
        *(ablation(f"globals-{m}", f"M = {m}", replace(backbone, num_global=m)) for m in setting.fewer_globals),
        ablation("zeros", "zeros as filler", replace(backbone, filler="zeros")),
        ablation("joint", "prior and tokenizer jointly", backbone, is_joint=True),
    ]
    assert all(model.fixed_tokens is None or model.fixed_tokens < every for model in models)
    return models


def training_config(
    variant: Variant, setting: Setting, seed: int, *, output: str, photos: tuple[str, ...], heldout: tuple[str, ...]
) -> TrainingConfig:
    """The recipe of one model; fixed-rate models, which ask no prior, have the other stages alike."""
    recipe = setting.recipe

    def stage(
        name: str,
        train: tuple[str, ...],
        steps: int,
        kept: KeptMixture,
        learning_rate: float,
        rate_weight: float = 0.0,
    ) -> Stage:
        return Stage(
            name=name,
            train=train,  # type: ignore[arg-type]
            steps=steps,
            batch_size=recipe.batch_size,
            image_size=setting.image_size,
            smallest_crop=1.0,  # images as they are, and their mirror images
            learning_rate=learning_rate,
            rate_weight=rate_weight,
            warmup_steps=min(50, steps // 4),
            kept=kept,
        )

    steps, kept = recipe.tokenizer_steps, variant.kept
    if variant.is_joint:
        stages = [
            stage("tokenizer", ("tokenizer",), steps - steps // 2, kept, 1e-3),
            stage("prior", ("prior",), recipe.prior_steps // 2, kept, 1e-3),
            stage("joint", ("tokenizer", "prior"), steps // 2, KEPT_BY_DTF, 5e-4, RATE_WEIGHT),
            stage("prior-again", ("prior",), recipe.prior_steps - recipe.prior_steps // 2, kept, 1e-3),
        ]
    else:
        stages = [stage("tokenizer", ("tokenizer",), steps, kept, 1e-3)]
        if variant.fixed_tokens is None:
            stages.append(stage("prior", ("prior",), recipe.prior_steps, kept, 1e-3))
    decoder_kept = KEPT_BY_DTF if variant.fixed_tokens is None else kept
    stages.append(stage("decoder", ("decoder",), recipe.decoder_steps, decoder_kept, 5e-4))
    return TrainingConfig(
        output=output,
        photos=photos,
        heldout=heldout,
        num_heldout=min(256, setting.num_heldout),
        seed=seed,
        num_loader_workers=0,
        precision=setting.precision,
        num_start_crops=recipe.num_start_crops,
        log_every_steps=max(1, recipe.tokenizer_steps // 8),
        save_every_steps=max(1, recipe.tokenizer_steps // 2),
        model=variant.model,
        dtf=variant.settings,
        stages=tuple(stages),
    )

"""What is changed of the recipe, one thing at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tatok.schemas.errors import ConfigError
from tatok.training.config import AutoencoderSetting, KeptMixture, Stage, TrainingConfig, load_training_config

__all__ = ["RECIPE", "VARIANTS", "WHOLE", "Variant", "configured"]

RECIPE = Path(__file__).with_name("recipe.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """`model` and `losses` replace values of the recipe: those of the model, and those of every stage that trains it.

    `factors` multiply values of the stages. `fixed_tokens` is what a rival spends on every image (rivals.py): it is
    trained under `kept`, and has no prior to train.
    """

    name: str
    title: str
    model: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    kept: KeptMixture | None = None
    fixed_tokens: int | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether it can be trained only where there is one."""
        return "teacher_weight" in self.losses

    def changed(self, stage: Stage) -> Stage:
        """The stage with what is changed of it; raises ValidationError where that is no stage."""
        scaled = {name: getattr(stage, name) * factor for name, factor in self.factors.items()}
        losses = dict(self.losses)
        if self.kept is not None:
            losses |= {"kept": self.kept.model_dump(), "train": [part for part in stage.train if part != "prior"]}
        if not {"tokenizer", "prior"} <= set(stage.train):
            losses.pop("rate_weight", None)  # the codes are final, so no rate can become lower
        return Stage.model_validate(stage.model_dump() | losses | scaled)

    def of(self, recipe: TrainingConfig) -> TrainingConfig:
        """The recipe with what is changed of it."""
        stages = tuple(self.changed(stage) for stage in recipe.stages)
        return recipe.model_copy(update={"model": replace(recipe.model, **self.model), "stages": stages})


_NO_FEATURES = {"perceptual_weight": 0.0, "lpips_weight": 0.0}

WHOLE = Variant(name="whole", title="the whole recipe")
VARIANTS = (
    WHOLE,
    Variant(
        name="linear-pixels",
        title="no convolutional pixel decoder: the transformer's output is the pixels",
        model={"pixel_width": None},
    ),
    Variant(name="no-adversary", title="no adversary", losses={"adversarial_weight": 0.0}),
    Variant(name="no-features", title="no feature losses, the adversary stays", losses=_NO_FEATURES),
    Variant(
        name="squared-error",
        title="squared error alone: neither adversary nor feature losses",
        losses={"adversarial_weight": 0.0, **_NO_FEATURES},
    ),
    Variant(
        name="features-x3",
        title="feature losses of three times the weight",
        factors={"perceptual_weight": 3.0, "lpips_weight": 3.0},
    ),
    Variant(
        name="small-decoder",
        title="a decoder no larger than the encoder: its width, two layers of four",
        model={"decoder_width": None, "num_decoder_layers": 2},
    ),
    Variant(
        name="fixed-codes", title="no learned code dimensions: 24 fixed directions of pixels", model={"learned_dim": 0}
    ),
    Variant(name="learned-codes", title="16 of 24 code dimensions learned", model={"learned_dim": 16}),
    Variant(
        name="rate-distortion",
        title="tokenizer and prior trained jointly by rate and distortion",
        losses={"rate_weight": 0.06},
    ),
    Variant(
        name="linear-patches",
        title="no convolutional stem: patches are embedded by one linear map",
        model={"has_stem": False},
    ),
    Variant(
        name="teacher",
        title="a teacher beside the feature losses: the squared error of a frozen autoencoder's latents",
        losses={"teacher_weight": 0.3},
    ),
    Variant(
        name="teacher-alone",
        title="the teacher in place of the feature losses",
        losses={"teacher_weight": 0.6, **_NO_FEATURES},
    ),
)


def configured(
    variant: Variant,
    seed: int,
    *,
    photos: str,
    heldout: str,
    output: Path,
    recipe: Path = RECIPE,
    teacher: AutoencoderSetting | None = None,
) -> TrainingConfig:
    """The training of a variant; raises ConfigError where the recipe does not fit it, or its teacher is missing."""
    if variant.has_teacher and teacher is None:
        raise ConfigError(f"the variant {variant.name} needs a teacher")
    return variant.of(load_training_config(recipe)).model_copy(
        update={
            "photos": (photos,),
            "heldout": (heldout,),
            "output": str(output),
            "seed": seed,
            "teacher": teacher if variant.has_teacher else None,
        }
    )

"""AdaptationConfig: which tokenizer is adapted, and the recipe; `tatok adapt`'s file, read from YAML."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from tatok.frozen.config import FillSettings
from tatok.model.dtf import DTFSettings
from tatok.training.config import Stage, TrainingConfig

__all__ = ["AdaptationConfig", "default_stages"]

# Sizes that are the frozen tokenizer's, and parts that its models do not have.
_NOT_GIVEN = (
    "patch_size",
    "codebook_size",
    "code_dim",
    "cell_size",
    "num_refiner_layers",
    "num_decoder_layers",
    "anchored",
    "filler",
    "has_stem",
    "pixel_width",
    "learned_dim",
    "latents",
)


def default_stages(image_size: int) -> tuple[Stage, ...]:
    """First what the globals show, then the prior over the codes given them."""
    return (
        Stage(
            name="globals",
            train=("tokenizer",),
            steps=2000,
            batch_size=32,
            image_size=image_size,
            learning_rate=1e-3,
            warmup_steps=50,
        ),
        Stage(
            name="prior",
            train=("prior",),
            steps=4000,
            batch_size=32,
            image_size=image_size,
            learning_rate=1e-3,
            warmup_steps=50,
        ),
    )


class AdaptationConfig(TrainingConfig):
    """`tatok adapt`'s file: a training file of a model whose patch codes are a frozen tokenizer's.

    In a stage, `tokenizer` is the globals' encoder and what they show, `prior` the prior; a stage that trains both lets
    the globals learn what helps the prior.
    """

    tokenizer: str = Field(
        description="The frozen tokenizer: my_package.my_module:load, my_tokenizer.py:load, transformers, diffusers or "
        "torchscript."
    )
    tokenizer_options: dict[str, Any] = Field({}, description="What it is called with, beside the device.")
    image_size: int = Field(256, ge=1, description="Side of the crops, in the stages that come without a file.")
    cell_positions: int = Field(
        2, ge=1, description="Side of the cells whose mean vectors the globals start from, in positions."
    )
    fill: FillSettings = FillSettings()
    dtf: DTFSettings = DTFSettings(criterion="distance", threshold_kind="distortion", threshold=0.1, temporal=False)
    stages: tuple[Stage, ...] = Field((), description="By default the globals, then the prior.")

    @model_validator(mode="before")
    @classmethod
    def _sizes_are_the_tokenizers(cls, document: Any) -> Any:
        model = document.get("model") if isinstance(document, dict) else None
        given = sorted(set(model) & set(_NOT_GIVEN)) if isinstance(model, dict) else []
        if given:
            raise ValueError(f"model.{given[0]} is the frozen tokenizer's, or of other models; leave it out")
        return document

    @model_validator(mode="after")
    def _of_these_models(self) -> AdaptationConfig:
        if self.latents is not None:
            raise ValueError("latents are of `tatok train`; leave them out")
        if self.dtf.temporal:
            raise ValueError("each frame of a clip is an image here; set dtf: {temporal: false}")
        if self.dtf.texture_bits:
            raise ValueError("dtf.texture_bits are of pixels, which the model does not see here")
        for stage in self.stages:
            if "decoder" in stage.train or stage.is_on_clips or stage.rate_weight:
                raise ValueError(
                    f"stage {stage.name}: the decoder is the frozen tokenizer's, and clips are single frames; train "
                    "[tokenizer], [prior] or both, without rate_weight"
                )
            if self.model.num_global == 0 and "tokenizer" in stage.train:
                raise ValueError(f"stage {stage.name} trains globals, but num_global is 0; train [prior] alone")
        return self

    @property
    def whole_stages(self) -> tuple[Stage, ...]:
        """The stages as given, else the default ones."""
        if self.stages:
            return self.stages
        return tuple(
            stage for stage in default_stages(self.image_size) if self.model.num_global or "prior" in stage.train
        )

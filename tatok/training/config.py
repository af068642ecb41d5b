"""TrainingConfig: the recipe of one training run, read from YAML, validated once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tatok.autoencoders.frozen import AutoencoderChoice
from tatok.model.autoencoder import TaTokConfig
from tatok.model.dtf import DTFSettings
from tatok.schemas.errors import ConfigError
from tatok.schemas.settings import Section
from tatok.schemas.settings_file import read_settings
from tatok.watching.pace import StageWork

__all__ = [
    "AutoencoderSetting",
    "CameraMoves",
    "KeptMixture",
    "Latents",
    "Stage",
    "TrainingConfig",
    "check_batch_sizes",
    "load_training_config",
]

Part = Literal["tokenizer", "decoder", "prior"]


class KeptMixture(Section):
    """Shares of the images of a batch that see each kind of kept set; they are normalised to sum to one.

    `energy` keeps the patches whose codes carry most pixel energy, and `dtf` those that DTF's criterion rates highest
    under the current prior, `residual` those whose pixels are furthest from the base image; all of them above a
    threshold over the whole batch whose kept share is drawn anew each step.
    """

    none: float = Field(0.1, ge=0)
    full: float = Field(0.15, ge=0)
    random: float = Field(0.35, ge=0)
    energy: float = Field(0.4, ge=0)
    dtf: float = Field(0.0, ge=0)
    residual: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _some_share(self) -> KeptMixture:
        if not any(getattr(self, name) for name in KeptMixture.model_fields):
            raise ValueError("all shares are 0; give one of them a share")
        return self

    @property
    def shows_patches(self) -> bool:
        """Whether the decoder sees a patch token at all."""
        return any(getattr(self, name) for name in KeptMixture.model_fields if name != "none")


class CameraMoves(Section):
    """How a camera moves over photos to make clips of them; each number is the most of what is drawn for a clip."""

    still: float = Field(0.4, ge=0, le=1, description="Share of the clips whose camera is still.")
    pan: float = Field(0.05, ge=0, description="Shift a frame, over the side of the picture.")
    zoom: float = Field(0.04, ge=0, lt=1, description="Growth of the picture's side a frame.")
    rotation_degrees: float = Field(2.0, ge=0, description="Rotation a frame.")
    object: float = Field(0.5, ge=0, le=1, description="Share of the clips which a piece of another photo crosses.")
    object_step: float = Field(0.1, ge=0, description="Its shift a frame, over the side of the picture.")
    noise: float = Field(2.0, ge=0, description="Deviation of the sensor's noise, anew in each frame, in pixel values.")


class Stage(Section):
    """One leg of the training; with `num_frames` > 1 it trains on clips, else on images."""

    name: str
    train: tuple[Part, ...] = Field(min_length=1, description="Parts that learn; the others stay as they are.")
    steps: int = Field(ge=1)
    batch_size: int = Field(16, ge=1, description="Images or clips a step, over all workers together.")
    image_size: int = Field(256, ge=16)
    num_frames: int = Field(1, ge=1, description="Frames of a clip; the first has the losses of an image.")
    camera: CameraMoves = CameraMoves()
    video_share: float = Field(0.5, ge=0, le=1, description="Of the clips, where there are videos; others are photos'.")
    smallest_crop: float = Field(0.7, gt=0, le=1, description="Smallest crop's side over the photo's shorter side.")
    native_share: float = Field(
        0.0, ge=0, le=1, description="Share of crops taken pixel for pixel, without resizing; with photos_in_memory."
    )
    max_minutes: float | None = Field(
        None, gt=0, description="The stage ends, its schedule done, when it has run so long, whatever its steps."
    )
    learning_rate: float = Field(4e-4, gt=0)
    prior_learning_rate: float | None = Field(None, gt=0, description="Of the prior, where it is another.")
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(0.02, ge=0)
    pixel_weight: float = Field(1.0, gt=0, description="Weight of the squared error, a pixel value in [-1, 1].")
    drawn_weight: float = Field(
        0.0, ge=0, description="Weight of the squared error of what a frozen autoencoder draws, in a crop, of latents."
    )
    perceptual_weight: float = Field(0.0, ge=0)
    lpips_weight: float = Field(0.0, ge=0, description="Weight of the shift-tolerant LPIPS by AlexNet.")
    adversarial_weight: float = Field(
        0.0,
        ge=0,
        description="Size of the adversary's gradient on the rebuilt images over that of all their other losses.",
    )
    adversarial_start: int = Field(
        0, ge=0, description="Step of the stage from which the tokenizer minds the adversary, which learns before that."
    )
    adversarial_ramp: int = Field(500, ge=1, description="Steps over which that weight grows to its full size.")
    adversary_learning_rate: float = Field(2e-4, gt=0)
    teacher_weight: float = Field(
        0.0, ge=0, description="Weight of the squared error between the teacher's latents of rebuilt and real images."
    )
    perceptual_size: int = Field(128, ge=32, description="Side of the crop that networks look at in losses.")
    base_weight: float = Field(0.3, ge=0, description="Weight of the base image's own pixel loss.")
    commitment_weight: float = Field(0.25, ge=0, description="Weight of the quantization error, in pixel units.")
    rate_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the kept codes' surprisal, in bits a pixel value, let through to the encoder: joint "
        "training of tokenizer and prior by rate and distortion.",
    )
    kept: KeptMixture = KeptMixture()

    @model_validator(mode="after")
    def _a_rate_needs_both(self) -> Stage:
        if self.rate_weight and not {"tokenizer", "prior"} <= set(self.train):
            raise ValueError(f"rate_weight is for stages that train tokenizer and prior; this one: {self.train}")
        return self

    @property
    def is_on_clips(self) -> bool:
        """Whether its batches are clips [B, T, 3, H, W]."""
        return self.num_frames > 1

    @property
    def looks_at_windows(self) -> bool:
        """Whether any loss looks at a window of the images, beside the squared error of all of them."""
        weights = (self.drawn_weight, self.perceptual_weight, self.lpips_weight, self.teacher_weight)
        return any((*weights, self.adversarial_weight))

    @property
    def judged_by(self) -> str:
        """The held-out figure that says most of what the stage trains."""
        return "surprisal_bits" if set(self.train) == {"prior"} else "psnr_dtf_db"

    def work_left(self, step: int, seconds: float) -> StageWork:
        """What is left of the stage after so many steps and seconds of it."""
        most = None if self.max_minutes is None else max(0.0, 60 * self.max_minutes - seconds)
        pixels = self.batch_size * self.num_frames * self.image_size**2
        return StageWork(steps=self.steps - step, pixels=pixels, most_seconds=most)

    def learning_rate_at(self, step: int, seconds: float) -> float:
        """Linear warm-up, then a cosine down to a twentieth, after so many steps and seconds of the stage."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.max_minutes is not None:
            progress = max(progress, self.progress(step, seconds))
        return self.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))

    def progress(self, step: int, seconds: float) -> float:
        """How far a stage is, 0 .. 1, after so many steps and seconds: 1 at its steps or its `max_minutes`."""
        by_time = 0.0 if self.max_minutes is None else seconds / (60 * self.max_minutes)
        return min(1.0, max(step / self.steps, by_time))


class AutoencoderSetting(Section):
    """A frozen autoencoder."""

    autoencoder: str = Field(
        description="diffusers, or a function of your own: my_package.my_module:load, my_autoencoder.py:load."
    )
    autoencoder_options: dict[str, Any] = Field({}, description="What it is called with, beside the device.")

    @property
    def choice(self) -> AutoencoderChoice:
        """Which autoencoder, by absolute paths."""
        return AutoencoderChoice(autoencoder=self.autoencoder, options=self.autoencoder_options).from_anywhere()

    def from_anywhere(self) -> Self:
        """The same for processes that have another current folder."""
        choice = self.choice
        return self.model_copy(update={"autoencoder": choice.autoencoder, "autoencoder_options": dict(choice.options)})


class Latents(AutoencoderSetting):
    """The frozen autoencoder on whose latents the model works in place of pixels."""

    distances: Literal["picture", "channels"] = Field(
        "picture",
        description="What squared distances between latents mean: how far the picture that the autoencoder draws of "
        "them moves, or, each channel scaled to a deviation of 1, nothing but that.",
    )
    num_cached_crops: int = Field(
        0,
        ge=0,
        description="Crops whose latents are made once, over all workers together, and kept in the output; stages "
        "train on windows of them. 0: every step encodes crops of its own.",
    )
    smallest_crop: float = Field(0.85, gt=0, le=1, description="As a stage's, of the crops that are kept.")


class TrainingConfig(Section):
    """`tatok train`'s file."""

    output: str = Field(description="Folder or fsspec URL of the run: state, checkpoint, figures, sample pictures.")
    photos: tuple[str, ...] = Field(description="Paths, globs or brace patterns of WebDataset tars or Parquet files.")
    videos: tuple[str, ...] = Field((), description="Paths, globs or brace patterns of videos, for stages on clips.")
    video_fps: float = Field(8.0, gt=0, description="Frames a second that clips of videos are made of.")
    heldout: tuple[str, ...] = Field((), description="Photos for validation, never trained on.")
    num_heldout: int = Field(64, ge=1)
    seed: int = 0
    num_loader_workers: int | None = Field(
        None, ge=0, description="Processes that load crops; by default 1 on a CPU, a GPU's share of the cores on GPUs."
    )
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Of the products; auto: bfloat16 on GPUs and on CPUs with instructions for it, else float32.",
    )
    photos_in_memory: bool = Field(
        False, description="Decode all photos once into the device's memory and crop them there; for images only."
    )
    compiled: bool = Field(False, description="Compile the layers with torch.compile; needs a C compiler, for GPUs.")
    ema_decay: float = Field(0.998, ge=0, lt=1)
    num_start_crops: int = Field(4096, ge=1, description="Crops that the bases and codebooks are started from.")
    log_every_steps: int = Field(50, ge=1)
    save_every_steps: int = Field(500, ge=1)
    tensorboard: bool = Field(
        False, description="Write figures and pictures for TensorBoard, too, into the output's folder tensorboard."
    )
    latents: Latents | None = None
    teacher: AutoencoderSetting | None = Field(
        None, description="Whose encoder compares images for a teacher_weight; no weight of it is in the checkpoint."
    )
    model: TaTokConfig = TaTokConfig()
    dtf: DTFSettings = DTFSettings()
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _clips_need_cells(self) -> TrainingConfig:
        has_cells = self.model.anchored and self.model.num_global > 0
        for stage in self.stages:
            if stage.is_on_clips and not has_cells:
                raise ValueError(f"stage {stage.name} is on clips (num_frames), which need anchored globals")
        return self

    @model_validator(mode="after")
    def _a_weight_needs_a_teacher(self) -> TrainingConfig:
        taught = [stage.name for stage in self.stages if stage.teacher_weight]
        if taught and self.teacher is None:
            raise ValueError(f"stage {taught[0]} has a teacher_weight, but there is no teacher; name its autoencoder")
        return self

    @model_validator(mode="after")
    def _latents_are_of_images(self) -> TrainingConfig:
        if self.latents is None:
            drawn = [stage.name for stage in self.stages if stage.drawn_weight]
            if drawn:
                raise ValueError(
                    f"stage {drawn[0]} has a drawn_weight, which is for models of latents; set pixel_weight"
                )
            return self
        if self.dtf.temporal:
            raise ValueError("over latents each frame of a clip is an image; set dtf: {temporal: false}")
        if self.dtf.texture_bits:
            raise ValueError("dtf.texture_bits are of pixels, which a model of latents does not see")
        if self.photos_in_memory:
            raise ValueError("photos_in_memory does not go with latents; set latents.num_cached_crops")
        for stage in self.stages:
            if stage.is_on_clips:
                raise ValueError(f"stage {stage.name} is on clips (num_frames); models of latents train on images")
            own = stage.model_fields_set & {"smallest_crop", "native_share"}
            if self.latents.num_cached_crops and own:
                raise ValueError(
                    f"stage {stage.name} has {', '.join(sorted(own))}, but crops are cached; set latents.smallest_crop"
                )
        return self


def check_batch_sizes(config: TrainingConfig, num_workers: int) -> None:
    """Raises ConfigError unless every stage's batch can be shared equally by `num_workers`."""
    for stage in config.stages:
        if stage.batch_size % num_workers:
            raise ConfigError(
                f"stage {stage.name}: a batch_size of {stage.batch_size} images a step cannot be shared equally by "
                f"{num_workers} workers; make it a multiple of {num_workers}, or use another number of workers"
            )


def load_training_config(path: str | Path) -> TrainingConfig:
    """Read a training file; raises ConfigError that names the file and each wrong key."""
    return read_settings(path).validated(TrainingConfig)

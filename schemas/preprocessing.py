"""Which parts of a source image are tokenized, and how their pixels are made; which frames of a video become clips."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tatok.schemas.settings import Section

__all__ = ["Buckets", "Preprocessing", "RandomCrops", "Video"]


class RandomCrops(Section):
    """Squares at random places, for the mode random_crop; the same in every run over the same source."""

    num_crops: int = Field(default=1, ge=1, le=100, description="Crops of an image, each a row.")
    min_scale: float = Field(
        default=1.0, gt=0, le=1, description="Smallest side of a crop, as a share of the image's shorter side."
    )


class Buckets(Section):
    """Grids of many shapes at one number of pixels, for the mode buckets."""

    max_aspect_ratio: float = Field(
        default=4.0, ge=1, le=64, description="Longer side by shorter side of the most elongated grid."
    )


class Preprocessing(Section):
    """Source image -> the pixels that are tokenized."""

    mode: Literal["centre_crop", "random_crop", "resize", "buckets"] = Field(
        default="centre_crop",
        description="centre_crop: the largest centred square. random_crop: squares at random places. resize: the whole "
        "image, its shorter side brought to image_size, both sides rounded to side_multiple. buckets: the largest "
        "centred part that has the shape of the nearest bucket, a grid of at most image_size x image_size pixels.",
    )
    image_size: int = Field(
        default=256,
        ge=16,
        le=4096,
        description="Side of the square in pixels, a multiple of the patch; see mode for its other meanings.",
    )
    side_multiple: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Sides are multiples of it in the modes resize and buckets; a multiple of the patch.",
    )
    random_crops: RandomCrops = RandomCrops()
    buckets: Buckets = Buckets()
    flips: Literal["none", "random", "both"] = Field(
        default="none",
        description="Mirroring left to right. random: of every second crop, by chance. both: each crop is two rows.",
    )
    seed: int = Field(default=0, ge=0, description="Chooses, together with the sample's id, what is left to chance.")
    animation: Literal["first_frame", "clip"] = Field(
        default="first_frame",
        description="What an animated GIF, PNG, WebP or AVIF gives: an image, or a clip with the time of each frame.",
    )
    max_frames: int = Field(
        default=64, ge=2, le=4096, description="Frames of an animation that its clip holds; later ones are left out."
    )
    resample: Literal["bicubic", "bilinear", "lanczos"] = Field(
        default="bicubic", description="Filter that resizes, always antialiased."
    )
    background: tuple[int, int, int] = Field(default=(255, 255, 255), description="RGB under transparent pixels.")
    icc_profiles: Literal["apply", "ignore"] = Field(
        default="apply",
        description="Whether an embedded colour profile is followed, to sRGB; a damaged one is ignored.",
    )
    decoder: Literal["pillow", "simplejpeg"] = Field(
        default="pillow",
        description="simplejpeg: regular JPEGs are decoded by simplejpeg, and torch resizes; quicker, and rounded "
        "otherwise in a few pixels (make bench-decode). What is not regular goes through Pillow.",
    )

    @model_validator(mode="after")
    def _torch_has_no_lanczos(self) -> Self:
        if self.decoder == "simplejpeg" and self.resample == "lanczos":
            raise ValueError("decoder simplejpeg resizes by torch, which has no lanczos; choose bicubic or bilinear")
        return self

    @model_validator(mode="after")
    def _square_fits_the_multiple(self) -> Self:
        if self.mode in ("resize", "buckets") and self.image_size % self.side_multiple:
            raise ValueError(f"image_size {self.image_size} is no multiple of side_multiple {self.side_multiple}")
        return self

    @property
    def sides_divide_by(self) -> int:
        """The largest number that divides the sides of everything that is tokenized."""
        return self.side_multiple if self.mode in ("resize", "buckets") else self.image_size


class Video(Section):
    """A video -> the clips that are tokenized, each a row; docs/guides/video.md says how and why."""

    decoder: Literal["pyav", "decord"] = Field(default="pyav", description="Library that decodes.")
    integrity: Literal["strict", "lenient"] = Field(
        default="strict",
        description="strict: a video is used up to its first damage, which is a reject; lenient: as its decoder "
        "conceals the damage.",
    )
    frames_per_clip: int = Field(default=16, ge=1, le=4096, description="Frames of a clip.")
    stride: int = Field(default=1, ge=1, description="Take every so many-th frame.")
    fps: float | None = Field(
        default=None, gt=0, description="Take so many frames a second, by their time stamps; not with stride."
    )
    clip_s: float | Literal["whole"] | None = Field(
        default=None,
        description="Seconds that a clip covers, frames_per_clip frames spread evenly over them, or 'whole' for one "
        "clip of the whole video; not with stride or fps.",
    )
    overlap_frames: int = Field(default=0, ge=0, description="Frames that a clip shares with the one before it.")
    last_clip: Literal["drop", "keep"] = Field(
        default="drop", description="What is done with the incomplete clip at the end of a video or a scene."
    )
    scene_cuts: bool = Field(default=False, description="Begin a new clip at a cut, so that no clip spans one.")
    scene_cut_threshold: float = Field(
        default=30.0,
        gt=0,
        le=255,
        description="Mean change of grey (0 to 255) from one frame to the next above which there is a cut.",
    )

    @model_validator(mode="after")
    def _one_way_to_choose_frames(self) -> Self:
        if sum((self.stride != 1, self.fps is not None, self.clip_s is not None)) > 1:
            raise ValueError("set one of stride, fps and clip_s")
        if isinstance(self.clip_s, float) and self.clip_s <= 0:
            raise ValueError("clip_s is above 0")
        if self.overlap_frames >= self.frames_per_clip:
            raise ValueError("overlap_frames is below frames_per_clip")
        return self

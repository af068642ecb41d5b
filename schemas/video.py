"""How videos become clips: which frames are taken, and what is done about damage."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tatok.schemas.settings import Section

__all__ = ["Video"]


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

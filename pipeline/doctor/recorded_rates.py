"""What the bundled checkpoint did on GPUs that were at hand: for a forecast where there is none to try.

The figures are those of docs/results (docs/results/gpu.md says how they were measured); a test holds them against each
other. They are of the tokenizer alone: reading, decoding, Parquet and Ray come on top where they do not keep up.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RECORDED", "GpuForecast", "RecordedRate", "forecast_by"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRate:
    """Images a second of one card, encoded in batches of 256 with `precision`, of squares of `image_side` pixels."""

    card: str
    precision: str
    image_side: int
    images_per_s: float


RECORDED = (RecordedRate(card="NVIDIA H100 80GB HBM3", precision="float32", image_side=256, images_per_s=7136.0),)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuForecast:
    """A job on cards like the recorded one; estimates.

    `decoding_cores` is how many CPU cores decode as fast as one such card tokenizes, by what was timed here.
    """

    card: str
    images_per_s: float
    gpu_hours: float
    decoding_cores: float


def forecast_by(
    rate: RecordedRate, *, num_images: int, pixels_an_image: float, decode_s_an_image: float
) -> GpuForecast:
    """`num_images` at a recorded rate, which falls as the pixels grow: attention's share is small at these sizes."""
    images_per_s = rate.images_per_s * rate.image_side**2 / pixels_an_image
    return GpuForecast(
        card=rate.card,
        images_per_s=images_per_s,
        gpu_hours=num_images / images_per_s / 3600,
        decoding_cores=decode_s_an_image * images_per_s,
    )

"""The commands that make and measure checkpoints: train, calibrate, eval."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from tatok.calibration import EncodedPhotos
    from tatok.tokenizer import Tokenizer

__all__ = ["calibrate", "evaluate", "train"]

Photos = Annotated[
    list[str], typer.Argument(help="Held-out photos: WebDataset tars or Parquet files (paths, globs, brace patterns).")
]
CheckpointOption = Annotated[str | None, typer.Option(help="Checkpoint folder; default: the one of tatok.")]
Device = Annotated[str | None, typer.Option(help="torch device; default: cuda where there is one, else cpu.")]
ImageSize = Annotated[int, typer.Option(help="Side of the centre crop, a multiple of the patch.")]
Limit = Annotated[int | None, typer.Option(help="Use the first so many photos only.")]
CriterionOption = Annotated[
    Literal["entropy", "surprisal", "content", "distance"] | None,
    typer.Option(help="DTF criterion; default: the checkpoint's."),
]


def train(
    config: Annotated[Path, typer.Argument(help="Training file (YAML), such as examples/train-photos-256.yaml.")],
    device: Device = None,
    start_from: Annotated[str | None, typer.Option(help="Checkpoint folder whose weights to start from.")] = None,
) -> None:
    """Train a TaTok checkpoint; the same command again goes on where the last run stopped."""
    import torch

    from tatok.training import train as run
    from tatok.training_config import load_training_config

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    run(load_training_config(config), torch.device(chosen), start_from=start_from)


def _encode(tokenizer: Tokenizer, photos: list[str], image_size: int, limit: int | None) -> EncodedPhotos:
    from rich.progress import track

    from tatok.calibration import EncodedPhotos
    from tatok.photos import centre_crops, expand_sources

    crops = centre_crops(expand_sources(photos), image_size, limit)
    return EncodedPhotos(tokenizer, track(crops, "encoding photos", transient=True))


def calibrate(
    photos: Photos,
    tokens: Annotated[float, typer.Option(help="Wanted mean number of tokens an image, globals included.")],
    checkpoint: CheckpointOption = None,
    criterion: CriterionOption = None,
    image_size: ImageSize = 256,
    limit: Limit = None,
    device: Device = None,
    write: Annotated[bool, typer.Option("--write", help="Write them into the checkpoint's config.json.")] = False,
) -> None:
    """Find the DTF threshold at which held-out photos keep a wanted mean number of tokens."""
    from tatok.calibration import calibrate as find
    from tatok.checkpoint import default_checkpoint, write_dtf
    from tatok.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(checkpoint, device)
    found = find(_encode(tokenizer, photos, image_size, limit), tokens, tokenizer.dtf.with_criterion(criterion))
    print(
        f"{found.num_images} photos: threshold {found.dtf.threshold:g} ({found.dtf.criterion}, "
        f"{found.dtf.threshold_kind}) keeps {found.mean_tokens:.2f} tokens on average "
        f"({found.min_tokens} to {found.max_tokens})"
    )
    if write:
        folder = Path(checkpoint) if checkpoint else default_checkpoint()
        write_dtf(folder, found.dtf)
        print(f"written to {folder}")
    else:
        print(f"use it with: tatok tokenize --threshold {found.dtf.threshold:g} ..., or keep it with --write")


def evaluate(
    photos: Photos,
    tokens: Annotated[float, typer.Option(help="Mean tokens an image at which policies are compared.")] = 56,
    checkpoint: CheckpointOption = None,
    image_size: ImageSize = 256,
    limit: Limit = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure reconstruction on held-out photos: full rate, DTF, and the policies it has to beat at equal tokens.

    DTF's thresholds are calibrated on these photos for the wanted mean. PSNR is the mean over images, in dB; `pooled`
    is that of the mean squared error over all images. `perceptual` is a MobileNetV2 feature distance times 1000,
    lower is better. Bits are codes alone, then with positions where a decoder must be told them.
    """
    from tatok.evaluation import evaluate as score
    from tatok.evaluation import standard_policies
    from tatok.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(checkpoint, device)
    encoded = _encode(tokenizer, photos, image_size, limit)
    scores = score(encoded, standard_policies(tokenizer.dtf, tokenizer.num_global, tokens))
    if as_json:
        print(json.dumps([asdict(s) for s in scores], indent=2))
        return
    print(f"{len(encoded)} photos of {image_size}x{image_size}, compared at a mean of {tokens:g} tokens")
    heading = f"{'kept patches':44} {'tokens':>7} {'PSNR':>6} {'pooled':>6} {'perceptual':>10}"
    print(f"{heading} {'bits':>6} {'+positions':>10}")
    for s in scores:
        print(
            f"{s.name:44} {s.mean_tokens:7.2f} {s.psnr_db:6.2f} {s.psnr_of_mean_db:6.2f} {s.perceptual_milli:10.1f} "
            f"{s.bits:6.0f} {s.bits_with_positions:10.0f}"
        )

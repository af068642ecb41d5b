"""What `tatok calibrate` and `tatok eval` do with photos: look into them first, then encode or rebuild them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tatok.schemas.errors import CommitError, ConfigError

if TYPE_CHECKING:
    from tatok.evaluation.calibration import EncodedPhotos
    from tatok.jobs.text.evaluation import EvaluationResult
    from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["check_writable", "encoded", "evaluate_own", "loaded"]


def check_writable(checkpoint: str) -> None:
    """Raise CommitError if the config of a checkpoint here cannot be written."""
    config = Path(checkpoint).expanduser() / "config.json"
    if not os.access(config, os.W_OK):
        raise CommitError(f"--write changes {config}, which you may not write", remedy="copy the folder, and name that")


def loaded(
    photos: Sequence[str], checkpoint: str | None, device: str | None, image_size: int, tokens: float
) -> tuple[Tokenizer, list[str]]:
    """The tokenizer and the photos' files; raises TatokError where no photo could be encoded, or not so."""
    from tatok.device import device_named
    from tatok.evaluation.calibration import check_mean
    from tatok.tokenizer.tokenizer import Tokenizer
    from tatok.training.requirements import readable_photos

    files = readable_photos(photos)
    tokenizer = Tokenizer.load(checkpoint, str(device_named(device)))
    if image_size % tokenizer.patch_size:
        raise ConfigError(
            f"--image-size is {image_size}; this tokenizer needs a multiple of its patch's {tokenizer.patch_size}"
        )
    check_mean(tokens, tokenizer.num_global, (image_size // tokenizer.patch_size) ** 2)
    return tokenizer, files


def encoded(tokenizer: Tokenizer, files: Sequence[str], image_size: int, limit: int | None) -> EncodedPhotos:
    """Centre crops of the photos, encoded at full rate; how many there are shows on a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    from tatok.evaluation.calibration import EncodedPhotos
    from tatok.training.photos import centre_crops

    columns = (SpinnerColumn(), TextColumn("encoding photos"), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as progress:
        crops = progress.track(centre_crops(files, image_size, limit), total=limit)
        return EncodedPhotos(tokenizer, crops)


def evaluate_own(
    name: str,
    options: Mapping[str, Any],
    photos: Sequence[str],
    *,
    image_size: int,
    limit: int | None,
    device: str | None,
    features: str | None,
) -> EvaluationResult:
    """Figures of a tokenizer of the user's own; `features` names the network of set distances, None for none."""
    from tatok.tokenizer.named import NamedTokenizer

    named = NamedTokenizer.of(name, options)
    named.check()  # before torch is imported, and what else takes its time

    from tatok.device import device_named
    from tatok.evaluation.comparison import evaluate_tokenizer
    from tatok.evaluation.distances import load_features
    from tatok.evaluation.requirements import check_evaluation
    from tatok.jobs.text.evaluation import EvaluationResult
    from tatok.training.photos import centre_crops
    from tatok.training.requirements import readable_photos

    check_evaluation()
    files, chosen = readable_photos(photos), str(device_named(device))
    network = None if features is None else load_features(features)
    crops = centre_crops(files, image_size, limit)
    found = evaluate_tokenizer(named.load(chosen), crops, chosen, network=network)
    return EvaluationResult(
        num_images=found.num_images, image_size=image_size, tokens=found.mean_tokens, features=features, scores=[found]
    )

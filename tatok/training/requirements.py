"""What a training run would miss hours later, asked before its first step: networks, photos, a place to write to."""

from __future__ import annotations

import os
import uuid

from tatok.evaluation.features import EfficientNetLiteFeatures, LearnedDistance
from tatok.schemas.errors import CommitError, ConfigError, SourceError
from tatok.schemas.urls import filesystem_of
from tatok.training.config import TrainingConfig
from tatok.training.photos import expand_sources
from tatok.training.run_folder import is_url

__all__ = ["check_output", "check_requirements"]


def check_requirements(config: TrainingConfig) -> None:
    """Raise the TatokError with which a run of this recipe would end later, whatever its stage.

    ConfigError for networks that are not installed, SourceError for files that cannot be opened, CommitError for an
    output that cannot be written.
    """
    check_output(config.output)
    _check_sources([*config.photos, *config.videos, *config.heldout])
    _check_networks(config)


def check_output(location: str) -> None:
    """Raise CommitError or ConfigError if no file can be made in a run's folder; what is made goes again."""
    name = f".probe-{uuid.uuid4().hex}"
    try:
        fs, folder = filesystem_of(location)
        fs.makedirs(folder, exist_ok=True)
        fs.pipe_file(f"{folder.rstrip('/')}/{name}", b"")
        fs.rm_file(f"{folder.rstrip('/')}/{name}")
    except (ImportError, ValueError) as error:
        raise ConfigError(f"output is {location!r}: {error}; install the scheme's fsspec package") from error
    except Exception as error:  # every fsspec backend has exceptions of its own
        said = str(error) or type(error).__name__
        raise CommitError(
            f"cannot write to the output {location}: {said}", remedy="check the path and your permissions"
        ) from error


def _check_sources(patterns: list[str]) -> None:
    """Local files by opening each; of those in a store the first, since there it takes a request."""
    files = expand_sources(patterns)
    for path in [path for path in files if not is_url(path)] + [path for path in files if is_url(path)][:1]:
        try:
            if is_url(path):
                fs, inner = filesystem_of(path)
                fs.info(inner)
            else:
                os.close(os.open(path, os.O_RDONLY))
        except Exception as error:  # every fsspec backend has exceptions of its own
            said = str(error) or type(error).__name__
            raise SourceError(
                f"cannot read photos from {path}: {said}", remedy="check the path and your permissions"
            ) from error


def _check_networks(config: TrainingConfig) -> None:
    """By loading each network that a stage's losses ask: an installed package may still be of no use."""
    if any(stage.perceptual_weight or stage.adversarial_weight for stage in config.stages):
        EfficientNetLiteFeatures()
    if any(stage.lpips_weight for stage in config.stages):
        LearnedDistance("alex")

"""What several tests of training begin with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tatok.training.config import TrainingConfig
from tests.support.tiny_checkpoint import tiny_training


@pytest.fixture
def config(photo_shards: Callable[..., str], tmp_path: Path) -> TrainingConfig:
    return tiny_training(photo_shards(num_shards=2, photos_per_shard=8), tmp_path)

"""What `tatok train` and `tatok adapt` do with a recipe: check it, train by it, say what comes next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tatok.schemas.errors import TatokError, together

if TYPE_CHECKING:
    from tatok.pipeline.cluster.training import TrainRun
    from tatok.training.config import TrainingConfig

__all__ = ["check_recipe", "train_by"]


def train_by(
    config: TrainingConfig,
    run: TrainRun,
    *,
    device: str | None,
    start_from: str | None,
    num_workers: int,
    address: str | None,
    quiet: bool,
) -> None:
    """Train in this process, or in several by Ray Train, and print the commands for what came of it.

    With `quiet` where the checkpoint is, and nothing else.
    """
    if num_workers > 1:
        from tatok.pipeline.cluster.training import run_training
        from tatok.training.requirements import check_requirements

        # Each worker does, once Ray has started it.
        check_requirements(config, num_workers=num_workers, start_from=start_from)
        checkpoint = run_training(
            config,
            num_workers=num_workers,
            device=device,
            address=address,
            start_from=start_from,
            say=_unheard if quiet else print,
            train=run,
        )
    else:
        from tatok.device import device_named
        from tatok.training.requirements import findings

        try:
            chosen = device_named(device)
        except TatokError as error:
            raise together([error, *findings(config, start_from=start_from).errors], "this training") from error
        checkpoint = run(config, chosen, start_from=start_from, say=_unheard if quiet else None, stop=None)
    if quiet:
        print(f"checkpoint: {checkpoint}")
        return
    heldout = " ".join(shlex.quote(each) for each in config.heldout) or "HELDOUT"
    place = f"--checkpoint {shlex.quote(checkpoint)}"
    patches = (config.stages[-1].image_size // config.model.patch_size) ** 2
    tokens = config.model.num_global + min(31, patches // 4)
    print("next:")
    print(f"  tatok calibrate {heldout} --tokens {tokens} {place} --write")
    print(f"  tatok eval {heldout} --tokens {tokens} {place}")
    print(f"  tatok tokenize SOURCE OUTPUT {place}")


def _unheard(line: str) -> None:
    pass


def check_recipe(config: TrainingConfig, *, device: str | None, start_from: str | None, num_workers: int) -> None:
    """Decode every photo, and print that nothing stands in a run's way; raises a TatokError with all that does."""
    from tatok.device import device_named
    from tatok.training.photos import expand_sources
    from tatok.training.requirements import findings, photos_read_whole
    from tatok.watching.terminal import display

    found = findings(config, num_workers=num_workers, start_from=start_from)
    errors = found.errors
    if num_workers == 1:
        found.of(lambda: device_named(device))
    num_photos = 0
    if not errors:  # else it is not known which files there are
        files = dict.fromkeys(expand_sources([*config.photos, *config.heldout]), False)
        with display() as shown, shown.counting("files whose photos are decoded", len(files)) as count:
            for path, error in photos_read_whole(config):
                num_photos += 1
                count(0 if files[path] else 1)
                files[path] = True
                if error is not None:
                    errors.append(error)
    if errors:
        raise together(errors, "this training")
    for note in found.notes:
        print(f"note: {note}")
    steps = sum(stage.steps for stage in config.stages)
    print(
        f"nothing stands in the way: {num_photos:,} photos can be decoded, {config.output} can be written to, and all "
        f"that {len(config.stages)} stages of at most {steps:,} steps need is there"
    )

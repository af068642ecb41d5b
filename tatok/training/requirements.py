"""What would end a training run, or spoil it, hours later, asked before its first step and said all at once."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from tatok.checkpoint_files import check_checkpoint
from tatok.evaluation.features import EfficientNetLiteFeatures, LearnedDistance
from tatok.schemas.errors import CommitError, ConfigError, SourceError, TatokError, together
from tatok.schemas.urls import filesystem_of
from tatok.training.config import Stage, TrainingConfig, check_batch_sizes
from tatok.training.moving_photos import VIDEO_EXTENSIONS, first_frame
from tatok.training.photos import (
    IMAGE_EXTENSIONS,
    SOURCE_EXTENSIONS,
    centre_crops,
    decoding,
    encoded_photos,
    expand_sources,
)
from tatok.training.run_folder import is_url
from tatok.watching.event_files import check_tensorboard

__all__ = [
    "Findings",
    "check_output",
    "check_requirements",
    "check_room",
    "findings",
    "photos_read_whole",
    "readable_photos",
]

MOST_LOOKED_INTO = 32  # files of a source whose first photo, or frame, is decoded at the start
_NOT_READ = ("avif", "bmp", "gif", "heic", "heif", "jp2", "jxl", "tif", "tiff")  # of images in folders
_COMPILERS = ("cc", "gcc", "clang", "c++", "g++", "clang++", "cl")


@dataclass(frozen=True, slots=True)
class Findings:
    """`errors` would end the run; `notes` are odd, and go with it."""

    errors: list[TatokError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, check: Callable[[], object]) -> None:
        """Add the TatokError that a check raises."""
        try:
            check()
        except TatokError as error:
            self.errors.append(error)


def check_requirements(
    config: TrainingConfig, *, num_workers: int = 1, start_from: str | None = None
) -> tuple[str, ...]:
    """Raise a TatokError with all the errors that `findings` finds; returns its notes."""
    found = findings(config, num_workers=num_workers, start_from=start_from)
    if found.errors:
        raise together(found.errors, "this training")
    return tuple(found.notes)


def findings(config: TrainingConfig, *, num_workers: int = 1, start_from: str | None = None) -> Findings:
    """All that would end a run of this recipe, whatever its stage, and what is odd.

    The first is an output that cannot be written, sources that are missing, damaged or empty, settings that do not go
    together, networks and compilers that are not installed. Of a source with many files some are looked into
    (`photos_read_whole` looks at all); one in a store is asked for its first file. One finding is raised as it is:
    ConfigError, SourceError or CommitError.
    """
    found = Findings()
    found.of(lambda: check_output(config.output))
    if config.tensorboard:
        found.of(lambda: check_tensorboard(config.output))
    if start_from is not None:
        found.of(lambda: check_checkpoint(start_from))
    _look_at_settings(config, num_workers, start_from, found)
    _look_at_sources(config, found)
    if any(stage.perceptual_weight or stage.adversarial_weight for stage in config.stages):
        found.of(EfficientNetLiteFeatures)  # an installed package may still be of no use
    if any(stage.lpips_weight for stage in config.stages):
        found.of(lambda: LearnedDistance("alex"))
    return found


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


def check_room(location: str, num_bytes: int) -> None:
    """Raise CommitError unless so many bytes fit onto the disk of a run's folder; a store is not asked."""
    if is_url(location):
        return
    there = next(folder for folder in (Path(location), *Path(location).absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise CommitError(
            f"the run needs about {num_bytes / 1e9:.1f} GB in {location}, and its disk has {free / 1e9:.1f} GB free",
            remedy="free space, or choose another output",
        )


def readable_photos(patterns: Sequence[str]) -> list[str]:
    """The files behind patterns; raises a TatokError with all that is wrong with them, as far as a look tells."""
    found = Findings()
    files = _files(patterns, SOURCE_EXTENSIONS, found)
    _look_into_photos(files, "photos", found)
    if found.errors:
        raise together(found.errors, "this")
    return files


def photos_read_whole(config: TrainingConfig) -> Iterator[tuple[str, SourceError | None]]:
    """Decode every photo of a recipe, held-out ones too: of each its file, and what is wrong with it or with that."""
    for path in dict.fromkeys(expand_sources([*config.photos, *config.heldout])):
        numbered = enumerate(encoded_photos(path))
        while True:
            try:
                number, payload = next(numbered)
                _decode(path, number, payload)
            except StopIteration:
                break
            except SourceError as error:
                yield path, error  # of the file: then its photos have ended, too
            else:
                yield path, None


# --- settings ----------------------------------------------------------------------------------------------------


def _look_at_settings(config: TrainingConfig, num_workers: int, start_from: str | None, found: Findings) -> None:
    found.of(lambda: check_batch_sizes(config, num_workers))
    patch = config.model.patch_size
    for stage in config.stages:
        if stage.image_size % patch:
            below = stage.image_size // patch * patch
            fitting = f"{below} or {below + patch}" if below else str(patch)
            found.errors.append(
                ConfigError(
                    f"stage {stage.name}: image_size is {stage.image_size}; it must be a multiple of patch_size, "
                    f"{patch}: {fitting}, for example"
                )
            )
        found.notes.extend(_odd_in(stage, config))
    if config.compiled and not os.environ.get("CXX") and not any(map(shutil.which, _COMPILERS)):
        found.errors.append(
            ConfigError("compiled is on, but there is no C compiler", remedy="install one, or set compiled: false")
        )
    learned = next((n for n, stage in enumerate(config.stages) if "tokenizer" in stage.train), len(config.stages))
    if learned and start_from is None and config.model.num_decoder_layers:  # else the tokenizer is one that is given
        first = config.stages[0]
        found.notes.append(
            f"stage {first.name} trains [{', '.join(first.train)}] of a tokenizer that has learned nothing yet; a "
            "model that was trained is taken with --start-from"
        )
    if config.teacher is not None and not any(stage.teacher_weight for stage in config.stages):
        found.notes.append("the teacher has no effect: no stage has a teacher_weight")
    num_vectors = config.num_start_crops * (config.stages[0].image_size // patch) ** 2
    if start_from is None and num_vectors < config.model.codebook_size:
        found.notes.append(
            f"the codebook of {config.model.codebook_size:,} starts from {num_vectors:,} patches, of "
            f"{config.num_start_crops} crops, and so from repeated ones; raise num_start_crops"
        )


def _odd_in(stage: Stage, config: TrainingConfig) -> Iterator[str]:
    if stage.native_share and (not config.photos_in_memory or stage.is_on_clips):
        yield f"stage {stage.name}: native_share has no effect without photos_in_memory, nor on clips"
    if stage.teacher_weight and "tokenizer" not in stage.train and "decoder" not in stage.train:
        yield f"stage {stage.name}: teacher_weight has no effect, for nothing is rebuilt"
    if stage.adversarial_weight and stage.adversarial_start >= stage.steps:
        yield f"stage {stage.name}: the adversary is not heard: adversarial_start is not below its {stage.steps} steps"
    if "camera" in stage.model_fields_set and not stage.is_on_clips:
        yield f"stage {stage.name}: camera has no effect on images (num_frames is 1)"


# --- sources -----------------------------------------------------------------------------------------------------


def _look_at_sources(config: TrainingConfig, found: Findings) -> None:
    takes_videos = [stage.name for stage in config.stages if stage.is_on_clips and stage.video_share]
    needs_photos = [
        stage.name for stage in config.stages if not (stage.is_on_clips and stage.video_share == 1 and config.videos)
    ]
    photos = _files(config.photos, SOURCE_EXTENSIONS, found)
    heldout = _files(config.heldout, SOURCE_EXTENSIONS, found)
    videos = _files(config.videos, VIDEO_EXTENSIONS, found)
    if needs_photos and not config.photos:
        found.errors.append(ConfigError(f"photos is empty, and stage {needs_photos[0]} trains on photos; name some"))
    _look_into_photos(photos, "photos", found)
    _look_into_photos(heldout, "heldout", found)
    if not found.errors:  # a stage begins with them: those in a store are asked then
        here = [path for path in heldout if not is_url(path)]
        found.of(lambda: deque(centre_crops(here, config.model.patch_size, config.num_heldout), maxlen=0))
    if takes_videos:
        for path in _some(videos):
            found.of(lambda path=path: first_frame(path))  # type: ignore[misc]
    elif config.videos:
        found.notes.append(
            "videos have no effect: no stage is on clips (num_frames above 1) with a video_share above 0"
        )
    found.notes.extend(note for folder in (*config.photos, *config.heldout) if (note := _left_out(folder)))
    seen = {path if is_url(path) else os.path.realpath(path) for path in photos}
    both = [path for path in heldout if (path if is_url(path) else os.path.realpath(path)) in seen]
    if both:
        others = f" and {len(both) - 1} more are" if len(both) > 1 else " is"
        found.notes.append(f"{both[0]}{others} trained on and held out, too: held-out figures will flatter")
    for folder in (*config.photos, *config.heldout):
        if os.path.isdir(folder) and not is_url(config.output) and _is_within(config.output, folder):
            found.errors.append(
                ConfigError(
                    f"output {config.output} lies in {folder}, whose images are trained on: the run's sample pictures "
                    "would be, too; choose an output beside it"
                )
            )


def _left_out(folder: str) -> str | None:
    """What a folder of photos holds of images that are not read, in words."""
    names = (name for _, _, names in os.walk(folder) for name in names if not name.startswith("."))
    counts = Counter(name.rpartition(".")[2].lower() for name in names)
    others = {each: count for each, count in counts.items() if each in _NOT_READ}
    if not others:
        return None
    said = ", ".join(f"{count:,} .{each}" for each, count in sorted(others.items()))
    return f"left out in {folder}: {said}; photos are read as .{', .'.join(IMAGE_EXTENSIONS)}"


def _is_within(path: str, folder: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _files(patterns: Sequence[str], extensions: Sequence[str], found: Findings) -> list[str]:
    """The files behind patterns, and whether each of this machine can be opened."""
    files: list[str] = []
    for pattern in patterns:
        found.of(lambda pattern=pattern: files.extend(expand_sources([pattern], extensions)))  # type: ignore[misc]
    closed = {path: error for path in files if not is_url(path) and (error := _why_closed(path)) is not None}
    found.errors.extend(closed.values())
    return [path for path in files if path not in closed]


def _why_closed(path: str) -> SourceError | None:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        return SourceError(f"cannot read photos from {path}: {error}", remedy="check the path and your permissions")
    return None


def _some(files: Sequence[str]) -> list[str]:
    """At most so many of this machine, evenly spread, and of those in a store the first, since there it takes time."""
    local = [path for path in files if not is_url(path)]
    step = max(1, len(local) / MOST_LOOKED_INTO)
    spread = [local[int(number * step)] for number in range(min(len(local), MOST_LOOKED_INTO))]
    return [*spread, *[path for path in files if is_url(path)][:1]]


def _look_into_photos(files: Sequence[str], name: str, found: Findings) -> None:
    looked_into, empty = _some(files), []
    num_before = len(found.errors)
    for path in looked_into:
        try:
            if not _has_photo(path):
                empty.append(path)
        except SourceError as error:
            remedy = (
                "check the URL and your permissions" if is_url(path) else "take the file out, or put a whole one there"
            )
            is_said = error.remedy is not None or "take it out" in str(error)
            found.errors.append(error if is_said else SourceError(str(error), is_permanent=True, remedy=remedy))
    if looked_into and len(empty) == len(looked_into) and len(found.errors) == num_before:
        found.errors.append(
            SourceError(f"no image in {', '.join(empty[:3])} ({name})", is_permanent=True, remedy="name other files")
        )
    elif empty:
        found.notes.append(f"no image in {', '.join(empty[:3])}" + (f" and {len(empty) - 3} more" * (len(empty) > 3)))


def _has_photo(path: str) -> bool:
    """Whether there is a first photo; raises SourceError if it cannot be decoded, or the file is cut off."""
    with closing(encoded_photos(path)) as photos:
        payload = next(photos, None)
    if payload is not None:
        _decode(path, 0, payload)
    if path.endswith(".tar") and not is_url(path):
        try:
            with tarfile.open(path, "r:") as tar:  # its headers alone
                for _ in tar:
                    pass
        except (tarfile.TarError, OSError) as error:
            raise SourceError(
                f"cannot read photos from {path}: as a tar it is damaged or cut off ({error})", is_permanent=True
            ) from error
    return payload is not None


def _decode(path: str, number: int, payload: bytes) -> None:
    with decoding(path, number), Image.open(io.BytesIO(payload)) as image:
        image.convert("RGB")

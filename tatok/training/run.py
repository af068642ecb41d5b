"""`tatok train`: stages of steps over random crops, with progress, figures, sample pictures and resumption.

One process or, where a process group is formed (distributed.py), each of several: all take the same steps on their own
crops; rank 0 alone looks at held-out photos, writes and speaks, while the others wait for it at the next step.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tatok.device import computes_in_bfloat16
from tatok.distributed import most_of_ranks, num_ranks, rank, sum_over_ranks
from tatok.model.quantizer import ROUNDS
from tatok.schemas.errors import SourceError
from tatok.schemas.records import count_text
from tatok.stopping import Interrupted, Stop, outlive_signals, said_of_stop, stop_by_signals
from tatok.training.canvases import latent_memory
from tatok.training.config import TrainingConfig
from tatok.training.moving_photos import VIDEO_EXTENSIONS, RandomClips
from tatok.training.photo_memory import PhotoMemory
from tatok.training.photos import RandomCrops, centre_crops, expand_sources
from tatok.training.requirements import check_requirements, check_room
from tatok.training.run_folder import ended_before
from tatok.training.stream import PlacedSamples, Samples, StreamPlace, digest_of, loader_context, num_loader_workers
from tatok.training.trainer import CHECKPOINT, Trainer
from tatok.watching.event_files import event_files
from tatok.watching.log import RunLog
from tatok.watching.pace import clock, seconds_left
from tatok.watching.records import said_of_end, steps_over_all
from tatok.watching.sheets import PictureLine
from tatok.watching.terminal import Display, display

__all__ = ["train"]

# What decides over the batches of a stage; another learning rate, say, does not.
_OF_STREAMS = {"batch_size", "image_size", "num_frames", "camera", "video_share", "smallest_crop", "native_share"}


def train(
    config: TrainingConfig,
    device: torch.device,
    *,
    start_from: str | None = None,
    say: Callable[[str], None] | None = None,
    stop: Stop | None = None,
    trainer: type[Trainer] = Trainer,
) -> str:
    """Run all stages, or resume where the output left off; returns the checkpoint folder, a path or a URL.

    Progress goes to the terminal, or line by line to `say`; figures of every `log_every_steps` steps to
    OUTPUT/metrics.jsonl, their curves to OUTPUT/curves.svg, sample pictures (original, full rate, under DTF, globals
    alone) to OUTPUT/samples/. A run that has ended is not begun again: OUTPUT/summary.json says so.
    Where a process group is formed, every rank calls this; a batch is shared among them.

    Ctrl-C and SIGTERM, or a request to `stop` (of rank 0), end the run after the step at hand, whose state is saved;
    Interrupted says so. On the CPU a run that resumes ends with the weights of one that was never stopped, to the bit,
    unless a stage ends by the clock, sources have changed, or the number of ranks or loader workers has.

    Raises what `check_requirements` does before the first step; later SourceError for a photo that cannot be decoded,
    with the state saved, and TatokError where the loss becomes infinite or NaN.
    """
    with ExitStack() as opened:
        stop = stop or opened.enter_context(stop_by_signals())
        shown = opened.enter_context(display(say, is_quiet=rank() > 0))
        recipe = digest_of(config.stages, config.model, config.seed)
        run: _Run | None = None
        try:
            if (ended := ended_before(config.output, recipe, CHECKPOINT)) is not None:
                shown.say(f"finished already, {ended.said}; another output trains anew")
                shown.say(f"checkpoint: {ended.checkpoint}")
                return ended.checkpoint
            notes = check_requirements(config, num_workers=num_ranks(), start_from=start_from)
            heldout = expand_sources(config.heldout)
            run = _Run(trainer(config, device, start_from), heldout, shown, stop, notes)
            return run.whole(recipe)
        except Interrupted as interrupt:
            if run is None or not run.has_looked:
                said = (
                    f"interrupted before the run began: {config.output} is as it was; start again with the same command"
                )
                raise Interrupted(interrupt.signal_number, said) from None
            raise run.ended_by(interrupt) from None


def _batches(
    trainer: Trainer, photos: list[str], videos: list[str], display: Display, check: Callable[[], None]
) -> Iterator[tuple[Tensor, StreamPlace]]:
    """The batches of the current stage from where it is, each with the place after it.

    `check` is called while latents are made, and may raise.
    """
    config, stage = trainer.config, trainer.config.stages[trainer.stage_index]
    has_cached = config.latents is not None and config.latents.num_cached_crops > 0
    in_memory = has_cached or (config.photos_in_memory and not stage.is_on_clips)
    num_workers = num_loader_workers(config, trainer.device)
    kind = stage.model_dump(include=_OF_STREAMS)
    made_of = digest_of(
        photos, videos, config.seed, config.video_fps, trainer.stage_index, kind, num_ranks(), in_memory or num_workers
    )
    place = StreamPlace.of((trainer.saved_run or {}).get("stream"), made_of)
    if place is None:  # one that begins in the middle of a stage gives others than the stage has had
        place = StreamPlace(made_of=made_of, began=trainer.step)
    seed = config.seed + 7919 * trainer.stage_index + 104_729 * place.began
    if has_cached:
        return _of_latents(trainer, photos, seed, place, display, check)
    if in_memory:
        return _of_memory(trainer, photos, seed, place, display)
    crops = RandomCrops(photos, stage.image_size, seed, smallest_crop=stage.smallest_crop, rank=rank())
    samples: Samples = crops
    if stage.is_on_clips:
        samples = RandomClips(
            crops,
            stage.num_frames,
            stage.camera,
            videos=videos,
            video_share=stage.video_share,
            video_fps=config.video_fps,
        )
    if not place.workers:
        place = replace(place, workers=(samples.START,) * max(1, num_workers))
    loader = DataLoader(
        PlacedSamples(samples, place),
        batch_size=stage.batch_size // num_ranks(),
        num_workers=num_workers,
        multiprocessing_context=loader_context(config, trainer.device, [*photos, *videos]),
        pin_memory=trainer.device.type == "cuda",
        worker_init_fn=outlive_signals,
    )
    return place.batches(iter(loader))


def _of_memory(
    trainer: Trainer, photos: list[str], seed: int, place: StreamPlace, display: Display
) -> Iterator[tuple[Tensor, StreamPlace]]:
    stage = trainer.config.stages[trainer.stage_index]
    if trainer.photo_memory is None or trainer.photo_memory.paths != photos:
        trainer.photo_memory = None  # freed before the next is filled
        display.say(f"decoding the photos of {count_text(len(photos), 'file')} into memory")
        trainer.photo_memory = PhotoMemory(photos, trainer.device)
        display.say(f"photos in memory: {len(trainer.photo_memory):,}")
    batches = trainer.photo_memory.batches(
        stage.batch_size // num_ranks(),
        stage.image_size,
        seed + 15_485_863 * rank(),
        smallest_crop=stage.smallest_crop,
        native_share=stage.native_share,
        num_given=place.num_given,
    )
    return ((pixels, replace(place, num_given=number)) for number, pixels in enumerate(batches, place.num_given + 1))


def _of_latents(
    trainer: Trainer, photos: list[str], seed: int, place: StreamPlace, display: Display, check: Callable[[], None]
) -> Iterator[tuple[Tensor, StreamPlace]]:
    stage = trainer.config.stages[trainer.stage_index]
    assert trainer.autoencoder is not None
    trainer.latent_memory = latent_memory(
        trainer.config,
        trainer.autoencoder,
        photos,
        trainer.folder,
        found=trainer.latent_memory,
        encode=trainer.latents,
        counting=display.counting,
        check=check,
    )
    batches = trainer.latent_memory.batches(
        stage.batch_size // num_ranks(), stage.image_size, seed + 15_485_863 * rank(), num_given=place.num_given
    )
    return ((latents, replace(place, num_given=number)) for number, latents in enumerate(batches, place.num_given + 1))


class _Run:
    """A run from where it is to its end; what it knows beside the trainer is saved with the trainer's state."""

    def __init__(
        self, trainer: Trainer, heldout: list[str], display: Display, stop: Stop, notes: Sequence[str]
    ) -> None:
        self.trainer, self.heldout, self.display, self.stop, self.notes = trainer, heldout, display, stop, notes
        self.log = RunLog(trainer.folder, display, None)
        self.batches: Iterator[tuple[Tensor, StreamPlace]] | None = None
        self.place: StreamPlace | None = None
        self.sums: dict[str, float] = defaultdict(float)  # of the terms of the steps since the last record
        self.num_steps = 0
        self.seconds = 0.0
        self.saved_at: str | None = None  # in words
        self.is_saved = True  # all that was done
        self.has_looked = False  # for an earlier state

    def whole(self, recipe: str) -> str:
        """Resume, run all stages that are left, and save; returns the checkpoint. `recipe` is the digest of it."""
        trainer, config = self.trainer, self.trainer.config
        if has_state := trainer.restore():
            self.saved_at = self._here()
        self.has_looked = True
        if has_state:
            self.display.say(f"resuming in {config.output}: stage {trainer.stage_index + 1}, step {trainer.step}")
            pending = (trainer.saved_run or {}).get("pending") or {"sums": {}, "num_steps": 0, "seconds": 0.0}
            self.sums.update(pending["sums"])
            self.num_steps, self.seconds = pending["num_steps"], pending["seconds"]
        else:
            if trainer.folder.num_dropped:
                self.display.say(
                    f"metrics.jsonl in {config.output} had {trainer.folder.num_dropped} lines of a run that saved no "
                    "state; its steps are done again, and they are left out"
                )
            check_room(config.output, trainer.num_bytes)
            for note in self.notes:
                self.display.say(f"note: {note}")
        if config.precision == "bfloat16" and not computes_in_bfloat16("auto", trainer.device):
            self.display.say(
                "this processor has no bfloat16 instructions, which makes its products about ten times as slow as "
                "float32's: better set `precision: auto`"
            )
        with ExitStack() as opened:
            if config.tensorboard and not rank():
                first = 1 + max(steps_over_all(trainer.folder.records), default=0)
                self.log.events = opened.enter_context(event_files(config.output, first))
            while trainer.stage_index < len(config.stages):
                # Looked up for each stage anew: photos may have been added since the last.
                self._stage(expand_sources(config.photos), expand_sources(config.videos, VIDEO_EXTENSIONS))
        with self.stop.held():
            self._save()
            said = said_of_end(trainer.folder.records)
            if not rank():
                trainer.folder.end(recipe, said)
        self.display.say(f"finished: {said}")
        checkpoint = trainer.folder.path(CHECKPOINT)
        self.display.say(f"checkpoint: {checkpoint}")
        return checkpoint

    def ended_by(self, interrupt: Interrupted) -> Interrupted:
        """Save what is not saved yet, unless that is not waited for; what to tell the user."""
        if not self.is_saved and not self.stop.is_urgent:
            self._save()
        said = said_of_stop(self.trainer.config.output, saved_at=self.saved_at, is_saved=self.is_saved)
        return Interrupted(interrupt.signal_number, said)

    def _here(self) -> str:
        trainer, stages = self.trainer, self.trainer.config.stages
        if trainer.stage_index == len(stages):
            return "the end of all stages"
        name = stages[trainer.stage_index].name
        return f"step {trainer.step} of stage {name} ({trainer.stage_index + 1} of {len(stages)})"

    def _save(self) -> None:
        # Sums of other ranks count through their mean, so that a run may resume on another number of them.
        sums = dict(self.sums)
        if num_ranks() > 1 and sums:
            total = sum_over_ranks(torch.tensor(list(sums.values()), dtype=torch.float64, device=self.trainer.device))
            sums = dict(zip(sums, (total / num_ranks()).tolist(), strict=True))
        pending = {"sums": sums, "num_steps": self.num_steps, "seconds": self.seconds}
        stream = (self.trainer.saved_run or {}).get("stream")  # of before, where no batch has come since
        if self.place is not None:
            stream = self.place.saved(self.trainer.device)
        self.trainer.save({"pending": pending, "stream": stream})
        self.saved_at, self.is_saved = self._here(), True

    def _stage(self, photos: list[str], videos: list[str]) -> None:
        trainer, config = self.trainer, self.trainer.config
        stage = config.stages[trainer.stage_index]
        self.batches = _batches(trainer, photos, videos, self.display, self.stop.check)
        if not trainer.is_initialised:
            self._initialise(self.batches)
        validation = None
        if self.heldout and not rank():
            validation = torch.stack(list(centre_crops(self.heldout, stage.image_size, config.num_heldout)))
        self.log.begin(stage.name, stage.judged_by)
        name = f"{stage.name} ({trainer.stage_index + 1} of {len(config.stages)})"
        bar = self.display.stage(name, stage.steps, trainer.step)
        while True:
            is_due = trainer.step % config.log_every_steps == 0 or trainer.stage_is_done
            if self.num_steps and is_due:  # at first, too, where the run was stopped just before it
                self._look(validation)
            if trainer.stage_is_done:
                break
            if config.photos_in_memory and trainer.step and trainer.step % config.save_every_steps == 0:
                found = expand_sources(config.photos)  # photos that came meanwhile are taken up
                if found != photos:
                    photos = found
                    self.place = trainer.saved_run = None
                    self.batches = _batches(trainer, photos, videos, self.display, self.stop.check)
            self._step()
            bar.advance(self._below())
        with self.stop.held():
            self.batches = self.place = trainer.saved_run = None
            trainer.next_stage()

    def _initialise(self, batches: Iterator[tuple[Tensor, StreamPlace]]) -> None:
        most, num_codebooks = self.trainer.config.num_start_crops, len(self.trainer.codebook_use())
        rounds: list[Callable[[int], None]] = []  # counted from the first on
        with ExitStack() as opened:
            count = opened.enter_context(self.display.counting("starting bases and codebooks from crops", most))

            def crops() -> Iterator[Tensor]:
                for pixels, _ in batches:
                    count(len(pixels))
                    yield pixels

            def tick() -> None:
                if not rounds:
                    counting = self.display.counting("rounds of k-means for these", ROUNDS * num_codebooks)
                    rounds.append(opened.enter_context(counting))
                rounds[0](1)

            self.trainer.initialise(crops(), tick)

    def _below(self) -> str:
        """The line under the bars."""
        if not self.num_steps or not self.display.has_bars:
            return ""
        pace = self.num_steps / self.seconds
        left = f"all stages: about {clock(self._seconds_left(1 / pace))} left"
        parts = [left, f"{pace:.3g} steps/s", f"lr {self.trainer.learning_rate:.1e}", self.log.best]
        return " · ".join(part for part in parts if part)

    def _seconds_left(self, seconds_a_step: float) -> float:
        trainer = self.trainer
        stages = trainer.config.stages[trainer.stage_index :]
        works = [stage.work_left(0, 0.0) for stage in stages]
        works[0] = stages[0].work_left(trainer.step, trainer.stage_seconds)
        return seconds_left(works, seconds_a_step)

    def _step(self) -> None:
        assert self.batches is not None
        started = time.monotonic()
        try:
            pixels, place = next(self.batches)
        except SourceError:
            if not self.is_saved and num_ranks() == 1:
                with self.stop.held():
                    self._save()  # the photo taken out, the run resumes here
            raise
        # Where all there is lies in the folder, a stop need not wait: not for layers to be compiled, for one.
        with nullcontext() if self.is_saved and num_ranks() == 1 else self.stop.held():
            for name, value in self.trainer.train_step(pixels).items():
                self.sums[name] += value
            self.num_steps, self.place = self.num_steps + 1, place
            self.seconds += time.monotonic() - started
            self.is_saved = False
        self._agree_to_stop()

    def _agree_to_stop(self) -> None:
        """Raise Interrupted, on all ranks, if any is to stop."""
        if wished := most_of_ranks(self.stop.signal_number or 0, self.trainer.device):
            self.stop.request(wished)
        self.stop.check()

    def _look(self, validation: Tensor | None) -> None:
        """A record of the steps since the last, with held-out figures and a saved state where it is time for these."""
        trainer, config = self.trainer, self.trainer.config
        stage = config.stages[trainer.stage_index]
        totals = sum_over_ranks(torch.tensor(list(self.sums.values()), device=trainer.device))
        totals /= self.num_steps * num_ranks()
        hours = (trainer.seconds + self.seconds) / 3600
        record: dict[str, float | str] = {"stage": stage.name, "step": trainer.step}
        record |= dict(zip(self.sums, totals.tolist(), strict=True))
        record |= {"images_per_s": self.num_steps * stage.batch_size / self.seconds, "hours": hours}
        record["learning_rate"] = trainer.learning_rate
        record |= trainer.codebook_use()
        is_round = trainer.step % config.save_every_steps == 0 or trainer.stage_is_done
        pictures: tuple[PictureLine, ...] | None = None
        if is_round and validation is not None:
            try:
                figures, pictures = trainer.validate(validation, self.stop.check)
                record |= figures
            except Interrupted:
                if num_ranks() == 1:
                    raise
        if is_round and self.heldout:
            self._agree_to_stop()  # the other ranks wait here, where all can still stop at the same step
        with self.stop.held():
            if not rank():
                pace = self.num_steps / self.seconds
                left_s = self._seconds_left(1 / pace)
                self.log.add(record, judged_by=stage.judged_by, steps_per_s=pace, left_s=left_s)
                if pictures is not None:
                    name = f"samples/{trainer.stage_index}-{stage.name}-{trainer.step:06d}.png"
                    self.log.show(name, pictures)
                if is_round:
                    self.log.draw()
            trainer.seconds += self.seconds
            self.sums.clear()
            self.num_steps, self.seconds, self.is_saved = 0, 0.0, False
            if is_round:
                self._save()

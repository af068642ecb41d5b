"""Trainer: one optimizer step at a time; moving averages, saved state, held-out figures.

Several ranks (distributed.py) train one model: each has a trainer of its own and steps on its own share of the batch.
Weights start alike, gradients and codebooks are averaged, so weights stay alike; kept sets are drawn by each rank for
itself.
"""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tatok.autoencoders.latent_memory import LatentMemory
from tatok.device import compile_layers, computes_in_bfloat16
from tatok.distributed import average_over_ranks, broadcast_from_first, num_ranks, rank, ranks_agree
from tatok.evaluation.features import EfficientNetLiteFeatures, LearnedDistance
from tatok.model.autoencoder import TaTok
from tatok.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tatok.model.pixels import to_float
from tatok.model.prior import Prior
from tatok.schemas.errors import ConfigError, TatokError
from tatok.training import canvases
from tatok.training.adversary import Adversary, Views
from tatok.training.config import Stage, TrainingConfig
from tatok.training.losses import Losses
from tatok.training.photo_memory import PhotoMemory
from tatok.training.photos import random_of
from tatok.training.run_folder import RunFolder
from tatok.watching.heldout import look_at
from tatok.watching.sheets import PictureLine

__all__ = ["CHECKPOINT", "Trainer"]

STATE = "state.pt"
CHECKPOINT = "checkpoint"


class Trainer:
    """Models, their moving averages, and the optimizer of the current stage.

    One of other models than TaTok gives `LOSSES`, `new_models` and `loaded` of its own.
    """

    LOSSES: type[Losses] = Losses

    def __init__(self, config: TrainingConfig, device: torch.device, start_from: str | None = None) -> None:
        config, self.autoencoder = canvases.autoencoder_beneath(config, device)
        self.teacher = canvases.frozen_teacher(config, device)
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device
        self.folder = RunFolder(config.output)
        if start_from is None:
            self.model, self.prior = self.new_models()
        else:
            checkpoint = self.loaded(start_from)
            self.model, self.prior = checkpoint.model, checkpoint.prior
            if checkpoint.model.config != config.model:
                has_tokenizer = checkpoint.model.config.has_tokenizer_of(config.model)
                if not has_tokenizer or "prior" not in config.stages[0].train:
                    raise ConfigError(
                        f"{start_from} has {checkpoint.model.config}, but the training file {config.model}; only the "
                        "prior may be another, and then the first stage must train it"
                    )
                self.model.config, self.prior = config.model, Prior(config.model)
        canvases.put_beneath(self.model.canvas, self.autoencoder)
        self.modules = nn.ModuleDict({"tatok": self.model, "prior": self.prior}).to(device)
        self.average = copy.deepcopy(self.modules)
        self.is_initialised = start_from is not None
        self.stage_index = 0
        self.step = 0
        self.optimizer: torch.optim.AdamW | None = None
        self.perceptual: EfficientNetLiteFeatures | None = None
        self.lpips: LearnedDistance | None = None
        self.adversary: Adversary | None = None
        self.adversary_optimizer: torch.optim.AdamW | None = None
        self.seconds = 0.0
        self.stage_seconds = 0.0
        self._stepped_at: float | None = None
        self._seen: list[tuple[Views, Views]] = []
        self.photo_memory: PhotoMemory | None = None
        self.latent_memory: LatentMemory | None = None
        self.saved_run: dict[str, Any] | None = None
        self._saved_adversary: tuple[dict[str, Tensor] | None, dict[str, Any] | None] = (None, None)
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # shapes stay the same for thousands of steps
        if config.compiled:
            compile_layers(self.modules)

    def new_models(self) -> tuple[TaTok, Prior]:
        """The models of the configuration, untrained."""
        return TaTok(self.config.model), Prior(self.config.model)

    def loaded(self, place: str) -> Checkpoint:
        """A checkpoint to start from."""
        return load_checkpoint(place)

    # --- state -----------------------------------------------------------------------------------------------

    def save(self, run: Mapping[str, Any] | None = None) -> None:
        """Write the state to resume from, and the averaged weights as a checkpoint; each file atomically.

        Only rank 0 writes; the state is the same on all ranks and does not depend on how many there are. `run` is
        whatever else the caller wants back, as `saved_run`, after restoring.
        """
        if rank():
            return
        quantizers = {"global": self.model.global_quantizer, "patch": self.model.patch_quantizer}
        state = {
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "codebooks": {k: {"count": q.ema_count_K, "sum": q.ema_sum_KC} for k, q in quantizers.items()},
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "stage_index": self.stage_index,
            "step": self.step,
            "seconds": self.seconds,
            "stage_seconds": self.stage_seconds,
            # One that no stage has asked for since the run was resumed is kept for those that will.
            "adversary": self._saved_adversary[0] if self.adversary is None else self.adversary.state_dict(),
            "adversary_optimizer": None if self.adversary_optimizer is None else self.adversary_optimizer.state_dict(),
            "autoencoder": None if self.autoencoder is None else self.autoencoder.space.sha256,
            "teacher": None if self.teacher is None else self.teacher.space.sha256,
            "num_records": self.folder.num_records,
            "run": None if run is None else dict(run),
        }
        self.folder.sync_records()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.folder.write(STATE, buffer.getvalue())
        self.folder.write_checkpoint(CHECKPOINT, lambda path: save_checkpoint(path, *self.averaged(), self.config.dtf))

    def averaged(self) -> tuple[TaTok, Prior]:
        """The models under their moving averages: what checkpoints and validation use."""
        model, prior = self.average["tatok"], self.average["prior"]
        assert isinstance(model, TaTok)
        assert isinstance(prior, Prior)
        return model, prior

    def restore(self) -> bool:
        """Go on from the state in the output folder, if there is one; all ranks must call this together.

        Raises ConfigError where it was written for another model, or where the ranks do not all see the same.
        """
        path = self.folder.path(STATE)
        data = self.folder.read(STATE)
        if data is not None:
            self._restore(data, path)
        elif not rank():
            self.folder.keep_records(0)  # of a run that was killed before it had saved anything: its steps come again
        if not ranks_agree([data is not None, self.stage_index, self.step], self.device):
            raise ConfigError(f"the workers do not all see the same {path}; output must be a URL or a shared folder")
        return data is not None

    def _restore(self, data: bytes, path: str) -> None:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location=self.device)
        canvases.refuse_another(state.get("autoencoder"), self.autoencoder, path, "autoencoder")
        canvases.refuse_another(state.get("teacher"), self.teacher, path, "teacher")
        try:
            self.modules.load_state_dict(state["modules"])
        except RuntimeError as error:
            raise ConfigError(f"{path} was written for another model; choose another output: {error}") from error
        self.average.load_state_dict(state["average"])
        for name, quantizer in (("global", self.model.global_quantizer), ("patch", self.model.patch_quantizer)):
            quantizer.ema_count_K.copy_(state["codebooks"][name]["count"])
            quantizer.ema_sum_KC.copy_(state["codebooks"][name]["sum"])
        self.stage_index, self.step, self.seconds = state["stage_index"], state["step"], state["seconds"]
        self.stage_seconds = state.get("stage_seconds", 0.0)
        self.saved_run = state.get("run")
        self._saved_adversary = state.get("adversary"), state.get("adversary_optimizer")
        self.is_initialised = True
        if self.stage_index < len(self.config.stages) and state["optimizer"] is not None:
            self._start_stage()
            assert self.optimizer is not None
            try:
                self.optimizer.load_state_dict(state["optimizer"])
            except ValueError as error:
                raise ConfigError(
                    f"{path} was saved in the middle of a stage by another version of tatok ({error}); resume with it, "
                    "or take its checkpoint with --start-from, to another output"
                ) from error
            if self.adversary_optimizer is not None and self._saved_adversary[1] is not None:
                self.adversary_optimizer.load_state_dict(self._saved_adversary[1])
        if not rank():
            self.folder.keep_records(state.get("num_records"))  # None: an older state, which does not say

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """What the autoencoder beneath makes of uint8 images [B, 3, H, W], in the precision of training."""
        assert self.autoencoder is not None
        with self._autocast():
            return self.autoencoder.encode(to_float(pixels.to(self.device)))

    @torch.no_grad()
    def initialise(self, crops: Iterator[Tensor], tick: Callable[[], None] = lambda: None) -> None:
        """PCA bases and k-means codebooks from rank 0's random crops, a batch as `train_step` takes it.

        `tick` is called after each round of k-means.
        """
        if not rank():
            self._start_from_data(crops, tick)
        broadcast_from_first([*self.modules.parameters(), *self.modules.buffers()])
        self.average.load_state_dict(self.modules.state_dict())
        self.is_initialised = True

    def _start_from_data(self, crops: Iterator[Tensor], tick: Callable[[], None]) -> None:
        batches: list[Tensor] = []
        while sum(len(batch) for batch in batches) < self.config.num_start_crops:
            crop = next(crops)
            batches.append(crop if crop.ndim == 4 else crop[:, 0])
        self.model.eval()
        self.model.start_from(canvases.to_start_from(self.model.canvas, batches, self.device, self.config), tick)

    # --- steps -----------------------------------------------------------------------------------------------

    def losses(self, pixels: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The weighted terms whose sum is minimised, of float images [B, 3, H, W] or clips, in [-1, 1]."""
        losses = self.LOSSES(
            model=self.model,
            prior=self.prior,
            dtf=self.config.dtf,
            perceptual=self.perceptual,
            lpips=self.lpips,
            teacher=self.teacher,
            adversary=self.adversary,
            adversarial_scale=min(1.0, max(0.0, (self.step - stage.adversarial_start) / stage.adversarial_ramp)),
        )
        terms = losses.of_clips(pixels, stage) if pixels.ndim == 5 else losses.of_images(pixels, stage)
        self._seen = losses.seen
        return terms

    def _start_stage(self) -> None:
        stage = self.config.stages[self.stage_index]
        self.modules.requires_grad_(False)
        parts: dict[str, nn.Module] = {"tokenizer": self.model, "decoder": self.model.decoder, "prior": self.prior}
        groups = []
        for name in stage.train:
            parts[name].requires_grad_(True)
            parameters = list(parts[name].parameters())
            own_rate = stage.prior_learning_rate if name == "prior" else None
            of_rate = {"share": 1.0 if own_rate is None else own_rate / stage.learning_rate}
            groups += [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": stage.weight_decay, **of_rate},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, **of_rate},
            ]
        self.optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.99), fused=True)
        self._start_networks(stage)

    def _start_networks(self, stage: Stage) -> None:
        """The networks that the stage's losses ask; the adversary, once there, continues from stage to stage."""
        if (stage.perceptual_weight or stage.adversarial_weight) and self.perceptual is None:
            self.perceptual = EfficientNetLiteFeatures().to(self.device)
        if stage.lpips_weight and self.lpips is None:
            self.lpips = LearnedDistance("alex").to(self.device)
        if stage.adversarial_weight and self.adversary is None:
            assert self.perceptual is not None
            with torch.no_grad():
                maps = self.perceptual(torch.zeros(1, 3, 64, 64, device=self.device))
            self.adversary = Adversary([each.shape[1] for each in maps]).to(self.device)
            if self._saved_adversary[0] is not None:
                self.adversary.load_state_dict(self._saved_adversary[0])
            broadcast_from_first([*self.adversary.parameters(), *self.adversary.buffers()])
        if self.adversary is not None and stage.adversarial_weight:
            self.adversary_optimizer = torch.optim.AdamW(
                self.adversary.parameters(), lr=stage.adversary_learning_rate, betas=(0.5, 0.99), weight_decay=0.0
            )

    def train_step(self, pixels: Tensor) -> dict[str, float]:
        """One optimizer step on this rank's share of the batch; its own loss terms.

        Pixels are uint8 images [B, 3, H, W] or, in a stage of `num_frames` > 1, clips [B, T, 3, H, W]; in their place
        there may be latents, float [B, A, h, w], as the autoencoder beneath makes them. Random numbers
        are seeded by seed, stage, step and rank, so that a step is the same however often the run was resumed.
        Raises TatokError, on all ranks, where the loss of any is not finite.
        """
        stage = self.config.stages[self.stage_index]
        of_step = random_of(self.config.seed, "rank", rank(), "stage", self.stage_index, "step", self.step)
        seed = of_step.getrandbits(63)
        torch.manual_seed(seed)
        if self.optimizer is None:
            self._start_stage()
            torch.manual_seed(seed)  # networks that are made anew where the run was resumed have drawn
        assert self.optimizer is not None
        self.modules.eval()
        self.model.train("tokenizer" in stage.train)  # only this lets the codebooks move
        for group in self.optimizer.param_groups:
            share = group.get("share", 1.0)  # older states have none
            group["lr"] = self.learning_rate * share
        if self.adversary is not None:
            self.adversary.eval().requires_grad_(False)
        with self._autocast():
            terms = self.losses(canvases.on_canvas(self.model.canvas, pixels, self.device), stage)
        values = torch.stack([value.float() for value in terms.values()])
        self.optimizer.zero_grad(set_to_none=True)
        values.sum().backward()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        total = values.detach().sum()
        average_over_ranks([*(p.grad for p in trained if p.grad is not None), total])
        if not torch.isfinite(total):
            raise TatokError(
                f"the loss is {float(total)} at step {self.step} of stage {stage.name}; lower its learning_rate or set "
                f"precision: float32, and run again: it resumes from the last state in {self.folder.location}"
            )
        for part in (self.model, self.prior):  # of each, so that neither's gradient shortens the other's steps
            if own := [p for p in part.parameters() if p.grad is not None]:
                nn.utils.clip_grad_norm_(own, 1.0)
        self.optimizer.step()
        self._update_average()
        if self._seen:
            terms["adversary"] = self._adversary_step()
            values = torch.cat([values, terms["adversary"][None]])
        self.step += 1
        figures = dict(zip(terms, values.tolist(), strict=True))
        now = time.monotonic()
        self.stage_seconds += 0.0 if self._stepped_at is None else now - self._stepped_at
        self._stepped_at = now
        if stage.max_minutes is not None and num_ranks() > 1:  # all must end it at the same step
            seconds = torch.tensor(self.stage_seconds, dtype=torch.float64, device=self.device)
            broadcast_from_first([seconds])
            self.stage_seconds = float(seconds)
        return figures

    def _adversary_step(self) -> Tensor:
        """One step of the adversary on what it saw in this step; its loss."""
        assert self.adversary is not None
        assert self.adversary_optimizer is not None
        self.adversary.train().requires_grad_(True)
        with self._autocast():
            loss = torch.stack([self.adversary.own_loss(real, fake) for real, fake in self._seen]).mean()
        self._seen = []
        self.adversary_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        own = [p.grad for p in self.adversary.parameters() if p.grad is not None]
        average_over_ranks([*own, self.adversary.real_mean, self.adversary.fake_mean])
        self.adversary_optimizer.step()
        return loss.detach().float()

    def next_stage(self) -> None:
        """Go on to the next stage, with an optimizer and a clock of its own."""
        self.stage_index += 1
        self.step = 0
        self.stage_seconds = 0.0
        self._stepped_at = None
        self.optimizer = None

    def codebook_use(self) -> dict[str, float]:
        """Perplexity of each codebook."""
        shares = {}
        for name in ("global", "patch") if self.config.model.num_global else ("patch",):
            quantizer = getattr(self.model, f"{name}_quantizer")
            p = quantizer.ema_count_K / quantizer.ema_count_K.sum()
            shares[f"perplexity_{name}"] = float(torch.exp(-(p * p.clamp_min(1e-12).log()).sum()))
        return shares

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.config.stages[self.stage_index].learning_rate_at(self.step, self.stage_seconds)

    @property
    def num_bytes(self) -> int:
        """About what a run has on its disk at most, beside cached latents: states and checkpoints, old ones and new."""
        weights = sum(each.numel() * each.element_size() for each in self.modules.parameters())
        return 2 * 5 * weights  # weights, their averages, two moments of them, and the checkpoint

    @property
    def stage_is_done(self) -> bool:
        """Whether the current stage has had its steps or its minutes."""
        return self.config.stages[self.stage_index].progress(self.step, self.stage_seconds) >= 1

    def _autocast(self) -> torch.autocast:
        is_low = computes_in_bfloat16(self.config.precision, self.device)
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_low)

    @torch.no_grad()
    def _update_average(self) -> None:
        # Warmed up anew in every stage: the average of a part that starts to learn must not hold on to what it was.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.modules.parameters(), strict=True)
        means, values = zip(*((mean, value) for mean, value in pairs if value.requires_grad), strict=True)
        torch._foreach_lerp_(means, values, 1 - decay)
        # Codebooks are moving averages already.
        torch._foreach_copy_(list(self.average.buffers()), list(self.modules.buffers()))

    def validate(self, pixels: Tensor, check: Callable[[], None]) -> tuple[dict[str, float], tuple[PictureLine, ...]]:
        """Held-out figures of the averaged weights, and pictures in rows; see `look_at`."""
        self.average.eval()
        model, prior = self.averaged()
        return look_at(pixels, model, prior, self.config.dtf, self.device, autocast=self._autocast, check=check)

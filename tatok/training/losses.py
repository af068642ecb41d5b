"""What a training step minimises: the losses of images, and of clips, frame after frame as the decoder will show them.

A clip's first frame is an image and has an image's losses. A later one follows the frame before it *as decoded by the
model that is trained*, under kept sets and renewed globals drawn at random; no gradient reaches back to that frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tatok.autoencoders.frozen import FrozenAutoencoder
from tatok.distributed import num_ranks, sum_over_ranks
from tatok.evaluation.features import EfficientNetLiteFeatures, LearnedDistance, perceptual_distance
from tatok.model.autoencoder import Encoded, TaTok
from tatok.model.dtf import DTFSettings, position_bits
from tatok.model.pixels import to_float, to_pixels
from tatok.model.prior import Prior, code_statistics, soft_surprisal
from tatok.training.adversary import Adversary, Views
from tatok.training.config import KeptMixture, Stage

__all__ = ["Losses", "choose_kept"]


def _above_share(values: Tensor) -> Tensor:
    """Those above a threshold over the whole batch whose share is drawn at random."""
    share = float(torch.rand(()) ** 2)  # small shares are what DTF is for
    values = values.float()
    return values > values.flatten().kthvalue(max(1, round((1 - share) * values.numel()))).values


def choose_kept(
    scores_BN: Tensor, by_dtf_BN: Tensor | None, mixture: KeptMixture, by_residual_BN: Tensor | None = None
) -> Tensor:
    """Kept sets, bool [B, N], of the kinds that `mixture` asks for, each image's kind drawn at random.

    `scores_BN` is the energy of each patch's code; `by_dtf_BN` what DTF's criterion gives, needed if `mixture.dtf`, and
    `by_residual_BN` how far each patch's pixels are from the base image, needed if `mixture.residual`.
    """
    num_images, num_positions = scores_BN.shape
    device = scores_BN.device
    weights = torch.tensor([mixture.none, mixture.full, mixture.random, mixture.energy, mixture.dtf, mixture.residual])
    kind_B1 = torch.multinomial(weights, num_images, replacement=True).to(device)[:, None]
    ratio_B1 = torch.rand(num_images, 1, device=device)
    random_BN = torch.rand(num_images, num_positions, device=device) < ratio_B1

    kept = torch.where(kind_B1 == 2, random_BN, kind_B1 == 1)
    kept = torch.where(kind_B1 == 3, _above_share(scores_BN), kept)
    if by_dtf_BN is not None:
        kept = torch.where(kind_B1 == 4, _above_share(by_dtf_BN), kept)
    if by_residual_BN is not None:
        kept = torch.where(kind_B1 == 5, _above_share(by_residual_BN), kept)
    return kept


class _Shown(NamedTuple):
    """A frame of each clip as decoded, float [B, 3, H, W] in [-1, 1], and the latest codes of its globals [B, M]."""

    pixels_B3HW: Tensor
    global_BM: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The weighted terms, by name, whose sum a step minimises; images are canvases (tatok.autoencoders.canvas).

    Squared errors are the canvas's own, which of latents are near those of what is drawn of them. Networks look at
    what is drawn.
    """

    model: TaTok
    prior: Prior
    dtf: DTFSettings
    perceptual: EfficientNetLiteFeatures | None = None
    lpips: LearnedDistance | None = None
    teacher: FrozenAutoencoder | None = None
    adversary: Adversary | None = None
    adversarial_scale: float = 1.0
    """Of the stage's adversarial weight; below 1 while it is ramped up."""
    seen: list[tuple[Views, Views]] = field(default_factory=list)
    """Real and rebuilt images as the adversary saw them, for its own step."""

    def of_images(self, images: Tensor, stage: Stage) -> dict[str, Tensor]:
        """Of images [B, 3, H, W]."""
        terms, _, _ = self._of_images(images, stage)
        return terms

    def of_clips(self, clips_BT3HW: Tensor, stage: Stage) -> dict[str, Tensor]:
        """Of clips of T >= 1 frames: the first one's as an image, and the means over the others (`..._after`)."""
        first, *later = clips_BT3HW.unbind(1)
        terms, encoded, rebuilt = self._of_images(first, stage)
        if rebuilt is None:
            with torch.no_grad():
                kept_BN = self._kept(encoded, first, stage)
                rebuilt = self._decoded(encoded, kept_BN, first)
        shown = _Shown(_as_shown(rebuilt), encoded.globals_BMC.codes)
        # Most codes of frames that follow say that nothing changed; they would draw the codebooks there.
        codebooks_move = self.model.training
        self.model.eval()
        for frame in later:
            of_frame, shown = self._of_following(frame, shown, stage)
            for name, term in of_frame.items():
                terms[name] = terms.get(name, 0.0) + term / len(later)
        self.model.train(codebooks_move)
        return terms

    # --- images ----------------------------------------------------------------------------------------------

    def _of_images(self, images: Tensor, stage: Stage) -> tuple[dict[str, Tensor], Encoded, Tensor | None]:
        """The terms, and what they came from; nothing is rebuilt where only the prior is trained."""
        terms: dict[str, Tensor] = {}
        grid = self.model.grid(images)
        with torch.set_grad_enabled("tokenizer" in stage.train):
            encoded = self.model.encode(images)
        if "prior" in stage.train:
            terms["prior"] = self._surprisal(encoded, grid)
        rebuilt = None
        if "tokenizer" in stage.train or "decoder" in stage.train:
            kept = self._kept(encoded, images, stage)
            if "tokenizer" not in stage.train:  # the base's gradient is the decoder's
                encoded = encoded._replace(base_BNP=self.model.base(encoded.globals_BMC.vectors, grid))
            rebuilt = self._decoded(encoded, kept, images)
            terms |= self._of_rebuilt(rebuilt, images, stage)
            if stage.rate_weight:
                terms["rate"] = stage.rate_weight * self._rate(encoded, kept, grid)
            if self.model.has_cells:
                terms["base"] = stage.base_weight * F.mse_loss(encoded.base_BNP, self.model.patches(images))
        if "tokenizer" in stage.train:
            # As an error a pixel, like the other terms: a code's dimensions span cell_pixels or patch_pixels pixels.
            config = self.model.config
            commitment = encoded.globals_BMC.commitment * (config.code_dim / config.cell_pixels)
            if stage.kept.shows_patches:  # else they would draw the encoder to codes that nobody sees
                commitment = commitment + encoded.patches_BNC.commitment * (config.code_dim / config.patch_pixels)
            terms["commitment"] = stage.commitment_weight * commitment
        return terms, encoded, rebuilt

    def _decoded(self, encoded: Encoded, kept_BN: Tensor, images: Tensor) -> Tensor:
        vectors = encoded.globals_BMC.vectors, encoded.patches_BNC.vectors
        return self.model.decode(*vectors, kept_BN, encoded.base_BNP, self.model.grid(images))

    def _logits(self, encoded: Encoded, visible_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        logits: Tensor = self.prior(
            encoded.globals_BMC.vectors.detach(),
            encoded.base_BNP.detach(),
            encoded.patches_BNC.vectors.detach(),
            visible_BN,
            self.model.coordinates(grid),
        )
        return logits

    def _surprisal(self, encoded: Encoded, grid: tuple[int, int]) -> Tensor:
        """Mean surprisal, in nats, of the codes of hidden positions, drawn at random."""
        codes_BN = encoded.patches_BNC.codes
        num_images, device = len(codes_BN), codes_BN.device
        visible = torch.rand(codes_BN.shape, device=device)
        # Half of the images show nothing but the globals: one-shot DTF asks exactly that.
        ratio = torch.rand(num_images, 1, device=device) * (torch.rand(num_images, 1) < 0.5).to(visible)
        visible = visible < ratio
        logits = self._logits(encoded, visible, grid)
        # A mean over all ranks' hidden positions, whose numbers differ: their gradients are averaged afterwards.
        num_hidden = sum_over_ranks((~visible).sum()).clamp_min(1)
        surprisal_BN = F.cross_entropy(logits.flatten(0, 1), codes_BN.flatten(), reduction="none").view_as(visible)
        return (surprisal_BN * ~visible).sum() * num_ranks() / num_hidden

    def _kept(self, encoded: Encoded, images: Tensor, stage: Stage) -> Tensor:
        """Kept sets, bool [B, N], of the stage's mixture."""
        vectors, grid = encoded.patches_BNC.vectors, self.model.grid(images)
        residual_BN = (self.model.patches(images) - encoded.base_BNP.detach()).square().sum(-1)
        by_dtf = None
        if stage.kept.dtf:
            with torch.no_grad():
                nothing = torch.zeros(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
                codes, codebook = encoded.patches_BNC.codes, self.model.patch_quantizer.codebook_KC
                statistics = code_statistics(self._logits(encoded, nothing, grid), codes, codebook)
                by_dtf = position_bits(statistics, self.dtf.ranking_all(), residual_BN)
        by_residual = residual_BN if stage.kept.residual else None
        return choose_kept(vectors.detach().square().sum(-1), by_dtf, stage.kept, by_residual)

    def _of_rebuilt(self, rebuilt: Tensor, images: Tensor, stage: Stage) -> dict[str, Tensor]:
        """The terms that compare images; those by networks look at one window, drawn at random for the batch."""
        if self.adversary is None or not stage.adversarial_weight:
            return self._compared(rebuilt, images, stage)[0]
        # The adversary's gradient is scaled to that of the other terms where they meet, on the rebuilt images; one
        # surrogate, worth nothing, then carries both further back.
        shown = rebuilt.detach().requires_grad_()
        terms, real, fake = self._compared(shown, images, stage)
        assert real is not None
        assert fake is not None
        self.seen.append((real.detached(), fake.detached()))
        gradient = torch.autograd.grad(torch.stack(list(terms.values())).sum(), shown, retain_graph=True)[0]
        terms = {name: term.detach() for name, term in terms.items()}
        scale = stage.adversarial_weight * self.adversarial_scale
        if scale:
            verdict = self.adversary.loss_of_rebuilt(fake)
            (of_verdict,) = torch.autograd.grad(verdict, shown)
            weight = scale * gradient.norm() / of_verdict.norm().clamp_min(1e-12)
            gradient = gradient + weight * of_verdict
            terms["adversarial"] = (weight * verdict).detach()
        carrier = (rebuilt * gradient).sum()
        terms["pixel"] = terms["pixel"] + carrier - carrier.detach()
        return terms

    def _compared(
        self, rebuilt: Tensor, images: Tensor, stage: Stage
    ) -> tuple[dict[str, Tensor], Views | None, Views | None]:
        terms = {"pixel": stage.pixel_weight * F.mse_loss(rebuilt, images)}
        if not stage.looks_at_windows:
            return terms, None, None
        size = min(stage.perceptual_size // self.model.config.factor, images.shape[-2], images.shape[-1])
        top = int(torch.randint(images.shape[-2] - size + 1, ()))
        left = int(torch.randint(images.shape[-1] - size + 1, ()))
        window = (..., slice(top, top + size), slice(left, left + size))
        canvas = self.model.canvas
        with torch.no_grad():
            real = canvas.images(images[window])
        fake = canvas.images(rebuilt[window])
        if stage.drawn_weight:
            terms["drawn"] = stage.drawn_weight * F.mse_loss(fake, real)
        if fake.is_cuda:
            real, fake = (each.contiguous(memory_format=torch.channels_last) for each in (real, fake))
        views: tuple[Views, Views] | tuple[None, None] = (None, None)
        if stage.perceptual_weight or stage.adversarial_weight:
            assert self.perceptual is not None
            with torch.no_grad():
                views_real = Views(real, self.perceptual(real))
            views = views_real, Views(fake, self.perceptual(fake))
            if stage.perceptual_weight:
                distance = perceptual_distance(views[1].features, views_real.features).mean()
                terms["perceptual"] = stage.perceptual_weight * distance
        if stage.lpips_weight:
            assert self.lpips is not None
            with torch.no_grad():
                reference = self.lpips.features(real)
            terms["lpips"] = stage.lpips_weight * self.lpips(fake, reference).mean()
        if stage.teacher_weight:
            terms["teacher"] = stage.teacher_weight * self._by_teacher(fake, real)
        return terms, *views

    def _by_teacher(self, fake: Tensor, real: Tensor) -> Tensor:
        assert self.teacher is not None
        height, width = (side - side % self.teacher.space.factor for side in real.shape[-2:])
        with torch.no_grad():
            wanted = self.teacher.encode(real[..., :height, :width])
        return F.mse_loss(self.teacher.encode(fake[..., :height, :width]), wanted)

    def _rate(self, encoded: Encoded, kept_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Bits a pixel value that the kept codes cost given the globals, with a gradient for codes and globals."""
        globals_BMC, patches, base = encoded.globals_BMC.vectors, encoded.patches_BNC, encoded.base_BNP
        logits = self.prior(
            globals_BMC, base, patches.vectors.detach(), torch.zeros_like(kept_BN), self.model.coordinates(grid)
        )
        # As wide as quantization errors are: neighbours of a code share in it.
        temperature = patches.commitment.detach().clamp_min(1e-6)
        bits_BN = soft_surprisal(logits, patches.vectors, self.model.patch_quantizer.codebook_KC, temperature)
        return (bits_BN * kept_BN).sum() / base.numel()

    # --- frames of a clip that follow another -------------------------------------------------------------------

    def _of_following(self, images: Tensor, before: _Shown, stage: Stage) -> tuple[dict[str, Tensor], _Shown]:
        """The terms of frames that follow others, and what will be shown of them."""
        model, grid, terms = self.model, self.model.grid(images), dict[str, Tensor]()
        renewed_BM = self._renewed(images, before)
        with torch.set_grad_enabled("tokenizer" in stage.train):
            trunk = model.look(images)
            still = model.global_quantizer.decode(before.global_BM)
            new = trunk.globals_BMC
            globals_BMC = torch.where(renewed_BM[:, :, None], new.vectors, still)
            base = model.base_after(globals_BMC, renewed_BM, before.pixels_B3HW)
            patches = model.refine(trunk, globals_BMC, base, grid)
        encoded = Encoded(new._replace(vectors=globals_BMC), patches, base)
        if "prior" in stage.train:
            terms["prior_after"] = self._surprisal(encoded, grid)
        with torch.set_grad_enabled("tokenizer" in stage.train or "decoder" in stage.train):
            kept_BN = self._kept(encoded, images, stage)
            rebuilt = model.decode_after(globals_BMC, patches.vectors, kept_BN, renewed_BM, before.pixels_B3HW)
            if "tokenizer" in stage.train or "decoder" in stage.train:
                terms["pixel_after"] = F.mse_loss(rebuilt, images)
        if "tokenizer" in stage.train and stage.kept.shows_patches:
            share = model.config.code_dim / model.config.patch_pixels
            terms["commitment_after"] = stage.commitment_weight * patches.commitment * share
        return terms, _Shown(_as_shown(rebuilt), torch.where(renewed_BM, new.codes, before.global_BM))

    def _renewed(self, images: Tensor, before: _Shown) -> Tensor:
        """Globals that are new, bool [B, M]: none for half of the clips, else cells that changed most."""
        changes_BM = (self.model.cells(images) - self.model.cells(before.pixels_B3HW)).square().sum(-1)
        has_new_B1 = torch.rand(len(images), 1).to(images) < 0.5
        return _above_share(changes_BM) & has_new_B1


@torch.no_grad()
def _as_shown(rebuilt: Tensor) -> Tensor:
    """As the decoder would show it, in whole pixel values."""
    return to_float(to_pixels(rebuilt))

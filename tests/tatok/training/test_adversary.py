"""The recipe for texture, with a model of tiny size: convolutions at both ends, learned distances, an adversary."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tatok.evaluation.features import LearnedDistance
from tatok.model.autoencoder import TaTok, TaTokConfig
from tatok.model.pixel_layers import ConvStem, PixelDecoder
from tatok.schemas.errors import ConfigError, SourceError
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.adversary import Adversary, Views
from tatok.training.config import TrainingConfig
from tatok.training.photo_memory import PhotoMemory
from tatok.training.photos import centre_crops, expand_sources
from tatok.training.run import train
from tatok.training.trainer import Trainer

MODEL = {
    "patch_size": 8,
    "num_global": 4,
    "codebook_size": 32,
    "code_dim": 6,
    "learned_dim": 2,
    "width": 32,
    "num_heads": 2,
    "decoder_width": 48,
    "num_trunk_layers": 1,
    "num_base_layers": 1,
    "num_refiner_layers": 1,
    "num_decoder_layers": 1,
    "num_prior_layers": 1,
    "has_stem": True,
    "pixel_width": 8,
}
LOSSES = {"perceptual_weight": 0.1, "lpips_weight": 0.5, "perceptual_size": 64, "adversarial_weight": 0.3}
CPU = torch.device("cpu")


@pytest.fixture
def document(photo_shards: Callable[..., str], tmp_path: Path) -> dict[str, Any]:
    source = photo_shards(num_shards=2, photos_per_shard=8)
    stage = {"steps": 6, "batch_size": 4, "image_size": 64, "warmup_steps": 2, "native_share": 0.5, **LOSSES}
    kept = {"none": 0.2, "full": 0.2, "random": 0.2, "energy": 0.2, "residual": 0.2}
    return {
        "output": str(tmp_path / "run"),
        "photos": [source],
        "heldout": [source],
        "num_heldout": 4,
        "photos_in_memory": True,
        "num_start_crops": 32,
        "log_every_steps": 3,
        "save_every_steps": 3,
        "precision": "float32",
        "model": MODEL,
        "stages": [
            {"name": "both", "train": ["tokenizer", "prior"], "prior_learning_rate": 1e-3, "adversarial_ramp": 2,
             "kept": kept, **stage},
            {"name": "decoder", "train": ["decoder"], **stage},
        ],
    }  # fmt: skip


def records_of(config: TrainingConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(folder) / "model.safetensors")


def test_a_run_with_an_adversary_gives_a_tokenizer(document: dict[str, Any]) -> None:
    config = TrainingConfig.model_validate(document)
    folder = train(config, CPU)
    records = records_of(config)
    assert {"pixel", "perceptual", "lpips", "adversary", "adversarial", "prior", "commitment"} <= records[0].keys()
    assert all(record["adversary"] > 0 for record in records)
    tokenizer = Tokenizer.load(folder, device="cpu")
    pixels = torch.stack(list(centre_crops(expand_sources(config.heldout), 64, 4)))
    assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape


@pytest.mark.long  # test_interruption.py has one with an adversary
def test_a_killed_run_goes_on_to_the_same_weights(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The adversary, its optimizer and its averages are part of the state."""

    def run(name: str, *, killed_at: int | None) -> dict[str, Tensor]:
        config = TrainingConfig.model_validate(document | {"output": f"{document['output']}-{name}"})
        step = Trainer.train_step
        if killed_at is not None:
            left = [killed_at]

            def dying(self: Trainer, pixels: Tensor) -> dict[str, float]:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return step(self, pixels)

            with monkeypatch.context() as patch:
                patch.setattr(Trainer, "train_step", dying)
                with pytest.raises(KeyboardInterrupt):
                    train(config, CPU)
        return weights_of(train(config, CPU))

    # A resumed run draws other crops and numbers than one that is not, so both are given by the step.
    def seeded(self: Trainer, pixels: Tensor, step: Callable[..., dict[str, float]] = Trainer.train_step) -> Any:
        torch.manual_seed(1000 * self.stage_index + self.step)
        return step(self, crops[self.step])

    crops = torch.randint(0, 256, (12, 4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Trainer, "train_step", seeded)
    whole, resumed = run("whole", killed_at=None), run("resumed", killed_at=4)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_stage_ends_by_the_clock(document: dict[str, Any]) -> None:
    document["stages"] = [document["stages"][1] | {"steps": 100_000, "max_minutes": 0.02}]
    config = TrainingConfig.model_validate(document)
    started = time.monotonic()
    train(config, CPU)
    last = records_of(config)[-1]
    assert 1 < last["step"] < 100_000
    assert time.monotonic() - started > 1.2  # 0.02 minutes: a stage does not end before its time
    trainer = Trainer(config, CPU)
    assert trainer.restore()
    assert trainer.stage_index == 1  # what the clock ended stays ended


def test_photos_that_come_during_training_are_taken_up(
    document: dict[str, Any], photo_shards: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "growing"
    folder.mkdir()
    shards = expand_sources([photo_shards(num_shards=2, photos_per_shard=8)])
    (folder / "0.tar").write_bytes(Path(shards[0]).read_bytes())
    seen: list[int] = []
    batches = PhotoMemory.batches

    def counted(self: PhotoMemory, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(self))
        if len(seen) == 1:
            (folder / "1.tar").write_bytes(Path(shards[1]).read_bytes())
        return batches(self, *args, **kwargs)

    monkeypatch.setattr(PhotoMemory, "batches", counted)
    train(TrainingConfig.model_validate(document | {"photos": [f"{folder}/*.tar"]}), CPU)
    assert seen[:2] == [8, 16]


def test_crops_in_memory_are_pieces_of_the_photos(photo_shards: Callable[..., str]) -> None:
    paths = expand_sources([photo_shards(num_shards=1, photos_per_shard=8)])
    memory = PhotoMemory(paths, CPU)
    assert len(memory) == 8
    batch = next(memory.batches(8, 32, 0, smallest_crop=0.5, native_share=1.0))
    assert batch.shape == (8, 3, 32, 32)
    photos = memory.pixels_V3HW
    windows = photos.unfold(2, 32, 1).unfold(3, 32, 1)  # [V, 3, y, x, 32, 32]
    for crop in batch:
        found = [bool((windows == c[None, :, None, None]).all(dim=(1, 4, 5)).any()) for c in (crop, crop.flip(2))]
        assert any(found)
    resized = next(memory.batches(8, 32, 0, smallest_crop=1.0))
    assert resized.shape == (8, 3, 32, 32)
    assert torch.equal(resized, next(memory.batches(8, 32, 0, smallest_crop=1.0)))
    assert not torch.equal(resized, next(memory.batches(8, 32, 1, smallest_crop=1.0)))


def test_a_resized_crop_is_what_averaging_gives(tmp_path: Path) -> None:
    from PIL import Image

    ramp = torch.arange(64, dtype=torch.uint8).mul(3).expand(64, 64)
    Image.fromarray(ramp[:, :, None].expand(-1, -1, 3).numpy()).save(tmp_path / "ramp.png")
    batch = next(PhotoMemory([str(tmp_path / "ramp.png")], CPU).batches(1, 32, 0, smallest_crop=1.0))
    halved = torch.arange(32).mul(6).add(1.5)
    row = batch[0, 0, 16].float()
    assert min((row - halved).abs().max(), (row.flip(0) - halved).abs().max()) <= 1


def test_a_photo_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no photo")
    with pytest.raises(SourceError, match=r"photo 0 of .*bad.png cannot be decoded"):
        PhotoMemory([str(tmp_path / "bad.png")], CPU)


def test_the_pixel_decoder_starts_with_the_draft() -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(patch_side=16, model_width=32, width=8)
    states, draft = torch.randn(2, 32, 4, 5), torch.randn(2, 3, 64, 80)
    assert torch.equal(decoder(states, draft), torch.zeros(2, 3, 64, 80))
    decoder(states, draft).sum().backward()
    assert decoder.head.weight.grad is not None


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_the_stem_gives_patches_in_raster_order(patch_size: int) -> None:
    stem = ConvStem(patch_size, 24).eval()
    image = torch.zeros(1, 3, 8 * patch_size, 8 * patch_size)
    still = stem(image)
    assert still.shape == (1, 64, 24)
    image[:, :, 2 * patch_size : 3 * patch_size, 5 * patch_size : 6 * patch_size] = 1
    changed = (stem(image) - still).abs().sum(-1).view(8, 8) > 0
    assert changed[2, 5]
    changed[1:4, 4:7] = False  # the convolutions reach a little into the neighbours
    assert not changed.any()


def test_learned_dimensions_have_no_direction_in_pixels() -> None:
    model = TaTok(TaTokConfig(**MODEL))
    model.residual_basis.initialise(torch.randn(500, 192))
    assert torch.equal(model.residual_basis.directions_CP[-2:], torch.zeros(2, 192))
    gram = model.residual_basis.directions_CP[:4] @ model.residual_basis.directions_CP[:4].T
    assert torch.allclose(gram, torch.eye(4), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learned_dim": 6}, "learned_dim"),
        ({"pixel_width": 12}, "pixel_width"),
        ({"patch_size": 12}, "power of two"),
        ({"decoder_width": 40}, "decoder_width"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TaTokConfig(**{**MODEL, **changes})


def test_an_adversary_learns_to_tell_two_kinds_of_images_apart() -> None:
    torch.manual_seed(0)
    adversary = Adversary([8])
    optimizer = torch.optim.Adam(adversary.parameters(), lr=1e-3)

    def views(scale: float) -> Views:
        images = torch.rand(8, 3, 32, 32) * 2 - 1
        return Views(images * scale, [torch.randn(8, 8, 8, 8) + 2 * scale])

    losses = []
    for _ in range(40):
        loss = adversary.own_loss(views(1.0), views(0.1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    adversary.eval().requires_grad_(False)
    real, fake = views(1.0), views(0.1)
    fake.images_B3HW.requires_grad_()
    assert adversary.loss_of_rebuilt(real) < adversary.loss_of_rebuilt(fake)
    adversary.loss_of_rebuilt(fake).backward()
    assert fake.images_B3HW.grad is not None
    assert all(parameter.grad is None or not parameter.requires_grad for parameter in adversary.parameters())


@pytest.mark.parametrize(("trunk", "expected"), [("alex", (0.0051, 0.0056)), ("vgg", (0.0123, 0.0120))])
def test_the_learned_distance_is_the_packages_own(trunk: Any, expected: tuple[float, float]) -> None:
    """Figures that the package's own network gave for these images, with its other imports stubbed."""
    distance = LearnedDistance(trunk)
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    others = (images + 0.3 * torch.randn_like(images)).clamp(-1, 1)
    found = distance(images, distance.features(others))
    assert found.tolist() == pytest.approx(expected, abs=6e-5)
    assert distance(images, distance.features(images)).abs().max() < 1e-6


def test_a_flat_picture_has_a_finite_gradient() -> None:
    distance = LearnedDistance("alex")
    flat = torch.zeros(1, 3, 64, 64, requires_grad=True)
    distance(flat, distance.features(torch.rand(1, 3, 64, 64))).sum().backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()

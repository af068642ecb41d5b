"""Two ranks on half a batch each do what one process does on the whole: real processes, gloo."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from tatok.distributed import average_over_ranks, num_ranks, rank, ranks_agree
from tatok.model.autoencoder import TaTokConfig
from tatok.schemas.errors import TatokError
from tatok.training.config import KeptMixture, Stage, TrainingConfig
from tatok.training.trainer import Trainer

NUM_IMAGES, SIDE, STEPS = 16, 32, 4
MODEL = TaTokConfig(patch_size=8, num_global=4, codebook_size=32, code_dim=6, width=32, num_heads=2,
                    num_trunk_layers=1, num_base_layers=1, num_refiner_layers=1, num_decoder_layers=1,
                    num_prior_layers=1)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """What each rank saved of each experiment: starting processes takes seconds, so one group does them all."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_join_and_work, args=(str(folder),), nprocs=2)
    return {
        work.__name__: [torch.load(folder / f"{work.__name__}-{number}.pt", weights_only=True) for number in range(2)]
        for work in EXPERIMENTS
    }


def _join_and_work(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=number, world_size=2)
    for work in EXPERIMENTS:
        torch.save(work(Path(folder)), Path(folder) / f"{work.__name__}-{number}.pt")
    dist.destroy_process_group()


def config(folder: Path, **stage: object) -> TrainingConfig:
    kept = KeptMixture(none=0, full=0, random=1, energy=0)
    settings = {"train": ("tokenizer", "prior"), "steps": 100, "warmup_steps": 0, "kept": kept, "image_size": SIDE}
    return TrainingConfig(output=str(folder / "run"), photos=("-",), num_start_crops=NUM_IMAGES, precision="float32",
                          model=MODEL, stages=(Stage(name="s", **settings | stage),))  # fmt: skip


def images() -> Tensor:
    coarse = torch.rand(NUM_IMAGES, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(NUM_IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    smooth = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")
    return (255 * (0.8 * smooth + 0.2 * noise)).clamp(0, 255).byte()


def share() -> slice:
    """The rows of a batch that are this rank's."""
    size = NUM_IMAGES // num_ranks()
    return slice(rank() * size, (rank() + 1) * size)


def controlled_rand(*shape: int | tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """In place of torch.rand: an image's numbers are the same whichever rank it is on."""
    sizes = shape[0] if shape and not isinstance(shape[0], int) else shape
    if not sizes:
        return torch.tensor(0.5)
    assert sizes[0] == NUM_IMAGES // num_ranks()  # a row an image
    everywhere = torch.empty(NUM_IMAGES, *sizes[1:])
    return everywhere.uniform_(generator=torch.Generator().manual_seed(sizes[-1]))[share()].to(device)


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    gradients = {f"grad.{n}": p.grad for n, p in trainer.modules.named_parameters() if p.grad is not None}
    buffers = {f"buffer.{n}": b for n, b in trainer.modules.named_buffers()}
    parameters = {f"weight.{n}": p.detach() for n, p in trainer.modules.named_parameters()}
    averages = {f"average.{n}": p.detach() for n, p in trainer.average.named_parameters()}
    return {name: value.clone() for name, value in (gradients | buffers | parameters | averages).items()}


def one_controlled_step(folder: Path) -> dict[str, Tensor]:
    trainer = Trainer(config(folder), torch.device("cpu"))
    trainer.initialise(iter([images()]))
    for quantizer in (trainer.model.global_quantizer, trainer.model.patch_quantizer):
        quantizer.ema_count_K.fill_(1)  # no code is dead: where those are put is chance
        quantizer.ema_sum_KC.copy_(quantizer.codebook_KC)
    pixels = images()[share()]
    with mock.patch("torch.rand", controlled_rand):
        trainer.train_step(pixels)
    return snapshot(trainer)


def test_two_ranks_get_the_gradients_and_codebooks_of_one_process(saved: Saved, tmp_path: Path) -> None:
    alone = one_controlled_step(tmp_path)
    first, second = saved["one_controlled_step"]
    compared = [name for name in alone if name.startswith(("grad.", "buffer."))]
    assert any("prior" in name for name in compared)
    assert any("ema_sum" in name for name in compared)
    for name in compared:
        scale = float(alone[name].abs().max())
        assert torch.allclose(first[name], alone[name], atol=2e-5 * max(scale, 1e-3)), name
        assert torch.equal(first[name], second[name]), name


def uncontrolled_steps(folder: Path) -> dict[str, Tensor]:
    trainer = Trainer(config(folder), torch.device("cpu"))
    trainer.initialise(iter([images().roll(rank(), 1)]))  # only rank 0's count
    trainer.model.patch_quantizer.ema_count_K[:20] = 0  # dead: to be put on vectors that chance chooses
    before = trainer.model.patch_quantizer.codebook_KC[:20].clone()
    drawn = torch.rand(8)
    for _ in range(STEPS):
        trainer.train_step(images()[share()])
    moved = (trainer.model.patch_quantizer.codebook_KC[:20] != before).any(1)
    return snapshot(trainer) | {"drawn": drawn, "moved": moved}


def test_ranks_that_draw_different_numbers_keep_the_same_weights(saved: Saved) -> None:
    first, second = saved["uncontrolled_steps"]
    assert not torch.equal(first["drawn"], second["drawn"])
    assert first["moved"].any()
    for name, value in first.items():
        assert name == "drawn" or torch.equal(value, second[name]), name


def diverging_steps(folder: Path) -> dict[str, Tensor]:
    trainer = Trainer(config(folder), torch.device("cpu"))
    trainer.initialise(iter([images()]))
    losses = trainer.losses

    def infinite_on_the_second(pixels: Tensor, stage: Stage) -> dict[str, Tensor]:
        terms = losses(pixels, stage)
        return {name: value * (torch.inf if rank() == 1 else 1) for name, value in terms.items()}

    trainer.train_step(images()[share()])
    with mock.patch.object(trainer, "losses", infinite_on_the_second), pytest.raises(TatokError, match="at step 1 of"):
        trainer.train_step(images()[share()])
    agree = [ranks_agree([3, -5], torch.device("cpu")), ranks_agree([3, rank()], torch.device("cpu"))]
    return {"step": torch.tensor(trainer.step), "agree": torch.tensor(agree)}


EXPERIMENTS = (one_controlled_step, uncontrolled_steps, diverging_steps)
Saved = dict[str, list[dict[str, Tensor]]]


def test_an_infinite_loss_on_one_rank_stops_all(saved: Saved) -> None:
    for result in saved["diverging_steps"]:
        assert int(result["step"]) == 1
        assert result["agree"].tolist() == [True, False]


def test_alone_everything_is_the_identity() -> None:
    values = [torch.randn(3), torch.randn(2, 2)]
    before = [value.clone() for value in values]
    average_over_ranks(values)
    assert all(torch.equal(value, old) for value, old in zip(values, before, strict=True))
    assert (rank(), num_ranks(), ranks_agree([1], torch.device("cpu"))) == (0, 1, True)

"""Training on a few synthetic photos: all stages, resumption, calibration and evaluation, with a model of tiny size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import jpeg
from typer.testing import CliRunner

from jobs.cli import app
from schemas.errors import ConfigError, SourceError, TatokError
from tatok.checkpoint import load_checkpoint
from tatok.losses import choose_kept
from tatok.model import TaTokConfig
from tatok.patches import anchor_grid
from tatok.photos import RandomCrops, centre_crops, encoded_photos, expand_sources
from tatok.quantizer import VectorQuantizer
from tatok.tokenizer import Tokenizer
from tatok.trainer import Trainer
from tatok.training import _batches, train
from tatok.training_config import KeptMixture, Stage, TrainingConfig, check_batch_sizes, load_training_config
from tatok.training_device import computes_in_bfloat16

TINY = {"patch_size": 8, "num_global": 4, "codebook_size": 32, "code_dim": 6, "width": 32, "num_heads": 2,
        "num_trunk_layers": 1, "num_base_layers": 1, "num_refiner_layers": 1, "num_decoder_layers": 1,
        "num_prior_layers": 1}  # fmt: skip


@pytest.fixture
def config(photo_shards: Callable[..., str], tmp_path: Path) -> TrainingConfig:
    source = photo_shards(num_shards=2, photos_per_shard=8)
    document = {
        "output": str(tmp_path / "run"),
        "photos": [source],
        "heldout": [source],
        "num_heldout": 4,
        "num_loader_workers": 0,
        "num_start_crops": 32,
        "log_every_steps": 3,
        "save_every_steps": 3,
        "model": TINY,
        "stages": [
            {"name": "tokenizer", "train": ["tokenizer"], "perceptual_weight": 0.01, "perceptual_size": 32},
            {"name": "prior", "train": ["prior"]},
            {"name": "decoder", "train": ["decoder"], "kept": {"dtf": 1.0}},
            {"name": "joint", "train": ["tokenizer", "prior"], "kept": {"dtf": 0.5}},
        ],
    }
    for stage in document["stages"]:
        stage |= {"steps": 6, "batch_size": 4, "image_size": 32, "warmup_steps": 2}
    path = tmp_path / "train.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    return load_training_config(path)


def test_all_stages_write_figures_pictures_and_a_checkpoint_that_loads(config: TrainingConfig) -> None:
    folder = train(config, torch.device("cpu"))
    records = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    assert [r["stage"] for r in records] == ["tokenizer"] * 2 + ["prior"] * 2 + ["decoder"] * 2 + ["joint"] * 2
    assert {"pixel", "base", "perceptual", "commitment", "perplexity_patch", "psnr_few_db"} <= records[0].keys()
    assert all(r["psnr_full_db"] > 10 for r in records)
    assert len(list((Path(config.output) / "samples").glob("*.png"))) == 8
    tokenizer = Tokenizer.load(folder, device="cpu")
    pixels = torch.stack(list(centre_crops(expand_sources(config.heldout), 32, 4)))
    assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape


@pytest.mark.parametrize(
    ("precision", "has_it", "told"),
    [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0), ("auto", False, 0)],
)
def test_slow_bfloat16_is_told(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, precision: str, has_it: bool, told: int
) -> None:
    monkeypatch.setattr("tatok.training_device._cpu_has_bfloat16", lambda: has_it)
    lines: list[str] = []
    stages = (config.stages[0].model_copy(update={"steps": 1, "perceptual_weight": 0.0}),)
    train(config.model_copy(update={"precision": precision, "stages": stages}), torch.device("cpu"), say=lines.append)
    assert sum("set `precision: auto`" in line for line in lines) == told


def test_auto_takes_bfloat16_where_the_device_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has_it in (True, False):
        monkeypatch.setattr("tatok.training_device._cpu_has_bfloat16", lambda has_it=has_it: has_it)
        assert computes_in_bfloat16("auto", cpu) == has_it
        assert computes_in_bfloat16("auto", cuda)
        assert computes_in_bfloat16("bfloat16", cpu)
        assert not computes_in_bfloat16("float32", cuda)


def test_stages_move_only_the_parts_that_they_train(config: TrainingConfig) -> None:
    trainer = Trainer(config, torch.device("cpu"))
    stream = iter(torch.utils.data.DataLoader(RandomCrops(expand_sources(config.photos), 32, 0), batch_size=4))
    trainer.initialise(stream)
    pixels = next(stream)
    for index, moving in enumerate([{"tatok"}, {"prior"}, {"tatok.decoder"}]):
        trainer.stage_index, trainer.step, trainer.optimizer = index, 3, None
        before = {name: value.clone() for name, value in trainer.modules.state_dict().items()}
        trainer.train_step(pixels)
        moved = {n for n, v in trainer.modules.state_dict().items() if not torch.equal(v, before[n])}
        assert moved
        assert all(any(name.startswith(prefix) for prefix in moving) for name in moved), moved


def test_the_average_of_a_part_that_starts_late_does_not_hold_on_to_its_random_start(config: TrainingConfig) -> None:
    trainer = Trainer(config, torch.device("cpu"))
    stream = iter(torch.utils.data.DataLoader(RandomCrops(expand_sources(config.photos), 32, 0), batch_size=4))
    trainer.initialise(stream)
    trainer.stage_index = 1  # the prior's
    start = trainer.prior.head.bias.detach().clone()
    for pixels, _ in zip(stream, range(40), strict=False):
        trainer.train_step(pixels)
    moved = (trainer.prior.head.bias.detach() - start).norm()
    lag = (trainer.averaged()[1].head.bias - trainer.prior.head.bias).detach().norm()
    assert float(moved) > 0
    assert float(lag) < 0.3 * float(moved)


def test_training_goes_on_where_it_stopped(config: TrainingConfig) -> None:
    whole = config.model_copy(update={"stages": config.stages[:1]})
    half = whole.model_copy(update={"stages": (config.stages[0].model_copy(update={"steps": 3}),)})
    train(half, torch.device("cpu"))
    trainer = Trainer(whole, torch.device("cpu"))
    assert trainer.restore()
    assert trainer.stage_index == 1  # the half's only stage is done
    state = trainer.modules.state_dict()
    stored = torch.load(Path(config.output) / "state.pt", weights_only=True)["modules"]
    assert all(torch.equal(value, stored[name]) for name, value in state.items())
    train(config, torch.device("cpu"))  # the remaining stages
    stages = [json.loads(line)["stage"] for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["tokenizer"] + ["prior"] * 2 + ["decoder"] * 2 + ["joint"] * 2


def test_a_run_that_was_cut_off_leaves_each_step_once(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    often = config.model_copy(update={"stages": config.stages[1:3], "log_every_steps": 1})
    step = Trainer.train_step

    def cut_off(trainer: Trainer, pixels: torch.Tensor) -> dict[str, float]:
        if trainer.stage_index == 1 and trainer.step == 5:
            raise KeyboardInterrupt
        return step(trainer, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train(often, torch.device("cpu"))
    metrics = Path(config.output) / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 11  # two more than the last state knows of
    with metrics.open("a") as file:
        file.write('{"stage": "cut o')
    assert "stage decoder step 5" in capsys.readouterr().out
    lines: list[str] = []
    train(often, torch.device("cpu"), say=lines.append)
    assert lines[0] == f"going on in {config.output}: stage 2, step 3"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in records] == [(s, n) for s in ("prior", "decoder") for n in range(1, 7)]
    assert capsys.readouterr().out == ""  # `say` speaks instead


def test_a_loss_that_is_not_finite_stops_the_run(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "losses", lambda self, images, stage: {"pixel": images.new_tensor(torch.nan) * next(
        self.model.decoder.parameters()).sum()})  # fmt: skip
    with pytest.raises(TatokError, match=r"the loss is nan at step 0 of stage tokenizer; lower its learning_rate"):
        train(config, torch.device("cpu"))


@pytest.mark.parametrize("kind", [{"num_global": 0}, {"anchored": False}, {"cell_size": 4}], ids=str)
def test_the_fixed_rate_kinds_train_too(config: TrainingConfig, kind: dict[str, int]) -> None:
    model = TaTokConfig(**{**TINY, **kind})
    lines: list[str] = []
    train(
        config.model_copy(update={"model": model, "stages": config.stages[3:]}), torch.device("cpu"), say=lines.append
    )
    record = json.loads((Path(config.output) / "metrics.jsonl").read_text().splitlines()[-1])
    assert ("base" in record) == (kind == {"cell_size": 4})
    assert ("perplexity_global" in record) == (model.num_global > 0)
    if model.num_global:
        assert record["perplexity_global"] > 3  # of 32: the codebook was started from what there is
    assert record["psnr_full_db"] > 10


def test_batches_must_be_shared_equally(config: TrainingConfig) -> None:
    check_batch_sizes(config, 2)
    with pytest.raises(ConfigError, match=r"stage tokenizer: a batch_size of 4 .* by 3 workers; make it a multiple"):
        check_batch_sizes(config, 3)


def test_training_learns(config: TrainingConfig) -> None:
    torch.manual_seed(0)
    stage = Stage(name="s", train=("tokenizer",), steps=60, batch_size=4, image_size=32, warmup_steps=5,
                  learning_rate=3e-3, kept=KeptMixture(none=0, full=1, random=0, energy=0))  # fmt: skip
    trainer = Trainer(config.model_copy(update={"stages": (stage,), "precision": "float32"}), torch.device("cpu"))
    stream = iter(torch.utils.data.DataLoader(RandomCrops(expand_sources(config.photos), 32, 0), batch_size=4))
    trainer.initialise(stream)
    pixels = next(stream)
    losses = [trainer.train_step(pixels)["pixel"] for _ in range(60)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_run_of_another_model_is_refused(config: TrainingConfig) -> None:
    train(config.model_copy(update={"stages": config.stages[:1]}), torch.device("cpu"))
    other = config.model_copy(update={"model": TaTokConfig(**{**TINY, "width": 64})})
    with pytest.raises(ConfigError, match="another model; choose another output"):
        train(other, torch.device("cpu"))


def test_calibrate_and_eval_from_the_command_line(config: TrainingConfig) -> None:
    folder = train(config.model_copy(update={"stages": config.stages[:2]}), torch.device("cpu"))
    photos = list(config.photos)
    options = ["--checkpoint", str(folder), "--image-size", "32"]
    runner = CliRunner()
    for criterion in ("entropy", "surprisal", "content", "distance"):
        found = runner.invoke(
            app, ["calibrate", *photos, "--tokens", "10", "--criterion", criterion, "--write", *options]
        )
        assert found.exit_code == 0, found.output
        tokenizer = Tokenizer.load(folder, device="cpu")
        assert tokenizer.dtf.criterion == criterion
        pixels = torch.stack(list(centre_crops(expand_sources(photos), 32)))
        counts = [s.num_tokens for s in tokenizer.encode(pixels)]
        assert sum(counts) / len(counts) == pytest.approx(10, abs=0.2)
    result = runner.invoke(app, ["eval", *photos, "--all", "--tokens", "10", "--json", "--no-distances", *options])
    assert result.exit_code == 0, result.output
    scores = {s["name"]: s for s in json.loads(result.stdout)["scores"]}
    assert scores["full rate"]["mean_tokens"] == 20
    assert scores["globals only"]["mean_tokens"] == 4
    compared = [s for name, s in scores.items() if name not in ("full rate", "globals only", "uniform grid")]
    assert all(s["mean_tokens"] == pytest.approx(10, abs=0.2) for s in compared)
    assert scores["random"]["bits_with_positions"] > scores["random"]["bits"]
    impossible = runner.invoke(app, ["calibrate", *photos, "--tokens", "3", *options])
    assert impossible.exit_code == 1
    assert "every image has 4 global tokens" in impossible.output


def test_start_from_another_checkpoint(config: TrainingConfig, tmp_path: Path) -> None:
    folder = train(config.model_copy(update={"stages": config.stages[:1]}), torch.device("cpu"))
    fresh = config.model_copy(update={"output": str(tmp_path / "second")})
    started = Trainer(fresh, torch.device("cpu"), str(folder))
    assert started.is_initialised
    with pytest.raises(ConfigError, match="but the training file"):
        Trainer(fresh.model_copy(update={"model": TaTokConfig()}), torch.device("cpu"), str(folder))


def test_another_prior_starts_anew_on_the_same_codes(config: TrainingConfig, tmp_path: Path) -> None:
    folder = train(config.model_copy(update={"stages": config.stages[:1]}), torch.device("cpu"))
    other = replace(config.model, num_prior_layers=2, prior_rank=3)
    update = {"model": other, "output": str(tmp_path / "second")}
    with pytest.raises(ConfigError, match="the first stage must train it"):
        Trainer(config.model_copy(update=update | {"stages": config.stages[:1]}), torch.device("cpu"), str(folder))
    stage = config.stages[0].model_copy(update={"train": ("prior",), "steps": 2})
    trained = train(
        config.model_copy(update=update | {"stages": (stage,)}), torch.device("cpu"), start_from=str(folder)
    )
    before, after = load_checkpoint(folder), load_checkpoint(trained)
    assert after.model.config == other
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name]), f"{name} is the tokenizer's"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: x\nphotos: [a]\nstages: []", "stages"),
        ("output: x\nphotos: [a]\nluck: 1\nstages: [{name: a, train: [prior], steps: 1}]", "luck"),
        ("output: x\nphotos: [a]\nmodel: {luck: 1}\nstages: [{name: a, train: [prior], steps: 1}]", "model.luck"),
        ("{", "not valid YAML"),
    ],
)
def test_wrong_training_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_training_config(path)


@pytest.mark.parametrize("name", ["train-photos-256.yaml", "train-photos-256-gpu.yaml", "train-clips-256.yaml"])
def test_the_shipped_recipes_are_valid(name: str) -> None:
    recipe = load_training_config(Path(__file__).parents[1] / "examples" / name)
    small = load_training_config(Path(__file__).parents[1] / "examples" / "train-photos-256.yaml")
    made = load_checkpoint().model.config if name == "train-photos-256-gpu.yaml" else small.model
    assert recipe.model == made, "the GPU's recipe is the bundled checkpoint's; clips go on from the small one"


# --- parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_global", "grid"), [(16, (4, 4)), (8, (2, 4)), (32, (4, 8)), (1, (1, 1)), (7, (1, 7))])
def test_anchor_grid(num_global: int, grid: tuple[int, int]) -> None:
    assert anchor_grid(num_global) == grid


def test_codes_decode_to_the_quantized_vectors() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 4).eval()
    vectors = torch.randn(2, 5, 4, requires_grad=True)
    quantized = quantizer(vectors)
    assert torch.allclose(quantizer.decode(quantized.codes), quantized.vectors)
    quantized.vectors.sum().backward()
    assert torch.equal(vectors.grad, torch.ones_like(vectors))  # straight through


def test_dead_codes_are_moved_to_where_the_vectors_are() -> None:
    torch.manual_seed(0)
    data = torch.rand(200, 2)
    quantizer = VectorQuantizer(8, 2)
    quantizer.codebook_KC.fill_(100.0)  # far from every vector; one code wins all of them
    quantizer.ema_sum_KC.copy_(quantizer.codebook_KC)
    for _ in range(1500):
        quantizer(data)
    codes = quantizer.encode(data)
    assert len(codes.unique()) == 8
    assert 0 <= float(quantizer.codebook_KC.min()) <= float(quantizer.codebook_KC.max()) <= 1


def test_kept_mixture() -> None:
    torch.manual_seed(0)
    scores = torch.rand(400, 16)
    assert choose_kept(scores, None, KeptMixture(none=0, full=1, random=0, energy=0)).all()
    assert not choose_kept(scores, None, KeptMixture(none=1, full=0, random=0, energy=0)).any()
    kept = choose_kept(scores, None, KeptMixture(none=0, full=0, random=0, energy=1))
    assert scores[kept].min() > scores[~kept].max()


def test_photos_come_from_parquet_as_from_tars(tmp_path: Path) -> None:
    images = [jpeg(i) for i in range(3)]
    pq.write_table(pa.table({"image": [{"bytes": b, "path": None} for b in images]}), tmp_path / "struct.parquet")
    pq.write_table(pa.table({"image": images}), tmp_path / "plain.parquet")
    for name in ("struct", "plain"):
        assert list(encoded_photos(str(tmp_path / f"{name}.parquet"))) == images


def test_the_crop_stream_repeats_for_a_seed(config: TrainingConfig) -> None:
    paths = expand_sources(config.photos)

    def first(seed: int, rank: int = 0) -> torch.Tensor:
        stream = iter(RandomCrops(paths, 32, seed, shuffle_buffer=8, rank=rank))
        return torch.stack([next(stream) for _ in range(20)])

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert not torch.equal(first(1), first(1, rank=1))  # each rank sees other crops


def test_missing_photos_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file matches .*nothing"):
        expand_sources([str(tmp_path / "nothing-*.tar")])
    with pytest.raises(ConfigError, match=r"absent-1.tar does not exist"):
        expand_sources([str(tmp_path / "absent-{1..2}.tar")])
    with pytest.raises(SourceError, match=r"absent.tar"):
        list(encoded_photos(str(tmp_path / "absent.tar")))


def test_the_rate_reaches_the_encoder_and_the_prior(config: TrainingConfig) -> None:
    joint = Stage(name="joint", train=("tokenizer", "prior"), steps=2, batch_size=4, image_size=32, rate_weight=1.0)
    trainer = Trainer(config.model_copy(update={"stages": (joint,)}), torch.device("cpu"))
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    trainer.initialise(iter([pixels] * 8))
    trainer.train_step(pixels)  # sets up what learns
    trainer.optimizer.zero_grad()
    terms = trainer.losses(pixels.float() / 127.5 - 1, joint)
    assert 0 < float(terms["rate"].detach()) < 20 / 192  # bits over the 192 values of a patch
    terms["rate"].backward()
    for weight in (
        trainer.model.encoder.patch_head.weight,
        trainer.model.encoder.queries_MD,
        trainer.prior.head.weight,
    ):
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


def test_a_rate_without_both_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer and prior"):
        Stage(name="x", train=("tokenizer",), steps=1, rate_weight=0.1)


@pytest.mark.parametrize(
    ("device", "output", "configured", "workers", "context", "is_pinned"),
    [
        ("cpu", None, None, 1, None, False),
        ("cpu", "memory://run", None, 1, "spawn", False),
        ("cuda", None, None, 3, "forkserver", True),  # a process that holds CUDA must not be forked
        ("cuda", "memory://run", None, 3, "spawn", True),
        ("cuda", None, 5, 5, "forkserver", True),
        ("cuda", None, 0, 0, None, True),
    ],
)
def test_loaders_start_as_the_device_asks(
    config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    output: str | None,
    configured: int | None,
    workers: int,
    context: str | None,
    is_pinned: bool,
) -> None:
    given: dict[str, object] = {}

    def loader(samples: object, **options: object) -> list[torch.Tensor]:
        given.update(options)
        return []

    monkeypatch.setattr("tatok.training.DataLoader", loader)
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    trainer = Trainer(config, torch.device("cpu"))
    trainer.device = torch.device(device)
    trainer.config = config.model_copy(
        update={"num_loader_workers": configured} | ({} if output is None else {"output": output})
    )
    _batches(trainer, expand_sources(config.photos), [])
    assert given["num_workers"] == workers
    assert given["multiprocessing_context"] == context
    assert given["pin_memory"] is is_pinned


def test_a_state_of_another_version_is_named(config: TrainingConfig) -> None:
    config = config.model_copy(update={"stages": (config.stages[3],)})
    trainer = Trainer(config, torch.device("cpu"))
    trainer.initialise(iter([torch.randint(0, 255, (32, 3, 32, 32), dtype=torch.uint8)]))
    trainer.train_step(torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8))
    trainer.save()
    path = Path(config.output) / "state.pt"
    state = torch.load(path, weights_only=True)
    state["optimizer"]["param_groups"] = state["optimizer"]["param_groups"][:2]
    torch.save(state, path)
    with pytest.raises(ConfigError, match=r"state\.pt was saved in the middle of a stage by another version"):
        Trainer(config, torch.device("cpu")).restore()

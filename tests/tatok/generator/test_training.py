"""Generators trained on small tokenized datasets: budgets, resumption, fixed-rate sequences, checkpoints."""

from __future__ import annotations

import itertools
import json
import random
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tatok import stopping
from tatok.dataset.batches import pad
from tatok.dataset.dataset import TokenDataset
from tatok.dataset.stream import TokenStream
from tatok.generator.checkpoint import load_generator, save_generator
from tatok.generator.config import GeneratorConfig
from tatok.generator.data import GeneratorData
from tatok.generator.recipe import GeneratorRecipe
from tatok.generator.trainer import GeneratorTrainer, heldout_loss
from tatok.generator.training import train_generator
from tatok.schemas.errors import ConfigError
from tests.support.synthetic_tokens import VOCAB_SIZE, write_synthetic

CPU = torch.device("cpu")
TINY = GeneratorRecipe(steps=6, width=32, num_layers=1, num_heads=2, batch_tokens=2048)


def rewrite(folder: Path, **columns: object) -> None:
    """Replace columns of the one part of a dataset, footer and all else as it was; a function maps the old values."""
    [path] = (folder / "data").glob("*.parquet")
    table = pq.read_table(path)
    schema = table.schema
    for name, change in columns.items():
        values = change(table.column(name).to_pylist()) if callable(change) else change
        table = table.set_column(
            table.schema.get_field_index(name), schema.field(name), pa.array(values, type=schema.field(name).type)
        )
    pq.write_table(table.cast(schema), path)
    [part] = json.loads((folder / "_manifest.json").read_text())["parts"]
    manifest = (folder / "_manifest.json").read_text().replace(str(part["num_bytes"]), str(path.stat().st_size))
    (folder / "_manifest.json").write_text(manifest)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "data"
    write_synthetic(str(folder), 200)
    return folder


@pytest.fixture
def fixed_rate(tmp_path: Path) -> Path:
    """40 rows that keep the same three patches, no globals; their codes count up from the row's label."""
    folder = tmp_path / "fixed"
    write_synthetic(str(folder), 40)
    labels = np.arange(40) % 10
    rewrite(
        folder,
        tokens=[[label, label + 1, label + 2] for label in labels.tolist()],
        positions=[[3, 10, 255]] * 40,
        num_tokens=[3] * 40,
        num_global_tokens=[0] * 40,
        num_patch_tokens=[3] * 40,
    )
    return folder


def test_a_data_set_tells_what_its_generator_needs(data: Path, fixed_rate: Path) -> None:
    seen = GeneratorData.of(data)
    assert seen.classes == tuple("0123456789")
    assert (seen.vocab_size, seen.num_global, seen.grid) == (VOCAB_SIZE, 16, (1, 16, 16))
    assert seen.fixed_positions is None
    assert seen.tokenizer_weights_sha256 == "synthetic"
    assert GeneratorData.of(data, unconditional=True).classes == ()
    assert GeneratorData.of(fixed_rate).fixed_positions == (3, 10, 255)
    rewrite(fixed_rate, positions=[[3, 10, 255]] * 39 + [[3, 11, 255]])
    assert GeneratorData.of(fixed_rate).fixed_positions is None  # as many everywhere, but not the same


def test_rows_without_a_label_are_refused_with_the_remedy(fixed_rate: Path, tmp_path: Path) -> None:
    rewrite(fixed_rate, label=["1"] * 38 + [None] * 2)
    with pytest.raises(ConfigError, match=r"2 rows without a label.*--unconditional"):
        train_generator(fixed_rate, tmp_path / "run", TINY, CPU)
    train_generator(fixed_rate, tmp_path / "run", replace(TINY, unconditional=True), CPU)
    assert load_generator(tmp_path / "run" / "checkpoint").classes == ()


def test_rows_of_several_shapes_are_refused(fixed_rate: Path) -> None:
    rewrite(fixed_rate, grid_height=[16] * 39 + [32])
    with pytest.raises(ConfigError, match="grid_height differs between rows"):
        GeneratorData.of(fixed_rate)


def test_training_writes_a_checkpoint_that_samples(data: Path, tmp_path: Path) -> None:
    spent, look = train_generator(data, tmp_path / "run", TINY, CPU, heldout=data, log_every_steps=2)
    assert spent.steps == 6
    assert spent.seconds > 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["steps"] for record in records[:-1]] == [2, 4, 6]
    assert records[-1]["heldout"]["bits"] == pytest.approx(look.bits)  # type: ignore[union-attr]
    assert look is not None
    assert look.num_images == 200
    assert look.mean_tokens == pytest.approx(TokenDataset(data).mean_tokens)
    assert look.code_bits < look.mean_tokens * 12  # skewed codes: less than log2 of the vocabulary
    checkpoint = load_generator(tmp_path / "run" / "checkpoint")
    assert checkpoint.classes == tuple("0123456789")
    assert checkpoint.training["spent"]["tokens"] == spent.tokens
    assert checkpoint.class_numbers(["3", "0"]) == [3, 0]
    with pytest.raises(ConfigError, match="no class cat; it knows 0, 1"):
        checkpoint.class_numbers(["1", "cat"])
    assert len(checkpoint.generator.sample(torch.tensor([1, 2]))) == 2


def test_the_held_out_loss_is_that_of_the_average_row_by_row(data: Path) -> None:
    seen = GeneratorData.of(data)
    config = GeneratorConfig(
        vocab_size=seen.vocab_size, num_global=16, grid=seen.grid, num_classes=10, width=32, num_layers=1, num_heads=2
    )
    trainer = GeneratorTrainer(config, seen.classes, TINY, CPU)
    rows = TokenDataset(data, columns=["label"])
    for parameter in trainer.generator.parameters():
        parameter.data.zero_()  # it is the average that must be looked at
    look = heldout_loss(trainer, rows)
    losses = [trainer.average.loss(pad([row]), trainer.classes_of(pad([row]))) for row in list(rows)[:200]]
    assert look.code_bits * 200 * np.log(2) == pytest.approx(sum(float(loss.codes) for loss in losses), rel=1e-4)
    assert look.place_bits * 200 * np.log(2) == pytest.approx(sum(float(loss.places) for loss in losses), rel=1e-4)


def test_a_budget_of_tokens_is_met_short_of_one_row(data: Path, tmp_path: Path) -> None:
    longest = max(row.tokens.numel() for row in TokenDataset(data))
    for budget in (3_000, 7_001):
        recipe = replace(TINY, steps=None, tokens=budget)
        spent, _ = train_generator(data, tmp_path / str(budget), recipe, CPU)
        assert budget - longest < spent.tokens <= budget
        again, _ = train_generator(data, tmp_path / str(budget), recipe, CPU)
        assert again == spent  # done is done


def test_a_budget_of_tokens_that_rows_divide_is_met_exactly(fixed_rate: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, steps=None, tokens=999, batch_tokens=60)
    spent, _ = train_generator(fixed_rate, tmp_path / "run", recipe, CPU)
    assert (spent.tokens, spent.images) == (999, 333)


def test_a_budget_of_seconds_counts_steps_and_not_evaluation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 100)  # a step asks four times: it takes 0.02 s
    for name in ("training", "trainer"):
        monkeypatch.setattr(f"tatok.generator.{name}.time", clock)
    spent, _ = train_generator(data, tmp_path / "run", replace(TINY, steps=None, seconds=0.5), CPU, heldout=data)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["end"]["seconds"] == spent.seconds
    assert 0.5 <= spent.seconds < 0.5 + 0.02 + 1e-9, "stopped by the step that spent it"
    assert spent.steps == pytest.approx(spent.seconds / 0.02)


def test_a_run_that_resumes_has_each_step_once_in_its_event_files(data: Path, tmp_path: Path) -> None:
    whole = replace(TINY, steps=5)

    def stop_in_the_fourth(trainer: GeneratorTrainer, *rest: object) -> tuple[float, float]:
        losses = step(trainer, *rest)  # type: ignore[arg-type]
        if trainer.spent.steps == 4:
            raise KeyboardInterrupt
        return losses

    step = GeneratorTrainer.step
    run = partial(train_generator, data, tmp_path / "run", whole, CPU, log_every_steps=1, save_every_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratorTrainer, "step", stop_in_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            run(tensorboard=True)
    run(tensorboard=True)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("training/code_bits")
    assert [event.step for event in found] == [1, 2, 3, 4, 5]
    assert [event.value for event in found] == pytest.approx([record["code_bits"] for record in records[:5]], rel=1e-6)
    with pytest.raises(ConfigError, match="cannot be written to memory"):
        train_generator(data, "memory://run", whole, CPU, tensorboard=True)


@pytest.mark.parametrize("budget", [{}, {"steps": 5, "tokens": 5}, {"seconds": 0}])
def test_exactly_one_budget(budget: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="exactly one budget"):
        GeneratorRecipe(**budget)  # type: ignore[arg-type]


def test_warm_up_and_cosine_follow_the_share_of_the_budget() -> None:
    recipe = GeneratorRecipe(steps=100, learning_rate=1.0, warmup_share=0.1)
    rates = [recipe.learning_rate_at(share) for share in (0, 0.05, 0.1, 0.55, 1)]
    assert rates == pytest.approx([0.01, 0.5, 1, 0.05 + 0.95 / 2, 0.05])


class Interrupted(Exception):
    pass


def test_interrupted_training_ends_with_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(TINY, steps=12)
    whole, _ = train_generator(data, tmp_path / "whole", recipe, CPU)
    step = GeneratorTrainer.step

    def interrupted(self: GeneratorTrainer, *arguments: object) -> tuple[float, float]:
        if self.spent.steps == 8:
            raise Interrupted
        return step(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(GeneratorTrainer, "step", interrupted)
        with pytest.raises(Interrupted):
            train_generator(data, tmp_path / "halves", recipe, CPU, log_every_steps=1, save_every_steps=5)
    torch.manual_seed(99)
    halves, _ = train_generator(data, tmp_path / "halves", recipe, CPU, log_every_steps=1)
    lines = (tmp_path / "halves" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("steps") for line in lines] == [*range(1, 13), None]  # once each, then the end
    assert replace(halves, seconds=0) == replace(whole, seconds=0)
    expected = load_generator(tmp_path / "whole" / "checkpoint").generator.state_dict()
    found = load_generator(tmp_path / "halves" / "checkpoint").generator.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match=r"another recipe \(width 32 -> 64\)"):
        train_generator(data, tmp_path / "halves", replace(recipe, width=64), CPU)


def test_fixed_rate_sequences_are_learned_without_places(fixed_rate: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, steps=150, batch_tokens=60, learning_rate=1e-2, ema_decay=0.9)
    _, look = train_generator(fixed_rate, tmp_path / "run", recipe, CPU, heldout=fixed_rate)
    assert look is not None
    assert look.place_bits == 0
    assert look.code_bits < 0.5  # of 36
    checkpoint = load_generator(tmp_path / "run" / "checkpoint")
    assert not hasattr(checkpoint.generator, "place_head")
    for number, sequence in enumerate(checkpoint.generator.sample(torch.arange(10), temperature=0)):
        assert sequence.codes.tolist() == [number, number + 1, number + 2]
        assert sequence.positions.tolist() == [3, 10, 255]
        assert sequence.num_global == 0


def test_data_and_output_in_a_bucket_are_as_good_as_on_a_disk(data: Path, s3_bucket: str, tmp_path: Path) -> None:
    url, run = f"s3://{s3_bucket}/generator-tokens", f"s3://{s3_bucket}/generator-run"
    write_synthetic(url, 200)
    recipe = replace(TINY, steps=2)
    spent, look = train_generator(url, run, recipe, CPU, heldout=url)
    assert train_generator(url, run, recipe, CPU, heldout=url) == (spent, look)  # done is done, there as well
    assert load_generator(f"{run}/checkpoint").training["spent"]["tokens"] == spent.tokens
    local, expected = train_generator(data, tmp_path / "disk", recipe, CPU, heldout=data)
    assert spent.tokens == local.tokens
    assert look is not None
    assert expected is not None
    assert look.bits == pytest.approx(expected.bits, rel=1e-4)


def test_held_out_rows_of_an_unknown_label_are_refused(fixed_rate: Path, tmp_path: Path) -> None:
    heldout = tmp_path / "heldout"
    write_synthetic(str(heldout), 5)
    rewrite(heldout, label=["cat"] * 5)
    with pytest.raises(ConfigError, match="no label cat"):
        train_generator(fixed_rate, tmp_path / "run", TINY, CPU, heldout=heldout)


def test_damaged_checkpoints_are_refused(data: Path, tmp_path: Path) -> None:
    train_generator(data, tmp_path / "run", replace(TINY, steps=1), CPU)
    folder = tmp_path / "run" / "checkpoint"
    checkpoint = load_generator(folder)
    config = (folder / "config.json").read_text()
    for damage, message in (
        (config.replace("tatok-generator-1", "other"), "not of the format"),
        (config.replace('"width": 32', '"width": 64'), "does not fit"),
        (config.replace('"num_heads"', '"heads"'), "unknown or missing: heads, num_heads"),
        ("{", "not valid JSON"),
    ):
        (folder / "config.json").write_text(damage)
        with pytest.raises(ConfigError, match=message):
            load_generator(folder)
    save_generator(folder, checkpoint)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="damaged or not a safetensors file"):
        load_generator(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model.safetensors is missing \(`tatok generator train`"):
        load_generator(folder)


OF_TIME = ("seconds", "tokens_per_s", "end")


def figures(run: Path) -> list[dict[str, object]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in OF_TIME} for line in lines]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("budget", [{"steps": 12}, {"steps": None, "tokens": 9_000}], ids=str)
def test_training_that_signals_stop_ends_with_the_same_weights_to_the_bit(
    data: Path, tmp_path: Path, number: signal.Signals, budget: dict[str, int]
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    recipe = replace(TINY, **budget)  # type: ignore[arg-type]
    train_generator(data, tmp_path / "whole", recipe, CPU, heldout=data, log_every_steps=4)
    step, look = GeneratorTrainer.step, heldout_loss
    at = sorted(random.Random(seed).sample(range(1, 6), 3))

    def signalled(self: GeneratorTrainer, *arguments: object) -> tuple[float, float]:
        if at and self.spent.steps == at[0]:
            at.pop(0)
            signal.raise_signal(number)
        return step(self, *arguments)  # type: ignore[arg-type]

    def looked(*arguments: object) -> object:
        if "looked" not in at:
            at.append("looked")  # type: ignore[arg-type]
            signal.raise_signal(number)
        return look(*arguments)  # type: ignore[arg-type]

    run = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratorTrainer, "step", signalled)
        patch.setattr("tatok.generator.training.heldout_loss", looked)
        for done in [place + 1 for place in at]:
            with pytest.raises(
                stopping.Interrupted, match=rf"saved at step {done} in .*resume with the same command"
            ) as raised:
                train_generator(data, run, recipe, CPU, heldout=data, log_every_steps=4)
            assert raised.value.signal_number == number
        with pytest.raises(stopping.Interrupted, match="saved at step "):  # in looking at the rows held out
            train_generator(data, run, recipe, CPU, heldout=data, log_every_steps=4)
        train_generator(data, run, recipe, CPU, heldout=data, log_every_steps=4)
    assert figures(run) == figures(tmp_path / "whole")
    wanted = load_generator(tmp_path / "whole" / "checkpoint").generator.state_dict()
    found = load_generator(run / "checkpoint").generator.state_dict()
    assert [name for name, value in wanted.items() if not torch.equal(value, found[name])] == []


def test_steps_of_a_run_that_died_before_its_first_state_are_not_in_the_figures_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = GeneratorTrainer.step

    def deadly(self: GeneratorTrainer, *arguments: object) -> tuple[float, float]:
        if self.spent.steps == 3:
            raise SystemExit
        return step(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(GeneratorTrainer, "step", deadly)
        with pytest.raises(SystemExit):
            train_generator(data, tmp_path / "run", TINY, CPU, log_every_steps=1)
    assert len(figures(tmp_path / "run")) == 3
    train_generator(data, tmp_path / "run", TINY, CPU, log_every_steps=1)
    assert "had 3 lines of a run that saved no state" in " ".join(capsys.readouterr().out.split())
    assert [record.get("steps") for record in figures(tmp_path / "run")] == [*range(1, 7), None]


def test_a_stop_before_the_first_step_saves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenStream, "__iter__", lambda self: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(stopping.Interrupted, match=r"before the first step: nothing is saved in .*; start again"):
        train_generator(data, tmp_path / "run", TINY, CPU)
    assert not any((tmp_path / "run").iterdir())

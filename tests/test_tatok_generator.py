from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from schemas.errors import ConfigError
from schemas.records import Grid, TokenSequence
from tatok.batches import TokenRow, pad
from tatok.generator import Generator, GeneratorConfig

CONFIG = GeneratorConfig(
    vocab_size=11, num_global=2, grid=(1, 2, 3), num_classes=3, width=32, num_layers=2, num_heads=2
)


def row(codes: list[int], places: list[int]) -> TokenRow:
    num_global = len(codes) - len(places)
    return TokenRow(
        tokens=torch.tensor(codes),
        kinds=torch.tensor([0] * num_global + [1] * len(places)),
        positions=torch.tensor(
            [[-1, -1, -1]] * num_global + [[0, place // 3, place % 3] for place in places], dtype=torch.int32
        ),
        grid=(1, 2, 3),
        columns={},
        row=0,
    )


# What class c looks like: lengths 2, 4 and 8 (all six positions).
ROWS = [row([1, 2], []), row([3, 4, 5, 6], [1, 4]), row([7, 8, 9, 10, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5])]
CLASSES = torch.tensor([0, 1, 2])


def model(seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    return Generator(CONFIG).eval()


@pytest.fixture(scope="module")
def trained() -> Generator:
    generator = model().train()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=3e-3)
    for _ in range(150):
        loss = sum(generator.loss(pad(ROWS), CLASSES))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
    return generator.eval()


def same(sequence: TokenSequence, expected: TokenRow) -> bool:
    places = [int(r * 3 + c) for _, r, c in expected.positions[expected.kinds == 1]]
    return sequence.codes.tolist() == expected.tokens.tolist() and sequence.positions.tolist() == places


def test_it_learns_sequences_of_different_lengths(trained: Generator) -> None:
    assert all(part < 0.2 for part in trained.loss(pad(ROWS), CLASSES))
    sequences = trained.sample(torch.tensor([2, 0, 1, 2]), temperature=0)
    assert all(same(s, ROWS[c]) for s, c in zip(sequences, [2, 0, 1, 2], strict=True))
    assert sequences[0].grid == Grid(1, 2, 3)


def test_the_loss_is_that_of_each_row_alone() -> None:
    generator = model()
    together = generator.loss(pad(ROWS), CLASSES)
    alone = [generator.loss(pad([r]), c[None]) for r, c in zip(ROWS, CLASSES, strict=True)]
    for part in (0, 1):
        assert together[part].item() == pytest.approx(sum(each[part].item() for each in alone), rel=1e-5)


def test_an_untrained_loss_is_that_of_chance() -> None:
    with torch.no_grad():
        codes, places = model().loss(pad(ROWS), CLASSES)
    assert codes.item() == pytest.approx(14 * np.log(11), rel=0.05)
    # Ends and positions not behind the last one: row 0 asks once among 7; row 1 among 7, 5 and 2; row 2 among 7..1.
    expected = np.log(7) + np.log([7, 5, 2]).sum() + np.log([7, 6, 5, 4, 3, 2, 1]).sum()
    assert places.item() == pytest.approx(expected, rel=0.05)


def test_samples_follow_the_distribution_that_the_loss_measures() -> None:
    """On a space small enough to count: cache, compaction and masks of `sample` against the probabilities of `loss`."""
    torch.manual_seed(0)
    small = Generator(
        GeneratorConfig(vocab_size=2, num_global=1, grid=(1, 1, 2), num_classes=1, width=16, num_layers=1, num_heads=1)
    ).eval()
    for module in (small.place_head, small.global_head, small.patch_head):
        torch.nn.init.normal_(module.weight, std=1.0)
    drawn = small.sample(torch.zeros(20_000, dtype=torch.int64), generator=torch.Generator().manual_seed(1))
    counts: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    for sequence in drawn:
        key = tuple(sequence.codes.tolist()), tuple(sequence.positions.tolist())
        counts[key] = counts.get(key, 0) + 1
    total = 0.0
    for (codes, positions), count in counts.items():
        document = TokenRow(
            tokens=torch.tensor(codes),
            kinds=torch.tensor([0] + [1] * len(positions)),
            positions=torch.tensor([[-1, -1, -1]] + [[0, 0, p] for p in positions], dtype=torch.int32),
            grid=(1, 1, 2),
            columns={},
            row=0,
        )
        with torch.no_grad():
            probability = torch.exp(-sum(small.loss(pad([document]), torch.tensor([0])))).item()  # type: ignore[arg-type]
        total += probability
        assert count / 20_000 == pytest.approx(probability, abs=0.015)
    assert total == pytest.approx(1, abs=0.01)  # of all 18 sequences that there are, hardly any was not drawn


def test_a_sample_does_not_depend_on_its_batch(trained: Generator) -> None:
    untrained = model(seed=5)
    for generator in (trained, untrained):
        together = generator.sample(torch.tensor([0, 1, 2, 1]), temperature=0)
        for number, label in enumerate([0, 1, 2, 1]):
            alone = generator.sample(torch.tensor([label]), temperature=0)[0]
            assert together[number].codes.tolist() == alone.codes.tolist()
            assert together[number].positions.tolist() == alone.positions.tolist()


def test_positions_ascend_within_the_grid() -> None:
    for sequence in model(seed=1).sample(torch.zeros(64, dtype=torch.int64), guidance=3.0):
        positions = sequence.positions.astype(int)
        assert (np.diff(positions) > 0).all()
        assert len(positions) <= 6
        assert sequence.codes.max() < 11


def test_work_follows_the_tokens(trained: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 images of 2 tokens and 1 of 8, the layers see about the tokens, not 31 times the longest."""
    seen = []
    layer = trained.layers[0]
    forward = type(layer).forward

    def counted(self: torch.nn.Module, x: torch.Tensor, *rest: object) -> torch.Tensor:
        if self is layer:
            seen.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(type(layer), "forward", counted)
    trained.sample(torch.tensor([0] * 30 + [2]), temperature=0)
    assert sum(seen) == 31 * 3 + 6  # the class and two globals of all, then the one that goes on


def test_guidance_sharpens(trained: Generator) -> None:
    free = trained.sample(torch.full((300,), 3), generator=torch.Generator().manual_seed(0))  # any class
    lengths = {sequence.num_tokens for sequence in free}
    assert len(lengths) > 1
    guided = trained.sample(torch.full((300,), 1), guidance=2.0, generator=torch.Generator().manual_seed(0))
    assert sum(same(sequence, ROWS[1]) for sequence in guided) > 290


def test_a_batch_of_another_shape_is_refused() -> None:
    for change in ({"grid": (1, 3, 2)}, {"num_global": 1}):
        other = Generator(replace(CONFIG, **change))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="the generator is for"):
            other.loss(pad(ROWS), CLASSES)
    with pytest.raises(ConfigError, match="no multiple"):
        GeneratorConfig(vocab_size=11, num_global=2, grid=(1, 2, 3), num_classes=3, width=30, num_heads=4)

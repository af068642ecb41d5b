from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tatok.dataset.batches import TokenRow, pad
from tatok.generator.config import GeneratorConfig
from tatok.generator.model import Generator
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import Grid, TokenSequence

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
    assert (
        sum(seen) == 31 * 3 + 5
    )  # the class and two globals of all, then the one that goes on; the last asks for no end


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_compaction_changes_no_sequence(trained: Generator, guidance: float) -> None:
    def drawn(compact_below: float) -> list[tuple[list[int], list[int]]]:
        sequences = trained.sample(
            torch.arange(4).repeat(8),
            guidance=guidance,
            temperature=2.0,
            generator=torch.Generator().manual_seed(3),
            compact_below=compact_below,
        )
        return [(sequence.codes.tolist(), sequence.positions.tolist()) for sequence in sequences]

    never = drawn(0)
    assert len({len(codes) for codes, _ in never}) > 3
    assert drawn(0.9) == never
    assert drawn(1.0) == never


def test_told_positions_are_kept_exactly(trained: Generator) -> None:
    wanted = [[], [0, 1, 2, 3, 4, 5], [5], [1, 4], [2]]
    for generator in (trained, model(seed=2)):
        sequences = generator.sample(torch.arange(5) % 3, positions=[np.array(kept, np.uint16) for kept in wanted])
        assert [sequence.positions.tolist() for sequence in sequences] == wanted
        assert [sequence.num_tokens for sequence in sequences] == [2 + len(kept) for kept in wanted]
    likeliest = trained.sample(CLASSES, temperature=0, positions=[np.array([]), np.array([1, 4]), np.arange(6)])
    assert all(same(sequence, expected) for sequence, expected in zip(likeliest, ROWS, strict=True))
    for wrong in ([3, 1], [1, 1], [6]):
        with pytest.raises(ValueError, match="must ascend"):
            trained.sample(torch.tensor([0]), positions=[np.array(wrong)])
    with pytest.raises(ValueError, match="2 images, but 1 classes"):
        trained.sample(torch.tensor([0]), positions=[np.array([1])] * 2)


def fixed(**changes: object) -> Generator:
    torch.manual_seed(0)
    return Generator(replace(CONFIG, **{"fixed_positions": tuple(range(6)), **changes})).eval()  # type: ignore[arg-type]


def test_fixed_positions_cost_neither_places_nor_a_last_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = fixed(num_global=0)
    names = set(generator.state_dict())
    assert not any(name.startswith(("place_head", "ask_place", "code_trunk", "global_head")) for name in names)
    assert generator.embed_code.num_embeddings == 11  # of the one kind that occurs
    full = row([5, 6, 7, 8, 9, 10], [0, 1, 2, 3, 4, 5])
    with torch.no_grad():
        codes, places = generator.loss(pad([full, full]), torch.tensor([0, 3]))
    assert places == 0
    assert codes.item() == pytest.approx(12 * np.log(11), rel=0.05)
    seen = []
    layer = generator.layers[0]
    monkeypatch.setattr(
        layer, "forward", lambda *arguments: (seen.append(1), type(layer).forward(layer, *arguments))[1]
    )
    [sequence] = generator.sample(torch.tensor([1]))
    assert sequence.positions.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(seen) == 6
    generator.loss(pad([full]), torch.tensor([0]))
    assert len(seen) == 7


def test_a_fixed_rate_sample_follows_the_distribution_that_the_loss_measures() -> None:
    generator = fixed(vocab_size=2, num_global=1, fixed_positions=(4,))
    for module in (generator.global_head, generator.patch_head):
        torch.nn.init.normal_(module.weight, std=1.0)
    drawn = generator.sample(torch.zeros(4_000, dtype=torch.int64), generator=torch.Generator().manual_seed(1))
    counts = np.unique([sequence.codes for sequence in drawn], axis=0, return_counts=True)
    total = 0.0
    for codes, count in zip(*counts, strict=True):
        with torch.no_grad():
            nats = generator.loss(pad([row(codes.tolist(), [4])]), torch.tensor([0])).codes
        total += torch.exp(-nats).item()
        assert count / 4_000 == pytest.approx(torch.exp(-nats).item(), abs=0.03)
    assert total == pytest.approx(1, abs=0.01)


def test_globals_alone_are_sequences_too() -> None:
    generator = fixed(fixed_positions=())
    assert not any(name.startswith("patch_head") for name in generator.state_dict())
    [sequence] = generator.sample(torch.tensor([1]))
    assert (sequence.num_tokens, sequence.num_patches) == (2, 0)
    assert generator.loss(pad([row([3, 4], [])]), torch.tensor([0])).codes > 0


def test_sequences_without_globals_but_of_variable_length() -> None:
    generator = Generator(replace(CONFIG, num_global=0)).eval()
    documents = [row([1, 2], [2, 5]), row([3], [0])]
    together = generator.loss(pad(documents), torch.tensor([0, 1]))
    alone = [generator.loss(pad([each]), torch.tensor([c])) for c, each in enumerate(documents)]
    assert together.codes.item() == pytest.approx(sum(loss.codes.item() for loss in alone), rel=1e-5)
    assert together.places.item() == pytest.approx(sum(loss.places.item() for loss in alone), rel=1e-5)
    sequences = generator.sample(torch.zeros(50, dtype=torch.int64), generator=torch.Generator().manual_seed(0))
    assert min(sequence.num_tokens for sequence in sequences) == 0  # a place comes first, and may be the end
    assert max(sequence.num_tokens for sequence in sequences) > 1


def test_fixed_positions_are_checked() -> None:
    for wrong in ((3, 1), (1, 1), (6,), (-1,)):
        with pytest.raises(ConfigError, match="must ascend"):
            fixed(fixed_positions=wrong)
    with pytest.raises(ConfigError, match="nothing to generate"):
        fixed(num_global=0, fixed_positions=())
    with pytest.raises(ConfigError, match="keep the same 6 positions"):
        fixed().loss(pad([ROWS[1]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="fixed_positions; give no others"):
        fixed().sample(torch.tensor([0]), positions=[np.array([1])])


def test_guidance_sharpens(trained: Generator) -> None:
    free = trained.sample(torch.full((300,), 3), generator=torch.Generator().manual_seed(0))  # any class
    lengths = {sequence.num_tokens for sequence in free}
    assert len(lengths) > 1
    guided = trained.sample(torch.full((300,), 1), guidance=2.0, generator=torch.Generator().manual_seed(0))
    assert sum(same(sequence, ROWS[1]) for sequence in guided) > 280


def test_a_batch_of_another_shape_is_refused() -> None:
    for change in ({"grid": (1, 3, 2)}, {"num_global": 1}):
        other = Generator(replace(CONFIG, **change))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="the generator is for"):
            other.loss(pad(ROWS), CLASSES)
    with pytest.raises(ConfigError, match="no multiple"):
        GeneratorConfig(vocab_size=11, num_global=2, grid=(1, 2, 3), num_classes=3, width=30, num_heads=4)

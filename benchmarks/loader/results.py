"""What the loader bench measured: as JSON, and as the tables of docs/results/loader.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

__all__ = ["MARK", "Failure", "Measurement", "Place", "Results", "tables"]

MARK = "results of benchmarks/loader/run.py"
OURS = "tatok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One loader's one epoch; `peak_bytes` is that of its processes together, PSS, `imports_bytes` what it began with.

    `seconds`, `first_batch_seconds` and `cpu_seconds` are as in one.Epoch.
    """

    loader: str
    variant: str
    num_workers: int
    num_tokens: int
    num_batches: int
    first_batch_tokens: int
    first_batch_seconds: float
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    imports_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Over the whole epoch, start-up included."""
        return self.num_tokens / self.seconds

    @property
    def steady_tokens_per_second(self) -> float:
        """From the first batch to the end of the epoch."""
        return (self.num_tokens - self.first_batch_tokens) / (self.seconds - self.first_batch_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A setting that gave no epoch; the message is one line."""

    loader: str
    variant: str
    num_workers: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Everything measured at one place, "local" or "s3".

    `tried` is every setting of every loader once, from which each loader's quickest was chosen; `rounds` are the
    measurements of those, loaders in turn.
    """

    name: str
    tried: list[Measurement] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    rounds: list[list[Measurement]] = field(default_factory=list)

    def loaders(self) -> list[str]:
        """Those that were measured, in the order of the rounds."""
        return [each.loader for each in self.rounds[0]] if self.rounds else []

    def of(self, loader: str) -> list[Measurement]:
        """A loader's measurement in each round."""
        return [each for round_ in self.rounds for each in round_ if each.loader == loader]

    def times_as_fast(self, loader: str, *, steady: bool = False) -> list[float]:
        """tatok's tokens a second over the loader's, in each round; with `steady`, from the first batch on."""
        name = "steady_tokens_per_second" if steady else "tokens_per_second"
        pairs = zip(self.of(OURS), self.of(loader), strict=True)
        return [getattr(ours, name) / getattr(theirs, name) for ours, theirs in pairs]

    def times_as_fast_as_the_best_peer(self, *, steady: bool = False) -> list[float]:
        """tatok's tokens a second over those of the round's quickest peer, in each round."""
        peers = [loader for loader in self.loaders() if not loader.startswith(OURS)]
        ratios = [self.times_as_fast(peer, steady=steady) for peer in peers]
        return [min(of_round) for of_round in zip(*ratios, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """One run of the bench."""

    num_rows: int
    num_tokens: int
    machine: dict[str, str]
    versions: dict[str, str]
    places: list[Place]

    def to_json(self) -> str:
        """Every single measurement."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Results:
        """The inverse of `to_json`."""
        document = json.loads(text)
        places = [
            Place(
                name=place["name"],
                tried=[Measurement(**each) for each in place["tried"]],
                failures=[Failure(**each) for each in place["failures"]],
                rounds=[[Measurement(**each) for each in round_] for round_ in place["rounds"]],
            )
            for place in document.pop("places")
        ]
        return Results(places=places, **document)


def tables(results: Results) -> str:
    """Markdown: a table a place, medians over the rounds with (least-most)."""
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    versions = ", ".join(f"{name} {value}" for name, value in results.versions.items())
    lines = [f"{results.num_rows:,} rows, {results.num_tokens:,} tokens; {machine}; {versions}.", ""]
    for place in results.places:
        lines += _place(place)
    return "\n".join(lines).rstrip() + "\n"


def _place(place: Place) -> list[str]:
    titles = {"local": "On a local disk", "s3": "Over the S3 protocol"}
    lines = [f"### {titles[place.name]}, {len(place.rounds)} rounds", ""]
    lines += [
        "| loader | as | workers | M tokens/s | tatok is faster, times | M tokens/s after the first batch "
        "| tatok is faster, times | M tokens a CPU second | first batch, ms | peak memory, MiB | above imports, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for loader in place.loaders():
        own = place.of(loader)
        cells = [
            loader,
            own[0].variant,
            str(own[0].num_workers),
            _spread([each.tokens_per_second / 1e6 for each in own]),
            "" if loader == OURS else _spread(place.times_as_fast(loader)),
            _spread([each.steady_tokens_per_second / 1e6 for each in own]),
            "" if loader == OURS else _spread(place.times_as_fast(loader, steady=True)),
            _spread([each.num_tokens / each.cpu_seconds / 1e6 for each in own]),
            _spread([each.first_batch_seconds * 1e3 for each in own], "{:,.0f}"),
            _spread([each.peak_bytes / 2**20 for each in own], "{:,.0f}"),
            _spread([(each.peak_bytes - each.imports_bytes) / 2**20 for each in own], "{:,.0f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    best, steady = (place.times_as_fast_as_the_best_peer(steady=steady) for steady in (False, True))
    text = f"{_spread(best)} times as fast; from the first batch on, {_spread(steady)} times" if best else "no peer ran"
    lines += ["", f"tatok against the quickest peer of each round: {text}.", ""]
    lines += ["Every setting tried, once each, in M tokens/s; the quickest of each loader went into the rounds:", ""]
    lines += ["| loader | as | workers 0 | workers 2 |", "|---|---|---|---|"]
    ways = [(each.loader, each.variant) for each in place.tried] + [(e.loader, e.variant) for e in place.failures]
    for loader, variant in dict.fromkeys(ways):
        cells = [_tried(place, loader, variant, workers) for workers in (0, 2)]
        lines.append(f"| {loader} | {variant} | {' | '.join(cells)} |")
    return [*lines, ""]


def _tried(place: Place, loader: str, variant: str, num_workers: int) -> str:
    setting = (loader, variant, num_workers)
    for each in place.tried:
        if (each.loader, each.variant, each.num_workers) == setting:
            return f"{each.tokens_per_second / 1e6:.2f}"
    return next(
        (each.message for each in place.failures if (each.loader, each.variant, each.num_workers) == setting),
        "",
    )


def _spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    show: Callable[[float], str] = form.format
    return f"{show(median(values))} ({show(min(values))}-{show(max(values))})"

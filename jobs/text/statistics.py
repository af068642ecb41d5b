"""Statistics of a dataset as plain text for 80 columns: tables, bars, the share of each grid position."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from tatok.jobs.text.query import printable
from tatok.schemas.records import count_text
from tatok.statistics.units import bytes_text, noun_of, with_article

if TYPE_CHECKING:
    import numpy as np

    from tatok.statistics.distribution import Distribution
    from tatok.statistics.groups import GroupedStatistics
    from tatok.statistics.row_sample import RowBasis
    from tatok.statistics.summary import CodebookUse, DatasetStatistics, KeptShare, SizeOnDisk, Throughput

__all__ = ["groups_text", "statistics_text"]

_HISTOGRAMS = {
    "num_tokens": "tokens {a_noun}",
    "entropy_bits": "entropy of {a_noun}'s patches, given the globals, in bits",
    "entropy_max_bits": "entropy of {a_noun}'s most surprising patch, in bits",
}
_WIDTH = 80
_TIE = "\xa0"
_BAR_CHARACTERS = 40
_MAX_GRID_COLUMNS = 19
_MAX_GROUP_CHARACTERS = 28
_MAX_LINES = 8


def statistics_text(statistics: DatasetStatistics) -> str:
    """The whole summary."""
    return "\n".join("\n".join(lines) + "\n" for lines in _sections(statistics) if lines)


def groups_text(grouped: GroupedStatistics) -> str:
    """One line a group."""
    labels = ["(none)" if group.value is None else printable(str(group.value)) for group in grouped.groups]
    width = min(max(map(len, [grouped.column, *labels])), _MAX_GROUP_CHARACTERS)
    lines = [f"{grouped.column:{width}} {'rows':>11} {'tokens':>7} {'mean':>7} {'p95':>6} {'entropy bits':>12}"]
    for label, group in zip(labels, grouped.groups, strict=True):
        # The end of a long value says more: sources differ in their last characters.
        name = label if len(label) <= width else f"…{label[1 - width :]}"
        bits = "none" if group.mean_entropy_bits is None else _short(group.mean_entropy_bits)
        lines.append(
            f"{name:{width}} {group.num_rows:11,} {group.token_share:7.1%} {_short(group.mean_tokens):>7} "
            f"{_short(group.p95_tokens):>6} {bits:>12}"
        )
    if grouped.num_groups > len(grouped.groups):
        lines.append(f"the {len(grouped.groups)} largest of {grouped.num_groups:,} groups; --limit shows more")
    if [group.value for group in grouped.groups] == [None]:
        lines.append(f"no row has a value in {grouped.column}")
    if not grouped.basis.exact:
        lines.append(_sample_note(grouped.basis))
    if grouped.groups:
        lines += ["", "tokens: share of all tokens; mean, p95: tokens a row; entropy bits: mean a row"]
    return "\n".join(lines) + "\n"


def _sections(statistics: DatasetStatistics) -> Iterator[list[str]]:
    yield _heading(statistics)
    if statistics.distributions:
        yield _table(statistics.distributions, statistics.row_basis)
    noun = noun_of(statistics)
    for distribution in statistics.distributions:
        if distribution.column in _HISTOGRAMS:
            yield _histogram(_HISTOGRAMS[distribution.column].format(a_noun=with_article(noun)), distribution)
    if statistics.num_rows and not statistics.has_entropy:
        yield ["no entropies: the dataset's tokenizer does not say how surprising its codes are"]
    if statistics.num_tokens:
        yield _codebooks(statistics)
    if statistics.kept_share is not None:
        yield _kept(statistics, statistics.kept_share)
    yield _rejects(statistics)
    if statistics.left_out:
        each = (f"{count:,} {printable(what)}" for what, count in statistics.left_out.items())
        yield _wrapped(f"left out: {', '.join(each)}")
    yield _size(statistics.size)
    yield _throughput(statistics.runs, statistics.throughput)


def _heading(statistics: DatasetStatistics) -> list[str]:
    state = "complete" if statistics.complete else "not complete: a run is under way, or was stopped"
    mean = statistics.num_tokens / max(statistics.num_rows, 1)
    return [
        f"{statistics.url} ({state})",
        f"{count_text(statistics.num_rows, 'row')} in {count_text(statistics.num_parts, 'part')}, "
        f"{statistics.num_tokens:,} tokens "
        f"({mean:.1f} a row)",
    ]


def _table(distributions: tuple[Distribution, ...], basis: RowBasis) -> list[str]:
    names = ("mean", "std", "min", "p5", "p25", "median", "p75", "p95", "max")
    lines = [f"{'':17}" + "".join(f"{name:>7}" for name in names)]
    for each in distributions:
        values = (each.mean, each.std, each.min, each.p5, each.p25, each.median, each.p75, each.p95, each.max)
        lines.append(f"{each.column:17}" + "".join(f"{_short(value):>7}" for value in values))
    lines += [f"{each.column}: {each.num_not_finite:,} are not finite" for each in distributions if each.num_not_finite]
    return lines if basis.exact else [*lines, _sample_note(basis)]


def _histogram(title: str, distribution: Distribution) -> list[str]:
    """A line a bin, but one for neighbouring bins without values. Integers are named by a bin's first and last."""
    edges, counts = distribution.histogram.edges, distribution.histogram.counts
    digits = max(len(f"{edge:.10g}".partition(".")[2]) for edge in edges)
    joined = [
        list(bins) for _, bins in groupby(range(len(counts)), key=lambda number: number if counts[number] else -1)
    ]
    ends = [(edges[bins[0]], edges[bins[-1] + 1]) for bins in joined]
    if distribution.min == distribution.max:
        ends = [(distribution.min, distribution.min)]
        digits = 0 if distribution.min.is_integer() else 2
    elif distribution.column.startswith("num_"):
        ends = [(start, stop - 1) for start, stop in ends]
    texts = [(f"{start:,.{digits}f}", "" if start == stop else f"{stop:,.{digits}f}") for start, stop in ends]
    widths = [max(map(len, side)) for side in zip(*texts, strict=True)]
    lines = [title]
    for (start, stop), bins in zip(texts, joined, strict=True):
        between = f" {'..' if stop else '  '} {stop:>{widths[1]}}" if widths[1] else ""
        count = counts[bins[0]]
        lines.append(f"{start:>{widths[0]}}{between} {count:12,} {_bar(count / max(counts))}".rstrip())
    return lines


def _codebooks(statistics: DatasetStatistics) -> list[str]:
    lines = [_codebook(use) for use in statistics.codebooks if use.num_tokens]
    if not statistics.codebooks:
        return [f"the codebook has {statistics.vocab_size:,} codes, too many to count the use of each"]
    return lines if statistics.token_basis.exact else [*lines, _sample_note(statistics.token_basis)]


def _codebook(use: CodebookUse) -> str:
    return (
        f"{use.kind} codes: {use.num_codes_used:,} of {use.vocab_size:,} used ({use.share_used:.1%}), "
        f"perplexity {use.perplexity:,.0f}"
    )


def _kept(statistics: DatasetStatistics, kept: KeptShare) -> list[str]:
    frames, height, width = kept.grid
    if len(statistics.grids) == 1 and (kept.share_THW == 1).all():
        return [f"every row has every position of its {frames} x {height} x {width} grid"]
    share_HW, block = _pooled(kept.share_THW.mean(axis=0), _MAX_GRID_COLUMNS)
    number_of_rows = statistics.grids[0].num_rows
    others = f" ({number_of_rows / statistics.row_basis.num_rows:.1%} of rows)" if len(statistics.grids) > 1 else ""
    lines = [f"percentage of rows that keep each position of the {frames} x {height} x {width} grid{others}"]
    if frames > 1:
        lines.append(f"mean of {frames} frames")
    if block > 1:
        lines.append(f"each number is the mean of {block} x {block} positions")
    lines += ["".join(f"{100 * share:4.0f}" for share in row) for row in share_HW]
    return lines if kept.num_rows == number_of_rows else [*lines, f"measured on {kept.num_rows:,} of these rows"]


def _pooled(share_HW: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Means of square blocks, as small as possible but at most so many across; those at the edges may be smaller."""
    import numpy as np

    height, width = share_HW.shape
    block = -(-width // most)
    rows, columns = np.arange(0, height, block), np.arange(0, width, block)
    sums = np.add.reduceat(np.add.reduceat(share_HW, rows, axis=0), columns, axis=1)
    sizes = np.diff([*rows, height])[:, None] * np.diff([*columns, width])
    return sums / sizes, block


def _rejects(statistics: DatasetStatistics) -> list[str]:
    if not statistics.num_rejects:
        return ["no rejects"]
    share = statistics.num_rejects / (statistics.num_rejects + statistics.num_rows)
    most = max(statistics.rejects.values())
    width = max(map(len, statistics.rejects))
    return [f"{count_text(statistics.num_rejects, 'reject')}, {share:.2%} of samples"] + [
        f"{printable(reason):{width}} {count:12,} {_bar(count / most)}".rstrip()
        for reason, count in statistics.rejects.items()
    ]


def _size(size: SizeOnDisk) -> list[str]:
    if not size.column_bytes:
        return [f"{bytes_text(size.num_bytes)} on disk"]
    return [
        f"{bytes_text(size.num_bytes)} on disk: "
        f"{size.bytes_per_token:.2f} bytes a token, {size.bytes_per_row:.0f} a row",
        *_wrapped(f"of which {_shares(size.column_bytes)}"),
    ]


def _shares(column_bytes: Mapping[str, int]) -> str:
    total = sum(column_bytes.values())
    large = ("tokens", "positions", "patch_entropy_bits", "patch_worth_bits")
    named = {name: column_bytes[name] for name in large if name in column_bytes}
    shares = [f"{name}{_TIE}{count / total:.0%}" for name, count in named.items()]
    return ", ".join([*shares, f"other columns{_TIE}{1 - sum(named.values()) / total:.0%}"])


def _throughput(runs: tuple[Throughput, ...], total: Throughput | None) -> list[str]:
    if total is None:
        return ["no record of a finished run, so no throughput"]
    lines = []
    if len(runs) > 1:
        lines += [f"({len(runs) - _MAX_LINES} earlier runs)"] if len(runs) > _MAX_LINES else []
        for run in runs[-_MAX_LINES:]:
            lines += _wrapped(f"run of {run.started_at} ({run.status}): {_rate(run)}")
    return [*lines, f"{len(runs)} run{'s' if len(runs) > 1 else ''} in all: {_rate(total)}"]


def _rate(run: Throughput) -> str:
    return (
        f"{count_text(run.num_rows, 'row')} in {run.seconds:,.1f} s, "
        f"{_short(run.rows_per_second)} rows/s, {_short(run.tokens_per_second)} tokens/s"
    )


def _sample_note(basis: RowBasis) -> str:
    rows = f"{basis.num_rows:,} of {count_text(basis.num_rows_total, 'row')}"
    return f"measured on {rows}, in evenly spread row groups; --exact reads all"


def _wrapped(line: str) -> list[str]:
    """A line as several where it is too wide; it does not end at a `_TIE`, which becomes a space."""
    lines = textwrap.wrap(line, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return [each.replace(_TIE, " ") for each in lines]


def _bar(fraction: float) -> str:
    """A bar of up to 40 characters; anything above nothing shows."""
    length = round(fraction * _BAR_CHARACTERS)
    full, sliver = ("█", "▏") if (sys.stdout.encoding or "").lower().startswith("utf") else ("#", ".")
    return full * length or (sliver if fraction > 0 else "")


def _short(value: float) -> str:
    """At most 6 characters for anything below a million."""
    if abs(value) >= 1e6:
        return f"{value:.1e}".replace("e+0", "e")
    whole = abs(value - round(value)) < 1e-9  # percentiles of integers come with rounding errors
    digits = 0 if whole or abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:.{digits}f}"

"""The report's part on generators: their samples beside those of the full rate's, and how fast they sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.claims.models import variants
from benchmarks.claims.report.tables import table
from benchmarks.claims.results import Results
from benchmarks.claims.samples import Guided, Sampling
from benchmarks.claims.speed import Speed
from tatok.evaluation.distances import ImageDistances

__all__ = ["generation", "sample_ratios", "samples", "sampling_speed"]

EQUAL = {"tokens": "training tokens", "time": "training time"}


def generation(results: Results) -> list[str]:
    """What each generator was given, and what it learned."""
    counts = {each.variant: each.mean_tokens for each in results.tokenizations}
    titles = {variant.name: variant.title for variant in variants(results.setting)}
    rows = [
        [
            titles[each.variant],
            EQUAL[each.budget],
            f"{counts[each.variant]:.1f}",
            f"{each.num_parameters / 1e6:.2f}",
            f"{each.spent.tokens / 1e6:.2f}",
            f"{each.spent.images / 1e3:.0f}",
            f"{each.spent.seconds:.0f}",
            f"{each.heldout.bits:.0f}",
            f"{each.heldout.place_bits:.0f}",
        ]
        for each in results.generations
    ]
    head = (
        "tokens of",
        "equal",
        "tokens an image",
        "M parameters",
        "M tokens trained on",
        "k images",
        "seconds",
        "held-out bits an image",
        "of them, places and end",
    )
    return ["### Generators", "", *table(head, rows)]


def samples(results: Results) -> list[str]:
    """Distances of the samples, and whose share of them is whose."""
    titles = {variant.name: variant.title for variant in variants(results.setting)}
    rows = []
    for each in results.samplings:
        for guided in each.samples:
            rows.append(
                [
                    titles[each.variant],
                    EQUAL[each.budget],
                    f"{guided.guidance:g}",
                    f"{guided.mean_tokens:.1f}",
                    _kernel(guided.to_real),
                    _frechet(guided.to_real),
                    _kernel(each.rebuilt_to_real),
                    _frechet(each.rebuilt_to_real),
                    _kernel(guided.to_rebuilt),
                    _frechet(guided.to_rebuilt),
                ]
            )
    head = (
        "tokens of",
        "equal",
        "guidance",
        "tokens a sample",
        "**KID x1000 of samples**",
        "Fréchet",
        "tokenizer alone: KID of rebuilt images",
        "Fréchet",
        "generator alone: KID of samples to rebuilt images",
        "Fréchet",
    )
    num = results.setting.num_samples
    return [f"### {num:,} samples of each generator beside as many held-out images", "", *table(head, rows)]


def _kernel(distances: ImageDistances) -> str:
    return f"{1000 * distances.kernel:.1f} +- {1000 * distances.kernel_std:.1f}"


def _frechet(distances: ImageDistances) -> str:
    return "-" if distances.frechet is None else f"{distances.frechet:.2f}"


def sample_ratios(results: Results) -> list[str]:
    """The full rate's distances over another's: above 1 the other is better."""
    full, *others = results.samplings
    titles = {variant.name: variant.title for variant in variants(results.setting)}

    def ratios(of: Callable[[Guided], float | None], other: Sampling) -> list[str]:
        theirs, ours = ([value for value in map(of, each.samples) if value is not None] for each in (full, other))
        if not len(theirs) == len(ours) == len(full.samples):
            return ["-"] * (len(full.samples) + 1)
        at_each = (a / b for a, b in zip(theirs, ours, strict=True))
        return [f"{ratio:.2f}" for ratio in (*at_each, min(theirs) / min(ours))]

    rows = []
    for other in others:
        start = [titles[other.variant], EQUAL[other.budget]]
        rows.append([*start, "KID", *ratios(lambda guided: guided.to_real.kernel, other)])
        rows.append([*start, "Fréchet distance", *ratios(lambda guided: guided.to_real.frechet, other)])
        rows.append([*start, "KID of the generator alone", *ratios(lambda guided: guided.to_rebuilt.kernel, other)])
    guidances = [f"guidance {guided.guidance:g}" for guided in full.samples]
    head = ("tokens of", "equal", "ratio of", *guidances, "each at its best")
    title = f"### Samples: distances of {titles[full.variant]}, over the others'; above 1 the other is better"
    return [title, "", *table(head, rows)]


def sampling_speed(speeds: Sequence[Speed]) -> list[str]:
    lines = ["### Sampling speed, images a second over those of the full rate's generator"]
    for speed in speeds:
        percentiles = ", ".join(f"{name} {value:.0f}" for name, value in speed.token_percentiles.items())
        lines += [
            "",
            f"{speed.baseline_tokens} tokens against those of {speed.num_rows:,} rows: {percentiles}. Generators of "
            f"width {speed.generator['width']} and {speed.generator['num_layers']} layers on {speed.device}, "
            f"{speed.num_threads} threads; median (least to most) of the rounds.",
            "",
        ]
        rows = [
            [
                each.setting,
                each.contender,
                f"{each.baseline_batch} : {each.contender_batch}",
                f"{each.median_ratio:.2f} ({each.min_ratio:.2f} to {each.max_ratio:.2f})",
                f"{each.median_cpu_ratio:.2f}",
                f"{each.median_end_to_end_ratio:.2f}",
                f"{each.token_ratio:.2f}",
                f"{each.row_pass_ratio:.2f}",
                f"{each.row_pass_speedup:.2f}",
            ]
            for each in speed.comparisons
        ]
        head = (
            "setting",
            "generator",
            "batch, full rate : tatok",
            "times as fast",
            "by CPU time",
            "end to end, with the decoder",
            "tokens, times fewer",
            "row passes, times fewer",
            "a row pass, times as fast",
        )
        lines += table(head, rows)
    return lines

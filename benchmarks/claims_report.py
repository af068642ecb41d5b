"""docs/RESULTS.md's tables and figure, out of what the claims bench measured. `make claims-report` runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer
from claims_figure import draw_curve
from claims_models import Variant, variants
from claims_reconstruction import IN_ABLATIONS, SAME_WEIGHTS_RIVALS, Reconstruction
from claims_results import Results, read_results, read_speed
from claims_speed import Speed

from tatok.evaluation import PolicyScore

__all__ = ["BEGIN", "END", "headline_scores", "put_between", "tables", "write_report"]

BEGIN, END = "<!-- results of benchmarks/claims.py -->", "<!-- end of results -->"
OURS = "tatok"
DTF_POLICIES = ("DTF distance", "DTF content")


def write_report(
    results: Annotated[Path, typer.Option(help="What the bench wrote.")] = Path("docs/results/claims.json"),
    document: Annotated[Path, typer.Option(help="Document with the marks.")] = Path("docs/RESULTS.md"),
    speed: Annotated[
        Path, typer.Option(help="Sampling speed at 256x256, if it was measured (benchmarks/claims_speed.py).")
    ] = Path("docs/results/speed.json"),
    figure: Annotated[Path, typer.Option(help="The rate-distortion curve.")] = Path("docs/rate-distortion.svg"),
) -> None:
    """Put the tables into the document, and draw the figure."""
    measured = read_results(results)
    larger = read_speed(speed) if speed.exists() else None
    document.write_text(put_between(document.read_text(), tables(measured, larger)))
    draw_curve(measured, figure)
    print(f"{document}, {figure}")


def put_between(document: str, text: str) -> str:
    """The document with a text between its marks. Raises ValueError where it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{text.rstrip()}\n\n{END}{after}"


def tables(results: Results, larger: Speed | None = None) -> str:
    """Markdown of everything that was measured; `larger` is the sampling speed at a larger image size."""
    parts = [
        _setting(results),
        _headline(results),
        _margins(results),
        _policies(results),
        _curve(results),
        _ablations(results),
        _entropies(results),
        _codes(results),
        _quartiles(results),
        _generation(results),
        _speed([results.speed, *([] if larger is None else [larger])]),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def headline_scores(results: Results, variant: str, policy: str | None = None) -> list[PolicyScore]:
    """A model's score of each seed at the headline's count; of a fixed-rate model, its only one."""
    found = []
    for each in _of(results, variant):
        for point in each.points:
            if point.wanted_tokens in (None, results.setting.headline):
                found += [score for score in point.scores if policy is None or score.name == policy]
    return found


def _of(results: Results, variant: str) -> list[Reconstruction]:
    return [each for each in results.reconstructions if each.variant == variant]


def _named(results: Results) -> list[Variant]:
    return variants(results.setting)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _spread(values: Sequence[float | None], form: str = "{:.2f}") -> str:
    """Mean (least to most) over seeds; one value alone stands without."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    show: Callable[[float], str] = form.format
    text = show(mean(numbers))
    return text if len(numbers) == 1 else f"{text} ({show(min(numbers))} to {show(max(numbers))})"


def _setting(results: Results) -> list[str]:
    setting, machine, recipe = results.setting, results.machine, results.setting.recipe
    backbone = setting.backbone
    versions = ", ".join(f"{name} {value}" for name, value in machine.versions.items())
    trained = [each for each in results.reconstructions if each.variant == OURS]
    return [
        "### Setting",
        "",
        f"`{setting.name}`: images of {setting.image_size}x{setting.image_size}, trained on "
        f"`{Path(results.images).name}`, measured on {setting.num_heldout:,} of `{Path(results.heldout).name}`. "
        f"Patches of {backbone.patch_size}, codebooks of {backbone.codebook_size}, width {backbone.width}; steps of "
        f"{recipe.batch_size} images: tokenizer {recipe.tokenizer_steps}, prior {recipe.prior_steps}, decoder "
        f"{recipe.decoder_steps}. "
        f"Seeds {', '.join(map(str, setting.seeds))}; figures of several are mean (least to most). "
        f"A TaTok model took {_spread([each.seconds / 60 for each in trained], '{:.0f}')} minutes.",
        "",
        f"{machine.processor}, {machine.num_cores} cores, {machine.device}, {machine.num_processes} models at "
        f"a time with {machine.num_threads} threads each; {versions}.",
    ]


def _score_cells(scores: Sequence[PolicyScore]) -> list[str]:
    return [
        _spread([s.mean_tokens for s in scores], "{:.1f}"),
        _spread([s.bits_with_positions for s in scores], "{:.0f}"),
        _spread([s.psnr_db for s in scores]),
        _spread([s.psnr_of_mean_db for s in scores]),
        _spread([s.ssim for s in scores], "{:.3f}"),
        _spread([s.perceptual_milli for s in scores], "{:.1f}"),
        _spread([None if s.kernel is None else 1000 * s.kernel for s in scores], "{:.2f}"),
    ]


SCORE_HEAD = ("tokens", "bits with positions", "PSNR", "pooled PSNR", "SSIM", "perceptual", "KID x1000")


def _headline(results: Results) -> list[str]:
    rows = [[f"**TaTok, {policy}**", *_score_cells(headline_scores(results, OURS, policy))] for policy in DTF_POLICIES]
    for variant in _named(results):
        if variant.group == "fixed":
            rows.append([variant.title, *_score_cells(headline_scores(results, variant.name))])
    return ["### Against fixed-rate tokens", "", *_table(("tokens of", *SCORE_HEAD), rows)]


def _margins(results: Results) -> list[str]:
    """Ours minus theirs of the same seed, at the headline's count."""
    rows = []
    for policy in DTF_POLICIES:
        ours = headline_scores(results, OURS, policy)
        rivals = [
            (v.title, headline_scores(results, v.name)) for v in _named(results) if v.has_spread and v.name != OURS
        ]
        rivals += [(f"{name}, same weights", headline_scores(results, OURS, name)) for name in SAME_WEIGHTS_RIVALS]
        for title, theirs in rivals:
            pairs = list(zip(ours, theirs, strict=True))
            rows.append(
                [
                    policy,
                    title,
                    _spread([a.mean_tokens - b.mean_tokens for a, b in pairs], "{:+.1f}"),
                    _spread([a.bits_with_positions - b.bits_with_positions for a, b in pairs], "{:+.0f}"),
                    _spread([a.psnr_db - b.psnr_db for a, b in pairs], "{:+.2f}"),
                    _spread([a.psnr_of_mean_db - b.psnr_of_mean_db for a, b in pairs], "{:+.2f}"),
                    _spread([a.kernel / b.kernel if a.kernel and b.kernel else None for a, b in pairs]),
                ]
            )
    head = ("policy", "against", "tokens", "bits with positions", "PSNR, dB", "pooled PSNR, dB", "KID, ratio")
    return ["### Margins (TaTok minus the rival, seed by seed; of KID the ratio)", "", *_table(head, rows)]


def _policies(results: Results) -> list[str]:
    names = list(dict.fromkeys(score.name for score in headline_scores(results, OURS)))
    rows = [[name, *_score_cells(headline_scores(results, OURS, name))] for name in names]
    title = f"### Every way to choose the kept patches, same weights, {results.setting.headline} tokens on average"
    return [title, "", *_table(("policy", *SCORE_HEAD), rows)]


def _curve(results: Results) -> list[str]:
    rows = []
    for policy in (*DTF_POLICIES, "fixed k by distance", "random"):
        for count in sorted({results.setting.headline, *results.setting.curve}):
            points = [point for each in _of(results, OURS) for point in each.points if point.wanted_tokens == count]
            scores = [score for point in points for score in point.scores if score.name == policy]
            rows.append([f"TaTok, {policy}", *_score_cells(scores)])
    grids = [variant for variant in _named(results) if variant.name.startswith("grid-")]
    for variant in sorted(grids, key=lambda variant: variant.fixed_tokens or 0):
        rows.append([variant.title, *_score_cells(headline_scores(results, variant.name))])
    lines = ["### Rate and distortion", "", "![Pooled PSNR against tokens and against bits](rate-distortion.svg)", ""]
    return [*lines, *_table(("tokens of", *SCORE_HEAD), rows)]


def _ablations(results: Results) -> list[str]:
    rows = []
    for variant in _named(results):
        if variant.group == "fixed":
            continue
        for policy in IN_ABLATIONS:
            scores = headline_scores(results, variant.name, policy)[:1]  # ablations have the first seed alone
            rows.append([variant.title, policy, *_score_cells(scores)])
    return ["### Ablations (first seed)", "", *_table(("model", "policy", *SCORE_HEAD), rows)]


def _entropies(results: Results) -> list[str]:
    rows = [
        [
            f"{each.visible_share:.0%}",
            f"{each.without_globals_bits:.2f}",
            f"{each.given_globals_bits:.2f}",
            f"{each.without_globals_bits - each.given_globals_bits:.2f}",
            f"{each.without_globals_entropy_bits:.2f}",
            f"{each.given_globals_entropy_bits:.2f}",
        ]
        for each in results.entropies
    ]
    head = (
        "patches visible",
        "surprisal, no globals",
        "surprisal, globals given",
        "what the globals tell",
        "entropy, no globals",
        "entropy, globals given",
    )
    return ["### Bits a patch code, with and without the globals", "", *_table(head, rows)]


def _codes(results: Results) -> list[str]:
    rows = []
    for variant in _named(results):
        if variant.group == "fixed":
            continue
        codes = [each.codes for each in _of(results, variant.name) if each.codes]
        rows.append(
            [
                variant.title,
                _spread([c.global_perplexity for c in codes], "{:.0f}"),
                _spread([c.patch_perplexity for c in codes], "{:.0f}"),
                _spread([c.given_globals.entropy_bits for c in codes]),
                _spread([c.given_globals.surprisal_bits for c in codes]),
                _spread([c.given_half.entropy_bits for c in codes]),
                _spread([c.given_half.surprisal_bits for c in codes]),
            ]
        )
    head = (
        "model",
        "perplexity of global codes",
        "of patch codes",
        "entropy, bits a patch given the globals",
        "surprisal",
        "entropy given half the patches, too",
        "surprisal",
    )
    return ["### Codebook use, and the prior's calibration, on held-out images", "", *_table(head, rows)]


def _quartiles(results: Results) -> list[str]:
    rows = []
    for policy in (*DTF_POLICIES, "fixed k by distance"):
        scores = headline_scores(results, OURS, policy)
        for number, quarter in enumerate(scores[0].quartiles):
            rows.append(
                [
                    policy,
                    f"{number + 1}",
                    f"{quarter.mean_png_bytes:,.0f}",
                    _spread([s.quartiles[number].mean_tokens for s in scores], "{:.1f}"),
                    _spread([s.quartiles[number].mean_psnr_db for s in scores]),
                ]
            )
        correlation = _spread([s.count_correlation for s in scores])
        rows.append([policy, "rank correlation of count and PNG size", "", correlation, ""])
    head = ("policy", "quarter by PNG size", "PNG bytes", "tokens", "PSNR")
    return ["### Where the tokens go", "", *_table(head, rows)]


def _generation(results: Results) -> list[str]:
    counts = {each.variant: each.mean_tokens for each in results.tokenizations}
    titles = {variant.name: variant.title for variant in _named(results)}
    rows = []
    for each in results.generations:
        for samples in each.samples:
            rows.append(
                [
                    titles[each.variant],
                    "training tokens" if each.budget == "tokens" else "training time",
                    f"{counts[each.variant]:.1f}",
                    f"{each.spent.tokens / 1e6:.2f}",
                    f"{each.spent.images / 1e3:.0f}",
                    f"{each.spent.seconds:.0f}",
                    f"{each.heldout.bits:.0f}",
                    f"{each.heldout.place_bits:.0f}",
                    f"{samples.guidance:g}",
                    f"{1000 * samples.kernel:.1f} +- {1000 * samples.kernel_std:.1f}",
                    "-" if samples.frechet is None else f"{samples.frechet:.1f}",
                    f"{samples.mean_tokens:.1f}",
                ]
            )
    head = (
        "tokens of",
        "equal",
        "tokens an image",
        "M tokens trained on",
        "k images",
        "seconds",
        "held-out bits an image",
        "of them, places",
        "guidance",
        "KID x1000 of samples",
        "Fréchet distance",
        "tokens a sample",
    )
    num = results.setting.num_samples
    return [f"### Generation, {num:,} samples a generator of one size", "", *_table(head, rows)]


def _speed(speeds: Sequence[Speed]) -> list[str]:
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
        lines += _table(head, rows)
    return lines


if __name__ == "__main__":
    typer.run(write_report)

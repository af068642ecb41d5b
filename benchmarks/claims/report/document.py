"""docs/results/claims.md's tables and figure, out of what the claims bench measured. `make claims-report` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.claims.models import MORE_CELLS, Variant, variants
from benchmarks.claims.reconstruction import IN_ABLATIONS, SAME_WEIGHTS_RIVALS, Reconstruction
from benchmarks.claims.report.figure import draw_curve
from benchmarks.claims.report.generation import generation, sample_ratios, samples, sampling_speed
from benchmarks.claims.report.tables import spread, table
from benchmarks.claims.results import Results, read_results, read_speed
from benchmarks.claims.speed import Speed
from benchmarks.document import put_between
from tatok.evaluation.comparison import PolicyScore

__all__ = ["MARK", "headline_scores", "tables", "write_report"]

MARK = "results of benchmarks/claims/run.py"
OURS = "tatok"
DTF_POLICIES = ("DTF distance", "DTF content")


def write_report(
    results: Annotated[Path, typer.Option(help="What the bench wrote.")] = Path("docs/results/claims.json"),
    document: Annotated[Path, typer.Option(help="Document with the marks.")] = Path("docs/results/claims.md"),
    speed: Annotated[
        Path, typer.Option(help="Sampling speed at 256x256, if it was measured (benchmarks/claims/speed.py).")
    ] = Path("docs/results/speed.json"),
    figure: Annotated[Path, typer.Option(help="The rate-distortion curve.")] = Path("docs/results/rate-distortion.svg"),
) -> None:
    """Put the tables into the document, and draw the figure."""
    measured = read_results(results)
    larger = read_speed(speed) if speed.exists() else None
    document.write_text(put_between(document.read_text(), MARK, tables(measured, larger)))
    draw_curve(measured, figure)
    print(f"{document}, {figure}")


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
        generation(results),
        samples(results),
        sample_ratios(results),
        sampling_speed([results.speed, *([] if larger is None else [larger])]),
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
        f"A TaTok model took up to {max(each.seconds for each in trained) / 60:.0f} minutes.",  # one resumed took less
        "",
        f"{machine.processor}, {machine.num_cores} cores, {machine.device}, {machine.num_processes} models at "
        f"a time with {machine.num_threads} threads each; {versions}.",
    ]


def _score_cells(scores: Sequence[PolicyScore]) -> list[str]:
    return [
        spread([s.mean_tokens for s in scores], "{:.1f}"),
        spread([s.bits_with_positions for s in scores], "{:.0f}"),
        spread([s.psnr_db for s in scores]),
        spread([s.psnr_of_mean_db for s in scores]),
        spread([s.ssim for s in scores], "{:.3f}"),
        spread([s.perceptual_milli for s in scores], "{:.1f}"),
        spread([None if s.kernel is None else 1000 * s.kernel for s in scores], "{:.2f}"),
    ]


SCORE_HEAD = ("tokens", "bits with positions", "PSNR", "pooled PSNR", "SSIM", "perceptual", "KID x1000")


def _headline(results: Results) -> list[str]:
    rows = [[f"**TaTok, {policy}**", *_score_cells(headline_scores(results, OURS, policy))] for policy in DTF_POLICIES]
    for variant in _named(results):
        if variant.group == "fixed":
            rows.append([variant.title, *_score_cells(headline_scores(results, variant.name))])
    return ["### Against fixed-rate tokens", "", *table(("tokens of", *SCORE_HEAD), rows)]


def _margins(results: Results) -> list[str]:
    """Ours minus theirs of the same seed, at the headline's count."""
    rows = []
    for policy in DTF_POLICIES:
        ours = headline_scores(results, OURS, policy)
        rivals = [
            (v.title, headline_scores(results, v.name)) for v in _named(results) if v.has_spread and v.name != OURS
        ]
        count = results.setting.headline
        grids = (headline_scores(results, f"grid-{num}") for num in (count, count + MORE_CELLS))
        between = [_at_equal_bits(*each) for each in zip(ours, *grids, strict=True)]
        rivals.append((f"coarse grid of equal bits, a line from {count} to {count + MORE_CELLS} tokens", between))
        rivals += [(f"{name}, same weights", headline_scores(results, OURS, name)) for name in SAME_WEIGHTS_RIVALS]
        for title, theirs in rivals:
            pairs = list(zip(ours, theirs, strict=True))
            rows.append(
                [
                    policy,
                    title,
                    spread([a.mean_tokens - b.mean_tokens for a, b in pairs], "{:+.1f}"),
                    spread([a.bits_with_positions - b.bits_with_positions for a, b in pairs], "{:+.0f}"),
                    spread([a.psnr_db - b.psnr_db for a, b in pairs], "{:+.2f}"),
                    spread([a.psnr_of_mean_db - b.psnr_of_mean_db for a, b in pairs], "{:+.2f}"),
                    spread([a.kernel / b.kernel if a.kernel and b.kernel else None for a, b in pairs]),
                ]
            )
    head = ("policy", "against", "tokens", "bits with positions", "PSNR, dB", "pooled PSNR, dB", "KID, ratio")
    return ["### Margins (TaTok minus the rival, seed by seed; of KID the ratio)", "", *table(head, rows)]


def _at_equal_bits(ours: PolicyScore, fewer: PolicyScore, more: PolicyScore) -> PolicyScore:
    """What a grid of as many bits as ours would have: on the line through two grids."""
    step = more.bits_with_positions - fewer.bits_with_positions
    share = (ours.bits_with_positions - fewer.bits_with_positions) / step

    def at(low: float, high: float) -> float:
        return low + share * (high - low)

    assert fewer.kernel is not None
    assert more.kernel is not None
    return replace(
        fewer,
        mean_tokens=at(fewer.mean_tokens, more.mean_tokens),
        bits_with_positions=ours.bits_with_positions,
        psnr_db=at(fewer.psnr_db, more.psnr_db),
        psnr_of_mean_db=at(fewer.psnr_of_mean_db, more.psnr_of_mean_db),
        kernel=at(fewer.kernel, more.kernel),
    )


def _policies(results: Results) -> list[str]:
    names = list(dict.fromkeys(score.name for score in headline_scores(results, OURS)))
    rows = [[name, *_score_cells(headline_scores(results, OURS, name))] for name in names]
    title = f"### Every way to choose the kept patches, same weights, {results.setting.headline} tokens on average"
    return [title, "", *table(("policy", *SCORE_HEAD), rows)]


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
    return [*lines, *table(("tokens of", *SCORE_HEAD), rows)]


def _ablations(results: Results) -> list[str]:
    rows = []
    for variant in _named(results):
        if variant.group == "fixed":
            continue
        for policy in IN_ABLATIONS:
            scores = headline_scores(results, variant.name, policy)[:1]  # ablations have the first seed alone
            rows.append([variant.title, policy, *_score_cells(scores)])
    return ["### Ablations (first seed)", "", *table(("model", "policy", *SCORE_HEAD), rows)]


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
    return ["### Bits a patch code, with and without the globals", "", *table(head, rows)]


def _codes(results: Results) -> list[str]:
    rows = []
    for variant in _named(results):
        if variant.group == "fixed":
            continue
        codes = [each.codes for each in _of(results, variant.name) if each.codes]
        rows.append(
            [
                variant.title,
                spread([c.global_perplexity for c in codes], "{:.0f}"),
                spread([c.patch_perplexity for c in codes], "{:.0f}"),
                spread([c.given_globals.entropy_bits for c in codes]),
                spread([c.given_globals.surprisal_bits for c in codes]),
                spread([c.given_half.entropy_bits for c in codes]),
                spread([c.given_half.surprisal_bits for c in codes]),
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
    return ["### Codebook use, and the prior's calibration, on held-out images", "", *table(head, rows)]


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
                    spread([s.quartiles[number].mean_tokens for s in scores], "{:.1f}"),
                    spread([s.quartiles[number].mean_psnr_db for s in scores]),
                ]
            )
        correlation = spread([s.count_correlation for s in scores])
        rows.append([policy, "rank correlation of count and PNG size", "", correlation, ""])
    head = ("policy", "quarter by PNG size", "PNG bytes", "tokens", "PSNR")
    return ["### Where the tokens go", "", *table(head, rows)]


if __name__ == "__main__":
    typer.run(write_report)

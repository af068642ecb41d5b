"""What `tatok eval` and `tatok distance` found, as plain text or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tatok.evaluation.comparison import PolicyScore
    from tatok.evaluation.diagnostics import PriorCalibration, TokenizerReport
    from tatok.evaluation.distances import ImageDistances
    from tatok.statistics.summary import CodebookUse

__all__ = ["DistanceResult", "EvaluationResult", "distance_text", "evaluation_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """What `tatok eval --json` prints; `features` names the network of the set distances, None without them.

    `weights_sha256` and `tokenizer` are None for a tokenizer of the user's own.
    """

    num_images: int
    image_size: int
    tokens: float
    features: str | None
    scores: Sequence[PolicyScore]
    weights_sha256: str | None = None
    tokenizer: TokenizerReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceResult:
    """What `tatok distance --json` prints."""

    reference: str
    images: str
    features: str
    image_size: int
    distances: ImageDistances


def evaluation_text(result: EvaluationResult) -> str:
    """The table of policies, the table of quartiles, and what the codes and the prior are like."""
    parts = [_scores(result), _quartiles(result.scores)]
    if result.tokenizer is not None:
        parts.append(_tokenizer(result.tokenizer))
    return "\n".join("\n".join(lines) + "\n" for lines in parts if lines)


def distance_text(result: DistanceResult) -> str:
    """Both distances, with what they rest on."""
    d = result.distances
    frechet = f"{d.frechet:.4f}" if d.frechet is not None else f"- (needs more than {d.num_features:,} images a set)"
    return (
        f"{d.num_images:,} images against {d.num_references:,} references of {result.image_size}x{result.image_size}, "
        f"{d.num_features:,} features of {result.features}\n"
        f"Fréchet distance {frechet}\n"
        f"kernel distance  {1000 * d.kernel:.4f} ± {1000 * d.kernel_std:.4f} (x 1000; ± over random subsets)\n"
    )


def _scores(result: EvaluationResult) -> list[str]:
    width = max(len(score.name) for score in result.scores)
    lines = [
        f"{result.num_images} photos of {result.image_size}x{result.image_size}, compared at a mean of "
        f"{result.tokens:g} tokens"
        + (f"; kernel and Fréchet over the features of {result.features}" if result.features else ""),
        f"{'kept patches':{width}} {'tokens':>7} {'PSNR':>6} {'pooled':>6} {'SSIM':>6} {'perceptual':>10} "
        f"{'kernel x 1000':>15} {'Fréchet':>8} {'bits':>6} {'+positions':>10} {'rank':>6}",
    ]
    for s in result.scores:
        kernel = (
            "-" if s.kernel is None or s.kernel_std is None else f"{1000 * s.kernel:.2f} ± {1000 * s.kernel_std:.2f}"
        )
        lines.append(
            f"{s.name:{width}} {s.mean_tokens:7.2f} {s.psnr_db:6.2f} {s.psnr_of_mean_db:6.2f} {_or_dash(s.ssim, 6, 3)} "
            f"{s.perceptual_milli:10.1f} {kernel:>15} {_or_dash(s.frechet, 8, 3)} {s.bits:6.0f} "
            f"{s.bits_with_positions:10.0f} {_or_dash(s.count_correlation, 6, 2)}"
        )
    return lines


def _or_dash(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def _quartiles(scores: Sequence[PolicyScore]) -> list[str]:
    if not scores[0].quartiles:
        return []
    width = max(len(score.name) for score in scores)
    sizes = "".join(f"{quartile.mean_png_bytes:17,.0f}" for quartile in scores[0].quartiles)
    lines = [
        "tokens and PSNR by quarter of the photos, smallest PNG first",
        f"{'mean bytes of a PNG':{width}}{sizes}",
    ]
    for score in scores:
        cells = "".join(f"{quartile.mean_tokens:9.2f} {quartile.mean_psnr_db:7.2f}" for quartile in score.quartiles)
        lines.append(f"{score.name:{width}}{cells}")
    return lines


def _tokenizer(report: TokenizerReport) -> list[str]:
    lines = [_codebook(use) for use in (report.global_codes, report.patch_codes) if use is not None]
    lines.append("the prior, in bits a hidden position: expected (entropy) and actual (surprisal)")
    for name, calibration in (
        ("given the globals", report.given_globals),
        ("given half of the patches too", report.given_half),
    ):
        lines.append(f"{name:30} {calibration.entropy_bits:6.2f} {calibration.surprisal_bits:6.2f}")
        lines += _bands(calibration)
    return lines


def _codebook(use: CodebookUse) -> str:
    return (
        f"{use.kind} codes: {use.num_codes_used:,} of {use.vocab_size:,} used ({use.share_used:.1%}) by "
        f"{use.num_tokens:,} tokens, perplexity {use.perplexity:,.0f}"
    )


def _bands(calibration: PriorCalibration) -> list[str]:
    expected = "".join(f"{band.entropy_bits:7.2f}" for band in calibration.bands)
    actual = "".join(f"{band.surprisal_bits:7.2f}" for band in calibration.bands)
    return [f"  by tenths, expected {expected}", f"  by tenths, actual   {actual}"]

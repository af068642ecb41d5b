"""What the limit to the texture (`dtf.texture_bits`) gives tokens to, and what held-out photos pay for it.

    make bench-textures

Each limit has a threshold of its own, at which held-out photos keep the same mean count; there they are rebuilt and
measured, and what is kept of crops of each kind is counted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.document import put_between
from benchmarks.textures.crops import crops_by_kind, whole_photos
from tatok import Tokenizer
from tatok.evaluation.calibration import EncodedPhotos, calibrated_sets
from tatok.evaluation.comparison import PolicyScore, evaluate
from tatok.evaluation.distances import ImageFeatures, load_features
from tatok.evaluation.policies import Policy
from tatok.model.dtf import DTFSettings
from tatok.training.photos import centre_crops, expand_sources

__all__ = ["Row", "main", "measured", "table"]

LIMITS = (0.0, 0.7, 0.75, 0.8, 0.85)
MARK = "textures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One limit: the threshold that goes with it, patches kept of 64 by kind of crop, and the photos' figures."""

    texture_bits: float
    threshold: float
    kept: dict[str, float]
    psnr_db: float
    perceptual_milli: float
    kernel_milli: float | None
    count_correlation: float | None


def measured(
    tokenizer: Tokenizer,
    photos: EncodedPhotos,
    crops: dict[str, list[Tensor]],
    *,
    tokens: float,
    limits: Sequence[float] = LIMITS,
    features: ImageFeatures | None = None,
) -> list[Row]:
    """A row a limit; `photos` are encoded by `tokenizer`, which looks at texture."""
    encoded = {kind: EncodedPhotos(tokenizer, pictures) for kind, pictures in crops.items()}
    settings = [replace(tokenizer.dtf, texture_bits=limit) for limit in limits]
    found = [calibrated_sets(photos, tokens, each) for each in settings]
    policies = [_given(f"texture over {limit:g}", sets) for limit, (_, sets) in zip(limits, found, strict=True)]
    scores = evaluate(photos, policies, features=features)
    return [_row(calibration.dtf, encoded, score) for (calibration, _), score in zip(found, scores, strict=True)]


def _given(name: str, sets: list[Tensor]) -> Policy:
    return Policy(name=name, choose=lambda photos: sets, needs_positions=True)


def _row(dtf: DTFSettings, encoded: dict[str, EncodedPhotos], score: PolicyScore) -> Row:
    kept = {
        kind: float(photos.counts(dtf).double().mean()) - photos.tokenizer.num_global
        for kind, photos in encoded.items()
    }
    return Row(
        texture_bits=dtf.texture_bits,
        threshold=dtf.threshold,
        kept=kept,
        psnr_db=score.psnr_db,
        perceptual_milli=score.perceptual_milli,
        kernel_milli=None if score.kernel is None else 1000 * score.kernel,
        count_correlation=score.count_correlation,
    )


def table(rows: Sequence[Row], num_photos: int, tokens: float) -> str:
    """The rows in Markdown, with a line on what they are."""
    kinds = list(rows[0].kept)
    head = ["limit", "threshold", *kinds, "PSNR", "perceptual", "kernel", "rank correlation with PNG"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        kernel = "-" if row.kernel_milli is None else f"{row.kernel_milli:.1f}"
        correlation = "-" if row.count_correlation is None else f"{row.count_correlation:.2f}"
        lines.append(
            [f"{row.texture_bits:g}" if row.texture_bits else "none", f"{row.threshold:.1f}"]
            + [f"{row.kept[kind]:.1f}" for kind in kinds]
            + [f"{row.psnr_db:.2f}", f"{row.perceptual_milli:.1f}", kernel, correlation]
        )
    words = (
        f"Patches kept of 64, in means over the crops of a kind, and figures of {num_photos} held-out photos at a mean "
        f"of {tokens:g} tokens; the last column: token counts and the bytes of the photos as PNG."
    )
    return words + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m benchmarks.textures.run`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heldout", required=True, help="tars of photos that no training saw")
    parser.add_argument("--checkpoint", help="by default the bundled one")
    parser.add_argument("--tokens", type=float, default=56, help="mean count of the photos (default: %(default)s)")
    parser.add_argument("--limits", type=float, nargs="+", default=LIMITS, help="bits a pixel value; 0: no limit")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--document", type=Path, help="page that the table is put into")
    given = parser.parse_args(arguments)
    files = expand_sources([given.heldout])
    tokenizer = Tokenizer.load(given.checkpoint)
    if not tokenizer.dtf.texture_bits:
        tokenizer = tokenizer.with_dtf(texture_bits=max(given.limits) or 1.0)
    photos = EncodedPhotos(tokenizer, centre_crops(files, 256))
    features = ImageFeatures(load_features("mobilenet"), photos.pixels, tokenizer.device)
    crops = crops_by_kind(list(whole_photos(files)))
    rows = measured(tokenizer, photos, crops, tokens=given.tokens, limits=given.limits, features=features)
    text = table(rows, len(photos), given.tokens)
    print(text)
    if given.json:
        figures: dict[str, Any] = {"tokens": given.tokens, "photos": len(photos), "rows": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    if given.document:
        given.document.write_text(put_between(given.document.read_text(), MARK, text))


if __name__ == "__main__":
    main()

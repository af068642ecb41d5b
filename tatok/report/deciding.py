"""What decided how many tokens an image has, in words: the filter that the dataset's fingerprint records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tatok.statistics.units import Noun, with_article

__all__ = ["decision_words"]

_RANKED_BY = {
    "entropy": "entropy: how much the prior left open about a patch's code, given the global tokens",
    "surprisal": "surprisal: how improbable the prior held the code that a patch has",
    "content": "content: how widely the pixels vary that the prior held possible for a patch",
    "distance": "distance: how far the pixels that a patch's code stands for are from those that the prior expected",
    "residual": "residual: how far a patch's pixels are from what the global tokens alone give",
}


def decision_words(dtf: Mapping[str, Any], *, noun: Noun, tokenizer: str | None = None) -> str:
    """Criterion, threshold and bounds of `dtf`, as the fingerprint has it; `tokenizer` is a user's own, if it was one.

    What the mapping holds may be anything: what is not known is named as it is.
    """
    if not dtf:
        if tokenizer is not None:
            return (
                f"The tokenizer {tokenizer} decided how many tokens {with_article(noun)} has; "
                "Dynamic Token Filtering had no part in it."
            )
        return f"What decided how many tokens {with_article(noun)} has is not recorded in this dataset."
    criterion, kind, threshold = dtf.get("criterion"), dtf.get("threshold_kind"), dtf.get("threshold")
    ranked_by = _RANKED_BY.get(str(criterion))
    if ranked_by is None or not isinstance(threshold, int | float):
        return f"Dynamic Token Filtering decided, by {criterion} at the threshold {threshold} ({kind})."
    sentences = [f"Dynamic Token Filtering ranked the patches of each {noun} by {ranked_by}."]
    sentences.append(_threshold_words(str(kind), float(threshold), noun))
    texture = dtf.get("texture_bits")
    if isinstance(texture, int | float) and texture > 0 and threshold > 0:
        sentences.append(
            f"It kept those, too, in which the global tokens leave over {texture:.4g} bits of texture a pixel value."
        )
    rounds = dtf.get("rounds", 1)
    if isinstance(rounds, int) and rounds > 1:
        sentences.append(f"It did so in {rounds} rounds, and asked the prior anew after each.")
    sentences += _bounds(dtf, noun)
    if noun != "image" and kind == "distortion" and dtf.get("temporal", True):
        sentences.append("Patches of a clip that its frame before shows well enough needed no token.")
    return " ".join(sentences)


def _threshold_words(kind: str, threshold: float, noun: Noun) -> str:
    if (kind == "fraction" and threshold >= 1) or (kind != "fraction" and threshold <= 0):
        return f"Its threshold, {threshold:g}, keeps every patch."
    if kind == "distortion":
        return f"It kept those above {threshold:,.4g} (squared error, summed over a patch; pixels run from -1 to 1)."
    if kind == "fraction":
        return f"It kept the first until they held {threshold:.4g} of {with_article(noun)}'s bits."
    return f"It kept the first until at most {threshold:,.4g} bits of {with_article(noun)} were left out."


def _bounds(dtf: Mapping[str, Any], noun: Noun) -> list[str]:
    least, most = dtf.get("min_tokens"), dtf.get("max_tokens")
    words = [f"at least {least:,}"] if isinstance(least, int) and least > 0 else []
    words += [f"at most {most:,}"] if isinstance(most, int) else []
    what = with_article(noun).capitalize() if noun == "image" else "Each frame of a clip"
    return [f"{what} has {' and '.join(words)} tokens."] if words else []

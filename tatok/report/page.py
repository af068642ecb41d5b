"""The report of a dataset: one HTML page that needs nothing but itself, safe to send around.

Everything that comes from the data (keys, captions, details, addresses) is escaped, cut to a length, and freed of
control characters; user names, passwords and queries of URLs are left out. The page runs no script and loads nothing.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from tatok.report.charts import (
    Chart,
    Scale,
    codebook_chart,
    entropy_chart,
    histogram_chart,
    kept_chart,
    short_number,
)
from tatok.report.correlations import TokenCorrelation, correlation_words
from tatok.report.deciding import decision_words
from tatok.report.heat import HeatScale, heat_colours, heat_map, heat_scale, heat_values
from tatok.report.picture import kept_patches
from tatok.report.rows import EntropyAgainstTokens, RejectExample
from tatok.report.shown_frames import ShownFrame, frame_sheet
from tatok.schemas.manifest import RunDocument
from tatok.schemas.records import TokenSequence
from tatok.statistics.summary import DatasetStatistics
from tatok.statistics.units import Noun, bytes_text, noun_of, with_article

__all__ = ["ExampleImage", "Report", "render_report", "shown_text"]

LARGEST_SIDE = 320
"""Pictures are shrunk to this many pixels."""

_HEAT_SIDE = 256
_WEBP_QUALITY = 80
_LONGEST_TEXT = 300
# Control characters, and those that turn the direction of the text after them.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_URL_USER = re.compile(r"(\w+://)[^/\s@]*@")
_URL_QUERY = re.compile(r"(https?://[^\s?#\"']*)[?#][^\s\"']*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleImage:
    """One image or clip to show: `frames` are a few of a clip's, and an image's only one."""

    kind: Literal["richest", "typical", "poorest"]
    key: str
    caption: str | None
    label: str | None
    sequence: TokenSequence
    frames: tuple[ShownFrame, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that the page shows. `why_no_images` is a sentence where `images` is empty on purpose, else None.

    `reject_examples` maps a reason to some of its rejects.
    """

    title: str
    drawn_at: datetime
    statistics: DatasetStatistics
    run: RunDocument
    against: EntropyAgainstTokens | None
    images: Sequence[ExampleImage]
    why_no_images: str | None
    reject_examples: Mapping[str, Sequence[RejectExample]]
    correlations: Sequence[TokenCorrelation] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    value: str
    label: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    label: str
    alt: str
    uri: Markup | None
    why: str
    coarse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _ImageView:
    example: ExampleImage
    panels: tuple[_Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ImageGroup:
    title: str
    explanation: str
    images: tuple[_ImageView, ...]


def shown_text(value: object, longest: int = _LONGEST_TEXT) -> str:
    """Text as a page that is sent around may hold it: printable, not too long, no passwords in URLs; not escaped."""
    text = _UNPRINTABLE.sub("\ufffd", str(value))
    text = _URL_QUERY.sub(r"\1?…", _URL_USER.sub(r"\1", text))
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} … {text[-longest // 3 :]}"
    return text


def render_report(report: Report) -> str:
    """The page as HTML; deterministic in its argument."""
    statistics = report.statistics
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": shown_text,
        "short": short_number,
        "at": _at,
        "ramp": _ramp,
        "with_article": with_article,
    }
    dtf = _json_object(report.run.fingerprint.get("tokenizer.dtf"))
    shown = (frame.sequence for image in report.images for frame in image.frames)
    scale = heat_scale(shown, criterion=dtf.get("criterion"))
    noun, tokenizer = noun_of(statistics), report.run.config.get("tokenizer")
    return environment.get_template("report.html.j2").render(
        report=report,
        noun=noun,
        decision=decision_words(dtf, noun=noun, tokenizer=None if tokenizer is None else str(tokenizer)),
        by_entropy=dtf.get("criterion") == "entropy",
        correlation_words=correlation_words,
        lengths_differ=any(each.column == "num_tokens" and each.min < each.max for each in statistics.distributions),
        statistics=statistics,
        figures=_figures(statistics),
        length_charts=_length_charts(statistics),
        entropy_charts=_entropy_charts(report),
        codebooks=[codebook for codebook in statistics.codebooks if codebook.num_tokens],
        use_charts=_use_charts(statistics),
        columns=statistics.distributions,
        groups=_groups(report.images, scale, noun),
        clips_are_shown=any(len(image.frames) > 1 for image in report.images),
        heat=scale,
        heat_scale=None
        if scale is None
        else Scale(low=f"{scale.low:.1f}", high=f"{scale.high:.1f}", unit=f"bits a patch ({scale.kind})"),
        settings=list(_flat(report.run.config)),
        fingerprint=[(name, _unquoted(value)) for name, value in sorted(report.run.fingerprint.items())],
        dtf=dtf,
        weights=report.run.fingerprint.get("tokenizer.weights_sha256", ""),
        code=report.run.fingerprint.get("tokenizer.code", ""),
        most_rejects=max(statistics.rejects.values(), default=1),
    )


def _figures(statistics: DatasetStatistics) -> list[_Figure]:
    noun = noun_of(statistics)
    means = {distribution.column: distribution.mean for distribution in statistics.distributions}
    patch_share = means.get("num_patch_tokens", 0.0) / max(means.get("num_tokens", 0.0), 1.0)
    figures = [
        _Figure(value=short_number(statistics.num_rows), label=f"{noun}s", detail=f"in {statistics.num_parts:,} parts"),
        _Figure(value=short_number(statistics.num_tokens), label="tokens", detail=f"{patch_share:.0%} of them patches"),
    ]
    for distribution in statistics.distributions:
        if distribution.column == "num_tokens":
            limits = f"{distribution.min:,.0f} to {distribution.max:,.0f}"
            figures.append(
                _Figure(value=f"{distribution.mean:.1f}", label=f"tokens {with_article(noun)}", detail=limits)
            )
    bits = means.get("entropy_bits", 0.0)
    if bits:
        kept = f"{means.get('kept_entropy_bits', 0.0) / bits:.0%} in kept patches"
        figures.append(_Figure(value=f"{bits:,.0f}", label=f"bits {with_article(noun)}", detail=kept))
    size = statistics.size
    on_disk = f"{bytes_text(size.num_bytes)} on disk"
    figures.append(_Figure(value=f"{size.bytes_per_token:.2f}", label="bytes a token", detail=on_disk))
    num_samples = statistics.num_rows + statistics.num_rejects
    share = f"{statistics.num_rejects / num_samples:.2%} of samples" if statistics.num_rejects else "all samples are in"
    figures.append(_Figure(value=short_number(statistics.num_rejects), label="rejects", detail=share))
    rate = statistics.throughput
    if rate is not None:
        took = f"{_duration(rate.seconds)}, set-up included"
        figures.append(_Figure(value=short_number(rate.rows_per_second), label=f"{noun}s a second", detail=took))
    return figures


def _length_charts(statistics: DatasetStatistics) -> list[Chart]:
    noun = noun_of(statistics)
    wanted = {
        "num_tokens": (f"Tokens of {with_article(noun)}", "tokens"),
        "entropy_bits": (f"Entropy of {with_article(noun)}", "bits"),
    }
    return [
        histogram_chart(f"histogram-{distribution.column}", *wanted[distribution.column], distribution, noun=noun)
        for distribution in statistics.distributions
        if distribution.column in wanted
    ]


def _entropy_charts(report: Report) -> list[Chart]:
    charts, noun = [], noun_of(report.statistics)
    if report.against is not None:
        charts.append(entropy_chart("entropy-tokens", "Entropy against tokens", report.against, noun=noun))
    for distribution in report.statistics.distributions:
        if distribution.column == "residual_bits":
            title = f"Bits dropped from {with_article(noun)}"
            charts.append(histogram_chart("histogram-residual_bits", title, "bits", distribution, noun=noun))
    return charts


def _use_charts(statistics: DatasetStatistics) -> list[Chart]:
    charts = []
    if statistics.kept_share is not None:
        title = "How often each position is kept"
        charts.append(kept_chart("kept-positions", title, statistics.kept_share, noun=noun_of(statistics)))
    if any(codebook.num_tokens for codebook in statistics.codebooks):
        charts.append(codebook_chart("codebook-use", "Use of the codebooks", statistics.codebooks))
    return charts


def _groups(images: Sequence[ExampleImage], scale: HeatScale | None, noun: Noun) -> list[_ImageGroup]:
    which = f"{noun}s".capitalize()
    words = {
        "richest": ("Richest", f"{which} with the most tokens."),
        "typical": ("Typical", f"{which} near the median number of tokens."),
        "poorest": ("Poorest", f"{which} with the fewest tokens."),
    }
    groups = []
    for kind, (title, explanation) in words.items():
        views = tuple(_ImageView(example=image, panels=_panels(image, scale)) for image in images if image.kind == kind)
        if views:
            groups.append(_ImageGroup(title=title, explanation=explanation, images=views))
    return groups


def _panels(image: ExampleImage, scale: HeatScale | None) -> tuple[_Panel, ...]:
    sequence, frames, key = image.sequence, image.frames, shown_text(image.key, 80)
    kind = "entropy" if scale is None else scale.kind
    bits = np.concatenate([heat_values(frame.sequence, kind) for frame in frames])
    has_original = not isinstance(frames[0].original, str)
    kept_alt = f"{key}: {sequence.num_kept} of {sequence.grid.num_positions} patches kept, the others dark"
    heat, why = None, f"not stored (patch_{kind}_bits)"
    if sequence.entropy is None:
        why = "no entropies: the tokenizer does not say how surprising its codes are"
    if scale is not None and np.isfinite(bits).all():
        cell = int(np.clip(_HEAT_SIDE // max(sequence.grid.height, sequence.grid.width), 4, 16))
        heat = _data_uri(frame_sheet([heat_map(frame.sequence, scale, cell) for frame in frames]), exact=True)
        why = f"{key}: {kind} of each patch, {bits.min():.1f} to {bits.max():.1f} bits, kept patches outlined"
    kept = frame_sheet(
        [
            kept_patches(None if isinstance(frame.original, str) else frame.original, frame.sequence, 64)
            for frame in frames
        ]
    )
    return (
        _pixels_or_words("original", f"{key}: original", [frame.original for frame in frames]),
        _Panel(label=kind, alt=why, uri=heat, why=why, coarse=True),
        _Panel(
            label="kept", alt=kept_alt, uri=_data_uri(kept, exact=not has_original), why="", coarse=not has_original
        ),
        _pixels_or_words(
            "from tokens", f"{key}: rebuilt from {sequence.num_tokens} tokens", [frame.rebuilt for frame in frames]
        ),
    )


def _pixels_or_words(label: str, alt: str, frames: Sequence[np.ndarray | str]) -> _Panel:
    pictures = [frame.transpose(1, 2, 0) for frame in frames if not isinstance(frame, str)]
    if not pictures:
        return _Panel(label=label, alt=alt, uri=None, why=str(frames[0]))
    return _Panel(label=label, alt=alt, uri=_data_uri(frame_sheet(pictures)), why="")


def _data_uri(pixels: np.ndarray, *, exact: bool = False) -> Markup:
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if exact:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        image.save(buffer, "WEBP", quality=_WEBP_QUALITY, method=6)
    kind = "png" if exact else "webp"
    return Markup(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in sorted(settings.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", "default" if value is None else str(value)


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _unquoted(value: str) -> str:
    """A fingerprint entry without the JSON around it, where that is easier to read."""
    settings = _json_object(value)
    if settings:
        return ", ".join(f"{name} {inner}" for name, inner in settings.items() if inner is not None)
    return value.strip('"')


def _ramp(start: float) -> Markup:
    """The colour scale from `start` (0 .. 1) on, as the stops of a CSS gradient."""
    return Markup(
        ", ".join(f"#{bytes(colour.tolist()).hex()}" for colour in heat_colours(np.linspace(start, 1, 9), 0, 1))
    )


def _at(moment: str | datetime) -> str:
    try:
        parsed = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    except ValueError:
        return str(moment)
    return parsed.strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""The report as HTML: its numbers, its safety, its gaps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tatok.dataset.lookup import read_rows
from tatok.dataset.parts import TokenizedData
from tatok.model.dtf import DTFSettings
from tatok.pipeline.storage.store import OutputStore
from tatok.report.charts import codebook_chart, entropy_chart, histogram_chart, kept_chart, short_number
from tatok.report.correlations import token_correlations
from tatok.report.page import ExampleImage, Report, render_report, shown_text
from tatok.report.rows import Examples, look_at_rows, reject_examples
from tatok.report.shown_frames import shown_frames
from tatok.schemas.manifest import RunDocument
from tatok.schemas.records import Grid
from tatok.statistics.summary import CodebookUse, GridCount, KeptShare, summarize
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.parts import commit
from tests.support.synthetic_tokens import write_synthetic

AT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
RUN = RunDocument(schema_version="1", fingerprint={"vocab_size": "4096"}, config={})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenizedData:
    folder = tmp_path_factory.mktemp("report") / "set"
    write_synthetic(str(folder), 2000, rows_per_part=700, row_group_rows=256, rejects_per_part=5)
    return TokenizedData.open(folder)


def report_of(data: TokenizedData, **changes: Any) -> Report:
    against, _ = look_at_rows(data)
    report = Report(
        title="a dataset",
        drawn_at=AT,
        statistics=summarize(data),
        run=data.run,
        against=against,
        images=(),
        why_no_images="left out",
        reject_examples=reject_examples(data),
    )
    return replace(report, **changes)


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._words: list[str] = []
        self.feed(html)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self._words.append(data)

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)


def test_the_page_stands_alone(data: TokenizedData) -> None:
    html = render_report(report_of(data))
    page = Page(html)
    assert not list(page.all("script"))
    assert not list(page.all("link"))
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert re.match(r"data:image/(png|webp);base64,|#", attributes.get(name) or "#")
    assert "url(" not in html
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("svg"):
        assert attributes["role"] == "img"
        assert set((attributes["aria-labelledby"] or "").split()) <= set(ids)
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids}
    assert html == render_report(report_of(data))


def test_the_page_tells_the_figures(data: TokenizedData) -> None:
    text = Page(render_report(report_of(data))).text
    statistics = summarize(data)
    tokens = statistics.distribution("num_tokens")
    for words in (
        "images 2k in 3 parts",
        f"{tokens.mean:.1f}",
        f"{statistics.size.bytes_per_token:.2f}",
        "rejects 15 0.74% of samples",
        "left out",
        "Examples of corrupt",
        "bad-0-0",
        "16 \u00d7 16 patches (2,000 images)",
        "2026-01-02 03:04 UTC",
        "preprocessing.image_size",
    ):
        assert words in text, words
    assert "not complete yet" not in text
    incomplete = report_of(data, statistics=replace(statistics, complete=False))
    assert "not complete yet" in Page(render_report(incomplete)).text


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([8, 16], ["clips 2k in", "tokens a clip", "bits a clip", "Tokens of a clip", "Bits dropped from a clip"]),
        ([1, 16], ["rows 2k in", "tokens a row", "bits a row", "Tokens of a row", "Bits dropped from a row"]),
    ],
)
def test_rows_are_called_what_they_are(data: TokenizedData, frames: list[int], words: list[str]) -> None:
    report = report_of(data)
    grids = tuple(GridCount(grid=Grid(number, 16, 16), num_rows=1000) for number in frames)
    text = Page(render_report(replace(report, statistics=replace(report.statistics, grids=grids)))).text
    assert all(each in text for each in words)
    assert "tokens an image" not in text


def test_the_page_says_what_decided_and_what_goes_with_what(data: TokenizedData) -> None:
    report = report_of(data, correlations=token_correlations(data))
    text = Page(render_report(report)).text
    assert "What decided how many tokens an image has is not recorded in this dataset." in text
    assert "entropy: what the prior left open, all patches" in text
    assert "not what causes it" in text
    dtf = DTFSettings(criterion="distance", threshold_kind="distortion", threshold=90.0).document()
    for criterion, words in (("distance", True), ("entropy", False)):
        fingerprint = report.run.fingerprint | {"tokenizer.dtf": json.dumps(dtf | {"criterion": criterion})}
        page = Page(render_report(replace(report, run=replace(report.run, fingerprint=fingerprint)))).text
        assert f"ranked the patches of each image by {criterion}: " in page
        assert ("Entropy did not choose the patches here" in page) is words
    alike = replace(report.statistics.distribution("num_tokens"), min=64.0, max=64.0)
    for distributions, words in (((alike,), "all images have as many"), (report.statistics.distributions, "too few")):
        statistics = replace(report.statistics, distributions=distributions)
        assert words in Page(render_report(replace(report, statistics=statistics, correlations=()))).text
    own = replace(report.run, config={"tokenizer": "<b>mine</b>:load"})
    html = render_report(replace(report, run=own))
    assert "The tokenizer &lt;b&gt;mine&lt;/b&gt;:load decided" in html


def test_histograms_count_every_image(data: TokenizedData) -> None:
    distribution = summarize(data).distribution("num_tokens")
    chart = histogram_chart("h", "Tokens", "tokens", distribution)
    num_bins = len(distribution.histogram.counts)
    assert sum(int(row[1].replace(",", "")) for row in chart.table.rows[:num_bins]) == 2000
    bars = [mark for mark in chart.rectangles if mark.kind == "bar"]
    heights = [bar.height for bar in bars]
    counts = [count for count in distribution.histogram.counts if count]
    np.testing.assert_allclose(np.array(heights) / heights[0], np.array(counts) / counts[0])
    left, top, right, bottom = chart.plot
    assert all(left <= bar.x <= bar.x + bar.width <= right and top - 1e-9 <= bar.y <= bottom for bar in bars)
    assert all(left <= tick.place <= right for tick in chart.x_ticks)
    labels = [tick.label for tick in chart.x_ticks]
    assert len(labels) == len(set(labels)) >= 3


def test_entropy_against_tokens_counts_every_image(data: TokenizedData) -> None:
    against, _ = look_at_rows(data)
    assert against is not None
    assert against.counts_XY.sum() == 2000
    table = data.read_all(["num_tokens", "entropy_bits"])
    tokens, bits = table.column("num_tokens").to_numpy(), table.column("entropy_bits").to_numpy()
    i = int(np.argmax(against.counts_XY.sum(1)))
    inside = (bits >= against.bits_edges[i]) & (bits < against.bits_edges[i + 1])
    assert against.counts_XY[i].sum() == inside.sum()
    assert against.mean_tokens_X[i] == pytest.approx(tokens[inside].mean())
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (tokens, bits)]
    assert against.correlation == pytest.approx(np.corrcoef(ranks)[0, 1], abs=0.01)  # ties aside
    chart = entropy_chart("e", "Entropy", against)
    assert len(chart.rectangles) == np.count_nonzero(against.counts_XY)
    assert not chart.dots
    assert sum(int(row[1].replace(",", "")) for row in chart.table.rows) == 2000
    few = look_at_rows(replace(data, parts=data.parts[-1:]), max_rows=100)[0]
    assert few is not None
    assert few.basis.num_rows == len(few.points) == 256
    assert len(entropy_chart("e", "Entropy", few).dots) == 256


def test_examples_are_the_extremes(data: TokenizedData) -> None:
    _, examples = look_at_rows(data, each=3)
    counts = np.sort(data.read_all(["num_tokens"]).column("num_tokens").to_numpy())
    taken = [read_rows(data, rows, ["num_tokens", "source_index"]).to_pylist() for rows in vars_of(examples)]
    richest, typical, poorest = ([row["num_tokens"] for row in rows] for rows in taken)
    assert richest == counts[-3:][::-1].tolist()
    assert poorest == counts[:3][::-1].tolist()
    assert all(abs(count - np.median(counts)) <= 1 for count in typical)
    places = [place for rows in vars_of(examples) for place in rows]
    assert len(set(places)) == 9
    _, few = look_at_rows(replace(data, parts=()), each=3)
    assert vars_of(few) == ((), (), ())


def vars_of(examples: Examples) -> tuple[tuple[Any, ...], ...]:
    return examples.richest, examples.typical, examples.poorest


@pytest.mark.parametrize(("num_rows", "kinds"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (7, (3, 1, 3))])
def test_few_images_are_shown_once(num_rows: int, kinds: tuple[int, ...], tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), num_rows)
    _, examples = look_at_rows(TokenizedData.open(tmp_path))
    assert tuple(map(len, vars_of(examples))) == kinds
    assert len({place for rows in vars_of(examples) for place in rows}) == sum(kinds)


def test_codebooks_and_positions() -> None:
    counts = np.array([6, 0, 2, 0])
    use = CodebookUse(kind="patch", vocab_size=4, num_tokens=8, num_codes_used=2, perplexity=1.75, counts=counts)
    chart = codebook_chart("c", "Codes", [use, replace(use, kind="global", num_tokens=0)])
    assert chart.table.rows == (("patch", "8", "2 of 4", "2", "75%", "75%", "75%", "75%", "100%", "100%", "100%"),)
    [curve] = [line for line in chart.lines if line.kind == "patch"]
    left, top, right, bottom = chart.plot
    assert curve.points[0] == pytest.approx((left, bottom))
    assert curve.points[-1] == pytest.approx((right, top))
    share = np.zeros((1, 80, 40))
    share[0, :40] = 0.5
    grid = kept_chart("k", "Kept", KeptShare(grid=Grid(1, 80, 40), num_rows=5, share_THW=share))
    assert len(grid.rectangles) == 27 * 14  # blocks of 3
    assert grid.table.rows[0][1] == "50%"
    assert grid.table.rows[-1][1] == "0%"
    even = kept_chart("k", "Kept", KeptShare(grid=Grid(1, 2, 2), num_rows=5, share_THW=np.full((1, 2, 2), 0.5)))
    assert len({cell.fill for cell in even.rectangles}) == 1
    assert even.scale is not None
    assert (even.scale.low, even.scale.high) == ("45%", "55%")


HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'\u202e\x00"


def test_words_from_the_data_stay_words(data: TokenizedData) -> None:
    pixels = np.zeros((3, 64, 64), np.uint8)
    sequence = FakeTokenizer().encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0]
    image = ExampleImage(
        kind="richest",
        key=HOSTILE,
        caption=HOSTILE,
        label=HOSTILE,
        sequence=sequence,
        frames=shown_frames(sequence, pixels[None], HOSTILE, most=4),
    )
    statistics = replace(summarize(data), url=HOSTILE, rejects={HOSTILE: 3})
    run = replace(
        RUN,
        fingerprint={HOSTILE: HOSTILE, "tokenizer.dtf": f'{{"criterion": "{HOSTILE[:30]}"}}'},
        config={HOSTILE: [HOSTILE]},
    )
    [example, *_] = reject_examples(data)["corrupt"]
    example = replace(example, key=HOSTILE, detail=HOSTILE, source_uri=HOSTILE, stage=HOSTILE)
    rejects = {HOSTILE: (example,)}
    html = render_report(
        report_of(
            data,
            title=HOSTILE,
            statistics=statistics,
            run=run,
            images=[image],
            why_no_images=None,
            reject_examples=rejects,
        )
    )
    page = Page(html)
    assert not list(page.all("script"))
    assert len(list(page.all("style"))) == 1
    assert [img["src"][:10] for img in page.all("img") if img["src"]] == ["data:image"] * 3
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count("alert(1)") >= 9
    assert not re.search("[\u202e\x00]", html)


def test_gaps_are_named(data: TokenizedData) -> None:
    sequence = FakeTokenizer().encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))[0]
    unknown = replace(sequence.entropy, patch_entropy_bits_N=np.full(16, np.nan, np.float32), patch_worth_bits_N=None)
    sequence = replace(sequence, entropy=unknown)
    image = ExampleImage(
        kind="typical",
        key="k",
        caption=None,
        label=None,
        sequence=sequence,
        frames=shown_frames(sequence, "no original: gone", "no reconstruction: other weights", most=4),
    )
    page = Page(render_report(report_of(data, images=[image], why_no_images=None)))
    for words in ("not stored (patch_entropy_bits)", "no original: gone", "no reconstruction: other weights"):
        assert words in page.text
    [kept] = page.all("img")
    assert kept["alt"] == f"k: {sequence.num_patches} of 16 patches kept, the others dark"
    assert "bits a patch" not in page.text


def test_addresses_are_shown_without_secrets() -> None:
    assert shown_text("s3://key:secret@bucket/a.tar") == "s3://bucket/a.tar"
    assert (
        shown_text("cannot open https://host/a.tar?X-Amz-Signature=abc: 403") == "cannot open https://host/a.tar?… 403"
    )
    assert shown_text("gs://bucket/shard-?.tar") == "gs://bucket/shard-?.tar"
    long = shown_text("x" * 5000)
    assert len(long) < 320
    assert " … " in long


def test_a_data_set_without_entropies_or_images(tmp_path: Path) -> None:
    store = OutputStore.open(str(tmp_path / "out"))
    commit(store, "s0")
    data = TokenizedData.open(store.url)
    data = replace(data, run=replace(data.run, fingerprint={"vocab_size": "1024"}))
    empty = replace(data, parts=())
    text = Page(render_report(report_of(empty))).text
    for words in ("no images in this dataset yet", "No image has a finite entropy", "no tokens yet", "every sample"):
        assert words in text
    assert "tokens an image" not in text
    assert "Examples of corrupt" in Page(render_report(report_of(data))).text


def test_short_numbers() -> None:
    numbers = (0, 7, 950, 999.6, 1234, 60_700_000, 2.5e9, 0.25)
    assert [short_number(number) for number in numbers] == [
        "0", "7", "950", "1k", "1.23k", "60.7M", "2.5G", "0.25"
    ]  # fmt: skip

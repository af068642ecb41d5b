"""The report in a real browser: accessible, quiet, whole, on a desk, a tablet and a phone, in light and in dark."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tests.support.real_data import DEMO_PHOTOS, HOSTILE_KEY, hostile_tar, write_real_data
from tests.support.synthetic_tokens import write_synthetic

playwright = pytest.importorskip("playwright.sync_api", reason="needs axe-playwright-python")
axe = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

ARGUMENTS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Every width and both schemes are among the first, the third and the fifth.
VIEWS = [(1440, "light"), (1440, "dark"), (800, "dark"), (800, "light"), (375, "light"), (375, "dark")]


@dataclass
class Visit:
    """A page that is open, what it asked for and what it complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # A sandbox of Chromium's own needs privileges that containers do not give.
    options = {"executable_path": CHROMIUM, "chromium_sandbox": False, "args": ARGUMENTS}
    with playwright.sync_playwright() as driver, driver.chromium.launch(**options) as launched:
        yield launched


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of nine real photos and a hostile one, and that of made-up tokens without pictures."""
    folder = tmp_path_factory.mktemp("browser")
    write_real_data(str(folder / "photos"), (DEMO_PHOTOS, hostile_tar(folder / "source")))
    write_synthetic(str(folder / "synthetic"), 3000, rejects_per_part=9)
    for name in ("photos", "synthetic"):
        arguments = ["report", str(folder / name), "-o", str(folder / f"{name}.html"), "--timeout", "10"]
        arguments += ["--no-pictures"] if name == "synthetic" else []
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    return {name: folder / f"{name}.html" for name in ("photos", "synthetic")}


@pytest.fixture(params=VIEWS, ids=lambda view: f"{view[0]}-{view[1]}")
def visit(request: pytest.FixtureRequest, browser: Any) -> Iterator[Visit]:
    width, scheme = request.param
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        page = context.new_page()
        opened = Visit(page=page)
        page.on("request", lambda asked: opened.requests.append(asked.url))
        page.on("console", lambda message: opened.complaints.append(message.text))
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        yield opened


def violations(page: Any) -> list[str]:
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}" for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize(
    ("name", "visit"),
    [
        *(("photos", view) for view in VIEWS[::2]),
        *(pytest.param("photos", view, marks=pytest.mark.long) for view in VIEWS[1::2]),
        ("synthetic", (1440, "dark")),
        ("synthetic", (375, "light")),
    ],
    indirect=["visit"],
)
def test_the_page_is_fit_to_be_sent_around(name: str, visit: Visit, reports: dict[str, Path]) -> None:
    page = visit.page
    page.goto(reports[name].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    page.evaluate("document.querySelectorAll('details').forEach(element => { element.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert violations(page) == []
    widths = page.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert len(widths) == {"photos": 40, "synthetic": 0}[name]
    assert all(width >= 16 for width in widths)
    assert [url for url in visit.requests if not url.startswith(("file:", "data:"))] == []
    assert [url for url in visit.requests if url.startswith("file:")] == [reports[name].as_uri()]
    assert visit.complaints == []


@pytest.mark.parametrize("visit", VIEWS[:1], indirect=True)
def test_key_figures_and_words_of_the_data(visit: Visit, reports: dict[str, Path]) -> None:
    page = visit.page
    page.goto(reports["photos"].as_uri())
    figures = re.sub(r"\s+", " ", page.inner_text(".figures"))
    for words in (
        "images 10 in 4 parts",
        "tokens an image",
        "bits an image",
        "bytes a token",
        "rejects 1",
        "a second 4",
    ):
        assert words in figures
    assert page.title() == "photos"
    assert page.evaluate("window.pwned") is None
    assert page.locator("script").count() == 0
    assert page.get_by_role("heading", name=HOSTILE_KEY, exact=True).is_visible()
    for heading in ("astronaut", "grass"):
        assert page.get_by_role("heading", name=heading, exact=True).is_visible()
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("visit", [view for view in VIEWS if view[1] == "light"], indirect=True)
def test_text_is_not_too_small_to_read(visit: Visit, reports: dict[str, Path]) -> None:
    page = visit.page
    page.goto(reports["synthetic"].as_uri())
    heights = page.evaluate("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)")
    assert min(heights) >= 11
    inside = page.evaluate(
        """[...document.querySelectorAll('.card')].every(card => {
            const box = card.getBoundingClientRect()
            return [...card.querySelectorAll('svg text')].every(text => {
                const words = text.getBoundingClientRect()
                return words.left >= box.left && words.right <= box.right
            })
        })"""
    )
    assert inside


def test_the_policy_keeps_the_network_out(browser: Any, reports: dict[str, Path], tmp_path: Path) -> None:
    """Even a page that somebody has tampered with cannot call home."""
    attack = '<img src="http://127.0.0.1:9/x.png"><script>window.pwned = 1</script></main>'
    page_file = tmp_path / "tampered.html"
    page_file.write_text(reports["synthetic"].read_text(encoding="utf-8").replace("</main>", attack), encoding="utf-8")
    with browser.new_context() as context:
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(page_file.as_uri())
        assert page.evaluate("window.pwned") is None
    assert len([text for text in complaints if "Content Security Policy" in text]) == 2


def test_violations_would_be_seen(browser: Any, reports: dict[str, Path]) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(reports["synthetic"].as_uri())
        page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=\"data:,\">')")
        page.evaluate("document.querySelector('.lead').style.color = '#bbb'")
        assert {violation.partition(":")[0] for violation in violations(page)} == {"image-alt", "color-contrast"}

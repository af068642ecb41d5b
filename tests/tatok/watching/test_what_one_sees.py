"""What a training shows: lines, bars, sheets, curves, event files, and how long it still takes."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from rich.console import Console

from tatok.schemas.errors import ConfigError
from tatok.watching import terminal
from tatok.watching.curves import curves
from tatok.watching.event_files import FOLDER, check_tensorboard, event_files
from tatok.watching.pace import StageWork, clock, seconds_left
from tatok.watching.records import Best, best, said_of_end, steps_over_all
from tatok.watching.sheets import PictureLine, sheet

RECORDS = [
    {"stage": "a", "step": 5, "pixel": 0.5, "hours": 0.1},
    {"stage": "a", "step": 10, "pixel": 0.25, "psnr_full_db": 20.0, "psnr_globals_db": 15.0, "hours": 0.2},
    {"stage": "b", "step": 5, "pixel": float("nan"), "prior": 3.0, "hours": 0.3},
    {"stage": "b", "step": 8, "prior": 2.0, "psnr_full_db": 21.5, "psnr_globals_db": 15.5, "hours": 0.5},
]


def test_records_count_steps_over_stages_and_know_the_best() -> None:
    assert steps_over_all(RECORDS) == [5, 10, 15, 18]
    assert steps_over_all([]) == []
    assert best(RECORDS, "a", "pixel") == Best(value=0.25, step=10)
    assert best([{"stage": "a", "step": n, "x_db": v} for n, v in enumerate([1.0, 3.0, 2.0])], "a", "x_db") == Best(
        value=3.0, step=1
    )
    assert best(RECORDS, "a", "prior") is None
    assert said_of_end(RECORDS) == (
        "18 steps in 0:30:00; held-out photos come back at 21.50 dB of all tokens, 15.50 of the globals alone"
    )
    assert said_of_end(RECORDS[:1]) == "5 steps in 0:06:00"
    assert said_of_end([]) == "without a step"


def test_how_long_it_still_takes() -> None:
    now, later = StageWork(steps=10, pixels=100), StageWork(steps=5, pixels=400)
    assert seconds_left([now], 2.0) == 20
    assert seconds_left([now, later], 2.0) == 20 + 5 * 8
    assert seconds_left([now, StageWork(steps=5, pixels=400, most_seconds=30.0)], 2.0) == 50
    assert [clock(s) for s in (0, 59.6, 3_601, 90_061, 200_000)] == [
        "0:00:00", "0:01:00", "1:00:01", "1 day 1:01:01", "2 days 7:33:20"
    ]  # fmt: skip


def test_curves_are_a_panel_a_figure_with_every_finite_point() -> None:
    root = ElementTree.fromstring(curves(RECORDS))
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    headings = [e.text or "" for e in root.iter() if e.tag.endswith("text") and e.get("class") is None]
    assert [heading.split()[0] for heading in headings] == ["psnr_full_db", "psnr_globals_db", "pixel", "prior"]
    assert [len(line.get("points", "").split()) for line in lines] == [2, 2, 2, 2]
    assert [e.text for e in root.iter() if e.tag.endswith("title")] == ["a", "b"] * 4
    assert "nan" not in curves(RECORDS)
    one = curves([{"stage": "<a&b>", "step": 1, "pixel": 0.5}])
    assert [
        e for e in ElementTree.fromstring(one).iter() if e.tag.endswith("circle")
    ]  # a line of one point shows nothing
    ElementTree.fromstring(curves([]))


def test_a_sheet_has_a_labelled_row_a_line() -> None:
    white, black = torch.ones(3, 3, 20, 24), -torch.ones(3, 3, 20, 24)
    lines = (PictureLine(label="white", images=white), PictureLine(label="black " * 30, images=black))
    with Image.open(io.BytesIO(sheet(lines))) as image:
        assert image.height == 2 * (20 + 28)
        assert image.width > 3 * 30  # as wide as the longer label
        assert image.getpixel((10, 30)) == (255, 255, 255)
        assert image.getpixel((10, 48 + 30)) == (0, 0, 0)
        labels = image.crop((0, 0, image.width, 22)).convert("L"), image.crop((0, 48, image.width, 70)).convert("L")
        assert all(label.getextrema()[0] < 60 for label in labels)


def test_what_is_counted_is_said_in_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 0.0)
    with terminal.display(lines.append) as shown, shown.counting("crops", 2_000) as count:
        count(1_000)
        count(1_500)
    assert lines == ["crops: 2,000", "crops: 1,000 of 2,000", "crops: 2,000 of 2,000"]
    lines.clear()
    monkeypatch.undo()
    with terminal.display(lines.append) as shown, shown.counting("crops", 2_000) as count:
        count(1)
    assert lines == ["crops: 2,000"]  # not a line a crop


def test_bars_and_the_line_below_them(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        terminal, "Console", lambda quiet: Console(file=screen, force_terminal=True, width=80, quiet=quiet)
    )
    with terminal.display() as shown:
        assert shown.has_bars
        with shown.counting("crops", 10) as count:
            count(10)
        bar = shown.stage("tokenizer-128 (1 of 3)", 2_000, 500)
        bar.advance("4.1 steps/s · all stages: about 1:52:07 left")
        shown.bars.refresh()
        shown.say("stage [a] said")
    printed = screen.getvalue()
    for words in ("crops", "tokenizer-128 (1 of 3)", "501/2000", "4.1 steps/s · all stages: about 1:52:07 left", "[a]"):
        assert words in printed
    with terminal.display(is_quiet=True) as shown:
        shown.say("nobody hears it")
    assert "nobody" not in screen.getvalue()


def test_event_files_of_a_run_that_resumes_have_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    png = sheet([PictureLine(label="x", images=torch.zeros(1, 3, 8, 8))])
    with event_files(str(tmp_path), 1) as first:
        for step in (1, 2, 3):
            first.add({"stage": "a", "step": step, "pixel": float(step), "psnr_full_db": 20.0 + step}, step)
        first.show(png, 3)
    with event_files(str(tmp_path), 3) as second:  # the state was of step 2
        second.add({"stage": "a", "step": 3, "pixel": 30.0}, 3)
        second.show(png, 3)
    found = EventAccumulator(str(tmp_path / FOLDER)).Reload()
    assert [(event.step, event.value) for event in found.Scalars("training/pixel")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [event.step for event in found.Scalars("heldout/psnr_full_db")] == [1, 2]
    assert [event.step for event in found.Images("samples")] == [3]


def test_tensorboard_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_tensorboard(str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="not installed") as raised:
        check_tensorboard(str(tmp_path))
    assert "pip install 'tatok[tensorboard]'" in str(raised.value.remedy)

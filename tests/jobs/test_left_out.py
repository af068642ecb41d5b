"""What is not taken is said by plan, by the run's summary, in the manifest, by stats; and it outlives a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tatok.dataset.parts import TokenizedData
from tatok.jobs.cli import app
from tatok.jobs.text.run import print_summary
from tatok.pipeline.export.compact import compact
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.records import LeftOut
from tests.support.photos import jpeg, photo_members, tar_bytes
from tests.support.runs import IN_PLACE_TOO, job, rows, run

pytestmark = pytest.mark.usefixtures("local_ray")


def tatok(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos, a tar with companions of macOS beside its members, and things that are neither."""
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.jpg"):
        (source / name).write_bytes(jpeg(len(name)))
    members = [each for name, data in photo_members(0, 2) for each in ((_beside(name), b"\0\5\x16\7"), (name, data))]
    (source / "photos.tar").write_bytes(tar_bytes(members))
    (source / ".DS_Store").write_bytes(b"")
    (source / "notes.pdf").write_bytes(b"")
    return source


def _beside(name: str) -> str:
    parent, slash, base = name.rpartition("/")
    return f"{parent}{slash}._{base}"


@IN_PLACE_TOO
def test_it_is_said_everywhere(
    num_decoders: int, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden_members = len(photo_members(0, 2))
    output = tmp_path / "out"
    assert "left out: 1 hidden, 1 .pdf (no image, video, tar or table)" in tatok("plan", folder)
    planned = json.loads(tatok("plan", folder, "--json"))["left_out"]
    assert {"reason": "hidden", "extension": "", "count": 1} in planned

    config = job(str(folder), output, resources={"num_decoders": num_decoders})
    summary = run(config)
    expected = {LeftOut("hidden"): 1 + hidden_members, LeftOut("no image, video, tar or table", "pdf"): 1}
    assert (summary.status, summary.num_rows, summary.num_rejects, summary.left_out) == ("complete", 4, 0, expected)
    assert all(row["caption"] for row in rows(output) if row["source_uri"].endswith(".tar")), "their captions are there"
    print_summary(summary)
    assert f"left out: {1 + hidden_members} hidden, 1 .pdf (no image" in capsys.readouterr().out
    assert f"left out: {1 + hidden_members} hidden, 1 .pdf (no image" in tatok("stats", output)
    counted = json.loads((output / "_manifest.json").read_text())["left_out"]
    assert {"reason": "hidden", "extension": "", "count": 1 + hidden_members} in counted
    assert verify_output(str(output), [str(folder)]).findings == ()

    (output / "_manifest.json").unlink()  # the parts know what their archives left out, and the plan the rest
    assert run(config).left_out == expected
    compact(TokenizedData.open(str(output)), str(tmp_path / "compacted"))
    assert TokenizedData.open(str(tmp_path / "compacted")).left_out == expected

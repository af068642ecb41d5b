"""`tatok.tokenize`, `tatok.plan` and `tatok.open`: the commands from Python, on one small run of odd images."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import tatok
from tatok.jobs.cli import app
from tatok.jobs.python.opened import OpenedDataset
from tatok.jobs.python.tokenizing import JobSettings
from tatok.pipeline.monitoring.events import Event, ShardCommitted
from tatok.pipeline.run import RunSummary
from tatok.schemas.errors import CommitError, ConfigError, IncompleteError, SourceError
from tatok.schemas.job import JobConfig, Limits
from tatok.schemas.preprocessing import Preprocessing
from tests.support.fake_tokenizer import load_fake
from tests.support.photos import write_odd_images
from tests.support.tiny_checkpoint import tiny_checkpoint


@dataclass(frozen=True, kw_only=True)
class Made:
    """Odd images, two files that are none, and the dataset of them."""

    images: list[Path]
    folder: Path
    summary: RunSummary
    events: list[Event]

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "checkpoint": self.folder / "tiny",
            "preprocessing": {"mode": "resize", "image_size": 32, "side_multiple": 4},
            "resources": {"batch_size": 4},
            "device": "cpu",
        }

    def again(self, **settings: Any) -> RunSummary:
        return tatok.tokenize(self.folder / "photos", self.folder / "tokens", **self.settings | settings)


@pytest.fixture(scope="module")
def made(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("python")
    images = write_odd_images(folder / "photos")
    (folder / "photos" / "broken.jpg").write_bytes(images[0].read_bytes()[:300])
    (folder / "photos" / "notes.md").write_text("no image")
    tiny_checkpoint(folder / "tiny")
    events: list[Event] = []
    made = Made(images=images, folder=folder, summary=None, events=events)  # type: ignore[arg-type]
    return Made(images=images, folder=folder, summary=made.again(on_event=events.append), events=events)


@pytest.fixture
def opened(made: Made) -> OpenedDataset:
    return tatok.open(made.folder / "tokens", device="cpu")


def test_a_run_says_what_it_came_to_and_another_resumes(made: Made) -> None:
    summary = made.summary
    assert (summary.status, summary.num_rows, summary.num_rejects) == ("complete", len(made.images), 1)
    assert sum(isinstance(event, ShardCommitted) for event in made.events) == len(summary.reports)
    again = made.again()
    assert (again.num_rows, again.reports) == (summary.num_rows, ())
    assert "nothing to do" in repr(again)


def test_a_ray_that_runs_is_used_and_stays(made: Made) -> None:
    import ray

    assert made.summary.num_rows
    assert ray.is_initialized()


def test_encode_gives_a_file_what_the_job_wrote_for_it(made: Made, opened: OpenedDataset) -> None:
    """The whole job: its reading, decoding, batches and rows; by the settings that the dataset remembers."""
    tokenizer = tatok.Tokenizer.load(made.folder / "tiny", device="cpu")
    encoded = tokenizer.encode(made.images, preprocessing=opened.preprocessing)
    stored = opened.sequences(*(path.name for path in made.images))
    assert [one.codes.tolist() for one in encoded] == [one.codes.tolist() for one in stored]
    assert [one.positions.tolist() for one in encoded] == [one.positions.tolist() for one in stored]
    assert [one.grid for one in encoded] == [one.grid for one in stored]


def test_plan_is_typed_and_reads_no_image(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tatok.plan(made.folder / "photos", made.folder / "tokens", **made.settings)
    assert plan.num_samples == len(made.images) + 1
    assert {Path(file).name for file in plan.files} == {path.name for path in made.images} | {"broken.jpg"}
    assert plan.num_bytes == sum(os.path.getsize(file) for file in plan.files)
    assert sum(plan.left_out.values()) == 1
    assert plan.progress is not None
    assert not plan.progress.pending
    assert tatok.plan([str(made.folder / "photos")]).progress is None
    assert capsys.readouterr() == ("", "")  # nothing is printed: what there is comes back


def test_a_dataset_has_one_face(made: Made, opened: OpenedDataset) -> None:
    keys = {path.name for path in made.images}
    assert len(opened) == len(keys)
    assert set(opened) == keys
    assert "num_tokens" in opened.columns
    assert opened.stats().num_rows == len(keys)
    assert opened.stats(by="label").column == "label"
    counts = opened.query("SELECT count(*) AS n, (SELECT count(*) FROM rejects) AS r FROM tokens").to_pylist()
    assert counts == [{"n": len(keys), "r": 1}]
    assert opened.rows("turned.jpg", "plain.jpg", columns=["key"])["key"].to_pylist() == ["turned.jpg", "plain.jpg"]
    assert len(opened.rows()) == len(keys)
    rows = opened.dataset(columns=["key"], filters=[("key", "==", "turned.jpg")])
    assert [row.columns["key"] for row in rows] == ["turned.jpg"]
    assert opened.run.config["device"] == "cpu"
    assert opened.preprocessing == Preprocessing(**made.settings["preprocessing"])


def test_it_decodes_as_its_tokenizer_does(made: Made, opened: OpenedDataset) -> None:
    tokenizer = tatok.Tokenizer.load(made.folder / "tiny", device="cpu")
    picture = opened.decode("turned.jpg")
    expected = tokenizer.decode(tokenizer.encode(made.images[1], preprocessing=opened.preprocessing))
    assert picture.size == expected.size == (32, 44)
    assert picture.tobytes() == expected.tobytes()
    assert [each.size for each in opened.decode(["turned.jpg", "plain.jpg"])] == [(32, 44), (44, 32)]
    assert [frame.tobytes() for frame in opened.decode_clip("turned.jpg")] == [picture.tobytes()]
    assert opened.decode([]) == []


def test_what_it_shows_draws_itself_and_is_saved(opened: OpenedDataset, tmp_path: Path) -> None:
    shown = opened.show("turned.jpg", "plain.jpg")
    assert [row.key for row in shown.rows] == ["turned.jpg", "plain.jpg"]
    assert shown._repr_png_().startswith(b"\x89PNG")
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("deeper/a.webp", "WEBP")):
        path = shown.save(tmp_path / name)
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == (kind, shown.picture.size)
    with pytest.raises(CommitError, match=r"a\.docx as \.docx"):
        shown.save(tmp_path / "a.docx")
    assert len(opened.show().rows) == 3


def test_print_stats_prints_what_the_command_prints(
    made: Made, opened: OpenedDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    opened.print_stats()
    said = CliRunner().invoke(app, ["stats", str(made.folder / "tokens")]).output
    assert capsys.readouterr().out == said
    opened.print_stats(by="label")
    assert capsys.readouterr().out == CliRunner().invoke(app, ["stats", opened.url, "--by", "label"]).output


WRONG: dict[str, tuple[Callable[[Made], object], type[Exception], str]] = {
    "no output": (lambda made: tatok.tokenize("photos"), ConfigError, "there is no output"),
    "nothing": (lambda made: tatok.plan(), ConfigError, "tatok.plan: there is no source"),
    "a setting that is none": (lambda made: made.again(devise="cpu"), ConfigError, "did you mean device"),
    "within a section": (
        lambda made: made.again(limits={"max_reject": 1}),
        ConfigError,
        r"limits\.max_reject: no such setting; did you mean limits\.max_reject_fraction",
    ),
    "a wrong value": (lambda made: made.again(device=3), ConfigError, "the argument device: device: Input should be"),
    "other settings": (lambda made: made.again(dedup="none", dtf={"threshold": 3}), CommitError, "dtf"),
    "no such source": (lambda made: tatok.plan(made.folder / "nowhere"), SourceError, "nowhere"),
    "no such dataset": (lambda made: tatok.open(made.folder / "photos"), SourceError, "holds no tokenized dataset"),
    "no such key": (lambda made: tatok.open(made.folder / "tokens").decode("turned"), ConfigError, "'turned.jpg'"),
    "a key that is none, before the checkpoint is loaded": (
        lambda made: tatok.open(made.folder / "tokens", checkpoint=made.folder / "other").show("turned"),
        ConfigError,
        "'turned.jpg'",
    ),
    "another checkpoint": (
        lambda made: tatok.open(made.folder / "tokens", checkpoint=made.folder / "other").decode("turned.jpg"),
        ConfigError,
        "other is not a checkpoint",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_as_on_the_command_line(what: str, made: Made) -> None:
    call, kind, said = WRONG[what]
    with pytest.raises(kind, match=said):
        call(made)


def test_a_run_that_does_not_end_well_raises_with_its_summary(
    made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where nobody looks at a terminal nothing is printed beside it."""
    monkeypatch.setattr("tatok.pipeline.run.configured_loader", lambda config: load_fake)
    limits = Limits(max_reject_fraction=0.01)
    with pytest.raises(IncompleteError, match=r"tokens is not complete: too many rejects \(1 \w+\)") as caught:
        tatok.tokenize(made.folder / "photos", tmp_path / "tokens", preprocessing={"image_size": 64}, limits=limits)
    assert caught.value.summary.num_rows == len(made.images)
    assert "raise limits.max_reject_fraction" in str(caught.value.remedy)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[JobConfig]:
    """The jobs that would have been run."""
    jobs: list[JobConfig] = []

    def run(job: JobConfig, **options: object) -> RunSummary:
        jobs.append(job)
        raise ConfigError("not run")

    monkeypatch.setattr("tatok.pipeline.run.run_job", run)
    return jobs


def test_settings_override_the_environment_and_it_the_job_file(
    given: list[JobConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A section given in part leaves the rest of the file's, be it a mapping, a section or dotted names."""
    (tmp_path / "job.yaml").write_text(
        "source: a\noutput: b\nlimits: {min_side: 40, max_pixels: 9999}\ndevice: cuda\nresources: {batch_size: 3}\n"
    )
    monkeypatch.setenv("TATOK__RESOURCES__BATCH_SIZE", "7")
    monkeypatch.setenv("TATOK__LIMITS__MAX_FAILED_SHARDS", "5")
    limits = {"max_reject_fraction": 0.25, "max_failed_shards": 6}
    for settings in (
        {"limits": limits},
        {"limits": Limits(**limits)},
        {f"limits.{name}": value for name, value in limits.items()},
    ):
        with pytest.raises(ConfigError, match="not run"):
            tatok.tokenize(output=tmp_path / "c", config=tmp_path / "job.yaml", device="cpu", **settings)  # type: ignore[typeddict-item]
    first, *others = given
    assert others == [first, first]
    assert (first.source, first.output, first.device) == (("a",), str(tmp_path / "c"), "cpu")
    assert (first.limits.min_side, first.limits.max_pixels, first.limits.max_reject_fraction) == (40, 9999, 0.25)
    assert (first.limits.max_failed_shards, first.resources.batch_size) == (6, 7)


def test_every_setting_of_job_files_is_an_argument() -> None:
    beside = {"source", "output"}
    assert set(JobSettings.__annotations__) == set(JobConfig.model_fields) - beside
    assert beside <= set(inspect.signature(tatok.tokenize).parameters)


def test_type_checkers_see_the_names_that_load_when_they_are_used() -> None:
    [block] = [
        node
        for node in ast.parse(inspect.getsource(tatok)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen | {"statistics": "tatok.statistics:"} == tatok._PLACES


def test_every_name_of_the_package_is_there_and_found_by_dir() -> None:
    assert set(tatok.__all__) <= set(dir(tatok))
    for name in tatok.__all__:
        assert getattr(tatok, name) is not None
    assert tatok.open is importlib.import_module("tatok.jobs.python.opened").open_dataset
    with pytest.raises(AttributeError, match="no attribute 'tokenise'"):
        tatok.tokenise  # noqa: B018  # type: ignore[attr-defined]

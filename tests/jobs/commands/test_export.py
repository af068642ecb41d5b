"""`tatok export` and `tatok compact` on the command line."""

from __future__ import annotations

import gc
import re
import shlex
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from tatok.dataset.parts import TokenizedData
from tatok.jobs.cli import app
from tatok.jobs.commands.export import parse_size
from tatok.pipeline.output.commit import commit_shard
from tatok.pipeline.output.manifest import mark_success, update_manifest
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import ConfigError
from tatok.statistics.summary import summarize
from tatok.statistics.units import noun_of, noun_of_parts
from tests.support.parts import batches, give_old_names, shard
from tests.support.places import ROOT
from tests.support.synthetic_tokens import write_synthetic


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_synthetic(str(tmp_path / "photos"), 300, rows_per_part=50, rejects_per_part=1)
    return tmp_path / "photos"


def test_help_lists_the_formats() -> None:
    listed = " ".join(invoke("export", "--help").output.split())
    for name in ("hub", "webdataset", "megatron", "mds"):
        assert name in listed
    group = typer.main.get_command(app).commands["export"]  # type: ignore[attr-defined]
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize(
    ("arguments", "index", "printed"),
    [
        (["hub", "--license", "cc0-1.0", "--title", "Photos"], "README.md", "source_uri, caption, metadata are"),
        (["webdataset", "--shard-rows", 100], "index.json", "in 4 files"),
        (["megatron", "--layout", "codes", "--prefix", "photos"], "photos.json", "in 5 files"),
    ],
)
def test_export(source: Path, tmp_path: Path, arguments: list[object], index: str, printed: str) -> None:
    form, *options = arguments
    result = invoke("export", form, source, tmp_path / "dest", *options)
    assert result.exit_code == 0, result.output
    assert "300 images" in result.output
    assert index in result.output
    assert printed in result.output
    assert (tmp_path / "dest" / index).exists()
    again = invoke("export", form, source, tmp_path / "dest", *options)
    assert again.exit_code == 1
    assert "is not empty" in again.output
    assert "Traceback" not in again.output


@pytest.mark.parametrize(
    ("num_images", "num_videos", "wanted"), [(0, 4, "4 clips"), (3, 2, "5 rows"), (3, 0, "3 images")]
)
def test_rows_are_called_what_they_are(tmp_path: Path, num_images: int, num_videos: int, wanted: str) -> None:
    store = OutputStore.open(str(tmp_path / "tokens"))
    commit_shard(
        store,
        shard(),
        batches(count=num_images, num_videos=num_videos),
        fingerprint={"vocab_size": "1024"},
        vocab_size=1024,
        patch_entropy=True,
        row_group_rows=4,
    )
    update_manifest(store, [], {})
    mark_success(store)
    for number, arguments in enumerate((["export", "webdataset"], ["compact"])):
        result = invoke(*arguments, tmp_path / "tokens", tmp_path / f"dest-{number}")
        assert result.exit_code == 0, result.output
        assert f" {wanted}, " in result.output
    give_old_names(tmp_path / "tokens")
    older = TokenizedData.open(tmp_path / "tokens")
    assert noun_of_parts(older) == ("row" if wanted == "3 images" else noun_of(summarize(older))), "or does not know"


def test_mds_without_its_library(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "streaming", None)
    result = invoke("export", "mds", source, tmp_path / "dest")
    assert result.exit_code == 1
    assert "pip install mosaicml-streaming" in result.output
    assert not (tmp_path / "dest").exists()


def test_compact(source: Path, tmp_path: Path) -> None:
    first = invoke("compact", source, tmp_path / "merged", "--target-size", "30KB")
    assert first.exit_code == 0, first.output
    merged = TokenizedData.open(tmp_path / "merged")
    assert merged.read_all().equals(TokenizedData.open(source).read_all())
    assert f"6 parts merged to {len(merged.parts)}" in first.output
    again = invoke("compact", source, tmp_path / "merged", "--target-size", "30KB")
    assert again.exit_code == 0
    assert "nothing to do" in again.output
    other = invoke("compact", source, tmp_path / "merged")
    assert other.exit_code == 1
    assert "--target-size" in other.output
    (source / "_SUCCESS").unlink()
    unfinished = invoke("compact", source, tmp_path / "other")
    assert unfinished.exit_code == 1
    assert "--allow-incomplete" in unfinished.output
    assert invoke("compact", source, tmp_path / "other", "--allow-incomplete").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [["export", "hub"], ["export", "webdataset"], ["export", "megatron"], ["compact"]], ids=" ".join
)
def test_no_room(source: Path, tmp_path: Path, arguments: list[str]) -> None:
    """A file that cannot grow, as on a full disk, ends in a message and leaves nothing that looks finished."""
    script = """
        import resource, sys
        from tatok.jobs.cli import app
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        app(sys.argv[1:])
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments, str(source), str(tmp_path / "dest")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "free space" in result.stderr
    assert "Traceback" not in result.stderr
    left = {path.name for path in (tmp_path / "dest").rglob("*") if path.is_file()}
    assert left <= {"_run.json"}


def test_the_documentation_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands and snippets of docs/guides/exports.md run, those of MosaicML Streaming apart."""
    text = (ROOT / "docs" / "guides" / "exports.md").read_text(encoding="utf-8")
    write_synthetic(str(tmp_path / "demo-output"), 120, rows_per_part=50)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (commands,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    ran = 0
    for line in commands.splitlines():
        _, *arguments = shlex.split(line, comments=True)
        if "mds" not in arguments:
            result = invoke(*arguments)
            assert result.exit_code == 0, result.output
            ran += 1
    snippets = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "streaming" not in code]
    for code in snippets:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of files left to the garbage collector
            exec(compile(code, "exports.md", "exec"), {})
            gc.collect()
    assert (ran, len(snippets)) == (4, 2)
    assert (tmp_path / "cache").exists()


def test_wrong_options(source: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("export", "webdataset", source, tmp_path / "d", "--shard-size", "big"), "'big' is not a size"),
        (("export", "megatron", source, tmp_path / "d", "--prefix", "a/b"), "--prefix is 'a/b'"),
        (("export", "hub", source, tmp_path / "d", "--without", "tokens"), "--without tokens"),
        (("export", "hub", tmp_path / "nothing", tmp_path / "d"), "holds no tokenized dataset"),
        (("compact", source, source / "merged"), "overlap"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 1, result.output
        assert message in result.output
    assert invoke("export", "megatron", source, tmp_path / "d", "--layout", "other").exit_code == 2


def test_sizes() -> None:
    sizes = {"1": 1, "256MB": 256_000_000, " 1.5 GB ": 1_500_000_000, "128mib": 128 << 20, "2k": 2000, "10 B": 10}
    assert {text: parse_size(text) for text in sizes} == sizes
    for text in ("", "MB", "-1MB", "1TB", "0", "0.1", "1MBB", "1e6", "nan"):
        with pytest.raises(ConfigError, match="is not a size"):
            parse_size(text)

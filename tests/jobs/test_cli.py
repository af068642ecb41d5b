"""The command line: arguments, messages, exit codes, Ctrl-C."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from typer.testing import CliRunner, Result

import tatok
from tatok.jobs import exit_codes
from tatok.jobs.cli import app
from tatok.pipeline.storage.remedies import spelling_remedy
from tests.support.fake_tokenizer import load_fake
from tests.support.photos import tar_bytes
from tests.support.places import ROOT, TESTS
from tests.support.processes import heed_interrupts
from tests.support.runs import write_gated_filters


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def fake_model(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tatok.pipeline.run.configured_loader", lambda config: load_fake)


def test_help_is_quick() -> None:
    """Nothing heavy is imported: seconds would be torch or Ray."""
    script = "import sys, tatok.jobs.cli; print(sorted({'torch', 'ray', 'pyarrow', 'PIL'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_version_also_as_a_module() -> None:
    assert invoke("--version").output == f"tatok {tatok.__version__}\n"
    command = [sys.executable, "-m", "tatok", "--version"]
    assert subprocess.check_output(command, cwd=ROOT, text=True) == f"tatok {tatok.__version__}\n"


def test_exit_codes_are_listed_in_one_place() -> None:
    """Each has a line of its own there, and the help of `tokenize` names those that it gives."""
    codes = {name: getattr(exit_codes, name) for name in exit_codes.__all__ if name.startswith("EXIT_")}
    for name, code in codes.items():
        assert any(name in line for line in str(exit_codes.__doc__).splitlines()), name
        assert str(code) in exit_codes.TOKENIZE_EPILOG
    defined = [path for path in (ROOT / "jobs").rglob("*.py") if re.search(r"^_?EXIT_\w+ = ", path.read_text(), re.M)]
    assert defined == [ROOT / "jobs" / "exit_codes.py"]


def test_every_command_and_option_has_help() -> None:
    import typer

    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"
        assert invoke(name, "--help").exit_code == 0
    assert "130 interrupted" in " ".join(invoke("tokenize", "--help").output.split())


@pytest.mark.usefixtures("fake_model")
def test_tokenize_and_again(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    arguments = ("tokenize", photo_shards(2), tmp_path / "out", "--image-size", 64, "--num-decoders", 1)
    first = invoke(*arguments)
    assert first.exit_code == 0, first.output
    assert "2 parts, 20 images" in first.output
    second = invoke(*arguments)
    assert second.exit_code == 0
    assert "nothing to do: all 2 shards are committed" in second.output
    refused = invoke("tokenize", photo_shards(2), tmp_path / "out", "--image-size", 32)
    assert refused.exit_code == 1
    assert "preprocessing.image_size: 64 -> 32" in refused.output
    assert "Traceback" not in refused.output


@pytest.mark.usefixtures("fake_model")
def test_job_file_with_overrides_and_rejects(tmp_path: Path) -> None:
    source = tmp_path / "mixed.tar"
    photo = (TESTS / "conftest.py").read_bytes()  # no photo at all
    source.write_bytes(tar_bytes([("text.jpg", photo)]))
    config = tmp_path / "job.yaml"
    config.write_text(f"source: {source}\noutput: {tmp_path}/out\nresources:\n  batch_size: 2\n  num_decoders: 1\n")
    over = invoke("tokenize", "--config", config)
    assert over.exit_code == 3
    assert "1 not_an_image" in over.output
    assert "--max-reject-fraction" in over.output
    assert invoke("tokenize", "--config", config, "--max-reject-fraction", 1).exit_code == 0
    assert invoke("tokenize", "--config", config, "--max-reject-fraction", 1, "--fail-on-reject").exit_code == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tokenize"], "name SOURCE and OUTPUT"),
        (["tokenize", "only-one"], "OUTPUT"),
        (["tokenize", "missing-*.tar", "out"], "missing-*.tar"),
        (["tokenize", "--config", "missing.yaml"], "missing.yaml"),
        (["tokenize", "a.tar", "out", "--batch-size", "0"], "resources.batch_size"),
        (["tokenize", "a.tar", "out", "--log", "s3://logs/run.jsonl"], "--log s3://logs/run.jsonl cannot be written"),
    ],
)
def test_errors_are_one_message(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert words in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_wrong_usage_is_two() -> None:
    assert invoke("tokenize", "a", "b", "--no-such-option").exit_code == 2


def test_debug_shows_the_traceback() -> None:
    result = invoke("--debug", "tokenize")
    assert result.exit_code == 1
    assert result.exception is not None
    assert "name SOURCE" in str(result.exception)


@pytest.mark.parametrize(
    "interrupts",
    [
        pytest.param([(signal.SIGINT, 130)], id="ctrl-c"),
        pytest.param([(signal.SIGTERM, 143), (signal.SIGINT, 130)], id="both", marks=pytest.mark.long),
    ],
)
def test_interrupts_stop_cleanly_and_the_run_goes_on(
    photo_shards: Callable[..., str], tmp_path: Path, interrupts: list[tuple[signal.Signals, int]]
) -> None:
    """Signals in the middle of shards: nothing half-written, no process left; then resume."""
    source = photo_shards(num_shards=5, photos_per_shard=8)
    output = tmp_path / "out"
    script = textwrap.dedent(
        """
        import functools, sys
        import tatok.pipeline.run
        from tests.support.fake_tokenizer import load_fake
        from tatok.jobs.cli import app

        load = functools.partial(load_fake, delay_s=float(sys.argv.pop(1)))
        tatok.pipeline.run.configured_loader = lambda config: load
        app()
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    gate = write_gated_filters(tmp_path, "-0004.tar")
    options = [
        "--image-size",
        "64",
        "--batch-size",
        "4",
        "--num-decoders",
        "2",
        "--set",
        "filter=my_filters:everything",
    ]

    def start(delay_s: float) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script, str(delay_s), "tokenize", source, str(output), *options],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )

    for num_before, (number, exit_code) in enumerate(interrupts):
        num_parts = len(list(output.glob("data/*")))
        assert num_parts >= num_before
        with start(delay_s=1.5) as process:
            deadline = time.monotonic() + 120
            while len(list(output.glob("data/*"))) == num_parts:
                assert time.monotonic() < deadline
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.1)
            os.kill(process.pid, number)
            text, _ = process.communicate(timeout=240)  # a driver that is deaf ends the test
        assert process.returncode == exit_code, text
        assert "resume with the same command" in text
        assert f"tatok tokenize {shlex.quote(source)} {output} --image-size 64" in text
        assert "Traceback" not in text
        assert not (output / "_SUCCESS").exists()
        assert not (output / ".tmp").exists()
        num_rows = ds.dataset(output / "data").count_rows()
        assert num_rows in (8, 16, 24, 32)
        assert left_in_session(process.pid) == []

    gate.touch()
    with start(delay_s=0.0) as process:
        text, _ = process.communicate(timeout=150)
    assert process.returncode == 0, text
    keys = ds.dataset(output / "data").to_table()["key"].to_pylist()
    assert sorted(keys) == [f"photo-{i:04}" for i in range(40)]


def left_in_session(session: int) -> list[str]:
    """Command lines of the processes of a session, after a moment to end."""
    for _ in range(50):
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        if not found:
            break
        time.sleep(0.2)
    return found


def test_an_error_is_followed_by_its_remedy(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["tokenize", str(tmp_path / "no-photos.tar"), str(tmp_path / "out")])
    assert done.exit_code == 1
    error, _, remedy = " ".join(done.output.split()).partition(" remedy: ")
    assert "no-photos.tar" in error
    assert remedy == spelling_remedy(str(tmp_path / "no-photos.tar"))

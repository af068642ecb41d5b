"""`check_tokenizer`: a good tokenizer passes, and each broken one fails its own check, with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tatok.pipeline.doctor import tokenizer_checks
from tatok.pipeline.doctor.tokenizer_checks import TokenizerCheck, check_tokenizer
from tatok.tokenizer.fixed_rate import FixedRate
from tests.support.photos import write_photo_shards
from tests.support.tokenizers import own

ALL = ["load", "grid", "range", "deterministic", "batch", "threads", "clips", "decode", "speed"]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_checks, "_TIMED_S", 0.0)


def images(height: int = 32, width: int = 48) -> np.ndarray:
    """Four images of one colour and some noise each."""
    draw = np.random.default_rng(0)
    base = draw.integers(20, 200, (4, 3, 1, 1))
    return (base + draw.integers(0, 40, (4, 3, height, width))).astype(np.uint8)


def checked(kind: Callable[[], object], **options: int) -> TokenizerCheck:
    return check_tokenizer(lambda device: FixedRate(kind(), device), images(**options), "cpu")  # type: ignore[arg-type]


def verdicts(found: TokenizerCheck) -> dict[str, str]:
    return {check.name: check.verdict for check in found.checks}


@pytest.mark.parametrize("kind", [own.Blocks, own.Residual, own.WithPrior, own.OfClips])
def test_good_ones_pass(kind: Callable[[], object]) -> None:
    found = checked(kind)
    assert found.passed, found.checks
    assert list(verdicts(found)) == ALL
    assert found.figures is not None
    assert found.figures.psnr_db is not None
    assert found.figures.psnr_db > 20


def test_lists_of_codes_pass() -> None:
    found = checked(own.Lists, height=16, width=24)
    assert found.passed, found.checks


@pytest.mark.parametrize(
    ("kind", "check", "said", "remedy"),
    [
        (own.Noisy, "deterministic", "encoded again, 4 of 4 images have other tokens", "draw no random numbers"),
        (own.OfTheBatch, "batch", "with other images beside them", "batch norms"),
        (own.OutOfRange, "range", "its vocab_size is 100", "correct vocab_size"),
        (own.WrongGrid, "grid", "returned codes of shape", "h = H / patch_size"),
        (own.NotThreadSafe, "threads", "called by 4 threads at once", "threading.Lock"),
        (own.WrongScale, "decode", "come back nearer to another one", "how pixels are scaled"),
        (own.NewEachTime, "load", "two identities: identity", "hash of the weights"),
    ],
)
def test_broken_ones_fail_by_name(kind: Callable[[], object], check: str, said: str, remedy: str) -> None:
    found = checked(kind)
    assert not found.passed
    failed = [each for each in found.checks if each.verdict == "failed"]
    assert [each.name for each in failed] == [check], failed
    assert said in failed[0].message
    assert remedy in failed[0].remedy


def test_what_raises_is_a_finding() -> None:
    class Raises(own.Blocks):
        def encode(self, pixels: object) -> object:
            raise RuntimeError("no kernel image")

    found = checked(Raises)
    assert (found.passed, found.figures, verdicts(found)) == (False, None, {"load": "ok", "grid": "failed"})
    assert "RuntimeError: no kernel image" in found.checks[-1].message


def test_without_a_decoder_it_warns() -> None:
    class Blind:
        vocab_size, patch_size, identity = 4096, 8, "no way back"
        encode = own.Blocks.encode

    found = checked(Blind)
    assert found.passed
    assert verdicts(found)["decode"] == "warning"


def test_the_command_says_it_and_exits_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos = write_photo_shards(tmp_path, 1, 4)
    text = Path(own.__file__).read_text(encoding="utf-8")
    Path("good.py").write_text(text)
    Path("broken.py").write_text(f"{text}\n\ndef load(device, kind):\n    return globals()[kind]()\n")
    options = ("--image-size", "64", "--images", "4", "--json")
    good = CliRunner().invoke(app, ["check-tokenizer", photos, "--tokenizer", "good.py:load", *options])
    assert good.exit_code == 0, good.output
    document = json.loads(good.stdout)
    assert [document["passed"], document["figures"]["tokens_an_image"]] == [True, 64.0]
    broken = ("--tokenizer", "broken.py:load", "--tokenizer-option", "kind=Noisy")
    failed = CliRunner().invoke(app, ["check-tokenizer", photos, *broken, *options[:-1]])
    assert failed.exit_code == 3, failed.output
    assert "FAILED   deterministic: " in failed.output
    assert "         -> call eval()" in failed.output
    absent = CliRunner().invoke(app, ["check-tokenizer", photos, "--tokenizer", "absent.py:load"])
    assert (absent.exit_code, "absent.py" in absent.output) == (1, True), absent.output

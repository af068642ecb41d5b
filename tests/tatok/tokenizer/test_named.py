"""A tokenizer by its name: files and modules, options, what a dataset remembers of it, and what is refused."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tatok import load_tokenizer
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.named import NamedTokenizer
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.places import ROOT
from tests.support.tokenizers import own

OWN = Path(own.__file__).read_text(encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a tokenizer's file in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path


def written(here: Path, load: str) -> NamedTokenizer:
    """`mine.py`, with another `load`."""
    (here / "mine.py").write_text(f"{OWN}\n\n{load}\n")
    return NamedTokenizer.of("mine.py:load")


def test_a_file_is_found_and_travels_by_its_text(here: Path) -> None:
    named = NamedTokenizer.of("mine.py:load")
    there = pickle.dumps(named)
    (here / "mine.py").unlink()
    tokenizer = pickle.loads(there).load("cpu")
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    assert tokenizer.encode(pixels)[1].codes.tolist() == [0] * 4
    assert tokenizer.identity["code"].startswith("mine.py:load (")
    with pytest.raises(ConfigError, match=r"cannot read .*mine\.py: No such file") as caught:
        NamedTokenizer.of("mine.py:load")
    assert "run from the folder that holds it" in str(caught.value.remedy)


def test_what_a_file_defines_pickles_and_has_lines(here: Path) -> None:
    """As tracebacks and torch.jit.script want it, although no module of that name can be imported."""
    function = written(here, "def load():\n    return Blocks()").function
    (here / "mine.py").unlink()
    made = function.load()
    blocks = made()
    assert type(pickle.loads(pickle.dumps(blocks))) is type(blocks)
    assert inspect.getsource(made) == "def load():\n    return Blocks()\n"


def test_the_text_counts_and_not_the_folder(here: Path) -> None:
    first = load_tokenizer("mine.py:load")
    (here / "other").mkdir()
    (here / "other" / "mine.py").write_text(OWN)
    assert load_tokenizer(f"{here}/other/mine.py:load").identity == first.identity
    (here / "other" / "mine.py").write_text(f"{OWN}# changed\n")
    assert load_tokenizer("other/mine.py:load").identity["code"] != first.identity["code"]


def test_a_module_is_named_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    tokenizer = load_tokenizer("tests.support.tokenizers.own:load")
    assert tokenizer.identity["code"].startswith("tests.support.tokenizers.own:load (")
    assert "no source" not in tokenizer.identity["code"]


def test_options_are_given_and_remembered_but_for_those_that_are_covered(here: Path) -> None:
    load = (
        "def load(device, *, colour, path, precision='float32'):\n"
        "    made = Blocks()\n"
        "    made.covered_options = ('path',)\n"
        "    made.told = (device, colour, path, precision)\n"
        "    return made"
    )
    written(here, load)
    options: dict[str, Any] = {"colour": {"env": "MY_COLOUR"}, "path": "/a"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_COLOUR", "red")
        tokenizer = load_tokenizer("mine.py:load", options=options, precision="bfloat16")
        moved = load_tokenizer("mine.py:load", options={**options, "path": "/b"}, precision="bfloat16")
        other = load_tokenizer("mine.py:load", options={**options, "colour": "red"}, precision="bfloat16")
    assert tokenizer.inner.told == ("cpu", "red", "/a", "bfloat16")  # type: ignore[attr-defined]
    assert tokenizer.identity["options"] == '{"colour": {"env": "MY_COLOUR"}}'
    assert tokenizer.identity["precision"] == "bfloat16"
    assert tokenizer.fingerprint == moved.fingerprint != other.fingerprint
    with pytest.raises(ConfigError, match=r"tokenizer_options\.colour refers to .* MY_COLOUR, which is not set"):
        load_tokenizer("mine.py:load", options=options)


@pytest.mark.parametrize(
    ("load", "options", "precision", "said"),
    [
        (
            "def load(device): ...",
            {"size": 3},
            "float32",
            r"unexpected keyword argument 'size'; its function takes \(de",
        ),
        ("def load(device, size): ...", {}, "float32", "missing a required argument: 'size'"),
        ("def load(model): ...", {}, "float32", r"'model'; its function takes \(model\)"),
        ("def load(device): ...", {}, "bfloat16", "precision is bfloat16, which .* does not take"),
        ("def load(device): ...", {"device": "cpu"}, "float32", "settings of the job itself"),
        ("def load(device): ...", {}, "float32", "its function returned nothing"),
        ("load = 3", {}, "float32", "is a int, not a function"),
        ("def other(): ...", {}, "float32", "cannot be imported: AttributeError"),
        ("import absent_package", {}, "float32", "No module named 'absent_package'; put what it imports into the same"),
        ("raise SystemError('boom')", {}, "float32", "SystemError: boom"),
    ],
)
def test_what_cannot_be_made(here: Path, load: str, options: Mapping[str, Any], precision: str, said: str) -> None:
    (here / "mine.py").write_text(f"{load}\n")
    with pytest.raises(ConfigError, match=said):
        NamedTokenizer.of("mine.py:load", options).load("cpu", precision)


@pytest.mark.parametrize("name", ["mine.py", "mine.py:", "mine", ":load", "mine.py:not a name"])
def test_what_is_no_name(here: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"name a function as module:function, such as my_tokenizer\.py:load, or one"):
        NamedTokenizer.of(name)


def test_the_upper_tier_is_taken_as_it_is(here: Path) -> None:
    """One that chooses its tokens itself, as TaTok and the tests' fake do."""
    load = "from tests.support.fake_tokenizer import FakeTokenizer\n\n\ndef load(device):\n    return FakeTokenizer()"
    tokenizer = written(here, load).load("cpu")
    assert tokenizer.identity.keys() == {*FakeTokenizer().identity, "code"}
    assert (tokenizer.num_global, tokenizer.has_entropy, tokenizer.vocab_size) == (4, True, 1024)
    assert tokenizer.fingerprint != FakeTokenizer().fingerprint
    assert len(tokenizer.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))) == 2

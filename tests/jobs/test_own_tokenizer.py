"""A tokenizer of the user's own through every command: the guide's file and job file, from an empty folder."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from tatok import TokenDataset
from tatok.jobs.cli import app
from tests.support.photos import write_photo_shards
from tests.support.places import DOCS, ROOT

GUIDE = (DOCS / "guides" / "tokenizers.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)[0]
JOB = re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)[0]
ENTROPIES = ("entropy_bits", "kept_entropy_bits", "residual_bits", "surprisal_bits", "patch_entropy_bits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[Path]:
    """What a user has: photos, my_tokenizer.py, job.yaml; and `tokens`, which the job has made."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "photos").mkdir()
    write_photo_shards(folder / "photos", 3, 4)
    (folder / "my_tokenizer.py").write_text(CODE)
    settings = yaml.safe_load(JOB)
    settings["preprocessing"]["image_size"] = 64
    settings["resources"] = {"num_decoders": 1, "num_tokenizers": 1}
    (folder / "job.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = run("tokenize", "--config", "job.yaml")
        assert "12 images, 192 tokens (16.0 an image)" in done.output
        yield folder


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == exit_code, result.output
    return result


def test_the_guides_file_is_short() -> None:
    assert len(CODE.splitlines()) <= 30
    assert yaml.safe_load(JOB)["tokenizer"] == "my_tokenizer.py:load"


def test_it_is_planned_and_verified_against_its_source(folder: Path) -> None:
    assert "3 shards" in run("plan", "--config", "job.yaml").output
    document = json.loads(run("verify", "tokens", "--source", "photos", "--json").stdout)
    assert document["passed"]
    assert (document["num_rows"], document["num_samples"]) == (12, 12)


def test_rows_have_no_entropies_and_every_position(folder: Path) -> None:
    table = pq.read_table(folder / "tokens" / "data")
    for name in ENTROPIES:
        assert table[name].null_count == 12, name
    [first] = table.slice(0, 1).to_pylist()
    assert (first["num_global_tokens"], first["positions"]) == (0, list(range(16)))
    fingerprint = json.loads((folder / "tokens" / "_run.json").read_text())["fingerprint"]
    assert fingerprint["entropy"] == "none"
    assert fingerprint["tokenizer.code"].startswith("my_tokenizer.py:load (")
    assert fingerprint["tokenizer.identity"] == "mean colours, first version"


def test_after_a_kill_the_same_command_does_the_rest(folder: Path) -> None:
    """What a kill leaves: some parts, and no _SUCCESS."""
    parts = sorted((folder / "tokens" / "data").iterdir())
    before = {path.name: path.read_bytes() for path in parts}
    parts[0].unlink()
    for name in ("_SUCCESS", "_manifest.json"):
        (folder / "tokens" / name).unlink()
    assert "this run: 1 shard, 4 images" in run("tokenize", "--config", "job.yaml").output
    assert {path.name: path.read_bytes() for path in (folder / "tokens" / "data").iterdir()} == before
    assert (folder / "tokens" / "_SUCCESS").exists()


@pytest.mark.long
def test_killed_in_the_middle_and_resumed(folder: Path) -> None:
    """By SIGKILL, with its whole Ray, as soon as a part is there."""
    slow = CODE.replace("def encode(self, pixels):", "def encode(self, pixels):\n        import time; time.sleep(2)", 1)
    (folder / "slow.py").write_text(slow)
    words = ["--config", "job.yaml", "--set", "output=killed", "--tokenizer", "slow.py:load"]
    command = [sys.executable, "-m", "tatok.jobs.cli", "tokenize", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    while not list((folder / "killed").glob("data/*.parquet")):
        assert first.poll() is None, "it ended before a part was there"
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (folder / "killed" / "_SUCCESS").exists()
    kept = {path.name: path.read_bytes() for path in (folder / "killed" / "data").iterdir()}
    run("tokenize", *words)
    assert json.loads(run("verify", "killed", "--source", "photos", "--json").stdout)["passed"]
    assert kept.items() <= {path.name: path.read_bytes() for path in (folder / "killed" / "data").iterdir()}.items()


def test_a_changed_file_is_not_resumed_with_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "my_tokenizer.py").write_text(f"{CODE}\n# another version\n")
    try:
        refused = run("tokenize", "--config", "job.yaml", exit_code=1)
        assert re.search(r"tokenizer\.code: my_tokenizer\.py:load \(\w+\) -> my_tokenizer\.py:load", refused.output)
        shown = run("show", "tokens", "photo-0000", exit_code=1)
        assert "made by another tokenizer than 'my_tokenizer.py:load' is now" in " ".join(shown.output.split())
        run("decode", "tokens", "photo-0000", "-o", "changed", "--tokenizer", "my_tokenizer.py:load")
    finally:
        (folder / "my_tokenizer.py").write_text(CODE)
    monkeypatch.chdir(folder / "photos")
    lost = run("show", "../tokens", "photo-0000", exit_code=1)
    assert "cannot read" in lost.output
    assert "run from the folder that holds it" in " ".join(lost.output.split())


def test_it_is_looked_at(folder: Path) -> None:
    statistics = run("stats", "tokens").output
    assert "no entropies: the dataset's tokenizer does not say" in statistics
    assert "every row has every position of its 1 x 4 x 4 grid" in statistics
    assert "global codes" not in statistics
    assert json.loads(run("stats", "tokens", "--json").stdout)["has_entropy"] is False
    assert "none" in run("stats", "tokens", "--by", "label").output
    rows = run("query", "tokens", "SELECT count(*) AS n FROM tokens WHERE entropy_bits IS NULL").output
    assert "12" in rows
    assert "0 global and 16 patch" in run("show", "tokens", "photo-0000").output
    assert "photo-0000.png: 16 tokens" in run("decode", "tokens", "photo-0000", "photo-0001", "-o", "pictures").output
    assert "12 images, 12 of them pictured" in run("report", "tokens", "-o", "page.html").output
    page = (folder / "page.html").read_text()
    assert "no entropies: the tokenizer does not say" in page
    assert "made with the weights" not in page
    assert "no reconstruction" not in page


def test_it_is_evaluated(folder: Path) -> None:
    pytest.importorskip("torchmetrics", reason="needs tatok[eval]")
    words = ("--image-size", "64", "--limit", "3", "--no-distances", "--json")
    printed = run("eval", "photos", "--tokenizer", "my_tokenizer.py:load", *words).stdout
    document = json.loads(printed)
    [score] = document["scores"]
    assert (score["name"], score["mean_tokens"], document["tokenizer"]) == ("as it is", 16, None)
    assert score["bits"] == 16 * 12
    assert "stands alone" in run("eval", "photos", "--tokenizer", "my_tokenizer.py:load", "--all", exit_code=1).output


def test_it_is_examined_before_it_runs(folder: Path) -> None:
    document = json.loads(run("doctor", "job.yaml", "--set", "output=new", "--json").stdout)
    verdicts = {check["name"]: check["verdict"] for check in document["checks"]}
    assert (verdicts["tokenizer"], verdicts["dry run"]) == ("ok", "ok"), document
    broken = run("doctor", "job.yaml", "--set", "tokenizer=absent.py:load", "--json", exit_code=3)
    failed = [check for check in json.loads(broken.stdout)["checks"] if check["verdict"] == "failed"]
    assert [(check["name"], "absent.py" in check["message"]) for check in failed] == [("tokenizer", True)]


def test_it_is_exported(folder: Path) -> None:
    for kind in ("hub", "webdataset", "megatron"):
        run("export", kind, "tokens", kind)
    card = (folder / "hub" / "README.md").read_text()
    assert "load_tokenizer('my_tokenizer.py:load', options={})" in card
    assert "global codebook" not in card


def test_it_is_exported_to_mds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a writer in place of MosaicML's, whose package drags in too much for the tests."""
    samples = []

    class Writer:
        def __init__(self, *, out: str, **_: object) -> None:
            self.folder = Path(out)

        def write(self, sample: dict[str, object]) -> None:
            samples.append(sample)

        def finish(self) -> None:
            (self.folder / "index.json").write_text("{}")

    module = types.ModuleType("streaming")
    module.MDSWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "streaming", module)
    run("export", "mds", "tokens", "mds")
    assert len(samples) == 12
    assert all(math.isnan(sample["entropy_bits"]) for sample in samples)


def test_it_is_loaded_and_trained_on(folder: Path) -> None:
    data = TokenDataset("tokens")
    assert (len(data), data.vocab_size) == (12, 4096)
    page = (DOCS / "guides" / "load-into-training.md").read_text(encoding="utf-8")
    loop = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    (folder / "demo-output").symlink_to("tokens")
    exec(compile(loop.replace("epochs=20", "epochs=1"), "load-into-training.md", "exec"), {})


def test_it_goes_with_a_rayjob(folder: Path) -> None:
    absolute = ("--set", "source=/mnt/photos", "--set", "output=/mnt/tokens")
    run("submit", "job.yaml", "--kuberay", "rayjob.yaml", "--image", "tatok:1", *absolute)
    document = yaml.safe_load((folder / "rayjob.yaml").read_text())
    head = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert head["metadata"]["annotations"]["tatok-tokenizer"] == CODE
    assert yaml.safe_load(head["metadata"]["annotations"]["tatok-job"])["tokenizer"] == "my_tokenizer.py:load"
    [volume] = head["spec"]["volumes"]
    assert [item["path"] for item in volume["downwardAPI"]["items"]] == ["job.yaml", "my_tokenizer.py"]


def test_a_job_file_elsewhere_brings_the_file_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = yaml.safe_load(run("config", "show", str(folder / "job.yaml")).output)
    assert shown["tokenizer"] == f"{folder}/my_tokenizer.py:load"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["checkpoint=/a"], "the job names another one, 'my_tokenizer.py:load'; leave one of the two out"),
        (["dtf.threshold=0.5"], "dtf.threshold is a setting of tatok's own tokenizer"),
        (["tokenizer=null", "tokenizer_options.a=1"], "tokenizer_options are for a tokenizer of your own"),
        (["tokenizer_options.hf_token=abcdefghij"], "tokenizer_options.hf_token would be written to _run.json"),
        (["tokenizer_options.size=3"], "unexpected keyword argument 'size'"),
        (["precision=bfloat16"], "does not take; leave it out"),
        (["tokenizer=absent.py:load"], "absent.py: No such file"),
        (["preprocessing.image_size=60"], "must be a multiple of"),
    ],
)
def test_settings_that_do_not_go_with_it(folder: Path, settings: list[str], said: str) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    refused = run("tokenize", "--config", "job.yaml", *words, exit_code=1)
    assert said in " ".join(refused.output.split())

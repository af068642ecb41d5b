"""Users' filters: what they see, what they may answer, and what becomes of their mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tatok.pipeline.decode.filters import apply_filter, filter_identity, load_filter
from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.run import run_job
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig, Limits
from tatok.schemas.preprocessing import Preprocessing, RandomCrops
from tatok.schemas.records import Clip, Reject, Sample, SampleFacts
from tests.support.fake_tokenizer import load_fake
from tests.support.photos import jpeg

TWO_CROPS = Preprocessing(mode="random_crop", image_size=32, random_crops=RandomCrops(num_crops=2))


def sample(payload: bytes, index: int = 3) -> Sample:
    attachments = {"txt": b"a cat", "cls": b"7", "json": b'{"score": 0.5}'}
    return Sample(
        key="k", uri="u", index=index, media="image", extension="jpg", payload=payload, attachments=attachments
    )


def filtered(keep: Callable[[SampleFacts], object], payload: bytes) -> list[Clip | Reject]:
    item = sample(payload)
    return list(apply_filter(keep, item, decode_sample(item, TWO_CROPS, Limits())))  # type: ignore[arg-type]


def test_it_is_asked_once_and_told_what_is_known() -> None:
    seen: list[SampleFacts] = []
    kept = filtered(lambda facts: seen.append(facts) is None, jpeg(1, width=90, height=50))
    assert [type(clip) for clip in kept] == [Clip, Clip]
    [facts] = seen
    assert (facts.key, facts.uri, facts.index, facts.extension) == ("k", "u", 3, "jpg")
    assert (facts.width, facts.height, facts.num_bytes) == (90, 50, len(jpeg(1, width=90, height=50)))
    assert (facts.caption, facts.label, json.loads(facts.metadata or "")) == ("a cat", "7", {"score": 0.5})
    assert isinstance(kept[0], Clip)
    assert facts.sha256 == kept[0].sha256


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(False, "filtered"), ("no cats", "filtered: no cats"), (None, "filter_error"), (1, "filter_error")],
)
def test_answers(answer: object, reason: str) -> None:
    [reject] = filtered(lambda facts: answer, jpeg(1))
    assert isinstance(reject, Reject)
    assert (reject.key, reject.index, reject.stage, reject.reason) == ("k", 3, "filter", reason)


def test_a_filter_that_raises_costs_the_sample() -> None:
    [reject] = filtered(lambda facts: json.loads(facts.metadata or "")["missing"] > 1, jpeg(1))
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.detail) == ("filter_error", "KeyError: 'missing'")


def test_what_cannot_be_decoded_is_not_asked_about() -> None:
    [reject] = filtered(lambda facts: pytest.fail("asked"), b"no photo")
    assert isinstance(reject, Reject)
    assert reject.reason == "not_an_image"


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "my_filters.py"
    path.write_text("def small_numbers(facts):\n    return int(facts.label) < 3 or 'large number'\n\nNUMBER = 3\n")
    yield path
    sys.modules.pop("my_filters", None)


def test_import_errors_are_told_before_anything_starts(user_module: Path, tmp_path: Path) -> None:
    assert load_filter("my_filters:small_numbers")
    (tmp_path / "broken_filters.py").write_text("import nothing_of_this_name\n")
    for path, text in (
        ("my_filters", "module:function"),
        ("my_filters:", "module:function"),
        ("my_filters:absent", "AttributeError"),
        ("my_filters:NUMBER", "is a int"),
        ("broken_filters:keep", "nothing_of_this_name"),
        ("absent_filters:keep", "PYTHONPATH"),
    ):
        config = JobConfig(source=("absent.tar",), output=str(tmp_path / "out"), filter=path)
        with pytest.raises(ConfigError, match=text):
            run_job(config, load_tokenizer=load_fake)
    assert not (tmp_path / "out").exists()


def test_another_filter_is_another_data_set(user_module: Path) -> None:
    before = filter_identity("my_filters:small_numbers")
    assert filter_identity(None) == {}
    user_module.write_text(user_module.read_text().replace("< 3", "< 4"))
    assert filter_identity("my_filters:small_numbers") != before


def small_numbers(facts: SampleFacts) -> bool | str:
    return int(facts.label or -1) < 3 or "large number"


def test_a_job_with_a_filter(photo_shards: Callable[..., str], tmp_path: Path, local_ray: None) -> None:
    config = JobConfig(
        source=photo_shards(2, 60),
        output=str(tmp_path / "out"),
        filter="tests.pipeline.decode.test_filters:small_numbers",
        preprocessing={"image_size": 32},  # type: ignore[arg-type]
        limits={"max_reject_fraction": 0.1},  # type: ignore[arg-type]
        resources={"num_decoders": 1},  # type: ignore[arg-type]
    )
    summary = run_job(config, load_tokenizer=load_fake)
    assert summary.status == "complete", "what was asked for is no reason to stop"
    assert (summary.num_rows, summary.rejects) == (36, {"filtered: large number": 84})
    table = pq.read_table(tmp_path / "out" / "data")
    assert {int(label) for label in table["label"].to_pylist()} == {0, 1, 2}
    assert set(pq.read_table(tmp_path / "out" / "_rejects")["stage"].to_pylist()) == {"filter"}

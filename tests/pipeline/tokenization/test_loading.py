from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from tatok.pipeline.tokenization.fingerprint import run_fingerprint
from tatok.pipeline.tokenization.loading import configured_loader, load_spec
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.job import JobConfig
from tests.support.tiny_checkpoint import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def config(checkpoint: Path, **options: object) -> JobConfig:
    return JobConfig.model_validate({"source": "a", "output": "o", "checkpoint": str(checkpoint), **options})


def test_the_jobs_precision_is_the_tokenizers_and_in_the_fingerprint(checkpoint: Path) -> None:
    for precision in ("float32", "bfloat16"):
        job = config(checkpoint, precision=precision, device="cuda")
        tokenizer = pickle.loads(pickle.dumps(configured_loader(job)))("cpu")
        assert (tokenizer.precision, tokenizer.device.type) == (precision, "cpu")
        fingerprint = run_fingerprint(job, load_spec(job, configured_loader(job)))
        assert fingerprint["tokenizer.precision"] == precision


def test_a_jobs_limit_to_the_texture_is_the_tokenizers_and_in_the_fingerprint(tmp_path: Path) -> None:
    photos = config(tiny_checkpoint(tmp_path), dtf={"threshold": 2.0})
    textured = config(tiny_checkpoint(tmp_path), dtf={"threshold": 2.0, "texture_bits": 0.25})
    assert [configured_loader(job)("cpu").dtf.texture_bits for job in (photos, textured)] == [0.0, 0.25]
    before, after = (
        run_fingerprint(job, load_spec(job, configured_loader(job)))["tokenizer.dtf"] for job in (photos, textured)
    )
    assert json.loads(after) == {**json.loads(before), "texture_bits": 0.25}


def test_the_bundled_limit_can_be_turned_off() -> None:
    job = JobConfig.model_validate({"source": "a", "output": "o", "dtf": {"texture_bits": 0}})
    assert configured_loader(job)("cpu").dtf.texture_bits == 0


def test_a_driver_without_a_gpu_knows_a_tokenizer_in_tf32(checkpoint: Path) -> None:
    job = config(checkpoint, precision="tf32", device="cuda")
    spec = load_spec(job, configured_loader(job))
    assert spec.identity["precision"] == "tf32"
    float32 = load_spec(config(checkpoint), configured_loader(config(checkpoint)))
    assert spec.identity == {**float32.identity, "precision": "tf32"}
    assert spec.fingerprint != float32.fingerprint
    in_bfloat16 = configured_loader(config(checkpoint, precision="bfloat16"))("cpu")
    assert float32.but(precision="bfloat16") == TokenizerSpec.of(in_bfloat16), "as the tokenizer itself has it"

"""A small tokenized dataset of real photos, made with the shipped checkpoint but without Ray."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.output.commit import commit_shard
from tatok.pipeline.output.manifest import claim_output, mark_success, record_run, update_manifest
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.fingerprint import run_fingerprint
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.pipeline.tokenization.tokenize import tokenize_clips
from tatok.schemas.job import JobConfig
from tatok.schemas.manifest import RunRecord
from tatok.schemas.preprocessing import Video
from tatok.schemas.records import Clip, Reject, Shard
from tatok.tokenizer.fixed_rate import FixedRate
from tatok.tokenizer.tokenizer import Tokenizer
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.photos import jpeg, tar_bytes
from tests.support.places import EXAMPLES

DEMO_PHOTOS = str(EXAMPLES / "photos" / "demo-{0000..0002}.tar")
HOSTILE_KEY = "<img src=x onerror=alert(1)>"
HOSTILE_CAPTION = "</figure><script>window.pwned = 1</script> \u202etxt.exe \x07 & \"quotes'"
HOSTILE_DETAIL_KEY = "<b>bad</b>\u2066"


def hostile_tar(folder: Path) -> str:
    """A tar of one photo whose words attack the page, and one that is no photo; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "hostile.tar"
    members = [
        (f"{HOSTILE_KEY}.jpg", jpeg(1, 300, 200)),
        (f"{HOSTILE_KEY}.txt", HOSTILE_CAPTION.encode()),
        (f"{HOSTILE_KEY}.cls", b"<i>7</i>"),
        (f"{HOSTILE_DETAIL_KEY}.jpg", b"<script>no photo</script>"),
    ]
    path.write_bytes(tar_bytes(members))
    return str(path)


def write_real_data(
    url: str,
    sources: tuple[str, ...],
    *,
    image_size: int = 256,
    tokenizer: Tokenizer | FakeTokenizer | FixedRate | None = None,
    video: Video = Video(),  # noqa: B008
    patch_worth: bool = False,
    **preprocessing: object,
) -> None:
    """Tokenize tars into `url` on the CPU, in this process; with the shipped checkpoint unless another one is given."""
    pixels = {"image_size": image_size} | preprocessing
    config = JobConfig.model_validate(
        {
            "source": sources,
            "output": url,
            "preprocessing": pixels,
            "video": video,
            "write": {"patch_worth": patch_worth},
        }
    )
    tokenizer = tokenizer or Tokenizer.load(device="cpu")
    spec = TokenizerSpec.of(tokenizer)  # type: ignore[arg-type]
    fingerprint = run_fingerprint(config, spec)
    store = OutputStore.open(url)
    claim_output(store, config, fingerprint)

    def decoded(shard: Shard) -> Iterator[Clip | Reject]:
        for sample in read_samples(shard, ReadOptions(max_sample_bytes=config.limits.max_sample_bytes)):
            if isinstance(sample, Reject):
                yield sample
            else:
                yield from decode_sample(sample, config.preprocessing, config.limits, config.video)

    reports = [
        commit_shard(
            store,
            shard,
            tokenize_clips(
                decoded(shard),
                tokenizer.encode_clips,
                batch_size=8,
                vocab_size=spec.vocab_size,
                patch_entropy=True,
                patch_worth=patch_worth,
                has_entropy=spec.has_entropy,
            ),
            fingerprint=fingerprint,
            vocab_size=spec.vocab_size,
            patch_entropy=True,
            patch_worth=patch_worth,
            has_entropy=spec.has_entropy,
            row_group_rows=100,
        )
        for shard in plan_shards(sources)
    ]
    update_manifest(store, reports)
    mark_success(store)
    record_run(
        store,
        RunRecord(
            started_at="2026-01-02T03:04:05+00:00",
            seconds=2.5,
            status="complete",
            num_shards=len(reports),
            num_rows=sum(report.num_rows for report in reports),
            num_tokens=sum(report.num_tokens for report in reports),
            num_rejects=sum(report.num_rejects for report in reports),
            num_failed_shards=0,
        ),
    )
    store.sweep_scratch()


def demo_photos(size: int = 256) -> Tensor:
    """The demo photos, uint8 [9, 3, size, size]."""
    images = []
    for path in sorted((EXAMPLES / "photos").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".png")):
                    image = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
                    images.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def rewrite_column(data_set: Path, column: str, value: object) -> None:
    """Give every row of a dataset one value in a column."""
    for part in (data_set / "data").iterdir():
        table, footer = pq.read_table(part), pq.read_metadata(part).metadata
        number = table.schema.get_field_index(column)
        field = table.schema.field(number)
        table = table.set_column(number, field, pa.array([value] * len(table), type=field.type))
        pq.write_table(table.replace_schema_metadata(footer), part)

"""A small tokenized data set of real photos, made with the shipped checkpoint but without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from conftest import TESTS, jpeg, tar_bytes
from fake_tokenizer import FakeTokenizer

from pipeline.commit import commit_shard
from pipeline.decode import decode_sample
from pipeline.fingerprint import TokenizerSpec, run_fingerprint
from pipeline.manifest import claim_output, mark_success, record_run, update_manifest
from pipeline.plan import plan_shards
from pipeline.read import read_samples
from pipeline.store import OutputStore
from pipeline.tokenize import tokenize_clips
from schemas.job import JobConfig
from schemas.manifest import RunRecord
from schemas.records import Clip, Reject, Shard
from schemas.video import Video
from tatok.tokenizer import Tokenizer

DEMO_PHOTOS = str(TESTS.parent / "examples" / "photos" / "demo-{0000..0002}.tar")
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
    tokenizer: Tokenizer | FakeTokenizer | None = None,
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
        for sample in read_samples(shard, max_sample_bytes=config.limits.max_sample_bytes):
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
            ),
            fingerprint=fingerprint,
            vocab_size=spec.vocab_size,
            patch_entropy=True,
            patch_worth=patch_worth,
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

"""Loans on a real Ray: several processes work on one shard, and its part is that of a single one, whoever dies."""

from __future__ import annotations

import functools
import os
import signal
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import ray
import torch

from tatok.pipeline.cluster import sizes
from tatok.pipeline.cluster.leases import Attempt
from tatok.pipeline.cluster.workers.decoder import DecodeWorker
from tatok.pipeline.cluster.workers.flow import Flow
from tatok.pipeline.monitoring.events import Event, Notice, ShardRetried, Throughput
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.clip_chunk import ClipChunk
from tatok.pipeline.tokenization.shard_decoder import Chunk, ShardDecoder
from tatok.pipeline.tokenization.shared_decoding import Item
from tatok.schemas.job import JobConfig
from tatok.schemas.records import TokenSequence
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.photos import endless_jpeg, photo_members, tar_bytes
from tests.support.processes import descendants
from tests.support.runs import DECODERS_WANTED, job, note_decoder, rejects, run
from tests.support.synthetic_videos import noise, padded, video_bytes

pytestmark = pytest.mark.usefixtures("local_ray")

NUM_PHOTOS, BATCH = 120, 4
FILTER = f"{note_decoder.__module__}:{note_decoder.__name__}"
ILLEGAL = "CUDA error: an illegal memory access was encountered"
ALONE = {"num_tokenizers": 1, "num_decoders": 0}
IN_PLACE = {"num_tokenizers": 2, "num_decoders": 0}
DECODERS = {"num_tokenizers": 1, "num_decoders": 3}

Fate = Literal["alone", "lives", "lender killed", "lender's device breaks", "owner killed"]


@pytest.fixture(autouse=True)
def _every_shard_is_worth_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_PIECE_BYTES", 1 << 10)


@dataclass(frozen=True, kw_only=True)
class Fated(FakeTokenizer):
    """Leaves a mark for each batch, named by its process and for whom it is; what happens, happens at a third batch.

    A shard's own tokenizer waits a while at each from its third on until another one has had a batch, which it may not
    get before the own one has come to its next.
    """

    folder: str
    fate: Fate = "lives"

    def encode(self, pixels: torch.Tensor) -> list[TokenSequence]:
        is_own = any(frame.name == "run_shard" for frame in traceback.extract_stack())
        path = Path(self.folder) / f"{'own' if is_own else 'lent'}-{os.getpid()}"
        with path.open("a") as file:
            file.write(".")
        until = time.monotonic() + 2
        while self.fate != "alone" and is_own and path.stat().st_size >= 3 and time.monotonic() < until:
            if any(Path(self.folder).glob("lent-*")):
                break
            time.sleep(0.05)
        if path.stat().st_size >= 3 and self.fate not in ("alone", "lives") and is_own == (self.fate == "owner killed"):
            if "breaks" in self.fate:
                if _is_chosen(Path(self.folder) / "chosen"):
                    raise torch.AcceleratorError(ILLEGAL)
            elif not (Path(self.folder) / "chosen").is_symlink() and _is_chosen(Path(self.folder) / "chosen"):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(pixels)


def _is_chosen(path: Path) -> bool:
    """Whether this process is the first that asked."""
    try:
        path.symlink_to(str(os.getpid()))
    except FileExistsError:
        return os.readlink(path) == str(os.getpid())
    return True


def load_fated(folder: str, fate: Fate, device: str) -> Fated:
    return Fated(folder=folder, fate=fate, delay_s=0.0 if fate == "alone" else 0.1, device_name=device)


def batches(folder: Path, kind: str) -> list[int]:
    """How many each process had."""
    return [path.stat().st_size for path in (folder / "marks").glob(f"{kind}-*")]


def run_shared(
    tmp_path: Path,
    resources: dict[str, int],
    *,
    fate: Fate = "lives",
    num_decoders: int = 0,
    poison: Iterable[tuple[str, bytes]] = (),
    events: list[Event] | None = None,
    **options: Any,
) -> None:
    """Tokenize one tar of photos, with help and without, and compare all that is published."""
    source, marks = tmp_path / "source", tmp_path / "marks"
    source.mkdir()
    marks.mkdir()
    members = [*photo_members(0, NUM_PHOTOS // 2), *poison, *photo_members(NUM_PHOTOS // 2, NUM_PHOTOS // 2)]
    (source / "photos.tar").write_bytes(tar_bytes(members))
    load = functools.partial(load_fated, str(marks), fate)
    (tmp_path / DECODERS_WANTED).write_text(str(num_decoders))
    config = job(str(source), tmp_path / "out", resources=resources, filter=FILTER)
    summary = run(config, events, load_tokenizer=load, **options)
    assert (summary.status, summary.num_rows) == ("complete", NUM_PHOTOS)
    by_many = {path.name for path in (tmp_path / "decoded").iterdir()}
    config = job(str(source), tmp_path / "alone", resources={**resources, **ALONE}, filter=FILTER)
    alone = functools.partial(load_fated, str(marks), "alone")
    (tmp_path / DECODERS_WANTED).unlink()
    assert run(config, load_tokenizer=alone).num_rows == NUM_PHOTOS
    assert published(tmp_path / "out") == published(tmp_path / "alone")
    for name in by_many:
        (tmp_path / "decoded" / name).rename(tmp_path / name)


def published(output: Path) -> dict[str, bytes]:
    files = [path for kind in ("data", "_rejects") for path in (output / kind).iterdir()]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "fate",
    [
        "lives",
        pytest.param("lender killed", marks=pytest.mark.long),
        "owner killed",
        pytest.param("lender's device breaks", marks=pytest.mark.long),
    ],
)
def test_two_tokenizers_encode_one_shard_and_its_part_is_that_of_one(tmp_path: Path, fate: Fate) -> None:
    events: list[Event] = []
    run_shared(tmp_path, IN_PLACE, fate=fate, events=events)
    lent = batches(tmp_path, "lent")
    assert sum(lent) >= (1 if fate == "owner killed" else 3)
    retried = [event.reason for event in events if isinstance(event, ShardRetried)]
    assert len(retried) == (fate == "owner killed"), "what becomes of a lender is no failure of the shard"
    told = [event.message for event in events if isinstance(event, Notice)]
    if fate == "lender's device breaks":
        assert any("is replaced" in message and ILLEGAL in message for message in told)


def test_where_encoding_costs_little_the_other_tokenizer_decodes(tmp_path: Path) -> None:
    run_shared(tmp_path, IN_PLACE, fate="alone", num_decoders=2)
    decoded = [path.stat().st_size for path in tmp_path.glob("decoder-*")]
    assert len(decoded) == 2
    assert sum(decoded) == NUM_PHOTOS


@pytest.mark.long  # as does the one below, of which one dies
def test_every_decoder_decodes_for_the_only_shard(tmp_path: Path) -> None:
    run_shared(tmp_path, DECODERS, fate="alone", num_decoders=3)
    decoded = [path.stat().st_size for path in tmp_path.glob("decoder-*")]
    assert len(decoded) == 3
    assert sum(decoded) == NUM_PHOTOS


def test_a_decoder_that_dies_costs_the_shard_nothing_or_its_attempt(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        if isinstance(event, Throughput) and event.num_rows and not killed:
            killed.append(descendants("DecodeWorker")[-1])
            os.kill(killed[0], signal.SIGKILL)

    run_shared(tmp_path, DECODERS, fate="alone", num_decoders=3, on_event=kill_once)
    assert killed


@pytest.mark.long  # test_faults.py has one in a shard of its own process
@pytest.mark.parametrize(
    "resources",
    [pytest.param(IN_PLACE, id="in-place"), pytest.param(DECODERS, id="decoders")],
)
def test_a_sample_that_hangs_its_decoder_is_the_same_reject_as_alone(tmp_path: Path, resources: dict[str, int]) -> None:
    endless = ("endless.jpg", endless_jpeg())
    run_shared(tmp_path, {**resources, "decode_timeout_s": 3}, fate="alone", poison=[endless])
    (reject,) = rejects(tmp_path / "out")
    assert (reject["key"], reject["source_index"], reject["reason"]) == ("endless", NUM_PHOTOS // 2, "decoder_hang")


@ray.remote
class Recording:
    """A process that is lent, and says what kinds of things it was given."""

    def __init__(self, config: JobConfig, store: OutputStore) -> None:
        self._decoder = ShardDecoder(config, store)
        self._kinds: list[str] = []

    def decode_samples(self, items: list[Item], chunk_size: int, chunk_bytes: int) -> Iterator[Chunk]:
        self._kinds += [type(item).__name__ for item in items]
        yield from self._decoder.decode_samples(items, chunk_size, chunk_bytes)

    def kinds(self) -> list[str]:
        return self._kinds


def test_a_long_video_is_decoded_by_several(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    pictures = [*noise(60), *reversed(noise(60))] * 10
    payload = padded(video_bytes(1000, pictures=pictures, g="20"), 40 << 20)
    (tmp_path / "videos" / "long.mp4").write_bytes(payload)
    large = {"preprocessing": {"image_size": 256}, "video": {"frames_per_clip": 8, "stride": 2}}
    config = job(str(tmp_path / "videos"), tmp_path / "out", **large)
    store = OutputStore.open(str(tmp_path / "out"))
    [shard] = plan_shards(config.source)
    owner = DecodeWorker.remote(config, store)  # type: ignore[attr-defined]
    helpers = [Recording.remote(config, store) for _ in range(2)]  # type: ignore[attr-defined]

    def decoded(number: int) -> list[tuple[object, ...]]:
        stream = owner.decode.options(num_returns="streaming").remote(
            Attempt(shard=shard, number=number, guarded=False), Flow.of(config, batch_size=4)
        )
        found = list[tuple[object, ...]]()
        for reference in stream:
            chunk = ray.get(reference)
            if isinstance(chunk, ClipChunk):
                pixels = [array.tobytes() for run in chunk.runs() for array in run.pixels]  # type: ignore[union-attr]
                found += zip(map(str, chunk.facts.to_pylist()), pixels, strict=True)
        return found

    alone = decoded(1)
    ray.get(owner.lend.remote(2, helpers))
    assert decoded(2) == alone
    kinds = [kind for helper in helpers for kind in ray.get(helper.kinds.remote())]
    assert len(alone) == 1000 // 2 // 8
    assert set(kinds) == {"SamplePiece"}
    assert len(kinds) >= 2
    for actor in (owner, *helpers):
        ray.kill(actor)

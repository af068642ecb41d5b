"""Rows -> the clips that they were made from, read again from their sources."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.readers.read import ReadOptions, read_samples, shards_at
from tatok.pipeline.video.local_video import local_video
from tatok.schemas.errors import SourceError, TatokError
from tatok.schemas.job import JobConfig, Limits, Preprocessing
from tatok.schemas.manifest import RunDocument
from tatok.schemas.preprocessing import Video
from tatok.schemas.records import Clip, Reject, Sample

__all__ = ["NotFound", "Recipe", "SourcePlace", "read_originals", "source_places"]

NUM_READERS = 8
THREAD_NAME = "tatok-originals"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePlace:
    """Where a row's sample lies, which of its clips the row is, and the SHA-256 that its bytes had then."""

    uri: str
    index: int
    sha256: str
    clip_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFound:
    """A sample that is not there any more; `why` is a sentence for people."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What turns a sample into the pixels that were tokenized."""

    preprocessing: Preprocessing
    limits: Limits
    image_field: str | None
    video: Video = field(default_factory=Video)

    @staticmethod
    def of_job(config: JobConfig) -> Recipe:
        """The recipe of a job."""
        return Recipe(
            preprocessing=config.preprocessing,
            limits=config.limits,
            image_field=config.image_field,
            video=config.video,
        )

    @staticmethod
    def of_run(run: RunDocument) -> Recipe:
        """The recipe of a dataset, from the fingerprint that its parts share, else its configuration, else defaults.

        Raises SourceError if the run document holds settings that this version does not know.
        """
        recorded = _recorded(run, "preprocessing")
        if run.schema_version == "1":
            recorded.setdefault("icc_profiles", "ignore")  # which is what that version did
        field = run.config.get("image_field")
        if "image_field" in run.fingerprint:
            field = json.loads(run.fingerprint["image_field"])
        try:
            return Recipe(
                preprocessing=Preprocessing.model_validate(recorded),
                limits=Limits.model_validate(_section(run.config, "limits")),
                image_field=field,
                video=Video.model_validate(_recorded(run, "video")),
            )
        except ValidationError as error:
            raise SourceError(
                f"the dataset's run document holds settings that this version of tatok does not know: {error}; "
                "use the version that made the dataset"
            ) from error


def source_places(table: pa.Table) -> list[SourcePlace]:
    """The place of each row, in order; the table has the columns source_uri, source_index, sha256 and clip_index.

    In datasets of schema version 1, which lack clip_index, every row is its sample's only one.
    """
    columns = [table.column(name).to_pylist() for name in ("source_uri", "source_index", "sha256")]
    clips = table.column("clip_index").to_pylist() if "clip_index" in table.column_names else [0] * len(table)
    return [
        SourcePlace(uri=uri, index=index, sha256=sha256, clip_index=clip)
        for uri, index, sha256, clip in zip(*columns, clips, strict=True)
    ]


def read_originals(
    places: Iterable[SourcePlace], recipe: Recipe, *, max_seconds: float = 60.0
) -> dict[SourcePlace, Clip | NotFound]:
    """The clip of every place, or why there is none: unreachable, changed since, damaged, or not in time.

    A tar is streamed from its start to the last sample wanted, of a table the row's row group, several files at a time.
    After `max_seconds` what is still missing is given up: a store that hangs leaves its thread behind, which ends with
    the process.
    """
    by_uri: defaultdict[str, list[SourcePlace]] = defaultdict(list)
    for place in dict.fromkeys(places):
        by_uri[place.uri].append(place)
    answers: queue.SimpleQueue[_Answer | BaseException] = queue.SimpleQueue()
    waiting: queue.SimpleQueue[tuple[str, list[SourcePlace]]] = queue.SimpleQueue()
    for item in by_uri.items():
        waiting.put(item)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                uri, wanted = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                for answer in _read_source(uri, wanted, recipe, stop.is_set):
                    answers.put(answer)
            except BaseException as error:  # raised again by the thread that waits
                answers.put(error)

    for _ in range(min(NUM_READERS, len(by_uri))):
        threading.Thread(target=work, name=THREAD_NAME, daemon=True).start()
    late = NotFound(why=f"the source did not answer within {max_seconds:g} s")
    found: dict[SourcePlace, Clip | NotFound] = {place: late for wanted in by_uri.values() for place in wanted}
    deadline = time.monotonic() + max_seconds
    try:
        for _ in range(len(found)):
            answer = answers.get(timeout=max(deadline - time.monotonic(), 0))
            if isinstance(answer, BaseException):
                raise answer
            # Decoded here, in one thread: Pillow's limit on pixels is a global that decoding sets and resets.
            found[answer.place] = _decoded(answer, recipe)
    except queue.Empty:
        pass  # the rest is late
    finally:
        stop.set()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    place: SourcePlace
    got: Sample | Reject | NotFound


def _read_source(
    uri: str, places: Sequence[SourcePlace], recipe: Recipe, stopped: Callable[[], bool]
) -> Iterator[_Answer]:
    wanted: defaultdict[int, list[SourcePlace]] = defaultdict(list)
    for place in places:
        wanted[place.index].append(place)
    options = ReadOptions(max_sample_bytes=recipe.limits.max_sample_bytes, image_field=recipe.image_field)
    why = "the source has fewer samples than it had"
    try:
        for shard in shards_at(uri, wanted):
            for sample in read_samples(shard, options):
                if stopped():
                    return
                for place in wanted.pop(sample.index, ()):
                    yield _Answer(place=place, got=sample)
                if not wanted:
                    return
    except TatokError as error:
        why = str(error)
    for rest in wanted.values():
        for place in rest:
            yield _Answer(place=place, got=NotFound(why=why))


def _decoded(answer: _Answer, recipe: Recipe) -> Clip | NotFound:
    if isinstance(answer.got, NotFound):
        return answer.got
    got = answer.got
    if isinstance(got, Reject):
        return NotFound(why=f"the source is damaged now: {got.detail}")
    try:
        with local_video(got) as sample:
            for clip in decode_sample(sample, recipe.preprocessing, recipe.limits, recipe.video):
                if isinstance(clip, Reject):
                    return NotFound(why=f"the source is damaged now: {clip.detail}")
                if clip.sha256 != answer.place.sha256:
                    break
                if clip.clip_index == answer.place.clip_index:
                    return clip
    except SourceError as error:
        return NotFound(why=str(error))
    return NotFound(why="the source holds other bytes than those that were tokenized")


def _recorded(run: RunDocument, section: str) -> dict[str, Any]:
    start = f"{section}."
    recorded = {key.removeprefix(start): json.loads(v) for key, v in run.fingerprint.items() if key.startswith(start)}
    return _section(run.config, section) | recorded


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    return dict(section) if isinstance(section, Mapping) else {}

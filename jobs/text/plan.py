"""A source that was looked over, and a job that was looked ahead at, as `tatok plan` and `--dry-run` print them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tatok.schemas.records import ShardKind, count_text, is_or_are, left_out_text
from tatok.statistics.units import bytes_text

if TYPE_CHECKING:
    from tatok.pipeline.planning.survey import Survey
    from tatok.pipeline.preview import Preview
    from tatok.schemas.job import JobConfig
    from tatok.schemas.settings import Section

__all__ = ["all_committed", "changed_settings", "preview_text", "source_lines"]

_SHOWN = 10  # extensions
_WHAT: dict[ShardKind, str] = {
    "webdataset": "WebDataset tars",
    "parquet": "Parquet files",
    "files": "images and videos as files, or named in lists",
}


def source_lines(found: Survey) -> list[str]:
    """What there is, by kind, and what of it is left out."""
    lines = []
    for kind, counts in found.kinds.items():
        samples = "samples unknown" if counts.num_samples is None else count_text(counts.num_samples, "sample")
        shards = count_text(counts.num_shards, "shard")
        lines.append(f"{_WHAT[kind]}: {shards}, {samples}, {bytes_text(counts.num_bytes)}")
        lines.append(f"  a shard: {bytes_text(counts.smallest_bytes)} to {bytes_text(counts.largest_bytes)}")
        if counts.extensions:
            shown = [f"{count:,} {extension}" for extension, count in list(counts.extensions.items())[:_SHOWN]]
            lines.append(f"  files: {', '.join(shown)}")
    if found.left_out:
        lines.append(f"left out: {left_out_text(found.left_out)}")
    return lines


def preview_text(preview: Preview, job: JobConfig) -> str:
    """What the job would do."""
    lines = [*source_lines(preview.survey), *_output_lines(preview), *_tokenizer_lines(preview, job)]
    changed = changed_settings(job)
    lines.append(f"settings that are not the defaults: {'none' if not changed else ''}".rstrip())
    lines += [f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in changed.items()]
    lines += [*_where_lines(preview), "nothing was started, and nothing written"]
    return "\n".join(lines)


def changed_settings(job: JobConfig) -> dict[str, Any]:
    """The settings beside source and output that differ from the defaults, by their dotted names."""
    return {name: value for name, value in _changed(job) if name not in ("source", "output")}


def _changed(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    from tatok.schemas.settings import Section

    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _changed(value, f"{prefix}{name}.")
        elif value != field.default:
            yield f"{prefix}{name}", section.model_dump(mode="json", include={name})[name]


def all_committed(num_shards: int) -> str:
    """What to say of a source of so many shards that is done."""
    return "its only shard is committed" if num_shards == 1 else f"all {num_shards:,} shards are committed"


def _output_lines(preview: Preview) -> Iterator[str]:
    progress = preview.progress
    if not preview.resumes:
        yield f"output: {preview.output}, a new dataset"
    elif not progress.pending:
        yield f"output: {preview.output}; nothing is left to do: {all_committed(progress.num_shards)}"
    else:
        num = len(progress.committed)
        yield f"output: {preview.output}, to be resumed: {count_text(num, 'shard')} {is_or_are(num)} committed"
    if progress.pending:
        size = "" if preview.output_bytes is None else f"; about {bytes_text(preview.output_bytes)} of tokens"
        yield f"to do: {count_text(len(progress.pending), 'shard')}, {bytes_text(preview.pending_bytes)}{size}"
    if progress.unplanned:
        num = len(progress.unplanned)
        stay = f"{is_or_are(num)} of no shard of this source; {'it stays' if num == 1 else 'they stay'}"
        yield f"  {count_text(num, 'part')} of the output {stay}"


def _tokenizer_lines(preview: Preview, job: JobConfig) -> Iterator[str]:
    spec = preview.tokenizer
    yield f"tokenizer: {job.tokenizer or job.checkpoint or 'the bundled checkpoint'}"
    codes = f"{spec.vocab_size:,} codes, patch {spec.patch_size}, {spec.num_global} global tokens"
    yield f"  {codes}, {spec.fingerprint[:12]}"


def _where_lines(preview: Preview) -> Iterator[str]:
    sizes = preview.sizes
    if preview.cluster is not None:
        yield f"would run: on the Ray at {preview.cluster}, which is not asked here; `tatok doctor` asks it"
    elif sizes is not None:
        by_themselves = "which decodes for itself" if sizes.num_tokenizers == 1 else "which decode for themselves"
        decoders = by_themselves if sizes.decodes_in_place else count_text(sizes.num_decoders, "decoder")
        yield "would run: on a Ray of this machine"
        yield (
            f"  {count_text(sizes.num_tokenizers, 'tokenizer')} on {sizes.device}, {decoders}, batches of "
            f"{sizes.batch_size}"
        )

"""The checks of what a job names: its storage options, source, output and checkpoint."""

from __future__ import annotations

from collections import Counter

from tatok.pipeline.doctor.dry_run import read_some
from tatok.pipeline.doctor.notes import Notes
from tatok.pipeline.doctor.option_names import doubtful_options
from tatok.pipeline.output.manifest import require_same_run
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.run import check_image_size
from tatok.pipeline.storage.background import Unanswered, within
from tatok.pipeline.storage.remedies import SILENT_REMEDY
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.fingerprint import run_fingerprint
from tatok.pipeline.tokenization.loading import LoadTokenizer, load_spec
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import SourceError, TatokError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, LeftOut, Shard, count_text, left_out_text

__all__ = [
    "check_first_sample",
    "check_option_names",
    "check_output",
    "check_recipe",
    "check_source",
    "check_tokenizer",
]

_FIRST_SAMPLES = 20  # in which there must be a good one
_LISTING_S = 10.0  # more than other checks have, because a large source takes its time


def check_option_names(config: JobConfig, notes: Notes) -> None:
    """Warn of storage options that look misspelt."""
    for doubt in doubtful_options(config.storage):
        notes.warn("storage", doubt, "fix the name, or ignore this if the option is one of a library below")


def check_source(config: JobConfig, notes: Notes) -> list[Shard]:
    """The shards; none where the source cannot be listed."""
    seconds = notes.deadline_s + _LISTING_S
    left_out = Counter[LeftOut]()
    try:
        shards = within(seconds, lambda: plan_shards(config.source, image_field=config.image_field, left_out=left_out))
    except Unanswered:
        large = "; if the source is merely large, `tatok plan` says how long its listing takes"
        notes.give_up("source", f"cannot list {', '.join(config.source)}", seconds, SILENT_REMEDY + large)
        return []
    except TatokError as error:
        notes.fail_by("source", error)
        return []
    num_bytes = sum(shard.num_bytes for shard in shards)
    others = f"; left out: {left_out_text(left_out)}" if left_out else ""
    notes.ok("source", f"{count_text(len(shards), 'shard')}, {num_bytes / 1e9:,.3f} GB{others}")
    return shards


def check_first_sample(config: JobConfig, notes: Notes, shard: Shard) -> bool:
    """Whether one of the first samples of a shard can be decoded."""
    rejects = Counter[str]()

    def first_clip() -> Clip | None:
        for result in read_some(config, shard, _FIRST_SAMPLES):
            if isinstance(result, Clip):
                return result
            rejects[f"{result.reason} ({result.detail})"] += 1
        return None

    try:
        clip = within(notes.deadline_s, first_clip)
    except Unanswered:
        notes.give_up("first sample", f"cannot read {shard.uri}", notes.deadline_s)
        return False
    except SourceError as error:
        notes.fail_by("first sample", error)
        return False
    if clip is not None:
        shape = "x".join(map(str, clip.pixels.shape[-2:]))
        notes.ok("first sample", f"{clip.key!r} of {shard.uri} decodes to {shape} pixels")
        return True
    reasons = "; ".join(f"{count} times {reason}" for reason, count in rejects.most_common(2)) or "no sample at all"
    notes.fail(
        "first sample",
        f"none of the first samples of {shard.uri} can be tokenized: {reasons}",
        "check that the source is what the job means; image_field names the member to tokenize",
    )
    return False


def check_output(config: JobConfig, notes: Notes) -> OutputStore | None:
    """The output, where it can be written; an object or folder is written for it, and removed again."""

    def probed() -> OutputStore:
        store = OutputStore.of_dataset(config.output).probe()
        store.sweep_scratch()
        return store

    try:
        store = within(notes.deadline_s, probed)
    except Unanswered:
        notes.give_up("output", f"cannot write to {config.output}", notes.deadline_s)
        return None
    except TatokError as error:
        notes.fail_by("output", error)
        return None
    if store.is_local:
        notes.ok("output", f"{store.url} is writable; parts appear atomically")
    elif store.create_only:
        notes.ok("output", f"{store.url} is writable and honours create-only writes")
    else:
        notes.warn(
            "output",
            f"{store.url} is writable but ignores create-only writes (conditional PUT)",
            "let no two runs write there at the same time; they could replace each other's (equal) parts",
        )
    return store


def check_tokenizer(config: JobConfig, notes: Notes, load_tokenizer: LoadTokenizer) -> TokenizerSpec | None:
    """What the checkpoint, or the user's own tokenizer, is, where it loads and the job's images fit its patches."""
    what = "checkpoint" if config.tokenizer is None else "tokenizer"
    name = config.tokenizer or config.checkpoint or "the bundled checkpoint"
    seconds = notes.deadline_s + _LISTING_S  # torch may have to be imported
    try:
        spec = within(seconds, lambda: load_spec(config, load_tokenizer))
        check_image_size(config, spec)
    except Unanswered:
        notes.give_up(what, name, seconds)
        return None
    except Exception as error:  # whatever the user's own does
        if config.tokenizer is None and not isinstance(error, TatokError | OSError | ValueError | RuntimeError):
            raise
        remedy = "name the folder that `tatok train` wrote as checkpoint, or leave it out for tatok's own"
        if config.tokenizer is not None:
            remedy = "fix it; `tatok check-tokenizer` tries it by itself"
        notes.fail(
            what,
            f"{name}: {str(error).strip() or type(error).__name__}",
            (error.remedy if isinstance(error, TatokError) else None) or remedy,
        )
        return None
    notes.ok(
        what,
        f"{name}: {spec.vocab_size:,} codes, patch {spec.patch_size}, {spec.num_global} global tokens, "
        f"{spec.fingerprint[:12]}",
    )
    return spec


def check_recipe(config: JobConfig, notes: Notes, store: OutputStore, spec: TokenizerSpec) -> None:
    """Whether what the output holds was made by the same recipe."""
    try:
        recipe = run_fingerprint(config, spec)
        resumes = within(notes.deadline_s, lambda: require_same_run(store, recipe))
    except Unanswered:
        notes.give_up("recipe", f"cannot read {store.url}/{store.layout.run}", notes.deadline_s)
    except TatokError as error:
        remedy = f"name another output, or the checkpoint and settings that its {store.layout.run} says"
        notes.fail("recipe", str(error), remedy)
    else:
        notes.ok("recipe", "the output holds this recipe's tokens already" if resumes else "the output is new")

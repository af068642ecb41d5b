"""A job, examined before it runs: every check that can be made, what is wrong, and what to do about it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tatok.pipeline.cluster.sizes import Sizes, count_pieces, plan_sizes
from tatok.pipeline.doctor.cluster_checks import Machines, check_cluster, check_gpus
from tatok.pipeline.doctor.dry_run import DryRun, Forecast, dry_run, forecast
from tatok.pipeline.doctor.job_checks import (
    check_first_sample,
    check_option_names,
    check_output,
    check_recipe,
    check_source,
    check_tokenizer,
)
from tatok.pipeline.doctor.notes import Check, Notes
from tatok.pipeline.doctor.recorded_rates import RECORDED
from tatok.pipeline.storage.background import Unanswered, within
from tatok.pipeline.storage.options import storage_options
from tatok.pipeline.tokenization.loading import LoadTokenizer, configured_loader
from tatok.schemas.errors import ConfigError, TatokError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Shard, count_text

__all__ = ["Check", "Diagnosis", "examine"]

NUM_SAMPLES = 100
_DRY_RUN_S = 20.0
_DEADLINE_S = 15.0  # of one check of a store


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All checks in order; a forecast where the dry run went through."""

    checks: tuple[Check, ...]
    forecast: Forecast | None

    is_stuck: bool = False
    """Whether a check was given up whose thread still waits for a store."""

    @property
    def passed(self) -> bool:
        """Nothing failed; there may be warnings."""
        return all(check.verdict != "failed" for check in self.checks)


def examine(
    config: JobConfig,
    *,
    load_tokenizer: LoadTokenizer | None = None,
    on_check: Callable[[Check], None] = lambda check: None,
    num_samples: int = NUM_SAMPLES,
    deadline_s: float = _DEADLINE_S,
) -> Diagnosis:
    """Check source, output, checkpoint and cluster, then try `num_samples` samples; nothing is tokenized for good.

    A store that has not answered a check within `deadline_s` fails it; to list a source it has ten seconds more.

    The cluster is the Ray at RAY_ADDRESS, else this machine. What does not depend on a failed check is checked all
    the same. Only an empty object or folder `.tmp` is written to the output, and removed again.
    """
    notes = Notes(on_check, deadline_s)
    found: Forecast | None = None
    try:
        with storage_options(config.storage):
            found = _examine(config, notes, load_tokenizer, num_samples)
    except ConfigError as error:  # a reference to a variable that is not set
        notes.fail("storage", str(error), "every other check needs it; set it here and on all nodes")
    return Diagnosis(checks=tuple(notes.checks), forecast=found, is_stuck=notes.is_stuck)


def _examine(
    config: JobConfig, notes: Notes, load_tokenizer: LoadTokenizer | None, num_samples: int
) -> Forecast | None:
    check_option_names(config, notes)
    shards = check_source(config, notes)
    is_readable = bool(shards) and check_first_sample(config, notes, shards[0])
    store = check_output(config, notes)
    load_tokenizer = load_tokenizer or _loader(config, notes)
    spec = None if load_tokenizer is None else check_tokenizer(config, notes, load_tokenizer)
    if store is not None and spec is not None:
        check_recipe(config, notes, store, spec)
    with ExitStack() as stack:
        machines = check_cluster(notes, stack)
        has_gpus = machines is not None and check_gpus(config, notes, machines)
        if machines is None or load_tokenizer is None or not (is_readable and spec is not None and has_gpus):
            return None
        sizes = _planned(config, machines, shards)
        work = functools.partial(
            dry_run, config, shards[0], load_tokenizer, sizes, num_samples=num_samples, most_s=_DRY_RUN_S
        )
        on_gpu = machines.is_cluster and sizes.gpus_per_tokenizer > 0
        found = _try(config, notes, work, f"{count_text(num_samples, 'sample')} of {shards[0].uri}", on_gpu=on_gpu)
    return None if found is None else _forecast(config, found, sizes, shards, machines)


def _loader(config: JobConfig, notes: Notes) -> LoadTokenizer | None:
    try:
        return configured_loader(config)
    except ConfigError as error:  # the file of a user's own tokenizer
        notes.fail_by("tokenizer", error)
        return None


def _planned(config: JobConfig, machines: Machines, shards: Sequence[Shard]) -> Sizes:
    num_gpus = machines.num_gpus
    if num_gpus >= 1:  # those that are not there yet are counted
        num_gpus = max(num_gpus, config.resources.num_tokenizers or 1)
    return plan_sizes(
        config,
        num_shards=len(shards),
        num_pieces=count_pieces(shards),
        num_cpus=machines.num_cpus,
        num_gpus=num_gpus,
    )


def _try(config: JobConfig, notes: Notes, work: Callable[[], DryRun], what: str, *, on_gpu: bool) -> DryRun | None:
    seconds = 2 * _DRY_RUN_S + notes.deadline_s
    try:
        found = _done_on_a_gpu(work) if on_gpu else within(seconds, work)
    except Unanswered:
        notes.give_up("dry run", what, seconds)
        return None
    except (TatokError, RuntimeError) as error:
        notes.fail("dry run", str(error), "see the message; a smaller resources.batch_size takes less memory")
        return None
    num_rejects = sum(found.rejects.values())
    said = (
        f"{count_text(found.num_samples, 'sample')} in {found.decode_s + found.encode_s:.1f} s: "
        f"{count_text(found.num_rows, 'row')}, "
        f"{found.num_tokens:,} tokens"
    )
    if num_rejects > config.limits.max_reject_fraction * found.num_samples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.rejects.items())
        remedy = "fix the source, or raise limits.max_reject_fraction"
        notes.fail("dry run", f"{said}; {count_text(num_rejects, 'reject')} ({reasons}), at which a run stops", remedy)
        return None
    notes.ok("dry run", f"{said}, {count_text(num_rejects, 'reject')}")
    return found


def _done_on_a_gpu(work: Callable[[], DryRun]) -> DryRun:
    from tatok.pipeline.cluster.probe import on_a_gpu

    found: DryRun = on_a_gpu(work, timeout_s=2 * _DRY_RUN_S)
    return found


def _forecast(config: JobConfig, found: DryRun, sizes: Sizes, shards: Sequence[Shard], machines: Machines) -> Forecast:
    num_bytes = sum(shard.num_bytes for shard in shards)
    is_bundled = config.checkpoint is None and config.tokenizer is None
    fitting = (rate for rate in RECORDED if is_bundled and rate.precision == config.precision)
    return forecast(found, sizes, source_bytes=num_bytes, num_cpus=machines.num_cpus, recorded=next(fitting, None))

"""A job, examined before it runs: every check that can be made, what is wrong, and what to do about it."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.background import Unanswered, within
from pipeline.dry_run import DryRun, Forecast, dry_run, forecast, read_some
from pipeline.fingerprint import TokenizerSpec, describe_difference, run_fingerprint
from pipeline.loading import LoadTokenizer, configured_loader, load_spec
from pipeline.manifest import require_same_run
from pipeline.option_names import doubtful_options
from pipeline.plan import plan_shards
from pipeline.recorded_rates import RECORDED
from pipeline.run import check_image_size
from pipeline.sizes import plan_sizes
from pipeline.storage import storage_options
from pipeline.store import OutputStore
from schemas.errors import ConfigError, SourceError, TatokError
from schemas.job import JobConfig
from schemas.records import Clip, Shard

if TYPE_CHECKING:
    from pipeline.cluster_probe import ClusterView

__all__ = ["Check", "Diagnosis", "examine"]

NUM_SAMPLES = 100
_DRY_RUN_S = 20.0
_FIRST_SAMPLES = 20  # in which there must be a good one
_DEADLINE_S = 15.0  # of one check of a store
_LISTING_S = 10.0  # more, because a large source takes its time

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at; `remedy` says what to do where it is not ok."""

    name: str
    verdict: Verdict
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All checks in order; a forecast where the dry run went through."""

    checks: tuple[Check, ...]
    forecast: Forecast | None

    is_stuck: bool = False
    """Whether a check was given up whose thread still waits for a store."""

    @property
    def passed(self) -> bool:
        """Nothing failed; warnings may stand."""
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
    examination = _Examination(config, load_tokenizer or configured_loader(config), on_check, num_samples, deadline_s)
    try:
        with storage_options(config.storage):
            return examination.run()
    except ConfigError as error:  # a reference to a variable that is not set
        examination.note("storage", "failed", str(error), "every other check needs it; set it here and on all nodes")
        return examination.diagnosis()


class _Examination:
    def __init__(
        self,
        config: JobConfig,
        load_tokenizer: LoadTokenizer,
        on_check: Callable[[Check], None],
        num_samples: int,
        deadline_s: float,
    ) -> None:
        self._config = config
        self._load_tokenizer = load_tokenizer
        self._on_check = on_check
        self._num_samples = num_samples
        self._deadline_s = deadline_s
        self._is_stuck = False
        self._checks: list[Check] = []
        self._forecast: Forecast | None = None

    def note(self, name: str, verdict: Verdict, message: str, remedy: str = "") -> None:
        check = Check(name=name, verdict=verdict, message=message, remedy=remedy)
        self._checks.append(check)
        self._on_check(check)

    def diagnosis(self) -> Diagnosis:
        return Diagnosis(checks=tuple(self._checks), forecast=self._forecast, is_stuck=self._is_stuck)

    def run(self) -> Diagnosis:
        for doubt in doubtful_options(self._config.storage):
            self.note(
                "storage", "warning", doubt, "mend the name, or ignore this if the option is one of a library below"
            )
        shards = self._source()
        is_readable = bool(shards) and self._first_sample(shards)
        store = self._output()
        spec = self._checkpoint()
        if store is not None and spec is not None:
            self._same_run(store, spec)
        with ExitStack() as stack:
            view = self._cluster(stack)
            has_room = self._gpus(view)
            if is_readable and spec is not None and has_room:
                self._try(shards, view)
        return self.diagnosis()

    def _give_up(self, name: str, what: str, seconds: float, remedy: str) -> None:
        self._is_stuck = True
        self.note(name, "failed", f"{what}: no answer within {seconds:g} s", remedy)

    def _source(self) -> list[Shard]:
        config, seconds = self._config, self._deadline_s + _LISTING_S
        try:
            shards = within(seconds, lambda: plan_shards(config.source, image_field=config.image_field))
        except Unanswered:
            large = "; if the source is merely large, `tatok plan` tells how long its listing takes"
            self._give_up("source", f"cannot list {', '.join(config.source)}", seconds, _SILENT_REMEDY + large)
            return []
        except TatokError as error:
            self.note("source", "failed", str(error), _access_remedy(self._config.source[0], str(error), "read"))
            return []
        num_bytes = sum(shard.num_bytes for shard in shards)
        self.note("source", "ok", f"{len(shards):,} shards, {num_bytes / 1e9:,.3f} GB")
        return shards

    def _first_sample(self, shards: list[Shard]) -> bool:
        rejects = Counter[str]()

        def first_clip() -> Clip | None:
            for result in read_some(self._config, shards[0], _FIRST_SAMPLES):
                if isinstance(result, Clip):
                    return result
                rejects[f"{result.reason} ({result.detail})"] += 1
            return None

        try:
            clip = within(self._deadline_s, first_clip)
        except Unanswered:
            self._give_up("first sample", f"cannot read {shards[0].uri}", self._deadline_s, _SILENT_REMEDY)
            return False
        except SourceError as error:
            remedy = _access_remedy(shards[0].uri, str(error), "read")
            self.note("first sample", "failed", str(error), remedy)
            return False
        if clip is not None:
            shape = "x".join(map(str, clip.pixels.shape[-2:]))
            self.note("first sample", "ok", f"{clip.key!r} of {shards[0].uri} decodes to {shape} pixels")
            return True
        reasons = "; ".join(f"{count} times {reason}" for reason, count in rejects.most_common(2)) or "no sample at all"
        self.note(
            "first sample",
            "failed",
            f"none of the first samples of {shards[0].uri} can be tokenized: {reasons}",
            "check that the source is what the job means; image_field names the member to tokenize",
        )
        return False

    def _output(self) -> OutputStore | None:
        def probed() -> OutputStore:
            store = OutputStore.open(self._config.output).probe()
            store.sweep_scratch()
            return store

        try:
            store = within(self._deadline_s, probed)
        except Unanswered:
            self._give_up("output", f"cannot write to {self._config.output}", self._deadline_s, _SILENT_REMEDY)
            return None
        except TatokError as error:
            self.note("output", "failed", str(error), _access_remedy(self._config.output, str(error), "write"))
            return None
        if store.is_local:
            self.note("output", "ok", f"{store.url} is writable; parts appear atomically")
        elif store.create_only:
            self.note("output", "ok", f"{store.url} is writable and honours create-only writes")
        else:
            self.note(
                "output",
                "warning",
                f"{store.url} is writable but ignores create-only writes (conditional PUT)",
                "let no two runs write there at the same time; they could replace each other's (equal) parts",
            )
        return store

    def _checkpoint(self) -> TokenizerSpec | None:
        name = self._config.checkpoint or "the one of tatok"
        seconds = self._deadline_s + _LISTING_S  # torch may have to be imported
        try:
            spec = within(seconds, lambda: load_spec(self._config, self._load_tokenizer))
            check_image_size(self._config, spec)
        except Unanswered:
            self._give_up("checkpoint", name, seconds, _SILENT_REMEDY)
            return None
        except (TatokError, OSError, ValueError, RuntimeError) as error:
            message = str(error).strip() or type(error).__name__
            if "image_size" in message:
                remedy = "set preprocessing.image_size to a multiple of the patch"
            else:
                remedy = "name the folder that `tatok train` wrote as checkpoint, or leave it out for tatok's own"
            self.note("checkpoint", "failed", f"{name}: {message}", remedy)
            return None
        self.note(
            "checkpoint",
            "ok",
            f"{name}: {spec.vocab_size:,} codes, patch {spec.patch_size}, {spec.num_global} global tokens, "
            f"{spec.fingerprint[:12]}",
        )
        return spec

    def _same_run(self, store: OutputStore, spec: TokenizerSpec) -> None:
        try:
            recipe = run_fingerprint(self._config, spec)
            goes_on = within(self._deadline_s, lambda: require_same_run(store, recipe))
        except Unanswered:
            self._give_up("recipe", f"cannot read {store.url}/run.json", self._deadline_s, _SILENT_REMEDY)
            return
        except TatokError as error:
            remedy = "name another output, or the checkpoint and settings that its run.json tells"
            self.note("recipe", "failed", str(error), remedy)
            return
        self.note("recipe", "ok", "the output holds this recipe's tokens already" if goes_on else "the output is new")

    def _cluster(self, stack: ExitStack) -> ClusterView | None:
        address = os.environ.get("RAY_ADDRESS")
        if not address or address == "local":
            self.note("cluster", "ok", f"none is named by RAY_ADDRESS; this machine has {os.cpu_count()} CPUs")
            return None
        from pipeline.cluster_probe import connected, versions, view_cluster

        try:
            stack.enter_context(connected(address))
        except TatokError as error:
            self.note(
                "cluster",
                "failed",
                str(error),
                "check RAY_ADDRESS and that the head runs; with token authentication also RAY_AUTH_MODE and "
                "RAY_AUTH_TOKEN_PATH",
            )
            return None
        view = view_cluster()
        self.note("cluster", "ok", f"{len(view.versions)} nodes, {view.num_cpus:g} CPUs, {view.num_gpus:g} GPUs")
        here, differing = versions(), list[str]()
        for node, found in view.versions.items():
            if found is None:
                differing.append(f"{node} does not answer")
            else:
                differing += [f"{node}: {line}" for line in describe_difference(here, found)]
        if differing:
            remedy = "install the same versions everywhere, or submit with --dependencies pinned or --image"
            self.note("versions", "failed", "\n  ".join(["driver and workers differ:", *differing]), remedy)
        else:
            self.note("versions", "ok", f"the same on the driver and {len(view.versions)} nodes")
        return view

    def _resources(self, view: ClusterView | None) -> tuple[float, float]:
        if view is not None:
            return view.num_cpus, view.num_gpus
        import torch

        return float(os.cpu_count() or 1), float(torch.cuda.device_count())

    def _gpus(self, view: ClusterView | None) -> bool:
        if view is None and any(check.name == "cluster" and check.verdict == "failed" for check in self._checks):
            return False
        device, wanted = self._config.device, self._config.resources.num_tokenizers
        _, num_gpus = self._resources(view)
        if device == "cuda" and num_gpus < 1 and view is not None:
            message = "there is none yet, for which the job would ask and wait (device: cuda); there is no dry run"
            self.note(
                "GPUs", "warning", message, "look whether the cluster's autoscaler has nodes with GPUs, or start one"
            )
            return False
        if device == "cuda" and num_gpus < 1:
            remedy = "run on a cluster with GPUs (RAY_ADDRESS, tatok submit), install their driver, or set device: cpu"
            self.note("GPUs", "failed", f"the job says device: {device}, but there is no GPU", remedy)
            return False
        if self._config.precision == "tf32" and num_gpus < 1:
            remedy = "run on a cluster with GPUs, or set precision: float32 or bfloat16"
            self.note("GPUs", "failed", "the job says precision: tf32, but there is no GPU", remedy)
            return False
        if num_gpus >= 1 and (wanted or 1) > num_gpus and device != "cpu":
            message, remedy = f"resources.num_tokenizers is {wanted}, but there are {num_gpus:g} GPUs", "lower it, or "
            if view is not None:
                self.note(
                    "GPUs", "warning", f"{message}; tokenizers would wait for more", f"{remedy}let more nodes join"
                )
                return True
            self.note("GPUs", "failed", message, f"{remedy}leave it out for one a GPU")
            return False
        if num_gpus < 1 and device is None:
            self.note("GPUs", "warning", "there is none, so the CPUs will tokenize", "say device: cpu if that is meant")
        else:
            self.note("GPUs", "ok", f"{num_gpus:g} seen" if device != "cpu" else "not wanted (device: cpu)")
        return True

    def _try(self, shards: list[Shard], view: ClusterView | None) -> None:
        num_cpus, num_gpus = self._resources(view)
        if num_gpus >= 1:  # those that are not there yet are counted
            num_gpus = max(num_gpus, self._config.resources.num_tokenizers or 1)
        sizes = plan_sizes(self._config, num_shards=len(shards), num_cpus=num_cpus, num_gpus=num_gpus)
        work = functools.partial(
            dry_run,
            self._config,
            shards[0],
            self._load_tokenizer,
            sizes,
            num_samples=self._num_samples,
            most_s=_DRY_RUN_S,
        )
        try:
            found = self._done(work, on_gpu=view is not None and sizes.gpus_per_tokenizer > 0)
        except Unanswered:
            seconds = 2 * _DRY_RUN_S + self._deadline_s
            self._give_up("dry run", f"{self._num_samples} samples of {shards[0].uri}", seconds, _SILENT_REMEDY)
            return
        except (TatokError, RuntimeError) as error:
            self.note(
                "dry run", "failed", str(error), "see the message; a smaller resources.batch_size takes less memory"
            )
            return
        num_rejects = sum(found.rejects.values())
        seconds = found.decode_s + found.encode_s
        said = f"{found.num_samples} samples in {seconds:.1f} s: {found.num_rows} rows, {found.num_tokens:,} tokens"
        if num_rejects > self._config.limits.max_reject_fraction * found.num_samples:
            reasons = ", ".join(f"{count} {reason}" for reason, count in found.rejects.items())
            remedy = "mend the source, or raise limits.max_reject_fraction"
            self.note("dry run", "failed", f"{said}; {num_rejects} rejects ({reasons}), at which a run stops", remedy)
            return
        self.note("dry run", "ok", f"{said}, {num_rejects} rejects")
        num_bytes = sum(shard.num_bytes for shard in shards)
        is_bundled = self._config.checkpoint is None
        fitting = (rate for rate in RECORDED if is_bundled and rate.precision == self._config.precision)
        self._forecast = forecast(found, sizes, source_bytes=num_bytes, num_cpus=num_cpus, recorded=next(fitting, None))

    def _done(self, work: Callable[[], DryRun], *, on_gpu: bool) -> DryRun:
        if not on_gpu:
            return within(2 * _DRY_RUN_S + self._deadline_s, work)
        from pipeline.cluster_probe import on_a_gpu

        found: DryRun = on_a_gpu(work, timeout_s=2 * _DRY_RUN_S)
        return found


_SILENT_REMEDY = "the store does not answer: check storage's endpoint_url, and the network"


def _access_remedy(url: str, message: str, verb: str) -> str:
    text = message.lower()
    if any(
        word in text for word in ("403", "forbidden", "access denied", "accessdenied", "permission", "invalidaccess")
    ):
        if "://" not in url:
            return f"whoever runs the job may not {verb} there: check the permissions of the folder and those above"
        return f"the credentials in use may not {verb} there: check the role or the key, and the bucket's policy"
    if "credential" in text or "401" in text:
        return "there are no usable credentials: a role, a profile, or variables named in `storage`"
    if "connect" in text or "endpoint" in text or "timed out" in text:
        return _SILENT_REMEDY
    if "does not exist" in text or "no such" in text or "nosuchbucket" in text or "no file matches" in text:
        scheme = url.partition("://")[0] if "://" in url else ""
        return f"check the spelling of the {'bucket and path' if scheme else 'path'}"
    if "install" in text:
        return "install the extra of the scheme, such as tatok[s3] or tatok[gcs]"
    return "see the message"

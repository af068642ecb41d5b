"""A whole run against the speed of light: the bound that the rates of its stages, by themselves, imply."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tatok.pipeline.bench.model_rates import num_cores
from tatok.pipeline.bench.stages import STAGES, StageName, StageRate, StageSamples, measure_stages, read_for_stages
from tatok.pipeline.bench.trace import CommittedShard, write_trace
from tatok.pipeline.cluster.sizes import count_pieces, plan_sizes
from tatok.pipeline.monitoring.events import Event, ShardCommitted, Throughput
from tatok.pipeline.monitoring.machine_load import why_busy
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.run import run_job
from tatok.pipeline.storage.options import storage_options
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.loading import LoadTokenizer, configured_loader
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.urls import filesystem_of

if TYPE_CHECKING:
    from tatok.pipeline.cluster.probe import ClusterSize

__all__ = ["Bound", "PipelineRate", "Speed", "measure_speed", "speed_of_light"]

Resource = Literal["cores", "device"]

_NUM_SAMPLES = 256
_MOST_CHANGE = 1.5  # of the bound, from before the run to after it
_MOST_SHARE = 1.05  # more than all cannot be; a little more is the difference of three times of measuring

_REMEDIES: dict[StageName, str] = {
    "read": "the store: more shards at work at a time (resources.num_decoders, or shards_in_flight where tokenizers "
    "decode themselves), or a source nearer to the machines",
    "decode": "more CPUs, which Ray may have on nodes without a GPU; then resources.num_decoders; for JPEGs also "
    "preprocessing.decoder=simplejpeg",
    "copy in": "the bus to the device: a larger resources.batch_size",
    "encode": "the model: more GPUs or CPUs (resources.num_tokenizers), or a larger resources.batch_size",
    "prior and DTF": "the prior: fewer dtf rounds in the checkpoint, or more GPUs or CPUs (resources.num_tokenizers)",
    "copy out": "the cores that make rows of what the device has computed: more CPUs",
    "write": "the output: larger shards, write.patch_entropy=false, or a bucket nearer to the machines",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The items a second that no pipeline of these stages can exceed, which resource sets it, and which stage most."""

    items_per_s: float
    resource: Resource
    bottleneck: StageName
    share_of_bottleneck: float
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRate:
    """A real run: items a second from its first items to its end, and the time before.

    `startup_s` is from the call to the first committed shard; `num_items` are rows and rejects that were seen.
    """

    items_per_s: float
    num_items: int
    seconds: float
    startup_s: float
    is_whole: bool
    shards: tuple[CommittedShard, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What `tatok bench` measured. Stages: the mean of before and after the run; `bounds`: those of each alone.

    `busy`: what is to be said of others who used the machine when it began.
    """

    num_cores: int
    device: str
    num_tokenizers: int
    stages: tuple[StageRate, ...]
    bound: Bound
    pipeline: PipelineRate
    bounds: tuple[float, float]
    busy: str | None = None

    @property
    def share_of_speed_of_light(self) -> float:
        """The pipeline's rate over the bound."""
        return self.pipeline.items_per_s / self.bound.items_per_s

    @property
    def doubt(self) -> str | None:
        """Why the share says nothing of the pipeline, nor the stages where its bottleneck is; None where they do."""
        if self.busy is not None:
            return f"{self.busy} when the measurement began"
        before, after = self.bounds
        if max(before, after) > _MOST_CHANGE * min(before, after):
            return (
                f"the stages allowed {before:,.1f} items a second before the run and {after:,.1f} after it: something "
                "else uses this machine, or its speed changes"
            )
        if self.share_of_speed_of_light > _MOST_SHARE:
            return (
                f"the run was {self.share_of_speed_of_light:.1f} times as fast as its own stages allow: something else "
                "used this machine while they were measured"
            )
        return None

    @property
    def filtering_share_of_encoding(self) -> float | None:
        """The time of the prior and DTF over that of encoding; None for clips, whose steps are not told apart."""
        by_name = {stage.name: stage for stage in self.stages}
        if "prior and DTF" not in by_name:
            return None
        return by_name["encode"].items_per_s / by_name["prior and DTF"].items_per_s


class _Enough(Exception):
    """Ends a run that has gone on for long enough."""


def speed_of_light(stages: Sequence[StageRate], *, cores: int, num_devices: int) -> Bound:
    """The bound of stages that overlap perfectly and cost nothing between them.

    `num_devices` are accelerators beside the cores, each with a tokenizer, and the slower of cores and devices bounds.
    With 0 every stage is one of the cores, and every second adds up.
    """
    on_cores = {stage.name: stage.seconds_an_item / cores for stage in stages if stage.on == "core"}
    on_device = {stage.name: stage.seconds_an_item / num_devices for stage in stages if stage.on == "device"}
    seconds: dict[Resource, float] = {"cores": sum(on_cores.values()), "device": sum(on_device.values())}
    resource: Resource = "cores" if seconds["cores"] >= seconds["device"] else "device"
    spent = on_cores if resource == "cores" else on_device
    bottleneck = max(spent, key=lambda name: spent[name])
    return Bound(
        items_per_s=1 / seconds[resource],
        resource=resource,
        bottleneck=bottleneck,
        share_of_bottleneck=spent[bottleneck] / seconds[resource],
        remedy=_REMEDIES[bottleneck],
    )


def measure_speed(
    config: JobConfig,
    *,
    seconds: float,
    most_run_s: float,
    load_tokenizer: LoadTokenizer | None = None,
    trace: Path | None = None,
    on_event: Callable[[Event | str], None] = lambda event: None,
) -> Speed:
    """Measure the stages, run the job into a folder of its own below `config.output`, and measure the stages again.

    Each stage takes about `seconds`, twice: a machine that others use changes its speed meanwhile. Where RAY_ADDRESS
    names a cluster its CPUs and GPUs are counted and one of the GPUs is measured; a core is one of this machine. This
    process holds no device. The run ends after `most_run_s`, or with the source. `on_event` is told the run's events,
    and by strings what is being measured. What was written is deleted. `trace` is a file for a trace (see trace.py).
    Raises what `run_job` raises, and ConfigError if nothing came of the run.
    """
    load_tokenizer = load_tokenizer or configured_loader(config)
    busy = why_busy()
    with storage_options(config.storage), _scratch_folder(config.output) as folder, _connected_cluster() as cluster:
        scratch = OutputStore.open(f"{folder}/stages").probe()
        shards = plan_shards(config.source, image_field=config.image_field)
        cores = num_cores() if cluster is None else max(int(cluster.num_cpus), 1)
        num_gpus = _local_gpus() if cluster is None else cluster.num_gpus
        sizes = plan_sizes(
            config, num_shards=len(shards), num_pieces=count_pieces(shards), num_cpus=cores, num_gpus=num_gpus
        )

        def measured(what: str) -> tuple[list[StageRate], str, StageSamples]:
            on_event(f"reading {config.source[0]}")
            found = read_for_stages(config, shards, seconds=seconds, num_samples=_NUM_SAMPLES)
            on_event(what)
            stages, device = measure_stages(
                config, found, load_tokenizer, scratch, sizes, seconds=seconds, on_cluster=cluster is not None
            )
            return stages, device, found

        before, device, found = measured("each stage by itself")
        on_event("the whole pipeline")
        job = config.model_copy(update={"output": f"{folder}/run"})
        pipeline = _run(job, most_run_s, load_tokenizer, on_event)
        after, _, _ = measured("each stage once more")
        if trace is not None:
            write_trace(trace, config, found, load_tokenizer, sizes, pipeline.shards, on_cluster=cluster is not None)
    stages = _mean(before, after)
    num_devices = sizes.num_tokenizers if sizes.gpus_per_tokenizer else 0
    at_first, at_last = (speed_of_light(each, cores=cores, num_devices=num_devices) for each in (before, after))
    return Speed(
        num_cores=cores,
        device=device,
        num_tokenizers=sizes.num_tokenizers,
        stages=stages,
        bound=speed_of_light(stages, cores=cores, num_devices=num_devices),
        pipeline=pipeline,
        bounds=(at_first.items_per_s, at_last.items_per_s),
        busy=busy,
    )


def _mean(before: Sequence[StageRate], after: Sequence[StageRate]) -> tuple[StageRate, ...]:
    """Of the times, not of the rates."""
    again = {stage.name: stage for stage in after}
    return tuple(
        replace(stage, items_per_s=2 / (stage.seconds_an_item + again[stage.name].seconds_an_item))
        for stage in sorted(before, key=lambda stage: STAGES.index(stage.name))
        if stage.name in again
    )


def _run(
    config: JobConfig,
    most_run_s: float,
    load_tokenizer: LoadTokenizer,
    on_event: Callable[[Event | str], None],
) -> PipelineRate:
    called = time.monotonic()
    counted: list[tuple[float, int]] = []  # seconds since the call; items so far
    shards: list[CommittedShard] = []

    def note(event: Event) -> None:
        on_event(event)
        now = time.monotonic() - called
        match event:
            case ShardCommitted():
                shards.append(CommittedShard(report=event.report, at_s=now))
            case Throughput() if event.num_rows + event.num_rejects:
                counted.append((now, event.num_rows + event.num_rejects))
                if now - counted[0][0] > most_run_s and shards:
                    raise _Enough

    is_whole = True
    try:
        run_job(config, load_tokenizer=load_tokenizer, on_event=note)
    except _Enough:
        is_whole = False
    if not shards or counted[-1][1] == counted[0][1]:
        raise ConfigError("the source is over within a second or two; name more of it, so that there is a rate")
    (first_s, first), (last_s, last) = counted[0], counted[-1]
    return PipelineRate(
        items_per_s=(last - first) / (last_s - first_s),
        num_items=last,
        seconds=last_s,
        startup_s=shards[0].at_s,
        is_whole=is_whole,
        shards=tuple(shards),
    )


@contextmanager
def _scratch_folder(parent: str) -> Iterator[str]:
    """A new folder below `parent`, gone afterwards."""
    folder = f"{parent.rstrip('/')}/tatok-bench-{uuid.uuid4().hex[:12]}"
    fs, path = filesystem_of(folder)
    try:
        yield folder
    finally:
        if fs.exists(path):
            fs.rm(path, recursive=True)


@contextmanager
def _connected_cluster() -> Iterator[ClusterSize | None]:
    """What the cluster that RAY_ADDRESS names has, connected for the time of the block; None where it names none."""
    from tatok.pipeline.cluster.driver import cluster_address  # Ray takes seconds to import
    from tatok.pipeline.cluster.probe import cluster_size, connected

    address = cluster_address()
    if address is None:
        yield None
        return
    with connected(address):
        yield cluster_size()


def _local_gpus() -> int:
    """Those that a Ray of this machine would find."""
    import torch

    return torch.cuda.device_count()

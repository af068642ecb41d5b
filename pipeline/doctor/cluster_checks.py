"""The checks of what a job runs on: the Ray cluster, the versions on its nodes, its GPUs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tatok.pipeline.doctor.notes import Notes
from tatok.schemas.errors import TatokError
from tatok.schemas.identity import describe_difference
from tatok.schemas.job import JobConfig
from tatok.schemas.records import count_text

if TYPE_CHECKING:
    from tatok.pipeline.cluster.probe import ClusterView

__all__ = ["Machines", "check_cluster", "check_gpus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What a job would run on; `is_cluster`: the Ray at RAY_ADDRESS, where more may join, not this machine alone."""

    num_cpus: float
    num_gpus: float
    is_cluster: bool


def check_cluster(notes: Notes, stack: ExitStack) -> Machines | None:
    """The machines; with a cluster this process is connected until `stack` closes. None where it cannot be reached."""
    address = os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        notes.ok("cluster", f"none is named by RAY_ADDRESS; this machine has {os.cpu_count()} CPUs")
        return _this_machine()
    from tatok.pipeline.cluster.probe import connected, view_cluster

    try:
        stack.enter_context(connected(address))
    except TatokError as error:
        notes.fail_by("cluster", error)
        return None
    view = view_cluster()
    notes.ok("cluster", f"{count_text(len(view.versions), 'node')}, {view.num_cpus:g} CPUs, {view.num_gpus:g} GPUs")
    _check_versions(notes, view)
    return Machines(num_cpus=view.num_cpus, num_gpus=view.num_gpus, is_cluster=True)


def check_gpus(config: JobConfig, notes: Notes, machines: Machines) -> bool:
    """Whether the job has the GPUs that it asks for, so that its samples can be tried."""
    device, num_gpus = config.device, machines.num_gpus
    if num_gpus < 1 and (device == "cuda" or config.precision == "tf32"):
        _note_no_gpu(config, notes, machines)
        return False
    wanted = config.resources.num_tokenizers
    if num_gpus >= 1 and (wanted or 1) > num_gpus and device != "cpu":
        message = f"resources.num_tokenizers is {wanted}, but there are {num_gpus:g} GPUs"
        if machines.is_cluster:
            notes.warn("GPUs", f"{message}; tokenizers would wait for more", "lower it, or let more nodes join")
            return True
        notes.fail("GPUs", message, "lower it, or leave it out for one a GPU")
        return False
    if num_gpus < 1 and device is None:
        notes.warn("GPUs", "there is none, so the CPUs will tokenize", "say device: cpu if that is meant")
    else:
        notes.ok("GPUs", f"{num_gpus:g} seen" if device != "cpu" else "not wanted (device: cpu)")
    return True


def _note_no_gpu(config: JobConfig, notes: Notes, machines: Machines) -> None:
    if config.device != "cuda":
        remedy = "run on a cluster with GPUs, or set precision: float32 or bfloat16"
        notes.fail("GPUs", "the job says precision: tf32, but there is no GPU", remedy)
    elif machines.is_cluster:
        message = "there is none yet, for which the job would ask and wait (device: cuda); there is no dry run"
        notes.warn("GPUs", message, "look whether the cluster's autoscaler has nodes with GPUs, or start one")
    else:
        remedy = "run on a cluster with GPUs (RAY_ADDRESS, tatok submit), install their driver, or set device: cpu"
        notes.fail("GPUs", "the job says device: cuda, but there is no GPU", remedy)


def _check_versions(notes: Notes, view: ClusterView) -> None:
    from tatok.pipeline.cluster.probe import versions

    here, differing = versions(), list[str]()
    for node, found in view.versions.items():
        if found is None:
            differing.append(f"{node} does not answer")
        else:
            differing += [f"{node}: {line}" for line in describe_difference(here, found)]
    if differing:
        remedy = "install the same versions everywhere, or submit with --dependencies pinned or --image"
        notes.fail("versions", "\n  ".join(["driver and workers differ:", *differing]), remedy)
    else:
        notes.ok("versions", f"the same on the driver and {count_text(len(view.versions), 'node')}")


def _this_machine() -> Machines:
    import torch

    num_cpus, num_gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    return Machines(num_cpus=num_cpus, num_gpus=num_gpus, is_cluster=False)

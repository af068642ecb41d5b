"""What a submitted job takes along: its settings, tatok's own packages, a local checkpoint, pinned requirements.

No credential is among it: whatever is packed or submitted can be read by everybody who may look at the cluster's jobs.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from schemas.errors import ConfigError
from schemas.job import JobConfig
from schemas.secrets import REMEDY, names_a_credential

__all__ = ["CHECKPOINT", "JOB", "for_the_cluster", "pack", "pinned_requirements", "refuse_credentials"]

JOB = "job.yaml"
CHECKPOINT = "checkpoint"
_PACKAGES = ("schemas", "tatok", "pipeline", "jobs")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "hf": "hf"}
_MIN_CREDENTIAL = 8  # shorter values turn up by chance


def for_the_cluster(job: JobConfig, *, packs_checkpoint: bool) -> JobConfig:
    """The job as it makes sense on another machine: a local checkpoint is named by its place in the package.

    Raises ConfigError for a source or an output that only this machine could find.
    """
    for name, urls in (("source", job.source), ("output", (job.output,))):
        for url in urls:
            if "://" not in url and not url.startswith("/"):
                raise ConfigError(
                    f"{name} {url!r} is relative to this machine's folder, which the cluster does not see; "
                    "name a bucket's URL, or an absolute path on a disk that every node mounts"
                )
    checkpoint = job.checkpoint
    if checkpoint is None or "://" in checkpoint or not packs_checkpoint:
        return job
    if not Path(checkpoint).expanduser().is_dir():
        raise ConfigError(f"checkpoint {checkpoint} is no folder of this machine, so it cannot be packed; name a URL")
    return job.model_copy(update={"checkpoint": CHECKPOINT})


def pack(job: JobConfig, folder: Path) -> JobConfig:
    """Fill an empty folder with all that the driver and the workers need but requirements; returns the packed job.

    Nothing of the current folder travels but a checkpoint that the job names by its path.
    """
    packed = for_the_cluster(job, packs_checkpoint=True)
    text = yaml.safe_dump(packed.model_dump(mode="json"), sort_keys=False)
    refuse_credentials(text, os.environ)
    (folder / JOB).write_text(text, encoding="utf-8")
    root = Path(__file__).parents[1]
    for package in _PACKAGES:
        leave_out = ["__pycache__"]
        if package == "tatok" and job.checkpoint is not None:
            leave_out.append("*.safetensors")  # of the default checkpoint
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns(*leave_out))
    if packed.checkpoint == CHECKPOINT:
        shutil.copytree(Path(str(job.checkpoint)).expanduser(), folder / CHECKPOINT)
    return packed


def pinned_requirements(urls: Iterable[str]) -> list[str]:
    """tatok's dependencies, and those of the URLs' schemes, in the very versions that are installed here.

    Ray is not among them: the cluster's own must be the one that runs.
    """
    extras = {_EXTRAS[scheme] for url in urls if (scheme := url.partition("://")[0]) in _EXTRAS and "://" in url}
    pins = {name: version for name, version in _closure("tatok", extras) if name not in ("tatok", "ray")}
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def refuse_credentials(text: str, environment: Mapping[str, str]) -> None:
    """Raise ConfigError where `text` holds what a variable of this environment keeps as a credential."""
    for name, value in environment.items():
        if names_a_credential(name) and len(value) >= _MIN_CREDENTIAL and value in text:
            raise ConfigError(
                f"the job holds the value of the environment variable {name}, which looks like a credential; {REMEDY}"
            )


def _closure(root: str, extras: set[str]) -> Iterator[tuple[str, str]]:
    """Installed distributions that `root` needs with `extras`, itself included, each once."""
    seen: dict[str, set[str]] = {}
    waiting = [(root, extras)]
    while waiting:
        name, wanted = waiting.pop()
        canonical = re.sub(r"[-_.]+", "-", name).lower()
        if canonical in seen and wanted <= seen[canonical]:
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # an optional one that is not installed here
        seen[canonical] = seen.get(canonical, set()) | wanted
        yield canonical, found.version.partition("+")[0]  # without the build: the cluster may want CUDA's
        if canonical == "ray":
            continue  # what Ray needs comes with the cluster's
        for text in found.requires or ():
            requirement = Requirement(text)
            markers = [{"extra": extra} for extra in wanted] or [{"extra": ""}]
            if requirement.marker is None or any(requirement.marker.evaluate(each) for each in markers):
                waiting.append((requirement.name, set(requirement.extras)))

"""What a submitted job takes along: settings, tatok's own packages, a local checkpoint, the files of a filter and a
tokenizer, requirements.

No credential is among it: whatever is packed or submitted can be read by everybody who may look at the cluster's jobs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from importlib import import_module, metadata
from pathlib import Path

from packaging.requirements import Requirement

import tatok
from tatok.jobs.job_file import job_text
from tatok.jobs.verbosity import Verbosity
from tatok.pipeline.images.extras import EXTRAS
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.secrets import REMEDY, names_a_credential
from tatok.tokenizer.named import ADAPTERS
from tatok.user_code import UserFunction, names_a_file

__all__ = [
    "CHECKPOINT",
    "JOB",
    "for_the_cluster",
    "pack",
    "pinned_requirements",
    "refuse_credentials",
    "tokenize_command",
    "tokenizer_file",
]

JOB = "job.yaml"
CHECKPOINT = "checkpoint"
_BESIDE = ("schemas", "pipeline", "jobs")  # in a checkout beside tatok/, installed within it
_EXTRAS = {
    "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure",
    "adl": "azure", "hf": "hf", "http": "http", "https": "http",
}  # fmt: skip
_ADAPTERS_EXTRAS = frozenset({"transformers", "diffusers"})  # named as the adapters are
_MIN_CREDENTIAL = 8  # shorter values turn up by chance


def for_the_cluster(job: JobConfig, *, packs_checkpoint: bool) -> JobConfig:
    """The job as it makes sense on another machine: a local checkpoint is named by its place in the package.

    So is the file of a tokenizer, which lies beside the job file wherever that goes. Raises ConfigError for a source or
    an output that only this machine could find.
    """
    for name, urls in (("source", job.source), ("output", (job.output,))):
        for url in urls:
            if "://" not in url and not url.startswith("/"):
                raise ConfigError(
                    f"{name} {url!r} is relative to this machine's folder, which the cluster does not see; "
                    "name a bucket's URL, or an absolute path on a disk that every node mounts"
                )
    if job.tokenizer is not None and names_a_file(job.tokenizer):
        place, _, function = job.tokenizer.rpartition(":")
        return job.model_copy(update={"tokenizer": f"{Path(place).name}:{function}"})
    checkpoint = job.checkpoint
    if checkpoint is None or "://" in checkpoint or not packs_checkpoint:
        return job
    if not Path(checkpoint).expanduser().is_dir():
        raise ConfigError(f"checkpoint {checkpoint} is no folder of this machine, so it cannot be packed; name a URL")
    return job.model_copy(update={"checkpoint": CHECKPOINT})


def tokenize_command(log: str | None = None, verbosity: Verbosity = Verbosity.NORMAL) -> str:
    """tatok's command that runs a job, but for the job file, which comes next; `log` is what its --log is given.

    Raises ConfigError for a log that the driver could not write, or that would be lost with its folder.
    """
    words = ["tokenize"]
    if verbosity == Verbosity.QUIET:
        words.append("--quiet")
    elif verbosity > Verbosity.NORMAL:
        words.append(f"-{'v' * verbosity}")
    if log is not None:
        if log != "-" and (not log.startswith("/") or "://" in log):
            raise ConfigError(f"--log {log!r}: name an absolute path on the driver's node, or - for the job's own log")
        words += ["--log", shlex.quote(log)]
    return " ".join([*words, "--config"])


def tokenizer_file(job: JobConfig) -> tuple[str, str] | None:
    """Name and text of the file that makes the job's tokenizer; None where that is in none.

    Raises ConfigError where it cannot be read, or holds a credential of this shell.
    """
    if job.tokenizer is None or not names_a_file(job.tokenizer):
        return None
    function = UserFunction.named(job.tokenizer, "tokenizer", example="my_tokenizer.py:load")
    refuse_credentials(function.source, os.environ)
    return function.file_name, function.source


def pack(job: JobConfig, folder: Path, *, cluster_has_code: bool = False) -> JobConfig:
    """Fill an empty folder with all that the driver and the workers need but requirements; returns the packed job.

    Nothing of the current folder travels but a checkpoint that the job names by its path, and the files of its filter
    and its tokenizer. Raises ConfigError where these are in no such file, unless `cluster_has_code`.
    """
    packed = for_the_cluster(job, packs_checkpoint=True)
    text = job_text(packed)
    refuse_credentials(text, os.environ)
    (folder / JOB).write_text(text, encoding="utf-8")
    leave_out = ["__pycache__", "examples"]
    if job.checkpoint is not None:
        leave_out.append("*.safetensors")  # of the bundled checkpoint
    ignore = shutil.ignore_patterns(*leave_out)
    shutil.copytree(Path(tatok.__file__).parent, folder / "tatok", ignore=ignore)
    for name in _BESIDE:
        source = Path(str(import_module(f"tatok.{name}").__file__)).parent
        shutil.copytree(source, folder / "tatok" / name, ignore=ignore, dirs_exist_ok=True)
    if packed.checkpoint == CHECKPOINT:
        shutil.copytree(Path(str(job.checkpoint)).expanduser(), folder / CHECKPOINT)
    if found := tokenizer_file(job):
        (folder / found[0]).write_text(found[1], encoding="utf-8")
    elif job.tokenizer is not None:
        _pack_module("tokenizer", ADAPTERS.get(job.tokenizer, job.tokenizer), folder, cluster_has_it=cluster_has_code)
    if job.filter is not None:
        _pack_module("filter", job.filter, folder, cluster_has_it=cluster_has_code)
    return packed


def pinned_requirements(job: JobConfig) -> list[str]:
    """tatok's dependencies, and those of what the job reads, writes and decodes by, in the versions installed here.

    Ray is not among them: the cluster's own must be the one that runs.
    """
    urls = (*job.source, job.output, job.checkpoint or "")
    # A list of URIs may name schemes that no setting does; who gives options for one means it.
    schemes = {scheme for url in urls for scheme in re.findall(r"(\w+)://", url)} | set(job.storage)
    extras = {_EXTRAS[scheme] for scheme in schemes if scheme in _EXTRAS}
    if job.preprocessing.decoder == "simplejpeg":
        extras.add("fast")
    # Which images are read must be the same on every machine, and this one has planned by what it has.
    extras |= {name for name, extra in EXTRAS.items() if extra.is_installed}
    extras |= {job.tokenizer} & _ADAPTERS_EXTRAS if job.tokenizer else set()
    pins = {name: version for name, version in _closure("tatok", extras) if name not in ("tatok", "ray")}
    return [f"{name}{version}" for name, version in sorted(pins.items())]


def refuse_credentials(text: str, environment: Mapping[str, str]) -> None:
    """Raise ConfigError where `text` holds what a variable of this environment keeps as a credential."""
    for name, value in environment.items():
        if names_a_credential(name) and len(value) >= _MIN_CREDENTIAL and value in text:
            raise ConfigError(
                f"the job holds the value of the environment variable {name}, which looks like a credential; {REMEDY}"
            )


def _pack_module(what: str, path: str, folder: Path, *, cluster_has_it: bool) -> None:
    module = path.partition(":")[0]
    if module.partition(".")[0] == "tatok":
        return
    file = Path(f"{module}.py")
    if module.isidentifier() and file.is_file():
        refuse_credentials(file.read_text(encoding="utf-8"), os.environ)
        shutil.copy(file, folder / file.name)
    elif not cluster_has_it:
        raise ConfigError(
            f"{what} {path!r}: there is no {module}.py in the current folder, and nothing else of it would "
            "travel; put the function into one file here, or have the module on the cluster's PYTHONPATH and say "
            "--dependencies installed, or in an --image"
        )


def _closure(root: str, extras: set[str]) -> Iterator[tuple[str, str]]:
    """Distributions that `root` needs with `extras`, itself included, each once, and which version.

    It is the one installed here; of one that is not (a bucket that only the cluster reaches), any that is allowed.
    """
    seen: dict[str, set[str]] = {}
    waiting = [(Requirement(root), extras)]
    while waiting:
        asked, wanted = waiting.pop()
        name = asked.name
        canonical = re.sub(r"[-_.]+", "-", name).lower()
        if canonical in seen and wanted <= seen[canonical]:
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            seen[canonical] = wanted
            yield canonical, str(asked.specifier)
            continue
        seen[canonical] = seen.get(canonical, set()) | wanted
        yield canonical, f"=={found.version.partition('+')[0]}"  # without the build: the cluster may want CUDA's
        if canonical == "ray":
            continue  # what Ray needs comes with the cluster's
        for text in found.requires or ():
            requirement = Requirement(text)
            markers = [{"extra": extra} for extra in wanted] or [{"extra": ""}]
            if requirement.marker is None or any(requirement.marker.evaluate(each) for each in markers):
                waiting.append((requirement, set(requirement.extras)))

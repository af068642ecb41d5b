"""A job -> what runs it on Kubernetes with KubeRay: a RayJob that holds the job file.

The RayJob makes its own Ray cluster: a head that works on nothing, GPU pods that hold the model, CPU pods that decode;
with `device: cpu`, CPU pods alone. The job file, and the file of its tokenizer if it has one, are annotations of
the head's pod, mounted there as files: another object, such as a ConfigMap, could change or be missing when the RayJob
starts an attempt.

Credentials come from the service account or from a Secret that is named, never from here. The head keeps no state that
matters, because all state is in the output: a job whose head is lost starts again and resumes from the committed parts.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tatok.jobs.job_file import job_text
from tatok.jobs.submission.package import JOB, for_the_cluster, refuse_credentials, tokenizer_file
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig

__all__ = ["Kubernetes", "rendered"]

_MOUNT = "/etc/tatok"
_ANNOTATION, _TOKENIZER_ANNOTATION = "tatok-job", "tatok-tokenizer"
_MAX_BYTES = 200_000  # Kubernetes takes 256 KiB of annotations, and KubeRay adds some
_CPUS_A_POD = 8
# Taints of spot nodes on GKE, EKS (as its guides set it) and AKS.
_SPOT_TAINTS = (
    ("cloud.google.com/gke-spot", "true"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)
_NOTES = """\
# Run it:     kubectl create -f FILE      (each time another RayJob, which resumes from the committed parts)
# Look at it: kubectl get rayjobs; kubectl logs -f job/NAME
#
# Fault tolerance of the head (GCS): none is needed. A lost head costs the attempt, and `backoffLimit` starts another
# one on a new cluster, which skips what is committed. To keep one Ray cluster over the loss of its head instead, give
# the rayClusterSpec `gcsFaultToleranceOptions` with a Redis (redisAddress, redisPassword by secretKeyRef).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    """What a cluster offers a job. `secret` names a Secret whose entries become environment variables of every pod.

    `num_gpus` is how many GPU pods there are where the job does not say; of CPU pods, with `device: cpu`.
    """

    image: str
    ray_version: str
    namespace: str = "default"
    service_account: str | None = None
    secret: str | None = None
    num_gpus: int = 1
    spot: bool = True
    backoff_limit: int = 3
    ttl_s: int = 3600


def rendered(job: JobConfig, name: str, kubernetes: Kubernetes, *, command: str) -> str:
    """The RayJob's YAML; `name` is made one that Kubernetes allows, `command` is of `tokenize_command`.

    Raises ConfigError where the job cannot run elsewhere, holds a credential of this shell, or is too long.
    """
    files = {JOB: job_text(for_the_cluster(job, packs_checkpoint=False))}
    if found := tokenizer_file(job):
        files[found[0]] = found[1]
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "job"
    if sum(len(text.encode()) for text in files.values()) > _MAX_BYTES:
        raise ConfigError(
            f"the job file{' and its tokenizer are' if len(files) > 1 else ' is'} longer than the {_MAX_BYTES:,} bytes "
            "that a pod can carry; name its sources by patterns, or by a list of URIs in a file"
        )
    text = yaml.dump(
        _ray_job(job, files, name, kubernetes, command),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=sys.maxsize,
    )
    refuse_credentials(text, os.environ)
    return _NOTES + text


class _Dumper(yaml.SafeDumper):
    """Texts of several lines are written as they are, so that the job can be read."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _ray_job(
    job: JobConfig, files: Mapping[str, str], name: str, kubernetes: Kubernetes, command: str
) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"generateName": f"tatok-{name}-", "namespace": kubernetes.namespace},
        "spec": {
            "entrypoint": f"tatok {command} {_MOUNT}/{JOB}",
            "submissionMode": "K8sJobMode",
            "backoffLimit": kubernetes.backoff_limit,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": kubernetes.ttl_s,
            "metadata": {"tatok.output": job.output},
            "rayClusterSpec": {
                "rayVersion": kubernetes.ray_version,
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": True,
                "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 120, "upscalingMode": "Default"},
                "headGroupSpec": {
                    # No CPUs: actors go to the workers, so that the head outlives them.
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": _pod("ray-head", kubernetes, {"cpu": "2", "memory": "8Gi"}, files=files),
                },
                "workerGroupSpecs": _workers(job, kubernetes),
            },
        },
    }


def _workers(job: JobConfig, kubernetes: Kubernetes) -> list[dict[str, Any]]:
    cpus = {"cpu": str(_CPUS_A_POD), "memory": "32Gi"}
    on_cpu = _pod("ray-worker", kubernetes, cpus)
    num_tokenizers, num_decoders = job.resources.num_tokenizers, job.resources.num_decoders
    # All that tokenize are there from the start: the driver sizes the job by what the cluster has, and grows with it.
    if job.device is not None and not job.device.startswith("cuda"):
        num_pods = kubernetes.num_gpus  # a tokenizer a CPU, however many there are
        if num_tokenizers or num_decoders:
            num_pods = math.ceil(((num_tokenizers or 1) + (num_decoders or 0)) / _CPUS_A_POD)
        return [_group("cpu", on_cpu, num_pods, least=num_pods, most=num_pods)]
    num_gpus = num_tokenizers or kubernetes.num_gpus
    if num_decoders is None:
        num_decoders = _CPUS_A_POD * num_gpus
    on_gpu = _pod("ray-worker", kubernetes, cpus | {"nvidia.com/gpu": "1"})
    on_gpu["spec"].setdefault("tolerations", []).append(
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    )
    groups = [_group("gpu", on_gpu, num_gpus, least=num_gpus, most=num_gpus)]
    if num_decoders:
        num_cpu_pods = math.ceil(num_decoders / _CPUS_A_POD)
        groups.append(_group("cpu", on_cpu, num_cpu_pods, least=1, most=2 * num_cpu_pods))
    return groups


def _group(name: str, pod: dict[str, Any], replicas: int, *, least: int, most: int) -> dict[str, Any]:
    counts = {"replicas": replicas, "minReplicas": least, "maxReplicas": most}
    return {"groupName": name, **counts, "rayStartParams": {}, "template": pod}


def _pod(
    container_name: str, kubernetes: Kubernetes, resources: Mapping[str, str], *, files: Mapping[str, str] | None = None
) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": container_name,
        "image": kubernetes.image,
        "resources": {"requests": dict(resources), "limits": dict(resources)},
    }
    spec: dict[str, Any] = {"containers": [container]}
    if kubernetes.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": kubernetes.secret}}]
    if kubernetes.service_account is not None:
        spec["serviceAccountName"] = kubernetes.service_account
    if files is not None:
        container["volumeMounts"] = [{"name": "job", "mountPath": _MOUNT, "readOnly": True}]
        of_file = {name: _ANNOTATION if name == JOB else _TOKENIZER_ANNOTATION for name in files}
        items = [
            {"path": name, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
            for name, annotation in of_file.items()
        ]
        spec["volumes"] = [{"name": "job", "downwardAPI": {"items": items}}]
        return {"metadata": {"annotations": {of_file[name]: text for name, text in files.items()}}, "spec": spec}
    if kubernetes.spot:  # never the head: its loss costs the attempt
        spec["tolerations"] = [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in _SPOT_TAINTS
        ]
    return {"spec": spec}

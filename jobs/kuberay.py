"""A job -> what runs it on Kubernetes with KubeRay: a ConfigMap with the job file, and a RayJob.

The RayJob makes its own Ray cluster: a head that works on nothing, GPU pods that hold the model, CPU pods that decode.
Credentials come from the service account or from a Secret that is named, never from here. The head keeps no state that
matters, because all state is in the output: a job whose head is lost starts again and goes on from the committed parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from jobs.job_package import for_the_cluster
from schemas.job import JobConfig

__all__ = ["Kubernetes", "rendered"]

_MOUNT = "/etc/tatok"
_CPUS_A_POD = 8
# Taints of spot nodes on GKE, EKS (as its guides set it) and AKS.
_SPOT_TAINTS = (
    ("cloud.google.com/gke-spot", "true"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)
_NOTES = """\
# Run it:     kubectl create -f FILE      (generateName: each time is a new try, which goes on from the committed parts)
# Look at it: kubectl get rayjobs; kubectl logs -f job/NAME
#
# Fault tolerance of the head (GCS): none is needed. A lost head costs the attempt, and `backoffLimit` starts another
# one on a new cluster, which skips what is committed. To keep one Ray cluster over the loss of its head instead, give
# the rayClusterSpec `gcsFaultToleranceOptions` with a Redis (redisAddress, redisPassword by secretKeyRef).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    """What a cluster offers a job. `secret` names a Secret whose entries become environment variables of every pod."""

    image: str
    ray_version: str
    namespace: str = "default"
    service_account: str | None = None
    secret: str | None = None
    num_gpus: int = 1
    spot: bool = True
    backoff_limit: int = 3
    ttl_s: int = 3600


def rendered(job: JobConfig, name: str, kubernetes: Kubernetes) -> str:
    """The YAML of both objects; `name` is made one that Kubernetes allows.

    Raises ConfigError where the job cannot run elsewhere.
    """
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "job"
    elsewhere = for_the_cluster(job, packs_checkpoint=False)
    document = yaml.safe_dump(elsewhere.model_dump(mode="json"), sort_keys=False)
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"tatok-{name}", "namespace": kubernetes.namespace},
        "data": {"job.yaml": document},
    }
    return _NOTES + yaml.safe_dump_all([config_map, _ray_job(job, name, kubernetes)], sort_keys=False)


def _ray_job(job: JobConfig, name: str, kubernetes: Kubernetes) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"generateName": f"tatok-{name}-", "namespace": kubernetes.namespace},
        "spec": {
            "entrypoint": f"tatok tokenize --config {_MOUNT}/job.yaml",
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
                    "template": _pod("ray-head", kubernetes, {"cpu": "2", "memory": "8Gi"}, config_map=f"tatok-{name}"),
                },
                "workerGroupSpecs": _workers(job, kubernetes),
            },
        },
    }


def _workers(job: JobConfig, kubernetes: Kubernetes) -> list[dict[str, Any]]:
    num_gpus = job.resources.num_tokenizers or kubernetes.num_gpus
    num_decoders = job.resources.num_decoders
    if num_decoders is None:
        num_decoders = _CPUS_A_POD * num_gpus
    num_cpu_pods = math.ceil(num_decoders / _CPUS_A_POD)
    cpus = {"cpu": str(_CPUS_A_POD), "memory": "32Gi"}
    on_gpu = _pod("ray-worker", kubernetes, cpus | {"nvidia.com/gpu": "1"})
    on_gpu["spec"].setdefault("tolerations", []).append(
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    )
    # All GPUs from the start: the driver sizes the job by what the cluster has, and grows with it.
    groups = [_group("gpu", on_gpu, num_gpus, least=num_gpus, most=num_gpus)]
    if num_decoders:
        on_cpu = _pod("ray-worker", kubernetes, cpus)
        groups.append(_group("cpu", on_cpu, num_cpu_pods, least=1, most=2 * num_cpu_pods))
    return groups


def _group(name: str, pod: dict[str, Any], replicas: int, *, least: int, most: int) -> dict[str, Any]:
    counts = {"replicas": replicas, "minReplicas": least, "maxReplicas": most}
    return {"groupName": name, **counts, "rayStartParams": {}, "template": pod}


def _pod(
    container_name: str, kubernetes: Kubernetes, resources: Mapping[str, str], *, config_map: str | None = None
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
    if config_map is not None:
        container["volumeMounts"] = [{"name": "job", "mountPath": _MOUNT, "readOnly": True}]
        spec["volumes"] = [{"name": "job", "configMap": {"name": config_map}}]
    elif kubernetes.spot:  # never the head: its loss costs the attempt
        spec["tolerations"] = [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in _SPOT_TAINTS
        ]
    return {"spec": spec}

"""What runs elsewhere, checked here: the RayJob, the Dockerfile, Ray's cluster files, the Slurm script."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

from jobs.cli import app
from schemas.job import JobConfig

ROOT = Path(__file__).parents[1]
REDUCED = yaml.safe_load((ROOT / "tests" / "data" / "rayjob-reduced.schema.yaml").read_text())


def render(tmp_path: Path, *options: str) -> tuple[dict, dict]:
    job = tmp_path / "Photos v1.yaml"
    job.write_text("source: s3://photos/{0..9}.tar\noutput: s3://tokens/v1\nresources: {num_decoders: 20}\n")
    output = tmp_path / "rayjob.yaml"
    arguments = ["submit", str(job), "--kuberay", str(output), "--image", "registry.example.org/tatok:1", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    config_map, ray_job = yaml.safe_load_all(output.read_text())
    return config_map, ray_job


@pytest.mark.parametrize(
    "options",
    [(), ("--service-account", "tatok", "--secret", "buckets", "--num-gpus", "8", "--namespace", "ml"), ("--no-spot",)],
)
def test_the_rayjob_follows_the_schema(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The reduced schema of our own, which says where it comes from."""
    _, ray_job = render(tmp_path, *options)
    jsonschema.validate(ray_job, REDUCED, cls=jsonschema.Draft202012Validator)


def test_the_schema_would_notice(tmp_path: Path) -> None:
    _, ray_job = render(tmp_path)
    ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(ray_job, REDUCED, cls=jsonschema.Draft202012Validator)


def test_the_rayjob_says_what_was_asked(tmp_path: Path) -> None:
    options = ("--service-account", "tatok", "--secret", "buckets", "--num-gpus", "8")
    config_map, ray_job = render(tmp_path, *options)
    assert JobConfig.model_validate(yaml.safe_load(config_map["data"]["job.yaml"])).output == "s3://tokens/v1"
    spec = ray_job["spec"]
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"], spec["shutdownAfterJobFinishes"]) == (3, 3600, True)
    cluster = spec["rayClusterSpec"]
    gpu, cpu = cluster["workerGroupSpecs"]
    assert (gpu["replicas"], cpu["replicas"], cpu["minReplicas"], cpu["maxReplicas"]) == (8, 3, 1, 6)
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["volumes"][0]["configMap"]["name"] == config_map["metadata"]["name"]
    assert "tolerations" not in head
    assert spec["entrypoint"].endswith(head["containers"][0]["volumeMounts"][0]["mountPath"] + "/job.yaml")
    for pod in (head, *(group["template"]["spec"] for group in (gpu, cpu))):
        assert pod["serviceAccountName"] == "tatok"
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "buckets"}}]
    assert any(each["key"] == "cloud.google.com/gke-spot" for each in cpu["template"]["spec"]["tolerations"])
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_without_decoders_there_are_no_pods_for_them(tmp_path: Path) -> None:
    _, ray_job = render(tmp_path, "--set", "resources.num_decoders=0")
    jsonschema.validate(ray_job, REDUCED, cls=jsonschema.Draft202012Validator)
    assert [group["groupName"] for group in ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]] == ["gpu"]


def test_kuberay_needs_an_image(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("source: s3://a/b.tar\noutput: s3://c\n")
    result = CliRunner().invoke(app, ["submit", str(job), "--kuberay", str(tmp_path / "out.yaml")])
    assert (result.exit_code, "--image" in result.output) == (1, True)


@pytest.mark.parametrize("name", ["ray-aws.yaml", "ray-gcp.yaml"])
def test_cluster_files_follow_rays_own_schema(name: str) -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "deploy" / name).read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert "secret" not in json.dumps(cluster).lower()


def test_the_slurm_script_parses() -> None:
    script = ROOT / "deploy" / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "ray stop" not in text
    assert "RAY_AUTH_MODE=token" in text


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: (name, rest), continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def test_dockerfile_steps_run_outside_docker(tmp_path: Path) -> None:
    """COPY and RUN in a folder that stands for the image; pip resolves nothing anew, so that this takes seconds.

    The environment borrows this one's packages by a path file, and pip installs tatok itself alone (--no-deps):
    that its requirements can be installed is what `make setup` shows, by the same constraints.
    """
    import site

    workdir, venv = tmp_path / "opt" / "tatok", tmp_path / "opt" / "venv"
    workdir.mkdir(parents=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the image has a `python`
    ran = []
    for name, rest in steps():
        match name:
            case "COPY":
                *sources, target = shlex.split(rest)
                for source in sources:
                    subprocess.run(["cp", "-r", ROOT / source, workdir / target], check=True)
                for weights in workdir.rglob("*.safetensors"):
                    weights.write_bytes(b"")  # megabytes that the build would compress
            case "RUN":
                # Borrowed packages have no commands in this environment, so these run as modules.
                for command_name, module in (("pip", "pip"), ("ray", "ray.scripts.scripts")):
                    rest = rest.replace(f"/opt/venv/bin/{command_name} ", f"/opt/venv/bin/python -m {module} ")
                command = rest.replace("/opt/venv", str(venv)).replace("-m venv", "-m venv --without-pip")
                command = command.replace(
                    "pip install", "pip install --no-deps --no-build-isolation --no-compile --quiet"
                )
                subprocess.run(["bash", "-euc", command], cwd=workdir, check=True, env=os.environ | {"PATH": path})
                ran.append(command)
                if "-m venv" in command:
                    packages = next((venv / "lib").glob("python*")) / "site-packages"
                    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    assert len(ran) == 3
    printed = subprocess.run(
        [venv / "bin" / "python", "-P", "-c", "import jobs; print(jobs.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
    ).stdout
    assert printed.startswith(str(venv)), "tatok is installed in the image, not borrowed"


def test_dockerfile_copies_all_that_pip_builds_and_its_extras_exist() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {word for name, rest in steps() if name == "COPY" for word in rest.split()[:-1]}
    packages = {package.partition(".")[0] for package in project["tool"]["setuptools"]["packages"]}
    assert packages | {"pyproject.toml", "constraints.txt", project["project"]["readme"], "LICENSE"} <= copied
    extras = re.search(r"'\.\[(.*)\]'", (ROOT / "Dockerfile").read_text())
    assert extras is not None
    for extra in extras[1].split(","):
        assert all(Requirement(text) for text in project["project"]["optional-dependencies"][extra])
    assert (name := steps()[0]) == ("FROM", "python:3.11-slim"), name

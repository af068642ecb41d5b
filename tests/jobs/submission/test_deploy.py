"""What runs elsewhere, checked here: the RayJob, the Dockerfile, Ray's cluster files, the Slurm script."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner, Result

from tatok.jobs.cli import app
from tatok.schemas.job import JobConfig
from tatok.schemas.settings_file import read_settings
from tests.support.places import ROOT

REDUCED = yaml.safe_load((ROOT / "tests" / "data" / "rayjob-reduced.schema.yaml").read_text())


START = "source: s3://photos/{0..9}.tar\noutput: s3://tokens/v1\nresources: {num_decoders: 20}\n"


def render(tmp_path: Path, *options: str, text: str = START) -> dict:
    output = tmp_path / "rayjob.yaml"
    result = submit(tmp_path, text, "--kuberay", str(output), "--image", "registry.example.org/tatok:1", *options)
    assert result.exit_code == 0, result.output
    [ray_job] = yaml.safe_load_all(output.read_text())
    return ray_job


def submit(tmp_path: Path, text: str, *options: str) -> Result:
    job = tmp_path / "Photos v1.yaml"
    job.write_text(text)
    return CliRunner().invoke(app, ["submit", str(job), *options])


def mounted_file(ray_job: dict) -> tuple[str, str]:
    """Path and content of what the head's container is given, as Kubernetes would put it there."""
    template = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    [volume], [mount] = template["spec"]["volumes"], template["spec"]["containers"][0]["volumeMounts"]
    assert volume["name"] == mount["name"]
    [item] = volume["downwardAPI"]["items"]
    annotation = re.fullmatch(r"metadata\.annotations\['(.+)'\]", item["fieldRef"]["fieldPath"])
    assert annotation is not None
    return f"{mount['mountPath']}/{item['path']}", template["metadata"]["annotations"][annotation[1]]


def workers(ray_job: dict) -> dict[str, dict]:
    return {group["groupName"]: group for group in ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


@pytest.mark.parametrize(
    "options",
    [(), ("--service-account", "tatok", "--secret", "buckets", "--num-gpus", "8", "--namespace", "ml"), ("--no-spot",)],
)
def test_the_rayjob_follows_the_schema(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The reduced schema of our own, which says where it comes from."""
    ray_job = render(tmp_path, *options)
    jsonschema.validate(ray_job, REDUCED, cls=jsonschema.Draft202012Validator)


def test_the_schema_would_notice(tmp_path: Path) -> None:
    ray_job = render(tmp_path)
    ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(ray_job, REDUCED, cls=jsonschema.Draft202012Validator)


def test_the_rayjob_says_what_was_asked(tmp_path: Path) -> None:
    options = ("--service-account", "tatok", "--secret", "buckets", "--num-gpus", "8")
    ray_job = render(tmp_path, *options)
    spec = ray_job["spec"]
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"], spec["shutdownAfterJobFinishes"]) == (3, 3600, True)
    gpu, cpu = workers(ray_job).values()
    assert (gpu["replicas"], cpu["replicas"], cpu["minReplicas"], cpu["maxReplicas"]) == (8, 3, 1, 6)
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert "tolerations" not in head
    for pod in (head, *(group["template"]["spec"] for group in (gpu, cpu))):
        assert pod["serviceAccountName"] == "tatok"
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "buckets"}}]
    assert any(each["key"] == "cloud.google.com/gke-spot" for each in cpu["template"]["spec"]["tolerations"])
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_rayjob_holds_its_own_job(tmp_path: Path) -> None:
    """No other object, so that a second `kubectl create` neither fails nor runs the settings of the first."""
    text = START + "image_field: '$${FIELD}'\n"
    path, content = mounted_file(render(tmp_path, text=text))
    (tmp_path / "mounted.yaml").write_text(content)
    job = read_settings(tmp_path / "mounted.yaml", environment={"FIELD": "png"}).validated(JobConfig)
    assert (job.output, job.image_field) == ("s3://tokens/v1", "${FIELD}")
    assert render(tmp_path)["spec"]["entrypoint"] == f"tatok tokenize --config {path}"
    assert render(tmp_path, "--log", "-", "-vv")["spec"]["entrypoint"] == f"tatok tokenize -vv --log - --config {path}"
    assert render(tmp_path, "--quiet")["spec"]["entrypoint"] == f"tatok tokenize --quiet --config {path}"


def test_what_a_rayjob_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOS_SECRET", "planted-0123456789")
    options = ("--kuberay", str(tmp_path / "rayjob.yaml"), "--image", "i")
    refused = submit(tmp_path, START + "checkpoint: s3://a/planted-0123456789\n", *options)
    assert (refused.exit_code, "PHOTOS_SECRET" in refused.output) == (1, True), refused.output
    assert "planted" not in refused.output
    many = [f"s3://photos/{number:060}.tar" for number in range(3000)]
    refused = submit(tmp_path, json.dumps({"source": many, "output": "s3://tokens"}), *options)
    assert (refused.exit_code, "name its sources by patterns" in refused.output) == (1, True), refused.output
    assert not (tmp_path / "rayjob.yaml").exists()


@pytest.mark.parametrize(
    ("resources", "num_pods"),
    [("{}", 3), ("{num_decoders: 0}", 3), ("{num_tokenizers: 20}", 3), ("{num_tokenizers: 4, num_decoders: 5}", 2)],
)
def test_a_job_on_cpus_asks_for_no_gpu(tmp_path: Path, resources: str, num_pods: int) -> None:
    text = f"source: s3://a/b.tar\noutput: s3://c\ndevice: cpu\nresources: {resources}\n"
    ray_job = render(tmp_path, "--num-gpus", "3", text=text)
    jsonschema.validate(ray_job, REDUCED, cls=jsonschema.Draft202012Validator)
    assert "nvidia.com/gpu" not in json.dumps(ray_job)
    assert {name: group["minReplicas"] for name, group in workers(ray_job).items()} == {"cpu": num_pods}


def test_without_decoders_there_are_no_pods_for_them(tmp_path: Path) -> None:
    ray_job = render(tmp_path, "--set", "resources.num_decoders=0")
    jsonschema.validate(ray_job, REDUCED, cls=jsonschema.Draft202012Validator)
    assert set(workers(ray_job)) == {"gpu"}


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


@pytest.mark.parametrize("name", ["ray-aws.yaml", "ray-gcp.yaml"])
def test_ray_up_starts_ray_with_the_token_that_it_mounts(name: str, tmp_path: Path) -> None:
    """Ray's own code says what becomes of the file; the commands run with a `ray` that tells its environment."""
    from ray.autoscaler._private.docker import docker_start_cmds
    from ray.autoscaler._private.util import prepare_config

    cluster = prepare_config(yaml.safe_load((ROOT / "deploy" / name).read_text()))
    docker, mounts = cluster["docker"], cluster["file_mounts"]
    options = docker["run_options"]
    started = docker_start_cmds("ubuntu", docker["image"], mounts, "ray", options, "t", "/home/there", "docker")
    assert re.findall(r"-v \S+:(\S+)", started) == ["/home/there/.ray/auth_token"]
    assert "NVIDIA_VISIBLE_DEVICES=all" in started, "the image is none of NVIDIA's, and Ray adds --runtime=nvidia only"
    # By default Ray installs its newest version and a boto3 that aiobotocore does not go with.
    assert not any(cluster[key] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"))
    stub(tmp_path, "ray", 'echo "$1 $RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH"')
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1", "HOME": "/home/there"}
        printed = [
            subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True).stdout
            for command in commands
        ]
        assert printed[-1].split() == ["start", "token", "/home/there/.ray/auth_token"]


def stub(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


SRUN = """
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
RAY = """
echo "ray $*" >> "$CALLS"
case "$1 $2" in
  "start --head") echo $$ > "$CALLS.head"; %(head)s ;;
  "start "*) exec sleep 600 ;;
  "status "*) %(status)s ;;
esac
"""


def slurm(tmp_path: Path, *, head: str = "exec sleep 600", status: str = "test -e $CALLS.head") -> tuple[int, str, str]:
    """Run the script as Slurm would, on two nodes; returns its exit code, what it printed, and what it called."""
    here, bin_folder = tmp_path / "here", tmp_path / "venv" / "bin"
    here.mkdir()
    stub(bin_folder, "srun", SRUN)
    stub(bin_folder, "scontrol", "echo node1; echo node2")
    stub(bin_folder, "hostname", "echo 10.0.0.1 10.0.0.2")
    stub(bin_folder, "ray", RAY % {"head": head, "status": status})
    stub(bin_folder, "tatok", 'echo "tatok $RAY_ADDRESS $RAY_AUTH_MODE $*" >> "$CALLS"; exit 3')
    (bin_folder / "python").symlink_to(sys.executable)
    slurms = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "7"}
    ours = {"CALLS": str(tmp_path / "calls"), "VENV": str(tmp_path / "venv"), "RAY_START_TIMEOUT_S": "3"}
    done = subprocess.run(
        ["bash", ROOT / "deploy" / "slurm.sh", "job.yaml", "--log", "log.jsonl"],
        cwd=here,
        env=slurms | ours | {"PATH": f"{bin_folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert list(here.iterdir()) == [], "the token is gone"
    return done.returncode, done.stderr, (tmp_path / "calls").read_text()


def test_the_slurm_script_runs_the_job(tmp_path: Path) -> None:
    code, printed, calls = slurm(tmp_path)
    assert code == 3, printed
    [told] = [line for line in calls.splitlines() if line.startswith("tatok")]
    assert told == "tatok 10.0.0.1:21234 token tokenize --config job.yaml --log log.jsonl"
    head, worker = sorted(line for line in calls.splitlines() if line.startswith("srun") and "ray start" in line)
    assert ("--nodelist=node1" in head, "--nodelist=node2" in worker) == (True, True)
    assert all("--cpus-per-task=7" in line and "--num-cpus=7" in line for line in (head, worker))
    assert "--temp-dir=/tmp/tatok-1234" in head
    assert_gone(tmp_path)


@pytest.mark.parametrize(
    ("head", "message"), [("exit 1", "has ended"), ("exec sleep 600", "does not answer")], ids=["dead", "silent"]
)
def test_the_slurm_script_ends_without_a_head(tmp_path: Path, head: str, message: str) -> None:
    code, printed, calls = slurm(tmp_path, head=head, status="exit 1")
    assert (code, message in printed) == (1, True), printed
    assert not any(line.startswith("tatok") for line in calls.splitlines())
    assert_gone(tmp_path)


def assert_gone(tmp_path: Path) -> None:
    """Nothing is left of the head, which the script started in the background."""
    pid = (tmp_path / "calls.head").read_text().strip()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: (name, rest), continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def test_dockerfile_steps_run_outside_docker(tmp_path: Path) -> None:
    """COPY and RUN in a folder that stands for the image; pip resolves nothing anew, so that this takes seconds.

    The image's Python is an environment that borrows this one's packages by a path file, and pip installs tatok itself
    alone (--no-deps): that its requirements can be installed is what `make setup` shows, by the same constraints.
    """
    import site

    workdir, python = tmp_path / "opt" / "tatok", tmp_path / "usr" / "local"
    workdir.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", python], check=True)
    packages = next((python / "lib").glob("python*")) / "site-packages"
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    path = os.pathsep.join([str(python / "bin"), "/usr/bin", "/bin"])
    ran = []
    for name, rest in steps():
        match name:
            case "COPY":
                *sources, target = shlex.split(rest)
                for source in sources:
                    subprocess.run(["cp", "-r", ROOT / source, workdir / target], check=True)
                for weights in workdir.rglob("*.safetensors"):
                    weights.write_bytes(b"")  # megabytes that the build would compress
            case "RUN" if rest.startswith("apt-get"):
                subprocess.run(["bash", "-nc", rest], check=True)
            case "RUN":
                # Borrowed packages have no commands in this environment, so these run as modules.
                command = re.sub(r"\bpip (?=install)", "python -m pip ", rest)
                command = command.replace("ray --version", "python -m ray.scripts.scripts --version")
                command = command.replace(
                    "pip install", "pip install --no-deps --no-build-isolation --no-compile --quiet"
                ).removesuffix(" boto3 google-api-python-client")
                environment = {"PATH": path, "HOME": str(tmp_path)}
                subprocess.run(["bash", "-euc", command], cwd=workdir, check=True, env=environment)
                ran.append(command)
    assert len(ran) == 2
    # A login shell sets PATH anew: what is to be found must be in /usr/local/bin, whatever ENV says.
    assert (python / "bin" / "tatok").exists()
    assert not any("PATH" in rest for _, rest in steps())
    printed = subprocess.run(
        ["python", "-P", "-c", "import tatok.jobs; print(tatok.jobs.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": path},
    ).stdout
    assert printed.startswith(str(python)), "tatok is installed in the image, not borrowed"


def test_dockerfile_copies_all_that_pip_builds_and_its_extras_exist() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {word for name, rest in steps() if name == "COPY" for word in rest.split()[:-1]}
    packages = set(project["tool"]["setuptools"]["package-dir"].values())
    assert packages | {"pyproject.toml", "constraints.txt", project["project"]["readme"], "LICENSE"} <= copied
    extras = re.search(r"'\.\[(.*)\]'", (ROOT / "Dockerfile").read_text())
    assert extras is not None
    optional = project["project"]["optional-dependencies"]
    assert set(extras[1].split(",")) == set(optional) - {"train", "eval", "dev"}, "whatever a job may ask for"
    for extra in extras[1].split(","):
        assert all(Requirement(text) for text in optional[extra])
    [apt] = [rest for name, rest in steps() if name == "RUN" and rest.startswith("apt-get")]
    assert {"rsync", "openssh-client", "wget"} <= set(apt.split()), "what Ray's launcher and KubeRay call in it"
    assert {"gcc", "libc6-dev"} <= set(apt.split()), "by which Triton makes what starts its kernels"
    assert (name := steps()[0]) == ("FROM", "python:3.11-slim"), name

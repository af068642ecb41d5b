"""The house: which room may import which, without circles; Ray in one room; how large rooms and files are."""

from __future__ import annotations

import shutil
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.imports import Import, astray, circles, imports_of, module_name, python_files, room_of
from tests.support.places import ROOT

TOPS = ("schemas", "tatok", "pipeline", "jobs")
EVERY_TOP = (*TOPS, "benchmarks", "tests")

P = "tatok.pipeline"
RULES: dict[str, tuple[str, ...]] = {  # room -> the rooms that it may import; tatok.schemas all may
    "tatok.schemas": (),
    "tatok.weights": (),
    # the tokenizer, and what users do with its tokens
    # the package's own face, by name
    "tatok": ("tatok.dataset", "tatok.statistics", "tatok.tokenizer", "tatok.jobs.python"),
    "tatok.__main__": ("tatok.jobs.cli",),
    "tatok.distributed": (),
    "tatok.stopping": (),
    "tatok.checkpoint_files": (),
    "tatok.user_code": (),
    "tatok.allocator": (),
    "tatok.device": (),
    "tatok.precision": (),
    "tatok.autoencoders": ("tatok.user_code",),
    "tatok.model": ("tatok.distributed", "tatok.checkpoint_files", "tatok.autoencoders"),
    "tatok.frozen": ("tatok.model",),
    # An image given to `encode` becomes the pixels that a job makes of its file: the one import that goes up.
    "tatok.tokenizer": ("tatok.model", "tatok.precision", "tatok.frozen", "tatok.user_code", f"{P}.images"),
    "tatok.adapters": ("tatok.model", "tatok.precision"),
    "tatok.dataset": (),
    "tatok.statistics": ("tatok.dataset",),
    "tatok.evaluation": ("tatok.model", "tatok.tokenizer", "tatok.statistics"),
    "tatok.watching": ("tatok.model",),
    "tatok.training": (
        "tatok.device",
        "tatok.watching",
        "tatok.checkpoint_files",
        "tatok.distributed",
        "tatok.stopping",
        "tatok.autoencoders",
        "tatok.model",
        "tatok.evaluation",
    ),
    "tatok.adaptation": ("tatok.frozen", "tatok.model", "tatok.tokenizer", "tatok.training"),
    "tatok.generator": (
        "tatok.stopping",
        "tatok.checkpoint_files",
        "tatok.dataset",
        "tatok.training",
        "tatok.watching",
    ),
    "tatok.report": ("tatok.dataset", "tatok.statistics", "tatok.tokenizer"),
    # the pipeline
    f"{P}.storage": (),
    f"{P}.monitoring": (),
    f"{P}.images": (f"{P}.images.containers",),
    f"{P}.images.containers": (),
    f"{P}.readers": (f"{P}.storage", f"{P}.images"),  # which formats an extra reads
    f"{P}.output": (f"{P}.storage", "tatok.dataset"),
    f"{P}.video": (f"{P}.storage", f"{P}.images", f"{P}.readers"),
    f"{P}.planning": (f"{P}.storage", f"{P}.readers", f"{P}.output"),
    f"{P}.decode": (f"{P}.images", f"{P}.readers", f"{P}.video"),
    f"{P}.export": (f"{P}.storage", f"{P}.output", "tatok.dataset", "tatok.statistics", "tatok"),
    f"{P}.census": (),  # a second count of a source, which must not share the readers' mistakes
    f"{P}.verify": tuple(f"{P}.{room}" for room in ("storage", "readers", "output", "planning", "census")),
    f"{P}.tokenization": (
        *(f"{P}.{room}" for room in ("storage", "readers", "images", "video", "decode", "output")),
        "tatok.checkpoint_files",
        "tatok.precision",
        "tatok.model",
        "tatok.tokenizer",
    ),
    f"{P}.cluster": (
        *(f"{P}.{room}" for room in ("storage", "monitoring", "output", "readers", "tokenization")),
        f"{P}.cluster.workers",
        "tatok.stopping",
        "tatok.training",
        "tatok",  # where it is installed
    ),
    f"{P}.cluster.workers": (
        f"{P}.cluster",  # what an attempt and its failure are
        "tatok.allocator",
        *(f"{P}.{room}" for room in ("storage", "monitoring", "output", "tokenization")),
    ),
    f"{P}.run": tuple(
        f"{P}.{room}" for room in ("storage", "monitoring", "decode", "output", "planning", "tokenization", "cluster")
    ),
    f"{P}.preview": tuple(
        f"{P}.{room}" for room in ("storage", "decode", "output", "planning", "tokenization", "cluster", "run")
    ),
    f"{P}.doctor": (
        *(f"{P}.{room}" for room in ("storage", "readers", "decode", "output", "planning", "tokenization", "cluster")),
        f"{P}.monitoring",
        f"{P}.run",
        "tatok.tokenizer",
    ),
    f"{P}.bench": (
        *(f"{P}.{room}" for room in ("storage", "monitoring", "readers", "video", "decode", "output", "planning")),
        *(f"{P}.{room}" for room in ("tokenization", "cluster", "run")),
        "tatok.allocator",
        "tatok.tokenizer",
    ),
    # how people run it
    "tatok.jobs.exit_codes": ("tatok.stopping",),
    "tatok.jobs.interruption": ("tatok.jobs.exit_codes", "tatok.stopping"),
    "tatok.jobs.help": (),
    "tatok.jobs.verbosity": (),
    "tatok.jobs.job_file": ("tatok.user_code",),
    "tatok.jobs.init_file": ("tatok.jobs.job_file",),
    "tatok.jobs.training": ("tatok.device", "tatok.training", "tatok.watching", f"{P}.cluster"),
    "tatok.jobs.evaluation": (
        "tatok.device",
        "tatok.evaluation",
        "tatok.tokenizer",
        "tatok.training",
        "tatok.jobs.text",
    ),
    "tatok.jobs.pictures": (f"{P}.decode", "tatok.dataset", "tatok.report", "tatok.tokenizer"),
    "tatok.jobs.submission": (
        "tatok",
        "tatok.user_code",
        "tatok.tokenizer",
        "tatok.jobs.exit_codes",
        "tatok.jobs.job_file",
        "tatok.jobs.verbosity",
        f"{P}.images",
    ),
    "tatok.jobs.text": ("tatok.statistics", "tatok.evaluation", f"{P}.planning", f"{P}.preview", f"{P}.run"),
    "tatok.jobs.python": (
        *(f"{P}.{room}" for room in ("decode", "monitoring", "planning", "run", "storage")),
        *(f"tatok.{room}" for room in ("dataset", "report", "statistics", "tokenizer")),
        *(f"tatok.jobs.{room}" for room in ("job_file", "pictures", "text", "verbosity")),
    ),
    "tatok.jobs": (),
}
TOP = ("tatok.jobs.reference", "tatok.jobs.cli", "tatok.jobs.commands")  # each imports whatever is below it
FACES = ("tatok", P, "tatok.jobs")  # packages whose own __init__ is a room beside those in them
ON_RAY = (f"{P}.cluster", "tatok.jobs.submission.ray_jobs")
MOST_FILES, MOST_LINES = 12, 400

BENCHMARKS_SHARE = (
    "benchmarks",
    *(f"benchmarks.{name}" for name in ("document", "kept_results", "layout", "machine", "sampling")),
)


def room_names(root: Path) -> list[str]:
    """Rooms are the folders, and the single files beside folders."""
    folders = {module_name(root, path) for path in python_files(root, TOPS) if path.name == "__init__.py"}
    beside = {module_name(root, path) for top in TOPS for path in (root / top).glob("*.py") if top != "schemas"}
    return sorted(folders | {name for name in beside if not name.startswith("tatok.schemas")})


def violations(root: Path) -> list[str]:
    """What breaks the rules, as sentences."""
    rooms = room_names(root)
    modules = {module_name(root, path) for path in python_files(root, TOPS)}
    found, edges = [], defaultdict(set)
    for each in imports_of(root, TOPS):
        target = each.imported if each.imported in modules else each.imported.rpartition(".")[0]
        if target in modules and target != each.importer:
            edges[each.importer].add(target)
        if each.imported.partition(".")[0] in ("schemas", "pipeline", "jobs", "tests", "benchmarks"):
            found.append(f"{each.importer} imports {each.imported}, which is not installed")
        if each.imported.partition(".")[0] == "ray" and not each.importer.startswith(ON_RAY):
            found.append(f"{each.importer} imports Ray")
        if each.importer.startswith("tatok.schemas") and each.imported.partition(".")[0] in ("torch", "ray"):
            found.append(f"{each.importer} imports {each.imported}: schemas are light")
        a, b = room_of(each.importer, rooms), room_of(each.imported, rooms)
        if b in (None, a, "tatok.schemas") or (a in TOP and (b not in TOP or TOP.index(a) < TOP.index(b))):
            continue
        if b not in RULES.get(str(a), ()):
            found.append(f"{a} may not import {b}: {each.importer} imports {each.imported}")
    is_face = {name for name in modules if name in FACES}
    found += [
        f"{a} and {b} import each other, if only through others"
        for a, b in circles({a: targets - is_face for a, targets in edges.items() if a not in is_face})
    ]
    return sorted(found)


def test_the_rules_hold() -> None:
    assert violations(ROOT) == []


def test_every_room_has_a_rule_and_every_rule_a_room() -> None:
    assert set(room_names(ROOT)) - {P} == {*RULES, *TOP}


PLANTED = {
    "a wrong import": (
        "pipeline/readers/tar.py",
        "from tatok.pipeline.cluster.leases import Attempt",
        "may not import tatok.pipeline.cluster",
    ),
    "an arrow up": ("tatok/model/dtf.py", "import tatok.tokenizer.codec", "may not import tatok.tokenizer"),
    "a circle": ("tatok/dataset/order.py", "from tatok.dataset.stream import TokenStream", "import each other"),
    "the readers' eyes": (
        "pipeline/census/tars.py",
        "from tatok.pipeline.readers.tar import read_tar",
        "may not import tatok.pipeline.readers",
    ),
    "Ray": ("pipeline/tokenization/chunks.py", "import ray", "imports Ray"),
    "Ray in a function": ("pipeline/run.py", "def planted():\n    from ray import get", "imports Ray"),
    "torch in schemas": ("schemas/records.py", "import torch", "schemas are light"),
    "a name that is not installed": ("jobs/job_file.py", "from schemas.job import JobConfig", "not installed"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_import_is_found(planted: str, tmp_path: Path) -> None:
    file, line, what = PLANTED[planted]
    for top in TOPS:
        shutil.copytree(ROOT / top, tmp_path / top, ignore=lambda folder, names: {n for n in names if "." in n[-15:]
                        and not n.endswith(".py")})  # fmt: skip
    path = tmp_path / file
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    module = module_name(tmp_path, path)
    assert any(what in sentence and module in sentence for sentence in violations(tmp_path)), violations(tmp_path)


def test_no_command_imports_a_command() -> None:
    commands = "tatok.jobs.commands."
    between = [
        each
        for each in imports_of(ROOT, ["jobs"])
        if each.importer.startswith(commands)
        and each.imported.startswith(commands)
        and each.importer.split(".")[3] != each.imported.split(".")[3]
    ]
    assert between == []


def test_every_import_of_ours_leads_to_a_file(tmp_path: Path) -> None:
    """The type checker takes a module that is not there for one without types."""
    assert astray(ROOT, (*EVERY_TOP, "examples")) == []
    (tmp_path / "tatok").mkdir()
    (tmp_path / "tatok" / "here.py").write_text("import tatok.there\nfrom tatok.here import x\nimport torch.there\n")
    assert astray(tmp_path, ["tatok"]) == [Import("tatok.here", "tatok.there")]


def test_benchmarks_import_their_room_and_what_all_share() -> None:
    wrong = []
    for each in imports_of(ROOT, ["benchmarks"]):
        top, _, rest = each.imported.partition(".")
        room = ".".join(each.importer.split(".")[:2])
        if top == "benchmarks" and not each.imported.startswith(room):
            if room_of(each.imported, BENCHMARKS_SHARE) == "benchmarks" and rest != "ROOT":
                wrong.append(each)
        elif top == "tests" and not rest.startswith("support"):
            wrong.append(each)
    assert wrong == []


def test_no_circles_in_benchmarks_and_tests_support() -> None:
    edges = defaultdict(set)
    modules = {module_name(ROOT, path) for path in python_files(ROOT, ["benchmarks", "tests"])}
    for each in imports_of(ROOT, ["benchmarks", "tests"]):
        target = each.imported if each.imported in modules else each.imported.rpartition(".")[0]
        if target in modules and target != each.importer:
            edges[each.importer].add(target)
    assert circles(edges) == []


def test_no_test_imports_a_test() -> None:
    tests = [each for each in imports_of(ROOT, ["tests"]) if each.imported.startswith("tests.")]
    wrong = [each for each in tests if not each.imported.startswith("tests.support")]
    # Two tests start processes that find a function by the name of its module: their own.
    assert [each for each in wrong if not each.imported.startswith(f"{each.importer}.")] == []


@pytest.mark.parametrize("top", EVERY_TOP)
def test_rooms_are_small_and_files_short(top: str) -> None:
    for folder in {path.parent for path in python_files(ROOT, [top])}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= MOST_FILES + (top == "tests"), f"{folder.relative_to(ROOT)} holds {len(files)} files"
    long = [path for path in python_files(ROOT, [top]) if path.read_text(encoding="utf-8").count("\n") > MOST_LINES]
    assert long == []


def test_what_is_installed_is_what_there_is() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        module_name(ROOT, path) for path in python_files(ROOT, (*TOPS, "examples")) if path.name == "__init__.py"
    }
    assert set(setuptools["packages"]) == folders
    assert setuptools["package-dir"] == {"tatok": "tatok"} | {
        f"tatok.{top}": top for top in ("schemas", "pipeline", "jobs", "examples")
    }

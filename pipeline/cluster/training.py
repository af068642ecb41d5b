"""A training run on many processes, by Ray Train.

    driver --Ray Train--> worker 0 .. N-1, a GPU each where there are GPUs: train() in one process group
    driver <----lines---- worker 0
    driver -----stops---> worker 0, which agrees with the others on the step at which all save and end

Ray Train places the workers, forms the group and starts all of them again, a few times, when one dies. State and
checkpoints are not given to it: they go to the run's output, which may be any fsspec URL, and from there training goes
on, here as in one process. Errors that would come again (ConfigError and whatever else says what to change) end the run
at once; a worker that died, or a source or an output that did not answer, is tried again.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

# Both must be set before Ray is imported: no calls home, and no warning about GPUs that are hidden from CPU actors.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError
from ray.util.queue import Empty, Queue

from tatok.pipeline.cluster.probe import refuse_another_tatok, require_head
from tatok.schemas.errors import CommitError, ConfigError, SourceError, TatokError
from tatok.stopping import Interrupted, Stop, handlers_kept, stop_by_signals

try:
    import ray.train
    from ray.train import ControllerError, LoggingConfig, TrainingFailedError, UserCallback, WorkerGroupError
    from ray.train.torch import get_device
except ImportError as error:
    raise ConfigError("--num-workers needs Ray Train's requirements: pip install 'tatok[train]'") from error

if TYPE_CHECKING:
    import torch

    from tatok.training.config import TrainingConfig

__all__ = ["TrainRun", "run_training"]

MAX_RESTARTS = 3
_START_NOTICE_S = 30.0
_LOOK_S = 0.2  # between two looks at whether the training has ended
_END = None  # of the lines
# At run time these names mean Ray Train's second version, but a type checker finds the first.
_ray_train: Any = ray.train


class TrainRun(Protocol):
    """What each worker calls: `tatok.training.run.train`, or what stands for it."""

    def __call__(
        self,
        config: TrainingConfig,
        device: torch.device,
        *,
        start_from: str | None,
        say: Callable[[str], None] | None,
        stop: Stop | None,
    ) -> str:
        """Train in this process's group; returns the checkpoint's path or URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """All that a worker is told; pickled."""

    train: TrainRun
    config: TrainingConfig
    start_from: str | None
    lines: Queue
    stops: Queue
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """What a worker answers that ended because of a signal: an exception would have Ray Train start it again."""

    interrupt: Interrupted


def run_training(
    config: TrainingConfig,
    *,
    num_workers: int,
    device: str | None = None,
    address: str | None = None,
    start_from: str | None = None,
    say: Callable[[str], None] = print,
    train: TrainRun | None = None,
) -> str:
    """Train on `num_workers` processes, or resume where the output left off; returns the checkpoint's path or URL.

    On the Ray at `address`, the one that this process uses, or a new local one, which is gone when this returns.
    `device` is "cuda" (a GPU a worker), "cpu", or None for GPUs where the Ray has any. `say` gets rank 0's lines, from
    another thread. Local paths are read and written by the workers: with several machines they must be shared.

    Raises ConfigError if batches cannot be shared equally, Ray has too little, or the training refuses; other
    TatokErrors where it cannot be done. On Ctrl-C and SIGTERM the workers finish their step, rank 0 saves the state,
    and Interrupted is raised when they are gone; at once, if they had not begun, or on a second signal.
    """
    from tatok.training.config import check_batch_sizes
    from tatok.training.run import train as train_in_process

    check_batch_sizes(config, num_workers)
    config, start_from = _placed(config, start_from)
    started_ray = not ray.is_initialized()
    if started_ray:
        _start_ray(address)
    try:
        use_gpu, threads = _resources(num_workers, device)
        has_begun = threading.Event()

        def heard(line: str) -> None:
            has_begun.set()
            say(line)

        with _printing(heard, say) as lines, _queue() as stops:
            task = _Task(
                train=train or train_in_process,
                config=config,
                start_from=start_from,
                lines=lines,
                stops=stops,
                threads=threads,
            )
            return _stoppable(functools.partial(_fit, task, num_workers, use_gpu), stops, has_begun)
    finally:
        if started_ray:
            ray.shutdown()


def _placed(config: TrainingConfig, start_from: str | None) -> tuple[TrainingConfig, str | None]:
    """The same, with patterns expanded and paths absolute: workers have another current folder."""
    from tatok.training.moving_photos import VIDEO_EXTENSIONS
    from tatok.training.photos import expand_sources
    from tatok.training.run_folder import is_url

    def placed(path: str) -> str:
        return path if is_url(path) else os.path.abspath(path)

    update: dict[str, Any] = {
        "output": placed(config.output),
        "photos": tuple(placed(path) for path in expand_sources(config.photos)),
        "videos": tuple(placed(path) for path in expand_sources(config.videos, VIDEO_EXTENSIONS)),
        "heldout": tuple(placed(path) for path in expand_sources(config.heldout)),
        "latents": None if config.latents is None else config.latents.from_anywhere(),
        "teacher": None if config.teacher is None else config.teacher.from_anywhere(),
    }
    return config.model_copy(update=update), None if start_from is None else placed(start_from)


def _start_ray(address: str | None) -> None:
    refuse_another_tatok(Path.cwd())
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        with handlers_kept():
            if address and address != "local":
                require_head(address)
                ray.init(address=address, **quiet)
            else:
                ray.init(address="local", include_dashboard=False, **quiet)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        where = f"reach the Ray at {address}" if address else "start a local Ray"
        raise TatokError(f"cannot {where}: {error}") from error


def _resources(num_workers: int, device: str | None) -> tuple[bool, int]:
    """Whether workers get a GPU each, and how many CPUs each; raises ConfigError if this Ray has too few."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    kind = (device or ("cuda" if num_gpus else "cpu")).partition(":")[0]
    if kind not in ("cuda", "cpu"):
        raise ConfigError(f"device is {device!r}; several workers train on cuda or cpu")
    if kind == "cuda" and num_workers > num_gpus:
        raise ConfigError(
            f"{num_workers} workers need {num_workers} GPUs, and this Ray has {num_gpus}; "
            "lower --num-workers, or use --device cpu"
        )
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    for each in range(max(1, sum(cpus) // num_workers), 0, -1):
        if sum(count // each for count in cpus) >= num_workers:
            return kind == "cuda", each
    raise ConfigError(
        f"{num_workers} workers need {num_workers} CPUs, and this Ray has {sum(cpus)}; lower --num-workers"
    )


@contextmanager
def _queue() -> Iterator[Queue]:
    queue = Queue(actor_options={"num_cpus": 0})
    try:
        yield queue
    finally:
        queue.shutdown(force=True)


def _stoppable(fit: Callable[[], str | _Ended], stops: Queue, has_begun: threading.Event) -> str:
    """What `fit` returns; it runs in a thread, where Ray Train puts no handler of its own in the signals' way."""
    done: list[str | _Ended | BaseException] = []
    has_ended = threading.Event()  # Thread.join that a signal interrupts takes the thread for ended

    def run() -> None:
        try:
            done.append(fit())
        except BaseException as error:  # raised again below
            done.append(error)
        finally:
            has_ended.set()

    with stop_by_signals():
        try:
            threading.Thread(target=run, name="training-fit", daemon=True).start()
            while not has_ended.wait(_LOOK_S):
                pass
        except Interrupted as interrupt:
            if not has_begun.is_set():
                raise
            stops.put(interrupt.signal_number)
            while not has_ended.wait(_LOOK_S):  # a second signal raises here
                pass
    [outcome] = done
    if isinstance(outcome, BaseException):
        raise outcome
    if isinstance(outcome, _Ended):
        raise outcome.interrupt
    return outcome


@contextmanager
def _printing(hear: Callable[[str], None], say: Callable[[str], None]) -> Iterator[Queue]:
    """A queue whose lines `hear` gets, all of them before the block is left; `say` gets what is not the workers'."""
    lines = Queue(actor_options={"num_cpus": 0})

    def tell() -> None:
        notice_s: float | None = _START_NOTICE_S
        while True:
            try:
                line = lines.get(timeout=notice_s)
            except Empty:
                say("still waiting for Ray to find room for the workers, and for these to start")
                notice_s = None
                continue
            except RayError:  # Ray is gone, and with it whoever could have said more
                return
            if line is _END:
                return
            notice_s = None
            hear(line)

    teller = threading.Thread(target=tell, name="training-lines", daemon=True)
    teller.start()
    try:
        yield lines
    finally:
        try:
            lines.put(_END)
            teller.join()
        finally:
            lines.shutdown(force=True)


def _fit(task: _Task, num_workers: int, use_gpu: bool) -> str | _Ended:
    # A GPU's worker needs CPUs for its own thread and its loader, but no more of them than that.
    num_loaders = task.config.num_loader_workers
    cpus = task.threads if num_loaders is None or not use_gpu else min(task.threads, 1 + num_loaders)
    # Ray Train wants a folder of its own, and leaves a marker in it.
    with tempfile.TemporaryDirectory(prefix="tatok-training-", ignore_cleanup_errors=True) as folder:
        trainer = _ray_train.torch.TorchTrainer(
            functools.partial(_work, task),
            scaling_config=_ray_train.ScalingConfig(
                num_workers=num_workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": cpus} | ({"GPU": 1} if use_gpu else {}),
            ),
            run_config=_ray_train.RunConfig(
                name="run",
                storage_path=folder,
                failure_config=_ray_train.FailureConfig(max_failures=MAX_RESTARTS),
                logging_config=LoggingConfig(log_level="ERROR"),
                callbacks=[_Failures(task.lines)],
            ),
        )
        try:
            outcome: str | _Ended = trainer.fit().return_value
        except TrainingFailedError as error:
            raise _as_tatok_error(error) from error
        return outcome


def _work(task: _Task) -> str | _Ended:
    """In each worker."""
    import torch

    torch.set_num_threads(task.threads)  # Ray would leave it at one
    is_first = ray.train.get_context().get_world_rank() == 0
    stop = Stop()
    if is_first:
        threading.Thread(target=_pass_on, args=(task.stops, stop), name="training-stops", daemon=True).start()
    say = task.lines.put if is_first else _say_nothing
    try:
        return task.train(task.config, get_device(), start_from=task.start_from, say=say, stop=stop)
    except Interrupted as interrupt:
        return _Ended(interrupt=interrupt)


def _pass_on(stops: Queue, stop: Stop) -> None:
    """Request a stop when the driver wants one."""
    try:
        number = stops.get()
        stops.put(number)  # for who comes after this worker, if it dies before it has saved
        stop.request(number)
    except RayError:  # the queue is gone, and with it whoever could have wanted one
        return


def _say_nothing(line: str) -> None:
    pass


class _Failures(UserCallback):
    """In Ray Train's controller: reports what failed, and ends the run where another attempt would fail alike."""

    def __init__(self, lines: Queue) -> None:
        self._lines = lines

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, TatokError) and not isinstance(error, (SourceError, CommitError)):
                raise error  # an error of the controller, which Ray Train does not try again
        # Those that waited for a dead worker fail too, often before its death is known.
        failures = "; ".join(f"{rank}: {_first_line(error)}" for rank, error in sorted(worker_exceptions.items()))
        self._lines.put(f"workers failed ({failures}); starting again up to {MAX_RESTARTS} times from the last state")


def _as_tatok_error(error: TrainingFailedError) -> TatokError:
    causes: list[Exception] = []
    if isinstance(error, ControllerError):
        causes = [error.controller_failure]
    elif isinstance(error, WorkerGroupError):
        causes = list(error.worker_failures.values())
    for cause in causes:
        if isinstance(cause, TatokError):
            return cause
    text = "; ".join(_first_line(cause) for cause in causes) or _first_line(error)
    return TatokError(
        f"training stopped: {text}\nit was started again up to {MAX_RESTARTS} times; the same command resumes from the "
        "last state; if workers were killed, the machines may be short of memory: try a smaller batch_size"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

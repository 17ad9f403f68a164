"""`resnet-repro farm`: what `dvc repro --allow-missing` does, with the runs side by side.

DVC runs one stage at a time. Here it runs what comes before the runs, then each run's `train` and `evaluate` beside
the others', and then the rest; the files and dvc.lock in the end are those of `dvc repro`.
"""

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from resnet_repro.farm.child import dvc
from resnet_repro.farm.local import LOGS, Executor, Local, devices_of, jobs_per_device
from resnet_repro.farm.show import View
from resnet_repro.farm.work import FarmError, Job, find_work, longest_first, sort_locks, targets_of
from resnet_repro.params import Params

__all__ = ["EXECUTORS", "FarmError", "farm"]

EXECUTORS = ("local", "ray")
POLL_SECONDS = 0.5


def farm(
    workspace: Path,
    params: Params,
    names: Sequence[str],
    console: Console,
    executor_name: str = "local",
    jobs: int | None = None,
    address: str = "auto",
) -> None:
    """Bring the targets up to date, `jobs` runs at a time on each device.

    Raises:
        FarmError: a run or a stage failed; the others were done.
        KeyboardInterrupt: it was stopped; what ran left checkpoints, and the same command goes on.
    """
    targets = targets_of(params, names)
    _repro(workspace, "--quiet", "--single-item", "plan")
    work = find_work(workspace, targets)
    if work.jobs:
        _repro(workspace, "prepare")
        found = longest_first(workspace, params, find_work(workspace, targets).jobs)
        executor = _executor(workspace, params, found, executor_name, jobs, address)
        with View(found, console) as view, _terminated_as_interrupted():
            try:
                run_jobs(executor, found, view)
            except KeyboardInterrupt:
                console.print("Stopping: each training leaves a checkpoint. Ctrl-C again ends them at once.")
                _stop(executor)
                sort_locks(workspace, work.order)
                console.print("Stopped. The same command goes on.")
                raise
        sort_locks(workspace, work.order)
        console.print(view.summary(), markup=False, highlight=False, soft_wrap=True)
        if failed := [row.job.run for row in view.rows.values() if row.state == "failed"]:
            logs = f"all that they said is in {LOGS}/"
            raise FarmError(f"{', '.join(failed)} failed: {logs}; the same command tries again, and then reports")
    _repro(workspace, "--quiet", "--allow-missing", *targets)
    sort_locks(workspace, work.order)


def run_jobs(executor: Executor, jobs: Sequence[Job], view: View) -> None:
    """Start each job, in this order, as soon as there is room, until all have ended."""
    waiting, running = list(jobs), 0
    while waiting or running:
        while waiting and executor.has_room():
            executor.start(waiting.pop(0))
            running += 1
        for update in executor.poll():
            view.update(update)
            running -= update.returncode is not None
        view.draw()
        time.sleep(POLL_SECONDS)


def _executor(
    workspace: Path, params: Params, found: Sequence[Job], name: str, jobs: int | None, address: str
) -> Executor:
    if name == "ray":
        from resnet_repro.farm.cluster import Cluster

        return Cluster(workspace, address, jobs or 1)
    devices = devices_of(params.engine.device)
    models = [(params.runs | params.ablations)[job.run].model for job in found]
    return Local(workspace, devices, jobs or jobs_per_device(workspace, devices[0], models))


def _stop(executor: Executor) -> None:
    try:
        executor.stop()
    except KeyboardInterrupt:
        executor.kill()
        raise


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, from a batch system or `kill`, stops the farm as Ctrl-C does."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _repro(workspace: Path, *arguments: str) -> None:
    if subprocess.run(dvc("repro", *arguments), cwd=workspace, check=False).returncode:
        raise FarmError(f"`dvc repro {' '.join(arguments)}` failed; what it said stands above")

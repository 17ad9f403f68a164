"""The farm on a Ray cluster: workers in clean clones at this commit; data and results through DVC's default remote.

What a worker has done comes home as a stage out of DVC's run cache, so this workspace is the only one whose dvc.lock
is written. A worker sends its checkpoints here, too: where it is lost, another goes on from them.
"""

import os
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnet_repro.estimate import FARM
from resnet_repro.evidence import write_atomically
from resnet_repro.experiment import ON_OTHER_MACHINE
from resnet_repro.farm import child, worker
from resnet_repro.farm.child import Child, dvc, environment_of
from resnet_repro.farm.local import LOGS, TRIES, Update, is_busy
from resnet_repro.farm.work import FarmError, Job
from resnet_repro.workspace import LockFileError, stages_of

RETRIES = 3
"""of a run whose worker is lost"""
WRITTEN_BY_STAGES = (":!dvc.lock", ":!ablations/dvc.lock", ":!reports")
"""may differ from the commit: a farm that was stopped leaves them so, and no training reads them"""
SENT = ("MLFLOW_", "CIFAR10_", "OMP_", "MKL_", "TORCH", ON_OTHER_MACHINE)
"""how the names begin of the variables that a stage has there as here"""


class Cluster:
    """An executor whose jobs are Ray tasks. `jobs` of them share a GPU, or a machine where the cluster has none."""

    def __init__(self, workspace: Path, address: str, jobs: int) -> None:
        try:
            import ray
        except ImportError:
            raise FarmError('Ray is not installed: pip install --editable ".[ray]"') from None
        _refuse_dirty(workspace)
        self.workspace, self.ray, self.updates = workspace, ray, deque[Update]()
        self.running: dict[Any, tuple[Job, int]] = {}
        self.arrived: list[tuple[Job, worker.Report]] = []
        self.batch: Batch | None = None
        remote = _default_remote(workspace)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except ConnectionError:
            raise FarmError(
                f"there is no Ray cluster at {address}: `ray start --head` here, then "
                "`ray start --address=HOST:6379` on the other machines"
            ) from None
        for module in (child, worker):
            ray.cloudpickle.register_pickle_by_value(module)
        self.resources = resources_of(ray, jobs)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self.switch = ray.remote(num_cpus=0, scheduling_strategy=here)(worker.Switch).remote()
        environment = {name: value for name, value in os.environ.items() if name.startswith(SENT)} | {FARM: "1"}
        commit = _git(workspace, "rev-parse", "HEAD").decode().strip()
        bundle = _git(workspace, "bundle", "create", "-", "HEAD")
        self.parcel = ray.put(worker.Parcel(commit, bundle, remote, environment))
        self._push("data/cifar10")

    def has_room(self) -> bool:
        """Always: Ray keeps what waits, in this order."""
        return True

    def start(self, job: Job) -> None:
        if not any("train@" in stage for stage in job.stages):
            self._push(f"runs/{job.run}")
        self._submit(job, RETRIES)

    def poll(self) -> list[Update]:
        if self.running:
            ready, _ = self.ray.wait(list(self.running), timeout=1.0, num_returns=len(self.running), fetch_local=False)
            for generator in ready:
                self._hear(generator)
        self._bring_home()
        updates = list(self.updates)
        self.updates.clear()
        return updates

    def stop(self) -> None:
        self.ray.get(self.switch.press.remote())
        while self.running or self.arrived or self.batch:
            self.poll()
        self.ray.shutdown()

    def kill(self) -> None:
        if self.batch and self.batch.process:
            self.batch.process.kill()
        self.ray.shutdown()

    def _push(self, target: str) -> None:
        if subprocess.run(dvc("push", "--quiet", target), cwd=self.workspace, check=False).returncode:
            raise FarmError(f"`dvc push {target}` failed; what it said stands above")

    def _submit(self, job: Job, retries: int) -> None:
        kinds = self.workspace.glob(f"checkpoints/{job.run}/*/")
        newest = [max(steps) for folder in kinds if (steps := list(folder.glob("step-*")))]
        checkpoints = tuple((str(path.relative_to(self.workspace)), path.read_bytes()) for path in newest)
        task = self.ray.remote(num_returns="streaming", max_retries=0, **self.resources)(worker.task)
        generator = task.remote(self.parcel, job.run, job.stages, checkpoints, self.switch)
        self.running[generator] = (job, retries)

    def _hear(self, generator: Any) -> None:
        """One report of a task, or its loss."""
        job, retries = self.running[generator]
        error = self.ray.exceptions
        try:
            report = self.ray.get(next(generator))
        except error.RayError as failure:
            del self.running[generator]
            raised = isinstance(failure, error.RayTaskError) and not isinstance(failure.cause, error.RayError)
            if raised:  # by git or a disk there: another would not help
                self.updates.append(Update(job, "", tuple(str(failure).splitlines()), 1))
            elif retries:
                self._submit(job, retries - 1)
                self.updates.append(Update(job, "", (f"{_lost(failure)}; another goes on",)))
            else:
                self.updates.append(Update(job, "", (f"{_lost(failure)}, {RETRIES + 1} times",), 1))
            return
        if report.checkpoint:
            self._keep_checkpoint(*report.checkpoint)
        if report.returncode is not None:
            del self.running[generator]  # whatever becomes of that worker now
        if report.returncode == 0:
            for name, content in report.files:
                write_atomically(self.workspace / name, content)
            self.arrived.append((job, report))
        else:
            self.updates.append(Update(job, report.where, report.lines, report.returncode))

    def _keep_checkpoint(self, name: str, content: bytes) -> None:
        """In place of the run's last one of that kind."""
        path = self.workspace / name
        write_atomically(path, content)
        for old in path.parent.glob("step-*"):
            if old.name < path.name:
                old.unlink()

    def _bring_home(self) -> None:
        """Of all runs that have arrived, one batch at a time: DVC takes the trainings out of its run cache."""
        if self.batch is None and self.arrived:
            self.batch = Batch(self.workspace, self.arrived)
            self.arrived = []
        if self.batch is not None and (problem := self.batch.poll()) is not None:
            for job, report in self.batch.arrived:
                for folder in self.workspace.glob(f"checkpoints/{job.run}/*/"):
                    if not problem and folder.name not in report.unused:
                        shutil.rmtree(folder)
                self.updates.append(Update(job, report.where, problem, int(bool(problem))))
            self.batch = None


class Batch:
    """Runs on their way into this workspace."""

    def __init__(self, workspace: Path, arrived: list[tuple[Job, worker.Report]]) -> None:
        self.workspace, self.arrived = workspace, arrived
        stages = [stage for job, _ in arrived for stage in job.stages]
        trained = [stage for stage in stages if "train@" in stage]
        evaluated = [stage for stage in stages if "evaluate@" in stage]
        self.commands = [("repro", "--pull", "--single-item", *trained)] if trained else []
        # not out of the run cache: DVC has none for stages whose outputs it does not cache
        self.commands += [("commit", "--quiet", "--force", *evaluated)] if evaluated else []
        self.process: Child | None = None
        self.tries = TRIES

    def poll(self) -> tuple[str, ...] | None:
        """None while they are on their way; then what went wrong, line by line, or nothing."""
        if self.process is None:
            environment = environment_of({**os.environ, FARM: "1"})
            command = dvc("--wait-for-lock", *self.commands[0])
            self.process = Child(command, self.workspace, environment, self.workspace / LOGS / "home.log")
        code, lines = self.process.poll(), tuple(self.process.lines())
        if any(line.startswith("Running stage") for line in lines):
            self.process.kill()  # not to be trained here
            return (*lines, "DVC's run cache has no such training: has the workspace changed since the farm began?")
        if code is None:
            return None
        self.process = None
        if code and self.tries and is_busy(lines):
            self.tries -= 1
            return None
        if code:
            return lines
        del self.commands[0]
        return None if self.commands else tuple(self._differences())

    def _differences(self) -> Iterator[str]:
        """Where dvc.lock says something else than the worker's did."""
        for _, report in self.arrived:
            for stage, entry in report.locked:
                lock, name = worker.lock_of(stage)
                stages = stages_of((self.workspace / lock).read_bytes())
                if isinstance(stages, LockFileError) or stages.get(name) != entry:
                    yield f"{lock} has another {stage} than the worker's: has the workspace changed?"


def _lost(failure: Exception) -> str:
    return f"its worker was lost ({type(failure).__name__})"


def _refuse_dirty(workspace: Path) -> None:
    dirty = _git(workspace, "status", "--porcelain", "--", ".", *WRITTEN_BY_STAGES).decode().splitlines()
    if dirty:
        raise FarmError(
            "workers take the committed files, and these are not committed: "
            + ", ".join(line[3:] for line in dirty[:5])
            + (" ..." if len(dirty) > 5 else "")
            + "; commit them first"
        )


def _default_remote(workspace: Path) -> dict[str, str]:
    """The options of DVC's default remote, its url absolute."""
    from dvc.repo import Repo

    with Repo(workspace) as repo:
        name = repo.config["core"].get("remote")
        if name is None:
            raise FarmError(
                "workers and this workspace exchange files through DVC's default remote, and it has none: "
                "`dvc remote add --default NAME URL`"
            )
        return {key: str(value) for key, value in repo.config["remote"][name].items()}


def resources_of(ray: Any, jobs: int) -> dict[str, float]:
    """What one task takes."""
    if ray.cluster_resources().get("GPU"):
        return {"num_gpus": 1 / jobs, "num_cpus": 1}
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return {"num_cpus": min((count for count in cores if count), default=1) / jobs}


def _git(workspace: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=workspace, check=True, capture_output=True).stdout

"""The farm on this machine: several runs share a device, each in a process of its own."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from resnet_repro.estimate import FARM
from resnet_repro.evidence import PROVENANCE, Provenance
from resnet_repro.farm.child import STOP_SECONDS, Child, dvc, environment_of
from resnet_repro.farm.work import Job

LOGS = Path(".cache/farm")
TRIES = 20
"""of DVC, which gives up where another has held its list of locks for 3 seconds"""
BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
UNMEASURED_JOBS = 4
"""on a GPU whose throughput was not measured (`make scale`): one small net keeps it idle most of the time"""


@dataclass(frozen=True)
class Update:
    """What became of a job since it was last asked for."""

    job: Job
    where: str
    lines: tuple[str, ...] = ()
    """the last of what it said"""
    returncode: int | None = None
    """None: it goes on"""


class Executor(Protocol):
    """Where jobs run. Every method returns soon, but for `stop`."""

    def has_room(self) -> bool: ...
    def start(self, job: Job) -> None: ...
    def poll(self) -> list[Update]: ...
    def stop(self) -> None:
        """End all jobs; each training leaves a checkpoint."""
        ...

    def kill(self) -> None: ...


class Local:
    """Processes of `dvc repro`, side by side in one workspace, `jobs` on each device."""

    def __init__(self, workspace: Path, devices: Sequence[str], jobs: int) -> None:
        self.workspace, self.devices, self.jobs = workspace, devices, jobs
        self.running: dict[str, tuple[Job, str, Child, int]] = {}

    def has_room(self) -> bool:
        return len(self.running) < self.jobs * len(self.devices)

    def start(self, job: Job) -> None:
        used = Counter(dict.fromkeys(self.devices, 0))
        used.update(device for _, device, _, _ in self.running.values())
        self._start(job, min(used, key=lambda device: used[device]), TRIES)

    def poll(self) -> list[Update]:
        updates = []
        for job, device, child, tries in list(self.running.values()):
            code, lines = child.poll(), child.lines()
            if code and tries and is_busy(lines):
                self._start(job, device, tries - 1)
                continue
            if code is not None:
                del self.running[job.run]
            updates.append(Update(job, device, tuple(lines), code))
        return updates

    def stop(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while self.running and time.monotonic() < deadline:
            for _, _, child, _ in self.running.values():
                child.ask_to_stop()
            time.sleep(0.2)
            self.running = {run: one for run, one in self.running.items() if one[2].poll() is None}
        self.kill()

    def kill(self) -> None:
        for _, _, child, _ in self.running.values():
            child.kill()
        self.running = {}

    def _start(self, job: Job, device: str, tries: int) -> None:
        # the thread count is the run's own: a run beside others has the bits that it has alone
        chosen = {"CUDA_VISIBLE_DEVICES": device.removeprefix("cuda:")} if device.startswith("cuda:") else {}
        environment = environment_of({**os.environ, FARM: "1"}, **chosen)
        command = dvc("--wait-for-lock", "repro", "--single-item", *job.stages)
        child = Child(command, self.workspace, environment, self.workspace / LOGS / f"{job.run}.log")
        self.running[job.run] = (job, device, child, tries)


def is_busy(lines: Iterable[str]) -> bool:
    """Whether DVC gave up because another DVC works in the workspace."""
    return any(sign in line for line in lines for sign in BUSY)


def devices_of(wanted: str) -> list[str]:
    """The devices that runs can be spread over: CUDA's, as CUDA_VISIBLE_DEVICES names them, or the one that is here."""
    import torch

    if wanted not in ("auto", "cuda") or not torch.cuda.is_available():
        return ["mps" if wanted in ("auto", "mps") and torch.backends.mps.is_available() else "cpu"]
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[:count]
    return [f"cuda:{name}" for name in (names if len(names) == count else map(str, range(count)))]


def jobs_per_device(workspace: Path, device: str, models: Iterable[str]) -> int:
    """How many runs at once: as measured by `make scale` on this kind of device, as far as its memory goes.

    Unmeasured, a CPU and Apple's GPU take one, whose threads are all its cores, and a CUDA GPU UNMEASURED_JOBS.
    """
    import torch

    from resnet_repro.engine import device_name

    kind = device.partition(":")[0]
    best = _measured_best(workspace, device_name(kind)) or (UNMEASURED_JOBS if kind == "cuda" else 1)
    if kind != "cuda":
        return best
    # where CUDA does not count this process's own use of a device, it says how much memory there is in all
    memory = torch.cuda.get_device_properties(0).total_memory
    peak = max((_peak_memory_bytes(workspace, model) for model in models), default=0)
    return max(1, min(best, int(0.9 * memory // peak) if peak else best))


def _measured_best(workspace: Path, name: str) -> int | None:
    """The number of jobs with the most runs per hour; of those within 5% of it, the lowest."""
    for path in sorted((workspace / "reports/scale").glob("*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in measured.get("packing", {}).get("rows", []) if row.get("runs_per_hour")]
        if measured.get("device") == name and rows:
            most = max(row["runs_per_hour"] for row in rows)
            return min(int(row["jobs"]) for row in rows if row["runs_per_hour"] >= 0.95 * most)
    return None


def _peak_memory_bytes(workspace: Path, model: str) -> int:
    """The most that a run of the model took of a GPU, by the committed evidence; 0 where none ran on one."""
    paths = [*workspace.glob(f"reports/runs/{model}-*/{PROVENANCE}")]
    paths += workspace.glob(f"reports/ablations/runs/{model}-*/{PROVENANCE}")
    runs = [run for run in map(Provenance.read, paths) if run.device == "cuda" and run.model == model]
    return max((run.peak_memory_bytes or 0 for run in runs), default=0)

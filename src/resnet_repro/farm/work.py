"""What there is to do: the runs whose stages DVC would repeat, longest first, and the order of dvc.lock."""

import heapq
from collections.abc import Iterable, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

from resnet_repro.errors import ReproError
from resnet_repro.estimate import estimate
from resnet_repro.evidence import write_atomically
from resnet_repro.git import git
from resnet_repro.params import Params
from resnet_repro.workspace import LOCKS, RUN_STAGES, split_lock


class FarmError(ReproError):
    """The runs cannot be farmed out, or some of them failed."""


@dataclass(frozen=True)
class Job:
    """What one worker does: the stages of a run that are stale, one after the other."""

    run: str
    stages: tuple[str, ...]
    """as DVC names them, `train` before `evaluate`"""
    seconds: float | None = None
    """what it should take, alone, on this machine; None: not measured"""


@dataclass(frozen=True)
class Work:
    jobs: tuple[Job, ...]
    order: dict[str, list[str]]
    """of each dvc.lock that the targets lead to, its stages as dvc.yaml has them"""


def targets_of(params: Params, names: Sequence[str]) -> list[str]:
    """DVC's targets for what was named: runs and models, or what `dvc repro` takes; dvc.yaml where nothing was."""
    targets = []
    for name in names or ["dvc.yaml"]:
        runs = [key for key, run in (params.runs | params.ablations).items() if name in (key, run.model)]
        targets += [f"{'' if key in params.runs else 'ablations/dvc.yaml:'}evaluate@{key}" for key in runs] or [name]
    return targets


def find_work(workspace: Path, targets: Sequence[str]) -> Work:
    """Ask DVC, as `dvc repro --allow-missing` would; `plan` must be up to date.

    Raises:
        FarmError: DVC does not know a target, or another process works in the workspace.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    try:
        with chdir(workspace), Repo() as repo, repo.lock:  # targets are relative to the working directory
            graph = get_active_graph(repo.index.graph)
            steps = plan_repro(graph, collect_stages(repo, targets))
            locks = {stage.dvcfile.relpath.replace(".yaml", ".lock") for stage in steps}
            order: dict[str, list[str]] = {lock: [] for lock in LOCKS if lock in locks}
            jobs: dict[str, list[str]] = {}
            for stage in repo.index.stages:
                if (lock := stage.dvcfile.relpath.replace(".yaml", ".lock")) in order:
                    order[lock].append(stage.name)
                if stage in steps and stage.name.startswith(RUN_STAGES):
                    run = stage.name.partition("@")[2]
                    if run in jobs or stage.changed(True, list(graph.successors(stage))):
                        jobs.setdefault(run, []).append(stage.addressing)
    except DvcException as error:
        raise FarmError(f"DVC: {error}") from error
    return Work(tuple(Job(run, tuple(stages)) for run, stages in jobs.items()), order)


def longest_first(workspace: Path, params: Params, jobs: Sequence[Job]) -> list[Job]:
    """With their estimates. Those that are not measured come first, for they may be the longest; evaluations last."""
    training = [job.run for job in jobs if len(job.stages) > 1]
    seconds = {one.run: one.seconds for one in estimate(workspace, training, params)}
    jobs = [replace(job, seconds=seconds.get(job.run)) for job in jobs]
    return sorted(jobs, key=lambda job: (len(job.stages) == 1, job.seconds is not None, -(job.seconds or 0)))


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last of `workers` is done, if each that is free takes the next: the farm's schedule.

    With the longest first it is at most 4/3 - 1/(3 workers) of the best there is (Graham 1969, theorem 2).
    """
    free = [0.0] * workers
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def in_order(lock: str, before: str, order: Sequence[str]) -> str:
    """A dvc.lock with its stages as `before` had them, and then those that it had not, by `order`.

    DVC appends stages as they end, and its own order of running them differs from one `dvc repro` to the next.
    """
    head, stages = split_lock(lock)
    known = list(split_lock(before)[1])
    ranked = {name: rank for rank, name in enumerate([*known, *(name for name in order if name not in known)])}
    return head + "".join(stages[name] for name in sorted(stages, key=lambda name: ranked.get(name, len(ranked))))


def sort_locks(workspace: Path, order: dict[str, list[str]]) -> None:
    """Put what was added to each dvc.lock since the last commit `in_order`."""
    for name, stages in order.items():
        path = workspace / name
        if path.is_file():
            committed = git(workspace, "show", f"HEAD:./{name}") or b""
            sorted_text = in_order(text := path.read_text(encoding="utf-8"), committed.decode(), stages)
            if sorted_text != text:
                write_atomically(path, sorted_text.encode())

"""`make scale`: what many runs cost and gain on this machine -> reports/scale.md, scale/.

Each part can be measured by its name; the page is written anew from all that was measured:

packing   runs per hour with 1 to 32 trainings at once on the device
farm      `resnet-repro farm` and `dvc repro` against the bare commands
noop      DVC with 300 runs and nothing to do
publish   `resnet-repro publish` of 300 runs, and MLflow's pages of them
simulate  how long every model's runs take here, for their schedule on many devices
page      nothing: only the page
"""

import argparse
import json
import multiprocessing
import platform
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from resnet_repro.engine import device_name, resolve
from resnet_repro.estimate import estimate
from resnet_repro.evidence import PROVENANCE, Provenance, write_json
from resnet_repro.params import Params, Run, load
from scale_page import read, runs_per_hour, write_page
from speed import Contestant

MODEL, REFERENCE = "resnet20", Path("reports/runs/resnet20-1")
SPARE_BYTES = 1e9
"""of memory, that stay free"""


@dataclass(frozen=True)
class Size:
    """Of the measurements."""

    jobs: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    turn_seconds: float = 30.0
    turns: int = 3
    small_runs: int = 2
    small_epochs: int = 10
    rounds: int = 3
    runs: int = 300
    epochs: int = 200
    compared: tuple[int, ...] = (10, 300)
    seeds: int = 5
    models: int | None = None
    model_seconds: float = 60.0


QUICK = Size((1, 2), 3.0, 2, 1, 2, 1, 12, 10, (2, 12), models=2, model_seconds=5.0)


class Job(Contestant):
    """A training among others."""

    def train(self, seconds: float) -> list[tuple[float, int]]:
        """When (the machine's clock, seconds) how many images had been trained."""
        return [(when, images) for when, images in self._ask(str(seconds))["marks"]]

    def memory_bytes(self) -> int:
        """What would be free without it."""
        process = psutil.Process(self.process.pid)
        return sum(one.memory_full_info().uss for one in (process, *process.children(recursive=True)))


def packing(size: Size) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    device = _device()
    free = [_free_bytes(device)]
    with ExitStack() as stack, ThreadPoolExecutor(max(size.jobs)) as threads:
        running: list[Job] = []
        for jobs in size.jobs:
            while len(running) < jobs and not (lack := _lack(free, running)):
                running.append(stack.enter_context(Job("engine", MODEL, "auto")))
                running[-1].train(size.turn_seconds / 4)
                free.append(_free_bytes(device))
            if len(running) < jobs:
                rows.append({"jobs": jobs, "not_measured": lack})
                continue
            turns = [
                images_per_second(list(threads.map(lambda job: job.train(size.turn_seconds), running)))
                for _ in range(size.turns)
            ]
            rows.append({"jobs": jobs, "images_per_second": turns, "runs_per_hour": runs_per_hour(turns)})
            print(json.dumps(rows[-1]), flush=True)
        memory = max(job.memory_bytes() for job in running)
        engine = running[0].facts["engine"]
    return {"engine": engine, "turn_seconds": size.turn_seconds, "memory_bytes": memory, "rows": rows}


def images_per_second(marks: Sequence[Sequence[tuple[float, int]]]) -> float:
    """Of all jobs together, while all of them train. `marks`: of each job, (seconds, images trained) as they grow."""
    begin, end = max(job[0][0] for job in marks), min(job[-1][0] for job in marks)
    images = 0.0
    for job in marks:
        seconds, trained = np.array(job).T
        images += float(np.interp(end, seconds, trained) - np.interp(begin, seconds, trained))
    return images / (end - begin)


def _free_bytes(device: str) -> float:
    """Of a GPU's memory; of a CPU's it is the jobs themselves that are asked."""
    return float(torch.cuda.mem_get_info()[0]) if device == "cuda" else 0.0


def _lack(free: Sequence[float], running: Sequence[Job]) -> str:
    """Why there is no room for one more job beside those that run; nothing if there is."""
    if not running:
        return ""
    needs = {"memory": float(max(job.memory_bytes() for job in running))}
    left = {"memory": float(psutil.virtual_memory().available)}
    if free[0]:
        needs["GPU memory"], left["GPU memory"] = max(a - b for a, b in pairwise(free)), free[-1]
    for kind, need in needs.items():
        if left[kind] < need + SPARE_BYTES:
            return f"{len(running)} jobs leave {left[kind] / 1e9:.1f} GB of {kind}, and one takes {need / 1e9:.1f} GB"
    return ""


def farm(size: Size) -> dict[str, Any]:
    import scale_workspace

    seconds: dict[str, list[float]] = {"bare": [], "dvc": [], "farm": []}
    with scale_workspace.small_nets(size.small_runs, size.small_epochs) as (ready, runs):
        keys = [f"{run.model}-{run.seed}" for run in runs]
        commands: dict[str, list[tuple[str, ...]]] = {
            "bare": [command for run in runs for command in scale_workspace.bare(run)],
            "dvc": [("dvc", "repro", *(f"evaluate@{key}" for key in keys))],
            "farm": [("resnet-repro", "farm", "--jobs", "1", *keys)],
        }
        for number in range(size.rounds):
            for name, those in commands.items():
                workspace = ready.copy(f"{name}{number}")
                seconds[name].append(sum(workspace.run(*one) for one in those))
                print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    reference = Provenance.read(REFERENCE / PROVENANCE) if (REFERENCE / PROVENANCE).is_file() else None
    here = reference is not None and reference.device_name == device_name(_device())
    return {
        "runs": len(keys),
        "seconds": seconds,
        "run": {"name": REFERENCE.name, "seconds": reference.duration_seconds} if reference and here else None,
    }


def noop(size: Size) -> dict[str, Any]:
    import scale_workspace

    commands = (("dvc", "repro"), ("dvc", "repro", "--allow-missing"), ("dvc", "status"))
    with scale_workspace.up_to_date(load(Path("params.yaml")), size.runs) as workspace:
        workspace.run("dvc", "repro")  # reads what the commit has just written
        seconds = {" ".join(one): [workspace.run(*one) for _ in range(3)] for one in commands}
        for folder in ("runs", "data", ".dvc/cache"):
            shutil.rmtree(workspace.folder / folder)
        clone = [workspace.run("dvc", "repro", "--allow-missing") for _ in range(3)]
    named = {f"`{command}`": times for command, times in seconds.items()}
    return {"runs": size.runs, "seconds": named | {"`dvc repro --allow-missing`, as after a clone": clone}}


def publish(size: Size) -> dict[str, Any]:
    import scale_workspace

    with scale_workspace.evaluated(load(Path("params.yaml")), size.runs, size.epochs) as workspace:
        first, again = (workspace.run("resnet-repro", "publish") for _ in range(2))
        print(f"publish: {first:.1f} s, again {again:.1f} s", flush=True)
        database = (workspace.folder / "mlflow.db").stat().st_size
        pages = None
        if shutil.which("chromedriver"):
            pages = scale_workspace.seconds_of_pages(workspace, size.compared, Path(".cache/scale"))
    return {
        "runs": size.runs,
        "epochs": size.epochs,
        "seconds": first,
        "again_seconds": again,
        "database_bytes": database,
        "pages": pages,
    }


def simulate(size: Size) -> dict[str, Any]:
    runs = every_run(load(Path("params.yaml")), size.seeds)
    models = Counter(run.model for run in runs.values())
    known = [seconds is not None for seconds, _ in _estimates(list(models), 0.0)]
    for model in [model for model, done in zip(models, known, strict=True) if not done][: size.models]:
        child = multiprocessing.get_context("spawn").Process(target=_measure, args=(model, size.model_seconds))
        child.start()
        child.join()
        print(f"{model}: {'measured' if child.exitcode == 0 else 'failed'}", flush=True)
    found = _estimates(list(models), 0.0)
    return {
        "seeds": size.seeds,
        "models": {
            model: {"runs": number, "seconds": seconds, "measured": measured}
            for (model, number), (seconds, measured) in zip(models.items(), found, strict=True)
        },
    }


def every_run(params: Params, seeds: int) -> dict[str, Run]:
    """The runs of the ablations, and of every other model as many seeds."""
    ablated = {run.model for run in params.ablations.values()}
    others = [Run(model=m, seed=s) for m in params.models if m not in ablated for s in range(1, seeds + 1)]
    return {f"{run.model}-{run.seed}": run for run in others} | params.ablations


def _measure(model: str, seconds: float) -> None:
    """In a process of its own, which gives its memory back and may fail for want of it."""
    if _device() == "cpu":
        free = psutil.virtual_memory().available
        resource.setrlimit(resource.RLIMIT_DATA, (free, free))
    _estimates([model], seconds)


def _estimates(models: Sequence[str], budget_seconds: float) -> list[tuple[float | None, str]]:
    params, runs = load(Path("params.yaml")), {f"{model}-1": Run(model=model, seed=1) for model in models}
    found = estimate(Path(), list(runs), params.model_copy(update={"runs": runs, "ablations": {}}), budget_seconds)
    return [(one.seconds, one.measured) for one in found]


PARTS: dict[str, Callable[[Size], dict[str, Any]]] = {
    "packing": packing,
    "farm": farm,
    "noop": noop,
    "publish": publish,
    "simulate": simulate,
}


def _device() -> str:
    return resolve(load(Path("params.yaml")).engine).device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all if left out), or page")
    parser.add_argument("--quick", action="store_true", help="a trial in .cache/quick, whose numbers mean nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - {*PARTS, "page"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    reports, size = (Path(".cache/quick"), QUICK) if arguments.quick else (Path("reports"), Size())
    device = _device()
    path = reports / "scale" / f"{'cpu' if device == 'cpu' else 'gpu'}.json"
    system = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    head = {"device": device_name(device), "system": system}
    measured = read(path) or head
    if {name: measured[name] for name in head} != head:
        measured = head  # what another machine measured does not stand beside what this one does
    for part in arguments.parts or PARTS:
        if part in PARTS:
            measured |= {part: PARTS[part](size)}
            write_json(path, measured)
    write_page(reports)


if __name__ == "__main__":
    main()

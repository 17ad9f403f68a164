"""What `dvc repro` would train here, and how long it should take."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from resnet_repro import schedule
from resnet_repro.data import preprocessing
from resnet_repro.data.arrays import CARD
from resnet_repro.data.batches import pad
from resnet_repro.engine import configure, device_name, resolve, synchronize
from resnet_repro.evidence import Plan, Provenance, write_json
from resnet_repro.models import build_model
from resnet_repro.models.classifier import to_fastest_layout
from resnet_repro.models.initialization import initialize
from resnet_repro.params import CIFAR10_TRAIN_IMAGES, Params, load
from resnet_repro.plan import make_plan
from resnet_repro.progress import duration
from resnet_repro.training import Trainer
from resnet_repro.workspace import LockFileError, stages_of

CACHE = Path(".cache/speed.json")
BUDGET_SECONDS = 30.0
FARM = "RESNET_REPRO_FARM"
"""set in the environment of stages that `resnet-repro farm` runs"""


@dataclass(frozen=True)
class Estimate:
    run: str
    seconds: float | None
    """None: not measured within the time"""
    measured: str
    """how: `training` (a run of this model here) or `steps` (a few uncompiled steps: an upper bound)"""


def stale_runs(workspace: Path, params: Params) -> list[str]:
    """The runs that dvc.lock does not know, or knows with another plan, in the order of params.yaml."""
    lock = workspace / "dvc.lock"
    stages = stages_of(lock.read_bytes()) if lock.is_file() else {}
    if isinstance(stages, LockFileError):
        raise LockFileError(f"dvc.lock cannot be used: {stages}; `resnet-repro doctor` says what to do")
    stale = []
    for key, run in params.runs.items():
        path = workspace / "plans" / f"{run.model}.json"
        deps = {dep["path"]: dep.get("md5") for dep in stages.get(f"train@{key}", {}).get("deps", [])}
        if not path.is_file() or deps.get(f"plans/{run.model}.json") != _md5(path):
            stale.append(key)
    return stale


def estimate(
    workspace: Path, keys: Sequence[str], params: Params, budget_seconds: float | None = None
) -> list[Estimate]:
    """Estimate the runs, measuring models that were never timed here for at most BUDGET_SECONDS, or another time, in
    all; 0 measures nothing."""
    runs = params.runs | params.ablations
    plans = {runs[key].model: None for key in keys}
    cache = _read_cache(workspace)
    deadline = time.monotonic() + (BUDGET_SECONDS if budget_seconds is None else budget_seconds)
    resolved: dict[str, tuple[float, str] | None] = {}
    for model in plans:
        plan = _plan_of(workspace, params, model)
        resolved[model] = _speed_of(plan, cache, deadline)
    _write_cache(workspace, cache)
    card = workspace / "reports/data" / CARD
    known = json.loads(card.read_text())["splits"]["train"]["num_images"] if card.is_file() else None
    num_images = known or CIFAR10_TRAIN_IMAGES
    estimates = []
    for key in keys:
        model = runs[key].model
        speed = resolved[model]
        recipe = params.recipe_of(model)
        images = schedule.total_steps(recipe, num_images - recipe.held_out) * recipe.batch_size
        estimates.append(Estimate(key, None if speed is None else images / speed[0], speed[1] if speed else ""))
    return estimates


def remember_speed(workspace: Path, plan: Plan, provenance: Provenance) -> None:
    """Keep the speed of a training on this machine: better than any estimate."""
    cache = _read_cache(workspace)
    cache[_cache_key(plan)] = {"images_per_second": provenance.images_per_second, "measured": "training"}
    _write_cache(workspace, cache)


def announce_once(workspace: Path, show: Callable[[str], None]) -> None:
    """Before the first training of a `dvc repro`, say what it would train and how long that should take."""
    if FARM in os.environ:
        return  # which has said it
    asker = psutil.Process(os.getpid()).parents()
    dvc = next((p for p in asker if any("dvc" in part for part in p.cmdline()[:3])), None)
    if dvc is None:
        return
    mark, token = workspace / ".cache/announced", f"{dvc.pid} {dvc.create_time()}"
    if mark.is_file() and mark.read_text() == token:
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(token)
    params = load(workspace / "params.yaml")
    keys = stale_runs(workspace, params)
    if len(keys) > 1:
        show(describe(estimate(workspace, keys, params)))


def describe(estimates: Sequence[Estimate]) -> str:
    """The estimate as text for a console."""
    if not estimates:
        return "Every run is up to date: nothing would train."
    lines = [f"{len(estimates)} runs would train on {device_name(_device())}:"]
    for one in estimates:
        time_needed = "not measured" if one.seconds is None else duration(one.seconds)
        bound = " at most" if one.measured == "steps" else ""
        lines.append(f"  {one.run:24} {time_needed}{bound}")
    known = [one.seconds for one in estimates if one.seconds is not None]
    if known:
        missing = len(estimates) - len(known)
        also = f", and {missing} not measured" if missing else ""
        lines.append(f"  {'together':24} {duration(sum(known))}{also}")
    if _device() == "cpu" and sum(known) > 3600:
        lines.append("There is no GPU here. `make demo` shows the whole pipeline in a few minutes.")
    return "\n".join(lines)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _speed_of(plan: Plan, cache: dict[str, Any], deadline: float) -> tuple[float, str] | None:
    key = _cache_key(plan)
    if key not in cache and time.monotonic() < deadline:
        cache[key] = {"images_per_second": _measure(plan, deadline), "measured": "steps"}
    entry = cache.get(key)
    return (entry["images_per_second"], entry["measured"]) if entry else None


def _measure(plan: Plan, deadline: float) -> float:
    """Images per second of a few uncompiled training steps on random pixels; the first is not counted."""
    engine = resolve(plan.engine.model_copy(update={"mode": "eager"}))
    configure(engine)
    device, recipe = engine.torch_device, plan.recipe
    count = 5 * recipe.batch_size  # the epoch is never finished: a loss that is not finite takes as long
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    simple = recipe.preprocessing.model_copy(update={"kind": "pixel_mean", "mean": (), "std": ()})
    normalizer = preprocessing.fit(simple, pixels.numpy()).to(device)
    images = pad(recipe.augmentation, pixels.to(device), (torch.arange(count) % 10).to(device), normalizer)
    net = build_model(plan.architecture)
    initialize(net, recipe.initialization, 1, recipe.scales)
    trainer = Trainer(to_fastest_layout(net, device), recipe, images, 1, engine)
    times = [time.monotonic()]

    def stop() -> bool:
        synchronize(engine.device)
        times.append(time.monotonic())
        return len(times) > 5 or (len(times) > 3 and times[-1] > deadline)

    trainer.run_epoch(stop)
    steps = len(times) - 3  # the first two marks lie before the first step, whose time is not typical
    return steps * recipe.batch_size / (times[-1] - times[2])


def _plan_of(workspace: Path, params: Params, model: str) -> Plan:
    path = workspace / "plans" / f"{model}.json"
    return Plan.read(path) if path.is_file() else make_plan(params, model)


def _cache_key(plan: Plan) -> str:
    spec = plan.architecture.model_dump_json(exclude_defaults=True)
    return f"{device_name(_device())} torch {torch.__version__} batch {plan.recipe.batch_size} {spec}"


def _read_cache(workspace: Path) -> dict[str, Any]:
    path = workspace / CACHE
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _write_cache(workspace: Path, cache: dict[str, Any]) -> None:
    write_json(workspace / CACHE, cache)


def _md5(path: Path) -> str:
    import hashlib

    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

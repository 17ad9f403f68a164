"""Processes that die on purpose, and the small run that they train.

They are forked, in some hundredths of a second, from a server that has imported torch and MLflow already. What runs
in them is a function of an importable module, and its arguments are pickled.
"""

import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import stat
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML

from resnet_repro import evidence, experiment
from resnet_repro.data.arrays import CLASSES, Arrays, load_arrays
from resnet_repro.evaluation import Evaluator
from resnet_repro.evidence import Plan, Provenance, sha256_of
from resnet_repro.models import build_model
from resnet_repro.params import Architecture, Engine, Recipe

REPOSITORY = Path(__file__).parents[1]

FAMILIES: dict[str, dict[str, Any]] = {
    "plain": {"family": "plain", "depth": 8},
    "resnet": {"family": "resnet", "depth": 8},
    "bottleneck": {"family": "preact", "depth": 11, "block": "bottleneck"},
    "wide": {"family": "wide", "depth": 10, "widen_factor": 2, "dropout": 0.2},
}
NUM_IMAGES, BATCH_SIZE, EPOCHS, SIZE = 40, 8, 12, 8
STEPS = EPOCHS * NUM_IMAGES // BATCH_SIZE
PLAN = "plan.json"
POINTS = ("step", "before write", "within write", "before rename", "after rename", "evaluation")


def make_plan(family: str) -> Plan:
    architecture = Architecture.model_validate(FAMILIES[family])
    recipe = Recipe.model_validate(
        {
            "schedule": {
                "unit": "epochs",
                "stop": EPOCHS,
                "learning_rate": 0.05,
                "drops": [6],
                "drop_factor": 0.1,
                "warmup": {"learning_rate": 0.01, "until_train_error_percent": 85.0},
            },
            "batch_size": BATCH_SIZE,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 0.001,
            "initialization": "fan_out",
            "preprocessing": {"kind": "pixel_mean"},
            "augmentation": {"padding": 2},
            "held_out": 8,
        }
    )
    return Plan(
        model=family,
        recipe_name="small",
        layers=architecture.depth,
        parameters=sum(p.numel() for p in build_model(architecture).parameters()),
        architecture=architecture,
        recipe=recipe,
        engine=Engine(mode="eager", precision="fp32", threads=1, device="cpu"),
        fingerprint={},
    )


def make_arrays(size: int = SIZE) -> Arrays:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, NUM_IMAGES + 8, dtype=np.uint8)
    images = generator.integers(0, 256, (len(labels), 3, size, size), dtype=np.uint8)
    return Arrays(images, labels, images[:20].copy(), labels[:20].copy(), tuple(map(str, range(10))), sha256="0" * 64)


os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
CONTEXT = multiprocessing.get_context("forkserver")
SLOW_IMPORTS = (
    *("resnet_repro.experiment", "resnet_repro.reporting", "torch._inductor", "matplotlib.backends.backend_agg"),
    *("matplotlib.backends.backend_svg", "mlflow.store.tracking.sqlalchemy_store", "alembic.command", "pytest"),
)
CONTEXT.set_forkserver_preload(list(SLOW_IMPORTS))


def start(log: Path, work: Callable[..., object], *arguments: object, **environment: str) -> BaseProcess:
    """A process that calls `work`, with its output in `log`; `exitcode` is negative if a signal ended it."""
    process = CONTEXT.Process(target=_redirected, args=(log, environment, work, arguments), daemon=True)
    process.start()
    return process


def run(log: Path, work: Callable[..., object], *arguments: object, **environment: str) -> int | None:
    """`start`, and wait for its exit code."""
    process = start(log, work, *arguments, **environment)
    process.join()
    return process.exitcode


def _redirected(log: Path, environment: dict[str, str], work: Callable[..., object], arguments: tuple[Any]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with log.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    work(*arguments)


def run_script(workspace: Path, name: str, *arguments: str) -> None:
    """`python pipeline/NAME.py ARGUMENTS` in a workspace."""
    os.chdir(workspace)
    sys.argv = [name, *arguments]
    sys.path.insert(0, str(REPOSITORY / "pipeline"))  # as `python pipeline/NAME.py` does
    runpy.run_path(str(REPOSITORY / "pipeline" / f"{name}.py"), run_name="__main__")


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files below it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.utime"}


def dying(count: int, work: Callable[..., object], *arguments: object) -> None:
    """`work`, killed before the `count`-th time that it changes a folder or opens a file to write."""

    def hook(event: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        if event in CHANGES or (event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR)):
            count -= 1
            if count == 0:
                die()

    sys.addaudithook(hook)
    work(*arguments)


def write_arrays(folder: Path) -> Arrays:
    """The same, of CIFAR-10's size, as `prepare` would write them."""
    arrays = make_arrays(size=32)
    folder.mkdir(parents=True)
    (folder / CLASSES).write_text(json.dumps(arrays.classes))
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.save(folder / f"{name}.npy", getattr(arrays, name))
    return load_arrays(folder)


def write_params(workspace: Path) -> None:
    """The repository's parameters, for other arrays than CIFAR-10's."""
    tree = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    del tree["data"]["arrays"]
    (workspace / "params.yaml").write_text(json.dumps(tree))


def make_trained(workspace: Path) -> None:
    """What `python pipeline/evaluate.py run out` needs."""
    write_params(workspace)
    (workspace / PLAN).write_text(make_plan("resnet").to_json())
    train(workspace, arrays=write_arrays(workspace / "data/cifar10"))


class Silent:
    """An observer that kills at a step."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at

    def started(self, *_: object) -> None: ...
    def epoch_done(self, epochs: Sequence[object]) -> None: ...
    def saved(self, epochs: Sequence[object]) -> None: ...
    def interrupted(self, reason: str) -> None: ...
    def failed(self, reason: str) -> None: ...
    def stepped(self, step: int) -> None:
        if step == self.kill_at:
            die()


class Stop:
    """An interruption at a step."""

    reason = "the test says so"

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nth_call(function: Callable[..., Any], count: int, before: bool) -> Callable[..., Any]:
    """`function`, dying before or after its `count`-th call."""
    calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and before:
            die()
        result = function(*arguments, **named)
        if calls == count:
            die()
        return result

    return wrapped


def arm(point: str, count: int) -> None:
    """Make this process die at the `count`-th time that it comes to `point`."""
    if point == "before write":
        evidence.tempfile.mkstemp = nth_call(evidence.tempfile.mkstemp, count, before=True)  # type: ignore[attr-defined]
    elif point == "within write":  # the bytes are in the temporary file, not yet safe
        synced, counted = os.fsync, nth_call(os.fsync, count, before=True)
        evidence.os.fsync = lambda file: (synced if stat.S_ISDIR(os.fstat(file).st_mode) else counted)(file)  # type: ignore[attr-defined]
    elif point == "before rename":
        evidence.os.replace = nth_call(os.replace, count, before=True)  # type: ignore[attr-defined]
    elif point == "after rename":
        evidence.os.replace = nth_call(os.replace, count, before=False)  # type: ignore[attr-defined]
    elif point == "evaluation":
        Evaluator.error = nth_call(Evaluator.error, 2 * count, before=False)  # type: ignore[method-assign]


def make_folder(folder: Path, family: str) -> Path:
    """A folder to `train` in."""
    folder.mkdir(parents=True)
    (folder / PLAN).write_text(make_plan(family).to_json())
    return folder


def train(folder: Path, plan: Path | None = None, seed: int = 1, **options: Any) -> Provenance:
    """Train the small run in `folder`, with a checkpoint after each epoch."""
    options = {"observer": Silent(), "checkpoints": folder / "checkpoints", "checkpoint_seconds": 0.0} | options
    options = {"arrays": make_arrays()} | options
    return experiment.train(plan or folder / PLAN, seed, out=folder / "run", **options)


def train_and_die(folder: Path, point: str, count: int) -> None:
    arm(point, count)
    train(folder, observer=Silent(count if point == "step" else None))


def kill_run(folder: Path, family: str, kills: int, seed: int = 1) -> tuple[Counter[str], list[str]]:
    """Train, killed `kills` times, each process going on where the last died.

    Returns how often each point was hit, and the SHA-256 of the weights and of the history in the end.
    """
    make_folder(folder, family)
    choose, hits, weights = random.Random(seed), Counter[str](), set[str]()
    while True:
        killing = hits.total() < kills
        point, count = choose.choice(POINTS) if killing else "never", choose.randint(1, 2)
        if point == "step":
            count = _last_step(folder) + choose.randint(1, STEPS // 4)
        exitcode = run(folder / "log", train_and_die, folder, point, count)
        if exitcode == -signal.SIGKILL:
            hits[point] += 1
            continue
        assert exitcode == 0, (folder / "log").read_text()
        weights.add(sha256_of(folder / "run" / evidence.WEIGHTS))
        if not killing:
            break
        shutil.rmtree(folder / "checkpoints")  # it got to the end before the point: start over, and go on killing
    assert len(weights) == 1
    assert _last_step(folder) == STEPS, "the end is kept, for a stage that is stopped after it"
    return hits, [*weights, sha256_of(folder / "run" / evidence.HISTORY)]


def _last_step(folder: Path) -> int:
    found = sorted(folder.glob("checkpoints/*/*/step-*.safetensors"))
    return int(found[-1].stem.removeprefix("step-")) if found else 0

"""Train a small run in child processes that kill themselves with SIGKILL, each going on where the last died.

    python tests/killing.py FOLDER FAMILY KILLS SEED

prints JSON: how often each point was hit, and the SHA-256 of the weights and of the history in the end.
Forks after torch is imported, so that fifty kills take seconds. FAMILY is a key of FAMILIES; KILLS 0 is the
unbroken run.
"""

import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_repro import evidence, experiment
from resnet_repro.data.arrays import Arrays
from resnet_repro.evaluation import Evaluator
from resnet_repro.evidence import Plan, sha256_of
from resnet_repro.models import build_model
from resnet_repro.params import Architecture, Engine, Recipe

FAMILIES: dict[str, dict[str, Any]] = {
    "plain": {"family": "plain", "depth": 8},
    "resnet": {"family": "resnet", "depth": 8},
    "bottleneck": {"family": "preact", "depth": 11, "block": "bottleneck"},
    "wide": {"family": "wide", "depth": 10, "widen_factor": 2, "dropout": 0.2},
}
NUM_IMAGES, BATCH_SIZE, EPOCHS, SIZE = 40, 8, 12, 8
STEPS = EPOCHS * NUM_IMAGES // BATCH_SIZE
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


def make_arrays() -> Arrays:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, NUM_IMAGES + 8, dtype=np.uint8)
    images = generator.integers(0, 256, (len(labels), 3, SIZE, SIZE), dtype=np.uint8)
    return Arrays(images, labels, images[:20].copy(), labels[:20].copy(), tuple(map(str, range(10))), sha256="0" * 64)


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
        evidence.os.fsync = nth_call(os.fsync, 2 * count - 1, before=True)  # type: ignore[attr-defined]
    elif point == "before rename":
        evidence.os.replace = nth_call(os.replace, count, before=True)  # type: ignore[attr-defined]
    elif point == "after rename":
        evidence.os.replace = nth_call(os.replace, count, before=False)  # type: ignore[attr-defined]
    elif point == "evaluation":
        Evaluator.error = nth_call(Evaluator.error, 2 * count, before=False)  # type: ignore[method-assign]


def train(folder: Path, plan: Path, arrays: Arrays, observer: Silent) -> None:
    experiment.train(plan, 1, arrays, folder / "run", folder / "checkpoints", observer, checkpoint_seconds=0.0)


def main(folder: Path, family: str, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "plan.json"
    plan.write_text(make_plan(family).to_json())
    arrays, choose, hits = make_arrays(), random.Random(seed), Counter[str]()
    while True:
        killing = sum(hits.values()) < kills
        point = choose.choice(POINTS)
        count = choose.randint(1, 2)
        progress = choose.randint(1, STEPS // 4)
        if (pid := os.fork()) == 0:
            step = None
            if killing and point == "step":
                step = _last_step(folder) + progress
            elif killing:
                arm(point, count)
            with (folder / "log").open("a") as log:
                os.dup2(log.fileno(), 1)
            train(folder, plan, arrays, Silent(step))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            hits[point] += 1
            continue
        assert os.waitstatus_to_exitcode(status) == 0, (folder / "log").read_text()
        if killing:  # it got to the end before it came to the point: start over, and go on killing
            done = sha256_of(folder / "run" / evidence.WEIGHTS)
            previous = folder / "done"
            assert not previous.exists() or previous.read_text() == done
            previous.write_text(done)
            continue
        break
    assert not list((folder / "checkpoints" / f"{family}-1").glob("*/*.safetensors")), "left behind"
    digests = {name: sha256_of(folder / "run" / name) for name in (evidence.WEIGHTS, evidence.HISTORY)}
    print(json.dumps({"hits": hits, "digests": digests}))


def _last_step(folder: Path) -> int:
    found = sorted(folder.glob("checkpoints/*/*/step-*.safetensors"))
    return int(found[-1].stem.removeprefix("step-")) if found else 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

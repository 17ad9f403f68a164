"""One contestant of a benchmark, in a process of its own: reads a number of seconds, trains that long, and answers
with images per second, and the trainer with when it had trained how many. Started by speed.py and scale.py.

    python benchmarks/worker.py VARIANT MODEL [MODE]
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from baseline import plain_loop
from resnet_repro import experiment
from resnet_repro.data.arrays import Arrays, load_arrays
from resnet_repro.engine import (
    ResolvedEngine,
    configure,
    device_name,
    peak_memory_bytes,
    resolve,
    synchronize,
)
from resnet_repro.evaluation import batches
from resnet_repro.evidence import Plan
from resnet_repro.models import build_model, count_flops
from resnet_repro.params import load

DATA = Path("data/cifar10")
OTHER_WAYS: dict[str, dict[str, Any]] = {"fp32": {"precision": "fp32"}, "not deterministic": {"deterministic": False}}


class FixedBatch:
    """Data that costs nothing: one batch that lies ready on the device, as a trainer's images."""

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor) -> None:
        self.images, self.labels, self.mean = images, labels, mean

    def take(self, index: Tensor, row: Tensor, column: Tensor, flip: Tensor) -> Tensor:
        return self.images


def timed(trainer: Any, engine: ResolvedEngine, marks: list[tuple[float, int]]) -> Callable[[float], float]:
    """`marks`: when (the machine's clock, seconds) how many images had been trained, of the last turn."""

    def run(seconds: float) -> float:
        first, size = trainer.step, trainer.recipe.batch_size

        def mark() -> None:
            synchronize(engine.device)
            marks.append((time.monotonic(), (trainer.step - first) * size))

        def over() -> bool:
            if engine.device != "cuda" or trainer.step % 50 == 0:
                mark()  # on CUDA the host would else run ahead of what is timed
            return time.monotonic() - began >= seconds

        marks.clear()
        mark()
        began = marks[0][0]
        while time.monotonic() - began < seconds:
            trainer.run_epoch(over)
        mark()
        return marks[-1][1] / (marks[-1][0] - began)

    return run


def peak_arithmetic(engine: ResolvedEngine) -> float:
    """Multiply-adds count as two: FLOP/s of the best of some matrix products in the engine's precision."""
    dtype = torch.bfloat16 if engine.precision == "bf16" else torch.float32
    size = 8192 if engine.device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=engine.torch_device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronize(engine.device)
        began = time.perf_counter()
        a @ b
        synchronize(engine.device)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def main(variant: str, model: str, mode: str = "auto") -> None:
    params = load(Path("params.yaml"))
    plan = Plan.read(Path("plans") / f"{model}.json") if _planned(model) else _plan(params, model)
    endless = plan.recipe.schedule.model_copy(update={"stop": 10**9})
    same = {"batch_size": 128, "last_batch": "drop", "schedule": endless}
    plan = plan.model_copy(update={"recipe": plan.recipe.model_copy(update=same)})
    engine = resolve(params.engine.model_copy(update={"mode": mode, **OTHER_WAYS.get(variant, {})}))
    arrays: Arrays = load_arrays(DATA)
    system = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    facts: dict[str, Any] = {"engine": str(engine), "device": device_name(engine.device), "system": system}
    parts, marks = None, list[tuple[float, int]]()
    if variant == "plain":
        run = plain_loop(build_model(plan.architecture), arrays.train_images, arrays.train_labels, 128, engine)
    else:
        configure(engine)
        parts = experiment.assemble(plan, 1, arrays, engine)
        trainer: Any = parts.trainer
        if variant == "ceiling":
            batch = torch.arange(128, device=engine.torch_device)
            views = trainer._views
            fixed = trainer.images.take(views.index[batch], views.row[batch], views.column[batch], views.flip[batch])
            fixed = fixed.contiguous(memory_format=torch.channels_last)
            trainer.images = FixedBatch(fixed, trainer.images.labels, trainer.images.mean)
        run = timed(trainer, engine, marks)
        run(0.0)  # no step
        trainer.run_epoch(lambda first=trainer.step: trainer.step > first)
        synchronize(engine.device)
        facts["first_step_seconds"] = time.time() - psutil.Process().create_time()
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        print(json.dumps({"images_per_second": run(float(line)), "marks": marks}), flush=True)
    last: dict[str, Any] = {"peak_memory_bytes": peak_memory_bytes(engine.device)}
    if variant == "engine" and parts is not None:
        for _ in range(2):  # the first compiles
            began = time.perf_counter()
            parts.evaluator.error(batches(*parts.test, parts.normalizer))
            last["evaluation_seconds"] = time.perf_counter() - began
        began = time.perf_counter()
        parts.trainer.state()
        last["state_seconds"] = time.perf_counter() - began
        last["peak_flops_per_second"] = peak_arithmetic(engine)
        last["flops_per_image"] = count_flops(plan.architecture)
        last["parameters"] = plan.parameters
    print(json.dumps(last), flush=True)


def _planned(model: str) -> bool:
    return (Path("plans") / f"{model}.json").is_file()


def _plan(params: Any, model: str) -> Plan:
    from resnet_repro.plan import make_plan

    return make_plan(params, model)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""`make bench`: the engine against the plain loop and against its own ceiling -> reports/speed.md, speed/.

Each contestant is a process that waits for its turn; they take turns, so that a machine whose speed drifts is
fair to all. The engine trains as `train` does; the plain loop is baseline.py; the ceiling is the engine's step
on one fixed batch, without data and logging. With the first net the engine also runs in other ways, which shows
what determinism costs and what bf16 gains.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import matplotlib as mpl
import pandas as pd
import seaborn as sns
import torch

from resnet_repro.reporting.tables import markdown

MODELS = ("resnet20", "resnet56", "resnet110", "preact164", "wrn16_4")
VARIANTS = ("engine", "plain", "ceiling")
OTHER_WAYS = ("not deterministic", "fp32")
REPORT, FOLDER = Path("reports/speed.md"), Path("reports/speed")
STEPS = 64_000


class Contestant:
    def __init__(self, variant: str, model: str, mode: str) -> None:
        self.name = f"{variant} {model}"
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), variant, model, mode]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts: dict[str, Any] = self._answer()
        self.rates: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def turn(self, seconds: float, counts: bool = True) -> None:
        rate = self._ask(str(seconds))["images_per_second"]
        if counts:
            self.rates.append(rate)

    def end(self) -> None:
        self.facts |= self._ask("end")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"a contestant ended with {self.process.wait()}: {self.name}")


def bench(model: str, mode: str, seconds: float, rounds: int, variants: Sequence[str]) -> dict[str, Any]:
    # once before, so that the start that is measured finds the compiler's cache warm
    with Contestant("engine", model, mode) as warm:
        warm.end()
    with ExitStack() as stack:
        contestants = {name: stack.enter_context(Contestant(name, model, mode)) for name in variants}
        for one in contestants.values():
            one.turn(seconds / 4, counts=False)
        for _ in range(rounds):
            for one in contestants.values():
                one.turn(seconds)
        for one in contestants.values():
            one.end()
    rates = {name: one.rates for name, one in contestants.items()}
    result = {"model": model, "rates": rates, **{f"{n}_facts": c.facts for n, c in contestants.items()}}
    print(json.dumps(result), flush=True)
    return result


def table(results: list[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for result in results:
        rates, facts = result["rates"], result["engine_facts"]
        engine = statistics.median(rates["engine"])
        epoch = 50_000 / engine
        evaluation = facts["evaluation_seconds"]
        share = engine * facts["flops_per_image"] / facts["peak_flops_per_second"]
        rows.append(
            {
                "model": result["model"],
                "engine, images/s": f"{engine:,.0f}",
                "plain loop": f"{statistics.median(rates['plain']):,.0f}",
                "ceiling": f"{statistics.median(rates['ceiling']):,.0f}",
                "engine / plain": f"{ratio(rates, 'plain'):.2f}",
                "engine / ceiling": f"{ratio(rates, 'ceiling'):.3f}",
                "64,000 steps": _minutes(STEPS * 128 / engine),
                "evaluation, share": f"{100 * evaluation / (epoch + evaluation):.1f}%",
                "checkpoint, share": f"{100 * facts['state_seconds'] / max(epoch, 10):.2f}%",
                "peak memory": f"{facts['peak_memory_bytes'] / 1e9:.2f} GB",
                "start to first step": f"{facts['first_step_seconds']:.1f} s",
                "share of peak": f"{100 * share:.1f}%",
            }
        )
    return pd.DataFrame(rows)


def ratio(rates: dict[str, list[float]], to: str) -> float:
    """The engine's speed over another's, turn by turn, so that a drift of the machine cancels: the median."""
    return statistics.median(a / b for a, b in zip(rates["engine"], rates[to], strict=True))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def plot(results: list[dict[str, Any]]) -> None:
    rows = [
        {"model": r["model"], "": name, "images/s": rate}
        for r in results
        for name in VARIANTS
        for rate in r["rates"][name]
    ]
    mpl.use("Agg")
    with mpl.rc_context({"svg.hashsalt": "speed", "figure.dpi": 120}):
        sns.set_theme(style="ticks", palette="colorblind")
        grid = sns.catplot(pd.DataFrame(rows), kind="bar", x="model", y="images/s", hue="", height=4, aspect=1.9)
        grid.ax.set_yscale("log")
        grid.ax.set_xlabel("")
        sns.move_legend(grid, "upper right", bbox_to_anchor=(0.85, 0.95))
        FOLDER.mkdir(parents=True, exist_ok=True)
        grid.savefig(FOLDER / "speed.png", metadata={"Software": None})
        grid.savefig(FOLDER / "speed.svg", metadata={"Date": None, "Creator": None})


def section(results: list[dict[str, Any]]) -> str:
    facts, rates = results[0]["engine_facts"], results[0]["rates"]
    peak, turns = facts["peak_flops_per_second"], len(rates["engine"])
    other_ways = "; ".join(
        f"{name}: {statistics.median(rates[name]):,.0f} images/s, the engine is {ratio(rates, name):.2f} times as fast"
        for name in OTHER_WAYS
        if name in rates
    )
    return "\n\n".join(
        [
            f"## {facts['device']}",
            f"{facts['engine']}; {facts['system']}; batches of 128; medians of {turns} turns. "
            f"Peak: {peak / 1e12:.2f} TFLOP/s, measured by a matrix product in the same precision.",
            markdown(table(results)),
            *([f"{results[0]['model']} in other ways: {other_ways}."] if other_ways else []),
        ]
    )


INTRODUCTION = """# Speed

*Written by `make bench` (benchmarks/speed.py); do not edit.*

**Engine**: training steps as `train` does them. **Plain loop**: torchvision transforms on PIL images, a
DataLoader with workers, eager float32, `.item()` at every step. **Ceiling**: the engine's step on one fixed batch
that lies on the device, no data, no logging. Ratios are medians of the ratios turn by turn. Shares: of an epoch
with its evaluation of 10,000 test images; of the time between two checkpoints. Start: from the process's start,
imports and data included, with a warm compiler cache."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = []
    for index, model in enumerate(arguments.models):
        variants = (*VARIANTS, *OTHER_WAYS) if index == 0 else VARIANTS
        results.append(bench(model, arguments.mode, arguments.seconds, arguments.rounds, variants))
    device = "gpu" if torch.cuda.is_available() else "cpu"
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{device}.json").write_text(json.dumps(results, indent=1) + "\n")
    stored = {name: FOLDER / f"{name}.json" for name in ("gpu", "cpu")}
    sections = [
        section(json.loads(path.read_text())) if path.is_file() else f"## {name.upper()}\n\nNot measured."
        for name, path in stored.items()
    ]
    plot(results)
    text = "\n\n".join([INTRODUCTION, *sections, "![speed](speed/speed.png)"])
    REPORT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Workspaces with made-up evidence whose numbers are known beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from resnet_repro import params
from resnet_repro.data.arrays import CARD, FILES, SAMPLES
from resnet_repro.evidence import (
    METRICS,
    PLAN,
    PREDICTIONS,
    PROVENANCE,
    Epoch,
    Metrics,
    Plan,
    Provenance,
    write_epochs,
    write_json,
    write_predictions,
)

REPOSITORY = Path(__file__).parents[1]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_TEST_IMAGES = 1000
TINY_MODELS = {
    "plain8": {"architecture": {"family": "plain", "depth": 8}, "recipe": "he2015_brief"},
    "resnet8": {"architecture": {"family": "resnet", "depth": 8}, "recipe": "he2015_brief"},
    "resnet11": {
        "architecture": {"family": "resnet", "depth": 11, "block": "bottleneck"},
        "recipe": "he2015_brief",
    },
    "preact8": {"architecture": {"family": "preact", "depth": 8}, "recipe": "he2015_brief"},
    "wrn10_2": {"architecture": {"family": "wide", "depth": 10, "widen_factor": 2}, "recipe": "he2015_brief"},
}


@dataclass(frozen=True)
class FakeRun:
    """A run of a model of the repository's `params.yaml` (or of `TINY_MODELS`) with a known outcome."""

    model: str
    seed: int = 1
    test_error_percent: float = 8.0
    lowest_test_error_percent: float | None = None
    """default: 0.2 points below the last"""
    precision: str = "bf16"
    device: str = "cuda"

    @property
    def key(self) -> str:
        return f"{self.model}-{self.seed}"

    @property
    def lowest(self) -> float:
        given = self.lowest_test_error_percent
        return self.test_error_percent - 0.2 if given is None else given


def write_workspace(
    workspace: Path,
    runs: Sequence[FakeRun],
    not_run: Sequence[FakeRun] = (),
    unnamed: Sequence[FakeRun] = (),
    ablations: Sequence[FakeRun] = (),
) -> Path:
    """params.yaml, plans/, reports/runs/ and reports/data/ of a workspace.

    `not_run` stand in `params.yaml` without evidence, `unnamed` have evidence and do not stand there.
    """
    tree = YAML().load(REPOSITORY / "params.yaml")
    tree["models"] |= TINY_MODELS
    tree["ablations"] = {run.key: {"model": run.model, "seed": run.seed} for run in ablations}
    workspace.mkdir(parents=True, exist_ok=True)
    _write_params(tree, (*runs, *not_run, *unnamed), workspace)
    every = params.load(workspace / "params.yaml")
    for model in every.planned_models:
        path = workspace / "plans" / f"{model}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(plan_of(every, model).to_json(), encoding="utf-8")
    for run in (*runs, *unnamed):
        write_run(workspace / "reports" / "runs", plan_of(every, run.model), run)
    for run in ablations:
        write_run(workspace / "reports" / "ablations" / "runs", plan_of(every, run.model), run)
    _write_params(tree, (*runs, *not_run), workspace)
    write_data_card(workspace / "reports" / "data")
    return workspace


def plan_of(tree: params.Params, model: str) -> Plan:
    """A plan with a made-up fingerprint and parameter count (1,000 per layer)."""
    architecture = tree.models[model].architecture
    return Plan(
        model=model,
        recipe_name=tree.models[model].recipe,
        layers=architecture.depth,
        parameters=1000 * architecture.depth,
        architecture=architecture,
        recipe=tree.recipe_of(model),
        engine=tree.engine_of(model),
        fingerprint={"weights": "0" * 16},
    )


def write_run(runs: Path, plan: Plan, run: FakeRun) -> None:
    folder = runs / run.key
    folder.mkdir(parents=True)
    (folder / PLAN).write_text(plan.to_json(), encoding="utf-8")
    history = epochs(plan, run)
    write_epochs(folder, history)
    held_out = bool(plan.recipe.held_out)
    write_json(
        folder / METRICS,
        Metrics(
            model=run.model,
            seed=run.seed,
            steps=history[-1].step,
            epochs=len(history),
            num_test_images=NUM_TEST_IMAGES,
            test_error_percent=run.test_error_percent,
            test_loss=0.4,
            lowest_test_error_percent=run.lowest,
            lowest_test_error_epoch=len(history) - 1,
            best_validation_epoch=len(history) - 2 if held_out else None,
            best_validation_error_percent=6.0 if held_out else None,
            best_validation_test_error_percent=run.test_error_percent + 0.1 if held_out else None,
            train_error_percent=history[-1].train_error_percent,
            train_loss=history[-1].train_loss,
            confusion=confusion(run).tolist(),
        ),
    )
    write_json(
        folder / PROVENANCE,
        Provenance(
            uid=f"{run.key}-uid",
            model=run.model,
            seed=run.seed,
            started_at=1.7e9,
            finished_at=1.7e9 + 5400,
            duration_seconds=5400.0,
            device=run.device,
            device_name="NVIDIA H100 80GB HBM3" if run.device == "cuda" else "x86_64",
            mode="graphed" if run.device == "cuda" else "eager",
            precision=run.precision,
            threads=1,
            deterministic=True,
            images_per_second=12345.6,
            versions={"torch": "2.15.0", "python": "3.12.3"},
            platform="Linux",
            git_commit="0123456789abcdef0123456789abcdef01234567",
            git_dirty=False,
            data_sha256="d" * 64,
            plan_sha256="e" * 64,
            weights_sha256="f" * 64,
        ),
    )
    labels, probabilities = predictions(run)
    write_predictions(folder / PREDICTIONS, labels, probabilities)


def epochs(plan: Plan, run: FakeRun) -> list[Epoch]:
    """Curves that fall at every drop of the learning rate and end where the run ends."""
    schedule = plan.recipe.schedule
    per_epoch = -(-(50_000 - plan.recipe.held_out) // plan.recipe.batch_size)
    stop = schedule.stop if schedule.unit == "steps" else schedule.stop * per_epoch
    drops = schedule.drops if schedule.unit == "steps" else [drop * per_epoch for drop in schedule.drops]
    random = np.random.default_rng([run.seed, *run.model.encode()])
    rows: list[Epoch] = []
    for epoch in range(1, -(-stop // per_epoch) + 1):
        step = min(epoch * per_epoch, stop)
        passed = sum(step > drop for drop in drops)
        slow = np.exp(-6 * step / stop)
        test = run.test_error_percent + (9.0, 1.0, 0.0)[min(passed, 2)] + 45 * slow**2
        train = max(0.3, test - (0.5, 5.5, 6.5)[min(passed, 2)] + 1.5 * slow)
        noise = random.normal(0, (1.2, 0.15, 0.06)[min(passed, 2)])
        rows.append(
            Epoch(
                epoch=epoch,
                step=step,
                learning_rate=schedule.learning_rate * schedule.drop_factor**passed,
                train_loss=0.035 * train,
                train_error_percent=train,
                test_loss=0.04 * test,
                test_error_percent=run.test_error_percent if step == stop else float(test + abs(noise)),
                validation_loss=0.04 * test if plan.recipe.held_out else None,
                validation_error_percent=float(test) if plan.recipe.held_out else None,
                seconds=33.0,
                train_seconds=30.0,
                images_per_second=12345.6,
                finished_at=1.7e9 + 33.0 * epoch,
            )
        )
    return rows


def predictions(run: FakeRun) -> tuple[np.ndarray, np.ndarray]:
    """(labels, probabilities) with round(error * 10) mistakes among 1,000 images, each for the next class."""
    labels = np.arange(NUM_TEST_IMAGES) % 10
    wrong = np.arange(NUM_TEST_IMAGES) < round(run.test_error_percent * NUM_TEST_IMAGES / 100)
    predicted = (labels + wrong) % 10
    probabilities = np.full((NUM_TEST_IMAGES, 10), 0.01)
    probabilities[np.arange(NUM_TEST_IMAGES), predicted] = 0.91
    return labels, probabilities


def confusion(run: FakeRun) -> np.ndarray:
    labels, probabilities = predictions(run)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts


def write_data_card(folder: Path) -> None:
    """A card of CIFAR-10's figures with made-up images: gradients, another hue per class."""
    folder.mkdir(parents=True)
    ramp = np.linspace(0, 1, 32)
    hues = np.random.default_rng(0).uniform(0.2, 1.0, (10, 4, 3, 1, 1))
    images = (255 * np.add.outer(ramp, ramp) / 2 * hues).astype(np.uint8)
    np.savez_compressed(folder / SAMPLES, train=images, test=images[:, ::-1])
    means, stds = [0.491401, 0.482159, 0.446531], [0.247032, 0.243485, 0.261588]
    splits = {
        split: {
            "num_images": 10 * per_class,
            "images_per_class": dict.fromkeys(CLASSES, per_class),
            "channel_mean": means,
            "channel_std": stds,
        }
        for split, per_class in (("train", 5_000), ("test", 1_000))
    }
    files = dict.fromkeys(FILES, "a" * 64)
    write_json(folder / CARD, {"sha256": "c" * 64, "files": files, "classes": list(CLASSES), "splits": splits})


def _write_params(tree: dict[str, Any], runs: Sequence[FakeRun], workspace: Path) -> None:
    tree["runs"] = {run.key: {"model": run.model, "seed": run.seed} for run in runs}
    YAML().dump(tree, workspace / "params.yaml")

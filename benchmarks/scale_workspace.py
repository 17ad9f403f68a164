"""Workspaces for scale.py, in temporary folders: small nets that train, and hundreds of runs with stand-in results."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from dvc.repo import Repo
from ruamel.yaml import YAML
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from resnet_repro import demo, evidence
from resnet_repro.data.digits import write_digits_archive
from resnet_repro.params import Params, Run
from resnet_repro.tracking import connect

IDENTITY = ("-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "commit.gpgsign=false")
PAGE_SECONDS = 300.0


class Workspace:
    """The sources of the working tree in a folder of their own, and commands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = demo.demo_environment(folder / demo.ARCHIVE) | {
            "PYTHONPATH": str(folder / "src"),
            "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, *command: str) -> float:
        """Seconds that a command takes.

        Raises:
            SystemExit: it failed; with what it said.
        """
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed in {self.folder}:\n{done.stdout}")
        return time.monotonic() - began

    def copy(self, name: str) -> "Workspace":
        return Workspace(shutil.copytree(self.folder, self.folder.with_name(name)))

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", *IDENTITY, "commit", "--quiet", "--message", "bench")


@contextmanager
def small_nets(runs: int, epochs: int) -> Iterator[tuple[Workspace, list[Run]]]:
    """The demo's smallest residual net with as many seeds, all ready to train."""
    with _workspace() as workspace:
        params = YAML(typ="safe").load(Path(demo.__file__).with_name("demo.yaml"))
        model, chosen = "resnet8", [Run(model="resnet8", seed=seed) for seed in range(1, runs + 1)]
        archive = workspace.folder / demo.ARCHIVE
        archive.parent.mkdir()
        params["data"]["members"] = write_digits_archive(archive)
        params["recipes"]["demo"]["schedule"] |= {"stop": epochs, "drops": []}
        params["models"] = {model: params["models"][model]}
        params["recipes"] = {"demo": params["recipes"]["demo"]}
        _set_runs(workspace, params, {f"{run.model}-{run.seed}": run for run in chosen})
        workspace.run("dvc", "repro", "prepare", "plan")
        workspace.commit()
        yield workspace, chosen


def bare(run: Run) -> list[tuple[str, ...]]:
    """What DVC would call for a run."""
    key = f"{run.model}-{run.seed}"
    return [
        ("python", "pipeline/train.py", run.model, str(run.seed), f"runs/{key}"),
        ("python", "pipeline/evaluate.py", f"runs/{key}", f"reports/runs/{key}"),
    ]


@contextmanager
def up_to_date(params: Params, runs: int) -> Iterator[Workspace]:
    """As many runs of the models of params.yaml that DVC takes for done: their results are stand-ins."""
    with _workspace() as workspace:
        tree = YAML(typ="safe").load(Path("params.yaml"))
        _set_runs(workspace, tree, some_runs(params, runs))
        shutil.rmtree(workspace.folder / "ablations")
        with Repo(workspace.folder) as repo:
            stages = repo.index.stages
            paths = [Path(one.fs_path) for stage in stages for one in (*stage.outs, *stage.deps)]
        for path in paths:
            if path.exists():
                continue
            for file in [path] if path.suffix else [path / f"{number}.csv" for number in range(6)]:  # as of a run
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{file}\n")
        workspace.run("dvc", "commit", "--force", "--quiet")
        workspace.commit()
        yield workspace


@contextmanager
def evaluated(params: Params, runs: int, epochs: int) -> Iterator[Workspace]:
    """As many runs with random evidence, as `evaluate` writes it, and no weights, as after a clone."""
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Workspace(Path(temporary).resolve() / "workspace")
        for run in some_runs(params, runs).values():
            _write_evidence(workspace.folder, params, run, epochs)
        yield workspace


def some_runs(params: Params, number: int) -> dict[str, Run]:
    """Every model with seed 1, then with seed 2, and so on."""
    every = (Run(model=model, seed=seed) for seed in count(1) for model in params.models)
    return {f"{run.model}-{run.seed}": run for run in islice(every, number)}


def seconds_of_pages(workspace: Workspace, numbers: Sequence[int], screenshots: Path) -> dict[str, float]:
    """Until MLflow's UI, in headless Chromium, shows its table of all runs, and the comparison of that many."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    store = connect(workspace.folder)
    found = store.client.search_runs([store.experiment_id], "tags.stage = 'train'", max_results=max(numbers))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["resnet-repro", "ui", "--port", str(port)]
    server = subprocess.Popen(
        command, cwd=workspace.folder, env=workspace.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = next(line for line in server.stdout if "http:" in line).split()[2]
        experiment = f"{url}/#/experiments/{store.experiment_id}/runs?workflowType=machine_learning"
        pages: dict[str, tuple[str, ...]] = {
            "table of all runs": (f"{experiment}&compareRunsMode=TABLE", found[0].info.run_name)
        }
        for number in numbers:
            chosen = ",".join(f'"{run.info.run_id}"' for run in found[:number])
            address = f'{url}/#/compare-runs?runs=[{chosen}]&experiments=["{store.experiment_id}"]'
            pages[f"compare {number} runs"] = (address, f"Comparing {number} Runs", "recipe.weight_decay")
        with _chrome() as browser:
            seconds = {}
            for name, (address, *words) in pages.items():
                seconds[name] = _until(browser, address, words)
                screenshots.mkdir(parents=True, exist_ok=True)
                browser.save_screenshot(str(screenshots / f"{name.replace(' ', '_')}.png"))
            return seconds
    finally:
        server.terminate()
        server.wait()


@contextmanager
def _workspace() -> Iterator[Workspace]:
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Workspace(Path(temporary).resolve() / "workspace")
        demo.copy_sources(Path(), workspace.folder)
        workspace.run("git", "init", "--quiet")
        yield workspace


def _set_runs(workspace: Workspace, tree: dict[str, object], runs: dict[str, Run]) -> None:
    tree |= {"runs": {key: run.model_dump() for key, run in runs.items()}, "ablations": {}, "ablation_groups": {}}
    YAML().dump(tree, workspace.folder / "params.yaml")


def _write_evidence(folder: Path, params: Params, run: Run, epochs: int) -> None:
    """Random numbers in what a committed run has left."""
    draw, key = np.random.default_rng(run.seed), f"{run.model}-{run.seed}"
    like = evidence.RunEvidence.read(next(Path("reports/runs").glob("*/metrics.json")).parent)
    recipe = params.recipe_of(run.model)
    plan = like.plan.model_copy(
        update={"model": run.model, "architecture": params.models[run.model].architecture, "recipe": recipe}
    )
    who = run.model_dump() | {"uid": key, "files_sha256": {}, "sha256": ""}
    rows = []
    for epoch in range(1, epochs + 1):
        row: dict[str, Any] = {field.name: draw.uniform(1, 90) for field in fields(evidence.Epoch)}
        row |= {"epoch": epoch, "step": 391 * epoch, "finished_at": like.provenance.started_at + 10 * epoch}
        if not recipe.held_out:
            row |= {"validation_loss": None, "validation_error_percent": None}
        rows.append(evidence.Epoch(**row))
    out = folder / "reports/runs" / key
    out.mkdir(parents=True)
    (out / evidence.PLAN).write_text(plan.to_json())
    like.provenance.model_copy(update=who).write(out / evidence.PROVENANCE)
    evidence.write_json(out / evidence.METRICS, like.metrics.model_copy(update=run.model_dump()))
    evidence.write_epochs(out, rows)


@contextmanager
def _chrome() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    size = "--window-size=1600,1000"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", size):
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"))) as browser:
        yield browser


def _until(browser: webdriver.Chrome, address: str, words: Sequence[str]) -> float:
    """Seconds until the page at the address says all of the words."""

    def said(_: object) -> bool:
        return all(word in browser.find_element(By.TAG_NAME, "body").text for word in words)

    browser.get("about:blank")  # an address that differs in its #fragment only would load nothing
    began = time.monotonic()
    browser.get(address)
    WebDriverWait(browser, PAGE_SECONDS, 0.2, [StaleElementReferenceException]).until(said, f"{words} not on {address}")
    return time.monotonic() - began

"""The pipeline as a user sees it: on the demo's plan, really run, and on a clean clone of this repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from resnet_repro.demo import ARCHIVE, demo_environment
from resnet_repro.evidence import RunEvidence
from resnet_repro.params import load

ROOT = Path(__file__).parent.parent
FAMILIES = {"plain8", "resnet8", "preact8", "bottleneck11", "wide10_2"}

pytestmark = pytest.mark.xdist_group("demo")


@pytest.fixture
def workspace(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo's clone to change things in, without its database."""
    copy = tmp_path / "workspace"
    shutil.copytree(demo, copy, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", "__pycache__"))
    return copy


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def _run(workspace: Path, *command: str, **extra: str) -> str:
    """Run a command in a workspace, with the code of the workspace; its output."""
    environment = demo_environment(workspace / ARCHIVE) | {"PYTHONPATH": str(workspace / "src")} | extra
    done = subprocess.run(
        command, cwd=workspace, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _stale(workspace: Path) -> set[str]:
    """The train and evaluate stages that would run, once `plan` has."""
    _run(workspace, "dvc", "repro", "--single-item", "plan")
    out = _run(workspace, sys.executable, "-c", "import json, dvc.repo; print(json.dumps(dvc.repo.Repo().status()))")
    return set(re.findall(r"(?:train|evaluate)@[\w-]+", out.splitlines()[-1]))


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
    path.write_text(text.replace(old, new))


class TestDemo:
    def test_every_run_is_trained_and_learned_something(self, demo: Path) -> None:
        params = load(demo / "params.yaml")
        runs = {key: RunEvidence.read(demo / "reports" / "runs" / key) for key in params.runs}
        assert {run.plan.model for run in runs.values()} == FAMILIES
        for key, run in runs.items():
            assert run.metrics.test_error_percent < 40, key  # ten digits: guessing gives 90
            assert run.metrics.steps == run.history.step.iloc[-1]
            assert run.history.epoch.tolist() == list(range(1, run.metrics.epochs + 1))

    def test_the_table_has_every_family(self, demo: Path) -> None:
        table = (demo / "reports" / "README.md").read_text()
        for model in FAMILIES:
            row = next(line for line in table.splitlines() if line.startswith("|") and model in line)
            assert re.search(r"\d+\.\d\d", row), row

    def test_nothing_is_stale_afterwards(self, demo: Path) -> None:
        assert "up to date" in _run(demo, "dvc", "status")

    def test_ablations_run_only_when_named(self, demo: Path) -> None:
        """`report` must not lead to them, and they must not lead to the rows of the table."""
        main, ablations = (
            _run(demo, "dvc", "repro", "--dry", "--force", *what) for what in ((), ("ablations/dvc.yaml",))
        )
        assert "evaluate@resnet8-1" in main
        assert "resnet8_option_b" not in main
        assert "evaluate@resnet8_option_b-1" in ablations
        assert "train@resnet8-1" not in ablations

    def test_ablations_have_their_page(self, demo: Path) -> None:
        page = (demo / "reports/ablations/README.md").read_text()
        line = next(line for line in page.splitlines() if "`resnet8_option_b`" in line)
        assert re.search(r"\d+\.\d\d \(2\)", line), line

    def test_seeds_of_one_model_differ_and_share_their_plan(self, demo: Path) -> None:
        one, two = (RunEvidence.read(demo / "reports" / "runs" / f"resnet8-{seed}") for seed in (1, 2))
        assert one.provenance.plan_sha256 == two.provenance.plan_sha256
        assert one.provenance.weights_sha256 != two.provenance.weights_sha256


class TestMlflow:
    DUMP = """
import json, sys
from pathlib import Path
from resnet_repro.tracking import connect
store = connect(Path())
runs = {}
for run in store.client.search_runs([store.experiment_id], "tags.stage = 'train'", max_results=1000):
    points = {k: sorted([p.step, p.timestamp, p.value] for p in store.client.get_metric_history(run.info.run_id, k))
              for k in run.data.metrics}
    own = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.") or k == "mlflow.note.content"}
    runs[run.data.tags["uid"]] = [run.info.run_name, run.info.status, run.info.start_time, run.info.end_time,
                                  run.data.params, own, points, [d.dataset.digest for d in run.inputs.dataset_inputs],
                                  len(store.client.search_logged_models([store.experiment_id],
                                      filter_string=f"source_run_id = '{run.info.run_id}'"))]
print(json.dumps(runs))
"""

    def test_a_deleted_database_comes_back_equal(self, demo: Path, tmp_path: Path) -> None:
        live = json.loads(_run(demo, sys.executable, "-c", self.DUMP).splitlines()[-1])
        copy = tmp_path / "workspace"
        shutil.copytree(demo, copy, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", "__pycache__", ".cache"))
        (copy / ARCHIVE).parent.mkdir(exist_ok=True)
        said = _run(copy, "resnet-repro", "publish")
        assert f"{len(live) + 1} created" in said  # and the report
        assert json.loads(_run(copy, sys.executable, "-c", self.DUMP).splitlines()[-1]) == live
        planned = load(demo / "params.yaml")
        assert len(live) == len(planned.runs) + len(planned.ablations)
        for name, status, *_, params, tags, points, digests, models in live.values():
            assert (status, models, len(digests)) == ("FINISHED", 1, 1), name
            assert params["recipe.schedule.learning_rate"] == "0.1"
            assert tags["model"] == params["model"]
            epochs = int(params["recipe.schedule.stop"])
            assert [len(points[k]) for k in ("train_loss", "test_error_percent", "learning_rate")] == [epochs] * 3
        assert "unchanged" in _run(copy, "resnet-repro", "publish")


class TestWhatAnEditReruns:
    def test_a_comment_trains_nothing(self, workspace: Path) -> None:
        for path in (workspace / "src" / "resnet_repro").rglob("*.py"):
            path.write_text(path.read_text() + "\n# a comment\n")
        assert _stale(workspace) == set()

    def test_a_recipe_trains_exactly_its_models(self, workspace: Path) -> None:
        params = YAML().load(workspace / "params.yaml")
        params["recipes"]["demo_wide"]["momentum"] = 0.8
        YAML().dump(params, workspace / "params.yaml")
        wide = {f"{stage}@wide10_2-{seed}" for stage in ("train", "evaluate") for seed in (1, 2)}
        assert _stale(workspace) == wide

    def test_a_new_seed_trains_that_seed(self, workspace: Path) -> None:
        params = YAML().load(workspace / "params.yaml")
        params["runs"]["plain8-3"] = {"model": "plain8", "seed": 3}
        YAML().dump(params, workspace / "params.yaml")
        assert _stale(workspace) == {"train@plain8-3", "evaluate@plain8-3"}

    def test_a_constant_in_the_training_step_trains_everything(self, workspace: Path) -> None:
        _edit(
            workspace / "src" / "resnet_repro" / "training.py",
            "return F.cross_entropy(logits, labels),",
            "return 1.001 * F.cross_entropy(logits, labels),",
        )
        params = load(workspace / "params.yaml")
        every = {f"{stage}@{key}" for stage in ("train", "evaluate") for key in (*params.runs, *params.ablations)}
        assert _stale(workspace) == every


class TestAnotherMachine:
    """A clone of the demo with its evidence committed, and none of its data, weights or cache."""

    @pytest.fixture
    def clone(self, workspace: Path, tmp_path: Path) -> Path:
        _git(workspace, "add", "--all", "--force", "dvc.lock", "ablations/dvc.lock", "plans", "reports")
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
        _git(workspace, *identity, "commit", "--quiet", "--allow-empty", "--message", "evidence")
        _git(tmp_path, "clone", "--quiet", str(workspace), "clone")
        clone = tmp_path / "clone"
        (clone / ARCHIVE).parent.mkdir(parents=True)
        shutil.copy2(workspace / ARCHIVE, clone / ARCHIVE)
        return clone

    def test_a_new_run_trains_and_nothing_else(self, clone: Path) -> None:
        """What `make repro` does where one line was added."""
        assert _run(clone, "dvc", "repro", "--allow-missing").count("Running stage") == 0
        params = YAML().load(clone / "params.yaml")
        params["runs"]["plain8-3"] = {"model": "plain8", "seed": 3}
        YAML().dump(params, clone / "params.yaml")
        _run(clone, "dvc", "repro", "--single-item", "plan")
        assert _run(clone, "resnet-repro", "stale").split() == ["plain8-3"]
        _run(clone, "dvc", "repro", "prepare")
        said = _run(clone, "dvc", "repro", "--allow-missing")
        assert re.findall(r"Running stage '([^']+)'", said) == ["train@plain8-3", "evaluate@plain8-3", "report"]
        assert RunEvidence.read(clone / "reports/runs/plain8-3").metrics.seed == 3
        assert not (clone / "runs" / "plain8-1").exists()

    def test_the_run_cache_brings_trained_runs_home(self, workspace: Path, clone: Path, tmp_path: Path) -> None:
        for folder in (workspace, clone):
            _run(folder, "dvc", "remote", "add", "--default", "courier", str(tmp_path / "courier"))
        _run(workspace, "dvc", "push", "--run-cache")
        (clone / "dvc.lock").unlink()
        _run(clone, "dvc", "pull", "--run-cache", "--allow-missing")
        said = _run(clone, "dvc", "repro", "--pull", "train@plain8-1", "train@wide10_2-2")
        assert not re.findall(r"Running stage '(train[^']+)'", said), said
        name = "runs/wide10_2-2/weights.safetensors"
        assert (clone / name).read_bytes() == (workspace / name).read_bytes()


class TestCommandsOfDvc:
    def test_params_diff_names_the_leaf(self, workspace: Path) -> None:
        params = YAML().load(workspace / "params.yaml")
        params["recipes"]["demo"]["schedule"]["learning_rate"] = 0.05
        YAML().dump(params, workspace / "params.yaml")
        assert re.search(
            r"recipes\.demo\.schedule\.learning_rate\s+0\.1\s+0\.05", _run(workspace, "dvc", "params", "diff")
        )

    def test_metrics_show_is_small(self, demo: Path) -> None:
        shown = _run(demo, "dvc", "metrics", "show")
        assert all(model in shown for model in FAMILIES)
        assert len(shown.splitlines()) < 15

    def test_plots_show_needs_no_network(self, demo: Path, tmp_path: Path) -> None:
        page = tmp_path / "plots"
        _run(demo, "dvc", "plots", "show", "--out", str(page))
        assert "curves.csv" in (page / "index.html").read_text()


class TestCleanClone:
    """A fresh clone is up to date (DESIGN, idea 4)."""

    @pytest.fixture(scope="class")
    def clone(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """What a stranger gets: the committed files, here with the working tree's changes."""
        folder = tmp_path_factory.mktemp("clone") / "repository"
        listed = _git(ROOT, "ls-files", "-z").split("\0")
        for name in filter(None, listed):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        _git(folder, "init", "--quiet")
        _git(folder, "add", "--all")
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
        _git(folder, *identity, "commit", "--quiet", "--message", "clone")
        return folder

    def test_no_row_that_has_a_run_would_train(self, clone: Path) -> None:
        locked = [stage for stage in YAML(typ="safe").load(clone / "dvc.lock")["stages"] if "@" in stage]
        assert {stage.partition("@")[0] for stage in locked} == {"train", "evaluate"}
        said = _run(clone, "dvc", "repro", "--allow-missing", "--dry", *locked)
        assert said.count("didn't change, skipping") >= len(locked)
        assert "Running stage" not in said

    def test_rows_without_a_run_are_those_that_would_train_and_say_so(self, clone: Path) -> None:
        locked = YAML(typ="safe").load(clone / "dvc.lock")["stages"]
        not_run = [key for key in load(clone / "params.yaml").runs if f"train@{key}" not in locked]
        assert _run(clone, "resnet-repro", "stale").split() == not_run
        text = (clone / "reports/README.md").read_text()
        folded = re.search(r"<summary>Not run yet.*?</details>", text, re.DOTALL)
        said = re.findall(r"^\| (\w+)", folded[0], re.MULTILINE)[1:] if folded else []
        assert set(said) == {key.rpartition("-")[0] for key in not_run}

    def test_plan_and_report_really_run_give_what_is_committed(self, clone: Path) -> None:
        _run(clone, "dvc", "repro", "--force", "--single-item", "plan")
        _run(clone, "dvc", "repro", "--force", "--single-item", "report")
        changed = [line[3:] for line in _git(clone, "status", "--porcelain").splitlines()]
        # pictures depend on the machine's fonts and libraries
        assert [name for name in changed if not name.startswith("reports/figures/")] == []

    def test_evidence_is_complete(self, clone: Path) -> None:
        locked = YAML(typ="safe").load(clone / "dvc.lock")["stages"]
        for key in load(clone / "params.yaml").runs:
            if f"evaluate@{key}" not in locked:
                continue
            run = RunEvidence.read(clone / "reports" / "runs" / key)
            predictions = pd.DataFrame(run.predictions())
            error = 100 * (predictions.predicted != predictions.label).mean()
            assert error == pytest.approx(run.metrics.test_error_percent)
            assert run.provenance.key == key


def test_the_readme_names_no_path_of_a_machine() -> None:
    tracked = _git(ROOT, "ls-files", "*.md", "*.yaml", "*.json", "*.py", "*.csv").split()
    home = str(Path.home())
    assert [
        name for name in tracked if (ROOT / name).is_file() and f"{home}{os.sep}" in (ROOT / name).read_text()
    ] == []

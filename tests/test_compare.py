"""Comparing runs: what DVC, MLflow and SciPy say of the same, and what a stranger reads."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from ruamel.yaml import YAML
from scipy import stats

from resnet_repro.compare import Comparison, compare, show, side_of
from resnet_repro.errors import ReproError
from resnet_repro.evidence import METRICS, PROVENANCE, Metrics, Provenance, RunEvidence, write_json
from resnet_repro.tracking import connect, publish
from synthetic import NUM_TEST_IMAGES, REPOSITORY, FakeRun, write_workspace
from test_cli import call

RUNS = Path("reports/runs")


@pytest.fixture(autouse=True)
def _own_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("GIT_", "MLFLOW_TRACKING_URI", "DVC_ROOT"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Three seeds of two models, and one seed of a third."""
    errors = {"resnet8": (8.0, 8.3, 8.1), "plain8": (9.0, 9.4, 9.1), "preact8": (8.9,)}
    runs = [FakeRun(model, seed, error) for model in errors for seed, error in enumerate(errors[model], start=1)]
    return write_workspace(tmp_path / "a workspace", runs)


def compared(root: Path, *names: str, only: str | None = None) -> Comparison:
    return compare([side_of(root, name, only) for name in names])


def git(root: Path, *arguments: str) -> str:
    user = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *user, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(root: Path, message: str) -> str:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", message)
    return git(root, "rev-parse", "HEAD")


def printed(found: Comparison) -> str:
    console = Console(file=io.StringIO(), width=100)
    show.print_table(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_two_runs_are_judged_by_mcnemar(workspace: Path) -> None:
    """The made-up nets are wrong on the first 80 and the first 90 images: they differ on 10, and always in one way."""
    found = compared(workspace, "plain8-1", "resnet8-1")
    (group,) = found.groups
    (verdict,) = group.verdicts
    assert verdict.difference == pytest.approx(-1.0)
    assert verdict.p_value == pytest.approx(stats.binomtest(0, 10).pvalue)
    assert "resnet8-1 has 1.00 points less test error than plain8-1" in verdict.text
    assert "more than chance on these test images" in verdict.text
    assert f"10 of {NUM_TEST_IMAGES:,} images" in verdict.text
    assert "One seed each" in verdict.text
    assert compared(workspace, "resnet8-1", "resnet8-1").same == ("resnet8-1",)
    near = compared(workspace, "plain8-1", "preact8-1").groups[0].verdicts[0]
    assert near.p_value == 1.0
    assert "no more than chance" in near.text


def test_seeds_are_judged_by_welch_and_one_seed_by_their_range(workspace: Path) -> None:
    (verdict,) = compared(workspace, "plain8", "resnet8").groups[0].verdicts
    theirs = stats.ttest_ind([8.0, 8.3, 8.1], [9.0, 9.4, 9.1], equal_var=False)
    assert verdict.test == "Welch"
    assert verdict.p_value == pytest.approx(theirs.pvalue)
    assert verdict.interval == pytest.approx(theirs.confidence_interval(0.95))
    assert "3 and 3 runs" in verdict.text

    (verdict,) = compared(workspace, "resnet8", "preact8-1").groups[0].verdicts
    pooled = stats.ttest_ind([8.0, 8.3, 8.1], [8.9])  # one value has no spread: the prediction interval's t
    assert verdict.p_value == pytest.approx(pooled.pvalue)
    assert "preact8-1 lies outside the 95% range of one more run of resnet8" in verdict.text


def test_a_wide_difference_has_an_interval(tmp_path: Path) -> None:
    root = write_workspace(tmp_path, [FakeRun("plain8", 1, 20.0), FakeRun("resnet8", 1, 10.0)])
    (verdict,) = compared(root, "resnet8-1", "plain8-1").groups[0].verdicts
    wrong = [100.0] * 100 + [0.0] * 900  # per image, the difference
    assert verdict.interval == pytest.approx(stats.ttest_1samp(wrong, 0).confidence_interval(0.95))
    assert "95% interval +8.14 to +11.86" in verdict.text


PARAMS_BEFORE = """
recipes: {he2015: {schedule: {drops: [1, 2], rate: 0.1}, source: "a: b", one: [1], warmup: null, empty: {}}}
models: {resnet8: {depth: 8}, plain8: {depth: 8}}
runs: {}
"""
PARAMS_AFTER = """
models: {resnet8: {depth: 8.0}, preact8: {depth: 8, on: true}}  # a comment, another order
recipes: {he2015: {source: "a: c", schedule: {drops: [1, 3], rate: 1.0e-1}, one: [2], warmup: {rate: 0.01}}}
runs: {}
"""


def test_parameters_of_revisions_are_those_that_dvc_prints(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".dvc").mkdir()  # all that `dvc init` makes and this needs
    (tmp_path / ".dvc/config").touch()
    stages = {"train": {"cmd": "true", "params": ["models", "recipes.he2015"]}}
    YAML().dump({"stages": stages}, tmp_path / "dvc.yaml")
    (tmp_path / "params.yaml").write_text(PARAMS_BEFORE)
    before = commit(tmp_path, "before")
    (tmp_path / "params.yaml").write_text(PARAMS_AFTER)
    git(tmp_path, "checkout", "--quiet", "-b", "after")
    commit(tmp_path, "after")
    command = [sys.executable, "-m", "dvc", "params", "diff", "--json", before, "after"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    theirs = {name: (row["old"], row["new"]) for name, row in json.loads(said)["params.yaml"].items()}
    assert len(theirs) >= 6
    found = compared(tmp_path, before, "after")
    ours = {name: tuple(map(as_dvc_writes, values)) for name, values in (found.params or {}).items()}
    assert ours == theirs
    assert found.groups == ()
    assert compared(tmp_path, "after", "workspace").params == {}


def as_dvc_writes(value: Any) -> Any:
    return str(value) if isinstance(value, list) else value


def test_mlflow_has_the_same_to_say(workspace: Path) -> None:
    publish(workspace)
    store = connect(workspace)
    runs = {run.info.run_name: run for run in store.client.search_runs([store.experiment_id])}
    first, second = runs["plain8-1"], runs["resnet8-2"]
    every = set(first.data.params) | set(second.data.params)
    differ = {
        name: (first.data.params.get(name), second.data.params.get(name))
        for name in every
        if first.data.params.get(name) != second.data.params.get(name)
    }
    compared_before = compared(workspace, "plain8-1", "resnet8-2")
    (here,) = compared_before.groups
    assert here.params == differ
    ids = (first.info.run_id, second.info.run_id)
    assert compared(workspace, *ids).groups[0].verdicts[0].test == "McNemar", "the evidence is here, and says more"

    shutil.rmtree(workspace / "reports/runs")
    there = compared(workspace, *ids)
    (group,) = there.groups
    assert (group.params, group.environment, group.metrics) == (here.params, here.environment, here.metrics)
    assert group.verdicts[0].difference == here.verdicts[0].difference
    assert "predictions per image are not here" in group.verdicts[0].text
    curves = json.loads(show.as_json(there))["groups"][0]["curves"]
    assert curves == json.loads(show.as_json(compared_before))["groups"][0]["curves"]
    with pytest.raises(ReproError, match="nothing here is called"):
        side_of(workspace, "0" * 32)


def test_revisions_are_compared_by_the_runs_that_both_have(workspace: Path) -> None:
    git(workspace, "init", "--quiet", "--initial-branch", "main")
    before = commit(workspace, "before")
    folder = workspace / RUNS / "preact8-1"
    better = Metrics.model_validate_json((folder / METRICS).read_text()).model_copy(update={"test_error_percent": 7.5})
    trained = Provenance.read(folder / PROVENANCE).model_copy(update={"uid": "another", "precision": "fp32"})
    write_json(folder / METRICS, better)
    write_json(folder / PROVENANCE, trained.model_copy(update={"sha256": ""}))
    shutil.rmtree(workspace / RUNS / "plain8-3")
    after = commit(workspace, "after")
    git(workspace, "update-ref", f"refs/exps/{after[:2]}/{after[2:]}/hairy-mole", after)
    git(workspace, "tag", "resnet8-1", before)  # a run's key is the run, whatever Git calls so
    shutil.rmtree(workspace / RUNS / "resnet8-2")  # the working tree is not looked at, nor changed
    status = git(workspace, "status", "--porcelain")

    for name in ("main", "HEAD", after[:9], "hairy-mole"):
        found = compared(workspace, "main~1", name)
        assert [side.commit for side in found.sides] == [before, after]
        assert sorted(found.same) == ["plain8-1", "plain8-2", "resnet8-1", "resnet8-2", "resnet8-3"]
        (group,) = found.groups
        assert group.name == "preact8-1"
        assert group.environment["precision"] == ("bf16", "fp32")
        assert group.metrics["final_test_error_percent"] == ((8.9,), (7.5,))
    assert git(workspace, "status", "--porcelain") == status

    (group,) = compared(workspace, "main~1:preact8-1", "hairy-mole:preact8-1").groups
    assert group.metrics["final_test_error_percent"] == ((8.9,), (7.5,))
    assert compared(workspace, "main~1", "main", only="resnet8").groups == ()
    assert compared(workspace, "workspace:resnet8-1", "main:resnet8-1").params == {}
    assert side_of(workspace, "resnet8-1").commit is None
    with pytest.raises(ReproError, match=r"main:plain8-3.* did you mean 'plain8-[12]'"):
        side_of(workspace, "main:plain8-3")
    with pytest.raises(ReproError, match=r"did you mean 'hairy-mole'\?.*MLflow run id"):
        side_of(workspace, "hairy-mule")
    with pytest.raises(ReproError, match="no evidence here yet"):
        side_of(workspace, "plain8-3")


def test_a_terminal_is_not_obeyed_by_what_is_shown(workspace: Path) -> None:
    path = workspace / RUNS / "plain8-1" / PROVENANCE
    evil = Provenance.read(path).model_copy(update={"device_name": "\x1b[31mred[/] [bold]", "sha256": ""})
    write_json(path, evil)
    said = printed(compared(workspace, "plain8-1", "resnet8-1", "preact8"))
    assert "\x1b" not in said
    assert "\\x1b[31mred[/] [bold]" in said
    assert max(map(len, said.splitlines())) <= 100


def test_committed_runs_by_the_command_line(tmp_path: Path) -> None:
    a, b, *_ = sorted(path.parent for path in (REPOSITORY / "reports").glob(f"**/runs/*/{METRICS}"))
    figure = tmp_path / "curves.png"
    said = call(REPOSITORY, "compare", a.name, b.name, "--format", "json", "--figure", str(figure))
    assert said.returncode == 0, said.stderr
    (group,) = json.loads(said.stdout)["groups"]
    runs = RunEvidence.read(a), RunEvidence.read(b)
    errors = [run.metrics.test_error_percent for run in runs]
    assert group["metrics"]["final_test_error_percent"]["values"] == [[error] for error in errors]
    assert group["verdicts"][0]["difference"] == pytest.approx(errors[1] - errors[0])
    assert group["curves"][1][0]["test_error_percent"] == runs[1].history["test_error_percent"].tolist()
    with Image.open(figure) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 50
    refused = call(REPOSITORY, "compare", a.name)
    assert refused.returncode == 1
    assert "two or more" in refused.stderr

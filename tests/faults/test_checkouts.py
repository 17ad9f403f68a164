"""Several checkouts of one repository: whose source runs, and what a merge of their results keeps."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from reliability import Injections
from resnet_repro.evidence import METRICS, PROVENANCE
from resnet_repro.workspace import LOCKS
from small_workspace import EVALUATE, IDENTITY, RUN, TRAIN, commit, contents, damage, findings, mend, run, started

AREA = "Git"
EDIT = ("momentum=recipe.momentum,", "momentum=recipe.momentum * 0.5,")
PLAN, EVIDENCE = Path("plans/plain8.json"), f"reports/{RUN}"
pytestmark = pytest.mark.xdist_group("dvc")


def halve_momentum(workspace: Path) -> None:
    path = workspace / "src/resnet_repro/training.py"
    text = path.read_text()
    assert text.count(EDIT[0]) == 1
    path.write_text(text.replace(*EDIT))


def fingerprint(workspace: Path) -> dict[str, str]:
    return json.loads((workspace / PLAN).read_text())["fingerprint"]


@pytest.mark.fault(
    "the source of another checkout is installed (a worktree, a copy with its .venv)",
    "stages and commands run the source beside them: an edit there makes its runs stale",
)
@pytest.mark.parametrize("kind", ["worktree", "copy"])
def test_each_checkout_runs_its_own_source(workspace: Path, kind: str) -> None:
    other = workspace.parent / "other"
    if kind == "worktree":
        run(workspace, "git", "worktree", "add", "--quiet", str(other), "-b", "idea")
    else:
        shutil.copytree(workspace, other)
    halve_momentum(other)
    run(other, "dvc", "repro", "--quiet", "--single-item", "plan")
    assert fingerprint(other) != fingerprint(workspace)
    assert run(other, "resnet-repro", "stale").split() == ["plain8-1"]
    assert run(workspace, "resnet-repro", "stale") == ""
    installed = "import runpy, sys, resnet_repro.stage; sys.path[:0] = ['pipeline']; sys.argv[1:] = ['plans']"
    said = run(other, "python", "-c", f"{installed}; runpy.run_path('pipeline/plan.py', None, '__main__')", expected=1)
    assert "plan: the code that runs is that of " in said
    assert f"this workspace has its own in {other / 'src'}" in said


@pytest.mark.fault(
    "a queued experiment runs after the workspace's source has changed again",
    "it computes with the source that it was queued with",
)
def test_a_queued_experiment_runs_its_own_source(workspace: Path) -> None:
    before = fingerprint(workspace)
    halve_momentum(workspace)
    run(workspace, "dvc", "exp", "run", "--queue", "--name", "half", "plan")
    run(workspace, "git", "checkout", "--quiet", "src")
    run(workspace, "dvc", "exp", "run", "--run-all", "--jobs", "1")
    run(workspace, "dvc", "exp", "apply", "half")
    assert fingerprint(workspace) != before
    run(workspace, "dvc", "repro", "--quiet", "--single-item", "plan")
    assert fingerprint(workspace) != before, "as the source of the experiment gives it"


def with_another_seed(workspace: Path, clone: Path, seed: int) -> Path:
    run(workspace, "git", "clone", "--quiet", str(workspace), str(clone))
    params = YAML().load(clone / "params.yaml")
    params["runs"][f"plain8-{seed}"] = {"model": "plain8", "seed": seed}
    YAML().dump(params, clone / "params.yaml")
    shutil.copytree(workspace / ".cache", clone / ".cache")
    run(clone, "dvc", "repro", "--quiet", "prepare")
    run(clone, "dvc", "repro", "--quiet", "--single-item", "plan")
    run(clone, "dvc", "repro", "--allow-missing", f"evaluate@plain8-{seed}")
    commit(clone)
    return clone


@pytest.mark.fault(
    "two branches that each ran something are merged: dvc.lock conflicts, or is merged by one side",
    "`doctor` says so, and with --mend both sides' runs are kept and nothing trains again",
)
def test_merged_runs_are_kept(workspace: Path, injected: Injections) -> None:
    ours, theirs = (with_another_seed(workspace, workspace.parent / f"clone{seed}", seed) for seed in (2, 3))
    run(ours, "git", "fetch", "--quiet", str(theirs))
    expected = contents(theirs / "reports/runs/plain8-3")
    start = run(ours, "git", "rev-parse", "HEAD").strip()
    for how in ("conflict", "one side", "one side, committed"):
        run(ours, "git", "reset", "--quiet", "--hard", start)
        merging = started(ours, "git", *IDENTITY, "merge", "--quiet", "FETCH_HEAD")
        assert merging.wait(60) == 1, "dvc.lock and params.yaml have other lines at the same place"
        params = YAML().load(workspace / "params.yaml")
        params["runs"] |= {f"plain8-{seed}": {"model": "plain8", "seed": seed} for seed in (2, 3)}
        YAML().dump(params, ours / "params.yaml")
        if how != "conflict":
            run(ours, "git", "checkout", "HEAD", "--", "dvc.lock")
        if how.endswith("committed"):
            commit(ours)
        with injected():
            (found,) = findings(ours)
            told = "cannot be used: line" if how == "conflict" else "was merged without evaluate@plain8-3"
            assert f"dvc.lock {told}" in found
            assert "`resnet-repro doctor --mend` keeps the runs of both sides" in found
            mend(ours)
            said = run(ours, "dvc", "repro", "--allow-missing", "evaluate@plain8-2", "evaluate@plain8-3", EVALUATE)
            assert "Running stage 'train@" not in said
            assert "Running stage 'evaluate@" not in said
            assert contents(ours / "reports/runs/plain8-3") == expected
    assert findings(ours) == []


@pytest.mark.fault(
    "a run is trained again that another machine's committed evidence has, and comes to other weights",
    "`evaluate` refuses to replace that evidence, which stays, until it is told to",
)
def test_committed_evidence_is_not_replaced_by_another_training(workspace: Path) -> None:
    before = contents(workspace / EVIDENCE)
    shutil.rmtree(workspace / RUN)
    (workspace / "pipeline/local_source.py").write_text(  # stands for a machine whose arithmetic is another
        (workspace / "pipeline/local_source.py").read_text()
        + "from resnet_repro.models import initialization as i\n"
        + "draw = i.initialize\ni.initialize = lambda net, law, seed, *more: draw(net, law, seed + 1000, *more)\n"
    )
    run(workspace, "dvc", "repro", "--force", "--single-item", TRAIN)
    said = run(workspace, "dvc", "repro", "--single-item", EVALUATE, expected=255)
    assert f"{EVIDENCE} is committed evidence of another training by the same plan" in said
    assert f"RESNET_REPRO_EVIDENCE=replace dvc repro {EVALUATE}" in said
    assert contents(workspace / EVIDENCE) == before
    run(workspace, "env", "RESNET_REPRO_EVIDENCE=replace", "dvc", "repro", "--single-item", EVALUATE)
    after = contents(workspace / EVIDENCE)
    assert after[PROVENANCE] == (workspace / RUN / PROVENANCE).read_bytes() != before[PROVENANCE]
    assert after[METRICS] != before[METRICS]


@pytest.mark.fault(
    "committed evidence is damaged, edited or deleted",
    "`doctor` names the run, and brings back what Git has; a message about it never advises what deletes it",
)
def test_damaged_evidence(workspace: Path, injected: Injections) -> None:
    whole, choose = contents(workspace / EVIDENCE), random.Random(0)
    shutil.rmtree(workspace / RUN)  # as in a fresh clone: the weights are not here
    for name in choose.sample(sorted(whole), injected.count(2, len(whole))):
        damage(workspace / EVIDENCE / name, choose)
        with injected():
            (found,) = findings(workspace)
            assert found.startswith(f"{EVIDENCE} is damaged or edited: not as dvc.lock has it; `git checkout -- ")
            mend(workspace)
            assert contents(workspace / EVIDENCE) == whole
    shutil.rmtree(workspace / EVIDENCE)
    with injected():
        assert findings(workspace) == [f"{EVIDENCE} is missing; `git checkout -- {EVIDENCE}`"]
        mend(workspace)
        assert contents(workspace / EVIDENCE) == whole
    (workspace / EVIDENCE / METRICS).write_text("{}")
    with injected():
        said = run(workspace, "resnet-repro", "compare", "plain8-1", "HEAD", expected=1)
        assert f"`git checkout -- {EVIDENCE}` brings the committed one back" in said


@pytest.mark.fault("an archive of the files, without .git", "the demo finds its sources; `doctor` needs no git program")
def test_files_without_a_repository(workspace: Path) -> None:
    from resnet_repro.demo import DemoError, copy_sources

    files, target = workspace.parent / "files", workspace.parent / "target"
    files.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=workspace, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract"], input=archive, cwd=files, check=True)
    copy_sources(files, target)
    assert (target / "pipeline/train.py").is_file()
    assert not (target / "params.yaml").exists(), "the demo has its own"
    assert {p.relative_to(target) for p in target.rglob("*.py")} == {p.relative_to(files) for p in files.rglob("*.py")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        assert [found for found in findings(workspace) if any(lock in found for lock in LOCKS)] == []
        with pytest.raises(DemoError, match="install git"):
            copy_sources(files, target)

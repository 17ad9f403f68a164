"""What `dvc repro` would train, and how long that takes."""

import hashlib
import math
from pathlib import Path

import pytest
import torch

from resnet_repro import estimate
from resnet_repro.params import load
from resnet_repro.plan import make_plan
from resnet_repro.progress import duration
from resnet_repro.workspace import LockFileError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """The demo's parameters, planned; dvc.lock knows plain8-1 and resnet8-1, the latter by an older plan."""
    (tmp_path / "params.yaml").write_text((ROOT / "src/resnet_repro/demo.yaml").read_text())
    params = load(tmp_path / "params.yaml")
    (tmp_path / "plans").mkdir()
    for model in params.planned_models:
        (tmp_path / "plans" / f"{model}.json").write_text(make_plan(params, model).to_json())
    known = hashlib.md5((tmp_path / "plans/plain8.json").read_bytes(), usedforsecurity=False).hexdigest()
    lines = ["schema: '2.0'", "stages:"]
    for model, md5 in (("plain8", known), ("resnet8", "0" * 32)):
        lines += [
            f"  train@{model}-1:",
            f"    deps: [{{path: plans/{model}.json, md5: '{md5}', size: 1}}]",
            f"    outs: [{{path: runs/{model}-1, md5: {'1' * 32}.dir, size: 1}}]",
        ]
    (tmp_path / "dvc.lock").write_text("\n".join([*lines, ""]))
    return tmp_path


def test_stale_is_what_the_lock_does_not_know_by_this_plan(workspace: Path) -> None:
    params = load(workspace / "params.yaml")
    assert set(params.runs) - set(estimate.stale_runs(workspace, params)) == {"plain8-1"}


def test_a_damaged_lock_is_no_traceback(workspace: Path) -> None:
    lock = workspace / "dvc.lock"
    lock.write_text(lock.read_text()[:-9])
    with pytest.raises(LockFileError, match=r"dvc\.lock cannot be used: .* `resnet-repro doctor` says what to do"):
        estimate.stale_runs(workspace, load(workspace / "params.yaml"))


def test_a_trained_speed_replaces_the_measured_one(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load(workspace / "params.yaml")
    measured = estimate.estimate(workspace, ["plain8-2"], params)[0]
    assert measured.seconds is not None
    assert measured.measured == "steps"
    monkeypatch.setattr(estimate, "_measure", lambda *_: pytest.fail("it was cached"))
    assert estimate.estimate(workspace, ["plain8-2"], params)[0] == measured
    provenance = type("Trained", (), {"images_per_second": 1000.0})()
    estimate.remember_speed(workspace, make_plan(params, "plain8"), provenance)
    trained = estimate.estimate(workspace, ["plain8-2"], params)[0]
    steps = params.recipe_of("plain8").schedule.stop * -(-50_000 // 64)
    assert trained == estimate.Estimate("plain8-2", steps * 64 / 1000.0, "training")


def test_a_net_whose_loss_is_not_finite_takes_its_time(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(net: torch.nn.Module, *_: object) -> None:
        for parameter in net.parameters():
            torch.nn.init.constant_(parameter, math.inf)

    monkeypatch.setattr(estimate, "initialize", diverge)
    [measured] = estimate.estimate(workspace, ["plain8-2"], load(workspace / "params.yaml"))
    assert measured.seconds is not None


def test_without_time_it_says_so(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "BUDGET_SECONDS", -1.0)
    params = load(workspace / "params.yaml")
    [unknown] = estimate.estimate(workspace, ["plain8-2"], params)
    assert unknown.seconds is None
    assert "not measured" in estimate.describe([unknown])


def test_nothing_to_do_is_said() -> None:
    assert "up to date" in estimate.describe([])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (720, "12 min"), (12_000, "3 h 20 min"), (4 * 86400 + 7200, "4 d 2 h")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text

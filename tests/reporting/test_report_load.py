import shutil
from pathlib import Path

import pytest

from resnet_repro.errors import ReproError
from resnet_repro.reporting.load import Sample, load
from synthetic import FakeRun, write_workspace


def test_one_row_per_model_in_the_order_of_the_runs(workspace: Path) -> None:
    models = list(dict.fromkeys(row.model for row in load(workspace).rows))
    assert models == [
        "resnet20",
        "plain20",
        "preact110",
        "lasagne_wide",
        "resnet20_brief",
        "resnet110",
        "wrn16_4",
    ]


def test_a_folder_that_params_does_not_name_is_ignored(workspace: Path) -> None:
    assert (workspace / "reports/runs/resnet20-4").is_dir()
    assert "resnet20-4" not in {run.key for run in load(workspace).runs}


def test_precisions_and_devices_are_never_averaged(tmp_path: Path) -> None:
    runs = [
        FakeRun("resnet20", 1, 8.0, precision="fp32", device="cpu"),
        FakeRun("resnet20", 2, 9.0, precision="fp32", device="cuda"),
        FakeRun("resnet20", 3, 10.0, precision="bf16", device="cuda"),
    ]
    rows = load(write_workspace(tmp_path, runs)).rows
    assert [(row.arithmetic, row.test_error.mean) for row in rows] == [
        (("bf16", "cuda"), 10.0),
        (("fp32", "cpu"), 8.0),
        (("fp32", "cuda"), 9.0),
    ]
    assert len({row.name for row in rows}) == 3


def test_a_run_of_another_plan_is_in_no_row(tmp_path: Path) -> None:
    write_workspace(tmp_path, [FakeRun("resnet20", 1), FakeRun("resnet20", 2)])
    plan = tmp_path / "reports/runs/resnet20-2/plan.json"
    plan.write_text(plan.read_text().replace("0" * 16, "1" * 16))
    evidence = load(tmp_path)
    assert [run.key for run in evidence.runs] == ["resnet20-1"]
    assert [run.key for run in evidence.outdated] == ["resnet20-2"]


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("plans/resnet20.json", "plan"),
        ("reports/runs/resnet20-1/metrics.json", "evaluate@resnet20-1"),
        ("reports/runs/resnet20-1/history.csv", "evaluate@resnet20-1"),
        ("reports/data/card.json", "prepare"),
        ("reports/data/samples.npz", "prepare"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_damaged_evidence_is_named_with_the_stage_that_mends_it(
    tmp_path: Path, path: str, stage: str, damage: str
) -> None:
    write_workspace(tmp_path, [FakeRun("resnet20", 1)])
    victim = tmp_path / path
    (weights := tmp_path / "runs/resnet20-1/weights.safetensors").parent.mkdir(parents=True)
    weights.touch()  # without them `evaluate` could not write it again
    content = victim.read_bytes()
    victim.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    if damage == "missing":
        victim.unlink()
    if damage == "truncated" and victim.name == "history.csv":
        victim.write_bytes(content[:5])  # half of its lines would still be a history
    with pytest.raises(ReproError, match=f"dvc repro {stage}") as caught:
        load(tmp_path)
    assert str(victim.parent) in str(caught.value)


def test_a_folder_that_holds_another_run_is_refused(tmp_path: Path) -> None:
    write_workspace(tmp_path, [FakeRun("resnet20", 1)], not_run=[FakeRun("resnet20", 2)])
    runs = tmp_path / "reports/runs"
    shutil.copytree(runs / "resnet20-1", runs / "resnet20-2")
    with pytest.raises(ReproError, match=r"holds resnet20 with seed 1, not resnet20 with seed 2"):
        load(tmp_path)


def test_mean_and_standard_deviation_of_a_textbook_sample() -> None:
    """2, 4, 4, 4, 5, 5, 7, 9: mean 5, squared deviations 32, so the sample variance is 32/7."""
    sample = Sample((2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0))
    assert sample.mean == 5.0
    assert sample.std == pytest.approx((32 / 7) ** 0.5)


def test_one_value_has_no_standard_deviation_and_none_has_no_mean() -> None:
    assert Sample((8.75,)).std is None
    assert Sample(()).mean is None

from pathlib import Path

import pytest

from resnet_repro.reporting import write_ablations
from resnet_repro.reporting.ablations import ablation_table, effects, variations
from resnet_repro.reporting.load import Evidence, load
from synthetic import FakeRun, write_workspace


def runs(model: str, *errors: float, precision: str = "bf16") -> list[FakeRun]:
    return [FakeRun(model, seed, error, precision=precision) for seed, error in enumerate(errors, 1)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ablations = [
        *runs("resnet20_no_norm", 12.0, 12.2, 12.4),  # worse by more than chance
        *runs("resnet20_fan_in", 8.59, 8.60, 8.61),  # the same
        *runs("resnet20_zca", 8.9),  # a single run
        *runs("resnet20_nesterov", 8.0, 8.1, 8.2, precision="fp32"),  # another precision than the baseline's
        *runs("resnet20_fp32", 8.4, 8.6, 8.8, precision="fp32"),  # which here is what varies
        *runs("resnet110_no_warmup", 6.7),  # in no group
    ]
    baseline = runs("resnet20", 8.5, 8.6, 8.7)
    return write_workspace(tmp_path_factory.mktemp("ablations"), baseline, [FakeRun("resnet110")], ablations=ablations)


@pytest.fixture(scope="module")
def evidence(workspace: Path) -> Evidence:
    return load(workspace, ablations=True)


def test_each_variant_is_judged_beside_its_baseline(evidence: Evidence) -> None:
    table = ablation_table(evidence).set_index("variant")
    conclusions = table["does it matter?"]
    assert conclusions["`resnet20_no_norm`"] == "yes, it is worse"
    assert conclusions["`resnet20_fan_in`"] == "no, by less than 0.3 points"
    assert conclusions["`resnet20_zca`"] == "not enough runs to say"
    assert conclusions["`resnet20_pool`"] == "not run"
    assert table.loc["`resnet20_no_norm`", "difference"] == "+3.60"
    assert table.loc["`resnet20_no_norm`", "its error (seeds)"] == "12.20 (3)"


def test_precisions_are_compared_only_where_they_are_the_question(evidence: Evidence) -> None:
    found = {one.variant: one for one in variations(evidence)}
    assert found["resnet20_nesterov"].comparison is None
    compared = found["resnet20_fp32"].comparison
    assert compared is not None
    assert compared.difference == pytest.approx(0.0)


def test_the_figure_has_what_was_compared(evidence: Evidence) -> None:
    assert {effect.variant: effect.n for effect in effects(evidence)} == {
        "resnet20_no_norm": 3,
        "resnet20_fan_in": 3,
        "resnet20_zca": 1,
        "resnet20_fp32": 3,
    }


def test_the_page_has_table_figure_and_the_claims_about_ablations(workspace: Path) -> None:
    out = workspace / "reports" / "ablations"
    write_ablations(workspace, out)
    text = (out / "README.md").read_text()
    assert "figures/ablations.png" in text
    assert (out / "figures/ablations.png").is_file()
    assert "ResNet-110 needs the warm-up" in text
    assert "Deeper plain nets are worse" not in text


def test_the_table_of_rows_knows_nothing_of_ablations(workspace: Path) -> None:
    assert [row.model for row in load(workspace).rows] == ["resnet20", "resnet110"]

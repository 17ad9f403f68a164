import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from resnet_repro.evidence import read_history
from resnet_repro.reporting.judge import Rule
from resnet_repro.reporting.load import Evidence, load
from resnet_repro.reporting.tables import (
    Notes,
    comparison_table,
    difference_to_paper,
    main_tables,
    metrics,
    run_table,
    short_table,
)
from synthetic import FakeRun, write_workspace


@pytest.fixture(scope="module")
def evidence(workspace: Path) -> Evidence:
    return load(workspace)


def rule_of(evidence: Evidence) -> Rule:
    return Rule.of(evidence.rows, evidence.params.verdicts)


@pytest.fixture(scope="module")
def table(evidence: Evidence) -> pd.DataFrame:
    return comparison_table(evidence.full, Notes(), rule_of(evidence)).set_index("model")


def test_a_row_of_three_seeds(table: pd.DataFrame) -> None:
    row = table.loc["resnet20"]
    assert row["layers"] == "20"
    assert row["parameters"] == "20,000"
    assert row["paper"].startswith("8.75<sup>")
    assert row["source project"].startswith("8.00<sup>")
    assert "8.04" in row["source project"]
    assert row["last epoch, mean"] == "8.60"
    assert row["SD"] == "0.10"
    assert row["seeds"] == "3"
    assert row["lowest epoch"] == "8.40"
    assert row["verdict"] == "±1: reproduced (n = 3, published spread), known before the rule"
    assert row["best-validation epoch"] == "–"
    assert row["difference to the paper"] == "-0.15"
    assert (row["precision"], row["device"]) == ("bf16", "cuda")


def test_one_seed_has_no_standard_deviation(table: pd.DataFrame) -> None:
    row = table.loc["plain20"]
    assert row["last epoch, mean"] == "9.40"
    assert row["SD"] == "–"
    assert row["lowest epoch"] == "9.10"
    assert row["difference to the paper"] == "-0.27"


def test_held_out_images_give_a_best_validation_epoch(table: pd.DataFrame) -> None:
    row = table.loc["lasagne_wide"]
    assert row["best-validation epoch"] == "5.40"
    assert row["paper"] == "–"
    assert row["source project"].startswith("5.41")
    assert row["difference to the paper"] == "–"


def test_two_precisions_are_two_rows(table: pd.DataFrame) -> None:
    rows = table.loc["preact110"]
    assert list(zip(rows["precision"], rows["last epoch, mean"], rows["seeds"], strict=True)) == [
        ("bf16", "6.30", "1"),
        ("fp32", "6.50", "1"),
    ]


@pytest.mark.parametrize("model", ["resnet110", "wrn16_4"])
def test_rows_without_a_run_say_so(table: pd.DataFrame, model: str) -> None:
    row = table.loc[model]
    assert row["last epoch, mean"] == "not run"
    assert row["seeds"] == "0"
    ours = ["SD", "lowest epoch", "best-validation epoch", "difference to the paper", "precision", "device"]
    assert set(row[ours]) == {"–"}


def test_other_numbers_of_a_paper_stand_beside_the_one_judged_against(table: pd.DataFrame) -> None:
    assert table.loc["resnet110", "paper"].split("; ")[0].startswith("6.61 ± 0.16<sup>")
    assert table.loc["resnet110", "paper"].split("; ")[1].startswith("6.43<sup>")
    assert table.loc["wrn16_4", "paper"].split("; ")[1].startswith("5.55<sup>")


def test_every_letter_has_its_note(evidence: Evidence) -> None:
    notes = Notes()
    cells = comparison_table(evidence.full, notes, rule_of(evidence))[["paper", "source project"]].to_numpy().ravel()
    lines = notes.lines()
    marks = {part.split("</sup>")[0] for cell in cells for part in cell.split("<sup>")[1:]}
    assert marks == {line.removeprefix("<sup>").split("</sup>")[0] for line in lines}
    assert "<sup>a</sup> He 2015, Table 6: single run, last iteration (inferred)" in lines
    assert any("second-hand" in line for line in lines)


def test_rows_that_have_not_run_are_folded_away_with_their_own_notes(evidence: Evidence) -> None:
    main, how_to_read, above, folded = main_tables(evidence.full, rule_of(evidence), "How to read it.")
    waiting = ["resnet110", "wrn16_4"]
    assert how_to_read == "How to read it."
    assert [model for model in waiting if model in main] == []
    assert folded.startswith(f"<details><summary>Not run yet: 2 of {len(evidence.full)} rows</summary>")
    lines = folded.splitlines()
    assert re.findall(r"^\| (\w+)", folded, re.MULTILINE) == ["model", *waiting]
    assert re.split(r" *\| *", lines[2].strip("| ")) == ["model", "layers", "parameters", "paper", "source project"]
    for text, notes in ((main, above), (folded, above + folded)):
        used = set(re.findall(r"\d<sup>(\w+)</sup>", text))
        assert used <= set(re.findall(r"^<sup>(\w+)</sup>", notes, re.MULTILINE))
    assert not set(above.splitlines()) & set(lines)


def test_the_tables_without_waiting_rows_and_without_runs(evidence: Evidence) -> None:
    ran = [row for row in evidence.full if row.runs]
    assert len(list(main_tables(ran, rule_of(evidence)))) == 2
    (folded,) = main_tables([row for row in evidence.full if not row.runs], rule_of(evidence))
    assert folded.startswith("<details>")


def test_more_than_26_notes_have_distinct_letters() -> None:
    notes = Notes()
    marks = [notes.mark(f"note {index}") for index in range(60)]
    assert len(set(marks)) == 60
    assert marks[25:28] == ["<sup>z</sup>", "<sup>aa</sup>", "<sup>ab</sup>"]
    assert notes.mark("note 0") == marks[0]


def test_a_bound_is_no_number_to_differ_from(tmp_path: Path) -> None:
    evidence = load(write_workspace(tmp_path, [FakeRun("plain110", 1, 65.0)]))
    (row,) = evidence.rows
    assert difference_to_paper(row) is None
    assert comparison_table([row], Notes(), rule_of(evidence)).loc[0, "paper"].startswith(">60.00<sup>")


def test_short_schedules_stand_apart_without_published_numbers(evidence: Evidence, table: pd.DataFrame) -> None:
    assert "resnet20_brief" not in table.index
    short = short_table(evidence.short)
    assert list(short["model"]) == ["resnet20_brief"]
    assert short.loc[0, "last epoch, mean"] == "14.60"
    assert short.loc[0, "epochs"] == "3"
    assert not {"paper", "source project", "difference to the paper"} & set(short.columns)


def test_each_run_can_be_followed_to_its_files(evidence: Evidence) -> None:
    table = run_table(evidence.runs, evidence.outdated)
    assert len(table) == 8
    row = table.set_index("run").loc["[resnet20-1](runs/resnet20-1/)"]
    assert row["steps"] == "64,000"
    assert (row["in training's precision"], row["population statistics"]) == ("–", "–")
    assert row["hours"] == "1.50"
    assert row["images/s"] == "12,346"
    assert row["device"] == "NVIDIA H100 80GB HBM3"
    assert row["commit"] == "0123456789"


def test_a_run_shows_how_else_its_weights_were_measured(evidence: Evidence) -> None:
    errors = {"training_precision_test_error_percent": 8.42, "population_statistics_test_error_percent": 8.6}
    run = evidence.runs[0]
    run = replace(run, metrics=run.metrics.model_copy(update=errors))
    row = run_table([run], []).iloc[0]
    assert (row["in training's precision"], row["population statistics"]) == ("8.42", "8.60")


def test_metrics_of_the_rows_that_ran(evidence: Evidence, report: Path) -> None:
    of_rows = metrics(evidence.rows)
    assert of_rows["resnet20"] == {"n": 3, "test_error_percent": {"mean": 8.6, "std": 0.1}}
    assert of_rows["plain20"] == {"n": 1, "test_error_percent": {"mean": 9.4}}
    assert of_rows["preact110 (fp32, cuda)"]["test_error_percent"]["mean"] == 6.5
    assert "resnet110" not in of_rows
    assert json.loads((report / "metrics.json").read_text())["resnet20"]["test_error_percent"]["mean"] == 8.6


def test_curves_file_is_the_histories(report: Path) -> None:
    curves = pd.read_csv(report / "curves.csv")
    assert set(curves["model"]) == {"resnet20", "preact110", "resnet20_brief"}
    assert len(curves) == 3 * 164 + 3
    one = curves[curves["run"] == "resnet20-2"].reset_index(drop=True)
    history = read_history(report / "runs" / "resnet20-2")
    columns = ["epoch", "step", "train_error_percent", "test_error_percent", "train_loss"]
    pd.testing.assert_frame_equal(one[columns], history[columns], rtol=1e-5)
    assert set(one["seed"]) == {2}

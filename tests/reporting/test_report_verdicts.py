from dataclasses import replace

import pandas as pd
import pytest

from resnet_repro.papers import BEST, FIRST, LAST, LOWEST, MEAN, MEDIAN, VALIDATION
from resnet_repro.params import Verdicts
from resnet_repro.reporting.load import Row, load
from resnet_repro.reporting.verdicts import Verdict, headline, verdict_table, verdicts, without_row
from synthetic import FakeRun, write_workspace

SETTINGS = Verdicts(margin_points=0.3, wide_margin_points=1.0, alpha=0.05, power=0.8)
RESNET110 = (6.41, 6.51, 6.61, 6.71, 6.81)
"""mean 6.61 and standard deviation 0.16, as He 2015 prints"""
RUNS = [
    *(FakeRun("resnet20", seed, error) for seed, error in enumerate((8.65, 8.75, 8.85), 1)),
    *(FakeRun("resnet32", seed, error, precision="fp32") for seed, error in enumerate((8.0, 8.1, 8.2), 1)),
    *(FakeRun("resnet110", seed, error) for seed, error in enumerate(RESNET110, 1)),
    *(FakeRun("plain110", seed, error) for seed, error in enumerate((64.0, 65.0, 66.0), 1)),
    FakeRun("plain20", 1, 9.4, precision="bf16", device="cpu"),
    *(FakeRun("preact110", seed, error) for seed, error in enumerate((6.3, 6.5), 1)),
    *(FakeRun("lasagne_wide", seed, error) for seed, error in enumerate((5.25, 5.3, 5.35), 1)),
    FakeRun("resnet20_brief", 1, 14.6),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    workspace = write_workspace(tmp_path_factory.mktemp("workspace"), RUNS, [FakeRun("wrn16_4")])
    return {row.name: row for row in load(workspace).rows}


@pytest.fixture(scope="module")
def found(rows: dict[str, Row]) -> dict[tuple[str, str, float], Verdict]:
    return {
        (one.row, one.published.statistic, one.published.value): one for one in verdicts(list(rows.values()), SETTINGS)
    }


@pytest.fixture(scope="module")
def table(found: dict[tuple[str, str, float], Verdict]) -> pd.DataFrame:
    return verdict_table(list(found.values()), SETTINGS)


def line(table: pd.DataFrame, model: str, printed: str, statistic: str) -> "pd.Series[str]":
    """The one line of a printed number."""
    matches = table["statistic, source"].str.startswith(statistic)
    (index,) = table.index[(table["model"] == model) & (table["printed"] == printed) & matches]
    return table.loc[index]


def test_a_number_that_no_row_asks_for_is_listed_where_there_is_its_model(rows: dict[str, Row]) -> None:
    left = without_row(list(rows.values()), ["resnet20", "wrn28_10", "original110_dropout_shortcut", "my_net"])
    assert left.to_dict("records") == [
        {"model": "original110_dropout_shortcut", "printed": ">20.00",
         "statistic, source": '"fail": median of 5 higher than 20%, He 2016, Table 1'},
        {"model": "wrn28_10", "printed": "4.00",
         "statistic, source": "median of 5, Zagoruyko 2016, Tables 5 and 6 (mean/std)"},
    ]  # fmt: skip


def test_a_number_within_the_wide_margin_only(table: pd.DataFrame) -> None:
    """t(0.95, 2) = 2.92: 8.75 ± 2.92 * 0.1 / sqrt(3) against 8.75 and, the lowest epochs, against 8.00."""
    last = line(table, "resnet20", "8.75", FIRST)
    assert (last["ours"], last["difference"]) == ("8.75 ± 0.10 (3 runs)", "+0.00")
    assert last["90% interval"] == "-0.17 to +0.17"
    assert (last["verdict (±0.3)"], last["verdict (±1)"]) == ("reproduced", "reproduced")
    assert last["why"] == (
        "90% interval -0.17 to +0.17 within ±0.3; 50% of runs like ours would be below the printed one; bf16 on cuda"
    )
    lowest = line(table, "resnet20", "8.00", LOWEST)
    assert (lowest["ours"], lowest["difference"]) == ("8.55 ± 0.10 (3 runs)", "+0.55")
    assert (lowest["verdict (±0.3)"], lowest["verdict (±1)"]) == ("not reproduced", "reproduced")
    assert lowest["why"].startswith("lies 0.38 to 0.72 above; ")
    assert lowest["seeds that would decide"] == "–"


def test_each_statistic_has_its_own_of_our_runs(found: dict[tuple[str, str, float], Verdict]) -> None:
    means = {key: one.ours.mean for key, one in found.items() if one.ours}
    assert means["resnet20", LAST, 8.04] == pytest.approx(8.75)
    assert means["lasagne_wide", VALIDATION, 5.41] == pytest.approx(5.4)
    assert means["preact110", MEDIAN, 6.37] == pytest.approx(6.4)
    assert means["resnet110", MEAN, 6.61] == pytest.approx(6.61)


def test_best_of_five_stands_against_a_simulated_best(table: pd.DataFrame) -> None:
    """The expected lowest of five lies 1.163 standard deviations below the mean (Harter 1961)."""
    best = line(table, "resnet110", "6.43", BEST)
    assert best["ours"] == "6.43 (simulated best of 5, from 5 runs)"
    assert best["difference"] == "+0.00"
    assert best["seeds that would decide"] == "–"
    mean = line(table, "resnet110", "6.61 ± 0.16", MEAN)
    assert (mean["ours"], mean["verdict (±0.3)"]) == ("6.61 ± 0.16 (5 runs)", "reproduced")
    assert "below the printed one" not in mean["why"]


def test_a_bound_is_met_or_not(table: pd.DataFrame) -> None:
    bound = line(table, "plain110", ">60.00", "higher than 60%")
    assert (bound["difference"], bound["90% interval"]) == ("+5.00", "+3.31 to +6.69")
    assert (bound["verdict (±0.3)"], bound["verdict (±1)"]) == ("reproduced", "reproduced")
    assert bound["why"] == "lies 3.31 to 6.69 above; bf16 on cuda"


@pytest.mark.parametrize(
    ("errors", "verdict", "why"),
    [
        ((59.0, 60.0, 62.0), "not enough runs to say", "90% interval -2.24 to +2.91, on both sides of the bound"),
        ((54.0, 55.0, 56.0), "not reproduced", "lies 3.31 to 6.69 below"),
    ],
)
def test_a_bound_may_not_be_met(rows: dict[str, Row], errors: tuple[float, ...], verdict: str, why: str) -> None:
    """t(0.95, 2) = 2.92: 60.33 ± 2.92 * 1.53 / sqrt(3), and 55 ± 2.92 / sqrt(3)."""
    runs = tuple(
        replace(run, metrics=run.metrics.model_copy(update={"test_error_percent": error}))
        for run, error in zip(rows["plain110"].runs, errors, strict=True)
    )
    found, _ = verdicts([Row("plain110", rows["plain110"].plan, runs)], SETTINGS)  # >60 is before >20
    assert (found.outcome, found.reason) == (verdict, f"{why}; bf16 on cuda")


def test_one_run_gives_a_difference_and_no_verdict(table: pd.DataFrame) -> None:
    one = line(table, "plain20", "9.67", "end of the curve")
    assert (one["ours"], one["difference"], one["90% interval"]) == ("9.40 (1 run)", "-0.27", "–")
    assert one["verdict (±0.3)"] == one["verdict (±1)"] == "not enough runs to say"
    assert (one["seeds that would decide"], one["why"]) == ("–", "1 run: no spread to judge by; bf16 on cpu")


def test_an_undecided_number_says_how_many_seeds_would_do(
    table: pd.DataFrame, found: dict[tuple[str, str, float], Verdict]
) -> None:
    """Two runs 0.2 apart: 0.03 above the paper, standard deviation 0.14; t(0.95, 1) = 6.31 makes ±0.63."""
    two = line(table, "preact110", "6.37", MEDIAN)
    assert two["90% interval"] == "-0.60 to +0.66"
    assert (two["verdict (±0.3)"], two["verdict (±1)"]) == ("not enough runs to say", "reproduced")
    assert two["why"] == "90% interval -0.60 to +0.66 reaches beyond ±0.3; bf16 on cuda"
    needed = found["preact110", MEDIAN, 6.37].seeds_needed
    assert needed is not None
    assert 2 < needed < 10
    assert two["seeds that would decide"] == str(needed)


def test_on_the_margin_no_number_of_seeds_would_do(rows: dict[str, Row]) -> None:
    (printed, *_) = verdicts([rows["preact110"]], SETTINGS.model_copy(update={"margin_points": 0.031}))
    assert printed.seeds_needed is None
    assert verdict_table([printed], SETTINGS).loc[0, "seeds that would decide"] == "more than 100"


def test_nothing_of_ours_stands_against_some_numbers(table: pd.DataFrame) -> None:
    not_run = line(table, "wrn16_4", "5.02", MEDIAN)
    assert (not_run["ours"], not_run["verdict (±0.3)"], not_run["verdict (±1)"]) == ("not run",) * 3
    assert (not_run["difference"], not_run["why"]) == ("–", "no run yet")
    none_held_out = line(table, "preact110", "6.38", VALIDATION)
    assert (none_held_out["ours"], none_held_out["verdict (±0.3)"]) == ("–", "–")
    assert none_held_out["why"] == "no images are held out, so no epoch is best on them"


def test_every_printed_number_of_every_full_row_has_a_line(table: pd.DataFrame) -> None:
    assert list(table["model"].unique()) == [
        "resnet20",
        "resnet32",
        "resnet110",
        "plain110",
        "plain20",
        "preact110",
        "lasagne_wide",
        "wrn16_4",
    ]
    assert list(table[table["model"] == "resnet110"]["printed"]) == ["6.61 ± 0.16", "6.43", "6.56", "6.61"]


def test_headlines(rows: dict[str, Row]) -> None:
    expected = {
        "resnet20": "reproduced",
        "resnet32": "not reproduced",
        "resnet110": "reproduced",
        "plain20": "not enough runs to say",
        "lasagne_wide": "reproduced",
        "wrn16_4": "not run",
        "resnet20_brief": "–",
    }
    assert {name: headline(rows[name], SETTINGS) for name in expected} == expected
    unprinted = rows["resnet20"].plan.model_copy(update={"model": "of_ones_own"})
    assert headline(replace(rows["resnet20"], plan=unprinted), SETTINGS) == "–"

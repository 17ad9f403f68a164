from pathlib import Path

import pytest
from scipy import stats

from resnet_repro import papers, params
from resnet_repro.claims import (
    CLAIMS,
    PLAIN,
    RESIDUAL,
    TRAIN_LOSS,
    Claim,
    Gap,
    as_printed,
    falling,
    highest,
    lower,
    lowest,
    no_gain,
    printed,
    rising,
)
from resnet_repro.reporting.claims import Answer, Finding, claims_page, claims_table, evaluate
from resnet_repro.reporting.load import Evidence, load
from resnet_repro.statistics import Outcome, equivalence
from synthetic import REPOSITORY, FakeRun, write_workspace


def seeds(model: str, error: float, spread: float = 0.1, precision: str = "bf16") -> list[FakeRun]:
    """Three runs with this mean."""
    steps = enumerate((-spread, 0.0, spread), start=1)
    return [FakeRun(model, seed, round(error + step, 6), precision=precision) for seed, step in steps]


RUNS = [
    *seeds("plain20", 9.7),
    *seeds("plain32", 11.7),
    *seeds("plain44", 13.7),
    *seeds("plain56", 15.7),
    *seeds("plain110", 65.0),
    # worse with depth, against the paper
    *seeds("resnet20", 7.0),
    *seeds("resnet32", 8.8),
    *seeds("resnet44", 10.6),
    *seeds("resnet56", 12.4),
    # one run on a side
    FakeRun("resnet110", 1, 8.0),
    *seeds("preact110", 6.0),
    # one model of an ordering with one run, all pairs in order; and with one pair in the wrong order
    *seeds("wrn40_1_zca", 9.0),
    *seeds("wrn40_2_zca", 7.0),
    FakeRun("wrn40_4_zca", 1, 5.0),
    *seeds("wrn40_8_zca", 3.0),
    *seeds("lasagne110", 5.0),
    *seeds("lasagne164", 7.0),
    FakeRun("lasagne_wide", 1, 4.0),
    # runs of several precisions
    *seeds("wrn28_10", 4.0),
    *seeds("wrn28_10_dropout", 3.0, precision="fp32"),
    FakeRun("wrn16_4", 1, 5.0),
    FakeRun("wrn16_4", 2, 5.1, precision="fp32"),
    FakeRun("wrn16_4", 3, 5.2, precision="fp32"),
    FakeRun("wrn16_4_dropout", 1, 2.0),
    FakeRun("wrn16_4_dropout", 2, 7.1, precision="fp32"),
    FakeRun("wrn16_4_dropout", 3, 7.2, precision="fp32"),
    # normalisation
    *seeds("resnet20_batch_statistics", 13.0),
    *seeds("plain20_batch_statistics", 13.0, spread=0.0),
    *seeds("resnet20_no_norm", 20.0),
    *seeds("plain20_no_norm", 15.0),
    *seeds("resnet20_brief", 14.0),
    *seeds("resnet20_brief_fp32", 19.0),
]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return load(write_workspace(tmp_path_factory.mktemp("claims"), RUNS, not_run=[FakeRun("preact164")]))


def finding(evidence: Evidence, *gaps: Gap) -> Finding:
    return evaluate(Claim("", "", "", gaps), evidence.rows, evidence.params.verdicts)


def test_a_true_ordering_holds(evidence: Evidence) -> None:
    found = finding(evidence, *rising(*PLAIN))
    assert found.verdict is Answer.HOLDS
    assert found.effect == pytest.approx(-2.0)
    assert found.interval
    assert found.interval[0] < -2.0 < found.interval[1] < 0
    assert found.superiority == 1.0
    assert found.evidence.startswith("test error: `plain20` 9.70 (3), `plain32` 11.70 (3)")
    assert found.evidence.endswith("; bf16 on cuda")
    assert found.detail == "3 of 3 shown"


def test_the_reversed_ordering_does_not(evidence: Evidence) -> None:
    found = finding(evidence, *falling(*RESIDUAL))
    assert found.verdict is Answer.DOES_NOT_HOLD
    assert found.effect == pytest.approx(1.8)
    assert (found.superiority, found.detail) == (0.0, "0 of 3 shown")


def test_the_lowest_and_the_highest(evidence: Evidence) -> None:
    every = (*PLAIN, *RESIDUAL)
    assert finding(evidence, *lowest("resnet20", every)).verdict is Answer.HOLDS
    assert finding(evidence, *lowest("resnet56", every)).verdict is Answer.DOES_NOT_HOLD
    found = finding(evidence, *highest("plain56", every))
    assert found.verdict is Answer.HOLDS
    assert found.gap == lower("plain44", "plain56")  # the closest of the seven


def test_one_run_on_a_side_decides_nothing(evidence: Evidence) -> None:
    """Of 1,000 images the one net misses 60 and the other the same and 20 more: by the sign test p = 2 / 2**20."""
    found = finding(evidence, Gap("preact110", "resnet110", high=0))
    # the pair is of seed 1: 59 and 80 images, so 21 differ
    assert found.detail == f"p of one pair {2 / 2**21:.2g}"
    assert (found.verdict, found.interval, found.superiority) == (Answer.UNDECIDED, None, None)
    assert found.effect == pytest.approx(-2.0)


def test_an_ordering_with_an_open_pair_is_open(evidence: Evidence) -> None:
    found = finding(evidence, *falling("wrn40_1_zca", "wrn40_2_zca", "wrn40_4_zca", "wrn40_8_zca"))
    assert found.verdict is Answer.UNDECIDED
    assert found.detail.startswith("1 of 3 shown, p of one pair ")


def test_a_pair_shown_the_other_way_outweighs_an_open_one(evidence: Evidence) -> None:
    found = finding(evidence, *falling("lasagne110", "lasagne164", "lasagne_wide"))
    assert found.verdict is Answer.DOES_NOT_HOLD
    assert found.gap == lower("lasagne164", "lasagne110")


def test_missing_models_are_named(evidence: Evidence) -> None:
    found = finding(evidence, *falling("preact110", "preact164", "preact1001"))
    assert (found.verdict, found.effect) == (Answer.NOT_RUN, None)
    assert found.evidence == "no run of `preact164`, `preact1001`"


def test_precisions_are_never_mixed(evidence: Evidence) -> None:
    found = finding(evidence, lower("wrn28_10_dropout", "wrn28_10"))
    assert found.verdict is Answer.NOT_RUN
    assert "no precision" in found.evidence


def test_of_two_precisions_the_one_with_more_runs_counts(evidence: Evidence) -> None:
    found = finding(evidence, lower("wrn16_4", "wrn16_4_dropout"))
    assert (found.verdict, found.effect) == (Answer.HOLDS, pytest.approx(-2.0))
    assert found.evidence == "test error: `wrn16_4` 5.15 (2), `wrn16_4_dropout` 7.15 (2); fp32 on cuda"


def test_short_schedules_test_no_claim(evidence: Evidence) -> None:
    assert finding(evidence, lower("resnet20_brief", "resnet20_brief_fp32")).verdict is Answer.NOT_RUN


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (2, 3, Answer.DOES_NOT_HOLD),
        (2, 12, Answer.HOLDS),
        (2, 6, Answer.UNDECIDED),  # the truth is at the end of the range
    ],
)
def test_a_difference_in_a_range(evidence: Evidence, low: float, high: float, verdict: Answer) -> None:
    found = finding(evidence, Gap("resnet20_batch_statistics", "resnet20", low=low, high=high))
    assert (found.verdict, found.effect) == (verdict, pytest.approx(6.0))


def test_no_gain_is_worse_or_equal_within_the_margin(evidence: Evidence) -> None:
    assert finding(evidence, no_gain("resnet20_no_norm", "plain20_no_norm")).verdict is Answer.HOLDS
    assert finding(evidence, no_gain("resnet20", "plain20")).verdict is Answer.DOES_NOT_HOLD
    equal = finding(evidence, no_gain("resnet20_batch_statistics", "plain20_batch_statistics"))
    assert (equal.verdict, equal.effect) == (Answer.HOLDS, pytest.approx(0.0))  # all miss nearly the same images


def test_beside_a_printed_number_stands_the_t_interval(evidence: Evidence) -> None:
    found = finding(evidence, Gap("resnet20", printed("resnet20"), high=0))
    standard_error = 0.1 / 3**0.5
    assert found.verdict is Answer.HOLDS
    assert found.interval == pytest.approx(stats.t.interval(0.9, 2, 7.0 - 8.75, standard_error))
    assert finding(evidence, Gap("resnet20", printed("resnet20"), low=0)).verdict is Answer.DOES_NOT_HOLD
    assert finding(evidence, Gap("plain110", printed("plain110"), low=0)).verdict is Answer.HOLDS
    assert finding(evidence, Gap("resnet110", 9.0, high=0)).verdict is Answer.UNDECIDED  # one run


@pytest.mark.parametrize("margin", ["margin_points", "wide_margin_points"])
def test_a_printed_number_is_judged_as_in_the_table_of_verdicts(evidence: Evidence, margin: str) -> None:
    outcomes = {
        Answer.HOLDS: Outcome.REPRODUCED,
        Answer.DOES_NOT_HOLD: Outcome.NOT_REPRODUCED,
        Answer.UNDECIDED: Outcome.UNDECIDED,
    }
    settings = evidence.params.verdicts
    for row in evidence.rows:
        if row.model in (*PLAIN, *RESIDUAL):
            expected = equivalence(
                row.test_error.values, printed(row.model), getattr(settings, margin), settings.alpha
            ).outcome
            assert outcomes[finding(evidence, as_printed(row.model, margin)).verdict] is expected


def test_a_loss_is_compared_in_nats(evidence: Evidence) -> None:
    """Its interval is Welch's, here against SciPy's."""
    found = finding(evidence, lower("plain20", "plain56", TRAIN_LOSS))
    losses = {row.model: [run.metrics.train_loss for run in row.runs] for row in evidence.rows}
    expected = stats.ttest_ind(losses["plain20"], losses["plain56"], equal_var=False).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.verdict is Answer.HOLDS


def test_the_table_and_the_page(evidence: Evidence) -> None:
    rows, settings = evidence.rows, evidence.params.verdicts
    table = claims_table(rows, settings)
    assert list(table.columns) == [
        "claim",
        "source",
        "evidence",
        "effect, points",
        "95% interval",
        "P(A beats B)",
        "verdict",
    ]
    assert len(table) == len(CLAIMS)
    by_name = table.set_index(table["claim"].str.extract(r"\*\*(.+?)\.\*\*")[0])
    verdicts = by_name["verdict"]
    assert verdicts["Deeper plain nets are worse"] == "holds"
    assert verdicts["Deeper residual nets are better"] == "does not hold"
    assert verdicts["Pre-activation helps at 110 layers"] == "not enough runs to say"
    assert verdicts["Pre-activation helps at 164 layers"] == "not run"
    row = by_name.loc["ResNet-20 is better than printed"]
    assert row["effect, points"] == "-1.75 (`resnet20` − 8.75)"
    assert row["95% interval"].endswith("(90%)")
    assert by_name.loc["Pre-activation helps at 164 layers", "effect, points"] == "–"
    page = claims_page(rows, settings)
    counts = table["verdict"].value_counts()
    assert f"{len(CLAIMS)} claims: holds {counts['holds']}, not enough runs to say " in page
    assert page.count("\n|") == len(CLAIMS) + 2


def test_every_claim_is_about_known_models() -> None:
    known = set(params.load(REPOSITORY / "params.yaml").models)
    known |= {number.model for number in (*papers.PAPERS, *papers.SOURCE_PROJECTS)}
    assert {model for claim in CLAIMS for model in claim.models} <= known


def test_every_claim_has_a_name_a_sentence_and_a_source() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS) >= 18
    sources = ("He 2015", "He 2016", "Zagoruyko 2016", "a-martyn", "Lasagne PreResNet")
    for claim in CLAIMS:
        assert claim.gaps
        assert claim.text.endswith(".")
        assert "|" not in claim.text
        assert claim.source.startswith(sources)


def test_an_empty_workspace_tests_nothing(tmp_path: Path) -> None:
    empty = load(write_workspace(tmp_path, [], not_run=[FakeRun("resnet20")]))
    assert set(claims_table(empty.rows, empty.params.verdicts)["verdict"]) == {"not run"}

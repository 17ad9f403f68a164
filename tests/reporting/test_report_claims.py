"""Numbers by hand: a test error's spread is 1.25 times sqrt(error / 200) points with 30 degrees of freedom, updated by
the runs at hand (docs/explanation.md, "What few runs may say")."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from scipy import stats
from statsmodels.stats.power import NormalIndPower

from resnet_repro import papers, params
from resnet_repro.claims import CLAIMS, PLAIN, RESIDUAL, Claim
from resnet_repro.errors import ReproError
from resnet_repro.evidence import AuditedNet, read_audited
from resnet_repro.gaps import (
    LOWEST_TEST_ERROR,
    RESPONSES,
    TEST_ERROR_RISE,
    TRAIN_ERROR,
    TRAIN_LOSS,
    Gap,
    as_printed,
    falling,
    highest,
    lower,
    lowest,
    mostly_above,
    no_gain,
    printed,
    rising,
    similar,
)
from resnet_repro.reporting.claims import Answer, Finding, claims_page, claims_table, evaluate
from resnet_repro.reporting.judge import Rule
from resnet_repro.reporting.load import Evidence, load
from resnet_repro.statistics import Outcome, PriorCheck, equivalence
from synthetic import REPOSITORY, FakeRun, write_workspace

AUDIT = REPOSITORY / "reports/audit.json"


def seeds(model: str, error: float, spread: float = 0.1, precision: str = "bf16") -> list[FakeRun]:
    """Three runs with this mean."""
    steps = enumerate((-spread, 0.0, spread), start=1)
    return [FakeRun(model, seed, round(error + step, 6), precision=precision) for seed, step in steps]


def each(model: str, *errors: float) -> list[FakeRun]:
    return [FakeRun(model, seed, error) for seed, error in enumerate(errors, start=1)]


RUNS = [
    *seeds("plain20", 9.7),
    *seeds("plain32", 11.7),
    *seeds("plain44", 13.7),
    *seeds("plain56", 15.7),
    *each("plain110", 61.0, 61.0, 90.0, 90.0, 62.0),  # of the mean no interval would exclude 60
    *each("original110_scaled_shortcut", 12.0, 12.1, 12.2, 12.3, 12.4),
    *each("original110_dropout_shortcut", 90.0, 90.0, 15.0, 90.0, 90.0),
    *each("original110_exclusive_gating_0", 90.0, 90.0, 90.0),
    # worse with depth, against the paper
    *seeds("resnet20", 7.0),
    *seeds("resnet32", 8.8),
    *seeds("resnet44", 10.6),
    *seeds("resnet56", 12.4),
    # one run on a side
    FakeRun("resnet110", 1, 8.0),
    *seeds("preact110", 6.0),
    FakeRun("original164", 1, 6.2),
    # one pair of an ordering open; and one in the wrong order
    *seeds("wrn40_1_zca", 9.0),
    *seeds("wrn40_2_zca", 7.0),
    FakeRun("wrn40_4_zca", 1, 6.8),
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
    workspace = write_workspace(tmp_path_factory.mktemp("claims"), RUNS, not_run=[FakeRun("preact164")])
    shutil.copy(AUDIT, workspace / "reports")
    return load(workspace)


@pytest.fixture(scope="module")
def rule(evidence: Evidence) -> Rule:
    """With the prior: that seeds differ as they do is not asked here."""
    return Rule(evidence.params.verdicts, None)


def finding(evidence: Evidence, rule: Rule, *gaps: Gap) -> Finding:
    return evaluate(Claim("", "", "", gaps), evidence.rows, rule, evidence.audited)


def spread(*samples: Sequence[float]) -> tuple[float, int]:
    """Ratio to sqrt(error / 200), and its degrees of freedom."""
    freedom = 30 + sum(len(sample) - 1 for sample in samples)
    squares = sum((value - fmean(s)) ** 2 / (fmean(s) / 200) for s in samples for value in s)
    return float(((30 * 1.25**2 + squares) / freedom) ** 0.5), freedom


def interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """95%, of mean a - mean b."""
    ratio, freedom = spread(a, b)
    error = ratio * (fmean(a) / 200 / len(a) + fmean(b) / 200 / len(b)) ** 0.5
    low, high = stats.t.interval(0.95, freedom, fmean(a) - fmean(b), error)
    return float(low), float(high)


def test_a_true_ordering_holds(evidence: Evidence, rule: Rule) -> None:
    found = finding(evidence, rule, *rising(*PLAIN))
    assert found.verdict is Answer.HOLDS
    assert found.effect == pytest.approx(-2.0)
    assert found.gap == lower("plain20", "plain32")
    assert found.interval == pytest.approx(interval((9.6, 9.7, 9.8), (11.6, 11.7, 11.8)))
    assert found.evidence.startswith("test error: `plain20` 9.70 (3), `plain32` 11.70 (3)")
    assert found.evidence.endswith("; bf16 on cuda")
    assert found.detail == "3 of 3 shown"


def test_the_reversed_ordering_does_not(evidence: Evidence, rule: Rule) -> None:
    found = finding(evidence, rule, *falling(*RESIDUAL))
    assert (found.verdict, found.detail) == (Answer.DOES_NOT_HOLD, "0 of 3 shown")
    assert found.effect == pytest.approx(1.8)


def test_the_lowest_and_the_highest(evidence: Evidence, rule: Rule) -> None:
    every = (*PLAIN, *RESIDUAL)
    assert finding(evidence, rule, *lowest("resnet20", every)).verdict is Answer.HOLDS
    assert finding(evidence, rule, *lowest("resnet56", every)).verdict is Answer.DOES_NOT_HOLD
    found = finding(evidence, rule, *highest("plain56", every))
    assert found.verdict is Answer.HOLDS
    assert found.gap == lower("plain44", "plain56")  # the closest of the seven


def test_one_run_on_a_side_decides_by_the_published_spread(evidence: Evidence, rule: Rule) -> None:
    found = finding(evidence, rule, lower("preact110", "resnet110"))
    assert (found.verdict, found.interval) == (Answer.HOLDS, pytest.approx(interval((5.9, 6.0, 6.1), (8.0,))))
    near = finding(evidence, rule, lower("preact110", "original164"))
    assert (near.verdict, near.effect) == (Answer.UNDECIDED, pytest.approx(-0.2))


def test_one_run_each_of_two_models(tmp_path: Path) -> None:
    """As the first two runs of this project: -1.62 ± 2.042 * 1.25 * sqrt((8.27 + 9.89) / 200)."""
    two = load(write_workspace(tmp_path, [FakeRun("plain20", 1, 9.89), FakeRun("resnet20", 1, 8.27)]))
    claims = {claim.name: claim for claim in CLAIMS}
    found = evaluate(claims["Residual beats plain at 20 layers"], two.rows, Rule.of(two.rows, two.params.verdicts))
    assert (found.verdict, found.interval) == (Answer.HOLDS, pytest.approx((-2.389, -0.851), abs=0.001))


def test_without_the_prior_one_run_decides_nothing(evidence: Evidence, rule: Rule) -> None:
    alone = replace(rule, check=PriorCheck(2.0, 50, 1e-6, holds=False))
    found = finding(evidence, alone, lower("preact110", "resnet110"))
    assert (found.verdict, found.interval) == (Answer.UNDECIDED, None)
    assert finding(evidence, alone, lower("preact110", "plain20")).verdict is Answer.HOLDS


def test_an_ordering_with_an_open_pair_is_partly_shown(evidence: Evidence, rule: Rule) -> None:
    found = finding(evidence, rule, *falling("wrn40_1_zca", "wrn40_2_zca", "wrn40_4_zca", "wrn40_8_zca"))
    assert (found.verdict, found.gap) == (Answer.PARTLY, lower("wrn40_4_zca", "wrn40_2_zca"))
    shown = "`wrn40_2_zca` − `wrn40_1_zca`, `wrn40_8_zca` − `wrn40_4_zca`"
    assert found.detail.startswith(f"2 of 3 shown ({shown})")


def test_a_pair_shown_the_other_way_outweighs_an_open_one(evidence: Evidence, rule: Rule) -> None:
    found = finding(evidence, rule, *falling("lasagne110", "lasagne164", "lasagne_wide"))
    assert (found.verdict, found.gap) == (Answer.DOES_NOT_HOLD, lower("lasagne164", "lasagne110"))


def test_a_conjunction_shares_alpha_to_be_refuted(evidence: Evidence, rule: Rule) -> None:
    """2.3 standard errors outside: beyond t(0.975, 32) = 2.04, short of t(1 - 0.025 / 4, 32) = 2.65 (Holm)."""
    ratio, _ = spread((6.9, 7.0, 7.1))
    outside = Gap("resnet20", 7.0 - 2.3 * ratio * (7.0 / 200 / 3) ** 0.5, high=0)
    assert finding(evidence, rule, outside).verdict is Answer.DOES_NOT_HOLD
    found = finding(evidence, rule, outside, *rising(*PLAIN))
    assert (found.verdict, found.gap) == (Answer.PARTLY, outside)


def test_what_has_run_of_a_conjunction_is_said(evidence: Evidence, rule: Rule) -> None:
    waiting = lower("preact164", "original164")
    found = finding(evidence, rule, lower("plain20", "plain32"), waiting)
    assert (found.verdict, found.effect) == (Answer.PARTLY, pytest.approx(-2.0))
    assert found.detail == "1 of 2 shown, 1 not run"
    assert finding(evidence, rule, lower("plain32", "plain20"), waiting).verdict is Answer.DOES_NOT_HOLD
    undecided = finding(evidence, rule, lower("wrn40_4_zca", "wrn40_2_zca"), waiting)
    assert (undecided.verdict, undecided.detail[:23]) == (Answer.UNDECIDED, "0 of 2 shown, 1 not run")


def test_missing_models_are_named(evidence: Evidence, rule: Rule) -> None:
    found = finding(evidence, rule, *falling("preact110", "preact164", "preact1001"))
    assert (found.verdict, found.effect) == (Answer.NOT_RUN, None)
    assert found.evidence == "no run of `preact164`, `preact1001`"


def test_precisions_are_never_mixed(evidence: Evidence, rule: Rule) -> None:
    found = finding(evidence, rule, lower("wrn28_10_dropout", "wrn28_10"))
    assert (found.verdict, found.evidence) == (Answer.NOT_RUN, "no precision and device in which both models have run")


def test_of_two_precisions_the_one_with_more_runs_counts(evidence: Evidence, rule: Rule) -> None:
    found = finding(evidence, rule, similar("wrn16_4", "wrn16_4_dropout"))
    assert found.effect == pytest.approx(5.1 - 7.1)  # of two runs each, the first look
    assert found.evidence == "test error: `wrn16_4` 5.15 (2), `wrn16_4_dropout` 7.15 (2); fp32 on cuda"


def test_short_schedules_test_no_claim(evidence: Evidence, rule: Rule) -> None:
    assert finding(evidence, rule, lower("resnet20_brief", "resnet20_brief_fp32")).verdict is Answer.NOT_RUN


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (2, 3, Answer.DOES_NOT_HOLD),
        (2, 12, Answer.HOLDS),
        (2, 6, Answer.UNDECIDED),  # the truth is at the end of the range
    ],
)
def test_a_difference_in_a_range(evidence: Evidence, rule: Rule, low: float, high: float, verdict: Answer) -> None:
    found = finding(evidence, rule, Gap("resnet20_batch_statistics", "resnet20", low=low, high=high))
    assert (found.verdict, found.effect) == (verdict, pytest.approx(6.0))


def test_no_gain_is_worse_or_equal_within_the_margin(evidence: Evidence, rule: Rule) -> None:
    assert finding(evidence, rule, no_gain("resnet20_no_norm", "plain20_no_norm")).verdict is Answer.HOLDS
    assert finding(evidence, rule, no_gain("resnet20", "plain20")).verdict is Answer.DOES_NOT_HOLD
    equal = finding(evidence, rule, no_gain("resnet20_batch_statistics", "plain20_batch_statistics"))
    assert (equal.verdict, equal.effect) == (Answer.UNDECIDED, pytest.approx(0.0))  # 13% spreads by 0.3


def test_beside_a_printed_number_stands_the_t_interval(evidence: Evidence, rule: Rule) -> None:
    found = finding(evidence, rule, Gap("resnet20", printed("resnet20"), high=0))
    ratio, freedom = spread((6.9, 7.0, 7.1))
    error = ratio * (7.0 / 200 / 3) ** 0.5
    assert found.verdict is Answer.HOLDS
    assert found.interval == pytest.approx(stats.t.interval(0.95, freedom, 7.0 - 8.75, error))
    assert "`resnet20` 7.00 (3) against 8.75" in found.evidence
    assert finding(evidence, rule, Gap("resnet20", printed("resnet20"), low=0)).verdict is Answer.DOES_NOT_HOLD


def test_a_lowest_epoch_is_its_own_measure(evidence: Evidence, rule: Rule) -> None:
    """Each lies 0.2 below the last."""
    found = finding(evidence, rule, Gap("resnet20", 6.8, high=0, measure=LOWEST_TEST_ERROR))
    assert found.effect == pytest.approx(0)
    assert found.evidence.startswith("lowest test error over epochs: `resnet20` 6.80 (3)")


@pytest.mark.parametrize("margin", ["margin_points", "wide_margin_points"])
def test_a_printed_number_is_judged_as_in_the_table_of_verdicts(evidence: Evidence, rule: Rule, margin: str) -> None:
    outcomes = {
        Answer.HOLDS: Outcome.REPRODUCED,
        Answer.DOES_NOT_HOLD: Outcome.NOT_REPRODUCED,
        Answer.UNDECIDED: Outcome.UNDECIDED,
    }
    settings = evidence.params.verdicts
    for row in evidence.rows:
        if row.model in (*PLAIN, *RESIDUAL):
            number, values = papers.paper_numbers(row.model)[0], row.test_error.values
            expected = equivalence(
                values, number.value, getattr(settings, margin), settings.alpha, rule.spread(values), number.reading_sd
            ).outcome
            assert outcomes[finding(evidence, rule, as_printed(row.model, margin)).verdict] is expected


def test_a_loss_is_compared_in_nats(evidence: Evidence, rule: Rule) -> None:
    """Its interval is Welch's, here against SciPy's."""
    found = finding(evidence, rule, lower("plain20", "plain56", TRAIN_LOSS))
    losses = {row.model: [run.metrics.train_loss for run in row.runs] for row in evidence.rows}
    expected = stats.ttest_ind(losses["plain20"], losses["plain56"], equal_var=False).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.verdict is Answer.HOLDS


def test_one_run_of_an_unknown_spread_is_only_described(evidence: Evidence, rule: Rule) -> None:
    wide, deep = lower("lasagne_wide", "lasagne164", TRAIN_ERROR), lower("lasagne164", "lasagne_wide", TRAIN_ERROR)
    found = finding(evidence, rule, wide)
    assert (found.verdict, found.interval) == (Answer.AS_CLAIMED, None)
    assert found.effect is not None
    assert found.effect < 0
    assert finding(evidence, rule, deep).verdict is Answer.NOT_AS_CLAIMED
    both = finding(evidence, rule, wide, lower("plain20", "plain32"), lower("preact164", "lasagne164", TRAIN_ERROR))
    assert (both.verdict, both.detail) == (
        Answer.AS_CLAIMED,
        "1 of 3 shown (`plain20` − `plain32`), 1 of 3 as claimed, 1 not run",
    )


def test_runs_above_a_bound_are_counted(evidence: Evidence, rule: Rule) -> None:
    """By the binomial distribution five of five have a chance of 1/32, four of five or three of three more."""
    expected = {
        ("plain110", 60.0): (Answer.HOLDS, "5 of 5 runs above 60%"),
        ("original110_scaled_shortcut", 20.0): (Answer.DOES_NOT_HOLD, "0 of 5 runs above 20%"),
        ("original110_dropout_shortcut", 20.0): (Answer.UNDECIDED, "4 of 5 runs above 20%"),
        ("original110_exclusive_gating_0", 20.0): (Answer.UNDECIDED, "3 of 3 runs above 20%"),
    }
    for (model, bound), (verdict, detail) in expected.items():
        found = finding(evidence, rule, mostly_above(model, bound))
        assert (found.verdict, found.detail, found.interval) == (verdict, detail, None)


def test_a_claim_out_of_reach_says_how_many_runs_it_takes(evidence: Evidence, rule: Rule) -> None:
    """resnet56 and resnet44, printed 6.97 and 7.17; statsmodels' power of a two-sided test."""
    variance = 1.25**2 * (6.97 + 7.17) / 200 / 2
    runs = NormalIndPower().solve_power(0.2 / variance**0.5, alpha=0.05, power=0.8)
    assert 21 < runs < 22
    names = {claim.name: claim for claim in CLAIMS}
    found = evaluate(names["Deeper residual nets are better"], (), rule)
    assert found.verdict is Answer.NOT_RUN
    assert found.detail == (
        "not to be decided here: the printed difference -0.20 (`resnet56` − `resnet44`) takes 22 runs a side"
    )
    against = evaluate(names["Widening helps at 22 layers"], (), rule).detail
    assert against.endswith("+0.06 (`wrn22_10_zca` − `wrn22_8_zca`) is itself not as claimed")
    assert evaluate(names["Residual beats plain at 20 layers"], (), rule).detail == ""
    assert finding(evidence, rule, lower("resnet44", "resnet56")).detail == ""  # decided


def test_audited_nets_are_runs_of_their_own_recipe(evidence: Evidence, rule: Rule) -> None:
    assert {net.model: net.test_error_percent for net in evidence.audited} == {
        f"{model}_a_martyn": number.value
        for model in (*PLAIN, *RESIDUAL)
        for number in papers.source_project_numbers(model)
        if number.statistic == papers.LAST
    }
    names = {claim.name: claim for claim in CLAIMS}
    found = evaluate(names["Residual beats plain, by a-martyn's recipe"], evidence.rows, rule, evidence.audited)
    assert (found.verdict, found.detail) == (Answer.HOLDS, "4 of 4 shown")
    assert found.interval == pytest.approx(interval((8.04,), (9.69,)))
    assert found.evidence.endswith("; published weights, audited in fp32")
    mixed = finding(evidence, rule, lower("resnet20_a_martyn", "plain20"))
    assert (mixed.verdict, mixed.evidence) == (
        Answer.NOT_RUN,
        "no precision and device in which both models have run",
    )


def test_our_own_nets_in_the_audit_are_no_further_runs_and_a_damaged_audit_is_refused(tmp_path: Path) -> None:
    workspace = write_workspace(tmp_path, [FakeRun("resnet20")])
    (audit := workspace / "reports/audit.json").write_text(
        '{"weights": [{"name": "some-one/net20", "test_error_percent": 8.0},'
        ' {"name": "resnet-repro/resnet20", "test_error_percent": 8.35}]}'
    )
    assert [net.model for net in read_audited(audit)] == ["net20_some_one"]
    assert load(workspace).audited == (AuditedNet("some-one", "net20", 8.0),)
    audit.write_text('{"weights": [{}]}')
    with pytest.raises(ReproError, match=r"audit\.json cannot be read .*`resnet-repro audit`"):
        load(workspace)


def test_responses_need_one_net_each(evidence: Evidence, rule: Rule) -> None:
    gap = lower("resnet20_a_martyn", "plain20_a_martyn", RESPONSES)
    nets = (AuditedNet("a-martyn", "resnet20", 8.0, (0.4, 0.6)), AuditedNet("a-martyn", "plain20", 9.7, (0.9, 1.1)))
    found = evaluate(Claim("", "", "", (gap,)), (), rule, nets)
    assert (found.verdict, found.effect) == (Answer.AS_CLAIMED, pytest.approx(-0.5))
    none = evaluate(Claim("", "", "", (gap,)), (), rule, (replace(nets[0], response_stds=None), nets[1]))
    assert (none.verdict, none.evidence) == (
        Answer.NOT_RUN,
        "not measured: layer responses, mean of the standard deviations",
    )
    run = evidence.rows[0].runs[0]
    measured = replace(run, metrics=run.metrics.model_copy(update={"response_stds": (0.5, 0.7)}))
    assert (RESPONSES(run), RESPONSES(measured)) == (None, pytest.approx(0.6))


def test_the_rise_is_that_of_the_second_learning_rate(evidence: Evidence) -> None:
    """Ten epochs after the first drop, and ten before the second."""
    (run, *_) = next(row.runs for row in evidence.rows if row.model == "wrn28_10")
    errors = [0.0] * 60 + [5.0] * 10 + [7.0] * 40 + [6.0] * 10 + [4.0] * 80
    assert len(run.history) == len(errors)
    assert TEST_ERROR_RISE(replace(run, history=run.history.assign(test_error_percent=errors))) == pytest.approx(1.0)
    assert TEST_ERROR_RISE(replace(run, history=run.history.head(60))) is None


def test_the_table_and_the_page(evidence: Evidence, rule: Rule) -> None:
    table = claims_table(evidence.rows, rule, audited=evidence.audited)
    assert list(table.columns) == ["claim", "verdict", "effect, points", "95% interval", "evidence"]
    assert len(table) == len(CLAIMS)
    by_name = table.set_index(table["claim"].str.extract(r"\*\*(.+?)\.\*\* ")[0])
    verdicts = by_name["verdict"]
    assert verdicts["Deeper plain nets are worse"] == "holds"
    assert verdicts["Deeper residual nets are better"] == "does not hold"
    assert verdicts["Within 1%, by a-martyn's recipe"] == "partly shown"
    assert verdicts["ResNet-56 is worse than printed, by a-martyn's recipe"] == "not enough runs to say"
    assert verdicts["Pre-activation helps at 164 layers"] == "not run"
    row = by_name.loc["Running statistics are worth 2 to 3 points by the paper's recipe"]
    assert row["effect, points"] == "+6.00 (`resnet20_batch_statistics` − `resnet20`)"
    assert by_name.loc["Pre-activation helps at 164 layers", "effect, points"] == "–"
    page = claims_page(evidence.rows, rule, audited=evidence.audited)
    counts = table["verdict"].value_counts()
    assert f"{len(CLAIMS)} claims: holds {counts['holds']}, does not hold {counts['does not hold']}, " in page
    titles = [
        "## Decided",
        "## Partly decided",
        "## Not decided",
        "## Seen, not tested",
        "## Not run",
        "## How to read",
    ]
    assert [line for line in page.splitlines() if line.startswith("## ")] == titles
    assert page.count("\n|") == len(CLAIMS) + 2 * 5  # five tables
    decided = page[page.index(titles[0]) : page.index(titles[1])]
    assert decided.index("| holds") < decided.index("| does not hold")


def test_a_claim_of_table_1_has_its_own_rows_only() -> None:
    """plain110 stands there with a warm-up that its row here does not have."""
    table = {claim.name: set(claim.models) for claim in CLAIMS if "Table 1" in claim.source}
    models = table["Whatever stands on the shortcut hurts"] | table["Some shortcuts fail"]
    assert len(models - {"resnet110"}) == 10
    assert "plain110" not in models
    assert len(table["Some shortcuts fail"]) == 4


def test_every_claim_is_about_known_models() -> None:
    known = set(params.load(REPOSITORY / "params.yaml").models)
    known |= {number.model for number in (*papers.PAPERS, *papers.SOURCE_PROJECTS)}
    assert {model for claim in CLAIMS for model in claim.models} <= known


def test_every_claim_has_a_name_a_sentence_and_a_source() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    sources = ("He 2015", "He 2016", "Zagoruyko 2016", "a-martyn", "Lasagne PreResNet")
    for claim in CLAIMS:
        assert claim.gaps
        assert claim.text.endswith(".")
        assert "|" not in claim.text
        assert claim.source.startswith(sources)


def test_an_empty_workspace_tests_nothing(tmp_path: Path) -> None:
    empty = load(write_workspace(tmp_path, [], not_run=[FakeRun("resnet20")]))
    assert set(claims_table(empty.rows, Rule.of((), empty.params.verdicts))["verdict"]) == {"not run"}

"""Against published worked examples, other packages, and simulations whose truth is known."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.nonparametric import rank_compare_2indep
from statsmodels.stats.weightstats import DescrStatsW, ttost_ind

from resnet_repro.statistics import (
    Outcome,
    above,
    bootstrap,
    chance_below,
    compare,
    describe,
    equivalence,
    equivalence_of,
    expected_lowest,
    mcnemar,
    seeds_needed,
    simulated_best,
    tost_power,
    wilson,
)

SLEEP = (  # Student's, from R's `sleep`
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)
ERRORS = st.lists(st.integers(700, 999).map(lambda hundredths: hundredths / 100), min_size=2, max_size=8)


def runs_with(n: int, mean: float, std: float) -> list[float]:
    """n values with exactly this mean and sample standard deviation."""
    values = stats.zscore(np.arange(n, dtype=float), ddof=1)
    return (mean + std * values).tolist()


def shares(samples: np.ndarray, target: float, margin: float) -> dict[Outcome, float]:
    """How often each verdict falls over (repetitions, n) samples."""
    outcomes = [equivalence(sample, target, margin).outcome for sample in samples]
    return {outcome: outcomes.count(outcome) / len(outcomes) for outcome in Outcome}


def sampling_error(share: float, repetitions: int) -> float:
    return 4 * np.sqrt(share * (1 - share) / repetitions)


def test_summary_of_student_s_sleep_data() -> None:
    """R: t.test(sleep$extra[1:10]) gives 0.75 and -0.5297804 to 2.0297804."""
    summary = describe(SLEEP[0])
    assert (summary.n, summary.low, summary.high) == (10, -1.6, 3.7)
    assert summary.mean == pytest.approx(0.75)
    assert summary.median == pytest.approx(0.35)
    assert summary.std == pytest.approx(1.789010, abs=1e-6)
    assert summary.interval == pytest.approx((-0.5297804, 2.0297804), abs=1e-6)


@pytest.mark.parametrize(("n", "half_width"), [(3, 0.50), (5, 0.25), (10, 0.14), (20, 0.09)])
def test_half_widths_for_a_standard_deviation_of_a_fifth(n: int, half_width: float) -> None:
    summary = describe(runs_with(n, 6.6, 0.2))
    assert summary.interval is not None
    assert summary.interval[1] - summary.mean == pytest.approx(half_width, abs=0.005)


def test_one_value_has_no_spread_and_none_no_summary() -> None:
    summary = describe([8.5])
    assert (summary.mean, summary.median, summary.std, summary.interval) == (8.5, 8.5, None, None)
    for values in ([], [8.5, float("nan")]):
        with pytest.raises(ValueError, match="at least one value"):
            describe(values)


def test_wilson_interval_of_the_best_resnet110() -> None:
    assert wilson(6.43, 10_000) == pytest.approx((5.97, 6.93), abs=0.005)


@given(ERRORS, st.floats(7, 10), st.floats(0.05, 2))
@settings(max_examples=50, deadline=None)
def test_verdict_is_that_of_two_one_sided_tests(values: list[float], target: float, margin: float) -> None:
    assume(len(set(values)) > 1)
    p_value = DescrStatsW(np.array(values)).ttost_mean(target - margin, target + margin)[0]
    assume(abs(p_value - 0.05) > 1e-9)
    assert (equivalence(values, target, margin).outcome is Outcome.REPRODUCED) == (p_value < 0.05)


@given(
    ERRORS,
    st.floats(7, 10),
    st.floats(0.01, 100),
    st.floats(-50, 50),
    st.floats(0.05, 2),
    st.sampled_from([None, 1, 5]),
)
@settings(max_examples=50, deadline=None)
def test_verdict_depends_on_no_unit_and_on_differences_only(
    values: list[float], target: float, scale: float, shift: float, margin: float, best_of: int | None
) -> None:
    there = equivalence(values, target, margin, best_of=best_of)
    changed = [scale * value + shift for value in values]
    moved = equivalence(changed, scale * target + shift, scale * margin, best_of=best_of)
    assert there.interval is not None
    assert moved.difference == pytest.approx(scale * there.difference, abs=1e-6)
    assert moved.interval == pytest.approx([scale * edge for edge in there.interval], abs=1e-6)
    assume(min(abs(abs(edge) - margin) for edge in there.interval) > 1e-6)
    assert moved.outcome is there.outcome


@given(ERRORS, st.floats(0.5, 0.999), st.integers(2, 5), st.floats(0.01, 100), st.floats(-50, 50))
@settings(max_examples=50)
def test_intervals_of_a_mean(values: list[float], confidence: float, times: int, scale: float, shift: float) -> None:
    """Around the mean; wider where more sure; narrower for more runs of the same spread; moved with the values."""
    assume(len(set(values)) > 1)
    found = describe(values, confidence)
    low, high = found.interval or (np.nan, np.nan)
    assert low < found.mean < high
    assert found.mean - low == pytest.approx(high - found.mean)
    surer, more = describe(values, (1 + confidence) / 2).interval, describe(values * times, confidence).interval
    assert np.diff(surer)[0] > high - low > np.diff(more)[0]
    moved = describe([scale * value + shift for value in values], confidence).interval
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6)


@given(st.integers(0, 10_000), st.integers(1, 10_000), st.floats(0.5, 0.999))
def test_wilson_interval_is_a_share_around_the_error_and_narrows(wrong: int, images: int, confidence: float) -> None:
    error = 100 * min(wrong, images) / images
    low, high = wilson(error, images, confidence)
    assert -1e-9 <= low <= error + 1e-9
    assert error - 1e-9 <= high <= 100 + 1e-9
    assert (100 - high, 100 - low) == pytest.approx(wilson(100 - error, images, confidence), abs=1e-9)
    assert np.diff(wilson(error, 4 * images, confidence))[0] < high - low


@given(st.tuples(*[st.integers(0, 60)] * 4), st.integers(0, 50))
def test_mcnemar_takes_no_side_and_sees_only_where_the_two_differ(counts: tuple[int, ...], agree: int) -> None:
    both, only_a, only_b, neither = counts
    wrong_a, wrong_b = wrong_pair(both, only_a, only_b, neither)
    p_value = mcnemar(wrong_a, wrong_b)
    assert 0 <= p_value <= 1
    assert p_value == pytest.approx(mcnemar(wrong_b, wrong_a))
    assert p_value == pytest.approx(mcnemar(*wrong_pair(both + agree, only_a, only_b, neither + agree)))


@given(ERRORS, st.floats(7, 10), st.floats(0.05, 2), st.floats(0, 2))
@settings(max_examples=50, deadline=None)
def test_a_wider_margin_only_helps(values: list[float], target: float, margin: float, more: float) -> None:
    narrow, wide = (equivalence(values, target, width).outcome for width in (margin, margin + more))
    order = [Outcome.NOT_REPRODUCED, Outcome.UNDECIDED, Outcome.REPRODUCED]
    assert order.index(wide) >= order.index(narrow)


@pytest.mark.parametrize(("n", "passes", "fails"), [(5, 0.105, 0.115), (10, 0.180, 0.190)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_how_near_the_paper_a_few_runs_must_lie(n: int, passes: float, fails: float, sign: int) -> None:
    """With a standard deviation of 0.2 and a margin of 0.3: ±0.11 for 5 runs, ±0.18 for 10."""
    near, far = (equivalence(runs_with(n, 6.61 + sign * by, 0.2), 6.61, 0.3) for by in (passes, fails))
    assert (near.outcome, far.outcome) == (Outcome.REPRODUCED, Outcome.UNDECIDED)
    assert far.difference == pytest.approx(sign * fails)


@pytest.mark.parametrize("margin", [0.01, 10])
def test_one_run_decides_nothing(margin: float) -> None:
    found = equivalence([8.5], 8.75, margin)
    assert (found.estimate, found.difference, found.interval) == (8.5, -0.25, None)
    assert found.outcome is Outcome.UNDECIDED
    assert equivalence([8.5], 8.75, margin, best_of=5).estimate is None
    assert above([65.0], 60).outcome is Outcome.UNDECIDED


@pytest.mark.parametrize("side", [-1, 1])
def test_wrong_verdicts_on_the_margin_are_as_rare_as_alpha(side: int) -> None:
    """A true difference of exactly the margin: either verdict is the type I error of one of the tests."""
    repetitions, margin = 2_000, 0.3
    samples = np.random.default_rng(side + 1).normal(6.61 + side * margin, 0.2, (repetitions, 10))
    found = shares(samples, 6.61, margin)
    for outcome in (Outcome.REPRODUCED, Outcome.NOT_REPRODUCED):
        assert found[outcome] == pytest.approx(0.05, abs=sampling_error(0.05, repetitions))


@pytest.mark.parametrize("difference", [0.0, 0.15, 0.55])
def test_so_many_seeds_decide_as_often_as_planned(difference: float) -> None:
    repetitions, margin, std = 2_000, 0.3, 0.2
    right = Outcome.REPRODUCED if difference < margin else Outcome.NOT_REPRODUCED
    n = seeds_needed(difference, std, margin)
    assert n is not None
    random = np.random.default_rng(n)
    enough, too_few = (
        shares(random.normal(8.0 + difference, std, (repetitions, size)), 8.0, margin)[right] for size in (n, n - 1)
    )
    slack = sampling_error(0.8, repetitions)
    assert enough >= 0.8 - slack
    assert too_few < 0.8 + slack


def test_power_of_equivalence_is_that_of_a_published_design() -> None:
    """R's PowerTOST: sampleN.TOST(theta0=0.95, CV=0.20, design="2x2") needs 20 subjects, power 0.8346802."""
    std = np.sqrt(np.log(1 + 0.20**2))
    subjects = np.array([18, 20])
    power = tost_power(np.log(0.95), std * np.sqrt(2 / subjects), subjects - 2, np.log(1.25))
    assert power[1] == pytest.approx(0.8346802, abs=1e-6)
    assert power[0] < 0.8


def test_no_number_of_seeds_decides_on_the_margin() -> None:
    assert seeds_needed(0.3, 0.2, 0.3) is None
    assert seeds_needed(-0.3, 0.0, 0.3) is None
    assert seeds_needed(0.29, 0.2, 0.3) is None
    assert seeds_needed(0.1, 0.0, 0.3) == 2
    assert seeds_needed(30.0, 0.2, 0.3) == 2


def test_more_than_a_bound() -> None:
    """Reproduced exactly where the one-sided t-test of SciPy rejects."""
    random = np.random.default_rng(0)
    for sample in random.normal(60, 2, (100, 4)):
        larger, smaller = (
            stats.ttest_1samp(sample, 60, alternative=side).pvalue < 0.05 for side in ("greater", "less")
        )
        expected = Outcome.REPRODUCED if larger else Outcome.NOT_REPRODUCED if smaller else Outcome.UNDECIDED
        assert above(sample, 60).outcome is expected


def test_expected_lowest_of_normal_draws() -> None:
    """Harter 1961, Biometrika 48, Table 1."""
    expected = {1: 0.0, 2: -0.56419, 3: -0.84628, 5: -1.16296, 10: -1.53875}
    assert {of: expected_lowest(of) for of in expected} == pytest.approx(expected, abs=1e-5)


def test_best_of_five_of_the_resnet110_is_what_its_mean_and_spread_suggest() -> None:
    """He 2015 prints 6.61 ± 0.16 and a best of 6.43."""
    runs = runs_with(5, 6.61, 0.16)
    best = simulated_best(runs, of=5)
    assert best.mean() == pytest.approx(6.61 - 1.16296 * 0.16, abs=0.002)
    assert best.mean() == pytest.approx(6.43, abs=0.01)
    assert stats.kstest(best, lambda x: 1 - stats.norm.sf(x, 6.61, 0.16) ** 5).pvalue > 0.001
    with pytest.raises(ValueError, match="from one"):
        simulated_best([6.61], of=5)


def test_best_of_one_is_the_mean() -> None:
    runs = [6.4, 6.7, 6.6, 6.9]
    assert equivalence(runs, 6.5, 0.3, best_of=1).interval == pytest.approx(equivalence(runs, 6.5, 0.3).interval)


@pytest.mark.parametrize(("n", "best_of"), [(2, 5), (5, 5), (10, 3)])
def test_interval_of_the_best_covers_it_as_often_as_it_says(n: int, best_of: int) -> None:
    repetitions, truth = 2_000, 6.61 + 0.16 * expected_lowest(best_of)
    samples = np.random.default_rng(n).normal(6.61, 0.16, (repetitions, n))
    edges = np.array([equivalence(sample, truth, 0.3, best_of=best_of).interval for sample in samples])
    for missed in (edges[:, 0] > 0, edges[:, 1] < 0):
        assert missed.mean() == pytest.approx(0.05, abs=sampling_error(0.05, repetitions))


def test_one_more_run_of_ours_lies_anywhere_among_ours() -> None:
    draws = np.random.default_rng(0).normal(8.0, 0.2, (2_000, 6))
    chances = [chance_below(runs[:5], runs[5]) for runs in draws]
    assert stats.kstest(chances, "uniform").pvalue > 0.001
    assert chance_below([8.0], 7.9) is None


def test_welch_s_test_of_student_s_sleep_data() -> None:
    """R: t.test(extra ~ group, data = sleep) gives p = 0.07939 and -3.3654832 to 0.2054832."""
    found = compare(*SLEEP)
    assert found.difference == pytest.approx(-1.58)
    assert found.interval == pytest.approx((-3.3654832, 0.2054832), abs=1e-6)
    assert found.p_value == pytest.approx(0.07939, abs=5e-6)
    assert found.superiority == pytest.approx(rank_compare_2indep(SLEEP[1], SLEEP[0]).prob1)


@pytest.mark.parametrize(("a", "b"), [([8.0], [8.1, 8.2]), ([8.0, 8.1], [8.2]), ([8.0, 8.0], [8.2, 8.2])])
def test_without_spread_there_is_no_interval_between_models(a: list[float], b: list[float]) -> None:
    found = compare(a, b)
    assert (found.interval, found.p_value, found.superiority) == (None, None, 1.0)
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert not equivalence_of(a, b, 1.0)


@given(ERRORS, ERRORS, st.floats(0.05, 2))
@settings(max_examples=50, deadline=None)
def test_two_models_are_alike_where_welch_s_two_one_sided_tests_say_so(
    a: list[float], b: list[float], margin: float
) -> None:
    assume(len(set(a)) > 1 or len(set(b)) > 1)
    p_value = ttost_ind(a, b, -margin, margin, usevar="unequal")[0]
    assume(abs(p_value - 0.05) > 1e-9)
    assert equivalence_of(a, b, margin) == (p_value < 0.05)


def wrong_pair(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_a, only_b, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_mcnemar_of_the_usual_example() -> None:
    """The drug trial of Wikipedia's article; mlxtend's tests have chi-squared 20.672222 with the correction."""
    assert mcnemar(*wrong_pair(101, 121, 59, 33)) == pytest.approx(5.4500948e-06, rel=1e-6)


def test_mcnemar_is_the_sign_test_where_few_images_differ() -> None:
    assert mcnemar(*wrong_pair(600, 11, 1, 9_388)) == pytest.approx(2 * (1 + 12) / 2**12)
    assert mcnemar(*wrong_pair(600, 14, 10, 9_376)) == pytest.approx(stats.binomtest(10, 24).pvalue)
    assert mcnemar(*wrong_pair(600, 0, 0, 9_400)) == 1


def predictions(random: np.random.Generator, chance: Sequence[float], runs: int, images: int) -> list[np.ndarray]:
    """Of two models, (runs, images) each: a sixth of the images is hard, for both; a hard one is wrong with the
    model's chance, which differs a little from run to run."""
    hard = random.random(images) < 1 / 6
    return [hard & (random.random((runs, images)) < random.normal(mean, 0.02, (runs, 1))) for mean in chance]


def test_bootstrap_covers_the_true_difference() -> None:
    repetitions, chance = 200, (0.40, 0.46)
    truth = 100 * (chance[0] - chance[1]) / 6
    random = np.random.default_rng(0)
    found = [bootstrap(*predictions(random, chance, 5, 1_000), draws=400) for _ in range(repetitions)]
    intervals = np.array([one.interval for one in found])
    covered = np.mean((intervals[:, 0] < truth) & (truth < intervals[:, 1]))
    assert covered >= 0.95 - sampling_error(0.95, repetitions)
    assert np.mean([one.difference for one in found]) == pytest.approx(truth, abs=0.1)
    exact = 2 * 1.96 * np.std([one.difference for one in found])
    assert exact < np.mean(intervals[:, 1] - intervals[:, 0]) < 2 * exact  # wider, as documented, but not by much


def test_bootstrap_resamples_runs_and_images() -> None:
    """Where all runs or all images are alike, the others' resampling has a known distribution."""
    images = 1_000
    none = np.zeros((4, images), bool)
    alike = np.repeat((np.arange(images) < 60)[None], 4, axis=0)
    binomial = 100 * np.array(stats.binom.interval(0.95, images, 0.06)) / images
    assert bootstrap(alike, none).interval == pytest.approx(tuple(binomial), abs=0.2)
    all_or_nothing = np.repeat(np.arange(4)[:, None] < 2, images, axis=1)
    assert bootstrap(all_or_nothing, none).interval == (0, 100)  # (1/2)^4 draw none of the two: 6% > 2.5%
    itself = bootstrap(alike, alike)
    assert (itself.difference, itself.interval) == (0, (0, 0))
    assert (itself.superiority, itself.p_value) == (0.5, None)


def test_bootstrap_needs_two_runs_and_the_same_images() -> None:
    wrong = np.zeros((1, 10), bool)
    assert bootstrap(wrong, wrong).interval is None
    with pytest.raises(ValueError, match="10 images and B 9"):
        bootstrap(wrong, wrong[:, :9])

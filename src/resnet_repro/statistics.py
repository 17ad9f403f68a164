"""What test errors over seeds allow to say: summaries, equivalence with a printed number, two models compared.

Errors are in percent, differences and margins in points. Runs of one model with different seeds are taken as
draws from one normal distribution. A printed number is taken as exact: no paper gives enough of its own spread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

import numpy as np
from scipy import stats
from scipy.special import ndtr
from statsmodels.stats import contingency_tables
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """Values over seeds."""

    n: int
    mean: float
    std: float | None
    """of the sample (n - 1); None for one value"""
    median: float
    low: float
    high: float
    interval: Interval | None
    """t-interval of the mean; None for one value. It does not contain the sampling of the test set: `wilson`."""


class Outcome(StrEnum):
    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    UNDECIDED = "not enough runs to say"


@dataclass(frozen=True)
class Equivalence:
    """Our statistic against a printed number."""

    estimate: float | None
    """of what was printed: our mean, or our simulated best; None where one run would have to show a best"""
    difference: float
    """estimate - printed, in points; the mean's where there is no estimate"""
    interval: Interval | None
    """1 - 2 alpha interval of the difference; None for one run"""
    outcome: Outcome


@dataclass(frozen=True)
class Comparison:
    """Model A against model B."""

    difference: float
    """mean error of A - mean error of B, in points"""
    interval: Interval | None
    p_value: float | None
    superiority: float | None
    """P(a run of A has the lower error than a run of B), over all pairs of runs, ties counted half"""


def describe(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Summary of one value per seed.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    sample = _sample(values)
    several = len(sample) > 1
    return Summary(
        n=len(sample),
        mean=float(sample.mean()),
        std=float(sample.std(ddof=1)) if several else None,
        median=float(np.median(sample)),
        low=float(sample.min()),
        high=float(sample.max()),
        interval=_mean_interval(sample, confidence) if several else None,
    )


def wilson(error_percent: float, num_images: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval, in percent, of one net's error on all such images, from an error on `num_images`."""
    low, high = proportion_confint(error_percent / 100 * num_images, num_images, 1 - confidence, method="wilson")
    return 100 * float(low), 100 * float(high)


def equivalence(
    values: Sequence[float], target: float, margin: float, alpha: float = 0.05, best_of: int | None = None
) -> Equivalence:
    """Whether our runs agree with a printed number: two one-sided tests (TOST; Schuirmann 1987).

    Reproduced: the 1 - 2 alpha interval of the difference lies inside ±margin. Not reproduced: it lies entirely
    outside. Each has a chance of at most alpha to be said wrongly; all else is undecided, as is any single run.

    A printed mean, median of n and single run are all compared with our mean: all three are centred on the
    mean of a normal distribution. (Where a single printed run lies among ours, says `chance_below`.)
    `best_of`: the printed number is the lowest of that many runs. It is centred on mean + std * e, where e < 0 is
    the expected lowest of `best_of` standard normal draws. With n runs,
    sqrt(n) * (our mean - that) / our std is (Z - sqrt(n) e) / sqrt(chi2 / (n - 1)), a noncentral t with n - 1
    degrees of freedom and noncentrality -sqrt(n) e; its quantiles give the exact interval, as they do for the
    tolerance bounds of a normal distribution (Owen 1968, Technometrics 10, 445).
    """
    sample = _sample(values)
    if len(sample) < 2:
        mean = float(sample.mean())
        return Equivalence(None if best_of else mean, mean - target, None, Outcome.UNDECIDED)
    if best_of is None:
        estimate, (low, high) = float(sample.mean()), _mean_interval(sample, 1 - 2 * alpha)
    else:
        estimate = float(simulated_best(values, best_of).mean())
        low, high = _best_interval(sample, best_of, alpha)
    interval = (low - target, high - target)
    return Equivalence(estimate, estimate - target, interval, _outcome(interval, -margin, margin))


def above(values: Sequence[float], bound: float, alpha: float = 0.05) -> Equivalence:
    """Whether our runs agree with "higher than `bound`": a one-sided t-test either way.

    Reproduced: our mean is shown to be above the bound; not reproduced: shown to be below it.
    """
    found = equivalence(values, bound, np.inf, alpha)
    return found if found.interval is None else replace(found, outcome=_outcome(found.interval, 0, np.inf))


def equivalence_of(a: Sequence[float], b: Sequence[float], margin: float, alpha: float = 0.05) -> bool:
    """Whether two models' mean errors are shown to lie within `margin` of each other: TOST by Welch's t."""
    interval = compare(a, b, 1 - 2 * alpha).interval
    return interval is not None and _outcome(interval, -margin, margin) is Outcome.REPRODUCED


def simulated_best(values: Sequence[float], of: int, draws: int = 100_000, seed: int = 0) -> np.ndarray:
    """(draws,) the lowest of `of` runs, each drawn from the normal distribution fitted to the values.

    Raises:
        ValueError: fewer than two values, which have no spread to draw from.
    """
    sample = _sample(values)
    if len(sample) < 2:
        raise ValueError("the best of several runs cannot be simulated from one")
    lowest: np.ndarray = sample.mean() + sample.std(ddof=1) * _standard_lowest(of, draws, seed)
    return lowest


@lru_cache
def expected_lowest(of: int) -> float:
    """The expected lowest of `of` standard normal draws: 0 for one, below 0 for more."""
    return float(stats.norm.expect(lambda x: of * x * ndtr(-x) ** (of - 1)))


def chance_below(values: Sequence[float], printed: float) -> float | None:
    """The chance that one more run of ours has a lower error than a printed single run; None without spread.

    A printed run that is one of ours makes this uniform on 0 to 1: the t-distribution of a prediction interval.
    """
    sample = _sample(values)
    if np.ptp(sample) == 0:
        return None
    n = len(sample)
    scale = sample.std(ddof=1) * np.sqrt(1 + 1 / n)
    return float(stats.t.cdf((printed - sample.mean()) / scale, n - 1))


def seeds_needed(
    difference: float, std: float, margin: float, alpha: float = 0.05, power: float = 0.8, limit: int = 100
) -> int | None:
    """The fewest runs, at least 2, whose verdict is right with chance `power`, were difference and std the truth.

    Right is "reproduced" within the margin and "not reproduced" beyond it. None: more than `limit`, or on the
    margin itself, where no number of runs decides.
    """
    distance = abs(difference) - margin
    if std == 0:
        return 2 if distance else None
    runs = np.arange(2, limit + 1)
    if distance > 0:
        chances = TTestPower().power(distance / std, runs, alpha, alternative="larger")
    else:
        chances = tost_power(difference, std / np.sqrt(runs), runs - 1, margin, alpha)
    enough = runs[chances >= power]
    return int(enough[0]) if enough.size else None


def tost_power(
    difference: float, standard_error: np.ndarray, degrees_of_freedom: np.ndarray, margin: float, alpha: float = 0.05
) -> np.ndarray:
    """(N,) the chance that TOST proves a true difference to lie within ±margin, exactly (Phillips 1990).

    The estimate of a mean and that of its standard error are independent, so the chance that the first lies
    far enough inside the margin is averaged over the distribution of the second (a scaled chi).

    Args:
        standard_error: (N,) the true one, above 0.
        degrees_of_freedom: (N,) of its estimate.
    """
    error, freedom = np.asarray(standard_error)[:, None], np.asarray(degrees_of_freedom)[:, None]
    critical = stats.t.isf(alpha, freedom)
    root = np.sqrt(freedom)
    # Where the estimate is this many times the truth, the interval is as wide as the margins.
    widest = np.minimum(margin / (critical * error), stats.chi.isf(1e-12, freedom) / root)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    ratio = widest * (nodes + 1) / 2
    room = margin - critical * error * ratio
    passes = ndtr((room - difference) / error) - ndtr((-room - difference) / error)
    chances: np.ndarray = widest[:, 0] / 2 * ((stats.chi.pdf(ratio * root, freedom) * root * passes) @ weights)
    return chances


def compare(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Comparison:
    """Model A against B over seeds, which are not paired: Welch's t-test and interval.

    No interval and no p where either has one run, or neither has any spread.

    Raises:
        ValueError: one has no value, or one that is not finite.
    """
    first, second = _sample(a), _sample(b)
    difference = float(first.mean() - second.mean())
    superiority = _superiority(first, second)
    if min(len(first), len(second)) < 2 or np.ptp(first) == np.ptp(second) == 0:
        return Comparison(difference, None, None, superiority)
    welch = CompareMeans(DescrStatsW(first), DescrStatsW(second))
    low, high = welch.tconfint_diff(1 - confidence, usevar="unequal")
    p_value = welch.ttest_ind(usevar="unequal")[1]
    return Comparison(difference, (float(low), float(high)), float(p_value), superiority)


def mcnemar(wrong_a: np.ndarray, wrong_b: np.ndarray) -> float:
    """p-value of equal errors of one run of A and one of B on the same images: McNemar's test.

    Exact below 25 images on which the two differ, else chi-squared with continuity correction.

    Args:
        wrong_a, wrong_b: (N,) bool, whether each image was misclassified.
    """
    table = [
        [np.sum(wrong_a & wrong_b), np.sum(wrong_a & ~wrong_b)],
        [np.sum(~wrong_a & wrong_b), np.sum(~wrong_a & ~wrong_b)],
    ]
    return float(contingency_tables.mcnemar(table, exact=bool(table[0][1] + table[1][0] < 25)).pvalue)


def bootstrap(
    wrong_a: np.ndarray, wrong_b: np.ndarray, confidence: float = 0.95, draws: int = 2_000, seed: int = 0
) -> Comparison:
    """Model A against B over seeds and test images: both resampled together, percentile interval.

    Runs are resampled within each model, images for both models at once. With both resampled the interval errs on
    the wide side (Owen 2007, "The pigeonhole bootstrap"). None for fewer than two runs of either: `mcnemar` is for
    one pair. No p-value.

    Args:
        wrong_a, wrong_b: (runs, images) bool, whether each image was misclassified; the same images.

    Raises:
        ValueError: not the same number of images.
    """
    if wrong_a.shape[1] != wrong_b.shape[1]:
        raise ValueError(f"A has {wrong_a.shape[1]} images and B {wrong_b.shape[1]}: they must be the same")
    errors_a, errors_b = 100 * wrong_a.mean(axis=1), 100 * wrong_b.mean(axis=1)
    difference, superiority = float(errors_a.mean() - errors_b.mean()), _superiority(errors_a, errors_b)
    if min(len(wrong_a), len(wrong_b)) < 2:
        return Comparison(difference, None, None, superiority)
    # Images that every run treats alike are interchangeable: only how often their kind is drawn counts.
    kinds, counts = np.unique(np.concatenate([wrong_a, wrong_b]), axis=1, return_counts=True)
    random = np.random.default_rng(seed)
    num_images = wrong_a.shape[1]
    images = random.multinomial(num_images, counts / num_images, size=draws)
    errors = 100 / num_images * (images @ kinds.T.astype(float))
    runs_a, runs_b = (
        random.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=draws) / len(runs)
        for runs in (wrong_a, wrong_b)
    )
    drawn = (errors[:, : len(wrong_a)] * runs_a).sum(axis=1) - (errors[:, len(wrong_a) :] * runs_b).sum(axis=1)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Comparison(difference, (float(low), float(high)), None, superiority)


def _sample(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=float)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"at least one value is needed, and all finite: {list(values)}")
    return sample


def _mean_interval(sample: np.ndarray, confidence: float) -> Interval:
    low, high = DescrStatsW(sample).tconfint_mean(1 - confidence)
    return float(low), float(high)


def _best_interval(sample: np.ndarray, best_of: int, alpha: float) -> Interval:
    low, high = _best_quantiles(len(sample), best_of, alpha)
    mean, standard_error = sample.mean(), sample.std(ddof=1) / np.sqrt(len(sample))
    return float(mean - high * standard_error), float(mean - low * standard_error)


@lru_cache
def _best_quantiles(n: int, best_of: int, alpha: float) -> Interval:
    low, high = stats.nct.ppf([alpha, 1 - alpha], n - 1, -np.sqrt(n) * expected_lowest(best_of))
    return float(low), float(high)


@lru_cache(maxsize=4)
def _standard_lowest(of: int, draws: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((draws, of)).min(axis=1)


def _outcome(interval: Interval, low: float, high: float) -> Outcome:
    """Of a claim that the truth lies between low and high."""
    if low < interval[0] and interval[1] < high:
        return Outcome.REPRODUCED
    if interval[1] < low or high < interval[0]:
        return Outcome.NOT_REPRODUCED
    return Outcome.UNDECIDED


def _superiority(a: np.ndarray, b: np.ndarray) -> float:
    return float((1 + np.sign(b - a[:, None]).mean()) / 2)

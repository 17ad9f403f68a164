"""What test errors over seeds allow to say: summaries, equivalence with a printed number, two models compared.

Errors are in percent, differences and margins in points. Runs of one model with different seeds are taken as draws from
one normal distribution. How wide it is, one run cannot tell; other people's runs of these nets can (`Prior`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from scipy import stats
from scipy.special import ndtr
from statsmodels.stats import contingency_tables
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from resnet_repro.params import Prior

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
class Spread:
    """Standard deviation of single runs, in units of `independent_sd`, and how well it is known."""

    ratio: float
    degrees_of_freedom: int
    by_prior: bool
    """whether other people's runs carry it"""

    def std(self, error_percent: float) -> float:
        """In points, of runs of a model with this mean error."""
        return self.ratio * independent_sd(error_percent)


@dataclass(frozen=True)
class PriorCheck:
    """How our own runs spread against the prior."""

    ratio: float
    """pooled, of standard deviation to `independent_sd`"""
    degrees_of_freedom: int
    p_value: float
    """of a spread as wide as this or wider, were the prior the truth"""
    holds: bool


@dataclass(frozen=True)
class Equivalence:
    """Our statistic against a printed number."""

    estimate: float
    """of what was printed: our mean, or what the best of several runs like ours is expected to be"""
    difference: float
    """estimate - printed, in points"""
    interval: Interval | None
    """1 - 2 alpha interval of the difference; None where no spread is known"""
    outcome: Outcome

    @property
    def smallest_margin(self) -> float | None:
        """Within which the number would be reproduced, in points."""
        return None if self.interval is None else max(map(abs, self.interval))


@dataclass(frozen=True)
class Repeat:
    """Our mean beside one printed run, taken as one more run of the same recipe."""

    limit: float
    """1 - 2 alpha of such differences are smaller, in points"""
    p_value: float
    """two-sided, of a difference as large as ours or larger"""


@dataclass(frozen=True)
class Comparison:
    """Model A against model B."""

    difference: float
    """mean error of A - mean error of B, in points"""
    interval: Interval | None
    p_value: float | None


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


def at_look(values: Sequence[float], looks: Sequence[int]) -> Sequence[float]:
    """The runs (by seed) of the last look that was reached; none before the first."""
    return values[: max((look for look in looks if look <= len(values)), default=0)]


def independent_sd(error_percent: float) -> float:
    """Standard deviation over seeds, in points, of runs that err independently on each of 10,000 images: about
    sqrt(error / 200), by calibration (Jordan 2023, arXiv 2304.01910)."""
    return float(np.sqrt(max(error_percent, 0.01) / 200))


def check_prior(samples: Iterable[Sequence[float]], prior: Prior) -> PriorCheck | None:
    """Chi-squared test of our runs' spread, pooled over models, against the prior; None where no model has two runs.

    Only a wider spread refutes it: with a narrower one the verdicts are more cautious than they need to be.
    """
    sum_of_squares, freedom = _pooled(samples)
    if freedom == 0:
        return None
    p_value = float(stats.chi2.sf(sum_of_squares / prior.sd_ratio**2, freedom))
    return PriorCheck(float(np.sqrt(sum_of_squares / freedom)), freedom, p_value, p_value > prior.alpha)


def seed_spread(samples: Sequence[Sequence[float]], prior: Prior | None) -> Spread | None:
    """Of single runs, from one sample per model: the prior, updated by what the samples themselves show.

    The ratio is a mean square weighted with degrees of freedom, as for a scaled inverse chi-squared prior. Where the
    samples refute the prior (`check_prior`), or there is none, they stand alone; None: then one run each tells nothing.
    """
    sum_of_squares, freedom = _pooled(samples)
    if prior is not None and ((check := check_prior(samples, prior)) is None or check.holds):
        total = prior.degrees_of_freedom + freedom
        ratio = np.sqrt((prior.degrees_of_freedom * prior.sd_ratio**2 + sum_of_squares) / total)
        return Spread(float(ratio), total, by_prior=True)
    if freedom == 0 or sum_of_squares == 0:
        return None
    return Spread(float(np.sqrt(sum_of_squares / freedom)), freedom, by_prior=False)


def _pooled(samples: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Sum of squares around each sample's mean, in squared units of `independent_sd`; its degrees of freedom."""
    arrays = [_sample(values) for values in samples]
    squares = (np.square(a - a.mean()).sum() / independent_sd(a.mean()) ** 2 for a in arrays)
    return float(sum(squares)), sum(len(a) - 1 for a in arrays)


def equivalence(
    values: Sequence[float],
    target: float,
    margin: float,
    alpha: float,
    spread: Spread | None,
    reading_sd: float = 0.0,
    best_of: int = 1,
) -> Equivalence:
    """Whether our runs agree with a printed number, taken as exact: two one-sided tests (TOST; Schuirmann 1987).

    Reproduced: the 1 - 2 alpha interval of the difference lies inside ±margin. Not reproduced: it lies entirely
    outside. Each has a chance of at most alpha to be said wrongly; all else is undecided, as is all without a spread.

    A printed mean, median of n and single run are all compared with our mean: all three are centred on the mean of a
    normal distribution. `best_of`: the printed number is the lowest of that many runs. It is centred on
    mean + std * e, where e < 0 is the expected lowest of `best_of` standard normal draws. With n runs,
    sqrt(n) * (our mean - that) / S is (Z - sqrt(n) e) / sqrt(chi2 / df), a noncentral t with the spread's degrees of
    freedom and noncentrality -sqrt(n) e; its quantiles give the exact interval, as they do for the tolerance bounds of
    a normal distribution (Owen 1968, Technometrics 10, 445).

    Args:
        reading_sd: of the printed number, where it was read off a figure, in points.
    """
    sample = _sample(values)
    n, mean = len(sample), float(sample.mean())
    if spread is None:
        return Equivalence(mean, mean - target, None, Outcome.UNDECIDED)
    std = spread.std(mean)
    estimate = mean + std * expected_lowest(best_of)
    low, high = _quantiles(n, best_of, alpha, spread.degrees_of_freedom)
    error = np.hypot(std / np.sqrt(n), reading_sd)
    interval = (float(mean - high * error - target), float(mean - low * error - target))
    return Equivalence(estimate, estimate - target, interval, outcome_of(interval, -margin, margin))


def repeat(
    values: Sequence[float], printed: float, alpha: float, spread: Spread | None, reading_sd: float = 0.0
) -> Repeat | None:
    """Our mean beside one printed run, as if that were one more run of the same recipe; None without a spread."""
    sample = _sample(values)
    if spread is None:
        return None
    scale = np.hypot(spread.std(float(sample.mean())) * np.sqrt(1 + 1 / len(sample)), reading_sd)
    freedom = spread.degrees_of_freedom
    p_value = 2 * stats.t.sf(abs(sample.mean() - printed) / scale, freedom)
    return Repeat(float(scale * stats.t.isf(alpha, freedom)), float(p_value))


def mostly_above(values: Sequence[float], bound: float, alpha: float) -> Outcome:
    """Whether more than half of such runs end above a bound: exact binomial tests to either side.

    For what papers print as "fail" or "higher than", where errors have two humps and a mean says nothing. With alpha
    0.025 five runs cannot show it (1/32), so twice alpha is spent: the looks before it cannot decide, and spend none.
    """
    sample = _sample(values)
    above = int((sample > bound).sum())
    for count, outcome in ((above, Outcome.REPRODUCED), (len(sample) - above, Outcome.NOT_REPRODUCED)):
        if stats.binomtest(count, len(sample), alternative="greater").pvalue <= 2 * alpha:
            return outcome
    return Outcome.UNDECIDED


def runs_a_side(difference: float, std_a: float, std_b: float, alpha: float, power: float) -> int:
    """How many runs of each of two models show a true difference with chance `power`, by the normal approximation.

    Raises:
        ValueError: there is no difference to show.
    """
    if difference == 0:
        raise ValueError("no number of runs shows a difference of 0")
    sigmas = stats.norm.isf(alpha) + stats.norm.ppf(power)
    return int(np.ceil((sigmas / difference) ** 2 * (std_a**2 + std_b**2)))


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


def compare(a: Sequence[float], b: Sequence[float], confidence: float = 0.95, prior: Prior | None = None) -> Comparison:
    """Model A against B over seeds, which are not paired.

    With a prior that the runs do not refute: difference ± t * spread * sqrt(1/n + 1/m), from one run each on. Else
    Welch's t-test and interval; no interval and no p where either has one run, or neither has any spread.

    Raises:
        ValueError: one has no value, or one that is not finite.
    """
    first, second = _sample(a), _sample(b)
    difference = float(first.mean() - second.mean())
    spread = seed_spread((a, b), prior)
    if spread is not None and spread.by_prior:
        error = np.hypot(*(spread.std(x.mean()) / np.sqrt(len(x)) for x in (first, second)))
        reach = error * stats.t.isf((1 - confidence) / 2, spread.degrees_of_freedom)
        p_value = 2 * stats.t.sf(abs(difference) / error, spread.degrees_of_freedom)
        return Comparison(difference, (difference - reach, difference + reach), float(p_value))
    if min(len(first), len(second)) < 2 or np.ptp(first) == np.ptp(second) == 0:
        return Comparison(difference, None, None)
    welch = CompareMeans(DescrStatsW(first), DescrStatsW(second))
    low, high = welch.tconfint_diff(1 - confidence, usevar="unequal")
    p_value = welch.ttest_ind(usevar="unequal")[1]
    return Comparison(difference, (float(low), float(high)), float(p_value))


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


def _sample(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=float)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"at least one value is needed, and all finite: {list(values)}")
    return sample


def _mean_interval(sample: np.ndarray, confidence: float) -> Interval:
    low, high = DescrStatsW(sample).tconfint_mean(1 - confidence)
    return float(low), float(high)


@lru_cache
def _quantiles(n: int, best_of: int, alpha: float, degrees_of_freedom: int) -> Interval:
    """alpha and 1 - alpha quantiles of sqrt(n) * (our mean - what the best of several is centred on) / spread."""
    if best_of == 1:
        high = float(stats.t.isf(alpha, degrees_of_freedom))
        return -high, high
    low, high = stats.nct.ppf([alpha, 1 - alpha], degrees_of_freedom, -np.sqrt(n) * expected_lowest(best_of))
    return float(low), float(high)


def outcome_of(interval: Interval, low: float, high: float) -> Outcome:
    """Of a claim that the truth lies between low and high."""
    if low < interval[0] and interval[1] < high:
        return Outcome.REPRODUCED
    if interval[1] < low or high < interval[0]:
        return Outcome.NOT_REPRODUCED
    return Outcome.UNDECIDED

"""What a claim is made of: gaps, each a model minus another model or minus a printed number, by one measure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal

from resnet_repro.evidence import AuditedNet, RunEvidence
from resnet_repro.papers import LOWEST, paper_numbers, source_project_numbers
from resnet_repro.params import Verdicts

Margin = Literal["margin_points", "wide_margin_points"]


@dataclass(frozen=True)
class Measure:
    """What is compared: one number per run; None where a run has none."""

    name: str
    of_run: Callable[[RunEvidence], float | None]
    of_net: Callable[[AuditedNet], float | None] = lambda net: None
    unit: Literal["points", "nats", ""] = "points"
    seeds_known: bool = False
    """whether other people's runs tell how far seeds lie apart: so for test errors"""

    def __call__(self, run: RunEvidence | AuditedNet) -> float | None:
        return self.of_net(run) if isinstance(run, AuditedNet) else self.of_run(run)

    def text(self, value: float, sign: bool = False) -> str:
        digits = 2 if self.unit == "points" else 4
        return f"{value:{'+' if sign else ''}z.{digits}f}"


def _mean(values: Sequence[float] | None) -> float | None:
    return fmean(values) if values else None


def _rise(run: RunEvidence) -> float | None:
    """The last ten epochs of the second learning rate minus its first ten."""
    rates = sorted(set(run.history["learning_rate"]), reverse=True)
    errors = run.history.loc[run.history["learning_rate"].isin(rates[1:2]), "test_error_percent"]
    return float(errors.tail(10).mean() - errors.head(10).mean()) if len(errors) >= 20 else None


TEST_ERROR = Measure(
    "test error",
    lambda run: run.metrics.test_error_percent,
    lambda net: net.test_error_percent,
    seeds_known=True,
)
LOWEST_TEST_ERROR = Measure(
    "lowest test error over epochs", lambda run: run.metrics.lowest_test_error_percent, seeds_known=True
)
TEST_ERROR_RISE = Measure("rise of the test error from the first drop to the second", _rise)
TRAIN_ERROR = Measure("training error", lambda run: run.metrics.train_error_percent)
TRAIN_LOSS = Measure("training loss", lambda run: run.metrics.train_loss, unit="nats")
FIRST_EPOCH_TRAIN_ERROR = Measure(
    "training error of the first epoch", lambda run: float(run.history["train_error_percent"].iloc[0])
)
EARLY_TRAIN_ERROR = Measure(
    "training error, mean of the first ten epochs",
    lambda run: float(run.history["train_error_percent"].head(10).mean()),
)
RESPONSES = Measure(
    "layer responses, mean of the standard deviations",
    lambda run: _mean(run.metrics.response_stds),
    lambda net: _mean(net.response_stds),
    unit="",
)


@dataclass(frozen=True)
class Gap:
    """Model minus reference, means over seeds in the measure's unit, lies between `low` and `high`."""

    model: str
    reference: str | float
    """another model, or a printed number"""
    low: float = -math.inf
    high: float = math.inf
    margin: Margin | None = None
    """which of `verdicts` in params.yaml widens the range"""
    measure: Measure = TEST_ERROR
    reading_sd: float = 0.0
    """of a printed number that was read off a figure"""
    counted: bool = False
    """not the mean, but most runs lie above the number: where runs either train or fail"""

    def bounds(self, settings: Verdicts) -> tuple[float, float]:
        margin = getattr(settings, self.margin) if self.margin else 0.0
        return self.low - margin, self.high + margin

    def slack(self, effect: float, settings: Verdicts) -> float:
        """How far an effect lies inside the range; negative outside."""
        low, high = self.bounds(settings)
        return min(effect - low, high - effect)

    def __str__(self) -> str:
        is_model = isinstance(self.reference, str)
        return f"`{self.model}` − {f'`{self.reference}`' if is_model else f'{self.reference:.2f}'}"


def lower(model: str, reference: str, measure: Measure = TEST_ERROR, by: float = 0.0) -> Gap:
    """The model is below the reference, by more than `by`."""
    return Gap(model, reference, high=-by, measure=measure)


def falling(*models: str, measure: Measure = TEST_ERROR) -> tuple[Gap, ...]:
    """Each model is below the one before it."""
    return tuple(lower(model, before, measure) for before, model in pairwise(models))


def rising(*models: str, measure: Measure = TEST_ERROR) -> tuple[Gap, ...]:
    """Each model is above the one before it."""
    return tuple(lower(before, model, measure) for before, model in pairwise(models))


def lowest(model: str, others: Sequence[str], measure: Measure = TEST_ERROR) -> tuple[Gap, ...]:
    return tuple(lower(model, other, measure) for other in others if other != model)


def highest(model: str, others: Sequence[str], measure: Measure = TEST_ERROR) -> tuple[Gap, ...]:
    return tuple(lower(other, model, measure) for other in others if other != model)


def similar(model: str, reference: str, margin: Margin = "margin_points", measure: Measure = TEST_ERROR) -> Gap:
    """The two differ by no more than the margin."""
    return Gap(model, reference, low=0, high=0, margin=margin, measure=measure)


def no_gain(model: str, reference: str) -> Gap:
    """The model is not below the reference by more than the margin."""
    return Gap(model, reference, low=0, margin="margin_points")


def mostly_above(model: str, bound: float) -> Gap:
    """Most runs of the model end above the bound."""
    return Gap(model, bound, low=0, counted=True)


def as_printed(model: str, margin: Margin, measure: Measure = TEST_ERROR, number_of: str = "") -> Gap:
    """The model is within the margin of what the paper prints of it, or of the model `number_of`."""
    measured: Literal["test error", "training error"] = "training error" if measure is TRAIN_ERROR else "test error"
    number = paper_numbers(number_of or model, measured)[0]
    return Gap(model, number.value, 0, 0, margin, measure, number.reading_sd)


def printed(model: str) -> float:
    """The paper's number that a model is judged against."""
    return paper_numbers(model)[0].value


def printed_lowest(model: str) -> float:
    """What the first source project prints: the lowest test error over all epochs."""
    return next(number.value for number in source_project_numbers(model) if number.statistic == LOWEST)


def models_of(gaps: Sequence[Gap]) -> tuple[str, ...]:
    """Their models, each once."""
    names = (name for gap in gaps for name in (gap.model, gap.reference))
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))

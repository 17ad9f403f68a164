"""For every printed number: what of our runs stands against it, and whether they reproduce it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from resnet_repro.papers import (
    BEST,
    LOWEST,
    PAPERS,
    VALIDATION,
    Published,
    judged_against,
    paper_numbers,
    source_project_numbers,
)
from resnet_repro.params import Verdicts
from resnet_repro.reporting.load import Row, Sample
from resnet_repro.statistics import (
    Equivalence,
    Interval,
    Outcome,
    Summary,
    above,
    chance_below,
    describe,
    equivalence,
    seeds_needed,
)

NOT_RUN, NONE = "not run", "–"
MOST_SEEDS = 100
"""More are not planned for."""

_OF_OUR_RUNS: Mapping[str, Callable[[Row], Sample]] = {
    LOWEST: lambda row: row.lowest_test_error,
    VALIDATION: lambda row: row.best_validation_test_error,
}
"""What of each run a printed statistic is compared with; any other: the last epoch's test error."""


@dataclass(frozen=True)
class Verdict:
    """One printed number and one row of ours."""

    row: str
    published: Published
    num_runs: int
    ours: Summary | None
    """of the value per run that was printed; None where our runs have none"""
    result: Equivalence | None
    wide: Equivalence | None
    """the same with the wide margin"""
    seeds_needed: int | None
    """None: decided, above `MOST_SEEDS`, or not to be told: from one run, or for a best of several"""
    reason: str

    @property
    def outcome(self) -> str:
        return self._text(self.result)

    @property
    def wide_outcome(self) -> str:
        return self._text(self.wide)

    def _text(self, result: Equivalence | None) -> str:
        if result is None:
            return NONE if self.num_runs else NOT_RUN
        return result.outcome.value


def verdicts(rows: Sequence[Row], settings: Verdicts) -> list[Verdict]:
    """Of every number printed for a row, the one that it is judged against first; none for short schedules."""
    return [
        _verdict(row, number, settings)
        for row in rows
        if not row.is_short
        for number in (*paper_numbers(row.model), *source_project_numbers(row.model))
    ]


def headline(row: Row, settings: Verdicts) -> str:
    """The verdict on the number that a row is judged against; "–" where there is none."""
    number = judged_against(row.model)
    return NONE if number is None or row.is_short else _verdict(row, number, settings).outcome


def verdict_table(verdicts: Sequence[Verdict], settings: Verdicts) -> pd.DataFrame:
    """One line per verdict, as text. Errors in percent of the test images, differences in points."""
    return pd.DataFrame(
        {
            "model": verdict.row,
            "printed": printed(verdict.published),
            "statistic, source": f"{verdict.published.statistic}, {verdict.published.source}",
            "ours": _ours(verdict),
            "difference": f"{verdict.result.difference:+z.2f}" if verdict.result else NONE,
            _interval_name(settings): _interval(verdict.result.interval if verdict.result else None),
            f"verdict (±{settings.margin_points:g})": verdict.outcome,
            f"verdict (±{settings.wide_margin_points:g})": verdict.wide_outcome,
            "seeds that would decide": _seeds(verdict),
            "why": verdict.reason,
        }
        for verdict in verdicts
    )


def without_row(rows: Sequence[Row], models: Iterable[str]) -> pd.DataFrame:
    """The papers' numbers of those models that no row has, as text."""
    others = set(models) - {row.model for row in rows}
    return pd.DataFrame(
        {
            "model": number.model,
            "printed": printed(number),
            "statistic, source": f"{number.statistic}, {number.source}",
        }
        for number in PAPERS
        if number.model in others and number.role != "recorded"
    )


def _verdict(row: Row, number: Published, settings: Verdicts) -> Verdict:
    values = _OF_OUR_RUNS.get(number.statistic, lambda row: row.test_error)(row).values
    if not values:
        reason = "no images are held out, so no epoch is best on them" if row.runs else "no run yet"
        return Verdict(row.name, number, len(row.runs), None, None, None, None, reason)
    ours = describe(values)
    result = _judge(values, number, settings.margin_points, settings.alpha)
    return Verdict(
        row=row.name,
        published=number,
        num_runs=len(row.runs),
        ours=ours,
        result=result,
        wide=_judge(values, number, settings.wide_margin_points, settings.alpha),
        seeds_needed=_planned(number, ours, result, settings),
        reason="; ".join(_reasons(row, number, values, result, settings)),
    )


def _judge(values: Sequence[float], number: Published, margin: float, alpha: float) -> Equivalence:
    if number.relation == ">":
        return above(values, number.value, alpha)
    return equivalence(values, number.value, margin, alpha, _best_of(number))


def _best_of(number: Published) -> int | None:
    return number.runs if number.statistic == BEST else None


def _planned(number: Published, ours: Summary, result: Equivalence, settings: Verdicts) -> int | None:
    if result.outcome is not Outcome.UNDECIDED or ours.std is None or _best_of(number):
        return None
    margin = settings.margin_points if number.relation == "=" else 0.0
    return seeds_needed(result.difference, ours.std, margin, settings.alpha, settings.power, MOST_SEEDS)


def _reasons(
    row: Row, number: Published, values: Sequence[float], result: Equivalence, settings: Verdicts
) -> Iterator[str]:
    yield _finding(number, result, settings)
    chance = chance_below(values, number.value)
    if number.runs == 1 and number.relation == "=" and chance is not None:
        yield f"{chance:.0%} of runs like ours would be below the printed one"
    precision, device = row.arithmetic
    if precision != "fp32":  # the papers' arithmetic
        yield f"{precision} on {device}"


def _finding(number: Published, result: Equivalence, settings: Verdicts) -> str:
    if result.interval is None:
        return "1 run: no spread to judge by"
    low, high = result.interval
    if result.outcome is Outcome.NOT_REPRODUCED or (number.relation == ">" and result.outcome is Outcome.REPRODUCED):
        side, nearest, farthest = ("above", low, high) if low > 0 else ("below", -high, -low)
        return f"lies {nearest:.2f} to {farthest:.2f} {side}"
    interval = f"{_interval_name(settings)} {_interval(result.interval)}"
    if number.relation == ">":
        return f"{interval}, on both sides of the bound"
    where = "within" if result.outcome is Outcome.REPRODUCED else "reaches beyond"
    return f"{interval} {where} ±{settings.margin_points:g}"


def _interval_name(settings: Verdicts) -> str:
    return f"{100 * (1 - 2 * settings.alpha):g}% interval"


def _interval(interval: Interval | None) -> str:
    return NONE if interval is None else f"{interval[0]:+z.2f} to {interval[1]:+z.2f}"


def printed(number: Published) -> str:
    """As it stands in the source: the value with its bound or its spread."""
    bound = "" if number.relation == "=" else number.relation
    spread = "" if number.std is None else f" ± {number.std:.2f}"
    return f"{bound}{number.value:.2f}{spread}"


def _ours(verdict: Verdict) -> str:
    ours, result = verdict.ours, verdict.result
    if ours is None or result is None:
        return verdict.outcome
    if ours.std is None:
        return f"{ours.mean:.2f} (1 run)"
    if best_of := _best_of(verdict.published):
        return f"{result.estimate:.2f} (simulated best of {best_of}, from {ours.n} runs)"
    return f"{ours.mean:.2f} ± {ours.std:.2f} ({ours.n} runs)"


def _seeds(verdict: Verdict) -> str:
    if verdict.seeds_needed is not None:
        return str(verdict.seeds_needed)
    undecided = verdict.result is not None and verdict.result.outcome is Outcome.UNDECIDED
    told = verdict.ours is not None and verdict.ours.std is not None and not _best_of(verdict.published)
    return f"more than {MOST_SEEDS}" if undecided and told else NONE

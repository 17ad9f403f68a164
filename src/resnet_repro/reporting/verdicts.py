"""For every printed number: what of our runs stands against it, and whether they reproduce it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from resnet_repro.papers import (
    BEST,
    EYE,
    LOWEST,
    PAPERS,
    VALIDATION,
    Published,
    judged_against,
    paper_numbers,
    source_project_numbers,
)
from resnet_repro.reporting.judge import Rule
from resnet_repro.reporting.load import Row, Sample
from resnet_repro.statistics import (
    Equivalence,
    Interval,
    Outcome,
    Repeat,
    Spread,
    Summary,
    describe,
    equivalence,
    mostly_above,
    repeat,
)

NOT_RUN, NONE = "not run", "–"
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
    num_judged: int = 0
    """of the last look"""
    ours: Summary | None = None
    """of the value per run that was printed, over all runs; None where our runs have none"""
    spread: Spread | None = None
    result: Equivalence | None = None
    """None also for a number that was read by eye: too coarse for the margin"""
    wide: Equivalence | None = None
    """the same with the wide margin"""
    repeat: Repeat | None = None
    """where one run is printed"""
    reason: str = ""

    @property
    def by_prior(self) -> bool:
        """Whether an outcome, if there is one, rests on other people's spread."""
        return self.spread is not None and self.spread.by_prior and self.published.relation == "="

    @property
    def decided(self) -> bool:
        return any(r is not None and r.outcome is not Outcome.UNDECIDED for r in (self.result, self.wide))

    def outcome(self, result: Equivalence | None) -> str:
        if result is None:
            return NONE if self.num_runs else NOT_RUN
        if result.outcome is Outcome.UNDECIDED:
            return result.outcome.value
        carried = ", published spread" if self.by_prior else ""
        return f"{result.outcome.value} (n = {self.num_judged}{carried})"


def verdicts(rows: Sequence[Row], rule: Rule) -> list[Verdict]:
    """Of every number printed for a row, the one that it is judged against first; none for short schedules."""
    return [
        _verdict(row, number, rule)
        for row in rows
        if not row.is_short
        for number in (*paper_numbers(row.model), *source_project_numbers(row.model))
    ]


def headline(row: Row, rule: Rule) -> str:
    """The verdict on the number that a row is judged against, by the narrowest margin that decides; "–" where there is
    no such number."""
    number = judged_against(row.model)
    if number is None or row.is_short:
        return NONE
    verdict = _verdict(row, number, rule)
    if number.relation == "=":
        known = ", known before the rule" if any(run.key in rule.settings.seen_before for run in row.runs) else ""
        for result, margin in ((verdict.result, _margins(rule)[0]), (verdict.wide, _margins(rule)[1])):
            if result is not None and result.outcome is not Outcome.UNDECIDED:
                return f"{margin}: {verdict.outcome(result)}{known}"
    return verdict.outcome(verdict.wide)


def verdict_table(verdicts: Sequence[Verdict], rule: Rule) -> pd.DataFrame:
    """One line per verdict, as text. Errors in percent of the test images, differences in points."""
    narrow, wide = _margins(rule)
    return pd.DataFrame(
        {
            "model": verdict.row,
            "printed": printed(verdict.published),
            "statistic, source": f"{verdict.published.statistic}, {verdict.published.source}",
            "ours": _ours(verdict),
            "difference": f"{verdict.wide.difference:+z.2f}" if verdict.wide else NONE,
            f"{rule.confidence} interval": _interval(verdict.wide.interval if verdict.wide else None),
            narrow: verdict.outcome(verdict.result),
            wide: verdict.outcome(verdict.wide),
            "smallest margin that holds": _smallest(verdict.wide),
            "beside one printed run": _beside(verdict.repeat, rule),
            "remarks": verdict.reason or NONE,
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
        if number.model in others and number.role != "recorded" and number.measure == "test error"
    )


def _margins(rule: Rule) -> tuple[str, str]:
    return f"±{rule.settings.margin_points:g}", f"±{rule.settings.wide_margin_points:g}"


def _verdict(row: Row, number: Published, rule: Rule) -> Verdict:
    values = _OF_OUR_RUNS.get(number.statistic, lambda row: row.test_error)(row).values
    if not values:
        reason = "no images are held out, so no epoch is best on them" if row.runs else "no run yet"
        return Verdict(row.name, number, len(row.runs), reason=reason)
    judged = rule.judged(values)
    spread = rule.spread(judged)
    single = number.runs == 1 and number.relation == "="
    narrow, wide = (
        _judge(judged, number, margin, spread, rule)
        for margin in (rule.settings.margin_points, rule.settings.wide_margin_points)
    )
    return Verdict(
        row=row.name,
        published=number,
        num_runs=len(row.runs),
        num_judged=len(judged),
        ours=describe(values),
        spread=spread,
        result=None if number.statistic == EYE else narrow,
        wide=wide,
        repeat=repeat(judged, number.value, rule.settings.alpha, spread, number.reading_sd) if single else None,
        reason="; ".join(_remarks(row, judged, spread, rule)),
    )


def _judge(values: Sequence[float], number: Published, margin: float, spread: Spread | None, rule: Rule) -> Equivalence:
    alpha = rule.settings.alpha
    if number.relation == ">":
        mean = describe(values).mean
        return Equivalence(mean, mean - number.value, None, mostly_above(values, number.value, alpha))
    best_of = number.runs if number.statistic == BEST and number.runs else 1
    return equivalence(values, number.value, margin, alpha, spread, number.reading_sd, best_of)


def _remarks(row: Row, judged: Sequence[float], spread: Spread | None, rule: Rule) -> Iterator[str]:
    if early := [run.key for run in row.runs if run.key in rule.settings.seen_before]:
        yield f"{', '.join(early)} known before these rules"
    if len(judged) < len(row.runs):
        look = rule.next_look(len(row.runs))
        yield f"judged by its first {len(judged)}" + (f"; the next look is at {look} runs" if look else "")
    if rule.prior is not None and spread is not None and not spread.by_prior:
        yield "its runs spread too widely for the published spread, so they stand alone"
    precision, device = row.arithmetic
    if precision != "fp32":
        yield f"trained in {precision} on {device}"


def _smallest(result: Equivalence | None) -> str:
    margin = result.smallest_margin if result else None
    return NONE if margin is None else f"±{margin:.2f}"


def _beside(found: Repeat | None, rule: Rule) -> str:
    if found is None:
        return NONE
    near = found.p_value > 2 * rule.settings.alpha
    what = (
        "no farther apart than two runs of one recipe may be"
        if near
        else f"farther apart than {rule.confidence} of such pairs"
    )
    return f"{what} (up to {found.limit:.2f}; p = {found.p_value:.2f})"


def _interval(interval: Interval | None) -> str:
    return NONE if interval is None else f"{interval[0]:+z.2f} to {interval[1]:+z.2f}"


def printed(number: Published) -> str:
    """As it stands in the source: the value with its bound or its spread."""
    bound = "" if number.relation == "=" else number.relation
    spread = "" if number.std is None else f" ± {number.std:.2f}"
    return f"{bound}{number.value:.2f}{spread}"


def _ours(verdict: Verdict) -> str:
    ours = verdict.ours
    if ours is None:
        return NONE if verdict.num_runs else NOT_RUN
    if ours.std is None:
        return f"{ours.mean:.2f} (1 run)"
    if verdict.published.statistic == BEST and verdict.result is not None:
        return (
            f"{verdict.result.estimate:.2f} (expected best of {verdict.published.runs}, from {verdict.num_judged} runs)"
        )
    return f"{ours.mean:.2f} ± {ours.std:.2f} ({ours.n} runs)"

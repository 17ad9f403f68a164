"""What the papers leave open, varied one at a time: a variant's test error against its baseline's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from resnet_repro.params import AblationGroup, Verdicts
from resnet_repro.reporting.figures import Effect
from resnet_repro.reporting.load import Evidence, Row
from resnet_repro.reporting.tables import NONE, NOT_RUN, percent, signed
from resnet_repro.statistics import Comparison, Outcome, compare, outcome_of


@dataclass(frozen=True)
class Variation:
    """One variant of a group beside the baseline's runs on the same kind of device."""

    group: str
    question: str
    source: str
    variant: str
    baseline: str
    runs: Row | None
    baseline_runs: Row | None
    """None: not run, or not on the variant's kind of device and in its precision (where that is not varied)"""

    @property
    def comparison(self) -> Comparison | None:
        """Variant minus baseline, in points; by Welch's t over the seeds."""
        if self.runs is None or self.baseline_runs is None:
            return None
        return compare(self.runs.test_error.values, self.baseline_runs.test_error.values)


def variations(evidence: Evidence) -> list[Variation]:
    """Every variant of every group, in the order of params.yaml."""
    rows: dict[str, list[Row]] = {}
    for row in (*evidence.rows, *evidence.ablation_rows):
        rows.setdefault(row.model, []).extend([row] if row.runs else [])
    return [
        Variation(name, group.question, group.source, variant, group.baseline, *_matching(rows, group, variant))
        for name, group in evidence.params.ablation_groups.items()
        for variant in group.variants
    ]


def _matching(rows: Mapping[str, Sequence[Row]], group: AblationGroup, variant: str) -> tuple[Row | None, Row | None]:
    """The rows to compare: of all that share their arithmetic, those with the most runs."""
    pairs = [
        (one, other)
        for one in rows.get(variant, ())
        for other in rows.get(group.baseline, ())
        if _comparable(one, other)
    ]
    if pairs:
        return max(pairs, key=lambda pair: min(len(pair[0].runs), len(pair[1].runs)))
    return max(rows.get(variant, ()), key=lambda row: len(row.runs), default=None), None


def _comparable(variant: Row, baseline: Row) -> bool:
    """On one kind of device, and in one precision unless precision is what the variant varies."""
    (precision, device), (other_precision, other_device) = variant.arithmetic, baseline.arithmetic
    varied = variant.plan.engine.precision != baseline.plan.engine.precision
    return device == other_device and (varied or precision == other_precision)


def effects(evidence: Evidence) -> list[Effect]:
    """What the forest plot draws."""
    return list(_effects(variations(evidence)))


def _effects(found: Sequence[Variation]) -> Iterator[Effect]:
    for one in found:
        if (comparison := one.comparison) is not None and one.runs is not None:
            yield Effect(one.group, one.variant, comparison.difference, comparison.interval, len(one.runs.runs))


def ablation_table(evidence: Evidence) -> pd.DataFrame:
    """One line per variant. Errors and differences in percent of the test images."""
    settings = evidence.params.verdicts
    return pd.DataFrame(_line(one, settings) for one in variations(evidence))


def _line(one: Variation, settings: Verdicts) -> dict[str, str]:
    comparison = one.comparison
    interval = comparison.interval if comparison else None
    return {
        "choice": one.group,
        "variant": f"`{one.variant}`",
        "its error (seeds)": _error(one.runs),
        "baseline": f"`{one.baseline}`",
        "its error (seeds) ": _error(one.baseline_runs),
        "difference": signed(comparison.difference) if comparison else NONE,
        "95% interval": f"{signed(interval[0])} to {signed(interval[1])}" if interval else NONE,
        "does it matter?": _conclusion(one, settings),
        "source": one.source,
    }


def _error(row: Row | None) -> str:
    return NOT_RUN if row is None else f"{percent(row.test_error.mean)} ({row.test_error.n})"


def _conclusion(one: Variation, settings: Verdicts) -> str:
    comparison = one.comparison
    if comparison is None or one.runs is None or one.baseline_runs is None:
        return NOT_RUN
    if comparison.interval is None:
        return Outcome.UNDECIDED.value
    if comparison.interval[0] > 0:
        return "yes, it is worse"
    if comparison.interval[1] < 0:
        return "yes, it is better"
    if outcome_of(comparison.interval, -settings.margin_points, settings.margin_points) is Outcome.REPRODUCED:
        return f"no, by less than {settings.margin_points:g} points"
    return Outcome.UNDECIDED.value

"""Each claim tested on the runs there are: it holds when all of its gaps are shown to lie where it says, and it
does not when one is shown not to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean

import numpy as np
import pandas as pd

from resnet_repro.claims import CLAIMS, TEST_ERROR, Claim, Gap, models_of
from resnet_repro.evidence import RunEvidence
from resnet_repro.params import Verdicts
from resnet_repro.reporting.load import Row
from resnet_repro.reporting.tables import NONE, WRITTEN, markdown
from resnet_repro.statistics import Interval, bootstrap, compare, describe, mcnemar


class Answer(StrEnum):
    HOLDS = "holds"
    UNDECIDED = "not enough runs to say"
    DOES_NOT_HOLD = "does not hold"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Finding:
    """What the runs say about a claim. Of several gaps, the numbers are those of the gap that decides."""

    verdict: Answer
    evidence: str
    """the means, the number of runs, in which arithmetic; or what is missing"""
    gap: Gap | None = None
    effect: float | None = None
    """of the gap, in its measure's unit"""
    interval: Interval | None = None
    """of the effect; None for too few runs"""
    superiority: float | None = None
    """the chance that a run of the gap's model is better than one of its reference; None beside a number"""
    detail: str = ""


def evaluate(claim: Claim, rows: Sequence[Row], settings: Verdicts) -> Finding:
    """What the runs say about a claim.

    Only rows at full length count, all in one arithmetic: of several, the one with the most runs of the
    model that has the fewest. A gap between two models is shown by the interval at 1 - alpha: for test
    errors from a bootstrap over seeds and images, else Welch's. A gap to a printed number is shown by the
    interval at 1 - 2 alpha, which is the equivalence test's. Fewer than two runs of a model show nothing.
    """
    runs, missing = _runs(claim.models, rows)
    if missing:
        return Finding(Answer.NOT_RUN, missing)
    parts = [_weigh(gap, runs, settings) for gap in claim.gaps]
    verdicts = {part.verdict for part in parts}
    verdict = next(one for one in (Answer.DOES_NOT_HOLD, Answer.UNDECIDED, Answer.HOLDS) if one in verdicts)
    decisive = min((part for part in parts if part.verdict is verdict), key=lambda part: _slack(part, settings))
    shown = sum(part.verdict is Answer.HOLDS for part in parts)
    details = (f"{shown} of {len(parts)} shown" if len(parts) > 1 else "", decisive.detail)
    return replace(decisive, evidence=_evidence(claim.gaps, runs), detail=", ".join(filter(None, details)))


def claims_table(rows: Sequence[Row], settings: Verdicts, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """One line per claim, as text."""
    return pd.DataFrame(_line(claim, evaluate(claim, rows, settings), settings) for claim in claims)


def claims_page(rows: Sequence[Row], settings: Verdicts, claims: Sequence[Claim] = CLAIMS) -> str:
    """The page of the claims, Markdown."""
    table = claims_table(rows, settings, claims)
    counts = table["verdict"].value_counts()
    summary = ", ".join(f"{verdict} {counts.get(verdict, 0)}" for verdict in Answer)
    introduction = _HOW_TO_READ.format(settings=settings, equivalence=_confidence(settings, 2))
    return "\n\n".join(("# Claims", WRITTEN, introduction, f"{len(table)} claims: {summary}.", markdown(table))) + "\n"


_HOW_TO_READ = """\
What the three papers and the two source projects claim about CIFAR-10, in our words, each tested on the runs \
of this project. Errors in percent of the test images after the last step, unless another measure is named; \
means over seeds, with the number of runs in parentheses. Only runs of the full schedule count, and only one \
precision and kind of device within a claim.

The **effect** is the difference of the two named. A claim **holds** if the effect's whole interval lies where \
the claim says, **does not hold** if it lies wholly elsewhere; else, and always with a single run on a side, \
there are **not enough runs to say**. A claim about several differences holds if all do and fails with one; \
the numbers are those of the difference that decides. For test errors the interval comes from a bootstrap over \
seeds and images; for other measures it is Welch's over seeds; against a printed number, taken as exact, it is \
the equivalence test's (marked {equivalence}), at alpha = {settings.alpha:g}. "Similar", "about" and "no better" allow \
{settings.margin_points:g} points. **P(A beats B)** is the chance that a run of the first named has a lower \
value than one of the second. Where a single run stands on a side, *p of one pair* is McNemar's for two runs \
on the same images: it says nothing about other seeds. No correction is made for the number of claims."""


def _runs(models: Sequence[str], rows: Sequence[Row]) -> tuple[dict[str, tuple[RunEvidence, ...]], str]:
    """The runs of the models in one arithmetic; or nothing, and what is missing."""
    by_arithmetic: dict[tuple[str, str], dict[str, tuple[RunEvidence, ...]]] = {}
    for row in rows:
        if row.model in models and row.runs and not row.is_short:
            by_arithmetic.setdefault(row.arithmetic, {})[row.model] = row.runs
    complete = [found for found in by_arithmetic.values() if len(found) == len(models)]
    if complete:
        return max(complete, key=lambda found: sorted(map(len, found.values()))), ""
    some = {model for found in by_arithmetic.values() for model in found}
    missing = ", ".join(f"`{model}`" for model in models if model not in some)
    return {}, f"no run of {missing}" if missing else "no precision and device in which all models have run"


def _weigh(gap: Gap, runs: Mapping[str, tuple[RunEvidence, ...]], settings: Verdicts) -> Finding:
    """One gap of a claim. `evidence` is left to the claim."""
    ours = runs[gap.model]
    values = [gap.measure.of(run) for run in ours]
    if not isinstance(gap.reference, str):
        summary = describe(values, confidence=1 - 2 * settings.alpha)
        interval = summary.interval and _shifted(summary.interval, -gap.reference)
        return _judged(Finding(Answer.UNDECIDED, "", gap, summary.mean - gap.reference, interval), settings)
    theirs = runs[gap.reference]
    others = [gap.measure.of(run) for run in theirs]
    found = Finding(Answer.UNDECIDED, "", gap, fmean(values) - fmean(others))
    if min(len(ours), len(theirs)) == 1:
        return replace(found, detail=_one_pair(ours[0], theirs[0]) if gap.measure is TEST_ERROR else "")
    confidence = 1 - settings.alpha
    comparison = (
        bootstrap(_wrong(ours), _wrong(theirs), confidence)
        if gap.measure is TEST_ERROR
        else compare(values, others, confidence)
    )
    return _judged(replace(found, interval=comparison.interval, superiority=comparison.superiority), settings)


def _judged(found: Finding, settings: Verdicts) -> Finding:
    """With the verdict that its interval gives."""
    if found.gap is None or found.interval is None:
        return found
    (low, high), (left, right) = found.gap.bounds(settings), found.interval
    if low < left and right < high:
        return replace(found, verdict=Answer.HOLDS)
    return replace(found, verdict=Answer.DOES_NOT_HOLD) if right < low or high < left else found


def _slack(part: Finding, settings: Verdicts) -> float:
    """How far the effect lies inside the claimed range; negative outside."""
    if part.gap is None or part.effect is None:
        return math.inf
    low, high = part.gap.bounds(settings)
    return min(part.effect - low, high - part.effect)


def _one_pair(run: RunEvidence, other: RunEvidence) -> str:
    return f"p of one pair {mcnemar(*_wrong((run, other))):.2g}"


def _wrong(runs: Sequence[RunEvidence]) -> np.ndarray:
    """(runs, images) bool: which test images each run takes for another class."""
    predictions = (run.predictions() for run in runs)
    return np.stack([arrays["predicted"] != arrays["label"] for arrays in predictions])


def _shifted(interval: Interval, by: float) -> Interval:
    return interval[0] + by, interval[1] + by


def _evidence(gaps: Sequence[Gap], runs: Mapping[str, Sequence[RunEvidence]]) -> str:
    origin = runs[gaps[0].model][0].provenance
    return "; ".join((*_means(gaps, runs), f"{origin.precision} on {origin.device}"))


def _means(gaps: Sequence[Gap], runs: Mapping[str, Sequence[RunEvidence]]) -> Iterator[str]:
    """For each measure the models' means, from the lowest."""
    for measure in dict.fromkeys(gap.measure for gap in gaps):
        models = models_of([gap for gap in gaps if gap.measure is measure])
        means = ((model, fmean(map(measure.of, runs[model])), len(runs[model])) for model in models)
        ranked = sorted(means, key=lambda entry: entry[1])
        yield f"{measure.name}: " + ", ".join(f"`{model}` {measure.text(mean)} ({n})" for model, mean, n in ranked)


def _line(claim: Claim, finding: Finding, settings: Verdicts) -> dict[str, str]:
    return {
        "claim": f"**{claim.name}.** {claim.text}",
        "source": claim.source,
        "evidence": "; ".join(filter(None, (finding.evidence, finding.detail))),
        "effect, points": _effect(finding),
        f"{_confidence(settings)} interval": _interval(finding, settings),
        "P(A beats B)": NONE if finding.superiority is None else f"{finding.superiority:.2f}",
        "verdict": finding.verdict.value,
    }


def _effect(finding: Finding) -> str:
    if finding.gap is None or finding.effect is None:
        return NONE
    measure = finding.gap.measure
    unit = "" if measure.unit == "points" else f" {measure.unit}"
    return f"{measure.text(finding.effect, sign=True)}{unit} ({finding.gap})"


def _interval(finding: Finding, settings: Verdicts) -> str:
    if finding.gap is None or finding.interval is None:
        return NONE
    low, high = (finding.gap.measure.text(end, sign=True) for end in finding.interval)
    return f"{low} to {high}" + ("" if isinstance(finding.gap.reference, str) else f" ({_confidence(settings, 2)})")


def _confidence(settings: Verdicts, sides: int = 1) -> str:
    return f"{100 * (1 - sides * settings.alpha):g}%"

"""Each claim tested on the runs there are: it holds when all of its gaps are shown to lie where it says, and it
does not when one is shown not to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean

import pandas as pd

from resnet_repro.claims import CLAIMS, Claim, Gap, models_of
from resnet_repro.evidence import RunEvidence
from resnet_repro.params import Verdicts
from resnet_repro.reporting.judge import Rule
from resnet_repro.reporting.load import Row
from resnet_repro.reporting.tables import NONE, WRITTEN, markdown
from resnet_repro.statistics import Comparison, Interval, Outcome, compare, equivalence, outcome_of, seed_spread


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


def evaluate(claim: Claim, rows: Sequence[Row], rule: Rule) -> Finding:
    """What the runs say about a claim.

    Only rows at full length count, all in one arithmetic: of several, the one with the most runs of the model that has
    the fewest. A gap is shown by its 1 - 2 alpha interval (`statistics.compare`, `statistics.equivalence`). A claim of
    several gaps holds if each is shown, which needs no correction; one is enough to refute it, so there alpha is shared
    among them (Holm 1979, whose first step decides whether any is refuted).
    """
    runs, missing = _runs(claim.models, rows)
    if missing:
        return Finding(Answer.NOT_RUN, missing)
    parts = [_weigh(gap, runs, rule, len(claim.gaps)) for gap in claim.gaps]
    verdicts = {part.verdict for part in parts}
    verdict = next(one for one in (Answer.DOES_NOT_HOLD, Answer.UNDECIDED, Answer.HOLDS) if one in verdicts)
    decisive = min((part for part in parts if part.verdict is verdict), key=lambda part: _slack(part, rule.settings))
    shown = sum(part.verdict is Answer.HOLDS for part in parts)
    details = (f"{shown} of {len(parts)} shown" if len(parts) > 1 else "", decisive.detail)
    return replace(decisive, evidence=_evidence(claim.gaps, runs), detail=", ".join(filter(None, details)))


def claims_table(rows: Sequence[Row], rule: Rule, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """One line per claim, as text."""
    return pd.DataFrame(_line(claim, evaluate(claim, rows, rule), rule) for claim in claims)


def claims_page(rows: Sequence[Row], rule: Rule, claims: Sequence[Claim] = CLAIMS) -> str:
    """The page of the claims, Markdown."""
    table = claims_table(rows, rule, claims)
    counts = table["verdict"].value_counts()
    summary = ", ".join(f"{verdict} {counts.get(verdict, 0)}" for verdict in Answer)
    introduction = _HOW_TO_READ.format(settings=rule.settings, confidence=rule.confidence)
    has_run = table["verdict"] != Answer.NOT_RUN.value
    blocks = ["# Claims", WRITTEN, introduction, f"{len(table)} claims: {summary}."]
    blocks += [markdown(table[has_run])] if has_run.any() else []
    if len(rest := table.loc[~has_run, ["claim", "source", "evidence"]]):
        summary = f"{len(rest)} claims about models that have not run"
        blocks.append(f"<details><summary>{summary}</summary>\n\n{markdown(rest)}\n\n</details>")
    return "\n\n".join(blocks) + "\n"


_HOW_TO_READ = """\
What the three papers and the two source projects claim about CIFAR-10, in our words, each tested on the runs of \
this project. Errors in percent of the test images after the last step, unless another measure is named; means over \
seeds, with the number of runs in parentheses. Only runs of the full schedule count, and only one precision and \
kind of device within a claim.

The **effect** is the difference of the two named. A claim **holds** if the effect's whole {confidence} interval \
lies where the claim says, **does not hold** if it lies wholly elsewhere; else there are **not enough runs to \
say**. A claim about several differences holds if all do and fails with one, for which alpha is shared among them \
(Holm); the numbers are those of the difference that decides. The spread over seeds of a test error is the one that \
other people's runs have, updated by ours; of other measures nothing is known but our own seeds, so there one run \
shows nothing. A printed number is taken as exact. "Similar", "about" and "no better" allow \
{settings.margin_points:g} points. **P(A beats B)** is the chance that a run of the first named has a lower value \
than one of the second. No correction is made for the number of claims."""


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


def _weigh(gap: Gap, runs: Mapping[str, tuple[RunEvidence, ...]], rule: Rule, gaps: int) -> Finding:
    """One of so many gaps of a claim. `evidence` is left to the claim."""
    values = rule.judged([gap.measure.of(run) for run in runs[gap.model]])
    prior = rule.prior if gap.measure.seeds_known else None

    def weighed(alpha: float) -> Comparison:
        if isinstance(gap.reference, str):
            others = rule.judged([gap.measure.of(run) for run in runs[gap.reference]])
            return compare(values, others, 1 - 2 * alpha, prior)
        found = equivalence(values, gap.reference, 0, alpha, seed_spread([values], prior))
        return Comparison(found.difference, found.interval, None, None)

    low, high = gap.bounds(rule.settings)
    found, shared = weighed(rule.settings.alpha), weighed(rule.settings.alpha / gaps)
    verdict = Answer.UNDECIDED
    if found.interval is not None and outcome_of(found.interval, low, high) is Outcome.REPRODUCED:
        verdict = Answer.HOLDS
    elif shared.interval is not None and outcome_of(shared.interval, low, high) is Outcome.NOT_REPRODUCED:
        verdict = Answer.DOES_NOT_HOLD
    return Finding(verdict, "", gap, found.difference, found.interval, found.superiority)


def _slack(part: Finding, settings: Verdicts) -> float:
    """How far the effect lies inside the claimed range; negative outside."""
    if part.gap is None or part.effect is None:
        return math.inf
    low, high = part.gap.bounds(settings)
    return min(part.effect - low, high - part.effect)


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


def _line(claim: Claim, finding: Finding, rule: Rule) -> dict[str, str]:
    return {
        "claim": f"**{claim.name}.** {claim.text}",
        "source": claim.source,
        "evidence": "; ".join(filter(None, (finding.evidence, finding.detail))),
        "effect, points": _effect(finding),
        f"{rule.confidence} interval": _interval(finding),
        "P(A beats B)": NONE if finding.superiority is None else f"{finding.superiority:.2f}",
        "verdict": finding.verdict.value,
    }


def _effect(finding: Finding) -> str:
    if finding.gap is None or finding.effect is None:
        return NONE
    measure = finding.gap.measure
    unit = "" if measure.unit == "points" else f" {measure.unit}"
    return f"{measure.text(finding.effect, sign=True)}{unit} ({finding.gap})"


def _interval(finding: Finding) -> str:
    if finding.gap is None or finding.interval is None:
        return NONE
    low, high = (finding.gap.measure.text(end, sign=True) for end in finding.interval)
    return f"{low} to {high}"

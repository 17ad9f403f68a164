"""Each claim tested on the runs there are: it holds when all of its gaps are shown to lie where it says, and it
does not when one is shown not to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean

import pandas as pd

from resnet_repro.claims import CLAIMS, Claim
from resnet_repro.evidence import AuditedNet, RunEvidence
from resnet_repro.gaps import Gap, Measure, models_of
from resnet_repro.papers import judged_against
from resnet_repro.reporting.judge import Rule
from resnet_repro.reporting.load import Row
from resnet_repro.reporting.tables import NONE, WRITTEN, markdown
from resnet_repro.statistics import (
    Comparison,
    Interval,
    Outcome,
    compare,
    equivalence,
    mostly_above,
    outcome_of,
    runs_a_side,
    seed_spread,
)

FEASIBLE_RUNS = 10
"""of each of two models: of the smallest nets that many take some 50 hours of this project's CPU (reports/speed.md)"""
AUDITED = "published weights, audited in fp32"

Runs = Mapping[str, Sequence[RunEvidence | AuditedNet]]
"""By model, all in one arithmetic."""


class Answer(StrEnum):
    """In the order of the page."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    AS_CLAIMED = "as claimed in these runs"
    NOT_AS_CLAIMED = "not as claimed in these runs"
    PARTLY = "partly shown"
    """some gaps are shown, none to lie elsewhere, and the others are undecided or not run"""
    UNDECIDED = "not enough runs to say"
    NOT_RUN = "not run"


_GRAVEST_FIRST = (
    Answer.DOES_NOT_HOLD,
    Answer.NOT_AS_CLAIMED,
    Answer.UNDECIDED,
    Answer.AS_CLAIMED,
    Answer.HOLDS,
)
"""of the gaps of one claim"""


@dataclass(frozen=True)
class Finding:
    """What the runs say about a claim. Of several gaps, the numbers are those of the gap that decides, or is open."""

    verdict: Answer
    evidence: str
    """the means, the number of runs, in which arithmetic; or what is missing"""
    gap: Gap | None = None
    effect: float | None = None
    """of the gap, in its measure's unit"""
    interval: Interval | None = None
    """of the effect; None where no spread is known, or runs were counted"""
    detail: str = ""


def evaluate(claim: Claim, rows: Sequence[Row], rule: Rule, audited: Sequence[AuditedNet] = ()) -> Finding:
    """What the runs say about a claim.

    Only rows at full length count, all in one arithmetic: of several, the one that has runs for most gaps, then the one
    with the most runs of the model that has the fewest. Audited nets are an arithmetic of their own. A gap is shown by
    its 1 - 2 alpha interval (`statistics.compare`, `statistics.equivalence`); without a spread over seeds it can only
    be said how these runs lie. A claim of several gaps holds if each is shown, which needs no correction; one is enough
    to refute it, so there alpha is shared among all of them, run or not (Holm 1979, whose first step decides whether
    any is refuted).
    """
    runs = _runs(claim, rows, audited)
    tested = [gap for gap in claim.gaps if _has_run(gap, runs)]
    waiting = [gap for gap in claim.gaps if gap not in tested]
    if not tested:
        return Finding(Answer.NOT_RUN, _missing(claim, rows, audited), detail=_out_of_reach(waiting, rule))
    parts = [_weigh(gap, runs, rule, len(claim.gaps)) for gap in tested]
    answers = {part.verdict for part in parts}
    gravest = next(answer for answer in _GRAVEST_FIRST if answer in answers)
    decisive = min((part for part in parts if part.verdict is gravest), key=lambda part: _slack(part, rule))
    is_open = gravest is Answer.UNDECIDED or (gravest is Answer.HOLDS and waiting)
    verdict = Answer.PARTLY if is_open and Answer.HOLDS in answers else gravest
    open_gaps = [*waiting, *(part.gap for part in parts if part.verdict is Answer.UNDECIDED and part.gap)]
    details = (
        _count(parts, len(waiting)) if len(claim.gaps) > 1 else "",
        decisive.detail,
        "" if gravest is Answer.DOES_NOT_HOLD else _out_of_reach(open_gaps, rule),
    )
    return replace(decisive, verdict=verdict, evidence=_evidence(tested, runs), detail="; ".join(filter(None, details)))


def claims_table(
    rows: Sequence[Row], rule: Rule, claims: Sequence[Claim] = CLAIMS, audited: Sequence[AuditedNet] = ()
) -> pd.DataFrame:
    """One line per claim, as text."""
    return pd.DataFrame(_line(claim, evaluate(claim, rows, rule, audited), rule) for claim in claims)


def claims_page(
    rows: Sequence[Row], rule: Rule, claims: Sequence[Claim] = CLAIMS, audited: Sequence[AuditedNet] = ()
) -> str:
    """The page of the claims, Markdown: what is decided, what is not, and folded away what has not run."""
    table = claims_table(rows, rule, claims, audited)
    counts = table["verdict"].value_counts()
    summary = ", ".join(f"{answer} {counts[answer]}" for answer in Answer if answer in counts)
    explanation = _HOW_TO_READ.format(
        settings=rule.settings,
        confidence=rule.confidence,
        feasible=FEASIBLE_RUNS,
        alpha=f"{100 * rule.settings.alpha:g}%",
    )
    blocks = [
        "# Claims",
        WRITTEN,
        _INTRODUCTION,
        _known_before(rule, rows),
        f"{len(table)} claims: {summary}. How to read them stands at the end.",
    ]
    order = table["verdict"].map(list(Answer).index).sort_values(kind="stable").index
    for title, answers in _SECTIONS.items():
        if len(part := table.loc[order][table.loc[order, "verdict"].isin(answers)]):
            blocks += [f"## {title}", markdown(part)]
    if len(rest := table.loc[table["verdict"] == Answer.NOT_RUN, ["claim", "evidence"]]):
        summary = f"{len(rest)} claims about models that have not run"
        blocks += ["## Not run", f"<details><summary>{summary}</summary>\n\n{markdown(rest)}\n\n</details>"]
    return "\n\n".join([*blocks, "## How to read", explanation]) + "\n"


def _known_before(rule: Rule, rows: Sequence[Row]) -> str:
    """What had been seen when the rule was made; and whether anything else is there."""
    early = rule.settings.seen_before
    later = any(run.key not in early for row in rows if not row.is_short for run in row.runs)
    what = "Known before these rules were made" if later else "All that is decided here was known before these rules"
    return (
        f"**{what}**: {', '.join((*early, 'the published weights'))}. A source project's claim that is "
        "tested on the weights that it publishes is checked, not confirmed: they are what it was drawn from."
    )


_SECTIONS: Mapping[str, Sequence[Answer]] = {
    "Decided": (Answer.HOLDS, Answer.DOES_NOT_HOLD),
    "Partly decided": (Answer.PARTLY,),
    "Not decided": (Answer.UNDECIDED,),
    "Seen, not tested": (Answer.AS_CLAIMED, Answer.NOT_AS_CLAIMED),
}

_INTRODUCTION = """\
What the three papers and the two source projects claim about CIFAR-10, in our words, each tested on the runs of \
this project; what is claimed of the first source project's recipe also on the weights that it publishes, as \
reports/audit.md measures them: one run a net, and never mixed with ours. Errors in percent of the test images after \
the last step, unless another measure is named (the lowest over epochs, which the first source project prints, is \
chosen by the test images); means over seeds, with the number of runs in parentheses. Only runs of the full schedule \
count, and only one precision and kind of device within a claim."""

_HOW_TO_READ = """\
The **effect** is the difference of the two named. A claim **holds** if the effect's whole {confidence} interval \
lies where the claim says, **does not hold** if it lies wholly elsewhere; else there are **not enough runs to \
say**. A claim about several differences holds if all do, fails with one, for which alpha is shared among them \
(Holm), and is **partly shown** if some hold and the others are open or have not run; the numbers are those of the \
difference that decides, or is open.

The spread over seeds of a test error is the one that other people's runs have, updated by ours. Of training \
errors, losses and responses only our own seeds tell it. With fewer than two runs a side there is no interval, and \
it is only said whether the numbers are **as claimed in these runs**: others may differ. Where runs either train or \
fail, those above the bound are counted, and five of five show it. A printed number is taken as exact, although \
most are one run: "better" and "worse" are than that number, not than what its authors would get again. "Similar", \
"about" and "no better" allow {settings.margin_points:g} points. Where the printed difference takes more than \
{feasible} runs of each model to be shown (with chance {settings.power:g}, at that spread), the number is named. No \
correction is made for the number of claims: wrong verdicts are to be expected at {alpha} a side each, and claims \
that share a net err together. ResNet-56, whose published seeds lie wider than any other net's, is likely to have \
intervals that are too narrow."""


def _runs(claim: Claim, rows: Sequence[Row], audited: Sequence[AuditedNet]) -> Runs:
    """The runs of the claim's models in the arithmetic that says most."""
    groups: dict[str, dict[str, Sequence[RunEvidence | AuditedNet]]] = {}
    for row in rows:
        if row.model in claim.models and row.runs and not row.is_short:
            groups.setdefault(" on ".join(row.arithmetic), {})[row.model] = row.runs
    for net in audited:
        if net.model in claim.models:
            groups.setdefault(AUDITED, {})[net.model] = (net,)

    def says(runs: Runs) -> tuple[int, list[int]]:
        return sum(_has_run(gap, runs) for gap in claim.gaps), sorted(map(len, runs.values()))

    return max(groups.values(), key=says, default={})


def _values(measure: Measure, runs: Sequence[RunEvidence | AuditedNet]) -> list[float]:
    return [value for run in runs if (value := measure(run)) is not None]


def _has_run(gap: Gap, runs: Runs) -> bool:
    return all(_values(gap.measure, runs.get(model, ())) for model in models_of([gap]))


def _missing(claim: Claim, rows: Sequence[Row], audited: Sequence[AuditedNet]) -> str:
    """Why no gap of a claim can be tested."""
    some = {row.model for row in rows if row.runs and not row.is_short} | {net.model for net in audited}
    if missing := ", ".join(f"`{model}`" for model in claim.models if model not in some):
        return f"no run of {missing}"
    found: dict[str, list[RunEvidence | AuditedNet]] = {}
    for row in rows:
        found.setdefault(row.model, []).extend(() if row.is_short else row.runs)
    for net in audited:
        found.setdefault(net.model, []).append(net)
    if any(_has_run(gap, found) for gap in claim.gaps):
        return "no precision and device in which both models have run"
    return f"not measured: {', '.join(dict.fromkeys(gap.measure.name for gap in claim.gaps))}"


def _weigh(gap: Gap, runs: Runs, rule: Rule, gaps: int) -> Finding:
    """One of so many gaps of a claim. `evidence` is left to the claim."""
    values = rule.judged(_values(gap.measure, runs[gap.model]))
    prior = rule.prior if gap.measure.seeds_known else None
    low, high = gap.bounds(rule.settings)
    alphas = (rule.settings.alpha, rule.settings.alpha / gaps)

    def weighed(alpha: float) -> Comparison:
        if isinstance(gap.reference, str):
            others = rule.judged(_values(gap.measure, runs[gap.reference]))
            return compare(values, others, 1 - 2 * alpha, prior)
        spread = seed_spread([values], prior)
        found = equivalence(values, gap.reference, 0, alpha, spread, gap.reading_sd)
        return Comparison(found.difference, found.interval, None)

    found, shared = map(weighed, alphas)
    detail = ""
    if gap.counted and isinstance(gap.reference, float | int):
        shown, refuted = (mostly_above(values, gap.reference, alpha) for alpha in alphas)
        above = sum(value > gap.reference for value in values)
        found, detail = replace(found, interval=None), f"{above} of {len(values)} runs above {gap.reference:g}%"
    elif found.interval is not None and shared.interval is not None:
        shown, refuted = outcome_of(found.interval, low, high), outcome_of(shared.interval, low, high)
    elif not gap.measure.seeds_known:
        verdict = Answer.AS_CLAIMED if low <= found.difference <= high else Answer.NOT_AS_CLAIMED
        return Finding(verdict, "", gap, found.difference)
    else:
        shown = refuted = Outcome.UNDECIDED
    verdict = Answer.UNDECIDED
    if shown is Outcome.REPRODUCED:
        verdict = Answer.HOLDS
    elif refuted is Outcome.NOT_REPRODUCED:
        verdict = Answer.DOES_NOT_HOLD
    return Finding(verdict, "", gap, found.difference, found.interval, detail)


def _slack(part: Finding, rule: Rule) -> float:
    if part.gap is None or part.effect is None:
        return math.inf
    return part.gap.slack(part.effect, rule.settings)


def _count(parts: Sequence[Finding], waiting: int) -> str:
    """How many gaps are shown, and which where only some are."""
    answers = [part.verdict for part in parts]
    total = len(parts) + waiting
    shown = [str(part.gap) for part in parts if part.verdict is Answer.HOLDS]
    which = f" ({', '.join(shown)})" if 0 < len(shown) < total / 2 + 1 < total else ""
    texts = [f"{len(shown)} of {total} shown{which}"] if shown or Answer.AS_CLAIMED not in answers else []
    texts += [f"{count} of {total} as claimed" for count in [answers.count(Answer.AS_CLAIMED)] if count]
    return ", ".join([*texts, f"{waiting} not run"] if waiting else texts)


def _out_of_reach(gaps: Sequence[Gap], rule: Rule) -> str:
    """Of two models' test errors, the printed difference that takes the most runs, if those are too many; or that is
    not what is claimed."""
    spread = rule.spread()
    found: list[tuple[float, str]] = []
    for gap in gaps:
        numbers = [judged_against(model) for model in models_of([gap])]
        a, b = numbers if len(numbers) == 2 else (None, None)
        if spread is None or not gap.measure.seeds_known or a is None or b is None or {a.relation, b.relation} != {"="}:
            continue
        difference = round(a.value - b.value, 2)
        slack = round(gap.slack(difference, rule.settings), 2)
        what = f"the printed difference {difference:+z.2f} ({gap})"
        if slack <= 0:
            found.append((math.inf, f"{what} is itself not as claimed"))
            continue
        settings = rule.settings
        runs = runs_a_side(slack, spread.std(a.value), spread.std(b.value), settings.alpha, settings.power)
        found.append((runs, f"not to be decided here: {what} takes {runs} runs a side"))
    most, text = max(found, default=(0, ""))
    return text if most > FEASIBLE_RUNS else ""


def _evidence(gaps: Sequence[Gap], runs: Runs) -> str:
    first = runs[gaps[0].model][0]
    origin = AUDITED if isinstance(first, AuditedNet) else f"{first.provenance.precision} on {first.provenance.device}"
    return "; ".join((*_means(gaps, runs), origin))


def _means(gaps: Sequence[Gap], runs: Runs) -> Iterator[str]:
    """For each measure the models' means, from the lowest."""
    for measure in dict.fromkeys(gap.measure for gap in gaps):
        measured = [gap for gap in gaps if gap.measure is measure]
        beside = {gap.model: f" against {gap.reference:.2f}" for gap in measured if not isinstance(gap.reference, str)}
        values = {model: _values(measure, runs[model]) for model in models_of(measured)}
        ranked = sorted(values.items(), key=lambda entry: fmean(entry[1]))
        yield f"{measure.name}: " + ", ".join(
            f"`{model}` {measure.text(fmean(found))} ({len(found)}){beside.get(model, '')}" for model, found in ranked
        )


def _line(claim: Claim, finding: Finding, rule: Rule) -> dict[str, str]:
    return {
        "claim": f"**{claim.name}.** {claim.text} *{claim.source}*",
        "verdict": finding.verdict.value,
        "effect, points": _effect(finding),
        f"{rule.confidence} interval": _interval(finding),
        "evidence": "; ".join(filter(None, (finding.evidence, finding.detail))),
    }


def _effect(finding: Finding) -> str:
    if finding.gap is None or finding.effect is None:
        return NONE
    measure = finding.gap.measure
    unit = "" if measure.unit == "points" else f" {measure.unit}".rstrip()
    return f"{measure.text(finding.effect, sign=True)}{unit} ({finding.gap})"


def _interval(finding: Finding) -> str:
    if finding.gap is None or finding.interval is None:
        return NONE
    low, high = (finding.gap.measure.text(end, sign=True) for end in finding.interval)
    return f"{low} to {high}"

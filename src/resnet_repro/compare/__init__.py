"""`resnet-repro compare`: what differs between runs, and whether the difference means anything.

The first side is what the others are compared with; a difference is theirs minus its.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from resnet_repro import statistics
from resnet_repro.compare.sides import Run, Side, side_of
from resnet_repro.statistics import Interval

__all__ = ["Comparison", "Group", "Run", "Side", "Verdict", "compare", "judge", "params_that_differ", "side_of"]

METRICS = {
    "final_test_error_percent": "test error, last epoch (%)",
    "final_train_error_percent": "training error, last epoch (%)",
    "lowest_test_error_percent": "lowest test error of all epochs (%)",
    "best_validation_error_percent": "lowest validation error (%)",
    "best_validation_test_error_percent": "test error of that epoch (%)",
    "duration_seconds": "duration (s)",
}
FACTS = (
    "device",
    "device_name",
    "mode",
    "precision",
    "threads",
    "deterministic",
    "platform",
    "git_commit",
    "git_dirty",
    "data_sha256",
)
"""tags of a run that say where it was trained, beside the versions"""
ALPHA = 0.05
FEW = 25
"""images on which two nets differ, from which on McNemar's test and the interval take the normal distribution"""


@dataclass(frozen=True)
class Verdict:
    """Whether a side differs from the first in its test error."""

    side: str
    against: str
    text: str
    difference: float | None = None
    """in points, this side's mean minus the first one's"""
    interval: Interval | None = None
    """95%, of the difference"""
    p_value: float | None = None
    test: str | None = None


@dataclass(frozen=True)
class Group:
    """What is compared with each other: the runs of each side, or of one model on each side."""

    name: str
    runs: tuple[tuple[Run, ...], ...]
    """by side"""
    params: Mapping[str, tuple[str | None, ...]]
    """that differ, by side; of several runs all their values"""
    environment: Mapping[str, tuple[str | None, ...]]
    """likewise: where they were trained, and what computed them"""
    metrics: Mapping[str, tuple[tuple[float, ...], ...]]
    """by side, a value per run"""
    verdicts: tuple[Verdict, ...]
    """of all sides but the first"""


@dataclass(frozen=True)
class Comparison:
    sides: tuple[Side, ...]
    params: Mapping[str, tuple[Any, ...]] | None
    """of params.yaml, that differ, by side; None unless all sides are revisions"""
    groups: tuple[Group, ...]
    same: tuple[str, ...]
    """runs that are one and the same training on all sides"""


def compare(sides: Sequence[Side]) -> Comparison:
    """All that differs between two or more sides.

    Where one of them holds different models, each model is compared with its namesake, by the runs that all sides
    have; otherwise all runs of a side are its sample.
    """
    revisions = [side.params for side in sides if side.params is not None]
    params = params_that_differ(revisions) if len(revisions) == len(sides) else None
    same: list[str] = []
    groups: list[Group] = []
    for name, runs in _matched(sides):
        trainings = [[(run.record.uid, run.record.summary) for run in some] for some in runs]
        if all(some == trainings[0] for some in trainings):
            same += [run.key for run in runs[0]]
        else:
            groups.append(_group(name, [side.name for side in sides], runs))
    return Comparison(tuple(sides), params, tuple(groups), tuple(same))


def _matched(sides: Sequence[Side]) -> Iterator[tuple[str, list[tuple[Run, ...]]]]:
    if not any(side.is_collection for side in sides):
        yield " and ".join(side.name for side in sides), [side.runs for side in sides]
        return
    tables = [{run.key: run for run in side.runs} for side in sides]
    models: dict[str, list[str]] = {}
    for key in tables[0]:
        if all(key in table for table in tables):
            models.setdefault(key.rpartition("-")[0], []).append(key)
    for model, keys in models.items():
        yield model if len(keys) > 1 else keys[0], [tuple(table[key] for key in keys) for table in tables]


def _group(name: str, names: Sequence[str], runs: Sequence[tuple[Run, ...]]) -> Group:
    params = _that_differ([[run.record.params for run in some] for some in runs])
    alike = not set(params) - {"seed"}  # then the code itself must tell the difference, if there is one
    facts = [[_facts(run.record.tags, alike) for run in some] for some in runs]
    metrics = {
        key: tuple(tuple(run.record.summary[key] for run in some if key in run.record.summary) for some in runs)
        for key in METRICS
    }
    return Group(
        name=name,
        runs=tuple(runs),
        params=params,
        environment=_that_differ(facts),
        metrics={key: values for key, values in metrics.items() if any(values)},
        verdicts=tuple(judge(names[0], runs[0], *other) for other in zip(names[1:], runs[1:], strict=True)),
    )


def _facts(tags: Mapping[str, str], with_code: bool) -> dict[str, str]:
    prefixes = ("versions.", "fingerprint.") if with_code else ("versions.",)
    return {key: value for key, value in tags.items() if key in FACTS or key.startswith(prefixes)}


def params_that_differ(trees: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """The dotted names, in order, that have not the same value in all, with their values; None where it is absent."""
    values = {name: tuple(tree.get(name) for tree in trees) for tree in trees for name in tree}
    return {name: found for name, found in sorted(values.items()) if any(a != b for a, b in pairwise(found))}


def _that_differ(sides: Sequence[Sequence[Mapping[str, str]]]) -> dict[str, tuple[str | None, ...]]:
    """The same of several runs a side, whose values are put together."""
    together = [
        {name: ", ".join(dict.fromkeys(tree.get(name, "none") for tree in trees)) for tree in trees for name in tree}
        for trees in sides
    ]
    return params_that_differ(together)


def judge(against: str, first: Sequence[Run], side: str, second: Sequence[Run]) -> Verdict:
    """Whether the test errors of the last epoch differ by more than chance, in words.

    One run each: McNemar's test, whose question is other test images. Several each: Welch's, whose question is other
    seeds. One and several: whether the one is as one more of the several could be.
    """
    errors, others = (_errors(runs) for runs in (first, second))
    if len(errors) < len(first) or len(others) < len(second):
        lacking = against if len(errors) < len(first) else side
        return Verdict(side, against, f"{lacking} has no test error yet: it is not trained to its end and evaluated")
    difference = fmean(others) - fmean(errors)
    lead = f"{side} has {_points(difference)} test error {'as' if difference == 0 else 'than'} {against}"
    if len(first) == len(second) == 1:
        return _judge_pair(Verdict(side, against, lead, difference), first[0], second[0])
    if min(len(first), len(second)) == 1:
        return _judge_one(Verdict(side, against, lead, difference), errors, others)
    found = statistics.compare(others, errors, 1 - ALPHA)
    lead += f" on average over {len(others)} and {len(errors)} runs"
    if found.p_value is None:
        return Verdict(
            side, against, f"{lead}. Neither's runs differ from each other, so no test can say more.", difference
        )
    clear = "more than chance between seeds" if found.p_value < ALPHA else "seeds alone could make such a difference"
    text = f"{lead} ({_interval(found.interval)}Welch {_p(found.p_value)}): {clear}."
    return Verdict(side, against, text, difference, found.interval, found.p_value, "Welch")


def _judge_pair(verdict: Verdict, a: Run, b: Run) -> Verdict:
    seeds = "One seed each, so it says nothing about other seeds."
    if a.record.uid == b.record.uid:
        return Verdict(verdict.side, verdict.against, f"{verdict.side} and {verdict.against} are one training.")
    both = a.predictions, b.predictions
    if both[0] is None or both[1] is None or a.record.data_sha256 != b.record.data_sha256:
        why = "they were not tested on the same images" if None not in both else "predictions per image are not here"
        text = f"{verdict.text}; {why}, so whether it is chance cannot be told. {seeds}"
        return Verdict(verdict.side, verdict.against, text, verdict.difference)
    wrong_a, wrong_b = (found["predicted"] != found["label"] for found in (both[0], both[1]))
    differ = int(np.sum(wrong_a != wrong_b))
    p_value = statistics.mcnemar(wrong_a, wrong_b)
    paired = 100.0 * (wrong_b.astype(float) - wrong_a)  # per image, in points
    interval = statistics.describe(paired.tolist(), 1 - ALPHA).interval if differ >= FEW else None
    clear = "more than chance on these test images" if p_value < ALPHA else "no more than chance on these test images"
    text = (
        f"{verdict.text} ({_interval(interval)}McNemar {_p(p_value)}; one is right and the other wrong on "
        f"{differ:,} of {len(wrong_a):,} images): {clear}. {seeds}"
    )
    return Verdict(verdict.side, verdict.against, text, verdict.difference, interval, p_value, "McNemar")


def _judge_one(verdict: Verdict, errors: Sequence[float], others: Sequence[float]) -> Verdict:
    several, (single,) = (errors, others) if len(others) == 1 else (others, errors)
    one, many = (verdict.side, verdict.against)[:: 1 if len(others) == 1 else -1]
    chance = statistics.chance_below(several, single)
    if chance is None:
        text = (
            f"{verdict.text}. The {len(several)} runs of {many} do not differ from each other, so no test can say more."
        )
        return Verdict(verdict.side, verdict.against, text, verdict.difference)
    p_value = 2 * min(chance, 1 - chance)
    clear = f"{'outside' if p_value < ALPHA else 'within'} the 95% range of one more run of {many}"
    text = (
        f"{verdict.text}, one run against the mean of {len(several)}: {one} lies {clear} (prediction {_p(p_value)}). "
        f"A second seed of {one} would say more."
    )
    return Verdict(verdict.side, verdict.against, text, verdict.difference, None, p_value, "prediction")


def _errors(runs: Iterable[Run]) -> list[float]:
    return [error for run in runs if (error := run.test_error_percent) is not None]


def _points(difference: float) -> str:
    if difference == 0:
        return "as much"
    return f"{abs(difference):.2f} points {'less' if difference < 0 else 'more'}"


def _interval(interval: Interval | None) -> str:
    return f"95% interval {interval[0]:+.2f} to {interval[1]:+.2f}, ".replace("-", "−") if interval else ""


def _p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"

"""A card for each trained model, and the checklist that conferences ask for: both filled in by the evidence."""

from collections import Counter
from collections.abc import Iterator, Sequence

import pandas as pd

from resnet_repro import schedule
from resnet_repro.evidence import RunEvidence
from resnet_repro.models import count_flops
from resnet_repro.reporting.judge import Rule
from resnet_repro.reporting.load import Evidence, Row
from resnet_repro.reporting.tables import NONE, WRITTEN, markdown, other_measures, percent
from resnet_repro.reporting.verdicts import verdict_table, verdicts
from resnet_repro.statistics import describe, wilson


def training_flops(row: Row, num_images: int) -> float:
    """Floating-point operations of one run: steps times images in a batch, forward and backward.

    Args:
        num_images: of the training split, those held out included.
    """
    recipe = row.plan.recipe
    steps = schedule.total_steps(recipe, num_images - recipe.held_out)
    return float(steps * recipe.batch_size * count_flops(row.plan.architecture))


def model_card(row: Row, evidence: Evidence) -> str:
    """The card of a row with runs, Markdown (the sections of Mitchell et al. 2019, "Model Cards")."""
    plan, errors = row.plan, describe(row.test_error.values)
    card = evidence.data_card
    sections = {
        f"# {row.name}": f"{WRITTEN}\n\n{_sentence(row)}",
        "## Architecture": _values(
            {
                "family": plan.architecture.family,
                "layers": str(plan.layers),
                "parameters": f"{plan.parameters:,}",
                **_plain(plan.architecture.model_dump(mode="json", exclude_defaults=True, exclude={"family", "depth"})),
            }
        ),
        "## Training": _values(
            {
                "recipe": f"`{plan.recipe_name}`",
                **_plain(plan.recipe.model_dump(mode="json", exclude_defaults=True, exclude={"source"})),
                "training FLOPs of a run": f"{training_flops(row, card.splits['train'].num_images):.2e}",
            }
        ),
        "## Results": "\n\n".join(_results(row, evidence, errors.mean)),
        "## Data": (
            f"CIFAR-10: {card.splits['train'].num_images:,} training and {card.splits['test'].num_images:,} test "
            "images of 32x32 pixels in ten classes. "
            + (f"{plan.recipe.held_out:,} training images are held out. " if plan.recipe.held_out else "")
            + f"Digest `{card.sha256}`."
        ),
        "## Use": (
            "For research on training and reproducibility. It knows ten classes and tiny pictures and answers with "
            "one of the ten whatever it is shown; its probabilities are not calibrated. The pictures were collected "
            "from the web in 2008 and describe nobody's needs today."
        ),
        "## Runs": markdown(pd.DataFrame(_run(run) for run in row.runs)),
    }
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items()) + "\n"


def _sentence(row: Row) -> str:
    schedule_note = "on a shortened schedule" if row.is_short else "on the full schedule"
    precision, device = row.arithmetic
    seeds = f"{row.test_error.n} seed" + ("s" if row.test_error.n > 1 else "")
    return (
        f"A net for CIFAR-10, trained {schedule_note} with {seeds}, in {precision} on {device}: "
        f"**{percent(row.test_error.mean)}%** test error after the last step."
    )


def _results(row: Row, evidence: Evidence, mean: float) -> Iterator[str]:
    summary = describe(row.test_error.values)
    low, high = wilson(mean, row.runs[0].metrics.num_test_images)
    rule = Rule.of(evidence.rows, evidence.params.verdicts)
    several, interval = summary.n > 1, rule.interval(row.test_error.values)
    yield markdown(
        pd.DataFrame(
            [
                {
                    "test error": percent(summary.mean),
                    "SD": percent(summary.std),
                    "median": percent(summary.median) if several else NONE,
                    "lowest to highest": f"{summary.low:.2f} to {summary.high:.2f}" if several else NONE,
                    f"{rule.confidence} interval over seeds": f"{interval[0]:.2f} to {interval[1]:.2f}"
                    if interval
                    else NONE,
                    "95% interval of this net over such test images": f"{low:.2f} to {high:.2f}",
                }
            ]
        )
    )
    found = verdicts([row], rule)
    if found:
        table = verdict_table(found, rule).drop(columns="model")
        yield markdown(table)


def _run(run: RunEvidence) -> dict[str, str]:
    provenance = run.provenance
    return {
        "run": f"[{run.key}](../runs/{run.key}/)",
        "test error, %": percent(run.metrics.test_error_percent),
        **other_measures(run.metrics),
        "hours": f"{provenance.duration_seconds / 3600:.2f}",
        "device": provenance.machine,
        "weights, sha256": f"`{provenance.weights_sha256}`",
    }


def _plain(tree: dict[str, object]) -> dict[str, str]:
    """Nested settings on one line each."""
    return {
        name: ", ".join(f"{key} {value}" for key, value in content.items())
        if isinstance(content, dict)
        else str(content)
        for name, content in tree.items()
    }


def _values(values: dict[str, str]) -> str:
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in values.items())


def checklist(evidence: Evidence) -> str:
    """The reproducibility checklist of NeurIPS and the ML Reproducibility Challenge, answered, Markdown."""
    rows = [{"question": question, "answer": answer} for question, answer in _answers(evidence)]
    introduction = (
        f"{WRITTEN}\n\nThe items of the NeurIPS paper checklist and of the ML Reproducibility Challenge that apply."
    )
    return "\n\n".join(["# Reproducibility checklist", introduction, markdown(pd.DataFrame(rows))]) + "\n"


def _answers(evidence: Evidence) -> Iterator[tuple[str, str]]:
    params, runs, rule = evidence.params, evidence.runs, evidence.params.verdicts
    card = evidence.data_card
    full = [row for row in evidence.full if row.runs]
    splits = ", ".join(f"{split.num_images:,} {name}" for name, split in card.splits.items())
    yield "Are the claims stated?", "Every one, with its source and verdict: [claims.md](claims.md)"
    yield "Are deviations from the papers stated?", "[docs/assumptions.md](../docs/assumptions.md), one line each"
    yield "Is the code available?", "This repository; every run names its commit"
    yield (
        "Is the data available, with a digest?",
        f"CIFAR-10, {splits} images, `{card.sha256[:16]}…`, verified at download",
    )
    yield "Are the splits given?", "The official ones; images held out for validation by recipe, split by a fixed seed"
    yield "Are all hyperparameters given?", f"params.yaml: {len(params.recipes)} recipes, {len(params.models)} models"
    yield (
        "How were they chosen?",
        "As the papers print them. Nothing was tuned, and nothing is chosen by the test images",
    )
    yield (
        "How many runs?",
        f"{len(runs)} of {len(params.runs)} planned; seeds 1, 2, 3, … in order, none left out, none chosen",
    )
    yield (
        "What about the papers' open questions?",
        f"{len(params.ablations)} more runs: [ablations](ablations/README.md)",
    )
    yield "How many models at full length?", f"{len(full)} of {len(evidence.full)} rows of the main table"
    yield "Is the central tendency and its spread given?", "Mean, SD, median and range over seeds, with n beside each"
    yield (
        "What do the intervals mean?",
        "t-intervals over seeds, with the spread that other people's runs have, updated by ours; Wilson's over test "
        "images, of the nets at hand",
    )
    yield (
        "When does a number count as reproduced?",
        f"Equivalence test at ±{rule.margin_points:g} and ±{rule.wide_margin_points:g} points, each verdict with its "
        f"margin; alpha {rule.alpha:g} a look, looks at {', '.join(map(str, rule.looks))} runs; fixed before the runs "
        f"but {', '.join(rule.seen_before)}",
    )
    yield "On what was it computed?", _machines(runs) or "Nothing was run yet"
    yield "How much computing?", f"{_hours(runs):.1f} hours in all" if runs else "none yet"
    yield "Which versions?", "requirements.lock, with digests; every run names its own"
    yield "Is a run repeatable?", "The same bits on the same kind of machine, also after an interruption; tested"
    yield "One command?", "`make repro`, and `make demo` without data or GPU"
    yield "Licences?", "Code BSD-3-Clause; the data is downloaded from its publishers and not part of this repository"


def _machines(runs: Sequence[RunEvidence]) -> str:
    counts = Counter(f"{run.provenance.machine} ({run.provenance.precision})" for run in runs)
    return "; ".join(f"{name}: {count} runs" for name, count in counts.items())


def _hours(runs: Sequence[RunEvidence]) -> float:
    return sum(run.provenance.duration_seconds for run in runs) / 3600

"""The tables of the report, as data frames of numbers' text, and the two small files for DVC."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from resnet_repro.evidence import Metrics, RunEvidence
from resnet_repro.papers import Published, judged_against, paper_numbers, source_project_numbers
from resnet_repro.reporting.judge import Rule
from resnet_repro.reporting.load import Row, Sample
from resnet_repro.reporting.verdicts import NONE, NOT_RUN, headline, printed

WRITTEN = "*Written by the pipeline from the committed evidence; do not edit.*"

NUMBER = re.compile(rf"[>+-]?\d[\d.,]*( ± [\d.]+)?%?$|{NONE}$|{NOT_RUN}$")

CURVE_COLUMNS = [
    "epoch",
    "step",
    "learning_rate",
    "train_loss",
    "test_loss",
    "train_error_percent",
    "test_error_percent",
    "validation_error_percent",
]


class Notes:
    """Lettered notes below a table: what statistic a number is and where it stands."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """The letter of a note, as a superscript; the same text has the same letter."""
        if text not in self._texts:
            self._texts.append(text)
        return f"<sup>{_letters(self._texts.index(text))}</sup>"

    def lines(self) -> list[str]:
        return [f"<sup>{_letters(index)}</sup> {text}" for index, text in enumerate(self._texts)]


def comparison_table(rows: Sequence[Row], notes: Notes, rule: Rule) -> pd.DataFrame:
    """One row per model at full length, beside what the paper and the source project print. Errors in percent
    of the test images."""
    return pd.DataFrame(
        {
            **_description(row),
            **_others(row, notes),
            **_ours(row),
            "difference to the paper": signed(difference_to_paper(row)),
            "verdict": headline(row, rule),
            **_arithmetic(row),
        }
        for row in rows
    )


def waiting_table(rows: Iterable[Row], notes: Notes) -> pd.DataFrame:
    """The rows that have not run: what others print."""
    return pd.DataFrame({**_description(row), **_others(row, notes)} for row in rows)


def main_tables(rows: Sequence[Row], rule: Rule, how_to_read: str = "") -> Iterator[str]:
    """Markdown: the rows that have run, their notes, and the others folded with what notes they add."""
    notes, ran, waiting = Notes(), [row for row in rows if row.runs], [row for row in rows if not row.runs]
    if ran:
        yield markdown(comparison_table(ran, notes, rule))
        yield from filter(None, [how_to_read, "<br>\n".join(notes.lines())])
    above = len(notes.lines())
    if waiting:
        blocks = [markdown(waiting_table(waiting, notes)), "<br>\n".join(notes.lines()[above:])]
        yield details(f"Not run yet: {len(waiting)} of {len(rows)} rows", *filter(None, blocks))


def short_table(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows of shortened schedules. Nothing published stands here: it would not be comparable."""
    return pd.DataFrame(
        {**_description(row), "epochs": _epochs(row.runs), **_ours(row), **_arithmetic(row)} for row in rows
    )


def run_table(runs: Iterable[RunEvidence], outdated: Iterable[RunEvidence]) -> pd.DataFrame:
    """One line per run, with what it took and a link to its files."""
    return pd.DataFrame(
        [*(_run(run, run.key) for run in runs), *(_run(run, f"{run.key} (outdated)") for run in outdated)]
    )


def difference_to_paper(row: Row) -> float | None:
    """Mean over seeds of the last epoch's test error, minus the paper's number, in points; None where the
    paper prints none, or only a bound."""
    paper = judged_against(row.model)
    if row.test_error.mean is None or paper not in paper_numbers(row.model) or paper.relation != "=":
        return None
    return row.test_error.mean - paper.value


def metrics(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """{row: {n, test_error_percent: {mean, std}}} of the rows with runs, for `dvc metrics show`."""
    return {
        row.name: {"n": row.test_error.n, "test_error_percent": _summary(row.test_error)} for row in rows if row.runs
    }


def curves(rows: Iterable[Row]) -> pd.DataFrame:
    """Every epoch of every run, tidy: row, run and seed, then the history's columns."""
    tables = [
        run.history[CURVE_COLUMNS].assign(model=row.name, run=run.key, seed=run.metrics.seed)
        for row in rows
        for run in row.runs
    ]
    columns = ["model", "run", "seed", *CURVE_COLUMNS]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def markdown(table: pd.DataFrame) -> str:
    """A data frame of text as a Markdown table: columns of numbers right, all others left."""
    numbers = [table[column].astype(str).str.match(NUMBER).all() for column in table.columns]
    alignment = ["right" if is_number else "left" for is_number in numbers]
    return str(table.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=alignment))


def details(summary: str, *blocks: str) -> str:
    """Blocks of Markdown, folded."""
    content = "\n\n".join(blocks)
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def _description(row: Row) -> dict[str, str]:
    return {"model": row.model, "layers": str(row.plan.layers), "parameters": f"{row.plan.parameters:,}"}


def _others(row: Row, notes: Notes) -> dict[str, str]:
    return {
        "paper": _published(paper_numbers(row.model), notes),
        "source project": _published(source_project_numbers(row.model), notes),
    }


def _ours(row: Row) -> dict[str, str]:
    if not row.runs:
        names = ("last epoch, mean", "SD", "seeds", "lowest epoch", "best-validation epoch")
        return dict.fromkeys(names, NONE) | {"last epoch, mean": NOT_RUN, "seeds": "0"}
    return {
        "last epoch, mean": percent(row.test_error.mean),
        "SD": percent(row.test_error.std),
        "seeds": str(row.test_error.n),
        "lowest epoch": percent(row.lowest_test_error.mean),
        "best-validation epoch": percent(row.best_validation_test_error.mean),
    }


def _arithmetic(row: Row) -> dict[str, str]:
    precision, device = row.arithmetic if row.runs else (NONE, NONE)
    return {"precision": precision, "device": device}


def _run(run: RunEvidence, label: str) -> dict[str, str]:
    metrics, provenance = run.metrics, run.provenance
    commit = (provenance.git_commit or NONE)[:10]
    return {
        "run": f"[{label}](runs/{run.key}/)",
        "seed": str(metrics.seed),
        "test error, %": percent(metrics.test_error_percent),
        **other_measures(metrics),
        "steps": f"{metrics.steps:,}",
        "hours": f"{provenance.duration_seconds / 3600:.2f}",
        "images/s": f"{provenance.images_per_second:,.0f}",
        "device": provenance.machine,
        "precision": provenance.precision,
        "torch": provenance.versions.get("torch", NONE),
        "commit": f"{commit} (dirty)" if provenance.git_dirty else commit,
    }


def other_measures(metrics: Metrics) -> dict[str, str]:
    """The test error of the same weights, measured otherwise than the headline."""
    return {
        "in training's precision": percent(metrics.training_precision_test_error_percent),
        "population statistics": percent(metrics.population_statistics_test_error_percent),
    }


def _published(numbers: Iterable[Published], notes: Notes) -> str:
    shown = [number for number in numbers if number.role != "recorded"]
    return "; ".join(printed(number) + notes.mark(f"{number.source}: {number.statistic}") for number in shown) or NONE


def _epochs(runs: Sequence[RunEvidence]) -> str:
    return ", ".join(sorted({str(run.metrics.epochs) for run in runs})) or NONE


def _summary(sample: Sample) -> dict[str, float]:
    values = {"mean": sample.mean, "std": sample.std}
    return {name: round(value, 4) for name, value in values.items() if value is not None}


def percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+z.2f}"


def _letters(index: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    prefix = _letters(index // 26 - 1) if index >= 26 else ""
    return prefix + chr(ord("a") + index % 26)

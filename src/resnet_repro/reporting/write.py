"""Write the report, from the evidence alone: `README.md`, `figures/`, `metrics.json` and `curves.csv`."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from resnet_repro.evidence import write_atomically
from resnet_repro.reporting import data_card, figures, tables
from resnet_repro.reporting.load import Evidence, Row, load

FIGURES = "figures"


def write_report(workspace: Path, out: Path) -> None:
    """Write the report of a workspace into the folder `out`; the same evidence gives the same bytes.

    `out/figures` is replaced as a whole.

    Raises:
        ParamsError, ReproError: as `load`.
    """
    evidence = load(workspace)
    _replace_figures(out / FIGURES, evidence)
    rows = evidence.rows
    write_atomically(out / "metrics.json", (json.dumps(tables.metrics(rows), indent=1) + "\n").encode())
    curves = tables.curves(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_atomically(out / "curves.csv", curves.encode())
    write_atomically(out / "README.md", readme(evidence).encode())


def figures_of(evidence: Evidence) -> Iterator[tuple[str, Figure]]:
    """(file name without suffix, figure), in the report's order."""
    card = evidence.data_card
    if any(map(figures.is_in_figure6, evidence.full)):
        yield "figure6", figures.figure6(evidence.full)
    if figures.figure6_rows(evidence.short):
        yield "figure6_short", figures.figure6(evidence.short, full=False)
    yield "sample_images", figures.sample_images(card.samples, card.classes)
    for row in _with_curve(evidence):
        yield f"curves_{slug(row)}", figures.learning_curve(row)
    for row in _with_runs(evidence):
        yield f"confusion_{slug(row)}", figures.confusion(row, card.classes)


def readme(evidence: Evidence) -> str:
    """The report's text, Markdown."""
    return "\n\n".join(block.strip() for block in _blocks(evidence)) + "\n"


README_TABLE = re.compile(r"(<!-- table[^>]*-->\n).*?(<!-- /table -->)", re.DOTALL)


def update_readme(workspace: Path) -> None:
    """Put the comparison table between the marks of the workspace's README.md."""
    path = workspace / "README.md"
    notes = tables.Notes()
    table = markdown(tables.comparison_table(load(workspace).full, notes))
    legend = "<br>\n".join(notes.lines())
    text = README_TABLE.sub(
        lambda marks: f"{marks[1]}{table}\n\n{legend}\n{marks[2]}", path.read_text(encoding="utf-8")
    )
    write_atomically(path, text.encode())


def slug(row: Row) -> str:
    """A row's name as a file name."""
    return "".join(character if character.isalnum() else "_" for character in row.name).strip("_").replace("__", "_")


def _blocks(evidence: Evidence) -> Iterator[str]:
    yield "# Results"
    yield (
        "*Written by the stage `report` from `reports/runs/`, `reports/data/`, `plans/` and `params.yaml`; "
        "do not edit.*"
    )
    yield (
        "**The question.** Three papers print test errors for CIFAR-10: He et al. 2015 (*Deep Residual "
        "Learning*), He et al. 2016 (*Identity Mappings*), Zagoruyko and Komodakis 2016 (*Wide Residual "
        "Networks*). Does training the same nets by the same recipes give these numbers?"
    )
    if evidence.full:
        notes = tables.Notes()
        yield markdown(tables.comparison_table(evidence.full, notes))
        yield _HOW_TO_READ
        yield "<br>\n".join(notes.lines())
    if evidence.short:
        yield "## Short schedules"
        yield (
            "Trained for less than a paper's schedule, to see the pipeline work; so no published number "
            "stands beside these."
        )
        yield markdown(tables.short_table(evidence.short))
    yield "## Figures"
    yield from _figure_blocks(evidence)
    yield "## Runs"
    if evidence.runs or evidence.outdated:
        yield "Each link leads to a run's plan, provenance, history, metrics and predictions."
        yield markdown(tables.run_table(evidence.runs, evidence.outdated))
    else:
        yield "None yet."
    if evidence.outdated:
        yield "*Outdated*: trained by another plan than today's `plans/`; in no table or figure above."
    yield "## Data"
    card = evidence.data_card
    yield f"Data set `{card.sha256}`; mean and standard deviation of pixels from 0 to 1."
    yield markdown(data_card.split_table(card))
    yield markdown(data_card.class_table(card))
    yield _details("Digests (sha256)", markdown(data_card.digest_table(card)))


_HOW_TO_READ = (
    "Errors in percent of the test images, means over the seeds. **Last epoch** is the headline: the "
    "weights after the last step, which nothing chose; SD is its standard deviation over seeds, and the "
    "difference to the paper is this mean minus the paper's first number. **Lowest epoch** is the lowest "
    "test error of all epochs, so the test images chose it (what the first source project prints); "
    "**best-validation epoch** is the test error at the epoch that held-out training images chose (what "
    "the second prints; – where none are held out). Runs of different precision or device are never averaged."
)


def _figure_blocks(evidence: Evidence) -> Iterator[str]:
    if any(map(figures.is_in_figure6, evidence.full)):
        yield _picture(
            "figure6",
            "Figure 6 of He et al. 2015, recreated: training error dashed, test error bold; several seeds as "
            "their mean in a band from the lowest to the highest. Triangles: where the paper's test curves "
            "end.",
        )
    if figures.figure6_rows(evidence.short):
        yield _picture(
            "figure6_short",
            "Plain and residual nets on short schedules, drawn as in Figure 6 of He et al. 2015: training "
            "error dashed, test error bold; several seeds as their mean in a band from the lowest to the "
            "highest.",
        )
    yield _picture("sample_images", "Some training and test images of each class.")
    curves = [
        _picture(f"curves_{slug(row)}", f"`{row.name}`: training loss and test error.") for row in _with_curve(evidence)
    ]
    if curves:
        yield _details("Learning curves of the other nets", *curves)
    matrices = [
        _picture(f"confusion_{slug(row)}", f"`{row.name}`: what each class was taken for, and its error.")
        for row in _with_runs(evidence)
    ]
    if matrices:
        yield _details("Confusion matrices and errors per class", *matrices)


def _with_runs(evidence: Evidence) -> list[Row]:
    return [row for row in evidence.rows if row.runs]


def _with_curve(evidence: Evidence) -> list[Row]:
    """Every row with runs that neither Figure 6 shows."""
    shown = {row.name for part in (evidence.full, evidence.short) for row in figures.figure6_rows(part)}
    return [row for row in _with_runs(evidence) if row.name not in shown]


def markdown(table: pd.DataFrame) -> str:
    """A data frame of text as a Markdown table: the first column left, the others right."""
    alignment = ["left", *["right"] * (len(table.columns) - 1)]
    return str(table.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=alignment))


def _picture(name: str, caption: str) -> str:
    return f"![{name.replace('_', ' ')}]({FIGURES}/{name}.png)\n\n{caption} ([SVG]({FIGURES}/{name}.svg))"


def _details(summary: str, *blocks: str) -> str:
    content = "\n\n".join(blocks)
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def _replace_figures(folder: Path, evidence: Evidence) -> None:
    """Write all figures beside the folder, then put them in its place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".figures.") as temporary:
        fresh = Path(temporary) / FIGURES
        fresh.mkdir()
        with mpl.rc_context(figures.STYLE):
            for name, figure in figures_of(evidence):
                # neither date nor version: the same figure gives the same bytes
                figure.savefig(fresh / f"{name}.png", metadata={"Software": None})
                figure.savefig(fresh / f"{name}.svg", metadata={"Date": None, "Creator": None})
        if folder.exists():
            shutil.rmtree(folder)
        fresh.replace(folder)

"""Published CIFAR-10 errors, each with where it stands and what statistic it is, and parameter counts.

The numbers stand in CSV files beside this module, to be checked against their sources: `papers.csv`,
`source_projects.csv` (one number a line; an empty cell is the default of `Published`) and `parameter_counts.csv`.

The papers: He 2015 (arXiv 1512.03385), He 2016 (arXiv 1603.05027), Zagoruyko 2016 (arXiv 1605.07146).
The source projects: github.com/a-martyn/resnet and
github.com/FlorianMuellerklein/Identity-Mapping-ResNet-Lasagne with its ReScience article.

Models are named as in `params.yaml`.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter

Role = Literal["judged", "beside", "recorded"]
Measured = Literal["test error", "training error"]

LAST, LOWEST = "last epoch", "lowest over epochs"
FIRST = "single run, last iteration (inferred)"
"""He 2015, Table 6, prints neither the number of runs nor the iteration; that its Figure 6 ends at these numbers,
while the minima of the curves are lower, tells the iteration."""
MEDIAN, MEAN, BEST = "median of 5", "mean of 5", "best of 5"
READ_OFF = "end of the curve, read off, ±0.1"
"""measured on the image of the figure; ± is two reading SDs"""
EYE = "read off Figure 6 by eye"
"""as a source project read it; too coarse to judge by"""
VALIDATION = "best-validation epoch"

HE_2015_FIGURE = "He 2015, Figure 6"
HE_2016_SHORTCUTS = "He 2016, Table 1"


@dataclass(frozen=True)
class Published:
    """One published number: an error in percent."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # a column of a table that is no field

    model: str
    value: float
    statistic: str
    source: str
    role: Role
    """judged: the row is measured against it; beside: shown next to that; recorded: kept for the claims."""
    runs: int | None = None
    """None: not stated"""
    std: float | None = None
    """over the runs, as printed, points"""
    reading_sd: float = 0.0
    """standard deviation of reading it off a figure, points; 0: printed as a number"""
    relation: Literal["=", ">"] = "="
    second_hand: bool = False
    """found only as quoted by others"""
    measure: Measured = "test error"
    note: str = ""


def read_table(name: str) -> list[dict[str, str]]:
    """The lines of a CSV file beside this module, without their empty cells."""
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as file:
        return [{column: cell for column, cell in line.items() if cell} for line in csv.DictReader(file)]


_NUMBERS = TypeAdapter(tuple[Published, ...])

PAPERS = _NUMBERS.validate_python(read_table("papers.csv"))
"""What the papers print, or what was read off their figures."""

SOURCE_PROJECTS = _NUMBERS.validate_python(read_table("source_projects.csv"))
"""What the two source projects print.

a-martyn: beside the papers' rows, and what the rows of its own recipe are measured against. Its README prints the
lowest epoch; its own per-epoch files, and the weights it publishes, end at the last. Lasagne: its 110 and 164 have
projections and its wide net has 2, 4, 4 blocks; the models of those nets have names of their own. It kept the best
epoch by its 5,000 held-out images."""

FIGURE_6_END = {number.model: number.value for number in PAPERS if number.statistic == READ_OFF}
"""Where the test curves of He 2015, Figure 6 end, in percent, measured on its image: ±0.1. Two independent readings
differ by at most 0.08, and those of the residual nets from Table 6 by at most 0.09."""

_COUNTS = read_table("parameter_counts.csv")
NUM_PARAMETERS = {line["model"]: int(line["parameters"]) for line in _COUNTS}
"""Exact counts, derived from the papers' descriptions; 164 and 40-4 also stand in Zagoruyko's logs."""
PRINTED_MILLIONS_OF_PARAMETERS = {
    line["model"]: float(line["printed_millions"]) for line in _COUNTS if "printed_millions" in line
}
"""As the papers print them."""


def paper_numbers(model: str, measure: Measured = "test error") -> tuple[Published, ...]:
    """What the papers print about a model, the number it is judged against first."""
    return _of(model, measure, PAPERS)


def source_project_numbers(model: str, measure: Measured = "test error") -> tuple[Published, ...]:
    """What the source projects print about a model."""
    return _of(model, measure, SOURCE_PROJECTS)


def judged_against(model: str) -> Published | None:
    """The paper's number that a model's row is measured against; for a source project's own net or recipe
    the project's; None where nothing is printed."""
    numbers = (*paper_numbers(model), *source_project_numbers(model))
    return next((number for number in numbers if number.role == "judged"), None)


def _of(model: str, measure: Measured, numbers: Iterable[Published]) -> tuple[Published, ...]:
    ranks = ("judged", "beside", "recorded")
    found = (number for number in numbers if (number.model, number.measure) == (model, measure))
    return tuple(sorted(found, key=lambda number: ranks.index(number.role)))

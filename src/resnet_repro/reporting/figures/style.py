"""What the figures share: sizes, colours, and which printed number stands beside a row."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import seaborn as sns

from resnet_repro.papers import Published, paper_numbers, source_project_numbers
from resnet_repro.reporting.load import Row
from resnet_repro.statistics import describe

Colour = tuple[float, float, float]
Colours = dict[int, Colour]
Style = dict[str, Any]

WIDTH = 9.0
"""inches, shown at some 900 pixels in a README"""

STYLE = {
    **sns.axes_style("ticks"),
    "font.family": "DejaVu Sans",  # comes with Matplotlib
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "legend.frameon": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 100,
    "savefig.dpi": 140,
    "svg.hashsalt": "resnet-repro",  # element names that are equal at every run
}

BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, PINK, GREY, _, SKY = sns.color_palette("colorblind", 10)
BLACK = (0.0, 0.0, 0.0)
DEPTH_COLOURS = {20: SKY, 32: ORANGE, 44: GREEN, 56: PURPLE, 110: BLACK}
OTHER_COLOURS = (BLUE, RED, BROWN, PINK, GREY)
MARKER_SIZE = 6.0
"""points"""
HOLLOW: Style = {"markerfacecolor": "white", "markeredgewidth": 1.2, "linestyle": "none"}
TEST: Style = {"linewidth": 1.9}
TRAIN: Style = {"linewidth": 0.9, "linestyle": (0, (3, 1.5))}
PAPER_END: Style = {
    "marker": "<",
    "markersize": 6,
    "markeredgecolor": "black",
    "markeredgewidth": 0.5,
    "linestyle": "none",
}
GUIDE: Style = {"color": "0.75", "linestyle": (0, (4, 4)), "linewidth": 0.8, "zorder": 0}


@dataclass(frozen=True)
class Family:
    """Nets of one kind of unit, told apart by colour and by marker."""

    label: str
    colour: Colour
    marker: str


PLAIN = Family("plain", ORANGE, "s")
RESIDUAL = Family("residual", BLUE, "o")
BOTTLENECK = Family("residual bottleneck", BLACK, "D")
PREACTIVATION = Family("pre-activation", GREEN, "^")
WIDE = Family("wide", PURPLE, "v")
LASAGNE = Family("Lasagne's", BROWN, "P")
FAMILIES = (PLAIN, RESIDUAL, BOTTLENECK, PREACTIVATION, WIDE, LASAGNE)

OFF_SCALE = 4.0
"""A row whose error is more than so many times the rows' median is named at the edge of an axis, or has an axis of
its own (plain-110: "higher than 60% and not displayed", He 2015)."""


def family_of(row: Row) -> Family:
    net = row.plan.architecture
    if net.family == "resnet":
        return BOTTLENECK if net.block == "bottleneck" else RESIDUAL
    return {"plain": PLAIN, "preact": PREACTIVATION, "wide": WIDE, "lasagne": LASAGNE}[net.family]


def depth_of(row: Row) -> int:
    return row.plan.architecture.depth


def depth_colours(depths: Iterable[int]) -> Colours:
    """One colour per depth: the paper's five depths always have theirs."""
    others = [depth for depth in sorted(set(depths)) if depth not in DEPTH_COLOURS]
    return DEPTH_COLOURS | {depth: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, depth in enumerate(others)}


def title_of(row: Row) -> str:
    return row.name + (f", {len(row.runs)} seeds" if len(row.runs) > 1 else "")


def mean_error(row: Row) -> float:
    """Of the last epoch, over the runs of a row that has some; percent."""
    assert row.test_error.mean is not None
    return row.test_error.mean


def highest_on_scale(rows: Iterable[Row]) -> float:
    """The highest mean error that an axis shows in its place."""
    errors = [mean_error(row) for row in rows]
    return max(error for error in errors if error <= OFF_SCALE * median(errors))


def printed_numbers(row: Row) -> tuple[Published, ...]:
    """What the papers print of a row's model, or of a source project's own net the project; the judged one first.
    Bounds, and what is kept for the claims only, are left out."""
    numbers = paper_numbers(row.model) or source_project_numbers(row.model)
    return tuple(number for number in numbers if number.role != "recorded" and number.relation == "=")


def paper_error(row: Row) -> float | None:
    """The number of a paper that a row is judged against, percent."""
    found = (number.value for number in paper_numbers(row.model) if number.role == "judged" and number.relation == "=")
    return next(found, None)


def error_span(rows: Iterable[Row]) -> tuple[float, float]:
    """An axis for the runs of the rows on scale, the printed numbers, and the intervals of more than two runs;
    those of two are so wide that they are cut off."""
    rows = list(rows)
    highest = highest_on_scale(rows)
    values: list[float] = []
    for row in rows:
        values += [number.value for number in printed_numbers(row)]
        if mean_error(row) <= highest:
            values += row.test_error.values
            values += (len(row.runs) > 2 and describe(row.test_error.values).interval) or ()
    space = 0.05 * (max(values) - min(values)) or 0.5
    return max(min(values) - space, 0.0), max(values) + space

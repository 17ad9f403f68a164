"""One strip a row: every number that is known of a net, printed, repeated by others, audited, and ours."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MultipleLocator

from resnet_repro.evidence import AuditedNet
from resnet_repro.papers import LAST, judged_against, paper_numbers, source_project_numbers
from resnet_repro.reporting.figures.style import (
    BLUE,
    BOTTLENECK,
    OFF_SCALE,
    PLAIN,
    RESIDUAL,
    WIDTH,
    Style,
    family_of,
    mean_error,
)
from resnet_repro.reporting.judge import Rule
from resnet_repro.reporting.load import Row
from resnet_repro.reporting.verdicts import printed
from resnet_repro.reproductions import reproductions_of
from resnet_repro.statistics import Interval

DARK, MIDDLE = "0.2", "0.5"
_NO_LINE: Style = {"linestyle": "none", "markeredgewidth": 1.1}
KINDS: dict[str, Style] = {
    "printed in the paper": {"marker": "D", "markersize": 5.2, "color": "black", "markerfacecolor": "white"},
    "also printed": {"marker": "D", "markersize": 4.2, "color": MIDDLE, "markerfacecolor": "white"},
    "source project, last epoch": {"marker": "v", "markersize": 5.6, "color": DARK},
    "source project, chosen epoch": {"marker": "v", "markersize": 5.6, "color": DARK, "markerfacecolor": "white"},
    "published weights, audited": {"marker": "s", "markersize": 4.6, "color": DARK},
    "others, the paper's recipe, last epoch": {"marker": "o", "markersize": 4.8, "color": MIDDLE},
    "others, another recipe or epoch": {"marker": "o", "markersize": 4.8, "color": MIDDLE, "markerfacecolor": "white"},
}
"""Of what is not ours, as the legend says it."""
PRINTED, ALSO, LAST_EPOCH, CHOSEN, WEIGHTS, FAITHFUL, OTHERWISE = KINDS
OURS: Style = {"marker": "o", "markersize": 6.2, "color": BLUE, "markeredgecolor": "white", "markeredgewidth": 0.7}
INTERVAL: Style = {"color": BLUE, "linewidth": 4.5, "alpha": 0.3, "solid_capstyle": "butt"}


@dataclass(frozen=True)
class Mark:
    kind: str
    value: float


def marks_of(row: Row, audited: Iterable[AuditedNet]) -> Iterator[Mark]:
    """What others print of a row's model, without bounds, numbers kept for the claims, and nets under a wrong name."""
    for number in paper_numbers(row.model):
        if number.relation == "=" and number.role != "recorded":
            yield Mark(PRINTED if number.role == "judged" else ALSO, number.value)
    for number in source_project_numbers(row.model):
        if number.role != "recorded":
            yield Mark(LAST_EPOCH if number.statistic == LAST else CHOSEN, number.value)
    for file in audited:
        if file.net == row.model:
            yield Mark(WEIGHTS, file.test_error_percent)
    for found in reproductions_of(row.model):
        if not found.mislabelled:
            yield Mark(FAITHFUL if found.is_faithful else OTHERWISE, found.error_percent)


LEVEL, LANE, SPACE, LOWEST = 8.0, 12.0, 8.5, 29.0
"""points: between marks that would hide each other, for our runs, around a strip, of a strip"""
LEFT, RIGHT, LEGEND, TITLE, TICKS = 112.0, 70.0, 56.0, 16.0, 16.0
"""points around the strips"""
PANEL_OF = {PLAIN: "plain", RESIDUAL: "residual", BOTTLENECK: "residual"}
OTHER_PANEL = "pre-activation and wide"


def reproduction_strips(rows: Sequence[Row], weights: Sequence[AuditedNet], rule: Rule) -> Figure:
    """Test errors of every row, a strip each, in panels of one scale; shaded: the printed number ± the margin.

    Others' marks that would hide each other are set above and below each other. Ours, below them, are single runs over
    the interval of their mean; a row that is far off its panel's scale is an arrow at the edge.

    Args:
        rows: at least one.
    """
    by_panel: dict[str, list[_Strip]] = {title: [] for title in (*PANEL_OF.values(), OTHER_PANEL)}
    for row in rows:
        by_panel[PANEL_OF.get(family_of(row), OTHER_PANEL)].append(_Strip(row, tuple(marks_of(row, weights)), rule))
    panels = {title: strips for title, strips in by_panel.items() if strips}
    width = 72 * WIDTH - LEFT - RIGHT
    for strips in panels.values():
        low, high = _span(strips)
        for strip in strips:
            strip.arrange(width / (high - low))
    heights = [sum(strip.height for strip in strips) for strips in panels.values()]
    total = LEGEND + sum(heights) + len(panels) * (TITLE + TICKS) + 16
    figure = Figure(figsize=(WIDTH, total / 72))
    top = total - LEGEND
    for (title, strips), height in zip(panels.items(), heights, strict=True):
        top -= TITLE + height
        axes = figure.add_axes((LEFT / (72 * WIDTH), top / total, width / (72 * WIDTH), height / total))
        _panel(axes, title, strips)
        top -= TICKS
    axes.set_xlabel("test error (%)", labelpad=3)
    handles = _legend([strip for strips in panels.values() for strip in strips], rule)
    figure.legend(handles=handles, loc="upper center", ncols=3, fontsize=8.5, handletextpad=0.5, columnspacing=1.6)
    return figure


class _Strip:
    """A row's marks, at their heights; points from the strip's upper edge."""

    def __init__(self, row: Row, marks: Sequence[Mark], rule: Rule) -> None:
        self.row, self.marks, self.judged = row, marks, judged_against(row.model)
        self.interval = rule.interval(row.test_error.values)
        margin, judged = rule.settings.margin_points, self.judged
        self.margins: Interval | None = None
        if judged is not None and judged.relation == "=":
            self.margins = (judged.value - margin, judged.value + margin)

    def arrange(self, points_per_percent: float) -> None:
        """Each mark on the first level, from the middle on, where it hides no other."""
        taken: dict[int, list[float]] = {}
        levels = []
        for mark in self.marks:
            x, level = mark.value * points_per_percent, 0
            while any(abs(x - other) < LEVEL for other in taken.get(level, ())):
                level = -level if level > 0 else 1 - level
            taken.setdefault(level, []).append(x)
            levels.append(level)
        low, high = (min(levels), max(levels)) if levels else (0, 0)
        content = (high - low) * LEVEL + (LANE if self.row.runs else 0)
        self.height = max(LOWEST, content + 2 * SPACE)
        first = (self.height - content) / 2
        self.heights = [first + (level - low) * LEVEL for level in levels]
        self.ours = first + (high - low) * LEVEL + LANE


def _span(panel: Sequence[_Strip]) -> tuple[float, float]:
    """An axis for all marks, the margins, and our runs and intervals that are on scale."""
    values = [mark.value for strip in panel for mark in strip.marks]
    values += [end for strip in panel for end in strip.margins or ()]
    means = [mean_error(strip.row) for strip in panel if strip.row.runs]
    scale = OFF_SCALE * median(values or means or [1.0])
    for strip in panel:
        if strip.row.runs and mean_error(strip.row) <= scale:
            values += [*strip.row.test_error.values, *(strip.interval or ())]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    space = 0.02 * (high - low) or 0.5
    return low - space, high + space


def _panel(axes: Axes, title: str, panel: Sequence[_Strip]) -> None:
    height = sum(strip.height for strip in panel)
    span = _span(panel)
    axes.set(xlim=span, ylim=(height, 0), yticks=[])
    axes.xaxis.set_major_locator(MultipleLocator(1 if span[1] - span[0] > 4 else 0.5))
    axes.tick_params(axis="x", length=0, labelsize=8.5, labelcolor="0.3", pad=3)
    axes.grid(axis="x", color="0.9", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    _beside(axes, 0, -LEFT + 4, -9, title, fontsize=10, fontweight="bold")
    top = 0.0
    for strip in panel:
        axes.axhline(top, color="0.8", linewidth=0.6, zorder=0.5)
        _strip(axes, strip, top, span)
        _names(axes, strip, top + strip.height / 2)
        top += strip.height
    axes.axhline(top, color="0.8", linewidth=0.6, zorder=0.5, clip_on=False)


def _strip(axes: Axes, strip: _Strip, top: float, span: tuple[float, float]) -> None:
    if strip.margins:
        low, high = strip.margins
        axes.add_patch(Rectangle((low, top), high - low, strip.height, color="0.93", linewidth=0, zorder=0.4))
    for mark, height in zip(strip.marks, strip.heights, strict=True):
        axes.plot(mark.value, top + height, **_NO_LINE, **KINDS[mark.kind], zorder=2)
    ours = top + strip.ours
    if not strip.row.runs:
        return
    if mean_error(strip.row) > span[1]:
        axes.plot(span[1], ours, linestyle="none", clip_on=False, **OURS | {"marker": ">"})
        return
    if strip.interval:
        axes.plot(strip.interval, [ours, ours], **INTERVAL, zorder=1.5)
    values = strip.row.test_error.values
    axes.plot(values, [ours] * len(values), linestyle="none", **OURS, zorder=3)


def _names(axes: Axes, strip: _Strip, middle: float) -> None:
    """The row and what is printed at the left; at the right, ours."""
    row, left = strip.row, 4 - LEFT
    size = min(9.5, 185 / len(row.name))  # as large as there is room
    if strip.judged is None:
        _beside(axes, middle, left, 0, row.name, fontsize=size)
    else:
        said = printed(strip.judged)
        if strip.margins:
            said += f", {strip.judged.statistic.partition(',')[0]}"
        _beside(axes, middle, left, -5.5, row.name, fontsize=size)
        _beside(axes, middle, left, 6.5, said, fontsize=7.8, color="0.4")
    if row.runs:
        number = f"{mean_error(row):.2f}"
        runs = f"{len(row.runs)} run{'s' if len(row.runs) > 1 else ''}"
        _beside(axes, middle, 0, -5.5, number, right=True, fontsize=10, color=BLUE, fontweight="bold")
        _beside(axes, middle, 0, 6.5, f"ours, {runs}", right=True, fontsize=7.8, color=BLUE)
    else:
        _beside(axes, middle, 0, 0, "not run yet", right=True, fontsize=7.8, color="0.55")


def _beside(axes: Axes, y: float, x: float, down: float, text: str, right: bool = False, **style: Any) -> None:
    """A text `x` points from the left edge of the axes, or from the right edge of the figure."""
    axes.annotate(
        text,
        (1 if right else 0, y),
        xycoords=axes.get_yaxis_transform(),
        xytext=(RIGHT - 4 if right else x, -down),
        textcoords="offset points",
        ha="right" if right else "left",
        va="center_baseline",
        annotation_clip=False,
        **style,
    )


def _legend(strips: Sequence[_Strip], rule: Rule) -> list[Line2D | Patch]:
    found = {mark.kind for strip in strips for mark in strip.marks}
    handles: list[Line2D | Patch] = [
        Line2D([], [], label=kind, **_NO_LINE, **style) for kind, style in KINDS.items() if kind in found
    ]
    handles.append(Patch(color="0.9", linewidth=0, label=f"printed ± {rule.settings.margin_points:g} points"))
    if any(strip.row.runs for strip in strips):
        label = f"our runs, {rule.confidence} interval of the mean"
        handles.append(Line2D([], [], label=label, **OURS))
    return handles

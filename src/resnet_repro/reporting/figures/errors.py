"""Test errors against what a net is: its layers, its size, the cost of its training."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import (
    EngFormatter,
    Formatter,
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullLocator,
    ScalarFormatter,
)
from matplotlib.transforms import Bbox, Transform, offset_copy

from resnet_repro.reporting.figures.style import (
    FAMILIES,
    HOLLOW,
    MARKER_SIZE,
    WIDTH,
    Family,
    Style,
    depth_of,
    error_span,
    family_of,
    highest_on_scale,
    mean_error,
    paper_error,
)
from resnet_repro.reporting.load import Row
from resnet_repro.statistics import describe


def error_against_depth(rows: Sequence[Row]) -> Figure:
    """Test error over the number of layers: a line for each kind of unit, the papers' numbers hollow beside it.

    Ours are means over seeds with their 95% interval. Wide nets and a source project's own are not of one series
    and stay out; of several rows of one unit and depth, the first is drawn. Ours stand a little left of their depth
    and the papers' a little right.

    Args:
        rows: with runs.
    """
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    rows = _first_of_each_depth(rows)
    axes.set_xscale("log")
    if rows:
        depths = sorted({depth_of(row) for row in rows})
        axes.set_xlim(depths[0] / 1.2, depths[-1] * 1.2)
        axes.set_xticks(_spread(depths), labels=[str(depth) for depth in _spread(depths)])
        _depth_lines(axes, rows)
    else:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color="0.4", fontsize=12)
        axes.set(xticks=[], yticks=[])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="layers", ylabel="test error (%)")
    _family_legend(figure, rows)
    return figure


SERIES = FAMILIES[:4]


def _first_of_each_depth(rows: Iterable[Row]) -> list[Row]:
    chosen: dict[tuple[Family, int], Row] = {}
    for row in rows:
        if family_of(row) in SERIES:
            chosen.setdefault((family_of(row), depth_of(row)), row)
    return sorted(chosen.values(), key=depth_of)


def _spread(depths: Sequence[int]) -> list[int]:
    """Those whose labels have room on the logarithmic axis."""
    kept: list[int] = []
    for depth in depths:
        if not kept or depth >= 1.22 * kept[-1]:
            kept.append(depth)
    return kept


def _depth_lines(axes: Axes, rows: Sequence[Row]) -> None:
    highest = highest_on_scale(rows)
    ours, papers = _beside(axes, -4), _beside(axes, 4)
    for family in SERIES:
        members = [row for row in rows if family_of(row) is family]
        shown = [row for row in members if mean_error(row) <= highest]
        if shown:
            axes.plot(
                [depth_of(row) for row in shown],
                [mean_error(row) for row in shown],
                transform=ours,
                linewidth=1.4,
                **_filled(family),
            )
        for row in shown:
            if interval := describe(row.test_error.values).interval:
                axes.plot([depth_of(row)] * 2, interval, transform=ours, color=family.colour, linewidth=1.2)
        for row in members:
            if row not in shown:
                _above(axes, depth_of(row), row)
            if (printed := paper_error(row)) is not None:
                axes.plot(depth_of(row), printed, transform=papers, **_hollow(family))
    axes.set_ylim(error_span(rows))


def error_against_size(rows: Sequence[Row], training_flops: Mapping[str, float]) -> Figure:
    """Mean test error over parameters (left) and over the cost of training (right), the papers' numbers hollow.

    A name leaves out its family, which the colour and the marker say.

    Args:
        rows: with runs.
        training_flops: of one run, by model; forward and backward, a multiply-add counts as two.
    """
    figure = Figure(figsize=(WIDTH, 5.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    parameters = {row.model: float(row.plan.parameters) for row in rows}
    _size_axis(left, parameters.values(), "parameters", EngFormatter(sep=""))
    powers = LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(math.inf, math.inf))
    _size_axis(right, [training_flops[row.model] for row in rows], "floating-point operations of one training", powers)
    left.set_yscale("log")
    left.set_ylim(_logarithmic_span(rows))
    left.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.yaxis.set_minor_locator(NullLocator())
    left.set_ylabel("test error (%)")
    panels = ((left, parameters), (right, training_flops))
    for axes, sizes in panels:
        _size_points(axes, rows, sizes)
    _family_legend(figure, rows)
    figure.draw_without_rendering()  # settles the layout, and with it where a name has room
    for axes, sizes in panels:
        _name_points(axes, rows, sizes)
    return figure


def _size_axis(axes: Axes, sizes: Iterable[float], label: str, formatter: Formatter) -> None:
    low, high = min(sizes), max(sizes)
    axes.set_xscale("log")
    axes.set_xlim(low / 2.2, high * 4)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 30 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def _size_points(axes: Axes, rows: Sequence[Row], sizes: Mapping[str, float]) -> None:
    highest, papers = highest_on_scale(rows), _beside(axes, MARKER_SIZE + 1)
    for row in rows:
        size, family = sizes[row.model], family_of(row)
        if mean_error(row) <= highest:
            axes.plot(size, mean_error(row), linestyle="none", **_filled(family))
        else:
            _above(axes, size, row)
        if (printed := paper_error(row)) is not None:
            axes.plot(size, printed, transform=papers, **_hollow(family))


def _name_points(axes: Axes, rows: Sequence[Row], sizes: Mapping[str, float]) -> None:
    """Every name at the first place around its point where it hides nothing, or where it hides least."""
    highest = highest_on_scale(rows)
    taken = [_box_of_point(axes, line) for line in axes.get_lines()]
    for row in sorted((row for row in rows if mean_error(row) <= highest), key=mean_error):
        name = axes.annotate(
            short_name(row.name),
            (sizes[row.model], mean_error(row)),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center_baseline",
            fontsize=7.5,
            color=_darker(family_of(row)),
        )
        name.set_in_layout(False)
        taken.append(_place(name, taken, axes))
        x, y = name.get_position()
        if math.hypot(x, y) > FAR:
            line = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.6", "shrinkA": 1, "shrinkB": 2}
            axes.annotate("", name.xy, (x, y), textcoords="offset points", arrowprops=line).set_in_layout(False)


def short_name(name: str) -> str:
    """A row's name without its family's letters: `wrn28_10_dropout` is 28-10 dropout."""
    short = re.sub(r"^[a-z]+_?", "", name)
    return re.sub(r"(?<=\d)_(?=\d)", "-", short).replace("_", " ") or name


PLACES = [
    *((-5.0, y, "right") for y in (0.0, 5.0, -5.0)),
    *((0.0, y, "center") for y in (9.0, -9.0)),
    *((13.0, y, "left") for y in (0.0, 5.0, -5.0)),
    *((5.0, y, "left") for y in (7.0, -7.0)),
    *((x, y, side) for y in (12.0, -12.0, 19.0, -19.0, 27.0, -27.0) for x, side in ((-9.0, "right"), (9.0, "left"))),
    *((x, y, side) for y in (0.0, 8.0, -8.0) for x, side in ((-25.0, "right"), (30.0, "left"))),
]
"""Of a name around its point: the offset in points and the side from which it is written, nearest first. 13 lies
beyond a hollow neighbour."""
FAR = 14.0
"""points; a name farther from its point is joined to it by a line"""


def _place(name: Annotation, taken: Sequence[Bbox], axes: Axes) -> Bbox:
    centred = Bbox(name.get_window_extent())
    dots = axes.figure.dpi / 72

    def box(place: tuple[float, float, str]) -> Bbox:
        x, y, side = place
        shift = {"left": centred.width / 2, "right": -centred.width / 2, "center": 0.0}[side]
        return Bbox(centred.translated(x * dots + shift, y * dots))

    def hidden(place: tuple[float, float, str]) -> int:
        """In pixels; whole ones, or the first of equally good places would be chosen by rounding errors."""
        outside = _area(centred) - _common(box(place), axes.bbox)
        return round(outside + sum(_common(box(place), other) for other in taken))

    best = min(PLACES, key=hidden)
    name.set(position=best[:2], horizontalalignment=best[2])
    return box(best)


def _box_of_point(axes: Axes, line: Line2D) -> Bbox:
    ((x, y),) = line.get_transform().transform(line.get_xydata())
    radius = MARKER_SIZE / 2 * axes.figure.dpi / 72
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _common(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else _area(common)


def _area(box: Bbox) -> float:
    return float(box.width * box.height)


def _logarithmic_span(rows: Iterable[Row]) -> tuple[float, float]:
    """The same for means and papers' numbers on a logarithmic axis."""
    rows = list(rows)
    highest = highest_on_scale(rows)
    values = [mean_error(row) for row in rows if mean_error(row) <= highest]
    values += [printed for row in rows if (printed := paper_error(row)) is not None]
    return min(values) / 1.08, max(values) * 1.05


def _filled(family: Family) -> dict[str, Any]:
    return {"color": family.colour, "marker": family.marker, "markersize": MARKER_SIZE, "markeredgewidth": 0}


def _hollow(family: Family) -> dict[str, Any]:
    return {"color": family.colour, "marker": family.marker, "markersize": MARKER_SIZE - 0.8, **HOLLOW}


def _darker(family: Family) -> tuple[float, float, float]:
    """Of a colour, for text."""
    red, green, blue = (0.65 * channel for channel in family.colour)
    return red, green, blue


def _beside(axes: Axes, points: float) -> Transform:
    """Data coordinates, shifted right."""
    return offset_copy(axes.transData, fig=axes.get_figure(root=True), x=points, units="points")


def _above(axes: Axes, x: float, row: Row) -> None:
    """A row off the scale, named at the upper edge."""
    edge = axes.get_xaxis_transform()
    axes.plot(x, 1, "^", color=family_of(row).colour, markersize=MARKER_SIZE, transform=edge, clip_on=False)
    axes.annotate(
        f"{row.name}: {mean_error(row):.2f}",
        (x, 1),
        xycoords=edge,
        xytext=(-6, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=8,
    )


def _family_legend(figure: Figure, rows: Sequence[Row]) -> None:
    present = {family_of(row) for row in rows}
    handles = [
        Line2D([], [], label=family.label, linestyle="none", **_filled(family))
        for family in FAMILIES
        if family in present
    ]
    if any(paper_error(row) is not None for row in rows):
        printed: Style = {"color": "0.3", "marker": "o", "markersize": MARKER_SIZE - 0.8, **HOLLOW}
        handles.append(Line2D([], [], label="printed in the paper", **printed))
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=9, handletextpad=0.3)

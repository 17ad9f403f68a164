"""The effect of every changed choice, one line each."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_repro.reporting.figures.style import (
    BLUE,
    GREY,
    HOLLOW,
    MARKER_SIZE,
    RED,
    WIDTH,
    Style,
)

BETTER, WORSE, UNDECIDED = BLUE, RED, GREY


@dataclass(frozen=True)
class Effect:
    """One changed choice: a variant against its baseline."""

    group: str
    variant: str
    difference: float
    """variant minus baseline, in points of test error"""
    interval: tuple[float, float] | None
    """of the difference; None: too few runs"""
    n: int
    """runs of the variant"""


OFF_SCALE_MARGINS = 10
"""A difference of more than so many margins is named at the edge."""


def ablation_forest(effects: Sequence[Effect], margin_points: float) -> Figure:
    """Differences to the baselines with their intervals, by group, the largest first; band: ±margin, in points.

    Blue: the interval lies below zero, which is better; red: above; grey: neither, hollow where there is none.

    Args:
        effects: at least one.
    """
    lines = list(_forest_lines(effects))
    figure = Figure(figsize=(WIDTH, 1.0 + 0.235 * len(lines)), layout="constrained")
    axes = figure.subplots()
    edge = min(OFF_SCALE_MARGINS * margin_points, 1.1 * max(_reach(effects), 2 * margin_points))
    axes.set(xlim=(-edge, edge), ylim=(len(lines) - 0.5, -0.5))
    axes.axvspan(-margin_points, margin_points, color="0.93", zorder=0, linewidth=0)
    axes.axvline(0, color="0.35", linewidth=0.9, zorder=1)
    for place, line in enumerate(lines):
        if isinstance(line, Effect):
            _forest_line(axes, place, line, edge)
    axes.set_yticks(range(len(lines)), labels=[line.variant if isinstance(line, Effect) else line for line in lines])
    for label, line in zip(axes.get_yticklabels(), lines, strict=True):
        label.set(fontsize=9, fontweight="normal" if isinstance(line, Effect) else "bold")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"difference to the baseline (points of test error); shaded: ±{margin_points:g}")
    figure.legend(handles=_forest_legend(effects), loc="outside upper center", ncols=4, fontsize=9)
    return figure


def _forest_lines(effects: Iterable[Effect]) -> Iterable[Effect | str]:
    """Each group's name, then its effects; groups in their given order."""
    order = list(dict.fromkeys(effect.group for effect in effects))
    ordered = sorted(effects, key=lambda effect: (order.index(effect.group), -abs(effect.difference)))
    for group, members in groupby(ordered, key=lambda effect: effect.group):
        yield group
        yield from members


def _reach(effects: Iterable[Effect]) -> float:
    """How far the differences and their intervals reach from zero."""
    return max(abs(end) for effect in effects for end in (effect.difference, *(effect.interval or ())))


def _forest_line(axes: Axes, place: int, effect: Effect, edge: float) -> None:
    colour = _verdict_colour(effect)
    if effect.interval:
        axes.plot(effect.interval, [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    beyond = abs(effect.difference) > edge
    marker = ("<" if effect.difference < 0 else ">") if beyond else "o"
    axes.plot(
        math.copysign(edge, effect.difference) if beyond else effect.difference,
        place,
        color=colour,
        marker=marker,
        markersize=MARKER_SIZE,
        markerfacecolor=colour if effect.interval else "white",
        clip_on=False,
        linestyle="none",
    )
    _note(axes, place, f"{effect.difference:+.2f}  (n = {effect.n})".replace("-", "\N{MINUS SIGN}"))


def _verdict_colour(effect: Effect) -> tuple[float, float, float]:
    if effect.interval and effect.interval[1] < 0:
        return BETTER
    if effect.interval and effect.interval[0] > 0:
        return WORSE
    return UNDECIDED


def _forest_legend(effects: Iterable[Effect]) -> list[Line2D]:
    point: Style = {"marker": "o", "markersize": MARKER_SIZE}
    kinds = {
        BETTER: Line2D([], [], color=BETTER, label="better", **point),
        WORSE: Line2D([], [], color=WORSE, label="worse", **point),
        UNDECIDED: Line2D([], [], color=UNDECIDED, label="interval contains 0", **point),
    }
    found = {_verdict_colour(effect) for effect in effects if effect.interval}
    handles = [handle for colour, handle in kinds.items() if colour in found]
    if any(effect.interval is None for effect in effects):
        handles.append(Line2D([], [], color=UNDECIDED, label="too few runs", **point, **HOLLOW))
    return handles


def _note(axes: Axes, place: int, text: str) -> None:
    """Right of the axes."""
    axes.annotate(
        text,
        (1, place),
        xycoords=axes.get_yaxis_transform(),
        xytext=(86, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=8.5,
        color="0.25",
    )

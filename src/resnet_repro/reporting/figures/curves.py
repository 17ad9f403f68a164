"""Errors over the course of training."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resnet_repro.papers import FIGURE_6_END
from resnet_repro.reporting.figures.style import (
    GUIDE,
    PAPER_END,
    RED,
    TEST,
    TRAIN,
    WIDTH,
    Colour,
    Colours,
    Style,
    depth_colours,
    depth_of,
    family_of,
    highest_on_scale,
    mean_error,
    paper_error,
    title_of,
)
from resnet_repro.reporting.load import Row

TRAIN_LOSS_COLOUR, TEST_ERROR_COLOUR = (0.45, 0.45, 0.45), RED

FIGURE_6_PANELS = {"plain": "plain", "resnet": "residual"}


def is_in_figure6(row: Row) -> bool:
    """Plain and residual nets of the units of He 2015, section 4.2."""
    return row.plan.architecture.is_he2015


def figure6_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows that Figure 6 draws: one per family and depth, the first that has a run."""
    chosen: dict[tuple[str, int], Row] = {}
    for row in rows:
        if is_in_figure6(row) and row.runs:
            chosen.setdefault((row.plan.architecture.family, depth_of(row)), row)
    return list(chosen.values())


def figure6(rows: Sequence[Row], full: bool = True) -> Figure:
    """He 2015, Figure 6: plain nets left, residual nets right; training error dashed, test error bold.

    `full`: the axis is the paper's, 0 to 20 percent, with its end points; otherwise it fits the curves.
    """
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, squeeze=False)[0]
    rows = figure6_rows(rows)
    colours = depth_colours(depth_of(row) for row in rows)
    for axes, (family, title) in zip(panels, FIGURE_6_PANELS.items(), strict=True):
        axes.set_title(title)
        _figure6_panel(axes, [row for row in rows if row.plan.architecture.family == family], colours, full)
    panels[0].set_ylim(0, 20 if full else _top(rows))
    panels[0].yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    panels[0].set_ylabel("error (%)")
    if rows:
        handles = _figure6_legend(rows, colours, full)
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=len(handles),
            fontsize=9,
            handlelength=1.6,
            columnspacing=1.2,
        )
    return figure


def _figure6_panel(axes: Axes, rows: Sequence[Row], colours: Colours, full: bool) -> None:
    for level in (5, 10):
        axes.axhline(level, **GUIDE)
    axes.set_xlabel("epoch")
    if not rows:
        axes.text(0.5, 0.62, "not run", transform=axes.transAxes, ha="center", va="center", color="0.4", fontsize=12)
        axes.set_xticks([])
        return
    for row in rows:
        colour, curve = colours[depth_of(row)], epoch_curve(row)
        _line(axes, curve, "train_error_percent", colour, **TRAIN)
        _line(axes, curve, "test_error_percent", colour, **TEST)
        if full and row.model in FIGURE_6_END:
            place: Style = {"transform": axes.get_yaxis_transform(), "clip_on": False}
            axes.plot(1.015, FIGURE_6_END[row.model], color=colour, **PAPER_END, **place)
    axes.set(xlim=(0, max(last_epoch(row) for row in rows)), xlabel="epoch", ylabel="")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    _step_axis(axes, rows)


def _figure6_legend(rows: Sequence[Row], colours: Colours, full: bool) -> list[Line2D]:
    depths = sorted({depth_of(row) for row in rows})
    handles = [Line2D([], [], color=colours[depth], label=f"{depth} layers", **TEST) for depth in depths]
    handles += [
        Line2D([], [], color="0.3", label="test", **TEST),
        Line2D([], [], color="0.3", label="training", **TRAIN),
    ]
    if full and any(row.model in FIGURE_6_END for row in rows):
        handles.append(Line2D([], [], color="0.8", label="paper's end", **PAPER_END))
    return handles


def learning_curve(row: Row) -> Figure:
    """Training loss (left axis) and test error (right axis), as the Lasagne project draws its nets."""
    figure = Figure(figsize=(WIDTH * 0.75, 3.6), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    curve = epoch_curve(row)
    _line(left, curve, "train_loss", TRAIN_LOSS_COLOUR, linewidth=1.6)
    _line(right, curve, "test_error_percent", TEST_ERROR_COLOUR, linewidth=1.6)
    left.set_xlim(0, last_epoch(row))
    left.set_ylim(bottom=0)
    right.set_ylim(bottom=0)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(title=title_of(row), xlabel="epoch")
    left.set_ylabel("training loss (nats)", color=TRAIN_LOSS_COLOUR)
    right.set_ylabel("test error (%)", color=TEST_ERROR_COLOUR)
    right.spines["right"].set_visible(True)
    left.tick_params(axis="y", colors=TRAIN_LOSS_COLOUR)
    right.tick_params(axis="y", colors=TEST_ERROR_COLOUR)
    return figure


def learning_curves(rows: Sequence[Row]) -> Figure:
    """One panel a row: training error thin and dashed, test error bold, the paper's number at the right edge.

    All panels have one scale, except those of nets that hardly learn. Its top is twice the highest last error, so that
    the ends can be compared; the first epochs are cut off, as in Figure 6.

    Args:
        rows: with runs.
    """
    lines = math.ceil(len(rows) / 4)
    columns = math.ceil(len(rows) / lines)
    size = (WIDTH * min(1.0, 0.33 + 0.33 * columns), 0.7 + lines * (2.9 if columns <= 2 else 1.85))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.06))
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    highest = highest_on_scale(rows)
    shared = 5 * math.ceil(2 * highest / 5)
    tops = [shared if mean_error(row) <= highest else 100 for row in rows]
    for index, (axes, row, top) in enumerate(zip(panels, rows, tops, strict=False)):
        axes.set_ylim(0, top)
        axes.tick_params(labelleft=index % columns == 0 or top != tops[index - 1], labelsize=9)
        axes.set_title(row.name, fontsize=9, fontweight="bold" if len(row.name) < 26 else "normal")
        _learning_panel(axes, row)
    for axes in panels[len(rows) :]:
        axes.remove()
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("error (%)", fontsize=10)
    figure.legend(handles=_learning_legend(rows), loc="outside upper center", ncols=3, fontsize=9)
    return figure


def _learning_panel(axes: Axes, row: Row) -> None:
    colour, curve = family_of(row).colour, epoch_curve(row)
    _line(axes, curve, "train_error_percent", colour, **TRAIN)
    _line(axes, curve, "test_error_percent", colour, **TEST)
    if (printed := paper_error(row)) is not None:
        axes.plot(1.02, printed, color=colour, **PAPER_END, transform=axes.get_yaxis_transform(), clip_on=False)
    axes.set(xlim=(0, last_epoch(row)), xlabel="", ylabel="")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))


def _learning_legend(rows: Iterable[Row]) -> list[Line2D]:
    handles = [
        Line2D([], [], color="0.3", label="test", **TEST),
        Line2D([], [], color="0.3", label="training", **TRAIN),
    ]
    if any(paper_error(row) is not None for row in rows):
        handles.append(Line2D([], [], color="0.8", label="paper's number", **PAPER_END))
    return handles


def epoch_curve(row: Row) -> pd.DataFrame:
    """The histories of a row's runs, one below the other, with `epoch` as steps over steps per epoch: the
    last epoch of a schedule in steps may be a fraction."""
    histories = [
        run.history.assign(seed=run.metrics.seed, epoch=run.history["step"] / steps_per_epoch(row)) for run in row.runs
    ]
    return pd.concat(histories, ignore_index=True)


def last_epoch(row: Row) -> float:
    return float(epoch_curve(row)["epoch"].max())


def steps_per_epoch(row: Row) -> int:
    return int(row.runs[0].history["step"].iloc[0])


def _line(axes: Axes, curve: pd.DataFrame, column: str, colour: Colour, **style: Any) -> None:
    """The mean over seeds, in a band from the lowest to the highest."""
    several = curve["seed"].nunique() > 1
    sns.lineplot(
        curve,
        x="epoch",
        y=column,
        ax=axes,
        color=colour,
        estimator="mean",
        legend=False,
        errorbar=("pi", 100) if several else None,
        err_kws={"alpha": 0.2, "linewidth": 0},
        **style,
    )


def _step_axis(axes: Axes, rows: Sequence[Row]) -> None:
    """A second axis in steps, where all nets make the same number of them in an epoch."""
    rates = {steps_per_epoch(row) for row in rows}
    if len(rates) > 1:
        return
    rate = rates.pop()
    many = max(last_epoch(row) for row in rows) * rate >= 20_000
    unit, label = (10_000, "steps (×10⁴)") if many else (1, "steps")

    def steps(epochs: Any) -> Any:
        return epochs * rate / unit

    def epochs(steps: Any) -> Any:
        return steps * unit / rate

    top = axes.secondary_xaxis("top", functions=(steps, epochs))
    top.set_xlabel(label)
    top.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def _top(rows: Sequence[Row]) -> float:
    """The next ten percent above all curves."""
    columns = ["train_error_percent", "test_error_percent"]
    highest = max((float(epoch_curve(row)[columns].to_numpy().max()) for row in rows), default=10.0)
    return min(100.0, 10 * math.ceil(highest / 10))

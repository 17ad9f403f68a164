"""The figures: functions of evidence that return a Matplotlib figure. Writing them is `write`'s."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from resnet_repro.papers import FIGURE_6_END
from resnet_repro.reporting.load import Row

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
TRAIN_LOSS_COLOUR, TEST_ERROR_COLOUR = (0.45, 0.45, 0.45), RED
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

FIGURE_6_PANELS = {"plain": "plain", "resnet": "residual"}


def is_in_figure6(row: Row) -> bool:
    """Plain and residual nets of basic blocks."""
    net = row.plan.architecture
    return net.family in FIGURE_6_PANELS and net.block == "basic"


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


def depth_of(row: Row) -> int:
    return row.plan.architecture.depth


def depth_colours(depths: Iterable[int]) -> Colours:
    """One colour per depth: the paper's five depths always have theirs."""
    others = [depth for depth in sorted(set(depths)) if depth not in DEPTH_COLOURS]
    return DEPTH_COLOURS | {depth: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, depth in enumerate(others)}


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
    left.set(title=_title(row), xlabel="epoch")
    left.set_ylabel("training loss (nats)", color=TRAIN_LOSS_COLOUR)
    right.set_ylabel("test error (%)", color=TEST_ERROR_COLOUR)
    right.spines["right"].set_visible(True)
    left.tick_params(axis="y", colors=TRAIN_LOSS_COLOUR)
    right.tick_params(axis="y", colors=TEST_ERROR_COLOUR)
    return figure


def confusion(row: Row, class_names: Sequence[str]) -> Figure:
    """Confusion matrix, percent of each true class over all runs, and the error of each class beside it."""
    percent = confusion_percent(row)
    classes = np.arange(len(percent))
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=(2.2, 1), sharey=False)
    mistakes = np.where(np.eye(len(percent), dtype=bool), np.nan, percent)  # the diagonal would outshine them
    sns.heatmap(
        mistakes,
        ax=matrix,
        cmap=sns.light_palette(BLUE, as_cmap=True),
        vmin=0,
        annot=np.where(percent < 0.05, "", np.char.mod("%.1f", percent)),
        fmt="",
        annot_kws={"fontsize": 8},
        cbar=False,
        xticklabels=list(class_names),
        yticklabels=list(class_names),
        linewidths=0.5,
    )
    for index in classes:
        matrix.text(
            index + 0.5,
            index + 0.5,
            f"{percent[index, index]:.1f}",
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold",
            color="0.35",
        )
    matrix.set(xlabel="predicted class", ylabel="true class", title=f"{_title(row)}: % of the true class")
    matrix.tick_params(axis="both", length=0, labelsize=9)
    matrix.set_xticklabels(class_names, rotation=40, ha="right", rotation_mode="anchor")
    error = 100 - percent.diagonal()
    bars.barh(classes + 0.5, error, height=0.7, color=BLUE)
    bars.set(
        ylim=matrix.get_ylim(),
        yticks=[],
        xlabel="error (%)",
        title=f"error by class (mean {error.mean():.2f})",
    )
    for index, value in zip(classes, error, strict=True):
        bars.annotate(
            f"{value:.1f}",
            (float(value), index + 0.5),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    bars.set_xlim(0, max(float(error.max()) * 1.15, 1.0))
    return figure


def confusion_percent(row: Row) -> np.ndarray:
    """[true class][predicted class], percent of the images of the true class, over all runs of a row."""
    counts = np.sum([run.metrics.confusion for run in row.runs], axis=0, dtype=np.int64)
    return np.asarray(100 * counts / counts.sum(axis=1, keepdims=True))


def sample_images(samples: dict[str, np.ndarray], class_names: Sequence[str]) -> Figure:
    """Images of every class, one column a class. `samples`: {split: (classes, k, 3, 32, 32) uint8}."""
    num_classes, count, _, height, width = next(iter(samples.values())).shape
    count, gap = min(count, 3), 2  # images, pixels
    figure = Figure(figsize=(WIDTH, 0.3 + 0.97 * WIDTH / num_classes * count * len(samples)), layout="compressed")
    panels = figure.subplots(len(samples), 1, squeeze=False)[:, 0]
    for axes, (split, images) in zip(panels, samples.items(), strict=True):
        padded = np.pad(images[:, :count], ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255)
        grid = padded.transpose(1, 3, 0, 4, 2).reshape(count * (height + gap), num_classes * (width + gap), 3)
        axes.imshow(grid[:-gap, :-gap], interpolation="nearest")
        axes.set_yticks([])
        axes.set_ylabel(split)
        axes.set_xticks([(width + gap) * i + width / 2 for i in range(num_classes)], class_names)
        axes.tick_params(length=0, labeltop=axes is panels[0], labelbottom=False)
        axes.spines[:].set_visible(False)
    return figure


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


def _title(row: Row) -> str:
    return row.name + (f", {len(row.runs)} seeds" if len(row.runs) > 1 else "")

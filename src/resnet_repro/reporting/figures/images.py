"""What is in the data, and which classes are mistaken for which."""

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from resnet_repro.reporting.figures.style import BLUE, WIDTH, title_of
from resnet_repro.reporting.load import Row


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
    matrix.set(xlabel="predicted class", ylabel="true class", title=f"{title_of(row)}: % of the true class")
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

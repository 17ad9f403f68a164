"""The figures: functions of evidence that return a Matplotlib figure. Writing them is `write`'s."""

from resnet_repro.reporting.figures.curves import (
    epoch_curve,
    figure6,
    figure6_rows,
    is_in_figure6,
    learning_curve,
    learning_curves,
)
from resnet_repro.reporting.figures.errors import error_against_depth, error_against_size
from resnet_repro.reporting.figures.images import confusion, confusion_percent, sample_images
from resnet_repro.reporting.figures.reproductions import reproduction_strips
from resnet_repro.reporting.figures.strips import Effect, ablation_forest
from resnet_repro.reporting.figures.style import STYLE, depth_colours

__all__ = [
    "STYLE",
    "Effect",
    "ablation_forest",
    "confusion",
    "confusion_percent",
    "depth_colours",
    "epoch_curve",
    "error_against_depth",
    "error_against_size",
    "figure6",
    "figure6_rows",
    "is_in_figure6",
    "learning_curve",
    "learning_curves",
    "reproduction_strips",
    "sample_images",
]

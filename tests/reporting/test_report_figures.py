from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from resnet_repro.papers import FIGURE_6_END
from resnet_repro.reporting.figures import (
    confusion,
    confusion_percent,
    depth_colours,
    epoch_curve,
    figure6,
    figure6_rows,
    learning_curve,
    sample_images,
)
from resnet_repro.reporting.load import Row, load
from synthetic import CLASSES, FakeRun, write_workspace


@pytest.fixture(scope="module")
def rows(workspace: Path) -> dict[str, Row]:
    return {row.name: row for row in load(workspace).rows}


def curves(axes: Axes) -> list[Line2D]:
    """The lines that are neither guides nor the paper's markers."""
    return [line for line in axes.get_lines() if len(line.get_xdata()) > 2]


def test_figure6_has_the_papers_axes(rows: dict[str, Row]) -> None:
    plain, residual = figure6([rows["plain20"], rows["resnet20"]]).axes[:2]
    assert (plain.get_title(), residual.get_title()) == ("plain", "residual")
    assert plain.get_ylim() == residual.get_ylim() == (0, 20)
    assert plain.get_xlim()[1] == pytest.approx(64_000 / 391)
    for axes in (plain, residual):
        guides = [line.get_ydata()[0] for line in axes.get_lines() if set(line.get_xdata()) == {0, 1}]
        assert guides == [5, 10]
        (top,) = [child for child in axes.child_axes if child.get_xlabel().startswith("steps")]
        axes.figure.draw_without_rendering()
        assert top.get_xlim()[1] == pytest.approx(6.4)


def test_figure6_draws_training_dashed_and_test_bold(rows: dict[str, Row]) -> None:
    plain, residual = figure6([rows["plain20"], rows["resnet20"]]).axes[:2]
    for axes in (plain, residual):
        training, test = curves(axes)
        assert training.is_dashed()
        assert not test.is_dashed()
        assert test.get_linewidth() > 1.5 * training.get_linewidth()
    assert to_hex(curves(plain)[1].get_color()) == to_hex(curves(residual)[1].get_color())


def test_figure6_draws_the_mean_of_the_seeds_in_a_band(rows: dict[str, Row]) -> None:
    axes = figure6([rows["resnet20"]]).axes[1]
    assert curves(axes)[1].get_ydata()[-1] == pytest.approx(8.6)
    (band,) = axes.collections[1].get_paths()
    end = band.vertices[np.isclose(band.vertices[:, 0], 64_000 / 391), 1]
    assert (end.min(), end.max()) == (pytest.approx(8.5), pytest.approx(8.7))


def test_figure6_marks_where_the_papers_curves_end(rows: dict[str, Row]) -> None:
    axes = figure6([rows["resnet20"]]).axes[1]
    (marker,) = [line for line in axes.get_lines() if line.get_marker() == "<"]
    assert marker.get_ydata()[0] == FIGURE_6_END["resnet20"] == 8.84


def test_figure6_says_not_run(rows: dict[str, Row]) -> None:
    plain, residual = figure6([rows["resnet20"], rows["resnet110"]]).axes[:2]
    assert [text.get_text() for text in plain.texts] == ["not run"]
    assert not residual.texts


def test_figure6_fits_short_schedules_and_unknown_depths(tmp_path: Path) -> None:
    runs = [FakeRun("plain8", seed, 31.0 + seed) for seed in (1, 2)] + [FakeRun("resnet8", 1, 30.0)]
    figure = figure6(load(write_workspace(tmp_path, runs)).short, full=False)
    assert figure.axes[0].get_ylim() == (0, 60)
    assert not [line for axes in figure.axes for line in axes.get_lines() if line.get_marker() == "<"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["8 layers", "test", "training"]


def test_figure6_draws_basic_plain_and_residual_nets_once_per_depth(tmp_path: Path) -> None:
    runs = [FakeRun(m) for m in ("resnet20", "resnet20_a_martyn", "original164", "preact110", "plain20", "resnet11")]
    drawn = figure6_rows(load(write_workspace(tmp_path, runs)).rows)
    assert [row.name for row in drawn] == ["resnet20", "plain20"]


def test_every_depth_has_its_own_colour_whatever_else_is_drawn() -> None:
    all_depths = depth_colours([8, 14, 20, 32, 44, 56, 110, 1202])
    assert len(set(all_depths.values())) == len(all_depths)
    assert all_depths[56] == depth_colours([56])[56]


def test_the_last_epoch_of_a_schedule_in_steps_is_a_fraction(rows: dict[str, Row]) -> None:
    curve = epoch_curve(rows["resnet20"])
    assert curve["epoch"].max() == pytest.approx(163.68, abs=0.01)
    assert curve.groupby("seed").size().tolist() == [164, 164, 164]


def test_learning_curve_has_two_axes(rows: dict[str, Row]) -> None:
    left, right = learning_curve(rows["lasagne_wide"]).axes
    assert left.get_ylabel() == "training loss (nats)"
    assert right.get_ylabel() == "test error (%)"
    (loss,), (error,) = left.get_lines(), right.get_lines()
    assert error.get_ydata()[-1] == pytest.approx(5.3)
    assert len(loss.get_xdata()) == len(error.get_xdata()) == 200


def test_confusion_is_pooled_over_seeds(rows: dict[str, Row]) -> None:
    percent = confusion_percent(rows["resnet20"])
    assert percent.sum(axis=1) == pytest.approx(np.full(10, 100.0))
    assert 100 - percent.diagonal().mean() == pytest.approx(8.6)  # of 8.5, 8.6 and 8.7
    matrix, bars = confusion(rows["resnet20"], CLASSES).axes
    assert [label.get_text() for label in matrix.get_yticklabels()] == list(CLASSES)
    widths = [patch.get_width() for patch in bars.patches]
    assert widths == pytest.approx(list(100 - percent.diagonal()))


def test_sample_images_keep_their_place_and_colour() -> None:
    samples = np.zeros((10, 4, 3, 32, 32), np.uint8)
    samples[7, 2, 0] = 200  # the third image of the eighth class is red
    (axes,) = sample_images({"train": samples}, CLASSES).axes
    (picture,) = axes.get_images()
    pixels = np.asarray(picture.get_array())
    rows, columns, channels = np.nonzero(pixels == 200)
    assert (rows.min(), rows.max()) == (2 * 34, 2 * 34 + 31)
    assert (columns.min(), columns.max()) == (7 * 34, 7 * 34 + 31)
    assert set(channels) == {0}
    assert [label.get_text() for label in axes.get_xticklabels()] == list(CLASSES)

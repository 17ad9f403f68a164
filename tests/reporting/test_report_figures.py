from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_repro.evidence import AuditedNet
from resnet_repro.papers import FIGURE_6_END
from resnet_repro.params import load as load_params
from resnet_repro.reporting.figures import (
    STYLE,
    Effect,
    ablation_forest,
    confusion,
    confusion_percent,
    depth_colours,
    epoch_curve,
    error_against_depth,
    error_against_size,
    figure6,
    figure6_rows,
    learning_curve,
    learning_curves,
    reproduction_strips,
    sample_images,
)
from resnet_repro.reporting.figures.errors import short_name
from resnet_repro.reporting.judge import Rule
from resnet_repro.reporting.load import Row, load
from resnet_repro.reporting.verdicts import verdicts
from resnet_repro.reproductions import reproductions_of
from synthetic import CLASSES, REPOSITORY, FakeRun, write_workspace


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
    assert figure.axes[0].get_ylim() == (0, 50)  # above 33 + 9 + 0.8, the first epoch's test error
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


RUNS = [
    *(FakeRun("resnet20", seed, error) for seed, error in ((1, 8.5), (2, 8.6), (3, 8.7))),
    FakeRun("resnet20_a_martyn", 1, 8.1),
    FakeRun("resnet110", 1, 6.7),
    FakeRun("plain20", 1, 9.4),
    FakeRun("plain56", 1, 13.0),
    FakeRun("plain110", 1, 72.0),
    FakeRun("original164", 1, 5.9),
    FakeRun("preact110", 1, 6.3),
    FakeRun("preact164", 1, 5.5),
    FakeRun("wrn16_4", 1, 5.1),
]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    evidence = load(write_workspace(tmp_path_factory.mktemp("many"), RUNS, not_run=[FakeRun("wrn28_10")]))
    return [row for row in evidence.full if row.runs]


def points(axes: Axes, filled: bool = True) -> list[list[tuple[float, float]]]:
    """(x, y) of each line with markers; hollow ones are the papers'."""
    lines = [line for line in axes.get_lines() if line.get_marker() not in ("None", "", None)]
    chosen = [line for line in lines if (to_hex(line.get_markerfacecolor()) != "#ffffff") == filled]
    return [list(zip(*(map(float, data) for data in line.get_data()), strict=True)) for line in chosen]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


def test_depth_has_a_line_for_each_unit_and_the_papers_points(many: list[Row]) -> None:
    (axes,) = error_against_depth(many).axes
    plain, off_scale, residual, original, preactivation = points(axes)
    assert plain == [(20, 9.4), (56, 13.0)]
    assert residual == [(20, pytest.approx(8.6)), (110, 6.7)]  # the second row of that depth is another recipe's
    assert original == [(164, 5.9)]
    assert preactivation == [(110, 6.3), (164, 5.5)]
    assert (off_scale, texts(axes)) == ([(110, 1)], ["plain110: 72.00"])  # at the edge
    # He 2015, Figure 6 and Table 6; He 2016, Table 4
    printed = [(20, 9.67), (56, 13.24), (20, 8.75), (110, 6.61), (164, 5.93), (110, 6.37), (164, 5.46)]
    assert [point for (point,) in points(axes, filled=False)] == printed


def test_depth_has_an_interval_where_there_are_seeds(many: list[Row]) -> None:
    (axes,) = error_against_depth(many).axes
    (interval,) = [line for line in axes.get_lines() if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
    # t with 2 degrees of freedom at 97.5% is 4.303
    assert interval.get_ydata() == pytest.approx((8.6 - 4.303 * 0.1 / 3**0.5, 8.6 + 4.303 * 0.1 / 3**0.5), abs=1e-3)


def test_size_puts_every_model_over_parameters_and_over_flops(many: list[Row]) -> None:
    flops = {row.model: 1e15 * (2 + index) for index, row in enumerate(many)}
    left, right = error_against_size(many, flops).axes
    shown = [row for row in many if row.model != "plain110"]
    for axes, sizes in ((left, {row.model: row.plan.parameters for row in many}), (right, flops)):
        drawn = [(x, y) for ((x, y),) in points(axes) if y != 1]
        assert drawn == [(sizes[row.model], pytest.approx(row.test_error.mean)) for row in shown]
        assert set(texts(axes)) == {"plain110: 72.00", *(short_name(row.name) for row in shown)}
        assert (sizes["wrn16_4"], 5.02) in [point for (point,) in points(axes, filled=False)]
    assert left.get_ylim() == right.get_ylim()


def test_no_name_hides_a_point_or_another_name(many: list[Row]) -> None:
    figure = error_against_size(many, {row.model: float(row.plan.parameters) for row in many})
    figure.draw_without_rendering()
    axes = figure.axes[0]
    names = [text.get_window_extent() for text in axes.texts if text.get_text() and ":" not in text.get_text()]
    centres = axes.transData.transform([point for line in points(axes) for point in line if point[1] != 1])
    assert not any(name.contains(*centre) for name in names for centre in centres)
    assert not any(one.overlaps(other) for index, one in enumerate(names) for other in names[:index])


@pytest.mark.parametrize(
    ("name", "short"),
    [("wrn28_10_dropout", "28-10 dropout"), ("resnet20_a_martyn", "20 a martyn"), ("lasagne_wide", "wide")],
)
def test_a_name_beside_a_point_leaves_out_its_family(name: str, short: str) -> None:
    assert short_name(name) == short


AUDITED = (AuditedNet("a-martyn", "plain56", 13.07), AuditedNet("a-martyn", "wrn99", 1.0))


@pytest.fixture(scope="module")
def strips(many: list[Row], rule: Rule) -> Figure:
    return reproduction_strips(
        [*many, Row("wrn28_10", many[-1].plan.model_copy(update={"model": "wrn28_10"}))], AUDITED, rule
    )


@pytest.fixture(scope="module")
def rule(many: list[Row]) -> Rule:
    return rule_of(many)


def rule_of(rows: list[Row]) -> Rule:
    return Rule.of(rows, load_params(REPOSITORY / "params.yaml").verdicts)


def names_and_edges(axes: Axes) -> tuple[list[str], list[float]]:
    """The rows of a panel of strips, and the strips' edges."""
    models = {"wrn28_10", *(run.model for run in RUNS)}
    names = [text.get_text() for text in axes.texts if text.get_text() in models]
    return names, [line.get_ydata()[0] for line in axes.get_lines() if line.get_linewidth() == 0.6]


def marks_by_row(figure: Figure) -> dict[str, list[tuple[str, bool, float]]]:
    """(marker, filled, x) of every mark, by the row in whose strip it lies."""
    found: dict[str, list[tuple[str, bool, float]]] = {}
    for axes in figure.axes:
        names, edges = names_and_edges(axes)
        for line in axes.get_lines():
            if line.get_marker() != "None":
                filled = to_hex(line.get_markerfacecolor()) != "#ffffff"
                name = names[int(np.searchsorted(edges, line.get_ydata()[0])) - 1]
                found.setdefault(name, []).extend((line.get_marker(), filled, x) for x in line.get_xdata())
    return found


def test_strips_have_a_panel_for_each_kind_in_the_tables_order(strips: Figure) -> None:
    assert [names_and_edges(axes)[0] for axes in strips.axes] == [
        ["plain20", "plain56", "plain110"],
        ["resnet20", "resnet20_a_martyn", "resnet110", "original164"],
        ["preact110", "preact164", "wrn16_4", "wrn28_10"],
    ]
    titles = [text.get_text() for axes in strips.axes for text in axes.texts if text.get_fontweight() == "bold"]
    assert [title for title in titles if title[0].isalpha()] == ["plain", "residual", "pre-activation and wide"]


def test_strips_show_every_number_once_at_its_place(strips: Figure) -> None:
    marks = marks_by_row(strips)
    printed, also = ("D", False), ("D", False)
    last, chosen, audited, faithful, otherwise = ("v", True), ("v", False), ("s", True), ("o", True), ("o", False)
    ours = ("o", True)
    assert sorted(marks["plain56"]) == sorted(
        [
            (*printed, 13.24),
            (*chosen, 12.76),
            (*last, 13.07),
            (*audited, 13.07),
            (*faithful, 12.32),
            *((*otherwise, x) for x in (12.95, 12.03, 15.39, 14.74)),
            (*ours, 13.0),
        ]
    )
    assert sorted(marks["wrn28_10"]) == sorted([(*printed, 4.0), *((*otherwise, x) for x in (3.79, 4.0, 4.03))])
    for model in ("resnet20", "resnet110", "original164", "preact110", "preact164"):
        others = [x for marker, filled, x in marks[model] if marker == "o"]
        runs = {"resnet20": [8.5, 8.6, 8.7], "resnet110": [6.7], "original164": [5.9], "preact110": [6.3]}
        known = [number.error_percent for number in reproductions_of(model) if not number.mislabelled]
        assert sorted(others) == sorted([*known, *runs.get(model, [5.5])])
    assert (*printed, 6.61) in marks["resnet110"]
    assert (*also, 6.43) in marks["resnet110"]  # the best of five
    assert 5.90 not in [x for _, _, x in marks["preact164"]]  # of a smaller net
    assert marks["plain110"] == [(">", True, strips.axes[0].get_xlim()[1])]  # far off, and only a bound is printed


def test_strips_show_the_interval_of_the_rule_and_the_margin(strips: Figure, many: list[Row], rule: Rule) -> None:
    axes = strips.axes[1]
    intervals = [line.get_xdata() for line in axes.get_lines() if line.get_linewidth() == 4.5]
    (row,) = [row for row in many if row.model == "resnet20"]
    verdict = next(verdict for verdict in verdicts([row], rule) if verdict.published.value == 8.75)
    assert intervals[0] == pytest.approx([8.75 + end for end in verdict.wide.interval])
    margins = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    assert margins[0] == pytest.approx((8.45, 9.05))
    assert margins[1] == pytest.approx((7.74, 8.34))  # no paper has it: the project's own last epoch


def test_no_mark_of_a_strip_hides_another_or_leaves_its_strip(strips: Figure) -> None:
    strips.draw_without_rendering()
    for axes in strips.axes:
        _, edges = names_and_edges(axes)
        lines = [line for line in axes.get_lines() if line.get_marker() in "Dvso" and len(line.get_xdata()) == 1]
        places = np.array([(line.get_xdata()[0], line.get_ydata()[0]) for line in lines])
        pixels = axes.transData.transform(places) * 72 / strips.dpi  # in points
        distances = np.linalg.norm(pixels[:, None] - pixels[None], axis=2)[~np.eye(len(pixels), dtype=bool)]
        assert distances.min() > 7.9
        nearest_edge = np.abs(places[:, 1, None] - np.array(edges)[None]).min(axis=1)
        assert nearest_edge.min() > 5


def test_strips_say_what_is_printed_and_what_is_ours(strips: Figure) -> None:
    said = [text.get_text() for axes in strips.axes for text in axes.texts]
    assert {"8.75, single run", "5.02, median of 5", ">60.00, read off Figure 6"} <= {
        *said
    } or "8.75, single run" in said
    assert said[said.index("resnet20") + 2 :][:2] == ["8.60", "ours, 3 runs"]
    assert said.count("not run yet") == 1
    labels = [text.get_text() for text in strips.legends[0].get_texts()]
    assert labels[-2:] == ["printed ± 0.3 points", "our runs, 95% interval of the mean"]
    assert len(labels) == 9


def test_learning_curves_have_a_panel_a_row_on_one_scale(many: list[Row]) -> None:
    figure = learning_curves(many)
    assert [axes.get_title() for axes in figure.axes] == [row.name for row in many]
    assert figure.axes[0].get_subplotspec().get_gridspec().ncols == 4
    for axes, row in zip(figure.axes, many, strict=True):
        training, test = curves(axes)
        assert training.is_dashed()
        assert test.get_linewidth() > 1.5 * training.get_linewidth()
        assert test.get_ydata()[-1] == pytest.approx(row.test_error.mean)
        assert axes.get_ylim() == (0, 100 if row.model == "plain110" else 30)
    scales = [axes.yaxis.get_tick_params()["labelleft"] for axes in figure.axes]
    assert scales == [True, False, False, False, True, True, True, False, True, False]  # the sixth has its own


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (9, (3, 3)), (10, (3, 4))])
def test_learning_curves_fill_their_lines(many: list[Row], count: int, shape: tuple[int, int]) -> None:
    figure = learning_curves(many[:count])
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == shape
    assert len(figure.axes) == count


EFFECTS = [
    Effect("shortcut", "option_b", 0.05, (-0.1, 0.2), 3),
    Effect("crop", "five_crop", 0.2, None, 1),
    Effect("shortcut", "option_c", -0.4, (-0.6, -0.2), 3),
    Effect("normalisation", "none", 6.0, (5.5, 6.5), 3),
]


def test_forest_sorts_by_size_inside_a_group() -> None:
    (axes,) = ablation_forest(EFFECTS, margin_points=0.3).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["shortcut", "option_c", "option_b", "crop", "five_crop", "normalisation", "none"]
    markers = [line for line in axes.get_lines() if line.get_marker() in ("o", "<", ">")]
    assert [line.get_xdata()[0] for line in markers] == [-0.4, 0.05, 0.2, pytest.approx(3.0)]
    assert [line.get_ydata()[0] for line in markers] == [1, 2, 4, 6]
    assert [line.get_marker() for line in markers] == ["o", "o", "o", ">"]  # the last is off the scale
    assert [to_hex(line.get_markerfacecolor()) == "#ffffff" for line in markers] == [False, False, True, False]
    assert texts(axes)[0] == "−0.40  (n = 3)"


def test_forest_draws_intervals_zero_and_the_margin() -> None:
    (axes,) = ablation_forest(EFFECTS, margin_points=0.3).axes
    lines = [line for line in axes.get_lines() if line.get_marker() == "None"]
    assert [tuple(line.get_xdata()) for line in lines[1:]] == [(-0.6, -0.2), (-0.1, 0.2), (5.5, 6.5)]
    assert tuple(lines[0].get_xdata()) == (0, 0)
    (band,) = axes.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((-0.3, 0.3))


@pytest.mark.parametrize(
    "draw",
    [
        error_against_depth,
        lambda rows: error_against_size(rows, {row.model: float(row.plan.parameters) for row in rows}),
        lambda rows: reproduction_strips(
            rows, AUDITED, Rule.of(rows, load_params(REPOSITORY / "params.yaml").verdicts)
        ),
        learning_curves,
        lambda rows: ablation_forest(EFFECTS, 0.3),
    ],
    ids=["depth", "size", "reproductions", "curves", "forest"],
)
def test_a_figure_is_the_same_bytes_again(many: list[Row], draw: Callable[[list[Row]], Figure]) -> None:
    def svg() -> bytes:
        buffer = BytesIO()
        with mpl.rc_context(STYLE):
            draw(many[:3]).savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()

    assert svg() == svg()

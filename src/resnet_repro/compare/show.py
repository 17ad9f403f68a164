"""A comparison as a table for the terminal, as JSON, and as learning curves."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resnet_repro.compare import METRICS, Comparison, Group, Run
from resnet_repro.errors import ReproError
from resnet_repro.evidence import write_atomically
from resnet_repro.mistakes import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERRORS = ("train_error_percent", "test_error_percent")
MAX_PANELS = 12


def print_table(found: Comparison, console: Console) -> None:
    """What differs, a column a side; under it, in words, what the test errors allow to say."""
    names = [printable(side.name) for side in found.sides]  # and all else: it may come from anybody's commit
    if found.params is not None:
        table = _table("params.yaml", names)
        _section(table, "parameters", found.params)
        console.print(table, "")
    for group in found.groups:
        table = _table(group.name if found.params is not None else "", _heads(names, group))
        _section(table, "parameters", group.params)
        _section(table, "surroundings", group.environment)
        table.add_row(Text("results", "bold"))
        for key, values in group.metrics.items():
            style = "bold" if key == "final_test_error_percent" else ""
            table.add_row(
                Text(f"  {METRICS[key]}", style), *_numbers(values, style, 0 if key.endswith("seconds") else 2)
            )
        console.print(table)
        for verdict in group.verdicts:
            console.print(Text(f"\n{printable(verdict.text)}"))
        console.print()
    if found.same:
        console.print(Text(f"The same trainings on all sides: {printable(', '.join(found.same))}"))
    elif not found.groups:
        console.print("No run has evidence on all sides.")
    if len(verdicts := [verdict for group in found.groups for verdict in group.verdicts if verdict.test]) > 1:
        console.print(f"These are {len(verdicts)} tests: of 20 where nothing differs, one finds a difference.")


def _table(title: str, heads: list[str]) -> Table:
    table = Table(
        box=None, pad_edge=False, title=Text(printable(title), "bold") if title else None, title_justify="left"
    )
    table.add_column("", overflow="fold", min_width=36)
    for head in heads:
        table.add_column(Text(head, "bold", overflow="fold"), justify="right", overflow="fold")
    return table


def _heads(names: list[str], group: Group) -> list[str]:
    return [
        f"{name}\n({len(runs)} runs)" if len(runs) > 1 else name for name, runs in zip(names, group.runs, strict=True)
    ]


def _section(table: Table, title: str, rows: Mapping[str, tuple[Any, ...]]) -> None:
    table.add_row(Text(f"{title} that differ" if rows else f"no {title} differ", "bold"))
    for name, values in rows.items():
        cells = [Text("–", "dim") if value is None else Text(_value(value), overflow="fold") for value in values]
        table.add_row(Text(f"  {printable(name)}", overflow="fold"), *cells)


def _value(value: Any) -> str:
    """As YAML has it, but of a digest as much as tells it from others."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return re.sub("[0-9a-f]{40,}", lambda digest: digest[0][:10], printable(text))


def _numbers(values: tuple[tuple[float, ...], ...], style: str, digits: int) -> Iterator[Text]:
    """Each side's mean and standard deviation; with its difference from the first."""
    for index, some in enumerate(values):
        if not some:
            yield Text("–", "dim")
            continue
        cell = Text(f"{fmean(some):,.{digits}f}", style)
        if len(some) > 1:
            cell.append(f" ± {stdev(some):,.{digits}f}")
        if index and values[0]:
            gap = f"{fmean(some) - fmean(values[0]):+,.{digits}f}".replace("-", "−")
            cell.append(f"  ({gap})", "cyan")
        yield cell


def as_json(found: Comparison) -> str:
    """All of it: sides, params, and of each group params, environment, metrics, verdicts and curves.

    Lists are by side; a metric has a value for each run, and `differences` of the means from the first side's.
    """
    content = {
        "sides": [
            {"name": side.name, "commit": side.commit, "runs": [run.key for run in side.runs]} for side in found.sides
        ],
        "params": found.params,
        "groups": [_group(group) for group in found.groups],
        "same": found.same,
    }
    return json.dumps(content, indent=1, default=str) + "\n"


def _group(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "runs": [[run.key for run in runs] for runs in group.runs],
        "params": group.params,
        "environment": group.environment,
        "metrics": {
            key: {
                "values": values,
                "differences": [fmean(v) - fmean(values[0]) if v and values[0] else None for v in values[1:]],
            }
            for key, values in group.metrics.items()
        },
        "verdicts": [vars(verdict) for verdict in group.verdicts],
        "curves": [[_curve(run).to_dict("list") for run in runs] for runs in group.runs],
    }


def _curve(run: Run) -> pd.DataFrame:
    """step, epoch (a fraction, where the last was cut short), and errors in percent."""
    epochs = run.record.epochs
    rows = [(e.step, e.step / epochs[0].step, e.train_error_percent, e.test_error_percent) for e in epochs]
    return pd.DataFrame(rows, columns=["step", "epoch", *ERRORS])


def write_figure(found: Comparison, path: Path) -> None:
    """Draw the learning curves, a panel a group and of the first `MAX_PANELS`, into a PNG file.

    Raises:
        ReproError: there is nothing to draw, or it cannot be written.
    """
    import matplotlib as mpl

    from resnet_repro.reporting.figures import STYLE

    groups = [group for group in found.groups if any(run.record.epochs for runs in group.runs for run in runs)]
    if not groups:
        raise ReproError("there are no different learning curves to draw: leave --figure out")
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        _draw(found, groups[:MAX_PANELS]).savefig(buffer, format="png")
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise ReproError(f"the figure {path} cannot be written: {error.strerror}") from None


def _draw(found: Comparison, groups: list[Group]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from resnet_repro.reporting.figures.style import TEST, TRAIN, WIDTH

    columns = min(len(groups), 2)
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(WIDTH, 0.6 + lines * (4.2 if columns == 1 else 3.1)), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, group in zip(panels, groups, strict=False):
        _draw_group(axes, found, group)
        axes.set_title(printable(group.name) if len(groups) > 1 or found.params is not None else "")
    for axes in panels[len(groups) :]:
        axes.remove()
    styles = [
        Line2D([], [], color="0.3", label="test", **TEST),
        Line2D([], [], color="0.3", label="training", **TRAIN),
    ]
    figure.legend(handles=styles, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _draw_group(axes: "Axes", found: Comparison, group: Group) -> None:
    """Training error thin and dashed, test error bold, its mean over runs in a band from the lowest to the highest.

    The ends are to be compared: what a test error exceeds in a tenth of the epochs only, the first, is cut off.
    """
    import seaborn as sns
    from matplotlib.ticker import MaxNLocator

    from resnet_repro.reporting.figures import style

    colours = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, *style.OTHER_COLOURS)
    last, tops = 0.0, []
    for index, (side, runs) in enumerate(zip(found.sides, group.runs, strict=True)):
        curves = [_curve(run).assign(run=number) for number, run in enumerate(runs) if run.record.epochs]
        if not curves:
            continue
        colour, table = colours[index % len(colours)], pd.concat(curves)
        last = max(last, float(table["epoch"].max()))
        end = fmean(float(curve["test_error_percent"].iloc[-1]) for curve in curves)
        tops.append(max(2 * end, float(table["test_error_percent"].quantile(0.9))))
        for column, line in (("train_error_percent", style.TRAIN), ("test_error_percent", style.TEST)):
            band: dict[str, Any] = {"errorbar": ("pi", 100), "err_kws": {"alpha": 0.2, "linewidth": 0}}
            spread = band if len(curves) > 1 else {"errorbar": None}
            label = f"{printable(side.name)}: {end:.2f}%" if column == "test_error_percent" else None
            sns.lineplot(table, x="epoch", y=column, ax=axes, color=colour, label=label, **spread, **line)
    axes.set(xlim=(0, last), ylim=(0, min(100.0, 1.05 * max(tops))), xlabel="epoch", ylabel="error (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.legend(loc="upper right", title="test error, last epoch", title_fontsize=9, fontsize=9)

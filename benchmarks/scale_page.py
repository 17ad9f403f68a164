"""reports/scale.md and its figure, from the JSON files that scale.py has measured."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns

from resnet_repro.farm.work import makespan
from resnet_repro.progress import duration
from resnet_repro.reporting.tables import markdown
from speed import STEPS

BATCH = 128
DEVICES = (1, 8, 64)
FARM_PERCENT, PUBLISH_SECONDS = 3.0, 60.0
"""what is allowed"""
NOT_MEASURED = "not measured"
INTRODUCTION = f"""# Scale

*Written by `make scale` (benchmarks/scale.py); do not edit.*

**Jobs**: processes that train resnet20 at once on one device, as `train` does, each with the threads that it has
alone; counted is what they do while all of them train. A **run** has {STEPS:,} steps; its evaluations are not
counted."""


def write_page(reports: Path) -> None:
    """scale.md and its figure from the files in scale/."""
    folder = reports / "scale"
    stored = {name: read(folder / f"{name}.json") for name in ("gpu", "cpu")}
    parts = [INTRODUCTION, *(section(name.upper(), measured) for name, measured in stored.items())]
    if plot(folder, [measured for measured in stored.values() if measured]):
        parts.append("![runs per hour against jobs](scale/packing.png)")
    (reports / "scale.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def runs_per_hour(turns: Sequence[float]) -> float:
    """From images per second."""
    return 3600 * statistics.median(turns) / (STEPS * BATCH)


def section(name: str, measured: Mapping[str, Any] | None) -> str:
    """One device's part of the page."""
    if measured is None:
        return f"## {name}\n\nNot measured."
    parts = [
        f"### {title}\n\n{write(measured[part]) if part in measured else 'Not measured.'}"
        for part, (title, write) in SECTIONS.items()
    ]
    return "\n\n".join([f"## {measured['device']}", f"{measured['system']}.", *parts])


def packing_section(measured: Mapping[str, Any]) -> str:
    rows = measured["rows"]
    rates = {row["jobs"]: statistics.median(row["images_per_second"]) for row in rows if "images_per_second" in row}
    table = [
        {
            "jobs": str(row["jobs"]),
            "images/s, together": f"{rate:,.0f}" if rate else NOT_MEASURED,
            "runs per hour": f"{row['runs_per_hour']:.3f}" if rate else NOT_MEASURED,
            "times one job's": f"{rate / rates[1]:.2f}" if rate and 1 in rates else NOT_MEASURED,
        }
        for row in rows
        for rate in [rates.get(row["jobs"])]
    ]
    reasons = [f"{row['jobs']} jobs: {NOT_MEASURED}, {row['not_measured']}." for row in rows if "not_measured" in row]
    facts = (
        f"{measured['engine']}; a job takes {measured['memory_bytes'] / 1e9:.2f} GB of memory; medians of turns of "
        f"{measured['turn_seconds']:.0f} s."
    )
    return "\n\n".join([facts, markdown(pd.DataFrame(table)), *reasons])


def farm_section(measured: Mapping[str, Any]) -> str:
    runs, seconds, run = measured["runs"], measured["seconds"], measured["run"]
    labels = {"bare": "the bare commands", "dvc": "`dvc repro`", "farm": "`resnet-repro farm --jobs 1`"}
    above = {  # round by round, so that a drift of the machine cancels
        name: statistics.median((a - b) / runs for a, b in zip(seconds[name], seconds["bare"], strict=True))
        for name in labels
    }
    percent = {name: 100 * more / run["seconds"] for name, more in above.items()} if run else {}
    table = [
        {
            "": label,
            "seconds a run": f"{statistics.median(seconds[name]) / runs:.1f}",
            "above the bare commands": f"{above[name]:+.1f}",
            "percent of a full run": f"{percent[name]:+.3f}" if run else NOT_MEASURED,
        }
        for name, label in labels.items()
    ]
    full = f"{run['name']}, {duration(run['seconds'])}" if run else f"on this device {NOT_MEASURED}"
    verdict = f": {_verdict(percent['farm'], FARM_PERCENT)}" if run else ""
    text = (
        f"{runs} runs of a small net, trained and evaluated one after the other; medians of {len(seconds['bare'])} "
        f"rounds. The farm may cost {FARM_PERCENT:g}% of a full run ({full}){verdict}."
    )
    return f"{text}\n\n{markdown(pd.DataFrame(table))}"


def noop_section(measured: Mapping[str, Any]) -> str:
    times = {name: statistics.median(seconds) for name, seconds in measured["seconds"].items()}
    return f"{measured['runs']} runs, all of them up to date; medians.\n\n{_seconds_table(times)}"


def publish_section(measured: Mapping[str, Any]) -> str:
    pages = measured["pages"]
    times = {"`resnet-repro publish` into a new database": measured["seconds"], "again": measured["again_seconds"]}
    times |= {f"MLflow's page: {name}": seconds for name, seconds in (pages or {}).items()}
    text = (
        f"{measured['runs']} runs of {measured['epochs']} epochs, without weights, in a sqlite database of "
        f"{measured['database_bytes'] / 1e6:.0f} MB. Publishing may take {PUBLISH_SECONDS:.0f} s: "
        f"{_verdict(measured['seconds'], PUBLISH_SECONDS)}. A page's time ends when headless Chromium shows its runs."
    )
    missing = [] if pages else [f"MLflow's pages: {NOT_MEASURED}, chromedriver is not installed."]
    return "\n\n".join([text, _seconds_table(times), *missing])


def simulate_section(measured: Mapping[str, Any]) -> str:
    models = measured["models"]
    known = {model: one for model, one in models.items() if one["seconds"] is not None}
    unknown = ", ".join(model for model in models if model not in known)
    seconds = sorted((one["seconds"] for one in known.values() for _ in range(one["runs"])), reverse=True)
    trained = sum(one["measured"] == "training" for one in known.values())
    text = (
        f"{len(seconds)} runs of {len(known)} models: {measured['seeds']} of every model in params.yaml, of the "
        "ablations' as many as stand there; the longest first, one at a time on a device. A run's time "
        "is that of its steps, as a few uncompiled ones took them, which is an upper bound"
        + (f"; that of {trained} models was taken in training." if trained else ".")
    )
    text += f" {unknown}: {NOT_MEASURED}, and left out." if unknown else ""
    if not known:
        return text
    longest = max(known, key=lambda model: known[model]["seconds"])
    table = [
        {
            "devices": str(devices),
            "hours": f"{makespan(seconds, devices) / 3600:,.1f}",
            "the least possible": f"{max(share, seconds[0]) / 3600:,.1f}",
            "bottleneck": f"the longest run, {longest}" if seconds[0] >= share else "the number of devices",
        }
        for devices in DEVICES
        for share in [sum(seconds) / devices]
    ]
    return f"{text}\n\n{markdown(pd.DataFrame(table))}"


SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "packing": ("Runs per hour against jobs", packing_section),
    "farm": ("What the farm costs", farm_section),
    "noop": ("DVC with nothing to do", noop_section),
    "publish": ("MLflow with many runs", publish_section),
    "simulate": ("All runs on many devices like this", simulate_section),
}


def plot(folder: Path, measured: Sequence[Mapping[str, Any]]) -> bool:
    """Runs per hour against jobs, a panel a device; False: there is nothing to draw."""
    rows = [
        {"device": one["device"], "jobs": row["jobs"], "runs per hour": runs_per_hour([rate])}
        for one in measured
        for row in one.get("packing", {"rows": []})["rows"]
        for rate in row.get("images_per_second", [])
    ]
    if not rows:
        return False
    mpl.use("Agg")
    with mpl.rc_context({"svg.hashsalt": "scale", "figure.dpi": 120}):
        sns.set_theme(style="ticks", palette="colorblind")
        panels = {"x": "jobs", "y": "runs per hour", "col": "device", "facet_kws": {"sharey": False}}
        style = {"estimator": "median", "errorbar": ("pi", 100), "marker": "o", "height": 4, "aspect": 1.4}
        grid = sns.relplot(pd.DataFrame(rows), kind="line", **panels, **style)
        jobs = sorted({row["jobs"] for row in rows})
        grid.set(xscale="log", xticks=jobs, xticklabels=jobs)
        grid.set_titles("{col_name}")
        for axes in grid.axes.flat:
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
        grid.savefig(folder / "packing.png", metadata={"Software": None})
        grid.savefig(folder / "packing.svg", metadata={"Date": None, "Creator": None})
    return True


def _verdict(value: float, bound: float) -> str:
    return "it holds" if value <= bound else "it does not hold"


def _seconds_table(times: Mapping[str, float]) -> str:
    return markdown(pd.DataFrame([{"": name, "seconds": f"{seconds:.1f}"} for name, seconds in times.items()]))

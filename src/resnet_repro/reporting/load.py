"""What the report is made of: the committed evidence, grouped into the rows of its tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeVar
from zipfile import BadZipFile

from pydantic import ValidationError

from resnet_repro.errors import ReproError
from resnet_repro.evidence import AuditedNet, Metrics, Plan, RunEvidence, evidence_remedy, read_audited
from resnet_repro.params import Params, Run
from resnet_repro.params import load as load_params
from resnet_repro.reporting.data_card import DataCard

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One model, with its runs of one precision on one kind of device: only these are averaged."""

    name: str
    """the model's; with precision and device where the model has several rows"""
    plan: Plan
    runs: tuple[RunEvidence, ...] = ()
    """by seed; empty: not run"""

    @property
    def model(self) -> str:
        return self.plan.model

    @property
    def is_short(self) -> bool:
        return self.plan.recipe.short

    @property
    def arithmetic(self) -> tuple[str, str]:
        """(precision, device) of all the runs."""
        return _arithmetic(self.runs[0])

    @cached_property
    def test_error(self) -> "Sample":
        """Of the last step's weights: the headline."""
        return Sample(tuple(run.metrics.test_error_percent for run in self.runs))

    @cached_property
    def lowest_test_error(self) -> "Sample":
        return Sample(tuple(run.metrics.lowest_test_error_percent for run in self.runs))

    @cached_property
    def best_validation_test_error(self) -> "Sample":
        """Empty where no images are held out."""
        errors = (run.metrics.best_validation_test_error_percent for run in self.runs)
        return Sample(tuple(error for error in errors if error is not None))


@dataclass(frozen=True)
class Sample:
    """One value per seed."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n - 1); None for fewer than two."""
        return stdev(self.values) if self.n > 1 else None


@dataclass(frozen=True)
class Evidence:
    rows: tuple[Row, ...]
    """in the order in which `params.yaml` first names each model under `runs`"""
    ablation_rows: tuple[Row, ...]
    """the same of `ablations`; empty unless they were asked for"""
    outdated: tuple[RunEvidence, ...]
    """runs of another plan than today's; they are in no row"""
    audited: tuple[AuditedNet, ...]
    """other people's published nets, which are in no row; none where nothing was audited"""
    data_card: DataCard
    params: Params

    @property
    def full(self) -> tuple[Row, ...]:
        """The rows that were trained as long as their source was."""
        return tuple(row for row in self.rows if not row.is_short)

    @property
    def short(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.is_short)

    @property
    def runs(self) -> tuple[RunEvidence, ...]:
        return tuple(run for row in self.rows for run in row.runs)


def load(workspace: Path, ablations: bool = False) -> Evidence:
    """Read `params.yaml`, `plans/`, `reports/runs/`, `reports/data/` and `reports/audit.json` of a workspace.

    Folders of runs that `params.yaml` does not name are ignored.

    Args:
        ablations: read `reports/ablations/runs/` as well.

    Raises:
        ParamsError: `params.yaml` is wrong.
        ReproError: a plan is missing, or a file of the evidence is missing or damaged.
    """
    tree = load_params(workspace / "params.yaml")
    rows, outdated = _read(workspace, tree.runs, workspace / "reports" / "runs")
    others: tuple[Row, ...] = ()
    if ablations:
        others, old = _read(workspace, tree.ablations, workspace / "reports" / "ablations" / "runs")
        outdated += old
    card = _reading(workspace / "reports" / "data", "`dvc repro prepare` writes it anew", DataCard.read)
    audit = workspace / "reports" / "audit.json"
    audited = _reading(audit, "`resnet-repro audit` writes it anew", read_audited) if audit.exists() else ()
    return Evidence(rows, others, outdated, audited, card, tree)


def _read(workspace: Path, runs: Mapping[str, Run], folder: Path) -> tuple[tuple[Row, ...], tuple[RunEvidence, ...]]:
    """The rows of some runs, and the runs of another plan than today's."""
    plans = {model: _plan(workspace, model) for model in dict.fromkeys(run.model for run in runs.values())}
    evidence = [_run(folder / key, run) for key, run in runs.items() if (folder / key).is_dir()]
    current = [run for run in evidence if run.plan == plans[run.plan.model]]
    outdated = tuple(run for run in evidence if run.plan != plans[run.plan.model])
    return tuple(row for plan in plans.values() for row in _rows(plan, current)), outdated


def _rows(plan: Plan, evidence: list[RunEvidence]) -> list[Row]:
    runs = sorted((run for run in evidence if run.plan.model == plan.model), key=lambda run: run.metrics.seed)
    groups: dict[tuple[str, str], list[RunEvidence]] = {}
    for run in runs:
        groups.setdefault(_arithmetic(run), []).append(run)
    if len(groups) <= 1:
        return [Row(plan.model, plan, tuple(runs))]
    return [
        Row(f"{plan.model} ({precision}, {device})", plan, tuple(groups[precision, device]))
        for precision, device in sorted(groups)
    ]


def _arithmetic(run: RunEvidence) -> tuple[str, str]:
    return run.provenance.precision, run.provenance.device


def _plan(workspace: Path, model: str) -> Plan:
    return _reading(workspace / "plans" / f"{model}.json", "`dvc repro plan` writes it anew", Plan.read)


def _run(folder: Path, run: Run) -> RunEvidence:
    remedy = evidence_remedy(folder)
    evidence = _reading(folder, remedy, RunEvidence.read)
    metrics: Metrics = evidence.metrics
    if (metrics.model, metrics.seed, evidence.plan.model) != (run.model, run.seed, run.model):
        found = f"{metrics.model} with seed {metrics.seed}"
        raise ReproError(f"{folder} holds {found}, not {run.model} with seed {run.seed}; {remedy}")
    return evidence


def _reading(path: Path, remedy: str, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise ReproError(f"{error.filename} is missing; {remedy}") from None
    except (ValidationError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ReproError(f"{path} cannot be read ({error}); {remedy}") from None

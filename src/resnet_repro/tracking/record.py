"""A run as MLflow shows it: pure functions from a plan, where it was trained, and its epochs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from resnet_repro import evidence
from resnet_repro.evidence import Epoch, Metrics, Origin, Plan, Provenance, RunEvidence
from resnet_repro.papers import judged_against

EVIDENCE_FILES = (evidence.PLAN, evidence.PROVENANCE, evidence.HISTORY, evidence.TIMING, evidence.METRICS)


class Point(NamedTuple):
    """A value of a metric. Step: optimizer updates, as in the papers' figures; timestamp: ms since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class RunRecord:
    """One run as it shall stand in MLflow."""

    uid: str
    name: str
    started_at: float  # seconds since 1970
    params: Mapping[str, str]
    tags: Mapping[str, str]
    data_sha256: str
    epochs: tuple[Epoch, ...] = ()
    summary: Mapping[str, float] = field(default_factory=dict)
    status: str = "RUNNING"
    ended_at: float | None = None
    artifacts: tuple[tuple[Path, str], ...] = ()  # file and the artifact folder it goes to

    @property
    def points(self) -> list[Point]:
        rows = [point for epoch in self.epochs for point in points_of(epoch)]
        step = self.epochs[-1].step if self.epochs else 0
        when = milliseconds(self.ended_at or self.started_at)
        return rows + [Point(key, float(value), when, step) for key, value in self.summary.items()]


def record_at_start(plan: Plan, origin: Origin, epochs: Sequence[Epoch] = ()) -> RunRecord:
    """A run that trains. `epochs` are those a resumed run has behind it."""
    return RunRecord(
        uid=origin.uid,
        name=origin.key,
        started_at=origin.started_at,
        params=flatten(plan.model_dump(mode="json", exclude={"fingerprint"})) | {"seed": str(origin.seed)},
        tags=_tags(plan, origin),
        data_sha256=origin.data_sha256,
        epochs=tuple(epochs),
    )


def record_at_end(
    plan: Plan, provenance: Provenance, epochs: Sequence[Epoch], folder: Path, metrics: Metrics | None = None
) -> RunRecord:
    """A run that is trained and, with `metrics`, evaluated. `folder` holds its files."""
    files = [folder / name for name in EVIDENCE_FILES]
    return replace(
        record_at_start(plan, provenance, epochs),
        summary=_summary(provenance, metrics),
        status="FINISHED",
        ended_at=provenance.finished_at,
        artifacts=tuple((path, "evidence") for path in files if path.is_file()),
    )


def record_of_evidence(run: RunEvidence, figures: Path | None = None) -> RunRecord:
    """A run from what `evaluate` wrote of it, with the figures of its model (`*_MODEL.png`) in `figures`."""
    record = record_at_end(run.plan, run.provenance, epochs_of(run.history), run.folder, run.metrics)
    drawn = sorted(figures.glob(f"*_{run.plan.model}.png")) if figures else []
    return replace(record, artifacts=record.artifacts + tuple((path, "figures") for path in drawn))


def epochs_of(history: pd.DataFrame) -> list[Epoch]:
    """The rows of `evidence.read_history`, missing values as None."""
    rows = history.astype(object).where(history.notna(), None).to_dict("records")
    return [Epoch(**{str(key): value for key, value in row.items()}) for row in rows]


def points_of(epoch: Epoch) -> list[Point]:
    """The numbers of one epoch, at the time it ended."""
    when = milliseconds(epoch.finished_at)
    names = [f.name for f in fields(Epoch) if f.name not in ("step", "train_seconds", "finished_at")]
    values = {name: getattr(epoch, name) for name in names}
    return [Point(name, float(v), when, epoch.step) for name, v in values.items() if v is not None]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names; values that are no text as JSON, much as params.yaml has them."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _tags(plan: Plan, origin: Origin) -> dict[str, str]:
    dirty = None if origin.git_dirty is None else json.dumps(origin.git_dirty)
    paper = paper_row(plan)
    tags: dict[str, str | None] = {
        "stage": "train",
        "uid": origin.uid,
        "model": plan.model,
        "seed": str(origin.seed),
        "recipe": plan.recipe_name,
        "paper": paper,
        "device": origin.device,
        "device_name": origin.device_name,
        "moved": json.dumps(True) if origin.moved else None,
        "mode": origin.mode,
        "precision": origin.precision,
        "threads": str(origin.threads),
        "deterministic": json.dumps(origin.deterministic),
        "platform": origin.platform,
        "git_commit": origin.git_commit,
        "git_dirty": dirty,
        "data_sha256": origin.data_sha256,
        "plan_sha256": origin.plan_sha256,
        "mlflow.source.git.commit": origin.git_commit,
        "mlflow.note.content": (
            f"**{plan.model}**, seed {origin.seed}: {plan.layers} layers, {plan.parameters:,} parameters, "
            f"trained by `{plan.recipe_name}` on {origin.machine}.\n\nPaper: {paper}\n\n"
            "Report: `reports/README.md` in the repository, and the run `report`"
        ),
    }
    tags |= {f"versions.{name}": version for name, version in origin.versions.items()}
    tags |= {f"fingerprint.{name}": digest for name, digest in plan.fingerprint.items()}
    return {key: value for key, value in tags.items() if value is not None}


def paper_row(plan: Plan) -> str:
    """The published number that this run's row is judged against."""
    judged = None if plan.recipe.short else judged_against(plan.model)
    return f"{judged.source}: {judged.value}% ({judged.statistic})" if judged else "none"


def _summary(provenance: Provenance, metrics: Metrics | None) -> dict[str, float]:
    numbers: dict[str, float | None] = {
        "duration_seconds": provenance.duration_seconds,
        "mean_images_per_second": provenance.images_per_second,
        "peak_memory_bytes": provenance.peak_memory_bytes,
        "sessions": provenance.sessions,
    }
    if metrics:
        numbers |= {
            "final_test_error_percent": metrics.test_error_percent,
            "final_test_loss": metrics.test_loss,
            "final_train_error_percent": metrics.train_error_percent,
            "final_train_loss": metrics.train_loss,
            "lowest_test_error_percent": metrics.lowest_test_error_percent,
            "lowest_test_error_epoch": metrics.lowest_test_error_epoch,
            "best_validation_epoch": metrics.best_validation_epoch,
            "best_validation_error_percent": metrics.best_validation_error_percent,
            "best_validation_test_error_percent": metrics.best_validation_test_error_percent,
        }
    return {key: float(value) for key, value in numbers.items() if value is not None}


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)

"""`publish`: every run whose evidence is here stands in MLflow afterwards, whatever happened before."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_repro import evidence
from resnet_repro.evidence import RunEvidence
from resnet_repro.tracking.live import is_gone
from resnet_repro.tracking.model import has_model, log_model
from resnet_repro.tracking.record import milliseconds, record_of_evidence
from resnet_repro.tracking.store import (
    PATIENT,
    PROCESS,
    Store,
    TrackingError,
    connect,
    load_mlflow,
    shown,
    sync,
    tracking_uri,
)

if TYPE_CHECKING:
    from torch.nn import Module

REPORT, DIGEST = "report", "report_sha256"


@dataclass(frozen=True)
class PublishSummary:
    """Names of runs, by what `publish` did with them."""

    uri: str
    created: tuple[str, ...] = ()
    completed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    without_weights: tuple[str, ...] = ()
    """their model is not in MLflow, and their weights are not on this machine"""
    closed: tuple[str, ...] = ()
    """stood as RUNNING, and their process is gone"""
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = {"created": self.created, "completed": self.completed, "unchanged": self.unchanged}
        lines = [f"MLflow at {self.uri}: " + ", ".join(f"{len(runs)} {what}" for what, runs in counts.items())]
        if self.closed:
            lines.append(f"marked as killed, their process is gone: {_some(self.closed)}")
        if self.without_weights:
            lines.append(f"weights are not on this machine, so no model: {_some(self.without_weights)}")
        return "\n".join([*lines, *self.problems])


def publish(workspace: Path, load_classifier: "Callable[[Path], Module] | None" = None) -> PublishSummary:
    """Add to MLflow what it lacks of the runs in `reports/runs`; change nothing that is there.

    Args:
        workspace: the repository.
        load_classifier: from `runs/MODEL-SEED` to the net as `log_model` takes it; None: log no models.

    Raises:
        TrackingError: the store cannot be used.
    """
    uri = tracking_uri(workspace)
    done: dict[str, list[str]] = {name: [] for name in ("created", "completed", "unchanged")}
    without_weights: list[str] = []
    problems: list[str] = []
    with _explained(uri):
        store = connect(workspace)
        closed = _close_abandoned(store)
        found = (workspace.glob(f"reports/{runs}/*/{evidence.PROVENANCE}") for runs in ("runs", "ablations/runs"))
        for folder in sorted(path.parent for paths in found for path in paths):
            try:
                run = RunEvidence.read(folder)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                problems.append(f"{folder.relative_to(workspace)} cannot be read, not published: {reason}")
                continue
            synced = sync(store, record_of_evidence(run, workspace / "reports" / "figures"))
            added = synced.added
            if not has_model(store, synced.run_id):
                trained = workspace / "runs" / run.key
                if not _has_weights(trained, run.provenance.weights_sha256):
                    without_weights.append(run.key)
                elif load_classifier:
                    try:
                        log_model(store, synced.run_id, run.key, load_classifier(trained))
                        added += 1
                    except Exception as error:  # a net that does not export must not hide the other runs
                        problems.append(f"{run.key}: its model was not logged: {str(error).splitlines()[0]}")
            done["created" if synced.created else "completed" if added else "unchanged"].append(run.key)
        if (workspace / "reports" / "README.md").is_file():
            done[_publish_report(store, workspace / "reports")].append(REPORT)
    runs = {name: tuple(keys) for name, keys in done.items()}
    return PublishSummary(
        shown(uri),
        **runs,
        without_weights=tuple(without_weights),
        closed=tuple(closed),
        problems=tuple(problems),
    )


def _publish_report(store: Store, reports: Path) -> str:
    """A run that holds the report's pages and figures; replaced as a whole when one of them changed."""
    pages = [
        path
        for pattern in ("*.md", "models/*.md", "figures/*.png", "ablations/*.md", "ablations/figures/*.png")
        for path in sorted(reports.glob(pattern))
    ]
    digests = [f"{path.relative_to(reports)} {evidence.sha256_of(path)}" for path in pages]
    digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    with store.locked():
        found = store.client.search_runs([store.experiment_id], f"tags.uid = '{REPORT}'", max_results=1)
        tags = {"uid": REPORT, "stage": REPORT}
        run = found[0] if found else store.client.create_run(store.experiment_id, None, tags, REPORT)
        if run.data.tags.get(DIGEST) == digest:
            return "unchanged"
        for path in pages:
            folder = path.parent.relative_to(reports)
            store.client.log_artifact(run.info.run_id, str(path), None if folder == Path() else str(folder))
        store.client.set_tag(run.info.run_id, DIGEST, digest)
        summary = (reports / "README.md").read_text(encoding="utf-8").partition("## Figures")[0]
        store.client.set_tag(run.info.run_id, "mlflow.note.content", summary)
        store.client.set_terminated(run.info.run_id, "FINISHED")
    return "completed" if found else "created"


def _some(names: tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _has_weights(folder: Path, sha256: str) -> bool:
    weights = folder / evidence.WEIGHTS
    return weights.is_file() and evidence.sha256_of(weights) == sha256


def _close_abandoned(store: Store) -> list[str]:
    """Mark as KILLED what stands as RUNNING here and has lost its process."""
    running = store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'", max_results=5000)
    gone = [run for run in running if PROCESS in run.data.tags and is_gone(run.data.tags[PROCESS])]
    for run in gone:
        store.client.delete_tag(run.info.run_id, PROCESS)
        store.client.set_terminated(run.info.run_id, "KILLED", milliseconds(time.time()))
    return [run.info.run_name for run in gone]


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what MLflow, its database or the network says into one error for the user."""
    load_mlflow(PATIENT)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        remedy = "is its server running?"
        if uri.startswith("sqlite:"):
            remedy = "delete the file, `resnet-repro publish` rebuilds every finished run"
        reason = str(error).replace(uri, shown(uri)).splitlines()[0]
        raise TrackingError(f"MLflow at {shown(uri)} cannot be used: {reason}; {remedy}") from error

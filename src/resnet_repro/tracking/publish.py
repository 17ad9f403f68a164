"""`publish`: every run whose evidence is here stands in MLflow afterwards, whatever happened before."""

import gc
import hashlib
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_repro import evidence
from resnet_repro.evidence import RunEvidence
from resnet_repro.tracking.live import is_gone
from resnet_repro.tracking.model import export_model, find_model, upload_model
from resnet_repro.tracking.record import milliseconds, record_of_evidence
from resnet_repro.tracking.registry import Trained, register
from resnet_repro.tracking.store import (
    FAILURE,
    PATIENT,
    PROCESS,
    Store,
    Synced,
    TrackingError,
    connect,
    explain,
    find_or_create,
    hurried,
    is_fresh,
    load_mlflow,
    locked,
    shown,
    sync,
    tracking_uri,
)
from resnet_repro.tracking.views import show_experiment

if TYPE_CHECKING:
    from torch.nn import Module

REPORT, DIGEST = "report", "report_sha256"
SILENT_SECONDS, SILENT_EPOCHS = 86400.0, 20.0  # a run of another host is given up when it is silent for both
RUNS_PER_PROCESS = 50
"""fewer are published sooner than another process has imported MLflow"""


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
    """stood as RUNNING, and their process is gone or has long been silent"""
    registered: tuple[str, ...] = ()
    """have a new version in the model registry"""
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = {"created": self.created, "completed": self.completed, "unchanged": self.unchanged}
        lines = [f"MLflow at {self.uri}: " + ", ".join(f"{len(runs)} {what}" for what, runs in counts.items())]
        if self.registered:
            lines.append(f"new versions of registered models: {_some(self.registered)}")
        if self.closed:
            lines.append(f"marked as killed, their process is gone or silent: {_some(self.closed)}")
        if self.without_weights:
            lines.append(f"weights are not on this machine, so no model: {_some(self.without_weights)}")
        return "\n".join([*lines, *self.problems])


def publish(workspace: Path, load_classifier: "Callable[[Path], Module] | None" = None) -> PublishSummary:
    """Add to MLflow what it lacks of the runs in `reports/runs`; change nothing that is there.

    Args:
        workspace: the repository.
        load_classifier: from `runs/MODEL-SEED` to the net as `export_model` takes it; None: log no models.

    Raises:
        TrackingError: the store cannot be used.
    """
    uri = tracking_uri(workspace)
    done: dict[str, list[str]] = {kind.name: [] for kind in fields(PublishSummary)[1:]}
    nets: list[Trained] = []
    with _explained(uri), _uncollected(), hurried(fresh := is_fresh(uri)):
        store = connect(workspace)
        done["closed"] = _close_abandoned(store)
        found = (workspace.glob(f"reports/{runs}/*/{evidence.PROVENANCE}") for runs in ("runs", "ablations/runs"))
        folders = sorted(path.parent for paths in found for path in paths)
        for folder, outcome in zip(folders, _all_synced(store, workspace, folders, fresh), strict=True):
            if isinstance(outcome, str):
                done["problems"].append(f"{folder.relative_to(workspace)} cannot be read, not published: {outcome}")
                continue
            run, synced = outcome
            added = synced.added
            model_id = find_model(store, synced.run_id)
            if model_id is None:
                trained = workspace / "runs" / run.key
                if not _has_weights(trained, run.provenance.weights_sha256):
                    done["without_weights"].append(run.key)
                elif load_classifier:
                    try:
                        with tempfile.TemporaryDirectory() as temporary:
                            model = export_model(load_classifier(trained), Path(temporary) / "model")
                            model_id = upload_model(store, synced.run_id, run.key, model)
                        added += 1
                    except Exception as error:  # a net that does not export must not hide the other runs
                        done["problems"].append(f"{run.key}: its model was not logged: {_reason(error)}")
            if model_id is not None:
                nets.append(Trained(run, synced.run_id, model_id))
            done["created" if synced.created else "completed" if added else "unchanged"].append(run.key)
        try:
            done["registered"] = register(store, nets)
        except Exception as error:  # a server may have no registry, or not let everyone write to it
            done["problems"].append(f"models were not registered, the next publish tries again: {_reason(error)}")
        report_run = None
        if (workspace / "reports" / "README.md").is_file():
            report_run, kind = _publish_report(store, workspace / "reports")
            done[kind].append(REPORT)
        show_experiment(store, report_run)
    return PublishSummary(shown(uri), **{kind: tuple(names) for kind, names in done.items()})


def _all_synced(
    store: Store, workspace: Path, folders: Sequence[Path], fresh: bool
) -> Iterator[tuple[RunEvidence, Synced] | str]:
    """Each folder's run, which MLflow then has, or why it cannot be read. MLflow's time is Python's, so many runs are
    shared among processes."""
    workers = min(os.cpu_count() or 1, len(folders) // RUNS_PER_PROCESS)
    if workers < 2:
        yield from map(partial(_synced, store, workspace), folders)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _Process.begin, (workspace, fresh)) as pool:
        yield from pool.map(_Process.synced, folders, chunksize=5)


def _synced(store: Store, workspace: Path, folder: Path) -> tuple[RunEvidence, Synced] | str:
    try:
        run = RunEvidence.read(folder)
    except (OSError, ValueError) as error:
        return _reason(error)
    return run, sync(store, record_of_evidence(run, workspace / "reports" / "figures"))


class _Process:
    """What one of the processes holds."""

    workspace: Path
    store: Store
    open = ExitStack()

    @classmethod
    def begin(cls, workspace: Path, fresh: bool) -> None:
        cls.open.enter_context(_uncollected())
        cls.open.enter_context(hurried(fresh))
        cls.workspace, cls.store = workspace, connect(workspace)

    @classmethod
    def synced(cls, folder: Path) -> tuple[RunEvidence, Synced] | str:
        return _synced(cls.store, cls.workspace, folder)


def _publish_report(store: Store, reports: Path) -> tuple[str, str]:
    """A run that holds the report's pages and figures; replaced as a whole when one of them changed. Its id, and what
    was done."""
    pages = [
        path
        for pattern in ("*.md", "models/*.md", "figures/*.png", "ablations/*.md", "ablations/figures/*.png")
        for path in sorted(reports.glob(pattern))
    ]
    digests = [f"{path.relative_to(reports)} {evidence.sha256_of(path)}" for path in pages]
    digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    with locked(store.lock):
        run, created = find_or_create(store, milliseconds(time.time()), {"uid": REPORT, "stage": REPORT}, REPORT)
        uploaded = any(item.path == "README.md" for item in store.client.list_artifacts(run.info.run_id))
        if uploaded and run.data.tags.get(DIGEST) == digest:
            return run.info.run_id, "unchanged"
        for path in pages:
            folder = path.parent.relative_to(reports)
            store.client.log_artifact(run.info.run_id, str(path), None if folder == Path() else str(folder))
        summary = (reports / "README.md").read_text(encoding="utf-8").partition("## Figures")[0]
        store.client.set_tag(run.info.run_id, "mlflow.note.content", summary)
        store.client.set_terminated(run.info.run_id, "FINISHED")
        store.client.set_tag(run.info.run_id, DIGEST, digest)
    return run.info.run_id, "created" if created else "completed"


def _some(names: tuple[str, ...], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _reason(error: Exception) -> str:
    return shown((str(error) or type(error).__name__).splitlines()[0])


def _has_weights(folder: Path, sha256: str) -> bool:
    weights = folder / evidence.WEIGHTS
    return weights.is_file() and evidence.sha256_of(weights) == sha256


def _close_abandoned(store: Store) -> list[str]:
    """Mark as KILLED what stands as RUNNING and does so no more, and say why."""
    running = store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'", max_results=5000)
    ours = [run for run in running if "uid" in run.data.tags]  # somebody else's are theirs to end
    gone = [(run, why) for run in ours if (why := _why_abandoned(store, run)) is not None]
    for run, why in gone:
        store.client.set_tag(run.info.run_id, FAILURE, why)
        if PROCESS in run.data.tags:
            store.client.delete_tag(run.info.run_id, PROCESS)
        store.client.set_terminated(run.info.run_id, "KILLED", milliseconds(time.time()))
    return [run.info.run_name for run, _ in gone]


def _why_abandoned(store: Store, run: Any) -> str | None:
    """None if its process lives on this host, or was heard of lately from another one."""
    process = run.data.tags.get(PROCESS, f"? 0 {run.info.start_time / 1000}")
    host, _, began = process.rsplit(" ", 2)
    if host == socket.gethostname():
        return f"its process on {host} is gone" if is_gone(process) else None
    epochs = store.client.get_metric_history(run.info.run_id, "seconds")  # how long each took, at the time it ended
    heard = max([float(began), *(epoch.timestamp / 1000 for epoch in epochs)])
    patience = max([SILENT_SECONDS, *(SILENT_EPOCHS * epoch.value for epoch in epochs)])
    if time.time() - heard < patience:
        return None
    return f"nothing was heard from {host} since {datetime.fromtimestamp(heard, UTC):%Y-%m-%d %H:%M} UTC"


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's search for cycles, a sixth of the time: MLflow makes an object of every point, and no cycles."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what MLflow, its database or the network says into one error for the user."""
    load_mlflow(PATIENT)
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError, ImportError, OSError) as error:
        raise TrackingError(explain(uri, error)) from error

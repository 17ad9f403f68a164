"""The MLflow store: opened once before parallel writers, and `sync`, which adds to a run what it lacks."""

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from resnet_repro.errors import ReproError
from resnet_repro.evidence import Epoch
from resnet_repro.tracking.record import Point, RunRecord, milliseconds, points_of

EXPERIMENT = "resnet-repro"
DATASET = "cifar10"
PROCESS, FAILURE = "process", "failure"
"""tags that only a run has that trains, or that failed"""

# MLflow's limits: mlflow.utils.validation
METRICS_PER_BATCH, TAGS_PER_BATCH, DIGEST_LENGTH = 1000, 100, 36

# Whom an outage keeps waiting: `publish` some seconds a call, training none. MLflow's own limits are minutes.
TIMEOUT, RETRIES, BACKOFF = (f"MLFLOW_HTTP_REQUEST_{name}" for name in ("TIMEOUT", "MAX_RETRIES", "BACKOFF_FACTOR"))
PATIENT = {TIMEOUT: "30", RETRIES: "2", BACKOFF: "1"}
IMPATIENT = {TIMEOUT: "5", RETRIES: "0"}


class TrackingError(ReproError):
    """The MLflow store or its UI cannot be used."""


@dataclass(frozen=True)
class Store:
    uri: str
    client: Any  # mlflow.MlflowClient
    experiment_id: str
    lock: Path | None

    @contextmanager
    def locked(self) -> Iterator[None]:
        with _locked(self.lock):
            yield


def root_of(workspace: Path) -> Path:
    """Where the store lies: the repository itself, also from the copy in which `dvc exp run --temp` works."""
    return Path(os.environ.get("DVC_ROOT") or workspace).resolve()


def tracking_uri(workspace: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root_of(workspace) / 'mlflow.db'}"


def connect(workspace: Path, limits: Mapping[str, str] = PATIENT) -> Store:
    """The experiment of this project, made at its first use.

    Two processes that build the tables of one database at once break each other, hence the lock.

    Raises:
        TrackingError: the store lies under an artifact folder of another place.
        Exception: whatever MLflow, its database or the network says.
    """
    mlflow = load_mlflow(limits)
    root, uri = root_of(workspace), tracking_uri(workspace)
    remote = uri.startswith(("http:", "https:", "databricks"))
    artifacts = None if remote else (root / "mlartifacts").as_uri()
    lock = None if remote else root / "mlflow.db.lock"
    with _locked(lock):
        client = mlflow.MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT) or _create_experiment(client, artifacts)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
    if "MLFLOW_TRACKING_URI" not in os.environ and experiment.artifact_location != artifacts:
        raise TrackingError(
            f"{root / 'mlflow.db'} was made in another folder and keeps its files in "
            f"{experiment.artifact_location}: delete it; `resnet-repro publish` rebuilds every finished run"
        )
    return Store(uri, client, experiment.experiment_id, lock)


def _create_experiment(client: Any, artifacts: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_experiment(client.create_experiment(EXPERIMENT, artifacts))
    except MlflowException:  # another machine was quicker
        if (experiment := client.get_experiment_by_name(EXPERIMENT)) is None:
            raise
        return experiment


def load_mlflow(limits: Mapping[str, str]) -> Any:
    """Import mlflow: no telemetry, no chatter, and not minutes of retries. What the user has set stays."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    quiet["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    for key, value in {**quiet, **limits}.items():
        os.environ.setdefault(key, value)
    import mlflow

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


@contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    """Between processes; the lock goes with the process that holds it."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Synced(NamedTuple):
    run_id: str
    created: bool
    added: int
    """params, tags, points and files that were missing"""


def sync(store: Store, record: RunRecord, own: bool = False) -> Synced:
    """Bring the run of `record.uid` up to `record`: add what is missing, change nothing that is there.

    A run that has not finished gets the record's status. `own`: the caller trains this run, so a tag that
    says otherwise (it was resumed elsewhere) is replaced.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    client = store.client
    with store.locked():
        query = f"tags.uid = '{record.uid}'"
        found = client.search_runs([store.experiment_id], query, max_results=1, order_by=["attributes.start_time ASC"])
        created = not found
        if created:
            start = milliseconds(record.started_at)
            run = client.create_run(store.experiment_id, start, {"uid": record.uid}, record.name)
        else:
            run = found[0]
    run_id, data = run.info.run_id, run.data

    tags = [
        RunTag(key, value)
        for key, value in record.tags.items()
        if key not in data.tags or (own and data.tags[key] != value)
    ]
    params = [Param(key, value) for key, value in record.params.items() if key not in data.params]
    missing = _missing(client, run_id, set(data.metrics), record.points)
    for some in _chunks(params, TAGS_PER_BATCH):
        client.log_batch(run_id, params=some)
    for some in _chunks(tags, TAGS_PER_BATCH):
        client.log_batch(run_id, tags=some)
    for some in _chunks([Metric(p.key, p.value, p.timestamp, p.step) for p in missing], METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=some)
    if not (run.inputs and run.inputs.dataset_inputs):
        digest = record.data_sha256[:DIGEST_LENGTH]
        dataset = Dataset(DATASET, digest, "local", json.dumps({"uri": "data/cifar10"}))
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    there = {
        item.path
        for folder in {folder for _, folder in record.artifacts}
        for item in client.list_artifacts(run_id, folder)
    }
    files = [(path, folder) for path, folder in record.artifacts if f"{folder}/{path.name}" not in there]
    for path, folder in files:
        client.log_artifact(run_id, str(path), folder)

    ended = run.info.status == "FINISHED"
    for key in {PROCESS, FAILURE} & set(data.tags) - set(record.tags):
        client.delete_tag(run_id, key)
    if not ended and record.status == "RUNNING" != run.info.status:
        client.update_run(run_id, "RUNNING")
    elif not ended and record.status != "RUNNING":
        client.set_terminated(run_id, record.status, milliseconds(record.ended_at or time.time()))
    changed = not ended and run.info.status != record.status
    return Synced(run_id, created, len(params) + len(tags) + len(missing) + len(files) + changed)


def _missing(client: Any, run_id: str, keys: set[str], points: Sequence[Point]) -> list[Point]:
    wanted = {point.key for point in points} & keys
    there = {(key, point.step) for key in wanted for point in client.get_metric_history(run_id, key)}
    return [point for point in points if (point.key, point.step) not in there]


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def log_epochs(store: Store, run_id: str, epochs: Sequence[Epoch]) -> None:
    """Add the points of `epochs` to a run that has none of them."""
    from mlflow.entities import Metric

    points = [Metric(p.key, p.value, p.timestamp, p.step) for epoch in epochs for p in points_of(epoch)]
    for some in _chunks(points, METRICS_PER_BATCH):
        store.client.log_batch(run_id, metrics=some)


def shown(uri: str) -> str:
    """`uri` without user name and password."""
    return re.sub("//[^/]*@", "//", uri)

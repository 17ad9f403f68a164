"""The MLflow store: opened once before parallel writers, and `sync`, which adds to a run what it lacks."""

import fcntl
import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from resnet_repro.errors import ReproError
from resnet_repro.tracking.record import Point, RunRecord, milliseconds

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
BUSY_SECONDS = 5.0  # to wait for another writer of a sqlite file
LOCK_SECONDS = 60.0  # to wait for a process that builds the tables

MOVE_AWAY = "move it away, and `resnet-repro publish` rebuilds every finished run"
BUSY = "another program holds it: end that (`fuser FILE` finds it, for FILE.lock too)"
READ_ONLY = "let it and its folder be written, or name another store in MLFLOW_TRACKING_URI"
SQLITE_REMEDIES = {"BUSY": BUSY, "READONLY": READ_ONLY, "CANTOPEN": READ_ONLY, "FULL": "free some space on that disk"}


class TrackingError(ReproError):
    """The MLflow store or its UI cannot be used."""


@dataclass(frozen=True)
class Store:
    uri: str
    client: Any  # mlflow.MlflowClient
    experiment_id: str
    lock: Path | None


def root_of(workspace: Path) -> Path:
    """Where the store lies: the repository itself, also from the copy in which `dvc exp run --temp` works."""
    return Path(os.environ.get("DVC_ROOT") or workspace).resolve()


def tracking_uri(workspace: Path) -> str:
    """MLFLOW_TRACKING_URI, or the repository's own; a relative file means the repository's, from wherever it is named.

    Raises:
        TrackingError: the path of the file cannot be told in such an address.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = _sqlite_file(uri)
    if file is None or file.is_absolute():
        return uri
    path, (_, mark, options) = root_of(workspace) / file, uri.partition("?")
    if "?" in str(path.parent):
        raise TrackingError(
            f"{path.parent} has a question mark in its name, where an address of a database ends: move the repository, "
            "or name a store in MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{path}{mark}{options}"


def connect(workspace: Path, limits: Mapping[str, str] = PATIENT) -> Store:
    """The experiment of this project, made at its first use.

    Two processes that build the tables of one database at once break each other, hence the lock.

    Raises:
        TrackingError: the store lies under an artifact folder of another place, or its file cannot be used.
        Exception: whatever MLflow, its database or the network says; `explain` makes it readable.
    """
    mlflow = load_mlflow(limits)
    root, uri = root_of(workspace), tracking_uri(workspace)
    remote = uri.startswith(("http:", "https:", "databricks"))
    artifacts = None if remote else (root / "mlartifacts").as_uri()
    lock = None if remote else root / "mlflow.db.lock"
    with locked(lock):
        if (file := _sqlite_file(uri)) is not None:
            check_sqlite(file, BUSY_SECONDS)
            if not file.exists():  # all of its tables or none: MLflow cannot go on where it was killed
                new = file.with_name(f"{file.name}.new")
                for old in file.parent.glob(f"{new.name}*"):
                    old.unlink()
                mlflow.MlflowClient(f"sqlite:///{new}")
                new.replace(file)
        client = mlflow.MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT) or _create_experiment(client, artifacts)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
    if "MLFLOW_TRACKING_URI" not in os.environ and experiment.artifact_location != artifacts:
        raise TrackingError(
            f"{root / 'mlflow.db'} was made in another folder and keeps its files in "
            f"{experiment.artifact_location}: {MOVE_AWAY}"
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
    try:
        import mlflow
    except RuntimeError as error:  # as where the user has no home directory
        raise TrackingError(f"MLflow cannot be loaded: {error} Set HOME to a folder that may be written") from error

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # an error is raised as well, and explained once
    return mlflow


@contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Between processes; the lock goes with the process that holds it."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TrackingError(f"{path} was locked for {LOCK_SECONDS:.0f} s; {BUSY}") from error
                time.sleep(0.02)
        yield


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def check_sqlite(file: Path, busy_seconds: float) -> None:
    """Write nothing, but as if, and read it all: MLflow tries for 100 seconds to open what is no database.

    Raises:
        TrackingError: what is wrong with the file, and what to do.
    """
    if file.is_dir():
        raise TrackingError(f"{file} is a folder where MLflow's database belongs: {MOVE_AWAY}")
    if not file.exists():
        return
    try:
        with closing(sqlite3.connect(file, timeout=busy_seconds, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE probe (x)")
            database.execute("ROLLBACK")
            ((found,),) = database.execute("PRAGMA quick_check(1)")
        if found != "ok":
            raise sqlite3.DatabaseError(found.splitlines()[-1])
    except sqlite3.Error as error:
        kind = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_").partition("_")[0]
        remedy = SQLITE_REMEDIES.get(kind, f"it is damaged: {MOVE_AWAY}")
        raise TrackingError(f"MLflow cannot use {file}: {error}; {remedy}") from error


def is_fresh(uri: str) -> bool:
    """Whether it is a sqlite file that does not exist yet."""
    file = _sqlite_file(uri)
    return file is not None and not file.exists()


@contextmanager
def hurried(fresh: bool) -> Iterator[None]:
    """Do not wait for the disk while a fresh sqlite file is filled: that is half the time, since MLflow ends eight
    transactions for each run. A power cut can damage the file; what it has by then can be published again."""
    from sqlalchemy import event
    from sqlalchemy.pool import Pool

    def set_to(synchronous: str) -> Callable[..., None]:
        def hook(connection: sqlite3.Connection | None, *_: object) -> None:
            if connection is not None:
                connection.execute(f"PRAGMA synchronous = {synchronous}")

        return hook

    hooks = {"checkout": set_to("OFF"), "checkin": set_to("FULL")} if fresh else {}
    for name, hook in hooks.items():
        event.listen(Pool, name, hook)
    try:
        yield
    finally:
        for name, hook in hooks.items():
            event.remove(Pool, name, hook)


def explain(uri: str, error: BaseException) -> str:
    """What happened, where, and what to do, without user name and password."""
    if isinstance(error, TrackingError):
        return str(error)
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    said = str(error).replace(uri, shown(uri)).partition("\n")[0].partition(". ")[0]
    file = _sqlite_file(uri)
    if "disk is full" in said:
        remedy = SQLITE_REMEDIES["FULL"]
    elif "schema" in said or "revision" in said:
        remedy = f"another version of MLflow made it: install that, `mlflow db upgrade` an older one, or {MOVE_AWAY}"
    elif re.search("error code 40[13]", said):
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account that may write there"
    elif isinstance(error, ImportError):
        remedy = "install that database's driver and name it: `pip install psycopg2-binary`, postgresql+psycopg2://..."
    elif file is None:
        remedy = "start MLflow's server there, or set MLFLOW_TRACKING_URI to where it runs"
    else:
        try:
            check_sqlite(file, 0)
        except TrackingError as found:
            return str(found)
        remedy = BUSY if isinstance(error, TimeoutError) else READ_ONLY if isinstance(error, OSError) else MOVE_AWAY
    return f"MLflow at {shown(uri)} cannot be used: {said[:160] or 'no answer in time'}; {remedy}"


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
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag
    from mlflow.exceptions import MlflowException

    client = store.client
    first = {"uid": record.uid} | {key: value for key, value in record.tags.items() if key == PROCESS}
    with locked(store.lock):
        run, created = find_or_create(store, milliseconds(record.started_at), first, record.name)
    run_id, data = run.info.run_id, run.data

    tags = [
        RunTag(key, value)
        for key, value in record.tags.items()
        if key not in data.tags or (own and data.tags[key] != value)
    ]
    params = [Param(key, value) for key, value in record.params.items() if key not in data.params]
    missing = _missing(client, run, record.points)
    log_points(store, run_id, missing)
    chunks = zip_longest(_chunks(params, TAGS_PER_BATCH), _chunks(tags, TAGS_PER_BATCH), fillvalue=())
    for some_params, some_tags in chunks:
        client.log_batch(run_id, params=some_params, tags=some_tags)
    if not (run.inputs and run.inputs.dataset_inputs):
        digest = record.data_sha256[:DIGEST_LENGTH]
        dataset = Dataset(DATASET, digest, "local", json.dumps({"uri": "data/cifar10"}))
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        try:
            client.log_inputs(run_id, inputs)
        except MlflowException as error:
            if "UNIQUE" not in str(error).upper():
                raise
            client.log_inputs(run_id, inputs)  # another run was quicker to add the data set, which they share
    folders = set() if created else {folder for _, folder in record.artifacts}
    there = {item.path for folder in folders for item in client.list_artifacts(run_id, folder)}
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


def _missing(client: Any, run: Any, points: Sequence[Point]) -> list[Point]:
    latest = {point.key: point.value for point in points}
    if run.info.status == "FINISHED" and latest.items() <= run.data.metrics.items():
        return []  # `sync` ends a run once it has all points: reading them again was two thirds of a second `publish`
    wanted = latest.keys() & run.data.metrics.keys()
    there = {(key, point.step) for key in wanted for point in client.get_metric_history(run.info.run_id, key)}
    return [point for point in points if (point.key, point.step) not in there]


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def find_or_create(store: Store, start: int, tags: Mapping[str, str], name: str) -> tuple[Any, bool]:
    """The one run of `tags["uid"]`, and whether it is new. A request whose answer was lost may have made two."""
    query, order = f"tags.uid = '{tags['uid']}'", ["attributes.start_time ASC"]
    search = partial(store.client.search_runs, [store.experiment_id], query, order_by=order)
    if created := not (found := search()):
        run = store.client.create_run(store.experiment_id, start, tags, name)
        found = search() or [run]
    run, *twins = found
    for twin in twins:
        store.client.delete_run(twin.info.run_id)
    return run, created


def log_points(store: Store, run_id: str, points: Iterable[Point]) -> None:
    """Add points that a run does not have."""
    from mlflow.entities import Metric

    for some in _chunks([Metric(p.key, p.value, p.timestamp, p.step) for p in points], METRICS_PER_BATCH):
        store.client.log_batch(run_id, metrics=some)


def shown(uri: str) -> str:
    """`uri` without user name and password."""
    return re.sub("//[^/]*@", "//", uri)

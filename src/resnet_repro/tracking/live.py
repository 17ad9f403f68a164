"""The live view of one training. Whatever MLflow does, training neither fails nor waits for it."""

import atexit
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

from resnet_repro.evidence import Epoch, RunEvidence
from resnet_repro.tracking.model import export_model, upload_model
from resnet_repro.tracking.record import RunRecord, points_of, record_of_evidence
from resnet_repro.tracking.store import (
    FAILURE,
    IMPATIENT,
    PROCESS,
    Store,
    connect,
    explain,
    load_mlflow,
    log_points,
    sync,
    tracking_uri,
)

if TYPE_CHECKING:
    from torch.nn import Module

RETRY_SECONDS = 30.0  # between attempts while the server is away and no epoch ends
CLOSE_SECONDS = 10.0  # the most that the end of a training waits for MLflow
UPLOAD_SECONDS = 120.0  # the most that it waits for the upload of the model


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class LiveRun:
    """One training, shown while it goes on.

    A daemon thread brings MLflow up to the newest state; the training only replaces that state, so there is
    no queue that could fill, and after an outage the next attempt sends all that is missing. A run that is
    not closed otherwise is interrupted at the end of the process.
    """

    def __init__(self, workspace: Path, record: RunRecord, warn: Callable[[str], None] = _to_stderr) -> None:
        self._workspace, self._warn, self._warned = workspace, warn, False
        self._record = replace(record, tags={**record.tags, PROCESS: this_process()})
        self._changed = threading.Condition()
        self._news, self._closing = True, False
        self._store: Store | None = None
        self._run_id: str | None = None  # known while MLflow has all that was sent
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    @classmethod
    def start(cls, workspace: Path, record: RunRecord, warn: Callable[[str], None] = _to_stderr) -> Self:
        """Show the run as RUNNING; a run of this uid that was interrupted goes on."""
        live = cls(workspace, record, warn)
        with suppress(Exception):  # in the thread it would race with imports of the training
            load_mlflow(IMPATIENT)
        live._thread.start()
        atexit.register(live.interrupt)
        return live

    def log_epochs(self, epochs: Sequence[Epoch]) -> None:
        """Add epochs; those added before may be among them. Returns at once.

        Add an epoch when the checkpoint that holds it is on the disk: MLflow cannot take a point back, and an
        epoch that is trained again ends at another time.
        """
        with self._changed:
            known = {epoch.step for epoch in self._record.epochs}
            new = tuple(epoch for epoch in epochs if epoch.step not in known)
            self._record = replace(self._record, epochs=self._record.epochs + new)
            self._news = True
            self._changed.notify()

    def finish(self, record: RunRecord, module: "Module | None" = None) -> None:
        """Complete the run with `record_at_end` and log its model (see `export_model`)."""
        sent_to = self._close(record)
        if sent_to is None or module is None:
            return
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:  # the export here, the network in a thread: one that is cut off must not hold torch's locks
                model = export_model(module, Path(folder) / "model")
                _within(UPLOAD_SECONDS, lambda: upload_model(*sent_to, record.name, model))
            except Exception as error:
                self._complain(error)

    def fail(self, message: str) -> None:
        """Training cannot go on."""
        tags = {**self._record.tags, FAILURE: message[:5000]}
        self._close(replace(self._record, status="FAILED", ended_at=time.time(), tags=tags))

    def interrupt(self) -> None:
        """Training stops and may go on later: KILLED until a `LiveRun` of the same uid makes it RUNNING."""
        self._close(replace(self._record, status="KILLED", ended_at=time.time()))

    def _close(self, record: RunRecord) -> tuple[Store, str] | None:
        """Send the last state. Returns where to, or None if that failed or takes too long."""
        atexit.unregister(self.interrupt)
        with self._changed:
            tags = {key: value for key, value in record.tags.items() if key != PROCESS}
            self._record, self._news, self._closing = replace(record, tags=tags), True, True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._complain(TimeoutError())
            return None
        return None if self._store is None or self._run_id is None else (self._store, self._run_id)

    def _work(self) -> None:
        sent: set[int] = set()
        while True:
            with self._changed:
                behind = self._run_id is None
                self._changed.wait_for(lambda: self._news, RETRY_SECONDS if behind else None)
                record, last, self._news = self._record, self._closing, False
            try:
                store = self._store = self._store or connect(self._workspace, IMPATIENT)
                run_id = self._run_id
                # `publish` elsewhere may have taken a run that was silent for long for dead
                if run_id is None or last or store.client.get_run(run_id).info.status != "RUNNING":
                    self._run_id = sync(store, record, own=True).run_id
                else:
                    new = [epoch for epoch in record.epochs if epoch.step not in sent]
                    log_points(store, run_id, [point for epoch in new for point in points_of(epoch)])
                sent = {epoch.step for epoch in record.epochs}
            except Exception as error:
                self._store = self._run_id = None
                self._complain(error)
            if last:
                return

    def _complain(self, error: BaseException) -> None:
        if not self._warned:
            self._warned = True
            self._warn(_unreachable(self._workspace, error))


def show_evidence(workspace: Path, folder: Path, warn: Callable[[str], None] = _to_stderr) -> None:
    """Add what `evaluate` wrote to `folder` to its run, unless MLflow cannot be reached within seconds."""
    record = record_of_evidence(RunEvidence.read(folder))
    try:
        load_mlflow(IMPATIENT)
        _within(CLOSE_SECONDS, lambda: sync(connect(workspace, IMPATIENT), record))
    except Exception as error:
        warn(_unreachable(workspace, error))


def this_process() -> str:
    """Host, process id and when it began, which tells it from a later process of the same id."""
    process = psutil.Process()
    return f"{socket.gethostname()} {process.pid} {process.create_time():.2f}"


def is_gone(process: str) -> bool:
    """Whether `process` was one of this host and does not live any more. A step of the clock moves when all began."""
    host, pid, began = process.rsplit(" ", 2)
    if host != socket.gethostname():
        return False
    try:
        found = psutil.Process(int(pid))
        trains = any(part.endswith("pipeline/train.py") for part in found.cmdline())
        return not trains and abs(found.create_time() - float(began)) > 1
    except psutil.NoSuchProcess:
        return True


def _unreachable(workspace: Path, error: BaseException) -> str:
    reason = explain(tracking_uri(workspace), error)
    return f"{reason}. The stage goes on; `resnet-repro publish` will add this run later"


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Run `call` in a thread that ends with this process; raises what it raises, or TimeoutError while it goes on."""
    future: Future[object] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    future.result(seconds)

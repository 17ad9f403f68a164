"""The live view of one training. Whatever MLflow does, training neither fails nor waits for it."""

import atexit
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import psutil

from resnet_repro.evidence import Epoch, RunEvidence
from resnet_repro.tracking.model import export_model, upload_model
from resnet_repro.tracking.record import RunRecord, record_of_evidence
from resnet_repro.tracking.store import (
    FAILURE,
    IMPATIENT,
    PROCESS,
    Store,
    connect,
    load_mlflow,
    log_epochs,
    shown,
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
    not closed otherwise is interrupted at the end of the process; used as a context manager, it fails with
    the exception that leaves it.
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
        """Complete the run with `record_at_end` and log its model (see `log_model`)."""
        if not self._close(record) or module is None:
            return
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:  # the export here, the network in a thread: one that is cut off must not hold torch's locks
                model = export_model(module, Path(folder) / "model")
                _within(UPLOAD_SECONDS, lambda: self._upload(record.name, model))
            except Exception as error:
                self._complain(error)

    def fail(self, message: str) -> None:
        """Training cannot go on."""
        tags = {**self._record.tags, FAILURE: message[:5000]}
        self._close(replace(self._record, status="FAILED", ended_at=time.time(), tags=tags))

    def interrupt(self) -> None:
        """Training stops and may go on later: KILLED until a `LiveRun` of the same uid makes it RUNNING."""
        self._close(replace(self._record, status="KILLED", ended_at=time.time()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closing:
            return
        if isinstance(error, Exception):
            self.fail(f"{type(error).__name__}: {error}")
        else:
            self.interrupt()

    def _close(self, record: RunRecord) -> bool:
        """Send the last state; False if that failed or takes too long."""
        atexit.unregister(self.interrupt)
        with self._changed:
            tags = {key: value for key, value in record.tags.items() if key != PROCESS}
            self._record, self._news, self._closing = replace(record, tags=tags), True, True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._complain(TimeoutError(f"no answer for {CLOSE_SECONDS:.0f} s"))
        return not self._thread.is_alive() and self._run_id is not None

    def _work(self) -> None:
        sent: set[int] = set()
        while True:
            with self._changed:
                behind = self._run_id is None
                self._changed.wait_for(lambda: self._news, RETRY_SECONDS if behind else None)
                record, last, self._news = self._record, self._closing, False
            try:
                self._store = self._store or connect(self._workspace, IMPATIENT)
                if self._run_id is None or last:
                    self._run_id = sync(self._store, record, own=True).run_id
                else:
                    new = [epoch for epoch in record.epochs if epoch.step not in sent]
                    log_epochs(self._store, self._run_id, new)
                sent = {epoch.step for epoch in record.epochs}
            except Exception as error:
                self._store = self._run_id = None
                self._complain(error)
            if last:
                return

    def _upload(self, name: str, model: Path) -> None:
        assert self._store is not None
        assert self._run_id is not None
        upload_model(self._store, self._run_id, name, model)

    def _complain(self, error: BaseException) -> None:
        if self._warned:
            return
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
    """Whether `process` was one of this host and does not live any more."""
    host, pid, began = process.rsplit(" ", 2)
    if host != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(began)) > 1
    except psutil.NoSuchProcess:
        return True


def _unreachable(workspace: Path, error: BaseException) -> str:
    uri = tracking_uri(workspace)
    reason = (str(error).replace(uri, shown(uri)).splitlines() or [type(error).__name__])[0][:160]
    return (
        f"MLflow unreachable at {shown(uri)}: training goes on; "
        f"`resnet-repro publish` will add this run later ({reason})"
    )


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Run `call` in a thread and wait for it for a limited time.

    Raises:
        TimeoutError: it goes on, in a thread that ends with this process.
        Exception: what `call` raised.
    """
    errors: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer for {seconds:.0f} s")
    if errors:
        raise errors[0]

"""A run in small, as files, as a record, or trained; what MLflow has of it; and MLflow's server with a proxy."""

import ctypes
import http.client
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from killing import make_arrays, make_plan
from resnet_repro import evidence, experiment
from resnet_repro.evidence import Epoch, Metrics, Plan, Provenance, RunEvidence
from resnet_repro.params import Architecture, Augmentation, Preprocessing, Recipe, Schedule
from resnet_repro.tracking import LiveView, live, publish, ui
from resnet_repro.tracking.record import RunRecord, record_at_end, record_at_start
from resnet_repro.tracking.store import Store

STEPS = 391  # of an epoch: 50,000 images by 128
ERRORS = ("test_error_percent", "train_error_percent", "test_loss", "train_loss", "learning_rate")

PLAN = Plan(
    model="resnet20",
    recipe_name="he2015",
    layers=20,
    parameters=269_722,
    architecture=Architecture(family="resnet", depth=20, shortcut="A"),
    recipe=Recipe(
        source="He 2015, section 4.2",
        schedule=Schedule(unit="steps", stop=64000, learning_rate=0.1, drops=(32000, 48000), drop_factor=0.1),
        batch_size=128,
        momentum=0.9,
        weight_decay=1e-4,
        initialization="fan_out",
        preprocessing=Preprocessing(kind="pixel_mean"),
        augmentation=Augmentation(),
        held_out=5000,
    ),
    fingerprint={"step": "1f" * 32, "order": "2e" * 32},
)


def epochs(n: int, seed: int = 0) -> list[Epoch]:
    """Numbers with all their digits: what is written and read back must be the same float."""
    draw = np.random.default_rng(seed)
    return [
        Epoch(
            epoch=i,
            step=STEPS * i,
            learning_rate=0.1,
            train_loss=draw.uniform(0, 2),
            train_error_percent=draw.uniform(0, 90),
            test_loss=draw.uniform(0, 2),
            test_error_percent=draw.uniform(0, 90),
            validation_loss=draw.uniform(0, 2) if seed else None,
            validation_error_percent=draw.uniform(0, 90) if seed else None,
            seconds=draw.uniform(8, 9),
            train_seconds=draw.uniform(7, 8),
            images_per_second=draw.uniform(6000, 7000),
            finished_at=1.79e9 + 10 * i + draw.uniform(0, 1),
        )
        for i in range(1, n + 1)
    ]


def provenance(uid: str, seed: int = 1, weights: bytes = b"") -> Provenance:
    return Provenance(
        uid=uid,
        model=PLAN.model,
        seed=seed,
        started_at=1.79e9,
        finished_at=1.79e9 + 100.125,
        duration_seconds=99.5,
        device="cuda",
        device_name="NVIDIA H100",
        mode="graphed",
        precision="bf16",
        threads=1,
        deterministic=True,
        images_per_second=6500.0,
        versions={"torch": "2.11.0", "numpy": "2.3.0"},
        platform="Linux",
        git_commit="c0ffee" * 6,
        git_dirty=True,
        data_sha256="d" * 64,
        plan_sha256="b" * 64,
        weights_sha256=evidence.hashlib.sha256(weights).hexdigest(),
    )


def metrics(seed: int = 1) -> Metrics:
    return Metrics(
        model=PLAN.model,
        seed=seed,
        steps=10 * STEPS,
        epochs=10,
        num_test_images=10_000,
        test_error_percent=8.71,
        test_loss=0.371,
        lowest_test_error_percent=8.6,
        lowest_test_error_epoch=9,
        train_error_percent=0.4,
        train_loss=0.02,
        confusion=[[1000 if i == j else 0 for j in range(10)] for i in range(10)],
    )


def write_run(workspace: Path, who: Provenance, rows: list[Epoch], plan: Plan = PLAN) -> Path:
    """The files of `train` and of `evaluate`. Returns the folder of the latter."""
    key = f"{who.model}-{who.seed}"
    for parent in (workspace / "runs", workspace / "reports" / "runs"):
        folder = parent / key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / evidence.PLAN).write_text(plan.to_json())
        evidence.write_json(folder / evidence.PROVENANCE, who)
        evidence.write_epochs(folder, rows)
    evidence.write_json(folder / evidence.METRICS, metrics(who.seed).model_copy(update={"model": who.model}))
    return folder


def write_trained(workspace: Path, model: str, seed: int, held_out: int, validation: float, test: float) -> Path:
    """A run with its weights, and with these errors after its last step, in percent."""
    plan = PLAN.model_copy(update={"model": model, "recipe": PLAN.recipe.model_copy(update={"held_out": held_out})})
    who = provenance(f"{model}-{seed}", seed, b"true").model_copy(update={"model": model})
    *before, last = epochs(6, seed if held_out else 0)
    last = replace(last, test_error_percent=test, validation_error_percent=validation if held_out else None)
    folder = write_run(workspace, who, [*before, last], plan)
    (workspace / "runs" / folder.name / evidence.WEIGHTS).write_bytes(b"true")
    found = metrics(seed).model_copy(update={"model": model, "test_error_percent": test})
    evidence.write_json(folder / evidence.METRICS, found)
    return folder


class Classifier(torch.nn.Module):
    """A net of this project in small: preprocessing, convolution, batch normalisation, option A's padding."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(3, 32, 32))
        self.convolution = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.linear = torch.nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float() / 255 - self.mean
        shortcut = torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))
        x = torch.relu(self.norm(self.convolution(x)) + shortcut)
        return self.linear(x.mean(dim=(2, 3)))


def classifier() -> Classifier:
    torch.manual_seed(0)
    net = Classifier()
    net(torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8))  # running statistics that are not 0 and 1
    return net.eval()


def start(uid: str, rows: list[Epoch] | None = None) -> RunRecord:
    return record_at_start(PLAN, provenance(uid), rows or [])


def end(uid: str, rows: list[Epoch], folder: Path) -> RunRecord:
    return record_at_end(PLAN, provenance(uid), rows, folder)


def find(store: Store, uid: str) -> Any:
    (run,) = store.client.search_runs([store.experiment_id], f"tags.uid = '{uid}'")
    return run


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def history(store: Store, run: Any, key: str) -> list[tuple[int, int, float]]:
    return sorted((p.step, p.timestamp, p.value) for p in store.client.get_metric_history(run.info.run_id, key))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`mlflow server`, which can die and start over, on a copy of an empty database."""

    def __init__(self, folder: Path, tables: bytes) -> None:
        self.folder, self.tables, self.port, self.starts = folder, tables, closed_port(), 0
        self.stack = ExitStack()

    def start(self, empty: bool = True) -> None:
        self.starts += empty
        self.database = self.folder / f"{self.starts}.db"
        if empty:
            self.database.write_bytes(self.tables)
        log = (self.folder / "log").open("w+b")
        run = ui.run_server(self.folder, f"sqlite:///{self.database}", ui.HOST, self.port, log)
        self.process = self.stack.enter_context(run)
        ui.await_health(self.process, ui.HOST, self.port, log)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)


class Proxy(ThreadingHTTPServer):
    """Stands before MLflow's server and does to each request what `fault` says."""

    daemon_threads = True

    def __init__(self, port: int, server: Server) -> None:
        super().__init__(("127.0.0.1", port), Exchange)
        self.server, self.fault = server, Exchange.passes
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """One of the two ends is gone."""


class Exchange(BaseHTTPRequestHandler):
    def forward(self) -> bytes:
        """The whole answer of MLflow's server."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kept = {key: value for key, value in self.headers.items() if key not in ("Host", "Connection")}
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.server.port)) as backend:
            backend.request(self.command, self.path, body, kept)
            answer = backend.getresponse()
            content = answer.read()
        length = f"Content-Length: {len(content)}\r\n\r\n"
        return f"HTTP/1.0 {answer.status} {answer.reason}\r\n{length}".encode() + content

    def passes(self) -> None:
        self.wfile.write(self.forward())

    def slow(self) -> None:
        time.sleep(0.8)
        self.passes()

    def deaf(self) -> None:
        time.sleep(8)  # longer than training waits for an answer

    def cut(self) -> None:
        self.forward()  # what was asked for is done, and nobody hears of it

    def half(self) -> None:
        answer = self.forward()
        self.wfile.write(answer[: len(answer) // 2])

    @staticmethod
    def says(answer: bytes) -> "Callable[[Exchange], None]":
        return lambda exchange: exchange.wfile.write(answer)

    def exchange(self) -> None:
        self.server.fault(self)

    def log_message(self, *_: object) -> None:
        pass


for method in ("GET", "POST", "PATCH", "PUT"):
    setattr(Exchange, f"do_{method}", Exchange.exchange)


class Way:
    """To the server, through a proxy that can be taken away."""

    def __init__(self, server: Server) -> None:
        self.server, self.port = server, closed_port()
        self.open()

    def open(self) -> None:
        self.proxy: Proxy | None = Proxy(self.port, self.server)

    def close(self) -> None:
        if self.proxy is not None:
            self.proxy.shutdown()
            self.proxy.server_close()
            self.proxy = None


During = Callable[[int, LiveView], None]


class Watched:
    """A `LiveView` that tells `during` which epoch comes, and holds that training does not wait for MLflow."""

    def __init__(self, view: LiveView, during: During) -> None:
        self.view, self.during, self.epoch = view, during, 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if name in ("started", "saved"):
                self.during(self.epoch, self.view)
                self.epoch += 1
            began = time.monotonic()
            getattr(self.view, name)(*arguments)
            assert time.monotonic() - began < 2.0 + live.CLOSE_SECONDS * (name == "finished"), name

        return call


def train(workspace: Path, during: During = lambda epoch, view: None) -> LiveView:
    """Twelve epochs, evaluated. `during` is called before the start and before eleven epochs are shown: 0 to 11."""
    shutil.rmtree(workspace / "runs", ignore_errors=True)
    plan, run, view = workspace / "plan.json", workspace / "runs" / "resnet-1", LiveView(workspace)
    plan.write_text(make_plan("resnet").to_json())
    arrays, watched = make_arrays(), Watched(view, during)
    provenance = experiment.train(plan, 1, arrays, run, workspace / "checkpoints", watched, checkpoint_seconds=0.0)
    watched.finished(run, provenance, None)
    experiment.evaluate(run, arrays, workspace / "reports" / "runs" / "resnet-1")
    return view


def await_end(view: LiveView) -> None:
    """Of the thread, which otherwise ends with its process."""
    wait_for(lambda: not view.live._thread.is_alive(), 60)


def assert_published(database: Path, workspace: Path) -> None:
    """After `publish`: one finished run of this training, every point of its history at its time, and none twice."""
    publish(workspace)
    run = RunEvidence.read(workspace / "reports" / "runs" / "resnet-1")
    drawn = [f.name for f in fields(Epoch) if f.name not in ("step", "train_seconds", "finished_at")]
    rows = [(int(row.step), round(row.finished_at * 1000), row) for _, row in run.history.iterrows()]
    expected = sorted((key, step, when, float(row[key])) for step, when, row in rows for key in drawn)
    query = "SELECT run_uuid, status FROM runs JOIN tags USING (run_uuid) WHERE lifecycle_stage = 'active' AND "
    ((run_id, status),) = execute(database, query + "tags.key = 'uid' AND tags.value = ?", run.provenance.uid)
    points = execute(database, "SELECT key, step, timestamp, value FROM metrics WHERE run_uuid = ?", run_id)
    assert sorted(point for point in points if point[0] in drawn) == expected
    others = [key for key, *_ in points if key not in drawn]
    assert "final_test_error_percent" in others
    assert len(set(others)) == len(others)
    assert status == "FINISHED"
    open_runs = "SELECT * FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'"
    assert execute(database, open_runs) == []
    assert publish(workspace).unchanged == ("resnet-1",)


def execute(file: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(file)) as database, database:
        return list(database.execute(query, values))


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """For root as well: this thread and those that it starts lose CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    root, libc = os.geteuid() == 0, ctypes.CDLL(None)
    mode, version_1, had = path.stat().st_mode, (ctypes.c_uint32 * 2)(0x19980330, 0), (ctypes.c_uint32 * 3)()
    if root:
        libc.capget(version_1, had)
        libc.capset(version_1, (ctypes.c_uint32 * 3)(had[0] & ~0b110, had[1], had[2]))
    path.chmod(mode & 0o555)
    yield
    path.chmod(mode)
    if root:
        libc.capset(version_1, had)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN EXCLUSIVE')"
    command = [sys.executable, "-c", code + "; print(flush=True); input()", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        yield
        other.communicate(b"\n")

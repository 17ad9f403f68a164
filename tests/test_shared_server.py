"""A group's MLflow server as docs/how-to.md sets it up: on PostgreSQL, artifacts through it, a password in front."""

import base64
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests

from browser import NEEDS_CHROME, chrome, opens, sees
from killing import start
from resnet_repro.tracking import TrackingError, connect, live, publish, ui
from resnet_repro.tracking.live import LiveRun
from resnet_repro.tracking.record import RunRecord, record_at_end, record_at_start
from resnet_repro.tracking.store import PATIENT, TIMEOUT, Store, sync
from resnet_repro.tracking.views import TABLE, address
from tracking_records import (
    PLAN,
    Exchange,
    Proxy,
    classifier,
    closed_port,
    end,
    epochs,
    find,
    provenance,
    wait_for,
    write_run,
    write_trained,
)

DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
PG_CTL = shutil.which("pg_ctl", path=os.pathsep.join([*map(str, reversed(DEBIAN)), os.environ["PATH"]]))
pytestmark = [
    pytest.mark.skipif(PG_CTL is None, reason="no database server: apt-get install postgresql"),
    pytest.mark.xdist_group("browser"),
]
PAGE, NAME = Path(__file__).parents[1] / "docs" / "how-to.md", "mlflow.example.org"
PROCESSES, RUNS_EACH, EPOCHS, PORTION = 4, 5, 40, 5


@dataclass
class Shared:
    port: int
    files: Path
    """where the server keeps artifacts"""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty one, of a PostgreSQL that only a socket in its folder leads to."""
    owner = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:  # one of pytest's would be closed to that user
        if owner:
            shutil.chown(folder, owner["user"], owner["group"])
        call = partial(subprocess.run, cwd=folder, check=True, stdout=subprocess.DEVNULL, **owner)
        pg_ctl = [PG_CTL, f"--pgdata={folder}/data", f"--log={folder}/log", "--wait"]
        call([*pg_ctl, "init", "--options=--username=mlflow --auth=trust --no-sync"])
        call([*pg_ctl, "start", f"--options=-h '' -k {folder} -F"])
        try:
            yield f"postgresql+psycopg2://mlflow@/postgres?host={folder}"
        finally:
            call([*pg_ctl, "stop", "--mode=immediate"])


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """As the page starts it, but for the places, and with two workers."""
    folder = tmp_path_factory.mktemp("server")
    shared = Shared(closed_port(), folder / "artifacts")
    (line,) = (line for line in PAGE.read_text().splitlines() if " mlflow server " in line)
    places = ["--backend-store-uri", database, "--artifacts-destination", str(shared.files), "--port", str(shared.port)]
    places += ["--allowed-hosts", f"{NAME},127.0.0.1:{shared.port}", "--workers", "2"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (folder / "log").open("w+b") as log:
        process = subprocess.Popen(
            ["env", *shlex.split(line), *places],
            cwd=folder,
            env={**os.environ, "PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            ui.await_health(process, ui.HOST, shared.port, log)
            yield shared
        finally:
            with suppress(ProcessLookupError):  # it did not start
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(autouse=True)
def _everybody_names_it(server: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_ROOT", *PATIENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("workspace")
    write_trained(workspace, "resnet20", 1, 5000, 8.0, 5.25)
    write_trained(workspace, "plain20", 1, 0, 8.0, 9.5)
    reports = workspace / "reports"
    (reports / "README.md").write_text("# Results\n")
    (reports / "figures").mkdir()
    (reports / "figures" / "curves_resnet20.png").write_bytes(os.urandom(100_000))
    return workspace


@pytest.fixture(scope="module")
def store(server: Shared, workspace: Path) -> Store:
    """With that workspace published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.url)
        summary = publish(workspace, lambda _: classifier())
        assert (summary.created, summary.problems) == (("plain20-1", "resnet20-1", "report"), ())
        assert summary.registered == ("plain20-1", "resnet20-1")
        return connect(workspace)


def record_of(workspace: Path, seed: int) -> RunRecord:
    who = provenance(f"writer-{seed}", seed)
    return record_at_end(PLAN, who, epochs(EPOCHS, seed), workspace / "runs" / who.key)


def train(workspace: Path, seed: int) -> None:
    """What MLflow sees of a training: five epochs at a time, while nineteen others write."""
    whole = record_of(workspace, seed)
    run = LiveRun.start(workspace, record_at_start(PLAN, provenance(whole.uid, seed)))
    for count in range(PORTION, EPOCHS + 1, PORTION):
        run.log_epochs(whole.epochs[:count])
        time.sleep(0.2)
    run.finish(whole)


def train_some(workspace: Path, seeds: Sequence[int]) -> None:
    live.CLOSE_SECONDS = 60.0  # one small machine has all of the writers, the server and its database
    with ThreadPoolExecutor(len(seeds)) as threads:
        list(threads.map(partial(train, workspace), seeds))


def test_of_twenty_writers_at_once_nothing_is_lost(server: Shared, tmp_path: Path) -> None:
    seeds, log = range(1, PROCESSES * RUNS_EACH + 1), tmp_path / "log"
    for seed in seeds:
        write_run(tmp_path, provenance(f"writer-{seed}", seed), epochs(EPOCHS, seed))
    patience = {"MLFLOW_TRACKING_URI": server.url, TIMEOUT: "60"}
    processes = [start(log, train_some, tmp_path, seeds[i::PROCESSES], **patience) for i in range(PROCESSES)]
    for process in processes:
        process.join()
    said = log.read_text()
    assert [process.exitcode for process in processes] == [0] * PROCESSES, said
    assert "cannot be used" not in said, said

    store = connect(tmp_path)
    runs = store.client.search_runs([store.experiment_id], "tags.uid LIKE 'writer-%'")
    assert sorted(run.data.tags["uid"] for run in runs) == sorted(f"writer-{seed}" for seed in seeds)

    def is_whole(run: Any) -> None:
        expected, run_id = record_of(tmp_path, int(run.data.tags["seed"])), run.info.run_id
        points = [p for key in run.data.metrics for p in store.client.get_metric_history(run_id, key)]
        assert sorted((p.key, p.value, p.timestamp, p.step) for p in points) == sorted(expected.points)
        assert (run.info.status, run.data.params) == ("FINISHED", expected.params)
        files = {Path(file.path).name for file in store.client.list_artifacts(run_id, "evidence")}
        assert files == {path.name for path, _ in expected.artifacts}

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(is_whole, runs))


def test_a_data_set_that_another_run_adds_at_the_same_moment(database: str, store: Store, tmp_path: Path) -> None:
    record = replace(end("second", epochs(2), tmp_path), data_sha256="e" * 64)
    values = (int(store.experiment_id), "e" * 36)
    with closing(psycopg2.connect(database.replace("+psycopg2", ""))) as first, ThreadPoolExecutor(1) as thread:
        cursor = first.cursor()
        columns = "dataset_uuid, experiment_id, name, digest, dataset_source_type, dataset_source"
        cursor.execute(f"INSERT INTO datasets ({columns}) VALUES ('first', %s, 'cifar10', %s, 'local', '{{}}')", values)
        second = thread.submit(sync, store, record)

        def waits() -> bool:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return cursor.fetchone() != (0,)

        wait_for(waits)
        first.commit()
        run = store.client.get_run(second.result().run_id)
    assert [one.dataset.digest for one in run.inputs.dataset_inputs] == ["e" * 36]
    assert run.info.status == "FINISHED"


def test_published_files_go_through_the_server(server: Shared, workspace: Path, store: Store, tmp_path: Path) -> None:
    run = find(store, "resnet20-1").info
    assert run.artifact_uri.startswith("mlflow-artifacts:/")
    behind = server.files / run.artifact_uri.removeprefix("mlflow-artifacts:/")
    for name, file in {
        "evidence/history.csv": workspace / "reports/runs/resnet20-1/history.csv",
        "figures/curves_resnet20.png": workspace / "reports/figures/curves_resnet20.png",
    }.items():
        read = Path(store.client.download_artifacts(run.run_id, name, str(tmp_path)))
        assert read.read_bytes() == (behind / name).read_bytes() == file.read_bytes()
    before = content(store)
    again = publish(workspace, lambda _: classifier())
    assert (again.created, again.completed, again.registered, again.problems) == ((), (), (), ())
    assert again.unchanged == ("plain20-1", "resnet20-1", "report")
    assert content(store) == before


def content(store: Store) -> list[dict[str, object]]:
    return [run.to_dictionary() for run in store.client.search_runs([store.experiment_id])]


@NEEDS_CHROME
def test_the_page_lists_the_runs(server: Shared, store: Store) -> None:
    with chrome() as browser:
        opens(browser, f"{server.url}/{address(store.experiment_id, TABLE)}")
        shown = sees(browser, "Group: resnet20", "Group: plain20", "matching runs", "plain20-1", "5.25")
    trained = store.client.search_runs([store.experiment_id], "tags.stage = 'train'")
    assert f"{len(trained)} matching runs" in shown


def test_only_pages_of_its_name_may_write(server: Shared) -> None:
    def status(host: str, origin: str) -> int:
        url, headers = f"{server.url}/api/2.0/mlflow/experiments/search", {"Host": host, "Origin": origin}
        return requests.post(url, json={"max_results": 1}, headers=headers, timeout=30).status_code

    assert status(NAME, f"https://{NAME}") == 200
    assert status(NAME, "https://evil.example") == status("evil.example", f"https://{NAME}") == 403


@pytest.fixture
def guard(server: Shared) -> Iterator[str]:
    """The address of what stands before the server and asks for a password."""
    expected = "Basic " + base64.b64encode(b"ada:right").decode()

    def asks(exchange: Exchange) -> None:
        if exchange.headers["Authorization"] == expected:
            exchange.passes()
        else:
            exchange.rfile.read(int(exchange.headers.get("Content-Length", 0)))
            exchange.wfile.write(b"HTTP/1.0 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

    proxy = Proxy(closed_port(), server)
    proxy.fault = asks
    yield f"http://127.0.0.1:{proxy.server_port}"
    proxy.shutdown()
    proxy.server_close()


def test_a_wrong_password_is_named(guard: str, workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TRACKING_URI": guard, "TRACKING_USERNAME": "ada", "TRACKING_PASSWORD": "right"}.items():
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    assert publish(workspace).unchanged == ("plain20-1", "resnet20-1", "report")
    for password in ("wrong", ""):
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        with pytest.raises(TrackingError, match=rf"{guard} cannot be used: .* 401 .*; set .*MLFLOW_TRACKING_PASSWORD"):
            publish(workspace)


def test_a_missing_driver_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://ada:secret@database/mlflow")
    with pytest.raises(TrackingError, match=r"//database/mlflow cannot be used: .*; install .*psycopg2-binary"):
        publish(workspace)

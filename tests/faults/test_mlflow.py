"""A small net trains for real (`killing.make_plan`) while MLflow's server, the way to it, or its file breaks."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from resnet_repro.tracking import TrackingError, connect, live, publish, show_evidence, store
from resnet_repro.tracking.live import LiveRun, is_gone, this_process
from resnet_repro.tracking.store import PATIENT, sync
from tracking_records import (
    Exchange,
    Server,
    Way,
    assert_published,
    await_end,
    epochs,
    execute,
    find,
    locked,
    read_only,
    start,
    train,
    wait_for,
)

AREA = "MLflow"
PROMISE = "training neither fails nor waits and warns once; `publish` leaves no gap, no duplicate and no open run"


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch):
    """And quicker: 0.2 s for 30 between attempts, so that an outage is as much shorter; 3 s for 10 in the end."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", *PATIENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(live, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(live, "CLOSE_SECONDS", 3.0)
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.5)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> bytes:
    """A database with MLflow's tables and nothing of ours; to build one takes seconds."""
    folder = tmp_path_factory.mktemp("tables")
    connect(folder)
    execute(folder / "mlflow.db", "DELETE FROM experiments WHERE name = 'resnet-repro'")
    return (folder / "mlflow.db").read_bytes()


@pytest.fixture
def file(tmp_path, tables, monkeypatch) -> Path:
    """A database in a folder of its own."""
    file = tmp_path / "store" / "mlflow.db"
    file.parent.mkdir()
    file.write_bytes(tables)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    return file


@pytest.fixture(scope="module")
def server(tmp_path_factory, tables):
    server = Server(tmp_path_factory.mktemp("server"), tables)
    server.start()
    with server.stack:
        yield server


@pytest.fixture
def way(server, monkeypatch):
    way = Way(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{way.port}")
    yield way
    way.close()


def assert_warned(said: str, *words: str) -> None:
    """One line for the user, and no traceback of MLflow's."""
    (line,) = said.splitlines()
    assert all(word in line for word in (*words, "The stage goes on; `resnet-repro publish` will add this run")), line
    assert "secret" not in line


def row(name: str, *values: object):
    return pytest.param(*values, marks=pytest.mark.fault(name, PROMISE), id=name)


@pytest.mark.parametrize(
    ("first", "seconds"),
    [
        row("the server is away when a training starts", [0], 0.5),
        row("the server is away for a second", range(1, 11), 1.0),
        row("the server is away for minutes", range(1, 11), 3.0),  # 15 times what is between two attempts
    ],
)
def test_a_server_that_comes_back(first, seconds, way, tmp_path, capsys, injected):
    for seed in range(injected.count(1, 10)):
        leaves_at = random.Random(seed).choice(first)

        def during(epoch, view, leaves_at=leaves_at):
            if epoch == leaves_at:
                way.close()
            if epoch == leaves_at + 1:
                wait_for(lambda: view.live._warned)
                time.sleep(seconds)
                way.open()
                wait_for(lambda: view.live._run_id is not None)  # it has all, and no other epoch had to end for that

        with injected():
            train(tmp_path, during)
            assert_warned(capsys.readouterr().err, f"http://127.0.0.1:{way.port}", "start MLflow's server")
            assert_published(way.server.database, tmp_path)


HTML, ERROR = b"HTTP/1.0 200 OK\r\n\r\n<html>Sign in</html>", b"HTTP/1.0 %d Error\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        row("the server is away for ever", None, "refused"),
        row("the server is slow", Exchange.slow, "no answer in time"),
        row("the server is out of connections", Exchange.deaf, "time"),
        row("the server answers with errors", Exchange.says(ERROR % 500), "500 error"),
        row("the server answers with errors", Exchange.says(ERROR % 503), "503 error"),
        row("the server answers with something else", Exchange.says(random.Random(0).randbytes(999)), "BadStatusLine"),
        row("the server answers with something else", Exchange.says(HTML), "valid JSON"),
        row("the connection is cut within an answer", Exchange.cut, "closed connection"),
        row("the connection is cut within an answer", Exchange.half, "IncompleteRead"),
    ],
)
def test_a_server_that_stays_broken(fault, said, way, tmp_path, capsys, injected):
    for breaks_at in random.Random(0).sample(range(1, 12), injected.count(1, 4)):

        def during(epoch, view, breaks_at=breaks_at):
            if epoch == breaks_at and fault is None:
                way.close()
            elif epoch == breaks_at:
                way.proxy.fault = fault

        with injected():
            await_end(train(tmp_path, during))
            url, remedy = f"http://127.0.0.1:{way.port}", "start MLflow's server"
            assert_warned(capsys.readouterr().err, url, remedy, said if fault else "")
            if fault is not Exchange.slow:
                with pytest.raises(TrackingError, match=rf"{url} cannot .*{said}.*{remedy}"):
                    publish(tmp_path)
            way.close()
            way.open()
            assert_published(way.server.database, tmp_path)


@pytest.mark.fault("the server is out of connections", PROMISE)
def test_an_interruption_and_an_evaluation_do_not_wait(way, tmp_path, capsys):
    train(tmp_path)
    way.proxy.fault = Exchange.deaf
    folder = tmp_path / "reports" / "runs" / "resnet-1"
    for call in (LiveRun.start(tmp_path, start("hung")).interrupt, partial(show_evidence, tmp_path, folder)):
        began = time.monotonic()
        call()
        assert time.monotonic() - began < live.CLOSE_SECONDS + 2
        assert_warned(capsys.readouterr().err, f"http://127.0.0.1:{way.port}", "no answer in time")


@pytest.mark.fault("the connection is cut within an answer", PROMISE)
def test_a_run_that_was_made_without_an_answer(way, tmp_path, monkeypatch):
    """The patient client of `publish` asks again, and so makes two runs of one."""
    way.close()
    await_end(train(tmp_path))
    way.open()
    for name in PATIENT:
        monkeypatch.delenv(name, raising=False)
    made = []

    def loses_the_first(exchange):
        making = exchange.path.endswith("/runs/create")
        made.extend([exchange] * making)
        (exchange.cut if making and len(made) == 1 else exchange.passes)()

    way.proxy.fault = loses_the_first
    assert publish(tmp_path).created == ("resnet-1",)
    assert len(made) == 2
    assert_published(way.server.database, tmp_path)


@pytest.mark.fault("the server is killed within a batch, and starts with an empty store", PROMISE)
def test_a_server_that_starts_over(way, tmp_path, capsys, injected):
    server = way.server
    for empty in (True, False, True, False)[: injected.count(1, 4)]:

        def dies(exchange):
            if exchange.path.endswith("/log-batch"):
                threading.Timer(0.005, server.kill).start()
            exchange.passes()

        def during(epoch, view, empty=empty, dies=dies):
            if epoch == 4:
                wait_for(lambda: view.live._run_id)
                way.proxy.fault = dies
            if epoch == 6:
                wait_for(lambda: view.live._warned)
                way.proxy.fault = Exchange.passes
                server.start(empty)

        with injected():
            train(tmp_path, during)
            assert_warned(capsys.readouterr().err, f"http://127.0.0.1:{way.port}")
            assert_published(server.database, tmp_path)


def until_moved_away(change):
    @contextmanager
    def broken(file):
        change(file)
        yield
        file.rename(file.with_suffix(".broken"))

    return broken


MOVE = "move it away"
NEWER = "UPDATE alembic_version SET version_num = 'ffffffffffff'"


@pytest.mark.parametrize(
    ("broken", "breaks_at", "said", "remedy"),
    [
        row("the file is locked by another program", locked, 0, "database is locked", "fuser FILE"),
        row("the file is locked by another program", locked, 5, "database is locked", "fuser FILE"),
        row("the file or its folder is read-only", read_only, 0, "readonly database", "let it"),
        row("the file or its folder is read-only", lambda file: read_only(file.parent), 0, "readonly", "let it"),
        row("the file is damaged", until_moved_away(lambda file: os.truncate(file, 500_000)), 0, "malformed", MOVE),
        row("the file is a folder", until_moved_away(lambda file: (file.unlink(), file.mkdir())), 0, "a folder", MOVE),
        row("the file is of a newer MLflow", until_moved_away(lambda file: execute(file, NEWER)), 0, "ffff", "another"),
    ],
)
def test_a_broken_file(broken, breaks_at, said, remedy, file, tmp_path, capsys, monkeypatch):
    breaking = broken(file)

    def during(epoch, view):
        if epoch == breaks_at:
            wait_for(lambda: epoch == 0 or view.live._run_id)
            breaking.__enter__()

    view = train(tmp_path, during)
    assert_warned(capsys.readouterr().err, str(file), said, remedy)
    with pytest.raises(TrackingError, match=rf"{file}.*{said}.*{remedy}|{file} {said}.*{remedy}"):
        publish(tmp_path)
    breaking.__exit__(None, None, None)
    await_end(view)
    # a new process would open the file anew; MLflow keeps its connections by this address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file.parent}/./{file.name}")
    assert_published(file, tmp_path)


@pytest.mark.fault("the file is damaged", PROMISE)
def test_damage_anywhere(file, tmp_path, tables, injected):
    size, draw = 4096, random.Random(0)
    for page in draw.sample(range(len(tables) // size), injected.count(10, len(tables) // size)):
        before, after = tables[: page * size], tables[(page + 1) * size :]
        for content in (before + b"cut" * 200, before + draw.randbytes(size) + after):
            file.write_bytes(content)
            with injected(), pytest.raises(TrackingError, match=f"{file}: .*damaged: move it away.*publish"):
                connect(tmp_path)


@pytest.mark.fault("the store was made in another folder", "it is refused, with what to do")
def test_a_moved_store(tmp_path, tables):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "mlflow.db").write_bytes(tables)
    connect(here)
    shutil.copytree(here, there)
    with pytest.raises(TrackingError, match=f"{there}/mlflow.db was made in another .*{here}/mlartifacts: move it"):
        connect(there)


@pytest.mark.fault("a stopped process holds the lock of the store", "the others do not wait for ever, and say why")
def test_a_lock_that_is_held(file, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.5)
    lock = tmp_path / "mlflow.db.lock"
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=-1, stdout=-1) as holder:
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(TrackingError, match=f"{lock} was locked for .*another program.*fuser"):
            connect(tmp_path)
        holder.kill()
    connect(tmp_path)


WRITERS = """
import multiprocessing, pathlib, sys
from resnet_repro.tracking import connect, store
import mlflow.store.tracking.sqlalchemy_store
fork = multiprocessing.get_context("fork")
writers = [fork.Process(target=connect, args=[pathlib.Path(sys.argv[1])]) for _ in range(8)]
for writer in writers: writer.start()
for writer in writers: writer.join()
sys.exit(max(abs(writer.exitcode) for writer in writers))
"""


@pytest.mark.fault("eight processes write to a new store at once", "one makes the tables, and none fails or complains")
def test_first_use_by_many_processes_at_once(tmp_path, injected):
    for i in range(injected.count(1, 5)):
        workspace = tmp_path / str(i)
        workspace.mkdir()
        with injected(8):
            done = subprocess.run([sys.executable, "-c", WRITERS, str(workspace)], stderr=-1, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            assert sorted(path.name for path in workspace.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
            names = execute(workspace / "mlflow.db", "SELECT name FROM experiments")
            assert names.count(("resnet-repro",)) == 1


CLOSED = "`publish` ends its run as KILLED and says why; a run that lives on is left, or is RUNNING again"


@pytest.mark.fault("a training is killed while its run is RUNNING", CLOSED)
def test_runs_of_dead_processes(file, tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        of_child = f"{socket.gethostname()} {child.pid} {psutil.Process(child.pid).create_time():.2f}"
        assert not is_gone(of_child)
        child.kill()
    assert is_gone(of_child)
    opened = connect(tmp_path)
    for uid, process in {"dead": of_child, "alive": this_process()}.items():
        sync(opened, replace(start(uid), tags={**start(uid).tags, "process": process}))
    assert publish(tmp_path).closed == ("resnet20-1",)
    assert find(opened, "dead").info.status == "KILLED"
    assert "is gone" in find(opened, "dead").data.tags["failure"]
    assert find(opened, "alive").info.status == "RUNNING"


HOSTS = {  # days since the process began and since its last epoch, seconds of that epoch, and whether it is given up
    "silent": (9.0, 1.1, 10.0, True),
    "heard": (9.0, 0.9, 10.0, False),
    "long epochs": (9.0, 1.1, 7200.0, False),
    "resumed": (0.5, 5.0, 10.0, False),
    "no epoch yet": (0.9, None, 0.0, False),
    "no epoch": (1.1, None, 0.0, True),
}


@pytest.mark.fault("another host is silent while its run is RUNNING", CLOSED)
def test_runs_of_silent_hosts(file, tmp_path):
    opened, now = connect(tmp_path), time.time()
    for uid, (began, ended, seconds, _) in HOSTS.items():
        rows = [replace(row, finished_at=now - 86400 * ended, seconds=seconds) for row in epochs(1) if ended]
        process = f"elsewhere 1 {now - 86400 * began:.2f}"
        sync(opened, replace(start(uid, rows), tags={**start(uid).tags, "process": process}))
    publish(tmp_path)
    for uid, (*_, given_up) in HOSTS.items():
        run = find(opened, uid)
        assert run.info.status == ("KILLED" if given_up else "RUNNING"), uid
        assert ("nothing was heard from elsewhere since" in run.data.tags.get("failure", "")) == given_up


@pytest.mark.fault("another host is silent while its run is RUNNING", CLOSED)
def test_a_run_that_was_taken_for_dead(file, tmp_path):
    running = LiveRun.start(tmp_path, start("lives"))
    wait_for(lambda: running._run_id)
    opened = connect(tmp_path)
    opened.client.set_tag(running._run_id, "process", "elsewhere 1 1.00")
    assert publish(tmp_path).closed == ("resnet20-1",)
    running.log_epochs(epochs(2))
    wait_for(lambda: find(opened, "lives").info.status == "RUNNING")
    assert find(opened, "lives").data.tags["process"] == this_process()
    assert "failure" not in find(opened, "lives").data.tags
    running.interrupt()
    assert find(opened, "lives").info.status == "KILLED"

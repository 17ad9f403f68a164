"""`resnet-repro ui` as real processes: who can reach it, and what is left when it goes."""

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from resnet_repro.tracking import TrackingError, connect, serve_ui
from tracking_records import closed_port, wait_for

AREA = "Servers"
REACH = "it listens on 127.0.0.1 alone, says so, and answers 403 to a page or a name of another host"
LET_IN = "it warns that there is no password, and answers 403 to a page or a name of another host"

# a shell without job control starts background commands with SIGINT ignored, and so this process may be
CODE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from resnet_repro.cli import app
app(["ui", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("a workspace")
    (workspace / "params.yaml").touch()  # which a repository's root has
    connect(workspace)
    return workspace


class Ui:
    """The command, when it said `lines` lines: what it published, and where it listens."""

    def __init__(self, workspace: Path, *arguments: str, lines: int = 2) -> None:
        self.port = closed_port()
        command = [sys.executable, "-c", CODE, "--port", str(self.port), *arguments]
        self.process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=workspace)
        self.said = [self.process.stdout.readline() for _ in range(lines)]

    def family(self) -> list[psutil.Process]:
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def listens_on(self) -> set[str]:
        connections = [connection for process in self.family() for connection in process.net_connections("inet")]
        return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}

    def status(self, host: str = "127.0.0.1", origin: str = "") -> int:
        """Of a request that a page could send: it is JSON, and a POST."""
        server = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Host": host if ":" in host else f"{host}:{self.port}", "Content-Type": "application/json"}
        headers |= {"Origin": origin} if origin else {}
        server.request("POST", "/api/2.0/mlflow/experiments/search", json.dumps({"max_results": 1}), headers)
        return server.getresponse().status

    def ends(self, signum: int) -> tuple[int, str, str]:
        """The exit status and what else was said, when nothing is left."""
        family = self.family()
        self.process.send_signal(signum)
        rest, errors = self.process.communicate(timeout=60)
        wait_for(lambda: not any(process.is_running() and process.status() != "zombie" for process in family))
        with socket.create_server(("127.0.0.1", self.port)):
            return self.process.returncode, rest, errors


FOREIGN = ("evil.example", "192.168.1.5", "10.0.0.1", "127.0.0.1.evil.example", "127.0.0.1:1", "localhost:1")


@pytest.mark.fault("another host, or a page of another host, asks `resnet-repro ui`", REACH)
def test_only_this_machine_gets_in(workspace, injected):
    ui = Ui(workspace)
    assert ui.said[1] == f"MLflow's UI: http://127.0.0.1:{ui.port} (Ctrl-C stops it)\n"
    assert ui.listens_on() == {"127.0.0.1"}
    assert {ui.status(), ui.status("localhost"), ui.status(origin=f"http://127.0.0.1:{ui.port}")} == {200}
    for host in FOREIGN:
        with injected():
            assert ui.status(host) == 403
    for origin in ("null", *(f"http://{host}:{ui.port}" for host in FOREIGN[:4])):
        with injected():
            assert ui.status(origin=origin) == 403
    with pytest.raises(TrackingError, match=rf"port {ui.port} is taken by another.*is free: make ui PORT="):
        serve_ui(workspace, ui.port)
    assert ui.ends(signal.SIGINT) == (0, "", "")


@pytest.mark.fault("another host, or a page of another host, asks `resnet-repro ui --host 0.0.0.0`", LET_IN)
def test_others_get_in_when_they_are_let_in(workspace, injected):
    ui, name = Ui(workspace, "--host", "0.0.0.0"), socket.gethostname()
    assert ui.said[1] == f"MLflow's UI: http://0.0.0.0:{ui.port} (Ctrl-C stops it)\n"
    assert ui.listens_on() == {"0.0.0.0"}
    assert {ui.status(), ui.status(name), ui.status(name, origin=f"http://{name}:{ui.port}")} == {200}
    for host in FOREIGN[3:]:
        with injected():
            assert ui.status(host) == 403
    with injected():
        assert ui.status(origin="http://evil.example") == 403
    status, rest, errors = ui.ends(signal.SIGTERM)
    assert (status, rest) == (0, "")
    assert f"no password: whoever reaches port {ui.port} of this machine can read, change and delete" in errors


@pytest.mark.fault("`resnet-repro ui` is killed with SIGKILL", "no process is left, and the port is free")
def test_a_killed_ui_leaves_nothing(workspace, injected):
    for attempt in range(injected.count(1, 5)):
        ui = Ui(workspace, lines=1 + attempt % 2)
        with injected():
            time.sleep(random.Random(attempt).uniform(1, 4))  # while the server starts, or runs
            assert ui.ends(signal.SIGKILL)[0] == -signal.SIGKILL


@pytest.mark.fault("the address of `resnet-repro ui` is not this machine's", "it says so, and what to do")
def test_a_host_that_is_not_here(workspace):
    with pytest.raises(TrackingError, match=r"cannot listen on 192.0.2.1:5000: .*choose an address of this machine"):
        serve_ui(workspace, host="192.0.2.1")  # reserved for documentation, RFC 5737

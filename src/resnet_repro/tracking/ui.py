"""MLflow's UI with every run in it."""

import errno
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from resnet_repro.tracking.publish import publish
from resnet_repro.tracking.store import TrackingError, root_of, shown, tracking_uri

if TYPE_CHECKING:
    from torch.nn import Module

HOST, EVERYWHERE = "127.0.0.1", "0.0.0.0"
START_SECONDS = 120.0
STOP_WITH = """read _; kill -s TERM -- -$1
for _ in 1 2 3 4 5 6 7 8 9 10; do kill -s 0 -- -$1 || exit; sleep 1; done; kill -s KILL -- -$1"""


def serve_ui(
    workspace: Path,
    port: int = 5000,
    load_classifier: "Callable[[Path], Module] | None" = None,
    host: str = HOST,
) -> int:
    """Publish, then serve MLflow's UI on `host` until Ctrl-C. Returns the exit status.

    Raises:
        TrackingError: the port is taken, the host is not this machine, or the server does not start.
    """
    uri = tracking_uri(workspace)
    local = not uri.startswith(("http:", "https:", "databricks"))
    if local and not _is_free(host, port):
        free = next((p for p in range(port + 1, 65536) if _is_free(host, p)), None)
        raise TrackingError(f"port {port} is taken by another program; port {free} is free: make ui PORT={free}")
    print(publish(workspace, load_classifier), flush=True)
    if not local:
        print(f"MLflow's UI is at {shown(uri)}")
        return 0
    with tempfile.TemporaryFile() as log, run_server(workspace, uri, host, port, log) as server:
        await_health(server, HOST if host == EVERYWHERE else host, port, log)
        print(f"MLflow's UI: http://{host}:{port} (Ctrl-C stops it)", flush=True)
        if not ipaddress.ip_address(socket.gethostbyname(host)).is_loopback:
            warning = f"it has no password: whoever reaches port {port} of this machine can read, change and delete"
            print(f"Warning: {warning} every run", file=sys.stderr, flush=True)
        server.wait()
        raise TrackingError(f"MLflow's server stopped:\n{_tail(log)}")
    return 0


@contextmanager
def run_server(workspace: Path, uri: str, host: str, port: int, log: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """One worker and no job runners (MLflow's defaults are ten processes of 230 MB each), until Ctrl-C.

    A shell stops the server when its end of a pipe is closed, which the kernel does even if this process is killed.
    """
    root = root_of(workspace)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--artifacts-destination", (root / "mlartifacts").as_uri()]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    names = _names(host, port)  # MLflow's own defaults let in every private address; it takes a page's host for foreign
    command += ["--allowed-hosts", ",".join(names), "--cors-allowed-origins", ",".join(f"http://{n}" for n in names)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        command, cwd=root, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
    )
    stop = ["sh", "-c", STOP_WITH, "sh", str(server.pid)]
    stopper = subprocess.Popen(stop, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield server
    except KeyboardInterrupt:
        pass
    finally:
        assert stopper.stdin is not None
        stopper.stdin.close()
        server.wait()
        stopper.wait()
        signal.signal(signal.SIGTERM, before)


def _names(host: str, port: int) -> list[str]:
    """How a browser may call this server."""
    names = {"localhost", HOST, host}
    if host == EVERYWHERE:
        names |= {socket.gethostname(), socket.getfqdn()}
        names |= {a.address for card in psutil.net_if_addrs().values() for a in card if a.family == socket.AF_INET}
    return sorted(f"{name}:{port}".removesuffix(":80") for name in names)  # as a browser leaves it out


def await_health(server: "subprocess.Popen[bytes]", host: str, port: int, log: IO[bytes]) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), direct.open(f"http://{host}:{port}/health", timeout=5):
            return
        time.sleep(0.2)
    raise TrackingError(f"MLflow's server did not start:\n{_tail(log)}")


def _tail(log: IO[bytes], lines: int = 15) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            remedy = "choose an address of this machine, and a port above 1023"
            raise TrackingError(f"MLflow's UI cannot listen on {host}:{port}: {error.strerror}; {remedy}") from error
    return True

"""MLflow's UI with every run in it."""

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
from types import FrameType
from typing import IO, TYPE_CHECKING

from resnet_repro.tracking.publish import publish
from resnet_repro.tracking.store import TrackingError, root_of, shown, tracking_uri

if TYPE_CHECKING:
    from torch.nn import Module

HOST = "127.0.0.1"
START_SECONDS = 120.0


def serve_ui(workspace: Path, port: int = 5000, load_classifier: "Callable[[Path], Module] | None" = None) -> int:
    """Publish, then serve MLflow's UI on 127.0.0.1 until Ctrl-C. Returns the exit status.

    Raises:
        TrackingError: the port is taken, or the server does not start.
    """
    uri = tracking_uri(workspace)
    local = not uri.startswith(("http:", "https:", "databricks"))
    if local and not _is_free(port):
        free = next((p for p in range(port + 1, 65536) if _is_free(p)), None)
        raise TrackingError(f"port {port} is taken by another program; port {free} is free: make ui PORT={free}")
    print(publish(workspace, load_classifier), flush=True)
    if not local:
        print(f"MLflow's UI is at {shown(uri)}")
        return 0
    with tempfile.TemporaryFile() as log, _server(workspace, uri, port, log) as server:
        _await_health(server, port, log)
        print(f"MLflow's UI: http://{HOST}:{port} (Ctrl-C stops it)", flush=True)
        server.wait()
        raise TrackingError(f"MLflow's server stopped:\n{_tail(log)}")
    return 0


@contextmanager
def _server(workspace: Path, uri: str, port: int, log: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """One worker and no job runners (MLflow's defaults are ten processes of 230 MB each), until Ctrl-C."""
    root = root_of(workspace)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--artifacts-destination", (root / "mlartifacts").as_uri()]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        command, cwd=root, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
    )
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield server
    except KeyboardInterrupt:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _await_health(server: "subprocess.Popen[bytes]", port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
            return
        time.sleep(0.2)
    raise TrackingError(f"MLflow's server did not start:\n{_tail(log)}")


def _tail(log: IO[bytes], lines: int = 15) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False

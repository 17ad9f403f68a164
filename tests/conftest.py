"""One thread, so that sums are made in one order; no deadlines, since a test's first example warms up. What the tests
of several folders share: the handwritten digits as an archive, a server, the demo, and the count of faults."""

import fcntl
import signal
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from killing import REPOSITORY
from reliability import INJECTIONS, PROPERTY, FaultTable, Injections, row_of
from resnet_repro.data.archive import read_members
from resnet_repro.data.digits import write_digits_archive
from resnet_repro.demo import run_demo
from sources import Answer, Digits, Server

torch.set_num_threads(1)
# what a shell runs in the background ignores Ctrl-C, and so would all that the tests start and stop by it
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    path = tmp_path_factory.mktemp("digits") / "digits.tar.gz"
    sha256 = write_digits_archive(path)
    with path.open("rb") as stream:
        return Digits(path, sha256, dict(read_members(stream, sha256)))


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo's clone, up to date: quick where `make demo` ran before. For one of pytest-xdist's groups, `demo`."""
    status = ("git", "status", "--porcelain")
    before = subprocess.run(status, cwd=REPOSITORY, capture_output=True, check=True).stdout
    (REPOSITORY / ".cache").mkdir(exist_ok=True)
    with (REPOSITORY / ".cache/demo.lock").open("w") as lock:  # each of the workers that run tests has a session
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_demo(REPOSITORY)
    after = subprocess.run(status, cwd=REPOSITORY, capture_output=True, check=True).stdout
    assert after == before, "the demo must leave the repository as it is"
    return REPOSITORY / ".demo"


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running: list[ThreadingHTTPServer] = []

    def start(*answers: Answer) -> Server:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(dict(self.headers))
                server.answers[min(len(server.requests), len(server.answers)) - 1](self)

            def log_message(self, *_: object) -> None:
                pass

        httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server = Server(f"http://127.0.0.1:{httpd.server_port}/cifar-10-python.tar.gz", list(answers))
        running.append(httpd)
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for httpd in running:
        httpd.shutdown()
        httpd.server_close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="inject faults as often as reports/reliability.md says")
    parser.addoption("--reliability", type=Path, metavar="FILE", help="write the table of faults to FILE")


@pytest.fixture
def injected(request: pytest.FixtureRequest) -> Injections:
    """To count with, in a test that injects a fault more than once."""
    injections = Injections(request.config.getoption("--full"))
    request.node.stash[INJECTIONS] = injections
    return injections


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--reliability")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FaultTable(path, config.getoption("--full")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test's row of the table travels in its report, also out of pytest-xdist's processes."""
    report = yield
    mark = item.get_closest_marker("fault")
    if mark is not None and report.when == "call":
        injections = item.stash.get(INJECTIONS, Injections(full=False))
        report.user_properties.append((PROPERTY, row_of(item.module.AREA, *mark.args, injections, report.passed)))
    return report

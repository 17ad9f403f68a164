"""The handwritten digits as an archive, and a server."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sources import Answer, Digits, Server

from resnet_repro.data.archive import read_members
from resnet_repro.data.digits import write_digits_archive


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    path = tmp_path_factory.mktemp("digits") / "digits.tar.gz"
    sha256 = write_digits_archive(path)
    with path.open("rb") as stream:
        return Digits(path, sha256, dict(read_members(stream, sha256)))


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

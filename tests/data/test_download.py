import errno
import fcntl
import gzip
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from sources import says, sends

from resnet_repro.data import download as module
from resnet_repro.data.download import SourceError, download
from resnet_repro.errors import DataError

CONTENT = gzip.compress(random.Random(0).randbytes(400_000), mtime=0)
OTHER = gzip.compress(random.Random(1).randbytes(400_000), mtime=0)
AT_ONCE = (0.0, 0.0, 0.0)


def write_until(limit: int, error: BaseException) -> Callable[[BinaryIO, bytes], None]:
    def write(file: BinaryIO, chunk: bytes) -> None:
        if file.seek(0, 2) >= limit:
            raise error
        file.write(chunk)

    return write


def test_a_download_is_kept(serve, tmp_path):
    server = serve(sends(CONTENT))
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_cut_download_goes_on_where_it_stopped(serve, tmp_path):
    server = serve(sends(CONTENT, cut=100_000), sends(CONTENT))
    assert download(server.url, tmp_path, AT_ONCE).read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=100000-"
    assert server.requests[1]["If-Range"] == '"1"'


def test_so_does_the_one_of_a_process_that_ended(serve, tmp_path):
    server = serve(sends(CONTENT, cut=100_000), sends(CONTENT))
    with pytest.raises(SourceError, match="tried 1 times"):
        download(server.url, tmp_path, pauses=())
    assert download(server.url, tmp_path, pauses=()).read_bytes() == CONTENT
    assert "Range" in server.requests[1]


def test_a_server_without_ranges_starts_over(serve, tmp_path):
    server = serve(sends(CONTENT, cut=100_000), sends(CONTENT, ranges=False))
    assert download(server.url, tmp_path, AT_ONCE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "changed",
    [
        sends(OTHER, etag='"2"'),
        sends(OTHER, etag='"2"', checks=False),  # ignores If-Range
        sends(OTHER + b"more", checks=False),  # another length under the same ETag
        sends(OTHER, etag=None, checks=False),
    ],
)
def test_two_files_are_never_mixed(serve, tmp_path, changed):
    server = serve(sends(CONTENT, cut=100_000), changed)
    assert download(server.url, tmp_path, AT_ONCE).read_bytes() in (OTHER, OTHER + b"more")


def test_the_length_is_enough_to_go_on(serve, tmp_path):
    server = serve(sends(CONTENT, etag=None, cut=100_000), sends(CONTENT, etag=None))
    assert download(server.url, tmp_path, AT_ONCE).read_bytes() == CONTENT
    assert "Range" in server.requests[1]


def test_without_length_and_etag_it_starts_over(serve, tmp_path, monkeypatch):
    server = serve(sends(CONTENT, etag=None, length=False))
    with monkeypatch.context() as interrupted:
        interrupted.setattr(module, "_write", write_until(100_000, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            download(server.url, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.part")) > 0
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert "Range" not in server.requests[1]


def test_a_whole_part_needs_no_request(serve, tmp_path):
    server = serve(sends(CONTENT, cut=100_000))
    with pytest.raises(SourceError):
        download(server.url, tmp_path, pauses=())
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(CONTENT)
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_part_longer_than_the_file_is_dropped(serve, tmp_path):
    server = serve(sends(CONTENT, cut=100_000), sends(CONTENT))
    with pytest.raises(SourceError):
        download(server.url, tmp_path, pauses=())
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(CONTENT + CONTENT)
    assert download(server.url, tmp_path, AT_ONCE).read_bytes() == CONTENT  # after a 416


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_in_trouble_is_asked_again(serve, tmp_path, status):
    server = serve(says(status), says(status), sends(CONTENT))
    assert download(server.url, tmp_path, AT_ONCE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "reason", "num_requests"),
    [
        (says(404), "404", 1),
        (says(200, "<html>moved</html>"), "text/html, not a gzip archive", 1),
        (says(200), "empty", 4),
        (says(500), "500", 4),
        (says(200, "x", **{"Content-Length": str(1 << 40)}), "too much", 1),
        (says(302, Location="/again"), "redirects", 31),
    ],
)
def test_a_server_without_the_archive_is_given_up(serve, tmp_path, answer, reason, num_requests):
    server = serve(answer)
    with pytest.raises(SourceError, match=reason):
        download(server.url, tmp_path, AT_ONCE)
    assert len(server.requests) == num_requests
    assert not list(tmp_path.glob("*.tar.gz"))


def test_tries_are_counted_anew_after_progress(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SOME_PROGRESS", 50_000)
    server = serve(*[sends(CONTENT, cut=50_000)] * 8, sends(CONTENT))
    assert download(server.url, tmp_path, pauses=(0.0,)).read_bytes() == CONTENT
    assert len(server.requests) == 9


def test_an_endless_answer_ends(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 200_000)
    with pytest.raises(SourceError, match="sends more than"):
        download(serve(sends(CONTENT, length=False)).url, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.part")) == 0


def test_no_server_at_all(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        with pytest.raises(SourceError, match=r"Connection refused \(tried 4 times\)"):
            download(url, tmp_path, AT_ONCE)


def test_a_stalling_server_times_out(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "READ_SECONDS", 0.2)
    server = serve(sends(CONTENT, cut=100_000), lambda handler: handler.rfile.read(1))
    with pytest.raises(SourceError, match="timed out"):
        download(server.url, tmp_path, pauses=(0.0,))


def test_a_disk_too_small_is_said_at_once(serve, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=f"{tmp_path}.*full.*{len(CONTENT):,} more bytes") as caught:
        download(serve(sends(CONTENT)).url, tmp_path)
    assert not isinstance(caught.value, SourceError)  # another mirror would not help


def test_a_disk_that_fills_is_said_and_loses_nothing(serve, tmp_path, monkeypatch):
    server = serve(sends(CONTENT))

    with monkeypatch.context() as full:
        full.setattr(module, "_write", write_until(100_000, OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(DataError, match="full"):
            download(server.url, tmp_path)
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert "Range" in server.requests[1]


def test_one_process_downloads_a_url_at_a_time(serve, tmp_path):
    server = serve(sends(CONTENT))
    download(server.url, tmp_path).unlink()
    (lock,) = tmp_path.glob("*.lock")
    with Path(lock).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process"):
            download(server.url, tmp_path)


def test_progress_in_plain_lines(serve, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "PLAIN_LINE_SECONDS", 0)
    download(serve(sends(CONTENT)).url, tmp_path)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("CIFAR-10: 0.4 of 0.4 MB (100%), ")
    assert "MB/s" in last
    assert "s left" in last

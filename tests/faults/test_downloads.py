import gzip
import random
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path

import pytest

import killing
from reliability import Injections
from resnet_repro.data import download as module
from resnet_repro.data.archive import fetch_members
from resnet_repro.data.download import SourceError
from resnet_repro.errors import DataError
from resnet_repro.params import Data
from sources import AT_ONCE, CONTENT, OTHER, Answer, Digits, entries_of, get, kept, says, sends, tar_gz

AREA = "Downloads"
GOES_ON = "the download goes on where it stopped and gives the same bytes"
MIXED = "a mixture is found by the server's headers or the members' digests, and dropped"
NEXT = "the message gives the reason, nothing of it is kept, and the next mirror is used"

CHUNK = module.CHUNK_BYTES


def bytes_in(folder: Path) -> int:
    """Downloaded, whole or in part."""
    with suppress(FileNotFoundError):  # renamed just now
        return sum(path.stat().st_size for path in folder.rglob("*.tar.gz*") if path.suffix in (".gz", ".part"))
    return bytes_in(folder)


def fetch(urls: Sequence[str], sha256: dict[str, str], folder: Path, chunk: int = CHUNK) -> None:
    """What `fetch` does, also in a process of its own."""
    module.CHUNK_BYTES = chunk
    fetch_members(Data(urls=tuple(urls), members=sha256), folder / "members", None, folder / "cache", AT_ONCE)


@pytest.fixture
def arrives(serve, tmp_path: Path, injected: Injections) -> Callable[..., None]:
    """Downloads CONTENT from a server that gives these answers, asked for these ranges."""
    server = serve(says(404))

    def check(*answers: Answer, ranges: Sequence[int | None] = (), times: int = 1) -> None:
        server.answers[:] = answers
        server.requests.clear()
        with injected(times):
            assert get(server.url, tmp_path / str(injected.injected)) == CONTENT
            asked = [request.get("Range") for request in server.requests[1:]]
            assert asked == [begin and f"bytes={begin}-" for begin in ranges]

    return check


@pytest.fixture
def passed_over(serve, digits: Digits, tmp_path: Path, capsys, injected: Injections) -> Callable[..., None]:
    """Fetches from a mirror that gives these answers, asked so often, and then from a good one."""
    bad, good = serve(says(404)), serve(sends(digits.path.read_bytes()))

    def check(reason: str, *answers: Answer, asked: int = 1) -> None:
        shutil.rmtree(tmp_path / "fetch", ignore_errors=True)
        bad.answers[:] = answers
        bad.requests.clear()
        with injected():
            fetch([bad.url, good.url], digits.sha256, tmp_path / "fetch")
            assert kept(tmp_path / "fetch/members") == digits.members
            assert re.search(rf"passed over +{re.escape(bad.url)}: .*{reason}", capsys.readouterr().err)
            assert len(list((tmp_path / "fetch").rglob("*.tar.gz"))) == 1
            assert len(bad.requests) == asked

    return check


@pytest.mark.fault("the connection is cut", GOES_ON)
def test_a_cut_download_goes_on_where_it_stopped(arrives, injected):
    rng = random.Random(0)
    for _ in range(injected.count(10, 400)):
        cuts = sorted(rng.sample(range(1, len(CONTENT)), 3))
        answers = [sends(CONTENT, cut=end - begin) for begin, end in pairwise([0, *cuts])]
        arrives(*answers, sends(CONTENT), ranges=cuts, times=3)


@pytest.mark.fault("the server stalls", f"after a minute {GOES_ON}, or the next mirror is used")
def test_a_stalling_server_times_out(arrives, passed_over, monkeypatch, injected):
    monkeypatch.setattr(module, "READ_SECONDS", 0.1)
    rng = random.Random(0)

    def stalls(cut: int | None) -> Answer:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            if cut is not None:  # else not even a header
                sends(CONTENT, cut=cut)(handler)
            handler.rfile.read(1)

        return answer

    for _ in range(injected.count(3, 60)):
        begin = CHUNK * rng.randrange(1, len(CONTENT) // CHUNK)
        arrives(stalls(begin), stalls(None), stalls(0), sends(CONTENT), ranges=[begin] * 3, times=3)
    passed_over(r"timed out.* \(tried 4 times\)", stalls(0), asked=4)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
@pytest.mark.fault("the server answers 408, 429, 500 or 503", "it is asked again, and then the next mirror")
def test_a_server_in_trouble_is_asked_again(arrives, passed_over, status):
    arrives(sends(CONTENT, cut=9), says(status), says(status), sends(CONTENT), ranges=[9] * 3, times=2)
    passed_over(rf"HTTP status {status} .*\(tried 4 times\)", says(status), asked=4)


@pytest.mark.fault("the server ignores Range", "the download starts over and gives the same bytes")
def test_a_server_without_ranges_starts_over(arrives, injected):
    rng = random.Random(0)
    for _ in range(injected.count(5, 200)):
        cut = rng.randrange(1, len(CONTENT))
        arrives(sends(CONTENT, cut=cut), sends(CONTENT, ranges=False), ranges=[cut])


@pytest.mark.parametrize(
    ("first", "second", "ranges"),
    [
        (sends(OTHER, cut=99_999, etag='"2"'), sends(CONTENT), [99_999]),
        (sends(OTHER, cut=99_999, etag='"2"'), sends(CONTENT, checks=False), [99_999, None]),  # ignores If-Range
        (sends(OTHER + b"more", cut=99_999), sends(CONTENT), [99_999, None]),  # another length under the same ETag
        (sends(OTHER, cut=99_999, etag=None), sends(CONTENT), [99_999, None]),
    ],
)
@pytest.mark.fault("Range is answered with another file's bytes", MIXED)
def test_two_files_are_never_mixed(arrives, first, second, ranges):
    arrives(first, second, ranges=ranges)


@pytest.mark.fault("Range is answered with another file's bytes", MIXED)
def test_a_mixture_that_no_header_betrays(digits, passed_over, injected):
    whole, rng = digits.path.read_bytes(), random.Random(0)
    for _ in range(injected.count(3, 100)):
        mixed = sends(whole, cut=rng.randrange(1, len(whole) // 2)), sends(rng.randbytes(len(whole)))
        passed_over("(damaged|is not the file)", *mixed, asked=2)


@pytest.mark.fault("an HTML page, or nothing, for the archive", NEXT)
def test_a_page_is_no_archive(passed_over, serve, tmp_path, injected):
    page = says(200, "<html>log in</html>")
    passed_over("sends text/html, not cifar-10-python.tar.gz", page)
    passed_over(r"the answer is empty \(tried 4 times\)", says(200), asked=4)
    passed_over("HTTP status 404 Not Found", says(404))
    server = serve(sends(CONTENT, cut=300_000), page, sends(CONTENT))
    with injected():  # a hotel's network: what is there stays
        with pytest.raises(SourceError, match="text/html"):
            get(server.url, tmp_path)
        assert get(server.url, tmp_path) == CONTENT
        assert server.requests[2]["Range"] == "bytes=300000-"


@pytest.mark.fault("another content in a sound archive", NEXT)
def test_wrong_bytes(digits, passed_over):
    for name, content in digits.members.items():
        altered = tar_gz(entries_of(digits.members | {name: content[:-1] + b"!"}))
        passed_over(rf"{name} is not the file of params\.yaml: sha256 \w{{64}}, expected", sends(altered))


@pytest.mark.fault("a redirect in a circle, or to what is no web address", NEXT)
def test_redirects(passed_over):
    passed_over("redirects", says(302, Location="/again"), asked=31)
    for target in ("file:///etc/hostname", "ftp://127.0.0.1/x", "http://["):
        passed_over("", says(302, Location=target))


@pytest.mark.fault("a false Content-Length", NEXT)
def test_lies_about_the_length(digits, passed_over, monkeypatch, injected):
    monkeypatch.setattr(module, "SOME_PROGRESS", 50_000)  # a whole download is no progress if it is lost again
    whole, rng = digits.path.read_bytes(), random.Random(0)
    for _ in range(injected.count(2, 50)):
        passed_over(r"\(tried 4 times\)", sends(whole, lie=rng.randrange(1, 100_000)), asked=4)
        passed_over("truncated", sends(whole, lie=-rng.randrange(1, 100_000)))
    passed_over("sends 1,099,511,627,776 bytes, too much", sends(whole, lie=(1 << 40) - len(whole)))


@pytest.mark.fault("an answer without end", NEXT)
def test_an_endless_answer_ends(serve, tmp_path):
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                handler.wfile.write(CONTENT)

    with pytest.raises(SourceError, match=r"sends more than 1,048,576 bytes, too much for data\.tar\.gz"):
        get(serve(endless).url, tmp_path)
    assert bytes_in(tmp_path) == 0


@pytest.mark.fault("an answer that is no HTTP", "the message is one printable line; the next answer gives the file")
def test_garbled_headers(serve, tmp_path, capsys, injected):
    small = gzip.compress(bytes(2000))
    server, rng = serve(says(404)), random.Random(0)
    valid = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: "1"\r\nContent-Type: x/y\r\n' % len(small)
    for number in range(injected.count(40, 4000)):
        header = bytearray(valid + rng.choice([b"", b"Transfer-Encoding: chunked\r\n", b"Location: http://x\r\n"]))
        for _ in range(rng.randint(1, 6)):
            header[rng.randrange(len(header))] = rng.choice([rng.randrange(256), 10, 13, 27, 48])
        raw = (bytes(header) + b"\r\n" + small)[: rng.choice([1000, rng.randrange(150)])]
        server.answers[:] = [lambda handler, raw=raw: handler.wfile.write(raw)]
        with injected():
            with suppress(SourceError):
                get(server.url, tmp_path / str(number), pauses=(0.0,))
            (tmp_path / str(number) / "data.tar.gz").unlink(missing_ok=True)  # if only its length was garbled
            server.answers[:] = [sends(small)]
            assert get(server.url, tmp_path / str(number)) == small
            assert all(line.isprintable() and len(line) < 600 for line in capsys.readouterr().err.splitlines())


@pytest.mark.fault("all mirrors are dead", "one message lists each with its reason, and what to do")
def test_when_all_are_dead_the_message_says_what_to_do(digits, serve, tmp_path):
    altered = tar_gz(entries_of(digits.members | {"test_batch": b"altered"}))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        urls = [dead, *(serve(answer).url for answer in (says(404), says(500), says(200, "<p>"), sends(altered)))]
        with pytest.raises(DataError) as caught:
            fetch(urls, digits.sha256, tmp_path)
    first, *lines, last = str(caught.value).splitlines()
    reasons = ("Connection refused (tried 4 times)", "404 Not Found", "500", "text/html", "test_batch is not the file")
    assert first == "no mirror of params.yaml gave CIFAR-10:"
    for line, url, reason in zip(lines, urls, reasons, strict=True):
        assert line.startswith(f"  {url}: ")
        assert reason in line
    assert last == "Set CIFAR10_ARCHIVE to the path or URL of a copy of cifar-10-python.tar.gz, and run again"


@pytest.mark.fault("`kill -9` while it downloads", GOES_ON)
def test_killed_again_and_again(digits, serve, tmp_path, injected):
    whole, rng = digits.path.read_bytes(), random.Random(0)
    server = serve(sends(whole, pause=0.001))
    work = (tmp_path / "log", fetch, [server.url], digits.sha256, tmp_path / "fetch", 1000)
    there, left = 0, injected.count(8, 300)
    while left:
        process, target = killing.start(*work), there + rng.randrange(len(whole) // 3)
        while process.is_alive() and bytes_in(tmp_path) <= target:
            time.sleep(0.001)
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was whole by then: once more
            assert kept(tmp_path / "fetch/members") == digits.members
            shutil.rmtree(tmp_path / "fetch")
            there = 0
            continue
        with injected():
            assert process.exitcode == -9, (tmp_path / "log").read_text()
            assert bytes_in(tmp_path) >= there
            assert there == 0 or server.requests[-1]["Range"] == f"bytes={there}-"
        there, left = bytes_in(tmp_path), left - 1
    assert killing.run(*work) == 0, (tmp_path / "log").read_text()
    assert kept(tmp_path / "fetch/members") == digits.members


@pytest.mark.fault("two processes download at once", "the second says so and ends; the first is not disturbed")
def test_one_process_downloads_a_url_at_a_time(digits, serve, tmp_path, injected):
    both_came = threading.Event()

    def waits(handler: BaseHTTPRequestHandler) -> None:
        both_came.wait(60)
        sends(digits.path.read_bytes())(handler)

    for number in range(injected.count(2, 40)):
        both_came.clear()
        server, folder = serve(waits), tmp_path / str(number)
        work = (fetch, [server.url], digits.sha256, folder)
        with injected():
            first = killing.start(tmp_path / "first", *work)
            while not server.requests:
                time.sleep(0.001)
            assert killing.run(tmp_path / "second", *work) == 1
            assert re.search(r"another process downloads .*\.tar\.gz: wait", (tmp_path / "second").read_text())
            both_came.set()
            first.join()
            assert (first.exitcode, len(server.requests)) == (0, 1)
            assert kept(folder / "members") == digits.members

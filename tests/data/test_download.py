from http.server import BaseHTTPRequestHandler

import pytest

from resnet_repro.data import download as module
from resnet_repro.data.download import SourceError
from sources import CONTENT, Answer, get, sends


def in_chunks(*chunks: bytes) -> Answer:
    """An empty one is the end."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for chunk in chunks:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    return answer


def test_a_download_is_kept(serve, tmp_path):
    server = serve(sends(CONTENT))
    assert get(server.url, tmp_path) == get(server.url, tmp_path) == CONTENT
    assert len(server.requests) == 1


def test_the_length_is_enough_to_go_on(serve, tmp_path):
    server = serve(sends(CONTENT, etag=None, cut=100_000), sends(CONTENT, etag=None))
    assert get(server.url, tmp_path) == CONTENT
    assert server.requests[1]["Range"] == "bytes=100000-"


def test_without_length_and_etag_it_starts_over(serve, tmp_path):
    server = serve(in_chunks(CONTENT[:100_000]), in_chunks(CONTENT, b""))
    assert get(server.url, tmp_path) == CONTENT
    assert "Range" not in server.requests[1]


def test_a_first_chunk_of_one_byte(serve, tmp_path):
    assert get(serve(in_chunks(CONTENT[:1], CONTENT[1:], b"")).url, tmp_path) == CONTENT


@pytest.mark.parametrize(("part", "num_requests"), [(CONTENT, 1), (CONTENT + CONTENT, 3)], ids=["whole", "too long"])
def test_a_part_that_lacks_nothing(serve, tmp_path, part, num_requests):
    server = serve(sends(CONTENT, cut=100_000), sends(CONTENT))
    with pytest.raises(SourceError, match=r"the connection closed after 100,000 of 400,\d+ bytes \(tried 1 times\)"):
        get(server.url, tmp_path, pauses=())
    (tmp_path / "data.tar.gz.part").write_bytes(part)
    assert get(server.url, tmp_path) == CONTENT  # if it was too long, after a 416
    assert len(server.requests) == num_requests


def test_tries_are_counted_anew_after_progress(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SOME_PROGRESS", 50_000)
    server = serve(*[sends(CONTENT, cut=50_000)] * 8, sends(CONTENT))
    assert get(server.url, tmp_path, pauses=(0.0,)) == CONTENT
    assert len(server.requests) == 9


def test_progress_in_plain_lines(serve, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "PLAIN_LINE_SECONDS", 0)
    get(serve(sends(CONTENT)).url, tmp_path)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("data.tar.gz: 0.4 of 0.4 MB (100%), ")
    assert "MB/s" in last
    assert "s left" in last

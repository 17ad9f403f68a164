"""Archives of any content, and the answers of a server that misbehaves on demand."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from resnet_repro.data.archive import FOLDER


@dataclass(frozen=True)
class Digits:
    path: Path
    sha256: dict[str, str]
    members: dict[str, bytes]


Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), target
    return info, content


def entries_of(members: dict[str, bytes]) -> list[Entry]:
    return [entry(f"{FOLDER}/{name}", content) for name, content in members.items()]


def tar_gz(entries: list[Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Server:
    url: str
    answers: list[Answer]
    """one a request, the last again and again"""
    requests: list[dict[str, str]] = field(default_factory=list)
    """their headers"""


def sends(
    content: bytes,
    etag: str | None = '"1"',
    ranges: bool = True,
    checks: bool = True,
    cut: int | None = None,
    length: bool = True,
) -> Answer:
    """Answers with `content`: from where Range asks, if it supports `ranges`; from its beginning if If-Range
    names another ETag, if it `checks` that; closing the connection after `cut` bytes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked, condition = handler.headers["Range"], handler.headers["If-Range"]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and ranges else 0
        if checks and condition and condition != etag:
            start = 0
        if start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if length:
            handler.send_header("Content-Length", str(len(content) - start))
        if etag:
            handler.send_header("ETag", etag)
        handler.send_header("Content-Encoding", "gzip")  # as Apache says of any .gz
        handler.end_headers()
        handler.wfile.write(content[start:][:cut])

    return answer


def says(status: int, text: str = "", **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = text.encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "text/html", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer

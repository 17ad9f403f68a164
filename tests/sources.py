"""Archives of any content, the answers of a server that misbehaves on demand, and downloads from it."""

import gzip
import io
import random
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from resnet_repro.data.archive import FOLDER, GZIP
from resnet_repro.data.download import download

CONTENT, OTHER = (gzip.compress(random.Random(seed).randbytes(400_000), mtime=0) for seed in (0, 1))
AT_ONCE = (0.0, 0.0, 0.0)
"""the pauses between tries"""


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


def tar_gz(entries: Iterable[Entry], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1, format=format) as tar:
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
    lie: int = 0,
    pause: float = 0,
) -> Answer:
    """Answers with `content`: from where Range asks, if it supports `ranges`; from its beginning if If-Range
    names another ETag, if it `checks` that; closing the connection after `cut` bytes; with `lie` bytes too many in
    Content-Length; with a `pause` after every 4 KiB."""

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
            handler.send_header("Content-Length", str(len(content) - start + lie))
        if etag:
            handler.send_header("ETag", etag)
        handler.send_header("Content-Encoding", "gzip")  # as Apache says of any .gz
        handler.end_headers()
        rest = content[start:][:cut]
        with suppress(ConnectionError):  # whoever listened is gone
            step = 4096 if pause else len(rest) or 1
            for begin in range(0, len(rest), step):
                handler.wfile.write(rest[begin : begin + step])
                time.sleep(pause)

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


def get(url: str, folder: Path, pauses: Sequence[float] = AT_ONCE) -> bytes:
    """What is downloaded of a gzip file of at most 1 MiB."""
    path = folder / "data.tar.gz"
    download(url, path, 1 << 20, GZIP, pauses)
    return path.read_bytes()


def kept(folder: Path) -> dict[str, bytes]:
    """Its files; a killed process may leave hidden ones."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}

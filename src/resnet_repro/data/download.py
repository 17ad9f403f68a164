"""One file over HTTP: resumed after an interruption, tried again after a failure, with its progress shown."""

import errno
import fcntl
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import requests
import urllib3
from pydantic import BaseModel, ConfigDict, ValidationError
from requests import codes
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn, TransferSpeedColumn

from resnet_repro.errors import DataError
from resnet_repro.evidence import write_atomically

CONNECT_SECONDS, READ_SECONDS = 10, 60
PAUSES_SECONDS = (1, 2, 4)
"""between tries, counted anew whenever one got further than all before"""
SOME_PROGRESS = 1 << 20  # bytes
PLAIN_LINE_SECONDS = 10
CHUNK_BYTES = 64 << 10
PART, STATE = "part", "json"


class SourceError(DataError):
    """This source does not give the file; another one may."""

    def __init__(self, reason: str) -> None:
        # it may quote a stranger: nothing that a terminal obeys, and no more than a few lines
        super().__init__("".join(letter if letter.isprintable() else "?" for letter in reason[:500]))


class _TryAgainError(SourceError):
    """This source may give it next time."""


class _Wanted(NamedTuple):
    url: str
    path: Path
    max_bytes: int
    magic: bytes

    def beside(self, kind: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{kind}")


class _Partial(BaseModel):
    """What is known of the file that a partial download is the beginning of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    total: int | None
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        """For If-Range, which takes no weak ETag (RFC 9110, section 13.1.5)."""
        weak = self.etag is None or self.etag.startswith("W/")
        return self.last_modified if weak else self.etag


def download(
    url: str, path: Path, max_bytes: int, magic: bytes = b"", pauses: Sequence[float] = PAUSES_SECONDS
) -> None:
    """Leave the file at `url` in `path`, unless there is one: of at most `max_bytes`, and beginning with `magic`.

    Until it is whole it lies beside `path`. An interrupted download goes on where it stopped, if the server says
    that the file is still the same one; a failed try is repeated after `pauses` seconds.

    Raises:
        SourceError: this URL gives no such file.
        DataError: another process downloads the same.
        OSError: the disk is full or refuses; it names the path and, if it is full, the bytes.
    """
    wanted = _Wanted(url, path, max_bytes, magic)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wanted.beside("lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it however the process ends
        except BlockingIOError:
            raise DataError(f"another process downloads {path}: wait for it, then run again") from None
        if not path.exists():
            with wanted.beside(PART).open("ab", buffering=0) as file:
                _persist(wanted, file, pauses)
            wanted.beside(PART).replace(path)
            wanted.beside(STATE).unlink(missing_ok=True)


def _persist(wanted: _Wanted, file: BinaryIO, pauses: Sequence[float]) -> None:
    furthest, left = _size(file), iter(pauses)
    while True:
        try:
            return _transfer(wanted, file)
        except _TryAgainError as error:
            failure: SourceError = error
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            failure = SourceError(_innermost(error))
        except (requests.RequestException, ValueError) as error:  # a circle of redirects, an impossible URL
            raise SourceError(str(error)) from None
        if _size(file) - furthest >= SOME_PROGRESS:
            furthest, left = _size(file), iter(pauses)
        pause = next(left, None)
        if pause is None:
            raise SourceError(f"{failure} (tried {len(pauses) + 1} times)")
        print(f"{wanted.url}: {failure}; trying again in {pause:g} s", file=sys.stderr)
        time.sleep(pause)


def _transfer(wanted: _Wanted, file: BinaryIO) -> None:
    """One request for what is missing. A part that cannot be continued safely is dropped."""
    size, state = _size(file), _read_state(wanted)
    if state is None or (state.total is None and state.validator is None):
        size = file.truncate(0)
    elif size and size == state.total:
        return
    headers = {"Accept-Encoding": "identity"}
    if size and state:
        headers["Range"] = f"bytes={size}-"
        if state.validator:
            headers["If-Range"] = state.validator
    with requests.get(wanted.url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
        _check_status(response, file)
        new = _describe(wanted.url, response)
        if response.status_code != codes.partial_content:
            size = 0
        elif state is None or not _continues(response, size, state, new):
            file.truncate(0)
            raise _TryAgainError("the file has changed since the download began")
        if new.total is not None and new.total > wanted.max_bytes:
            raise SourceError(f"sends {new.total:,} bytes, too much for {wanted.path.name}")
        _receive(response, file, size, new, wanted)


def _check_status(response: requests.Response, file: BinaryIO) -> None:
    code, status = response.status_code, f"HTTP status {response.status_code} {response.reason}"
    if code == codes.range_not_satisfiable:
        file.truncate(0)
    if code >= 500 or code in (codes.request_timeout, codes.range_not_satisfiable, codes.too_many_requests):
        raise _TryAgainError(status)
    if code not in (codes.ok, codes.partial_content):
        raise SourceError(status)


def _describe(url: str, response: requests.Response) -> _Partial:
    headers, partial = response.headers, response.status_code == codes.partial_content
    length = headers.get("Content-Range" if partial else "Content-Length", "").rpartition("/")[2]
    return _Partial(
        url=url,
        total=int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None,
        etag=headers.get("ETag"),
        last_modified=headers.get("Last-Modified"),
    )


def _continues(response: requests.Response, size: int, old: _Partial, new: _Partial) -> bool:
    """Whether the answer is the rest of the same file: a server may ignore If-Range."""
    starts = response.headers.get("Content-Range", "").startswith(f"bytes {size}-")
    same_total = old.total is None or old.total == new.total
    return starts and same_total and old.etag == new.etag and old.last_modified == new.last_modified


def _receive(response: requests.Response, file: BinaryIO, size: int, new: _Partial, wanted: _Wanted) -> None:
    end, name = new.total or wanted.max_bytes, wanted.path.name
    if new.total and shutil.disk_usage(wanted.path.parent).free < end - size:
        raise _refused(errno.ENOSPC, file, end - size)
    response.raw.enforce_content_length = False  # or urllib3 says in its own words what is said below
    with _progress(name, size, new.total) as advance:
        # not `iter_content`, which unpacks the archive where a server calls its gzip a Content-Encoding
        while chunk := response.raw.read(CHUNK_BYTES, decode_content=False):
            if size == 0:  # only now is it sure enough that this is the file, and no page about one
                if not chunk.startswith(wanted.magic):
                    raise SourceError(f"sends {response.headers.get('Content-Type', 'something')}, not {name}")
                file.truncate(0)
                write_atomically(wanted.beside(STATE), new.model_dump_json().encode())
            size += len(chunk)
            if size > wanted.max_bytes:
                file.truncate(0)
                raise SourceError(f"sends more than {wanted.max_bytes:,} bytes, too much for {name}")
            try:
                _write(file, chunk)
            except OSError as error:
                raise _refused(error.errno, file, end - _size(file)) from None
            advance(len(chunk))
    if size != (new.total or size):
        raise _TryAgainError(f"the connection closed after {size:,} of {new.total:,} bytes")
    if size == 0:
        raise _TryAgainError("the answer is empty")


def _refused(code: int | None, file: BinaryIO, missing: int) -> OSError:
    """The error of a disk, with what the system does not say: where, and how much."""
    return OSError(code, f"{os.strerror(code or 0)} ({missing:,} bytes to write)", file.name)


def _write(file: BinaryIO, chunk: bytes) -> None:
    """All of it: an unbuffered write may take a part, and takes a part when the disk fills."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _read_state(wanted: _Wanted) -> _Partial | None:
    with suppress(OSError, ValidationError):
        state = _Partial.model_validate_json(wanted.beside(STATE).read_bytes())
        return state if state.url == wanted.url else None
    return None


def _innermost(error: BaseException) -> str:
    """The reason that all the layers of wrapping are about, such as "Connection refused"."""
    inner = [getattr(error, "reason", None), *error.args]
    causes = [cause for cause in inner if isinstance(cause, BaseException)]
    return _innermost(causes[0]) if causes else re.sub(r"^\S*\(host=.*?\): ", "", str(error))


@contextmanager
def _progress(name: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a line now and then."""
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), TaskProgressColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        bar.add_task(name, total=total, completed=done)
        (task,) = bar.tasks
        last = time.monotonic()

        def advance(num_bytes: int) -> None:
            nonlocal last
            bar.advance(task.id, num_bytes)
            if bar.disable and time.monotonic() - last > PLAIN_LINE_SECONDS:
                last = time.monotonic()
                of = f" of {total / 1e6:.1f} MB ({task.percentage:.0f}%)" if total else " MB"
                left = f", {task.time_remaining:.0f} s left" if task.time_remaining is not None else ""
                rate = f"{(task.speed or 0) / 1e6:.2f} MB/s"
                print(f"{name}: {task.completed / 1e6:.1f}{of}, {rate}{left}", file=sys.stderr, flush=True)

        yield advance

"""One file over HTTP: resumed after an interruption, tried again after a failure, with its progress shown."""

import errno
import fcntl
import hashlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

import requests
import urllib3
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn, TransferSpeedColumn

from resnet_repro.errors import DataError
from resnet_repro.evidence import write_atomically

MAX_BYTES = 256 << 20
"""of a download, and of what an archive unpacks to; CIFAR-10's have 170 and 186 million"""

CONNECT_SECONDS, READ_SECONDS = 10, 60
PAUSES_SECONDS = (1, 2, 4)
"""between tries, counted anew whenever one got somewhere"""
SOME_PROGRESS = 1 << 20  # bytes
PLAIN_LINE_SECONDS = 10
CHUNK_BYTES = 64 << 10
GZIP = b"\x1f\x8b"


class SourceError(DataError):
    """This source does not give the archive; another one may."""


class _TryAgainError(Exception):
    """This source may give it next time."""


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


def download(url: str, cache: Path, pauses: Sequence[float] = PAUSES_SECONDS) -> Path:
    """The path of the file at `url`, downloaded into the folder `cache` unless it is there.

    An interrupted download goes on where it stopped, if the server says that the file is still the same one.

    Raises:
        SourceError: this URL gives no gzip file.
        DataError: the disk is full, or another process downloads the same.
    """
    key = hashlib.sha256(url.encode()).hexdigest()[:12]
    finished, partial = cache / f"{key}.tar.gz", cache / f"{key}.part"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{key}.lock", url):
        if not finished.exists():
            with partial.open("ab", buffering=0) as file:
                _persist(url, file, partial.with_suffix(".json"), pauses)
            partial.replace(finished)
            partial.with_suffix(".json").unlink(missing_ok=True)
    return finished


def raise_disk_full(error: OSError, path: Path, num_bytes: int) -> NoReturn:
    """`error` as it is, or as a DataError if the disk is full."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    raise DataError(
        f"{path.absolute()}: the disk is full; it needs {num_bytes:,} more bytes. Free them and run again"
    ) from None


@contextmanager
def _locked(path: Path, url: str) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it however the process ends
        except BlockingIOError:
            raise DataError(f"another process is downloading {url} into {path.parent}: wait for it") from None
        yield


def _persist(url: str, file: BinaryIO, state_path: Path, pauses: Sequence[float]) -> None:
    left = iter(pauses)
    while True:
        size = _size(file)
        try:
            return _transfer(url, file, state_path)
        except _TryAgainError as error:
            reason = str(error)
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            reason = _innermost(error)
        except requests.RequestException as error:  # a circle of redirects, an impossible URL
            raise SourceError(str(error)) from None
        if _size(file) - size >= SOME_PROGRESS:
            left = iter(pauses)
        pause = next(left, None)
        if pause is None:
            raise SourceError(f"{reason} (tried {len(pauses) + 1} times)")
        print(f"{url}: {reason}; trying again in {pause:g} s", file=sys.stderr)
        time.sleep(pause)


def _transfer(url: str, file: BinaryIO, state_path: Path) -> None:
    """One request for what is missing. A part that cannot be continued safely is dropped."""
    size, state = _size(file), _read_state(state_path, url)
    if state is None or (state.total is None and state.validator is None):
        size = file.truncate(0)
    elif size and size == state.total:
        return
    headers = {"Accept-Encoding": "identity"}
    if size and state:
        headers["Range"] = f"bytes={size}-"
        if state.validator:
            headers["If-Range"] = state.validator
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
        _check_status(response, file)
        new = _describe(url, response)
        if response.status_code != requests.codes.partial_content:
            size = file.truncate(0)
        elif state is None or not _continues(response, size, state, new):
            file.truncate(0)
            raise _TryAgainError("the file has changed since the download began")
        if new.total is not None and new.total > MAX_BYTES:
            raise SourceError(f"sends {new.total / 1e6:,.0f} MB, too much for CIFAR-10")
        if size == 0:
            write_atomically(state_path, new.model_dump_json().encode())
        _receive(response, file, size, new.total)


def _check_status(response: requests.Response, file: BinaryIO) -> None:
    status = f"HTTP status {response.status_code} {response.reason}"
    if response.status_code == requests.codes.requested_range_not_satisfiable:
        file.truncate(0)
        raise _TryAgainError(status)
    if response.status_code in (requests.codes.request_timeout, requests.codes.too_many_requests):
        raise _TryAgainError(status)
    if response.status_code >= 500:
        raise _TryAgainError(status)
    if response.status_code not in (requests.codes.ok, requests.codes.partial_content):
        raise SourceError(status)


def _describe(url: str, response: requests.Response) -> _Partial:
    headers = response.headers
    length = headers.get("Content-Length", "")
    if response.status_code == requests.codes.partial_content:
        length = headers.get("Content-Range", "").rpartition("/")[2]
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


def _receive(response: requests.Response, file: BinaryIO, size: int, total: int | None) -> None:
    missing = (total or MAX_BYTES) - size
    if total and shutil.disk_usage(Path(file.name).parent).free < missing:
        raise_disk_full(OSError(errno.ENOSPC, ""), Path(file.name), missing)
    with _progress(size, total) as advance:
        # not `iter_content`, which unpacks the archive where a server calls its gzip a Content-Encoding
        for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
            if size == 0 and not chunk.startswith(GZIP):
                kind = response.headers.get("Content-Type", "something")
                raise SourceError(f"sends {kind}, not a gzip archive")
            size += len(chunk)
            if size > MAX_BYTES:
                file.truncate(0)
                raise SourceError(f"sends more than {MAX_BYTES / 1e6:,.0f} MB, too much for CIFAR-10")
            try:
                _write(file, chunk)
            except OSError as error:
                raise_disk_full(error, Path(file.name), (total or MAX_BYTES) - _size(file))
            advance(len(chunk))
    if size != (total or size):
        raise _TryAgainError(f"the connection closed after {size:,} of {total:,} bytes")
    if size == 0:
        raise _TryAgainError("the answer is empty")


def _write(file: BinaryIO, chunk: bytes) -> None:
    """All of it: an unbuffered write may take a part, and takes a part when the disk fills."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _read_state(path: Path, url: str) -> _Partial | None:
    with suppress(OSError, ValidationError):
        state = _Partial.model_validate_json(path.read_bytes())
        return state if state.url == url else None
    return None


def _innermost(error: BaseException) -> str:
    """The reason that all the layers of wrapping are about, such as "Connection refused"."""
    inner = [getattr(error, "reason", None), *error.args]
    causes = [cause for cause in inner if isinstance(cause, BaseException)]
    return _innermost(causes[0]) if causes else re.sub(r"^\S*\(host=.*?\): ", "", str(error))


@contextmanager
def _progress(done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a line now and then."""
    console = Console(stderr=True)
    columns = (
        "{task.description}",
        BarColumn(),
        TaskProgressColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        bar.add_task("CIFAR-10", total=total, completed=done)
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
                print(f"CIFAR-10: {task.completed / 1e6:.1f}{of}, {rate}{left}", file=sys.stderr, flush=True)

        yield advance

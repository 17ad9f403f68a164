"""CIFAR-10's archive: had from a path or a mirror, and its seven members verified.

Only the members count: their digests are published, and the archive around them may have been packed anew.
Nothing is extracted by path, and nothing is decoded here.
"""

import gzip
import hashlib
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from resnet_repro.data.download import PAUSES_SECONDS, SourceError, download
from resnet_repro.errors import DataError
from resnet_repro.evidence import write_atomically
from resnet_repro.params import Data

FOLDER = "cifar-10-batches-py"
TRAIN_MEMBERS = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_MEMBER, META_MEMBER = "test_batch", "batches.meta"
MEMBERS = (META_MEMBER, *TRAIN_MEMBERS, TEST_MEMBER)

ARCHIVE, GZIP = "cifar-10-python.tar.gz", b"\x1f\x8b"
MAX_BYTES = 256 << 20
"""of an archive, and of what it unpacks to; CIFAR-10's have 170 and 186 million"""
MAX_ENTRY_BYTES = 64 << 20  # the official members have 31 million
MAX_ENTRIES = 64  # the official archive has 9
WITHOUT_CONTENT = b"123456"  # a tar's letters for links, devices, folders and pipes
EXTENSIONS = b"xgXLK"
CACHE = Path(".cache/download")
"""Outside of DVC's outputs, which are deleted before a stage runs."""

VARIABLE = "CIFAR10_ARCHIVE"
REMEDY = f"Set {VARIABLE} to the path or URL of a copy of {ARCHIVE}, and run again"


def fetch_members(
    data: Data,
    folder: Path,
    archive: str | None = None,
    cache: Path = CACHE,
    pauses: Sequence[float] = PAUSES_SECONDS,
) -> None:
    """Write the seven verified members into `folder`.

    Args:
        data: the mirrors, tried in order, and the members' digests.
        archive: a path or URL to take instead of the mirrors. A file of the user's is read in place.
        cache: where downloads are kept, whole or partial.
        pauses: seconds between tries of one URL.

    Raises:
        DataError: no source gave the archive; with each one's reason.
        OSError: the disk is full or refuses.
    """
    _names(data.members)
    reasons = list[str]()
    for source in [archive] if archive else data.urls:
        try:
            if source.startswith(("http://", "https://")):
                _fetch_from_url(source, data.members, folder, cache, pauses)
            else:
                _write_members(Path(source).expanduser(), data.members, folder)
            print("".join(f"passed over{reason}\n" for reason in reasons), end="", file=sys.stderr)
            return
        except SourceError as error:
            reasons.append(f"  {source}: {error}")
    verdict = f"{VARIABLE} does not give CIFAR-10:" if archive else "no mirror of params.yaml gave CIFAR-10:"
    raise DataError("\n".join([verdict, *reasons, REMEDY]))


def verify_members(folder: Path, expected: Mapping[str, str]) -> None:
    """Hold the members in `folder` against their sha256.

    Raises:
        DataError: names the member that is missing or altered.
    """
    for name in _names(expected):
        path = folder / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{path} is missing: run `dvc repro fetch`") from None
        try:
            _check_digest(name, content, expected[name])
        except SourceError as error:
            raise DataError(f"{path}: {error}. If DVC's cache is damaged, `dvc repro --force fetch` mends it") from None


def read_members(stream: IO[bytes], expected: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each expected member of a .tar.gz, in the archive's order, verified by its sha256.

    Reads from front to back, and holds two entries at most. Extensions of the format (long names, attributes,
    sparse files) are passed over like any other entry: a few bytes of them can ask for a lot of memory.

    Raises:
        SourceError: the archive is damaged, hostile or another one.
    """
    missing = set(_names(expected))
    try:
        for count, (entry, content) in enumerate(_entries(gzip.GzipFile(fileobj=stream)), start=1):
            if count > MAX_ENTRIES:
                raise SourceError(f"it has more than {MAX_ENTRIES} entries; CIFAR-10 has 9")
            name = _member_name(entry)
            if not name:
                continue
            if name not in missing:
                raise SourceError(f"{name} stands in it twice")
            missing.remove(name)
            _check_digest(name, content, expected[name])
            yield name, content
    except DataError:
        raise
    except Exception as error:  # what a damaged archive raises is not foreseeable
        raise SourceError(f"it is truncated, damaged or no archive: {error}") from None
    if missing:
        raise SourceError(f"it is truncated or another archive: without {', '.join(sorted(missing))}")


def _entries(unpacked: gzip.GzipFile) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Every entry of a tar with its content, as its header says; then the rest is read, for gzip's own checksum."""
    while any(header := _read(unpacked, tarfile.BLOCKSIZE)):
        entry = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
        size = 0 if entry.type in WITHOUT_CONTENT else entry.size
        if not 0 <= size <= MAX_ENTRY_BYTES:
            raise SourceError(f"entry {entry.name!r} has {size:,} bytes, not 0 to {MAX_ENTRY_BYTES:,}")
        content = _read(unpacked, size)
        if len(content) < size:
            raise EOFError(f"ends within {entry.name!r}")
        _read(unpacked, -size % tarfile.BLOCKSIZE)
        yield entry, content
    while _read(unpacked, 1 << 20):
        pass


def _read(unpacked: gzip.GzipFile, size: int) -> bytes:
    content = unpacked.read(size)
    if unpacked.tell() > MAX_BYTES:  # a small archive can unpack to terabytes
        raise SourceError(f"it unpacks to more than {MAX_BYTES / 1e6:,.0f} MB, too much for CIFAR-10")
    return content


def _fetch_from_url(url: str, expected: Mapping[str, str], folder: Path, cache: Path, pauses: Sequence[float]) -> None:
    path = cache / hashlib.sha256(url.encode()).hexdigest()[:12] / ARCHIVE
    download(url, path, MAX_BYTES, GZIP, pauses)
    try:
        _write_members(path, expected, folder)
    except SourceError:
        path.unlink(missing_ok=True)  # or the next try would find it again
        raise


def _write_members(path: Path, expected: Mapping[str, str], folder: Path) -> None:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise SourceError(error.strerror or str(error)) from None
    with stream:
        for name, content in read_members(stream, expected):
            write_atomically(folder / name, content)


def _names(expected: Mapping[str, str]) -> tuple[str, ...]:
    if set(expected) != set(MEMBERS):
        raise DataError(f"params.yaml: data.members must have just the keys {', '.join(MEMBERS)}")
    return MEMBERS


def _member_name(entry: tarfile.TarInfo) -> str:
    """The base name of an entry if it is a member of CIFAR-10, "" for one to pass over.

    Paths are only compared; still, an archive with one that leads out is not the one that is wanted.
    """
    path = PurePosixPath(entry.name)
    if path.is_absolute() or ".." in path.parts:
        raise SourceError(f"entry {entry.name!r} leads out of the archive")
    if path.name not in MEMBERS or entry.type in EXTENSIONS:
        return ""
    if path.parent != PurePosixPath(FOLDER):
        raise SourceError(f"{path.name} must be in the folder {FOLDER}, not at {entry.name!r}")
    if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise SourceError(f"{path.name} is not a regular file")
    return path.name


def _check_digest(name: str, content: bytes, expected: str) -> None:
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise SourceError(f"{name} is not the file of params.yaml: sha256 {actual}, expected {expected}")

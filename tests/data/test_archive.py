import errno
import gzip
import io
import random
import socket
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from sources import Digits, Entry, entries_of, entry, says, sends, tar_gz

from resnet_repro.data import archive as module
from resnet_repro.data.archive import FOLDER, MEMBERS, fetch_members, read_members, verify_members
from resnet_repro.data.download import SourceError
from resnet_repro.errors import DataError
from resnet_repro.params import Data

AT_ONCE = (0.0, 0.0, 0.0)


def read(content: bytes, digits: Digits) -> dict[str, bytes]:
    return dict(read_members(io.BytesIO(content), digits.sha256))


def data(digits: Digits, *urls: str) -> Data:
    return Data(urls=urls, members=digits.sha256)


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_packing_of_the_same_members_is_as_good(digits):
    shuffled = entries_of(dict(reversed(digits.members.items())))
    others = [entry(FOLDER, kind=tarfile.DIRTYPE), entry(f"{FOLDER}/readme.html", b"<p>"), entry("._x", b"?")]
    dotted = [entry(f"./{FOLDER}/{name}", content) for name, content in digits.members.items()]
    assert read(tar_gz([*others, *shuffled]), digits) == digits.members
    assert read(tar_gz(dotted), digits) == digits.members


MEMBER = f"{FOLDER}/test_batch"


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        ([entry("../test_batch", b"x")], "leads out"),
        ([entry(f"{FOLDER}/../../etc/passwd", b"x")], "leads out"),
        ([entry("/etc/passwd", b"x")], "leads out"),
        ([entry("test_batch", b"x")], "must be in the folder"),
        ([entry(f"x/{MEMBER}", b"x")], "must be in the folder"),
        ([entry(MEMBER, kind=tarfile.SYMTYPE, target="/etc/passwd")], "not a regular file"),
        ([entry(MEMBER, kind=tarfile.LNKTYPE, target=f"{FOLDER}/data_batch_1")], "not a regular file"),
        ([entry(MEMBER, kind=tarfile.CHRTYPE)], "not a regular file"),
        ([entry(MEMBER, kind=tarfile.FIFOTYPE)], "not a regular file"),
        ([entry(MEMBER, kind=tarfile.DIRTYPE)], "not a regular file"),
        ([entry(MEMBER, kind=tarfile.GNUTYPE_SPARSE)], "not a regular file"),
        (
            [entry(MEMBER, b"altered")],
            "test_batch is not the file of params.yaml: sha256 [0-9a-f]{64}, expected",
        ),
        ([entry(f"x{number}") for number in range(100)], "more than 64 entries"),
    ],
)
def test_hostile_entries_are_refused(digits: Digits, hostile: Sequence[Entry], message: str):
    with pytest.raises(SourceError, match=message):
        read(tar_gz([*hostile, *entries_of(digits.members)]), digits)


def test_a_duplicate_is_refused(digits):
    with pytest.raises(SourceError, match=r"batches\.meta stands in it twice"):
        read(tar_gz(entries_of(digits.members) * 2), digits)


def test_a_missing_member_is_named(digits):
    some = {name: content for name, content in digits.members.items() if name not in ("test_batch", "data_batch_3")}
    with pytest.raises(SourceError, match="without data_batch_3, test_batch"):
        read(tar_gz(entries_of(some)), digits)


def test_a_bomb_is_refused(digits, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 8 << 20)
    bomb = gzip.compress(tar_gz_header("readme.html", 1 << 40) + bytes(64 << 20))
    assert len(bomb) < 100_000
    with pytest.raises(SourceError, match="unpacks to more than 8 MB"):
        read(bomb, digits)
    with pytest.raises(SourceError, match="1,099,511,627,776 bytes, more than"):
        read(gzip.compress(tar_gz_header(MEMBER, 1 << 40) + bytes(1 << 20)), digits)


def tar_gz_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_a_chain_of_headers_is_refused(digits):
    chain = b"".join(tarfile.TarInfo.create_pax_global_header({"comment": "x"}) for _ in range(5000))
    with pytest.raises(SourceError):
        read(gzip.compress(chain + bytes(1024)), digits)


def test_truncated_anywhere_it_is_refused(digits):
    whole = digits.path.read_bytes()
    for length in [*range(0, len(whole), 64 << 10), len(whole) - 1]:
        with pytest.raises(SourceError, match="truncated"):
            read(whole[:length], digits)


def test_a_flipped_bit_changes_no_member(digits):
    whole = digits.path.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        try:
            members = read(bytes(flipped), digits)
        except SourceError:
            continue
        assert members == digits.members  # the bit was in a header


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"\x1f\x8b", gzip.compress(b"text"), gzip.compress(bytes(10240))],
    ids=["nothing", "html", "cut", "text", "zeros"],
)
def test_what_is_no_archive_is_refused(digits, content):
    with pytest.raises(SourceError, match="truncated"):
        read(content, digits)


def test_a_local_archive_is_read_in_place(digits, tmp_path):
    fetch_members(data(digits), tmp_path / "members", archive=str(digits.path), cache=tmp_path / "cache")
    assert kept(tmp_path / "members") == digits.members
    assert not (tmp_path / "cache").exists()
    verify_members(tmp_path / "members", digits.sha256)


def test_a_damaged_local_archive_is_kept(digits, tmp_path):
    damaged = tmp_path / "damaged.tar.gz"
    damaged.write_bytes(digits.path.read_bytes()[:500_000])
    with pytest.raises(DataError, match=r"CIFAR10_ARCHIVE.*\n.*damaged.tar.gz: it is truncated"):
        fetch_members(data(digits), tmp_path / "members", archive=str(damaged))
    assert damaged.exists()


@pytest.mark.parametrize(("name", "reason"), [("nowhere", "No such file"), (".", "directory")])
def test_a_local_archive_that_cannot_be_read(digits, tmp_path, name, reason):
    with pytest.raises(DataError, match=f"CIFAR10_ARCHIVE.*\n.*{reason}"):
        fetch_members(data(digits), tmp_path / "members", archive=str(tmp_path / name))


def test_mirrors_are_tried_in_order(digits, tmp_path, serve):
    altered = tar_gz(entries_of(digits.members | {"test_batch": b"altered"}))
    servers = [
        serve(says(404)),
        serve(says(200, "<html>moved</html>")),
        serve(sends(altered)),
        serve(sends(b"\x1f\x8b" + bytes(1000))),
        serve(sends(digits.path.read_bytes())),
        serve(says(500)),
    ]
    urls = [server.url for server in servers]
    fetch_members(data(digits, *urls), tmp_path / "members", cache=tmp_path / "cache", pauses=AT_ONCE)
    assert kept(tmp_path / "members") == digits.members
    assert [len(server.requests) for server in servers] == [1, 1, 1, 1, 1, 0]


def test_a_damaged_download_is_dropped_and_a_good_one_kept(digits, tmp_path, serve):
    whole = digits.path.read_bytes()
    server = serve(sends(whole[:-1] + bytes([whole[-1] ^ 1])), sends(whole))
    source = data(digits, server.url)
    with pytest.raises(DataError, match="damaged"):
        fetch_members(source, tmp_path / "members", cache=tmp_path / "cache", pauses=AT_ONCE)
    for _ in range(2):
        fetch_members(source, tmp_path / "members", cache=tmp_path / "cache", pauses=AT_ONCE)
    assert len(server.requests) == 2


def test_when_all_are_dead_the_message_says_what_to_do(digits, tmp_path, serve):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        missing = serve(says(404)).url
        with pytest.raises(DataError) as caught:
            fetch_members(data(digits, dead, missing), tmp_path / "m", cache=tmp_path / "cache", pauses=())
    lines = str(caught.value).splitlines()
    assert lines[1].startswith(f"  {dead}: ")
    assert "Connection refused" in lines[1]
    assert lines[2] == f"  {missing}: HTTP status 404 Not Found"
    assert lines[3] == "Set CIFAR10_ARCHIVE to the path or URL of a copy of cifar-10-python.tar.gz, and run again"


def test_another_url_takes_the_place_of_the_mirrors(digits, tmp_path, serve):
    mirror, mine = serve(says(500)), serve(sends(digits.path.read_bytes()))
    fetch_members(data(digits, mirror.url), tmp_path / "members", archive=mine.url, cache=tmp_path / "cache")
    assert kept(tmp_path / "members") == digits.members
    assert not mirror.requests


def test_a_full_disk_is_named(digits, tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(DataError, match=r"members/batches\.meta: the disk is full; it needs \d+ more bytes"):
        fetch_members(data(digits), tmp_path / "members", archive=str(digits.path))


def test_a_damaged_or_missing_member_is_found(digits, tmp_path):
    fetch_members(data(digits), tmp_path, archive=str(digits.path))
    (tmp_path / "data_batch_2").write_bytes(digits.members["data_batch_2"][:-1] + b"!")
    with pytest.raises(DataError, match=r"data_batch_2: .*expected.*dvc repro --force fetch"):
        verify_members(tmp_path, digits.sha256)
    (tmp_path / "data_batch_2").unlink()
    with pytest.raises(DataError, match="data_batch_2 is missing: run `dvc repro fetch`"):
        verify_members(tmp_path, digits.sha256)


def test_other_members_are_no_choice(digits, tmp_path):
    other = Data(urls=("http://127.0.0.1/",), members={"data_batch_6": "0" * 64})
    with pytest.raises(DataError, match=f"just the keys {', '.join(MEMBERS)}"):
        fetch_members(other, tmp_path)

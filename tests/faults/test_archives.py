import gzip
import hashlib
import io
import os
import random
import re
import tarfile
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import killing
from reliability import Injections
from resnet_repro.data.archive import FOLDER, MAX_ENTRY_BYTES, MEMBERS, fetch_members, read_members
from resnet_repro.data.arrays import FILES, load_arrays, prepare_arrays
from resnet_repro.data.download import SourceError
from resnet_repro.errors import DataError
from resnet_repro.evidence import sha256_of
from resnet_repro.params import Data, load
from sources import Digits, Entry, entries_of, entry, kept, tar_gz
from test_real_data import ARCHIVE, ROOT

AREA = "Archives"
OUTSIDE = "the message says which entry and why; nothing is written outside of the target folder"
BOUNDED = "it is refused, in less than 160 MB of memory"
TRUNCATED = "it is refused as truncated; no member comes out that is not whole"

STEP = 64 << 10
SMALL = {name: name.encode() * 300 for name in MEMBERS}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in SMALL.items()}
MEMBER = f"{FOLDER}/test_batch"


def tree(folder: Path) -> dict[Path, tuple[int, ...]]:
    """What is there, but for the members."""
    found = {path: path.lstat() for path in folder.rglob("*") if path.parent.name != "members"}
    return {path: (state.st_mode, path.is_file() and state.st_mtime_ns) for path, state in found.items()}


@pytest.fixture
def fetch(tmp_path: Path, injected: Injections) -> Callable[..., None]:
    """Fetches from an archive that must be refused for a reason, or for "" may be taken, and leave no other trace."""
    path, members = tmp_path / "hostile.tar.gz", tmp_path / "work" / "members"
    members.mkdir(parents=True)

    def check(content: bytes, reason: str) -> None:
        path.write_bytes(content)
        before, said = tree(tmp_path), ""
        with injected():
            try:
                fetch_members(Data(urls=(), members=DIGESTS), members, archive=str(path))
            except DataError as error:
                said = str(error)
            assert not reason or re.search(rf"^CIFAR10_ARCHIVE does not .*\n  {path}: .*{reason}.*\nSet CIFAR10_", said)
            assert tree(tmp_path) == before
            assert not any(file.is_symlink() for file in members.iterdir())
            assert kept(members).items() <= SMALL.items()

    return check


def hostile(*entries: Entry) -> bytes:
    """Before the members, which are what they should be."""
    return tar_gz([*entries, *entries_of(SMALL)])


@pytest.mark.fault("an entry with `..` or an absolute path", OUTSIDE)
def test_entries_that_lead_out(fetch, tmp_path):
    outside = tmp_path / "outside"
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
        for name in ("../test_batch", f"{FOLDER}/../../evil", f"{FOLDER}/../test_batch", str(outside), f"/{MEMBER}"):
            fetch(hostile(entry(name, kind=kind, target="/etc")), f"{re.escape(repr(name))} leads out")
    for name in ("..\\test_batch", "C:\\test_batch", f"{FOLDER}/.. /x", "~/test_batch "):  # nothing to this system
        fetch(hostile(entry(name, b"x")), "")
    renamed, content = entry(MEMBER, SMALL["test_batch"])
    renamed.pax_headers = {"path": str(outside), "linkpath": "/etc", "size": "1"}
    fetch(tar_gz([(renamed, content)]), "without batches.meta")
    fetch(hostile(entry(FOLDER, kind=tarfile.SYMTYPE, target=str(outside))), "")  # a folder for the members


@pytest.mark.parametrize("kind", [bytes([letter]) for letter in b"1234567SZ"])
@pytest.mark.fault("a link, device, pipe, folder or sparse file for a member", OUTSIDE)
def test_members_that_are_no_files(fetch, tmp_path, kind):
    for target in ("/etc/passwd", str(tmp_path / "hostile.tar.gz"), f"{FOLDER}/data_batch_1", "test_batch"):
        fetch(hostile(entry(MEMBER, kind=kind, target=target)), "test_batch is not a regular file")


@pytest.mark.fault("a member twice, missing, elsewhere or altered", OUTSIDE)
def test_other_members(fetch):
    for name, content in SMALL.items():
        fetch(tar_gz(entries_of(SMALL) + entries_of({name: content})), f"{name} stands in it twice")
        fetch(tar_gz(entries_of({other: SMALL[other] for other in SMALL if other != name})), f"without {name}")
        fetch(hostile(entry(f"x/{name}", content)), f"{name} must be in the folder {FOLDER}, not at 'x/{name}'")
        altered = entry(f"{FOLDER}/{name}", content[:-1] + b"!")
        fetch(hostile(altered), rf"{name} is not the file of params\.yaml: sha256 \w{{64}}, expected \w{{64}}")


@pytest.mark.fault("what is no archive", OUTSIDE)
@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"\x1f\x8b", gzip.compress(b"text"), gzip.compress(bytes(10240))],
    ids=["nothing", "a page", "the start of a gzip", "a text", "zeros"],
)
def test_what_is_no_archive(fetch, content):
    fetch(content, "truncated")


def checked(header: bytearray) -> bytearray:
    """With the checksum that a header of a tar must have."""
    sums = sum(header[:148]) + 8 * 32 + sum(header[156:])
    return header[:148] + b"%06o\0 " % sums + header[156:]


@pytest.mark.fault("random bytes in the headers of a tar", OUTSIDE)
def test_random_headers(fetch, injected):
    rng, whole = random.Random(0), gzip.decompress(tar_gz(entries_of(SMALL)))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        headers = [info.offset for info in tar]
    for _ in range(injected.count(40, 2000)):
        begin = rng.choice(headers)
        changed = bytearray(whole[begin : begin + 512])
        for _ in range(rng.randint(1, 5)):
            first = rng.choice([0, 100, 124, 156, 257, 345])  # name, mode, size, type, magic, prefix
            changed[first + rng.randrange(12)] = rng.choice([rng.randrange(256), *b"./0127xgLKS\xff\0"])
        fetch(gzip.compress(whole[:begin] + checked(changed) + whole[begin + 512 :], 1), "")


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def bombs() -> list[tuple[bytes, str]]:
    """What unpacks to gigabytes, or asks for them, and why it is refused."""
    zeros = gzip.compress(bytes(60 << 20), 1)
    holes = bytearray(header("x", 0, tarfile.GNUTYPE_SPARSE))
    holes[482] = 1  # more of the map of holes follows
    more = gzip.compress((b"00000000001\0" * 42 + b"\1").ljust(512, b"\0") * 20_000, 1)
    sparse = tarfile.TarInfo("x")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"}
    pax = tarfile.TarInfo.create_pax_global_header({"comment": "x"})
    found = [
        (hostile() + zeros * 5, "unpacks to more than 268 MB"),
        (hostile(*(entry(f"x{number}") for number in range(100))), "more than 64 entries; CIFAR-10 has 9"),
        (gzip.compress(pax * 5000), "more than 64 entries"),
        (gzip.compress(checked(holes)) + more * 20, "damaged"),
        (gzip.compress(sparse.tobuf() + b"50000000\n") + gzip.compress(b"1\n" * (30 << 20), 1), "damaged"),
    ]
    for kind in (b"0", b"x", b"g", b"X", b"L", b"K", b"S", b"Z"):
        many = b"".join(gzip.compress(header(f"x{number}", 60 << 20, kind), 1) + zeros for number in range(5))
        found.append((many, "unpacks to more than 268 MB"))
        for size in (MAX_ENTRY_BYTES + 1, 1 << 40, -512):
            one = gzip.compress(header("x", size, kind) + bytes(1 << 20), 1)
            found.append((one, f"entry 'x' has {size:,} bytes, not 0 to 67,108,864"))
    return found


@pytest.mark.fault("a bomb: of bytes, entries, headers, names or holes", BOUNDED)
def test_bombs(fetch):
    for content, reason in bombs():
        assert len(content) < 2_000_000
        tracemalloc.start()
        fetch(content, reason)
        assert tracemalloc.get_traced_memory()[1] < 160e6, reason
        tracemalloc.stop()


def come_out(content: bytes, digits: Digits) -> None:
    for name, member in read_members(io.BytesIO(content), digits.sha256):
        assert member == digits.members[name]


@pytest.mark.fault("a truncated archive", TRUNCATED)
def test_truncated_anywhere(digits, injected):
    whole = digits.path.read_bytes()
    for length in [*range(0, len(whole), injected.count(STEP, 1 << 10)), len(whole) - 1]:
        with injected(), pytest.raises(SourceError, match="truncated"):
            come_out(whole[:length], digits)


class Ending:
    """A file that ends at every STEP, each time in a process of its own; this one reads on."""

    def __init__(self, path: Path) -> None:
        self.file, self.ended, self.refused = path.open("rb"), False, 0

    def read(self, size: int) -> bytes:
        position = self.file.tell()
        if position % STEP == 0 and not self.ended:
            child = os.fork()
            self.ended = child == 0
            self.refused += not self.ended and os.waitpid(child, 0)[1] == 0
        return b"" if self.ended else self.file.read(min(size, STEP - position % STEP))


def end_everywhere(path: Path, digests: dict[str, str], out: Path) -> None:
    stream, said = Ending(path), ""
    try:
        for _ in read_members(stream, digests):  # type: ignore[arg-type]
            pass
    except SourceError as error:
        said = str(error)
    if stream.ended:
        os._exit("truncated" not in said)
    out.write_text(f"{stream.refused}{said}")


if ARCHIVE.is_file():

    @pytest.mark.slow
    @pytest.mark.fault("a truncated archive", TRUNCATED)
    def test_the_official_archive_truncated_at_every_64_kib(tmp_path, injected):
        ends, out = -(-ARCHIVE.stat().st_size // STEP), tmp_path / "out"
        digests = load(ROOT / "params.yaml").data.members
        with injected(times=ends):
            assert killing.run(tmp_path / "log", end_everywhere, ARCHIVE, digests, out) == 0
            assert out.read_text() == str(ends)


@pytest.mark.fault("a flipped bit in an archive", "it is refused, or the verified members come out")
def test_a_flipped_bit_changes_no_member(digits, injected):
    whole, rng = digits.path.read_bytes(), random.Random(0)
    for _ in range(injected.count(40, 4000)):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        with injected(), suppress(SourceError):
            come_out(bytes(flipped), digits)


@pytest.mark.fault(
    "a flipped bit in data/members or data/cifar10",
    "it is found before anything is computed; the message names the file and the command that mends it",
)
def test_a_bit_flips_on_disk(digits, tmp_path, injected):
    data, rng = Data(urls=(), members=digits.sha256), random.Random(0)
    members, arrays, report = (tmp_path / name for name in ("data/members", "data/cifar10", "reports/data"))
    fetch_members(data, members, archive=str(digits.path))
    prepare_arrays(data, members, arrays, report)
    expected, sha256 = {name: sha256_of(arrays / name) for name in FILES}, load_arrays(arrays).sha256
    for _ in range(injected.count(24, 1000)):
        path = rng.choice([*members.iterdir(), *arrays.iterdir()])
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with injected():
            if path.parent == members:
                with pytest.raises(DataError, match=f"{path}: .* expected .* `dvc repro --force fetch` mends it"):
                    prepare_arrays(data, members, arrays, report)
            else:
                with pytest.raises(DataError, match=f"{path} has the sha256 .* expects .*`dvc repro --force prepare`"):
                    load_arrays(arrays, expected)
                with suppress(DataError):  # without digests in params.yaml: it is another data set
                    assert load_arrays(arrays).sha256 != sha256
        path.write_bytes(whole)

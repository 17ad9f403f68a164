import tarfile
import time

import pytest

from resnet_repro.data.archive import FOLDER, MEMBERS, fetch_members, verify_members
from resnet_repro.errors import DataError
from resnet_repro.params import Data
from sources import Digits, entry, kept, says, sends, tar_gz


def source(digits: Digits, *urls: str) -> Data:
    return Data(urls=urls, members=digits.sha256)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", [FOLDER, f"./{FOLDER}"])
def test_another_packing_of_the_same_members_is_as_good(digits, tmp_path, format, folder):
    others = [entry(folder, kind=tarfile.DIRTYPE), entry(f"{folder}/{'long' * 50}.html", b"<p>"), entry("._x", b"?")]
    entries = [entry(f"{folder}/{name}", content) for name, content in reversed(digits.members.items())]
    for info, _ in entries:
        info.mtime, info.uname = time.time() + 0.5, "Erwin Schrödinger"  # takes an extended header of PAX
    path = tmp_path / "other.tar.gz"
    path.write_bytes(tar_gz([*others, *entries], format))
    fetch_members(source(digits), tmp_path / "members", archive=str(path))
    assert kept(tmp_path / "members") == digits.members


def test_a_local_archive_is_read_in_place(digits, tmp_path):
    fetch_members(source(digits), tmp_path / "members", archive=str(digits.path), cache=tmp_path / "cache")
    assert kept(tmp_path / "members") == digits.members
    assert not (tmp_path / "cache").exists()
    verify_members(tmp_path / "members", digits.sha256)


@pytest.mark.parametrize(("name", "reason"), [("nowhere", "No such file"), (".", "directory")])
def test_a_local_archive_that_cannot_be_read(digits, tmp_path, name, reason):
    with pytest.raises(DataError, match=f"CIFAR10_ARCHIVE.*\n.*{reason}"):
        fetch_members(source(digits), tmp_path / "members", archive=str(tmp_path / name))


def test_another_url_takes_the_place_of_the_mirrors(digits, tmp_path, serve):
    mirror, mine = serve(says(500)), serve(sends(digits.path.read_bytes()))
    for _ in range(2):  # it is kept
        fetch_members(source(digits, mirror.url), tmp_path / "members", archive=mine.url, cache=tmp_path / "cache")
        assert kept(tmp_path / "members") == digits.members
    assert (len(mirror.requests), len(mine.requests)) == (0, 1)


def test_a_missing_member_is_found(digits, tmp_path):
    fetch_members(source(digits), tmp_path, archive=str(digits.path))
    (tmp_path / "data_batch_2").unlink()
    with pytest.raises(DataError, match="data_batch_2 is missing: run `dvc repro fetch`"):
        verify_members(tmp_path, digits.sha256)


def test_other_members_are_no_choice(tmp_path):
    other = Data(urls=("http://127.0.0.1/",), members={"data_batch_6": "0" * 64})
    with pytest.raises(DataError, match=f"just the keys {', '.join(MEMBERS)}"):
        fetch_members(other, tmp_path)

"""The scripts as `dvc repro` runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sources import Digits

REPOSITORY = Path(__file__).parents[2]


def run(stage: str, *arguments: str, cwd: Path, archive: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, REPOSITORY / "pipeline" / f"{stage}.py", *arguments],
        cwd=cwd,
        env=os.environ | {"CIFAR10_ARCHIVE": archive},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def workspace(digits: Digits, tmp_path: Path) -> Path:
    yaml = YAML()
    tree = yaml.load(REPOSITORY / "params.yaml")
    tree["data"] = {"urls": [], "members": digits.sha256}
    yaml.dump(tree, tmp_path / "params.yaml")
    return tmp_path


def test_fetch_and_prepare(workspace: Path, digits: Digits):
    assert run("fetch", "data/members", cwd=workspace, archive=str(digits.path)).returncode == 0
    done = run("prepare", "data/members", "data/arrays", "reports/data", cwd=workspace, archive="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(list((workspace / "data/arrays").iterdir())) == 5
    assert {path.name for path in (workspace / "reports/data").iterdir()} == {"card.json", "samples.npz"}


def test_a_missing_archive_is_one_message(workspace: Path):
    done = run("fetch", "data/members", cwd=workspace, archive="/nowhere/cifar-10-python.tar.gz")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "fetch: CIFAR10_ARCHIVE does not give CIFAR-10:",
        "  /nowhere/cifar-10-python.tar.gz: No such file or directory",
        "Set CIFAR10_ARCHIVE to the path or URL of a copy of cifar-10-python.tar.gz, and run again",
    ]


def test_wrong_arguments_get_the_usage(workspace: Path):
    done = run("prepare", "data/members", cwd=workspace, archive="")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python pipeline/prepare.py MEMBERS ARRAYS REPORT\n\nDecode the members")

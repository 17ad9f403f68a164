"""What `doctor` says of things that need no DVC to break; tests/faults/test_dvc.py breaks the others."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from killing import REPOSITORY
from resnet_repro import doctor as module
from resnet_repro.checkpoint import Checkpoint, CheckpointStore, read
from resnet_repro.doctor import Finding, doctor
from resnet_repro.tracking.store import EXPERIMENT
from resnet_repro.workspace import EVIDENCE, Workspace

IDENTITY = {"model": "plain8"}


def found(root: Path, check: Callable[[Workspace], Iterator[Finding]]) -> tuple[str, str, str]:
    """State, text and remedy of what must be the only finding."""
    (finding,) = check(Workspace(root))
    return finding.state, finding.what, finding.remedy


def test_a_fresh_clone_has_no_outputs_and_nothing_is_wrong(tmp_path: Path) -> None:
    for name in ("dvc.lock", "params.yaml", "ablations/dvc.lock", "requirements.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for name in EVIDENCE:
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    state, what, remedy = found(tmp_path, module.check_outputs)
    assert state == "note"
    assert re.fullmatch(r"neither here nor whole in DVC's cache: ([1-9]\d*) of \1 outputs", what)
    assert "as in a fresh clone: `dvc pull data/members data/cifar10 runs/" in remedy
    assert doctor(tmp_path, True, Console(quiet=True))
    assert not (tmp_path / ".dvc").exists()


def test_packages_of_another_version_are_named(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("torch==1.0.0 \\\n    --hash=sha256:00\nunknown==2.0\n")
    state, what, remedy = found(tmp_path, module.check_packages)
    assert state == "note"
    assert what == f"torch {torch.__version__.partition('+')[0]} is installed, and requirements.lock has 1.0.0"
    assert "another environment" in remedy


def test_a_params_file_that_does_not_load_is_quoted(tmp_path: Path) -> None:
    text = (REPOSITORY / "params.yaml").read_text().replace("momentum: 0.9", "momentun: 0.9", 1)
    (tmp_path / "params.yaml").write_text(text)
    state, what, _ = found(tmp_path, module.check_params)
    assert (state, "did you mean 'momentum'?" in what) == ("wrong", True)


def test_only_old_temporary_files_are_leftovers(tmp_path: Path) -> None:
    old, young, other = (tmp_path / "runs/plain8-1" / f".{name}" for name in ("a.json.abc_1234", "b.ab12cd34", "new"))
    old.parent.mkdir(parents=True)
    for path in (old, young, other):
        path.write_text("")
    for path in (old, other):
        os.utime(path, (0, time.time() - 120))
    assert found(tmp_path, module.check_leftovers)[1].startswith(f"{old} was being written by a process")
    doctor(tmp_path, True, Console(quiet=True))
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)


def test_a_damaged_checkpoint_is_put_aside_and_the_whole_one_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints/plain8-1", IDENTITY)
    for step in (1, 2):
        store.save(Checkpoint({"weight": torch.ones(9)}, {}), step)
    first, second = sorted(store.folder.iterdir())
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    state, what, remedy = found(tmp_path, module.check_checkpoints)
    assert (state, what) == ("wrong", f"{second} is damaged: its content does not fit its digest")
    assert "training goes on from the one before it" in remedy
    doctor(tmp_path, True, Console(quiet=True))
    assert list(store.folder.iterdir()) == [first]
    assert read(first, IDENTITY).content == {}
    (aside,) = (tmp_path / ".dvc/tmp/quarantine").rglob(second.name)
    assert aside.read_bytes() == content

    (tmp_path / "runs/plain8-1").mkdir(parents=True)
    (tmp_path / "runs/plain8-1/provenance.json").write_text("{}")
    state, what, _ = found(tmp_path, module.check_checkpoints)
    assert (state, "than the finished runs/plain8-1" in what) == ("note", True)


@pytest.mark.parametrize(("kind", "message"), [("text", "not a database"), ("moved", "was made in another folder")])
def test_a_database_that_cannot_be_used_is_put_aside(
    tmp_path: Path, kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = tmp_path / "mlflow.db"

    def write(place: str) -> None:
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("CREATE TABLE experiments (name, artifact_location)")
            database.execute("INSERT INTO experiments VALUES (?, ?)", (EXPERIMENT, place))

    if kind == "text":
        file.write_text("no database " * 200)
    else:
        write("file:///elsewhere/mlartifacts")
    state, what, remedy = found(tmp_path, module.check_mlflow)
    assert (state, message in what) == ("wrong", True)
    assert "`resnet-repro publish` rebuilds every finished run" in remedy
    doctor(tmp_path, True, Console(quiet=True))
    assert not file.exists()
    write((tmp_path / "mlartifacts").as_uri())
    assert list(module.check_mlflow(Workspace(tmp_path))) == []


def test_a_disk_that_is_too_small_is_found_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    state, what, remedy = found(tmp_path, module.check_space)
    assert (state, what[:20], remedy) == ("wrong", "0.1 GB are free, and", "free some on that disk")


def test_a_cache_elsewhere_is_looked_at(tmp_path: Path) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n['remote \"copy\"']\n    url = x\n")
    (root / ".dvc/config.local").write_text(f"[cache]\n    dir = {cache}\n")
    damaged = cache / "files/md5/12" / ("0" * 30)
    damaged.parent.mkdir(parents=True)
    damaged.write_text("something else")
    assert f"{damaged} (no output is known to need it) is damaged" in found(root, module.check_cache)[1]
    doctor(root, True, Console(quiet=True))
    assert not damaged.exists()
    assert [path.read_text() for path in root.rglob("0" * 30)] == ["something else"]


def test_a_cache_that_the_global_configuration_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    root = tmp_path / "root"
    (root / ".dvc").mkdir(parents=True)
    assert Workspace(root).cache == root / ".dvc/cache/files/md5"
    subprocess.run(["dvc", "config", "--global", "cache.dir", str(tmp_path / "big")], check=True)
    assert Workspace(root).cache == tmp_path / "big/files/md5"


def test_dvc_itself_drops_the_locks_of_processes_that_have_ended(tmp_path: Path) -> None:
    file = tmp_path / ".dvc/tmp/rwlock"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"read": {"data": [{"pid": 1 << 22, "cmd": "dvc repro"}]}}))
    state, what, remedy = found(tmp_path, module.check_locks)
    assert (state, remedy) == ("note", "the next `dvc` drops them")
    assert f"{1 << 22} (dvc repro)" in what

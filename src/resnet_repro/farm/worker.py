"""The farm's part on another machine. It travels there by value and needs what every environment here has."""

import configparser
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from resnet_repro.farm.child import Child, dvc, environment_of

LINES = 60
"""of what a stage said, that are sent home"""
SHIP_BYTES_PER_SECOND = 2e6
"""of checkpoints that are sent home, on average: one of 2 MB each second, one of 292 MB (wrn28_10) every 2 minutes"""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Parcel:
    """What every worker needs."""

    commit: str
    bundle: bytes
    """of Git, with that commit"""
    remote: dict[str, str]
    """DVC's remote, its options"""
    environment: dict[str, str]
    """variables that the coordinator sets for its stages"""


@dataclass(frozen=True)
class Report:
    """What a worker says; the last one has a return code."""

    where: str
    lines: tuple[str, ...] = ()
    checkpoint: tuple[str, bytes] | None = None
    """its path in the workspace, and its content"""
    files: tuple[tuple[str, bytes], ...] = ()
    """what `evaluate` wrote, which Git keeps and no remote of DVC has: path and content"""
    locked: tuple[tuple[str, dict[str, Any]], ...] = ()
    """each stage, and what the clone's dvc.lock has of it"""
    unused: tuple[str, ...] = ()
    """folders of checkpoints, of other kinds of machines: those of this training are gone when it is done"""
    returncode: int | None = None


class Switch:
    """The actor that workers ask whether to stop."""

    def __init__(self) -> None:
        self.pressed = False

    def press(self) -> None:
        self.pressed = True

    def is_pressed(self) -> bool:
        return self.pressed


def task(
    parcel: Parcel, run: str, stages: tuple[str, ...], checkpoints: tuple[tuple[str, bytes], ...], switch: Any
) -> Iterator[Report]:
    """`work` as a Ray task."""
    import ray

    where = " ".join([socket.gethostname(), *(f"cuda:{gpu}" for gpu in ray.get_gpu_ids())])
    yield from work(parcel, where, run, stages, checkpoints, lambda: bool(ray.get(switch.is_pressed.remote())))


def work(
    parcel: Parcel,
    where: str,
    run: str,
    stages: tuple[str, ...],
    checkpoints: tuple[tuple[str, bytes], ...],
    asked_to_stop: Callable[[], bool],
) -> Iterator[Report]:
    """Run the stages in a clean clone, and push what they made to the remote, with its run cache."""
    if asked_to_stop():
        yield Report(where, ("it was stopped before it began",), returncode=1)
        return
    yield Report(where)
    shared = Path(tempfile.gettempdir()) / f"resnet-repro-{getpass.getuser()}"
    shared.mkdir(mode=0o700, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=shared, prefix=f"{run}-"))
    try:
        clone = folder / "clone"
        make_clone(parcel, clone, shared / "cache")
        for name, content in checkpoints:
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes(content)
        own = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}  # Ray sets it
        environment = environment_of({**own, **parcel.environment}, DVC_SITE_CACHE_DIR=str(folder / "site"))
        needed = ["data/cifar10", *([] if any("train@" in stage for stage in stages) else [f"runs/{run}"])]
        for arguments in (
            ("pull", "--quiet", *needed),
            ("repro", "--single-item", *stages),
            ("push", "--quiet", "--run-cache", *stages),
        ):
            child = Child(dvc(*arguments), clone, environment, folder / "log")
            try:
                yield from _follow(child, where, clone / "checkpoints" / run, asked_to_stop)
            finally:
                child.stop()
            if child.poll():
                yield Report(where, tuple(child.lines()[-LINES:]), returncode=child.poll())
                return
        locked = tuple((stage, _entry(clone, stage)) for stage in stages)
        written = [clone / entry["outs"][0]["path"] for stage, entry in locked if "evaluate@" in stage]
        paths = [path for folder in written for path in folder.rglob("*") if path.is_file()]
        files = tuple((str(path.relative_to(clone)), path.read_bytes()) for path in paths)
        unused = tuple(path.name for path in (clone / "checkpoints" / run).glob("*/"))
        yield Report(where, files=files, locked=locked, unused=unused, returncode=0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_clone(parcel: Parcel, clone: Path, cache: Path) -> None:
    """The commit's files, with DVC's cache shared by all clones of this machine, and the coordinator's remote."""
    clone.mkdir()
    (bundle := clone.parent / "bundle").write_bytes(parcel.bundle)

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=clone, check=True, capture_output=True)

    git("init", "--quiet")
    git("fetch", "--quiet", str(bundle), "HEAD")
    git("checkout", "--quiet", "--detach", parcel.commit)
    bundle.unlink()
    config = configparser.ConfigParser(interpolation=None)
    config["core"] = {"remote": "farm"}
    config["cache"] = {"dir": str(cache)}
    config["'remote \"farm\"'"] = parcel.remote
    with (clone / ".dvc/config.local").open("w") as file:
        config.write(file)


def _follow(child: Child, where: str, checkpoints: Path, asked_to_stop: Callable[[], bool]) -> Iterator[Report]:
    """Report what is new, until the process has ended."""
    said, known, due_at = 0, set(checkpoints.glob("*/step-*")), 0.0
    while True:
        ended = child.poll() is not None
        lines = child.lines()
        checkpoint = None
        new = set(checkpoints.glob("*/step-*")) - known
        if new and (ended or time.monotonic() >= due_at):
            checkpoint = _read(max(new), checkpoints.parents[1])
            known |= new
            due_at = time.monotonic() + (len(checkpoint[1]) if checkpoint else 0) / SHIP_BYTES_PER_SECOND
        if len(lines) > said or checkpoint:
            said = len(lines)
            yield Report(where, tuple(lines[-LINES:]), checkpoint)
        if ended:
            return
        if asked_to_stop():
            child.ask_to_stop()
        time.sleep(POLL_SECONDS)


def _read(path: Path, root: Path) -> tuple[str, bytes] | None:
    try:
        return str(path.relative_to(root)), path.read_bytes()
    except FileNotFoundError:  # a newer one has taken its place
        return None


def lock_of(stage: str) -> tuple[str, str]:
    """Which dvc.lock has a stage, and under what name, of its address: [ablations/dvc.yaml:]NAME."""
    file, _, name = stage.rpartition(":")
    return (file or "dvc.yaml").replace(".yaml", ".lock"), name


def _entry(clone: Path, stage: str) -> dict[str, Any]:
    lock, name = lock_of(stage)
    return dict(YAML(typ="safe").load(clone / lock)["stages"][name])

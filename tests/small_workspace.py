"""A small workspace of real DVC: this repository's stages, one net, the handwritten digits; and how to damage it."""

import os
import random
import subprocess
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from killing import REPOSITORY
from resnet_repro.data.digits import write_digits_archive
from resnet_repro.demo import ARCHIVE, copy_sources, demo_environment
from resnet_repro.doctor import examine
from resnet_repro.evidence import HISTORY, WEIGHTS
from resnet_repro.workspace import Workspace

RUN, TRAIN, EVALUATE = "runs/plain8-1", "train@plain8-1", "evaluate@plain8-1"
OUTPUTS = ("data/members", "data/cifar10", RUN)
STEPS = 80
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")


def started(workspace: Path, *command: str, archive: str = "") -> "subprocess.Popen[str]":
    """A command in the workspace; its output goes to a file beside it. What is installed is another checkout's code."""
    environment = demo_environment(workspace / ARCHIVE) | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "DVC_SITE_CACHE_DIR": str(workspace.parent / "site"),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    }
    environment |= {"CIFAR10_ARCHIVE": archive} if archive else {}
    (log := workspace.parent / "log").unlink(missing_ok=True)
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=workspace, env=environment, stdout=file, stderr=file, text=True)


def said(workspace: Path) -> str:
    """By what was started last."""
    return (workspace.parent / "log").read_text()


def run(workspace: Path, *command: str, expected: int = 0) -> str:
    """What a command says that must end with the status `expected`."""
    assert started(workspace, *command).wait(300) == expected, said(workspace)
    return said(workspace)


def build(workspace: Path) -> None:
    """Its pipeline has run, up to the evaluation of its one net, and all of it is committed."""
    copy_sources(REPOSITORY, workspace)
    (workspace / ARCHIVE).parent.mkdir(parents=True)
    params = YAML().load(REPOSITORY / "src/resnet_repro/demo.yaml")
    params["data"]["members"] = write_digits_archive(workspace / ARCHIVE)
    params["engine"] = {"device": "cpu", "mode": "eager", "precision": "fp32", "threads": 1}
    schedule = {"unit": "steps", "stop": STEPS, "learning_rate": 0.01, "drops": [], "drop_factor": 0.1}
    params["recipes"] = {"demo": params["recipes"]["demo"] | {"batch_size": 16, "schedule": schedule}}
    params["models"] = {"plain8": params["models"]["plain8"]}
    params["runs"] = {"plain8-1": {"model": "plain8", "seed": 1}}
    params |= {"ablations": {}, "ablation_groups": {}}
    YAML().dump(params, workspace / "params.yaml")
    run(workspace, "git", "init", "--quiet")
    run(workspace, "dvc", "repro", EVALUATE)
    commit(workspace)


def commit(workspace: Path) -> None:
    run(workspace, "git", "add", "--all")
    run(workspace, "git", *IDENTITY, "commit", "--quiet", "--message", "evidence")


def findings(workspace: Path, state: str = "wrong") -> list[str]:
    return [f"{found.what}; {found.remedy}" for _, found in examine(Workspace(workspace)) if found.state == state]


def mend(workspace: Path) -> None:
    """As `doctor --mend`; nothing is wrong afterwards."""
    assert not Workspace(workspace).at_work
    for _, found in examine(Workspace(workspace)):
        if found.mend:
            found.mend()
    assert findings(workspace) == []


def is_alive(process: psutil.Process) -> bool:
    """Also of another's child, which is a zombie until that asks for it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(workspace: Path, *outputs: str) -> dict[str, bytes]:
    """All that is repeatable of the outputs."""
    files = {f"{out}/{name}": c for out in outputs or OUTPUTS for name, c in contents(workspace / out).items()}
    return {name: c for name, c in files.items() if not name.startswith(RUN) or name.endswith((WEIGHTS, HISTORY))}


def damage(path: Path, choose: random.Random) -> bytes:
    """Flip a bit of a file, as a disk does: size, time and mode stay. Its old content."""
    before, status = path.read_bytes(), path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(position := choose.randrange(len(before)))
        file.write(bytes([before[position] ^ 1 << choose.randrange(8)]))
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return before

"""Where a run comes from: machine, versions, code; and which of it decides its bits."""

import platform
import subprocess
import time
import uuid
from importlib.metadata import version
from typing import Any

import torch

from resnet_repro.engine import ResolvedEngine, device_name
from resnet_repro.evidence import Origin, Plan

SOURCES = ("src", "pipeline", "params.yaml", "dvc.yaml", "requirements.lock")


def identity_of(origin: Origin) -> dict[str, Any]:
    """What decides the bits of a run, and so whether a checkpoint may be resumed."""
    same = {"model", "seed", "device", "device_name", "mode", "precision", "threads", "deterministic"}
    return {
        **origin.model_dump(mode="json", include=same | {"data_sha256", "plan_sha256"}),
        "torch": origin.versions["torch"],
    }


def make_origin(plan: Plan, seed: int, engine: ResolvedEngine, data_sha256: str, plan_sha256: str) -> Origin:
    names = ("torch", "torchvision", "numpy", "mlflow", "dvc", "resnet-repro")
    versions = {"python": platform.python_version(), **{name: _version(name) for name in names}}
    if engine.device == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())
    commit, dirty = _git_state()
    return Origin(
        uid=uuid.uuid4().hex,
        model=plan.model,
        seed=seed,
        started_at=time.time(),
        device=engine.device,
        device_name=device_name(engine.device),
        mode=engine.mode,
        precision=engine.precision,
        threads=engine.threads,
        deterministic=engine.deterministic,
        versions=versions,
        platform=f"{platform.system()} {platform.machine()}",
        git_commit=commit,
        git_dirty=dirty,
        data_sha256=data_sha256,
        plan_sha256=plan_sha256,
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "not installed"


def _git_state() -> tuple[str | None, bool | None]:
    """HEAD and whether sources differ from it (what stages write is no source); (None, None) outside Git."""
    try:
        return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "-uno", "--", *SOURCES))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

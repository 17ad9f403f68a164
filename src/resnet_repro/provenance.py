"""Where a run comes from: machine, versions, code; and which of it decides its bits."""

import platform
import subprocess
import uuid
from importlib.metadata import version
from typing import Any

import torch

from resnet_repro.checkpoint import KNOWN_LATER, SAME_RUN
from resnet_repro.engine import ResolvedEngine
from resnet_repro.evidence import Origin, Plan
from resnet_repro.machine import make_session

SOURCES = ("src", "pipeline", "params.yaml", "dvc.yaml", "requirements.lock")


def identity_of(origin: Origin) -> dict[str, Any]:
    """What decides the bits of a run, and so whether a checkpoint may be resumed: the run, and the kind of machine."""
    same = {"device", "device_name", "mode", "precision", "threads", "deterministic"}
    identity = {**origin.model_dump(mode="json", include=same | SAME_RUN), "torch": origin.versions["torch"]}
    if origin.device == "cpu" and origin.session_log:
        session = origin.session_log[-1]
        identity |= {name: getattr(session, name) for name in KNOWN_LATER} | {"processor": str(session.processor)}
    return identity


def go_on(before: Origin, now: Origin) -> Origin:
    """The origin of a training that goes on here, from a checkpoint with the origin `before`."""
    moved = not identity_of(before).items() <= identity_of(now).items()
    (session,) = now.session_log
    log = (*before.session_log, session.model_copy(update={"moved": moved}))
    origin = now.model_copy(update={"uid": before.uid, "started_at": before.started_at}) if moved else before
    return origin.model_copy(update={"session_log": log})


def make_origin(plan: Plan, seed: int, engine: ResolvedEngine, data_sha256: str, plan_sha256: str) -> Origin:
    names = ("torch", "torchvision", "numpy", "mlflow", "dvc", "resnet-repro")
    versions = {"python": platform.python_version(), **{name: _version(name) for name in names}}
    if engine.device == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())
    commit, dirty = _git_state()
    session = make_session(engine, commit)
    return Origin(
        uid=uuid.uuid4().hex,
        model=plan.model,
        seed=seed,
        started_at=session.started_at,
        device=engine.device,
        device_name=session.device_name,
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
        session_log=(session,),
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

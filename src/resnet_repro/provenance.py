"""Where a run comes from: machine, versions, code; and which of it decides its bits."""

import platform
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from resnet_repro.checkpoint import KNOWN_LATER, SAME_RUN
from resnet_repro.engine import ResolvedEngine
from resnet_repro.errors import ReproError
from resnet_repro.evidence import PROVENANCE, Origin, Plan, Provenance
from resnet_repro.git import git
from resnet_repro.machine import make_session

REPLACE = "RESNET_REPRO_EVIDENCE"
"""the environment variable that lets `evaluate` replace committed evidence: `replace`"""
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
    head = git(Path(), "rev-parse", "HEAD")
    changed = git(Path(), "status", "--porcelain", "-uno", "--", *SOURCES)
    return (None, None) if head is None or changed is None else (head.decode().strip(), bool(changed))


def keep_committed(run: Path, out: Path, answer: str) -> None:
    """Bring back the committed evidence in `out`, which DVC has removed, if it is of another training than `run`.

    Another by the same plan, seed and data, that came to other weights: where evidence is the only trace of hours on
    another machine, nothing takes its place by itself.

    Raises:
        ReproError: so it is, and `answer` is not `replace`.
    """
    content = git(Path(), "show", f":./{(out / PROVENANCE).as_posix()}")  # as it is staged, and so merged
    if content is None or answer == "replace":
        return
    try:
        before, now = Provenance.parse(content), Provenance.read(run / PROVENANCE)
    except (ValueError, OSError):  # `evaluate` itself says what is wrong with a run
        return
    same = all(getattr(before, name) == getattr(now, name) for name in SAME_RUN)
    if not same or before.weights_sha256 == now.weights_sha256:
        return
    git(Path(), "checkout", "--", out.as_posix())
    ended = time.strftime("%Y-%m-%d", time.gmtime(before.finished_at))
    raise ReproError(
        f"{out} is committed evidence of another training by the same plan, on {before.machine}, ended {ended}, which "
        f"came to other weights than {run}. It is back in its place. To put {run} in its place after all: "
        f"`{REPLACE}=replace dvc repro evaluate@{run.name}`. If {run.name} was not meant to be trained again, dvc.lock "
        f"has lost it: `resnet-repro doctor` looks for it, and so does `git log -S train@{run.name} -- dvc.lock`"
    )

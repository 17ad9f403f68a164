"""`resnet-repro doctor`: what is wrong with a workspace, what to do about it, and mending what is safe to mend.

What somebody may miss is never deleted, but moved to .dvc/tmp/quarantine. Nothing is mended while DVC works there.
"""

import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resnet_repro.data.archive import verify_members
from resnet_repro.data.arrays import CARD
from resnet_repro.errors import ParamsError, ReproError
from resnet_repro.evidence import PROVENANCE, read_trained, sha256_of, write_atomically
from resnet_repro.git import git
from resnet_repro.tracking.store import EXPERIMENT, MOVE_AWAY, TrackingError, check_sqlite
from resnet_repro.workspace import (
    ARRAYS,
    MEMBERS,
    RUN_STAGES,
    RUNS,
    LockFileError,
    Output,
    Workspace,
    digest_of_folder,
    is_dvc,
    split_lock,
    stages_of,
)

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "safetensors", "dvc", "mlflow")
LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}|\.[\w-]{22}\.tmp")
"""the temporary files of `evidence.write_atomically`, and DVC's"""
LEFT_SECONDS = 60.0  # until one is taken for left behind
MERGE_REMEDY = (
    "`resnet-repro doctor --mend` keeps the runs of both sides; then `git checkout --ours reports README.md` where "
    "those conflict, too, and `make lock` writes them anew"
)
STYLES = {"ok": "green", "mended": "green", "note": "yellow", "wrong": "red"}


@dataclass(frozen=True)
class Finding:
    what: str
    remedy: str = ""
    state: Literal["ok", "note", "wrong"] = "wrong"
    mend: Callable[[], object] | None = None


def check_packages(there: Workspace) -> Iterator[Finding]:
    file = there.root / "requirements.lock"
    pins = re.findall(r"^([\w.-]+)==(\S+)", file.read_text() if file.is_file() else "", re.MULTILINE)
    for name in PACKAGES:
        found = next((package.version for package in metadata.distributions(name=name)), "no version").partition("+")[0]
        pinned = [version for package, version in pins if package == name]
        if pinned and found not in pinned:
            what = f"{name} {found} is installed, and requirements.lock has {' or '.join(pinned)}"
            yield Finding(what, "results count as another environment's; `make` puts what is pinned in .venv", "note")


def check_params(there: Workspace) -> Iterator[Finding]:
    if isinstance(there.params, ParamsError):
        yield Finding(str(there.params), "`git diff params.yaml` shows what changed")


def check_lock_files(there: Workspace) -> Iterator[Finding]:
    for name, stages in there.locked.items():
        remedy = f"`git checkout HEAD -- {name}`; what ran since then, `dvc repro` takes from DVC's run cache"
        committed = stages_of(git(there.root, "show", f"HEAD:./{name}") or b"")
        merged = there.merged_lock(name)
        mend = merged and partial(write_atomically, there.root / name, merged.encode())
        if isinstance(stages, LockFileError):
            yield Finding(f"{name} cannot be used: {stages}", MERGE_REMEDY if merged else remedy, mend=mend or None)
        elif merged and (lost := _stages_not_in((there.root / name).read_text(), merged)):
            what = f"{name} was merged without {_some(lost)}, and `dvc repro` would run that again"
            yield Finding(what, MERGE_REMEDY, mend=mend or None)
        elif not isinstance(committed, LockFileError) and (lost := sorted(committed.keys() - stages.keys())):
            yield Finding(f"{name} lacks {_some(lost)}, which the committed one has: it was truncated", remedy)


def _stages_not_in(lock: str, merged: str) -> list[str]:
    here, both = split_lock(lock)[1], split_lock(merged)[1]
    return [name for name, text in both.items() if name.startswith(RUN_STAGES) and here.get(name) != text]


def check_locks(there: Workspace) -> Iterator[Finding]:
    for pid, command in there.at_work.items():
        yield Finding(f"process {pid} works here: {command}", "nothing is mended before it ends", "note")
    file = there.root / ".dvc/tmp/rwlock"
    if there.rwlock is None:
        yield Finding(f"{file} is empty or damaged, and DVC refuses to work", f"delete {file}", mend=file.unlink)
    elif dead := {pid: command for pid, command in there.rwlock.items() if pid not in there.at_work}:
        what = f"{file} names processes that have ended: {_some(f'{pid} ({dead[pid]})' for pid in dead)}"
        if any(map(psutil.pid_exists, dead)):
            remedy = f"others have their numbers now, and DVC would wait for them: delete {file}"
            yield Finding(what, remedy, mend=file.unlink)
        else:
            yield Finding(what, "the next `dvc` drops them", "note", file.unlink)


def check_cache(there: Workspace) -> Iterator[Finding]:
    for md5 in (md5 for md5, whole in there.objects.items() if not whole):
        users = [out for out in there.outputs if md5 == out.md5 or md5 in there.parts(out).values()]
        part = f"part of {_some(out.path for out in users)}" if users else "no output is known to need it"
        what = f"{there.object(md5)} ({part}) is damaged: its content does not have the md5 that is its name"
        remedy = f"delete it; if no whole copy is here, {_comes_back(users)}" if users else "delete it"
        yield Finding(what, remedy, mend=partial(there.put_aside, there.object(md5)))


def check_outputs(there: Workspace) -> Iterator[Finding]:
    broken = [f"{name} cannot be used" for name, stages in there.locked.items() if isinstance(stages, LockFileError)]
    if there.at_work or broken:
        yield Finding(f"not looked at while {broken[0] if broken else 'DVC works here'}", state="note")
        return
    missing = []
    for output in there.outputs:
        path, same, cached = output.path, there.is_here(output), there.is_cached(output)
        if path not in there.found:
            missing += [] if cached else [output]
        elif path.removeprefix(RUNS) in there.trainers:
            continue
        elif not _own_digests_hold(there, path):
            differ = dict(there.found[path].items() ^ there.parts(output).items()) if there.parts(output) else {}
            what = f"{path} is damaged: {_some(differ) or 'its files do not have their digests'}"
            remedy = f"`rm -r {path}`, then {_comes_back([output])}"
            if cached and not same:
                remedy = f"`rm -r {path}; dvc checkout {path}` copies it from DVC's cache, where it is whole"
            yield Finding(what, remedy, mend=partial(_replace, there, output))
        elif same and not cached:
            what = f"{path} is whole, but DVC's cache lacks a part of it: `dvc repro` would run {output.stage} again"
            yield Finding(what, f"`dvc commit {output.stage}` adds it", mend=partial(there.copy_to_cache, output))
        elif not same:
            yield Finding(f"{path} is whole, but another one than dvc.lock has", "`dvc status` says why", "note")
    if missing:
        what = f"neither here nor whole in DVC's cache: {len(missing)} of {len(there.outputs)} outputs"
        yield Finding(what, f"as in a fresh clone: {_comes_back(missing)}", "note")


def check_evidence(there: Workspace) -> Iterator[Finding]:
    for out in () if there.at_work else there.committed:
        if digest_of_folder(folder := there.root / out.path) != out.md5:
            what = f"{out.path} is {'damaged or edited: not as dvc.lock has it' if folder.is_dir() else 'missing'}"
            is_committed = bool(git(there.root, "ls-files", "--", out.path))
            remedy = f"`git checkout -- {out.path}`" if is_committed else f"`dvc repro {out.stage}` writes it anew"
            mend = partial(_restore, there, out) if is_committed else None
            yield Finding(what, remedy, mend=mend)


def check_trainers(there: Workspace) -> Iterator[Finding]:
    for key, process in there.trainers.items():
        if _was_started_by_dvc(process) and not any(map(is_dvc, process.parents())):
            what = f"process {process.pid} still trains {key}, but the dvc that started it is gone"
            yield Finding(what, "it saves and ends by itself within seconds; then `dvc repro` goes on from there")
        else:
            yield Finding(f"process {process.pid} trains {key}", state="note")


def check_checkpoints(there: Workspace) -> Iterator[Finding]:
    newest: dict[Path, Path] = {}
    for path in sorted(there.root.glob("checkpoints/*/*/step-*.safetensors")):
        if path.parents[1].name in there.trainers:
            continue
        if problem := _problem_of_checkpoint(path):
            remedy = "delete it; training goes on from the one before it"
            yield Finding(problem, remedy, mend=partial(there.put_aside, path))
        else:
            newest[path.parent] = path
    for folder, path in newest.items() if not there.at_work else ():
        key = folder.parent.name
        if folder in there.kept_checkpoints(key):
            what = f"{folder} is of the finished {RUNS}{key}, which DVC has"
            yield Finding(what, f"delete {folder}", "note", partial(there.drop_kept, key))
        elif steps := _steps_if_finished(there, path):
            what = f"{key} is finished ({steps:,} steps), and DVC does not have it"
            is_ablation = not isinstance(there.params, ParamsError) and key in there.params.ablations
            stage = f"{'ablations/dvc.yaml:' if is_ablation else ''}train@{key}"
            yield Finding(what, f"`dvc repro {stage}` writes it within seconds, without training", "note")
        elif (there.root / RUNS / key / PROVENANCE).is_file():
            what = f"{path} is of another training than the finished {RUNS}{key}"
            yield Finding(what, f"delete {folder} unless somebody goes back to that", "note")


def check_leftovers(there: Workspace) -> Iterator[Finding]:
    folders = [there.root / name for name in ("checkpoints", "data", "plans", "reports", "runs")]
    old = time.time() - LEFT_SECONDS
    for path in (path for folder in (*folders, there.cache) for path in sorted(folder.rglob(".*"))):
        if LEFTOVER.fullmatch(path.name) and path.is_file() and path.stat().st_mtime < old:
            what = f"{path} was being written by a process that was killed"
            yield Finding(what, "delete it", mend=partial(path.unlink, missing_ok=True))


def check_mlflow(there: Workspace) -> Iterator[Finding]:
    file, artifacts = there.root / "mlflow.db", (there.root / "mlartifacts").resolve().as_uri()
    aside = partial(there.put_aside, file)
    try:
        check_sqlite(file, busy_seconds=2.0)
    except TrackingError as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding(what, remedy, mend=aside if MOVE_AWAY in str(error) else None)
        return
    for place in [] if "MLFLOW_TRACKING_URI" in os.environ else _artifact_places(file):
        if place != artifacts:
            yield Finding(f"{file} was made in another folder, and keeps its files in {place}", MOVE_AWAY, mend=aside)


def check_space(there: Workspace) -> Iterator[Finding]:
    """A run's weights are kept thrice (here, in DVC's cache, in MLflow), three checkpoints of one with its momenta."""
    if isinstance(there.params, ParamsError):
        return
    absent = [out.size for out in there.outputs if out.path not in there.found]
    absent += [out.size for out in there.outputs if not there.is_cached(out)]
    known = {out.path for out in there.outputs}
    models = [run.model for key, run in there.params.runs.items() if f"{RUNS}{key}" not in known]
    plans = [there.root / "plans" / f"{model}.json" for model in models]
    weights = [4 * json.loads(plan.read_bytes())["parameters"] for plan in plans if plan.is_file()]
    need, free = sum(absent) + 3 * sum(weights) + 6 * max(weights, default=0), shutil.disk_usage(there.root).free
    what = (
        f"{free / 1e9:.1f} GB are free, and {need / 1e9:.1f} GB would hold what is not here: "
        f"{len(absent)} copies of outputs, and what {len(weights)} runs write that are to be trained"
    )
    yield Finding(what, "free some on that disk") if free < need else Finding(what, state="ok")


CHECKS: dict[str, Callable[[Workspace], Iterator[Finding]]] = {
    "packages": check_packages,
    "params.yaml": check_params,
    "dvc.lock": check_lock_files,
    "DVC's locks": check_locks,
    "DVC's cache": check_cache,
    "outputs": check_outputs,
    "evidence": check_evidence,
    "training": check_trainers,
    "checkpoints": check_checkpoints,
    "leftovers": check_leftovers,
    "MLflow": check_mlflow,
    "disk space": check_space,
}


def examine(there: Workspace) -> list[tuple[str, Finding]]:
    """Every finding with the name of its check; a check that finds nothing is ok."""
    ok = [Finding("", state="ok")]
    return [(name, found) for name, check in CHECKS.items() for found in list(check(there)) or ok]


def doctor(root: Path, mend: bool, console: Console) -> bool:
    """Print what is found, and mend it if asked to; whether nothing is wrong in the end."""
    there = Workspace(root)
    findings = examine(there)
    mended = [(name, finding) for name, finding in findings if finding.mend and mend and not there.at_work]
    for _, finding in mended:
        assert finding.mend
        finding.mend()
    findings = examine(Workspace(root)) if mended else findings
    table = Table("check", "", "finding", "what to do", box=None, pad_edge=False)
    rows = [(name, "mended", finding.what, "") for name, finding in mended]
    for name, state, *texts in (*rows, *((name, found.state, found.what, found.remedy) for name, found in findings)):
        table.add_row(name, Text(state, STYLES[state]), *(Text(text, overflow="fold") for text in texts))
    console.print(table)
    wrong = [finding for _, finding in findings if finding.state == "wrong"]
    if any(finding.mend for finding in wrong):
        console.print("`resnet-repro doctor --mend` does what is safe of it, and keeps in .dvc/tmp what it takes away")
    return not wrong


def _own_digests_hold(there: Workspace, path: str) -> bool:
    """Whether an output is what its own record of it says: params.yaml, the data card, or a run's provenance."""
    try:
        if path.startswith(RUNS):
            read_trained(there.root / path)
        elif isinstance(there.params, ParamsError):
            return True
        elif path == MEMBERS:
            verify_members(there.root / path, there.params.data.members)
        elif path == ARRAYS:
            card = there.root / "reports/data" / CARD
            digests = there.params.data.arrays or json.loads(card.read_bytes())["files"]
            return all(sha256_of(there.root / path / name) == digest for name, digest in digests.items())
    except (ReproError, OSError, ValueError, KeyError):
        return False
    return True


def _replace(there: Workspace, output: Output) -> None:
    """Put a damaged output aside, and what DVC would bring back in its place if that is no better."""
    there.put_aside(there.root / output.path)
    if there.is_here(output):
        there.put_aside(there.object(output.md5))
    elif there.is_cached(output):
        there.copy_from_cache(output)


def _restore(there: Workspace, output: Output) -> None:
    """Put a folder aside, and take the one that Git has: where size and time are as they were, Git sees no change."""
    there.put_aside(there.root / output.path)
    git(there.root, "checkout", "--", output.path)


def _problem_of_checkpoint(path: Path) -> str:
    import safetensors

    from resnet_repro.checkpoint import read

    try:
        with safetensors.safe_open(path, "np") as file:
            identity = json.loads(file.metadata()["identity"])
        read(path, identity)
    except ReproError as error:
        return str(error)
    except Exception as error:  # what a damaged header raises is not foreseeable
        return f"{path} is damaged: {error!r}"
    return ""


def _steps_if_finished(there: Workspace, path: Path) -> int:
    """Of a checkpoint of the end of a training by the plan that is there now; else 0."""
    from resnet_repro.checkpoint import content_of

    content = content_of(path)
    plan = there.root / "plans" / f"{content.get('origin', {}).get('model')}.json"
    if not content.get("done") or not plan.is_file() or sha256_of(plan) != content["origin"]["plan_sha256"]:
        return 0
    return int(content["counters"]["step"])


def _artifact_places(database: Path) -> list[str]:
    """Where our experiment keeps its files; empty before there are tables."""
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,))
            return [place for (place,) in rows]
    except sqlite3.OperationalError:
        return []


def _was_started_by_dvc(process: psutil.Process) -> bool:
    try:
        return "DVC_STAGE" in process.environ()
    except psutil.Error:
        return False


def _comes_back(outputs: Sequence[Output]) -> str:
    few, more = outputs[:3], " ..." if len(outputs) > 3 else ""
    paths, stages = (" ".join(names) + more for names in ((o.path for o in few), (o.stage for o in few)))
    return f"`dvc pull {paths}` fetches it where a remote has it, and `dvc repro {stages}` makes it again"


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names) or [""]
    return f"{first} and {len(others)} more" if len(others) > 1 else ", ".join([first, *others])

"""A workspace as `doctor` looks at it: what dvc.lock says, what DVC's cache and the folders hold, and who works there.

DVC itself trusts names, sizes and times; here every file is read.
"""

import fcntl
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from resnet_repro.errors import ParamsError, ReproError
from resnet_repro.evidence import PROVENANCE, Provenance, write_atomically
from resnet_repro.git import git
from resnet_repro.params import Params, load

MEMBERS, ARRAYS, RUNS = "data/members", "data/cifar10", "runs/"
"""the outputs that DVC caches; Git has the others"""
EVIDENCE = ("reports/runs/", "reports/ablations/runs/")
SIDES = ("base", "ours", "theirs")
"""of a merge, as Git's index numbers them from 1"""
LOCKS = ("dvc.lock", "ablations/dvc.lock")
RUN_STAGES = ("train@", "evaluate@")
"""how the stages of a run are called; each depends on its plan, its data, and on no other run"""
MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


class LockFileError(ReproError):
    """A dvc.lock is not what DVC wrote."""


@dataclass(frozen=True)
class Output:
    """A folder that a stage wrote and DVC caches, as dvc.lock has it."""

    path: str
    md5: str
    size: int
    stage: str


class Workspace:
    """Everything is read once, when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def params(self) -> Params | ParamsError:
        try:
            return load(self.root / "params.yaml")
        except ParamsError as error:
            return error

    @cached_property
    def locked(self) -> dict[str, dict[str, Any] | LockFileError]:
        """Of each dvc.lock its stages, or why they cannot be had."""
        there = {name: self.root / name for name in LOCKS if (self.root / name).is_file()}
        return {name: stages_of(path.read_bytes()) for name, path in there.items()}

    @cached_property
    def outputs(self) -> list[Output]:
        return [out for out in self._all_outputs if out.path.startswith((MEMBERS, ARRAYS, RUNS))]

    @cached_property
    def _all_outputs(self) -> list[Output]:
        return [
            Output(out["path"], out["md5"], out["size"], stage if name == LOCKS[0] else f"{name[:-4]}yaml:{stage}")
            for name, stages in self.locked.items()
            if not isinstance(stages, LockFileError)
            for stage, entry in stages.items()
            for out in entry["outs"]
        ]

    @cached_property
    def committed(self) -> list[Output]:
        """What `evaluate` wrote of each run, for Git."""
        return [out for out in self._all_outputs if out.path.startswith(EVIDENCE)]

    @cached_property
    def cache(self) -> Path:
        """Wherever one of DVC's four levels of configuration puts it."""
        from dvc.config import Config

        folder = self.root.resolve() / ".dvc"
        config = Config(str(folder), validate=False) if folder.is_dir() else {}
        return Path(config.get("cache", {}).get("dir") or folder / "cache") / "files/md5"

    def merged_lock(self, name: str) -> str | None:
        """A dvc.lock with the stages of runs that either side of a merge added or changed, during it and right after;
        None where there is no merge. Of a stage that both changed, ours stays.

        Stages of runs do not depend on each other, so both sides' hold; what else differs runs again in seconds.
        """
        is_broken = isinstance(self.locked[name], LockFileError)
        stages = {side: git(self.root, "show", f":{number}:./{name}") for number, side in enumerate(SIDES, 1)}
        if stages["theirs"] is None:
            merges = [("HEAD", "MERGE_HEAD"), *([] if is_broken else [("HEAD^1", "HEAD^2")])]
            for first, second in merges:
                if (fork := git(self.root, "merge-base", first, second)) is not None:
                    revisions = (fork.decode().strip(), "HEAD", second)
                    shown = (git(self.root, "show", f"{revision}:./{name}") for revision in revisions)
                    stages = dict(zip(SIDES, shown, strict=True))
                    break
            else:
                return None
        if not is_broken:
            stages["ours"] = (self.root / name).read_bytes()
        base, ours, theirs = (split_lock((stages[side] or b"").decode()) for side in SIDES)
        runs = {n: text for n, text in theirs[1].items() if n.startswith(RUN_STAGES) and self._is_planned(n)}
        taken = {n: text for n, text in runs.items() if base[1].get(n) == ours[1].get(n)}
        return (ours[0] or theirs[0]) + "".join((ours[1] | taken).values())

    def _is_planned(self, stage: str) -> bool:
        key, params = stage.partition("@")[2], self.params
        return isinstance(params, ParamsError) or key in params.runs or key in params.ablations

    def object(self, md5: str) -> Path:
        return self.cache / md5[:2] / md5[2:]

    @cached_property
    def objects(self) -> dict[str, bool]:
        """Of each object in DVC's cache whether its content has the md5 that is its name."""
        names = {path.parent.name + path.name: path for path in sorted(self.cache.glob("??/*"))}
        return {n: _md5(path) == n.removesuffix(".dir") for n, path in names.items() if MD5.fullmatch(n)}

    @cached_property
    def found(self) -> dict[str, dict[str, str]]:
        """Of each output that is in the workspace its files' md5."""
        return {out.path: files for out in self.outputs if (files := _files(self.root / out.path)) is not None}

    def is_here(self, output: Output) -> bool:
        """Whether the workspace has it as dvc.lock has it."""
        return _md5_of(self.found.get(output.path)) == output.md5

    def parts(self, output: Output) -> dict[str, str]:
        """Its files' md5 as dvc.lock means them; empty where no whole list of them is left."""
        if self.objects.get(output.md5):
            return {part["relpath"]: part["md5"] for part in json.loads(self.object(output.md5).read_bytes())}
        return self.found[output.path] if self.is_here(output) else {}

    def is_cached(self, output: Output) -> bool:
        return all(self.objects.get(md5) for md5 in (output.md5, *self.parts(output).values()))

    def has_kept(self, key: str) -> bool:
        """Whether DVC has what is in runs/KEY: dvc.lock the digest, and the cache every file, of whatever content."""
        files = _files(self.root / RUNS / key)
        locked = any(out.path == f"{RUNS}{key}" and out.md5 == _md5_of(files) for out in self.outputs)
        return locked and all(self.object(md5).is_file() for md5 in (_md5_of(files), *(files or {}).values()))

    def kept_checkpoints(self, key: str) -> list[Path]:
        """The folders of checkpoints of the very training whose outcome DVC has in runs/KEY."""
        if not self.has_kept(key):
            return []
        from resnet_repro.checkpoint import content_of  # imports torch

        uid = Provenance.read(self.root / RUNS / key / PROVENANCE).uid
        newest = {path.parent: path for path in sorted(self.root.glob(f"checkpoints/{key}/*/step-*.safetensors"))}
        return [folder for folder, path in newest.items() if content_of(path).get("origin", {}).get("uid") == uid]

    def drop_kept(self, key: str) -> None:
        """Remove the checkpoints that nobody needs any more."""
        for folder in self.kept_checkpoints(key):
            shutil.rmtree(folder)

    def copy_to_cache(self, output: Output) -> None:
        """As `dvc commit` would, of an output that the workspace has as dvc.lock has it."""
        contents = {md5: (self.root / output.path / name).read_bytes() for name, md5 in self.found[output.path].items()}
        for md5, content in {**contents, output.md5: _listing(self.found[output.path])}.items():
            if not self.objects.get(md5):
                write_atomically(self.object(md5), content)
                self.object(md5).chmod(0o444)  # as DVC does

    def copy_from_cache(self, output: Output) -> None:
        """As `dvc checkout` would, of an output that is whole in the cache."""
        for name, md5 in self.parts(output).items():
            write_atomically(self.root / output.path / name, self.object(md5).read_bytes())

    def put_aside(self, path: Path) -> None:
        """Move it to .dvc/tmp/quarantine, if it is still there."""
        here, root = path.resolve(), self.root.resolve()
        there = self.quarantine / (here.relative_to(root) if here.is_relative_to(root) else Path(*here.parts[-4:]))
        if path.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, there)

    @cached_property
    def quarantine(self) -> Path:
        folder = self.root / ".dvc/tmp/quarantine"
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder, prefix=time.strftime("%Y-%m-%d-")))

    @cached_property
    def rwlock(self) -> dict[int, str] | None:
        """What DVC's processes hold while a stage runs: id -> command; None where the file is no such list."""
        try:
            content = json.loads((self.root / ".dvc/tmp/rwlock").read_bytes())
            readers = content.get("read", {}).values()
            entries = [*content.get("write", {}).values(), *(reader for those in readers for reader in those)]
            return {int(entry["pid"]): str(entry["cmd"]) for entry in entries}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    @cached_property
    def at_work(self) -> dict[int, str]:
        """DVC's processes that work here: id -> command."""
        every, root = [process for process in psutil.process_iter(["cwd"]) if is_dvc(process)], self.root.resolve()
        here = {process for process in every if Path(process.info["cwd"] or "/").is_relative_to(root)}
        # by its command, not by its start: a step of the clock moves that, and the number may be another's by now
        here |= {process for pid in self.rwlock or () if (process := _living(pid)) and is_dvc(process)}
        here |= {process for process in [_holder(self.root / ".dvc/tmp/lock")] if process}
        return {process.pid: " ".join(_command(process)[-4:]) for process in here}

    @cached_property
    def trainers(self) -> dict[str, psutil.Process]:
        """MODEL-SEED -> the process that trains it."""
        holders = {path.parent.name: _holder(path) for path in sorted(self.root.glob("checkpoints/*/lock"))}
        return {key: process for key, process in holders.items() if process}


def stages_of(content: bytes) -> dict[str, Any] | LockFileError:
    """The stages of a dvc.lock, each with the `outs` that all of ours have, or what is wrong with it."""
    marks = [
        n for n, line in enumerate(content.splitlines(), 1) if line.startswith((b"<<<<<<<", b"=======", b">>>>>>>"))
    ]
    if marks:
        return LockFileError(f"line {marks[0]} is the mark of a merge conflict")
    try:
        stages = YAML(typ="safe").load(content)["stages"]
        entries = [entry for stage in stages.values() for entry in (*stage["outs"], *stage.get("deps", ()))]
        whole = all(entry["path"] and entry["size"] >= 0 and MD5.fullmatch(entry["md5"]) for entry in entries)
    except (YAMLError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole or not content.endswith(b"\n"):
        return LockFileError("it is truncated or damaged")
    return dict(stages)


def split_lock(lock: str) -> tuple[str, dict[str, str]]:
    """What stands above the stages of a dvc.lock, and each stage's lines by its name."""
    head, *blocks = re.split(r"^(?=  \S)", lock, flags=re.MULTILINE)
    return head, {block.partition(":\n")[0].strip(): block for block in blocks}


def is_dvc(process: psutil.Process) -> bool:
    """Whether it is a `dvc` command."""
    command = _command(process)
    return any(Path(part).name == "dvc" for part in command[:3]) and "daemon" not in command


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _holder(lock: Path) -> psutil.Process | None:
    """The process that holds a lock file, in which its number stands."""
    text = lock.read_text(errors="replace").strip() if lock.is_file() else ""
    process = _living(int(text)) if text.isdecimal() else None
    if process is not None:
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return process
    return None


def _living(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _files(folder: Path) -> dict[str, str] | None:
    """The md5 of each file below a folder; None where there is no folder."""
    if not folder.is_dir():
        return None
    return {path.relative_to(folder).as_posix(): _md5(path) for path in folder.rglob("*") if path.is_file()}


def digest_of_folder(folder: Path) -> str:
    """DVC's md5 of a folder; empty where there is none."""
    return _md5_of(_files(folder))


def _md5_of(files: Mapping[str, str] | None) -> str:
    """DVC's md5 of a folder; empty where there is none."""
    return "" if files is None else hashlib.md5(_listing(files), usedforsecurity=False).hexdigest() + ".dir"


def _listing(files: Mapping[str, str]) -> bytes:
    """DVC's object of a folder, whose md5 is the folder's."""
    return json.dumps([{"md5": files[name], "relpath": name} for name in sorted(files)]).encode()


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()

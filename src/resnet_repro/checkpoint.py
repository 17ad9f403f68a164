"""The state of a run on disk, outside DVC's outputs (which DVC deletes before a stage reruns).

    checkpoints/MODEL-SEED/lock               held by the process that trains the run
    checkpoints/MODEL-SEED/IDENTITY/step-N.safetensors

IDENTITY digests everything that decides the bits: plan, seed, data, engine, torch, processor. A checkpoint of
another plan or kind of machine thus lies in another folder; one whose content does not say the same, or whose
digest is wrong, is refused. One of another plan or data set is never resumed, one of another kind of machine only
if somebody says so. Two generations are kept: a file that a power cut tore is named, and the
one before it is used. The last one of a training is of its end, and stays until DVC has what was trained
(`Workspace.drop_kept`): whatever stops the stage after that, the next one only writes the files anew.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from resnet_repro.errors import CheckpointError, RunLockedError
from resnet_repro.evidence import make_folder, write_atomically

FORMAT = 1
GENERATIONS = 2
SAME_RUN = frozenset({"model", "seed", "data_sha256", "plan_sha256"})
"""what of an identity says which run it is; the rest is the kind of machine"""
KNOWN_LATER = ("processor", "cpu_capability", "cpu_flags", "onednn_max_cpu_isa", "compiler_isa")
"""what the identities of the first checkpoints do not have"""
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, Tensor]
    content: dict[str, Any]
    """JSON: counters, history, what the run's provenance needs"""


@dataclass(frozen=True)
class Elsewhere:
    """A checkpoint of a run that another kind of machine wrote."""

    path: Path
    identity: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run under one identity."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.run_folder = folder
        self.identity = identity
        older = {key: value for key, value in identity.items() if key not in KNOWN_LATER}
        self.usable = {folder / _name(this): this for this in (older, identity)}
        self.folder = folder / _name(identity)

    def save(self, checkpoint: Checkpoint, step: int) -> None:
        """Write atomically and durably, then drop all but the two newest.

        Raises:
            OSError: the disk is full or refuses; the older checkpoints are untouched.
        """
        metadata = {
            "format": str(FORMAT),
            "identity": json.dumps(self.identity, sort_keys=True),
            "content": json.dumps(checkpoint.content),
        }
        metadata["sha256"] = _digest(metadata, checkpoint.tensors)
        path = self.folder / f"step-{step:09d}.safetensors"
        write_atomically(path, safetensors.torch.save(checkpoint.tensors, metadata))
        unfinished = self.folder.glob(".step-*")  # by those that were killed
        for old in (*_newest_first(self.folder)[GENERATIONS:], *unfinished):
            old.unlink()

    def load(self, use: Callable[[Checkpoint], T]) -> T | None:
        """What `use` makes of the newest checkpoint that is whole, or None where there is none at all.

        Args:
            use: raises ValueError, KeyError or TypeError where it cannot use a checkpoint.

        Raises:
            CheckpointError: there are checkpoints, and all of them are damaged.
        """
        problems = []
        for path in _newest_first(*self.usable):
            try:
                return use(read(path, self.usable[path.parent]))
            except CheckpointError as error:
                problem = str(error)
            except (ValueError, KeyError, TypeError) as error:
                problem = f"{path} does not fit this run: {error!r}"
            problems.append(problem)
            print(f"{problem}; trying the one before", flush=True)
        if problems:
            raise CheckpointError(f"{'; '.join(problems)}. Delete {path.parent} to start over")
        return None

    def join_parts(self) -> None:
        """Put together what was handed on in parts, FILE.0, FILE.1, ...: some hosts of Git refuse large files."""
        for first in self.run_folder.glob("*/step-*.safetensors.0"):
            whole, parts = first.with_suffix(""), sorted(first.parent.glob(f"{first.stem}.[0-9]"))
            write_atomically(whole, b"".join(part.read_bytes() for part in parts))
            for part in parts:
                part.unlink()

    def others(self) -> list[Path]:
        """Folders of checkpoints of this run's name that are not used."""
        return sorted({path.parent for path in self.run_folder.glob("*/step-*.safetensors")} - self.usable.keys())

    def elsewhere(self) -> Elsewhere | None:
        """Of this run, model, seed, plan and data, what another kind of machine wrote that is further than ours."""
        own = max(map(step_of, _newest_first(*self.usable)), default=-1)
        for path in _newest_first(*self.others()):
            if step_of(path) > own:
                try:
                    identity, _ = _verified(path)
                except CheckpointError as error:
                    print(error, flush=True)
                    continue
                if all(identity.get(key) == self.identity.get(key) for key in SAME_RUN):
                    return Elsewhere(path, identity)
        return None

    def adopt(self, other: Elsewhere) -> None:
        """Go on from it."""
        self.usable[other.path.parent] = other.identity

    def put_aside(self, other: Elsewhere) -> Path:
        """Move its folder to where no training looks, and say where."""
        for number in count(1):
            if not (there := self.run_folder / "aside" / f"{other.path.parent.name}-{number}").exists():
                break
        make_folder(there.parent)
        return other.path.parent.rename(there)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock, which the system releases however the process ends.

        Raises:
            RunLockedError: another process trains this run.
        """
        make_folder(self.run_folder)
        path = self.run_folder / "lock"
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise RunLockedError(
                    f"process {file.read().strip() or '?'} is training {self.run_folder.name} already: "
                    "wait for it, or stop it first"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def step_of(path: Path) -> int:
    """Of a checkpoint, by its name."""
    return int(path.stem.removeprefix("step-"))


def content_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors, from its header alone; empty where that cannot be read."""
    try:
        with safetensors.safe_open(path, "np") as file:
            return dict(json.loads(file.metadata()["content"]))
    except Exception:  # a damaged header raises more than safetensors' own errors
        return {}


def state_of(run_folder: Path) -> str:
    """In words, what the checkpoints of a run say: `waits`, `runs, at step N`, `interrupted at step N`, `finished`."""
    newest = max(run_folder.glob("*/step-*.safetensors"), key=step_of, default=None)
    at = f"at step {step_of(newest):,}" if newest else "before its first checkpoint"
    if (lock := run_folder / "lock").is_file():
        with lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return f"runs, {at}"
    if newest is None:
        return "waits"
    return f"finished {at}, not kept yet" if content_of(newest).get("done") else f"interrupted {at}"


def read(path: Path, identity: dict[str, Any]) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: not a checkpoint, damaged, or of another plan, seed, data set, engine or version.
    """
    theirs, checkpoint = _verified(path)
    if theirs != identity:
        raise CheckpointError(f"{path} belongs to another run: {differences(theirs, identity)}")
    return checkpoint


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Of two identities, in words; of two lists of flags, what one has and the other has not."""
    told = []
    for key in sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key)):
        before, after = was.get(key), now.get(key)
        if key == "cpu_flags" and isinstance(before, str) and isinstance(after, str):
            gone, new = (
                " ".join(sorted(set(a.split()) - set(b.split()))) for a, b in ((before, after), (after, before))
            )
            told.append(f"{key} had {gone or 'nothing'} and have {new or 'nothing'} instead")
        else:
            told.append(f"{key} {before!r} is now {after!r}")
    return ", ".join(told)


def _verified(path: Path) -> tuple[dict[str, Any], Checkpoint]:
    """Whose it says it is, and the checkpoint."""
    tensors, metadata = read_tensors(path)
    if metadata.pop("sha256", None) != _digest(metadata, tensors):
        raise CheckpointError(f"{path} is damaged: its content does not fit its digest")
    if (version := metadata.get("format")) != str(FORMAT):
        raise CheckpointError(f"{path} has format {version}, and this version reads {FORMAT}")
    try:
        identity, content = (json.loads(metadata[name]) for name in ("identity", "content"))
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r} in its metadata") from None
    return identity if isinstance(identity, dict) else {}, Checkpoint(tensors, content)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, dict(file.metadata() or {})
    except Exception as error:  # a damaged header raises more than safetensors' own errors
        raise CheckpointError(f"{path} is damaged: {error}") from None


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ValueError: names, types or shapes are not as `expected`, or a value is not finite."""
    if differ := tensors.keys() ^ expected.keys():
        raise ValueError(f"tensors missing or unknown: {', '.join(sorted(differ)[:3])}")
    for name, tensor in tensors.items():
        found, wanted = ((t.dtype, *t.shape) for t in (tensor, expected[name]))
        if found != wanted:
            raise ValueError(f"tensor {name} is {found}, not {wanted}")
        if not tensor.isfinite().all():
            raise ValueError(f"tensor {name} has values that are not finite")


def _name(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _newest_first(*folders: Path) -> list[Path]:
    return sorted((path for folder in folders for path in folder.glob("step-*.safetensors")), key=step_of, reverse=True)


def _digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256((json.dumps(metadata, sort_keys=True) + digest_of(tensors)).encode()).hexdigest()


def digest_of(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes: equal exactly if all bits are equal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""What can be compared, by its name: runs, models, Git revisions, DVC's experiments and MLflow's runs."""

import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from resnet_repro.errors import ReproError
from resnet_repro.evidence import METRICS, PREDICTIONS, PROVENANCE, RunEvidence, evidence_remedy
from resnet_repro.mistakes import NotPlain, nearest, plain_yaml, shown
from resnet_repro.tracking.read import find_run
from resnet_repro.tracking.record import RunRecord, record_of_evidence

WORKSPACE = "workspace"
"""what DVC calls the working tree"""
PARAMS, RUNS, ABLATIONS = "params.yaml", "reports/runs", "reports/ablations/runs"
KINDS = "a run as MODEL-SEED, a model, a Git revision, REVISION:RUN, `workspace`, a DVC experiment or an MLflow run id"


@dataclass(frozen=True)
class Run:
    """One run, as MLflow would show it, and what its net said of each test image."""

    record: RunRecord
    predictions: Mapping[str, np.ndarray] | None = None
    """label and predicted, each (N,) uint8; None where only MLflow has the run"""

    @property
    def key(self) -> str:
        return self.record.name

    @property
    def test_error_percent(self) -> float | None:
        return self.record.summary.get("final_test_error_percent")


@dataclass(frozen=True)
class Side:
    name: str
    """as it was asked for"""
    runs: tuple[Run, ...]
    commit: str | None = None
    """of a revision"""
    params: Mapping[str, Any] | None = None
    """all of a revision's params.yaml, by dotted names; None where it is no revision"""
    is_collection: bool = False
    """the runs are different models': each is compared with its namesake"""


def side_of(root: Path, name: str, only: str | None = None) -> Side:
    """What a name means in a repository: what is in the working tree first, then Git, DVC and MLflow.

    Args:
        only: of a revision take only this run, or this model's runs.

    Raises:
        ReproError: nothing has the name, or its evidence is missing or damaged.
        TrackingError: the name is an MLflow run id by its form, and MLflow's store cannot be used.
    """
    here = _folders(root)
    if keys := _named(here, name):
        return Side(name, tuple(_read(here[key]) for key in keys))
    if name == WORKSPACE:
        return _collection(root, name, None, only)
    if commit := _commit(root, name):
        return _collection(root, name, commit, only)
    revision, colon, key = name.rpartition(":")
    if colon and (revision == WORKSPACE or (commit := _commit(root, revision))):
        side = _collection(root, name, commit, key, must=True)
        return Side(name, side.runs, commit, side.params)
    if re.fullmatch("[0-9a-f]{32}", name) and (record := find_run(root, name)):
        same = [folder for folder in here.values() if _uid(folder) == record.uid]
        return Side(f"{record.name} ({name[:8]})", (_read(same[0]) if same else Run(record),))
    planned = _keys(_params(root))
    if name in planned or name in {key.rpartition("-")[0] for key in planned}:
        raise ReproError(f"{name} has no evidence here yet: `dvc repro evaluate@MODEL-SEED` makes that of a run")
    known = [*here, *(key.rpartition("-")[0] for key in here), *_references(root)]
    raise ReproError(f"nothing here is called {shown(name)}{nearest(name, list(dict.fromkeys(known)))}. Name {KINDS}")


def _collection(root: Path, name: str, commit: str | None, only: str | None, must: bool = False) -> Side:
    """The runs that params.yaml of a commit (None: of the working tree) names and that have evidence there."""
    with tempfile.TemporaryDirectory() as temporary:
        place = root if commit is None else _unpack(root, commit, Path(temporary))
        params, here = _params(place), _folders(place)
        planned = _keys(params)
        keys = [key for key in here if key in planned] if only is None else _named(here, only)
        if must and not keys:
            raise ReproError(f"{name}: there is no evidence of that run at that revision{nearest(only or '', here)}")
        runs = tuple(_read(here[key]) for key in keys)
    return Side(name, runs, commit, flatten(params), is_collection=True)


def _folders(root: Path) -> dict[str, Path]:
    """The evidence of each run, by its key."""
    found = (path.parent for part in (RUNS, ABLATIONS) for path in sorted((root / part).glob(f"*/{METRICS}")))
    return {folder.name: folder for folder in found}


def _named(keys: Iterable[str], name: str) -> list[str]:
    """The run of this key, or the runs of this model."""
    keys = list(keys)
    return [name] if name in keys else [key for key in keys if key.rpartition("-")[0] == name]


def _keys(params: Mapping[str, Any]) -> list[str]:
    return [*(params.get("runs") or ()), *(params.get("ablations") or ())]


def _read(folder: Path) -> Run:
    try:
        run = RunEvidence.read(folder)
        predictions = run.predictions() if (folder / PREDICTIONS).is_file() else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise ReproError(f"evidence of {folder.name} cannot be read ({reason}); {evidence_remedy(folder)}") from None
    return Run(record_of_evidence(run), predictions)


def _uid(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / PROVENANCE).read_bytes())["uid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged, and not necessarily what was asked for


def _params(root: Path) -> dict[str, Any]:
    """A revision's params.yaml, whatever keys its version of the package knew."""
    try:
        tree = plain_yaml((root / PARAMS).read_bytes())
    except FileNotFoundError:
        raise ReproError(
            "there is no params.yaml: run this in the repository's root, and compare its commits"
        ) from None
    except NotPlain as error:
        raise ReproError(f"params.yaml, line {error.line}: {error}") from None
    return tree if isinstance(tree, dict) else {}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and values as `dvc params diff` has them: lists are values, and an empty mapping is nothing."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _commit(root: Path, name: str) -> str | None:
    """The commit of a Git revision or of an experiment, which DVC keeps as refs/exps/XX/SHA/NAME."""
    if not name or name.startswith("-"):
        return None
    found = _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", check=False).decode().strip()
    return found or _experiments(root).get(name)


def _experiments(root: Path) -> dict[str, str]:
    said = _git(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps", check=False).decode()
    references = (line.rsplit(" ", 1) for line in said.splitlines())
    return {name.rpartition("/")[2]: commit for name, commit in references if name.count("/") == 4}


def _references(root: Path) -> list[str]:
    said = _git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", check=False)
    return [*said.decode().splitlines(), *_experiments(root)]


def _unpack(root: Path, commit: str, folder: Path) -> Path:
    """Params and evidence of a commit, in a folder beside the working tree, which is not touched."""
    paths = [part for part in (PARAMS, RUNS, ABLATIONS) if _git(root, "ls-tree", commit, "--", part)]
    if paths:
        with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", commit, "--", *paths))) as archive:
            archive.extractall(folder, filter="data")
    return folder


def _git(root: Path, *arguments: str, check: bool = True) -> bytes:
    """What git says; nothing if it fails, unless that is an error."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise ReproError("git is not installed, and revisions cannot be read without it") from None
    if check and done.returncode:
        raise ReproError(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return b"" if done.returncode else done.stdout

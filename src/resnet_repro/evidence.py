"""The files of a run: what `train` writes to `runs/MODEL-SEED` and `evaluate` to `reports/runs/MODEL-SEED`.

plan.json            the plan that was trained, byte for byte
provenance.json      what is not repeatable: when, where, with which versions
history.csv          per epoch: learning rate, losses and errors; equal whenever the run is repeated
timing.csv           per epoch: seconds, images per second, when it ended
weights.safetensors  the net after the last step (runs/ only)
metrics.json         the errors (reports/runs/ only)
predictions.npz      per test image: true class, predicted class, both probabilities (reports/runs/ only)
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from resnet_repro.errors import CheckpointError
from resnet_repro.params import Architecture, Engine, Recipe

FORMAT = 1
"""Version of these files. Readers understand all versions up to this one."""
METRICS_FORMAT = 2
"""Of metrics.json and predictions.npz. In format 1 they were in the precision of the training, since 2 in fp32."""

PLAN, PROVENANCE, METRICS = "plan.json", "provenance.json", "metrics.json"
HISTORY, TIMING = "history.csv", "timing.csv"
WEIGHTS, PREDICTIONS = "weights.safetensors", "predictions.npz"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Plan(Record):
    """One model, resolved: all that decides its numbers. Written by `plan`, neutral defaults left out."""

    model: str
    recipe_name: str
    layers: int
    """weighted layers on the main path: convolutions and the linear layer, projections not counted"""
    parameters: int
    architecture: Architecture
    recipe: Recipe
    engine: Engine = Engine()
    fingerprint: dict[str, str]
    """digests of what the code computes for this model, by component"""

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Plan":
        return cls.model_validate_json(path.read_text(encoding="utf-8"), strict=False)


class Processor(Record):
    """A CPU as the system names it; "" where it does not. Families and models have few kinds of kernels in common,
    and one `name`, such as AMD EPYC, stands for several."""

    vendor: str = ""
    family: str = ""
    model: str = ""
    stepping: str = ""
    name: str

    def __str__(self) -> str:
        exact = f"{self.vendor} family {self.family} model {self.model} stepping {self.stepping}"
        return exact if self.vendor else self.name


class Session(Record):
    """One process of a training: from its start, or from a checkpoint, to the next one or the end."""

    started_at: float
    """seconds since 1970"""
    processor: Processor
    cores: int
    """that the process may use"""
    cpu_capability: str
    """the instruction set that torch chose for its own kernels"""
    cpu_flags: str
    """of the instruction sets by which oneDNN chooses"""
    onednn_max_cpu_isa: str | None = None
    """the limit that the environment sets to that"""
    compiler_isa: str | None = None
    """the instruction set that torch.compile chose, where it compiles for the CPU"""
    device: str
    device_name: str
    compute_capability: str | None = None
    driver: str | None = None
    """the two of a CUDA device"""
    mode: str
    precision: str
    threads: int
    torch: str
    git_commit: str | None = None
    moved: bool = False
    """it went on from a checkpoint of another kind of machine"""


MOVED = "moved: not bit-reproducible"


class Origin(Record):
    """What is known of a run when it starts: who trains what, where and with what."""

    uid: str
    """one per training, kept through interruptions"""
    model: str
    seed: int
    started_at: float
    """seconds since 1970"""
    device: str
    device_name: str
    mode: str
    precision: str
    threads: int
    deterministic: bool
    versions: dict[str, str]
    platform: str
    git_commit: str | None = None
    git_dirty: bool | None = None
    data_sha256: str
    plan_sha256: str
    session_log: tuple[Session, ...] = ()
    """in order; without those of before there was this"""

    @property
    def key(self) -> str:
        return f"{self.model}-{self.seed}"

    @property
    def moved(self) -> bool:
        """Whether kinds of machines share in its bits."""
        return any(session.moved for session in self.session_log)

    @property
    def machine(self) -> str:
        """For tables: short, and honest about a run that moved."""
        return f"{self.device_name} ({MOVED})" if self.moved else self.device_name


class Provenance(Origin):
    """An origin and what came of it; everything of a run that is not repeatable."""

    format: int = FORMAT
    finished_at: float
    duration_seconds: float
    """spent training and evaluating, interruptions not counted"""
    sessions: int = 1
    """1 + the number of times it was resumed"""
    peak_memory_bytes: int | None = None
    images_per_second: float
    """median over the epochs, training only"""
    weights_sha256: str
    files_sha256: dict[str, str] = {}
    """of history.csv and timing.csv; empty, as the next, in files of before there was this"""
    sha256: str = ""
    """of this file without this value"""

    def write(self, path: Path) -> None:
        content = _json(self)
        digest = hashlib.sha256(content).hexdigest()
        write_atomically(path, content.replace(b'"sha256": ""', f'"sha256": "{digest}"'.encode()))

    @classmethod
    def read(cls, path: Path) -> "Provenance":
        """Raises ValueError: it is not what `write` wrote."""
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, content: bytes, name: str = PROVENANCE) -> "Provenance":
        """Raises ValueError: it is not what `write` wrote."""
        found = cls.model_validate_json(content)
        if found.sha256 and hashlib.sha256(content.replace(found.sha256.encode(), b"")).hexdigest() != found.sha256:
            raise ValueError(f"{name} does not fit its own digest")
        return found


class Metrics(Record):
    """The errors of one run, percent of the test images (validation: of the images held out)."""

    format: int = METRICS_FORMAT
    model: str
    seed: int
    steps: int
    epochs: int
    num_test_images: int
    test_error_percent: float
    """of the last step's weights, in fp32 and uncompiled: the headline, and what whoever loads the weights measures"""
    test_loss: float
    training_precision_test_error_percent: float | None = None
    """of the same weights as the training evaluated them: where the history ends; None in format 1"""
    population_statistics_test_error_percent: float | None = None
    """in fp32, with batch normalisation's statistics averaged over training images (`evaluation.average_statistics`);
    None in format 1 and for nets without running statistics"""
    response_stds: tuple[float, ...] | None = None
    """standard deviation of each 3x3 convolution's response, behind its normalisation, over the test images (He 2015,
    Figure 7); None in format 1 and where units are not He 2015's"""
    lowest_test_error_percent: float
    lowest_test_error_epoch: int
    """over all epochs: the test set chose it"""
    best_validation_epoch: int | None = None
    best_validation_error_percent: float | None = None
    best_validation_test_error_percent: float | None = None
    """test error of the epoch with the lowest validation error"""
    train_error_percent: float
    train_loss: float
    confusion: list[list[int]]
    """[true class][predicted class], test images"""


@dataclass(frozen=True)
class Epoch:
    """One row of the history and of the timing. Errors in percent; losses are mean cross-entropy in nats."""

    epoch: int  # counted from 1
    step: int  # steps done at its end
    learning_rate: float  # of its last step
    train_loss: float
    train_error_percent: float
    test_loss: float
    test_error_percent: float
    validation_loss: float | None
    validation_error_percent: float | None
    seconds: float
    train_seconds: float
    images_per_second: float  # training only
    finished_at: float  # seconds since 1970


TIMING_COLUMNS = ("seconds", "train_seconds", "images_per_second", "finished_at")


def write_epochs(folder: Path, epochs: Sequence[Epoch]) -> None:
    """history.csv and timing.csv."""
    table = pd.DataFrame([asdict(epoch) for epoch in epochs], columns=[f.name for f in fields(Epoch)])
    history, timing = table.drop(columns=list(TIMING_COLUMNS)), table[["epoch", "step", *TIMING_COLUMNS]]
    write_atomically(folder / HISTORY, history.to_csv(index=False).encode())
    write_atomically(folder / TIMING, timing.to_csv(index=False).encode())


def read_history(folder: Path) -> pd.DataFrame:
    """history.csv joined with timing.csv: the columns of `Epoch`, missing values as NaN."""
    history, timing = pd.read_csv(folder / HISTORY), pd.read_csv(folder / TIMING)
    return history.merge(timing, on=["epoch", "step"])[[f.name for f in fields(Epoch)]]


def write_predictions(path: Path, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Write (N,) true classes and (N, 10) probabilities as some 50 KB per 10,000 images."""
    predicted = probabilities.argmax(axis=1)
    rows = np.arange(len(labels))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        label=labels.astype(np.uint8),
        predicted=predicted.astype(np.uint8),
        probability_predicted=probabilities[rows, predicted].astype(np.float16),
        probability_label=probabilities[rows, labels].astype(np.float16),
    )
    write_atomically(path, buffer.getvalue())


def read_predictions(path: Path) -> dict[str, np.ndarray]:
    """The four arrays of `write_predictions`, each (N,): label, predicted uint8; probability_* float16."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@dataclass(frozen=True)
class RunEvidence:
    """What is committed of one run, read from `reports/runs/MODEL-SEED`."""

    key: str
    folder: Path
    plan: Plan
    provenance: Provenance
    metrics: Metrics
    history: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> "RunEvidence":
        return cls(
            key=folder.name,
            folder=folder,
            plan=Plan.read(folder / PLAN),
            provenance=Provenance.read(folder / PROVENANCE),
            metrics=Metrics.model_validate_json((folder / METRICS).read_text()),
            history=read_history(folder),
        )

    def predictions(self) -> dict[str, np.ndarray]:
        return read_predictions(self.folder / PREDICTIONS)


@dataclass(frozen=True)
class AuditedNet:
    """Published weights as `resnet-repro audit` measured them: one run of their project's recipe, of which no more is
    known."""

    collection: str
    net: str
    """the paper's model, such as resnet20"""
    test_error_percent: float
    response_stds: tuple[float, ...] | None = None

    @property
    def model(self) -> str:
        """The name in params.yaml, of the project's recipe: resnet20_a_martyn."""
        return f"{self.net}_{self.collection}".replace("-", "_")


OWN = "resnet-repro"
"""The collection of this project's own published weights in `audit.json`."""


def read_audited(path: Path) -> tuple[AuditedNet, ...]:
    """Other people's nets in `audit.json`. Our own there are our runs once more."""
    weights = json.loads(path.read_text(encoding="utf-8"))["weights"]
    return tuple(
        AuditedNet(collection, net, each["test_error_percent"], each.get("response_stds"))
        for each in weights
        for collection, net in [each["name"].split("/")]
        if collection != OWN
    )


def evidence_remedy(folder: Path) -> str:
    """How committed evidence that cannot be read comes back. Not by a stage that would first remove it, and then lack
    the weights."""
    root = next((parent.parent for parent in folder.parents if parent.name == "reports"), Path())
    if (root / "runs" / folder.name / WEIGHTS).is_file():
        return f"`dvc repro evaluate@{folder.name}` writes it anew"
    return f"`git checkout -- {folder}` brings the committed one back"


def read_trained(run: Path) -> tuple[Plan, Provenance]:
    """Plan and provenance of the folder that `train` wrote, its files held against their digests.

    Raises:
        CheckpointError: a file is missing or is not what was trained.
    """
    name = PROVENANCE
    try:
        provenance = Provenance.read(run / name)
        digests = {WEIGHTS: provenance.weights_sha256, PLAN: provenance.plan_sha256, **provenance.files_sha256}
        for name, digest in digests.items():
            if sha256_of(run / name) != digest:
                raise ValueError
    except (FileNotFoundError, ValueError) as error:
        state = "missing" if isinstance(error, FileNotFoundError) else "not what was trained"
        raise CheckpointError(
            f"{run / name} is {state}: delete {run} and train it again; if DVC brings it back as it is, "
            "`resnet-repro doctor` finds the damage in DVC's cache"
        ) from None
    return Plan.read(run / PLAN), provenance


def write_json(path: Path, record: BaseModel | dict[str, Any]) -> None:
    write_atomically(path, _json(record))


def _json(record: BaseModel | dict[str, Any]) -> bytes:
    content = record.model_dump(mode="json") if isinstance(record, BaseModel) else record
    return (json.dumps(content, indent=1) + "\n").encode()


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A fresh folder to write to; then each file and folder in it takes the place of its namesake in `out`.

    What is there stays until all that is new is written. Whoever is killed leaves only `.new`, until the next.
    """
    fresh = out / ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        yield fresh
        for path in fresh.iterdir():
            if path.is_dir():
                shutil.rmtree(out / path.name, ignore_errors=True)
            path.replace(out / path.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write so that a reader, or the machine after a power cut, finds the old file or the whole new one.

    Raises:
        OSError: the disk is full or refuses; it names `path` and the bytes, which the system does not.
    """
    temporary: str | None = None
    try:
        make_folder(path.parent)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide it from the group  # noqa: PTH101
        os.replace(temporary, path)  # noqa: PTH105
        _sync(path.parent)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.strerror = str(path), f"{error.strerror} ({len(content):,} bytes to write)"
        raise


def make_folder(folder: Path) -> None:
    """mkdir -p, durable: a power cut takes a new folder that its parent's fsync has not followed."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

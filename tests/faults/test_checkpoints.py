import json
import random
import re
import resource
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import safetensors.torch
import torch

import killing
from reliability import Injections
from resnet_repro import evidence, experiment
from resnet_repro.checkpoint import Checkpoint, CheckpointStore, _digest, read, read_tensors
from resnet_repro.errors import CheckpointError, TrainingError
from resnet_repro.evidence import Provenance
from resnet_repro.models.classifier import Classifier
from resnet_repro.training import Trainer

AREA = "Training, checkpoints and weights"
OLDER = "the file is named, and the run goes on from the checkpoint before it"
REFUSED = "it is refused, naming the file and what to do"

PLAN = killing.make_plan("resnet")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of 60 steps that stopped after step 17: checkpoints of steps 15 and 17."""
    folder = tmp_path_factory.mktemp("interrupted")
    (folder / killing.PLAN).write_text(PLAN.to_json())
    with pytest.raises(experiment.InterruptedRunError):
        killing.train(folder, interruption=killing.Stop(17))
    return folder


@pytest.fixture(scope="module")
def trained(interrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(interrupted, folder, dirs_exist_ok=True)
    killing.train(folder)
    return folder / "run"


@pytest.fixture
def copy(interrupted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(interrupted, tmp_path / "copy")


def generations(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob("checkpoints/*/*/step-*"), reverse=True)


def store_of(path: Path) -> CheckpointStore:
    _, metadata = read_tensors(path)
    return CheckpointStore(path.parents[1], json.loads(metadata["identity"]))


def step_of(found: Checkpoint) -> int:
    return int(found.content["counters"]["step"])


def damaged(content: bytes, count: int, every: int = 4096) -> Iterator[bytes]:
    """`content` cut at every 4 KiB and around its ends, and with flipped bits; `count` of each, chosen at random."""
    choose, size = random.Random(0), len(content)
    cuts = {0, 1, 7, 8, 9, size - 1, *range(every, size, every)}
    for cut in choose.sample(sorted(cuts), min(count, len(cuts))):
        yield content[:cut]
    for place in choose.sample(range(size), min(count, size)):
        yield content[:place] + bytes([content[place] ^ 1 << choose.randrange(8)]) + content[place + 1 :]


@pytest.mark.fault("a checkpoint is cut at any 4 KiB, or a bit of it flips", OLDER)
def test_damage(copy: Path, capsys: pytest.CaptureFixture[str], injected: Injections) -> None:
    newest, _ = generations(copy)
    store, whole = store_of(newest), newest.read_bytes()
    assert store.load(step_of) == 17
    for content in damaged(whole, injected.count(20, 2000)):
        newest.write_bytes(content)
        with injected():
            assert store.load(step_of) == 15
            assert f"{newest} is damaged" in capsys.readouterr().out


@pytest.mark.fault("every checkpoint of a run is damaged", "training stops, naming each file and what to delete")
def test_nothing_whole(copy: Path) -> None:
    newest, older = generations(copy)
    newest.write_bytes(newest.read_bytes()[:-1])
    older.write_bytes(b"")
    remedy = rf"{newest} is damaged: .*; {older} is damaged: .*\. Delete {newest.parent} to start over"
    with pytest.raises(CheckpointError, match=remedy):
        killing.train(copy)


Forgery = Callable[[dict[str, Any], dict[str, str], dict[str, torch.Tensor]], object]


def change(name: str, value: object) -> Forgery:
    return lambda content, metadata, tensors: content.update({name: value})


def label(name: str, text: str) -> Forgery:
    return lambda content, metadata, tensors: metadata.update({name: text})


def spoil(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] | None = None, value: float = 0.0) -> Forgery:
    """One of the tensors."""

    def forge(content: dict[str, Any], metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("weight"))
        tensors[name] = torch.full(shape or tensors[name].shape, value, dtype=dtype)

    return forge


OF_TENSORS: dict[str, Forgery] = {
    "a missing tensor": lambda content, metadata, tensors: tensors.pop(max(tensors)),
    "another tensor": lambda content, metadata, tensors: tensors.update(other=torch.zeros(1)),
    "another type": spoil(dtype=torch.float64),
    "another shape that would broadcast": spoil(shape=(1,)),
    "NaN": spoil(value=float("nan")),
    "infinity": spoil(value=float("inf")),
}
OF_CONTENT: dict[str, Forgery] = {
    "no counters": lambda content, metadata, tensors: content.pop("counters"),
    "no step": change("counters", {"warm_since": None}),
    "a step of another epoch": change("counters", {"step": 41, "warm_since": None}),
    "a step before the first": change("counters", {"step": -1, "warm_since": None}),
    "a step that is none": change("counters", {"step": None, "warm_since": None}),
    "another epoch": change("epochs", [{"epoch": 1}]),
    "another origin": change("origin", {"uid": 5}),
    "no duration": change("duration_seconds", "long"),
    "an unknown key": change("surprise", 1),
}
OF_METADATA: dict[str, Forgery] = {
    "no format": lambda content, metadata, tensors: metadata.pop("format"),
    "a later format": label("format", "2"),
    "no identity": lambda content, metadata, tensors: metadata.pop("identity"),
    "another identity": label("identity", '{"torch": "3"}'),
    "an identity that is a list": label("identity", "[1]"),
    "content that is no JSON": label("content", "{"),
    "content that is a list": label("content", "[]"),
    "content that nests": label("content", "[" * 100_000),
}


@pytest.mark.parametrize("forgery", OF_TENSORS | OF_CONTENT | OF_METADATA)
@pytest.mark.fault("a checkpoint with a right digest and wrong content", OLDER)
def test_forged(copy: Path, trained: Path, capsys: pytest.CaptureFixture[str], forgery: str) -> None:
    newest, _ = generations(copy)
    tensors, metadata = read_tensors(newest)
    content = json.loads(metadata["content"])
    forge = (OF_TENSORS | OF_CONTENT | OF_METADATA)[forgery]
    forge(content, metadata, tensors)
    del metadata["sha256"]
    if forgery not in OF_METADATA:
        metadata["content"] = json.dumps(content)
    metadata["sha256"] = _digest(metadata, tensors)
    newest.write_bytes(safetensors.torch.save(tensors, metadata))
    provenance = killing.train(copy)
    reason = "is damaged: |does not fit this run: |has format |belongs to another run: "
    assert re.search(rf"{newest} ({reason}).*; trying the one before", capsys.readouterr().out, re.DOTALL)
    assert provenance.weights_sha256 == evidence.sha256_of(trained / evidence.WEIGHTS)


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int = 0, stop: int = 4, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HOSTILE = [
    b"",
    b"<html>404</html>",
    b"PK\x03\x04 as torch.save begins",
    b"\x80\x02cos\nsystem\n(S'true'\ntR.",
    *(file_of({}, length=length) for length in (3, 1 << 20, 1 << 40, (1 << 64) - 1)),
    *map(file_of, (b"[" * 1_000_000, b'{"a":' * 100_000, b"\xff" * 8, b'{"a":1}', b'"' + b"x" * (1 << 24))),
    file_of({f"tensor{i}": tensor([0], 0, 0) for i in range(50_000)}),
    file_of({"__metadata__": {"a": 1}}),
    file_of({"__metadata__": {"content": "x" * (1 << 24)}}),
    *(file_of({"mean": tensor(shape)}, b"1234") for shape in ([1 << 40], [1 << 32] * 2, [1 << 62, 4], [(1 << 64) - 1])),
    file_of({"mean": tensor([1 << 38], 0, 1 << 40)}, b"1234"),
    *(file_of({"mean": tensor([1], *ends)}, b"1234") for ends in ((-4, 0), (4, 0), (4, 8), (0, 1 << 63))),
    file_of({"mean": tensor([1]), "scale": tensor([1])}, b"1234"),
    file_of({"mean": tensor([1]), "scale": tensor([1], 2, 6)}, b"123456"),
    file_of({"mean": tensor([1])}, b"12345678"),
    *(file_of({"mean": tensor([1], dtype=dtype)}, b"1234") for dtype in ("F64", "OBJECT", "", "BOOL")),
    file_of({"mean": tensor([0, 1 << 62], 0, 0), "scale": tensor([0] * 9, 0, 0)}),
]


def refuse(folder: Path) -> None:
    """Reads every hostile file, as a checkpoint and as weights, with little memory to spare."""
    if sys.platform == "linux":
        limit = psutil.Process().memory_info().vms + (400 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sorted(folder.iterdir()):
        for reader in (lambda: read(path, {}), lambda: Classifier.load(path, PLAN.architecture)):  # noqa: B023
            with pytest.raises(CheckpointError, match=str(path)):
                reader()


@pytest.mark.fault(
    "hostile files as checkpoint or weights: headers that lie, nest, overlap or promise terabytes", REFUSED
)
def test_hostile_files(tmp_path: Path, injected: Injections) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number, content in enumerate(HOSTILE):
        (folder / f"{number:02}.safetensors").write_bytes(content)
    with injected(times=2 * len(HOSTILE)):
        assert killing.run(tmp_path / "log", refuse, folder) == 0, (tmp_path / "log").read_text()


@pytest.mark.parametrize("forgery", OF_TENSORS)
@pytest.mark.fault("weights of another net, or not finite", REFUSED)
def test_other_weights(trained: Path, tmp_path: Path, forgery: str) -> None:
    path = tmp_path / evidence.WEIGHTS
    tensors = safetensors.torch.load_file(trained / evidence.WEIGHTS)
    OF_TENSORS[forgery]({}, {}, tensors)
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(CheckpointError, match=rf"{path} does not hold the weights of this net \(.*\): take a whole"):
        Classifier.load(path, PLAN.architecture)


@pytest.mark.parametrize("name", ["weights.safetensors", "plan.json", "provenance.json", "history.csv", "timing.csv"])
@pytest.mark.fault(
    "a file of a trained run is cut, a byte of it flips, or it is missing, as out of a damaged cache", REFUSED
)
def test_trained_files(trained: Path, tmp_path: Path, injected: Injections, name: str) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    whole, arrays = (run / name).read_bytes(), killing.make_arrays()
    for content in (None, *damaged(whole, injected.count(10, 3000), every=512)):
        (run / name).unlink() if content is None else (run / name).write_bytes(content)
        state = "missing" if content is None else "not what was trained"
        with injected(), pytest.raises(CheckpointError, match=rf"{run / name} is {state}: delete {run} and train it"):
            experiment.evaluate(run, arrays, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("weights and a history that do not belong together, with right digests", REFUSED)
def test_mixed_runs(trained: Path, tmp_path: Path) -> None:
    """Also how a file older than the digests is read."""
    run = shutil.copytree(trained, tmp_path / "run")
    old = Provenance.read(run / evidence.PROVENANCE).model_dump(exclude={"files_sha256", "sha256"})
    evidence.write_json(run / evidence.PROVENANCE, old)
    experiment.evaluate(run, killing.make_arrays(), tmp_path / "out")
    history = pd.read_csv(run / evidence.HISTORY)
    history.assign(test_error_percent=0.0).to_csv(run / evidence.HISTORY, index=False)
    with pytest.raises(CheckpointError, match=r"resnet-1: the weights give \d+.*% .* 0\.00%: they do not .*: train"):
        experiment.evaluate(run, killing.make_arrays(), tmp_path / "out")


@pytest.mark.fault(
    "the loss becomes infinite or NaN", "training stops, naming step and learning rate; no weights are written"
)
def test_divergence(tmp_path: Path) -> None:
    schedule = PLAN.recipe.schedule.model_copy(update={"learning_rate": 1e6, "warmup": None})
    none = PLAN.architecture.batch_norm.model_copy(update={"kind": "none"})
    architecture = PLAN.architecture.model_copy(update={"batch_norm": none})
    recipe = PLAN.recipe.model_copy(update={"schedule": schedule})
    diverging = PLAN.model_copy(update={"recipe": recipe, "architecture": architecture})
    (tmp_path / killing.PLAN).write_text(diverging.to_json())

    class Told(killing.Silent):
        reason = ""

        def failed(self, reason: str) -> None:
            self.reason = reason

    told = Told()
    with pytest.raises(TrainingError, match=r"resnet-1: the loss became (nan|inf) at step \d+ .*rate 1e\+06"):
        killing.train(tmp_path, observer=told)
    assert "the loss became" in told.reason
    assert not (tmp_path / "run").exists()


@pytest.mark.fault("the device's memory is full", "training stops, naming device and batch, which it never changes")
def test_out_of_memory(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(trainer: Trainer, size: int) -> None:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(Trainer, "_full_step", full)
    with pytest.raises(TrainingError, match=r"resnet-1: out of memory on cpu with batches of 8 images.*recipe"):
        killing.train(copy)


def test_a_checkpoint_in_parts_is_whole_again(tmp_path: Path) -> None:
    """As `split -b 4000000 -d -a 1 FILE FILE.` leaves it; what is cut short is refused like any damaged one."""
    store = CheckpointStore(tmp_path / "net-1", {"seed": 1})
    store.save(Checkpoint({"w": torch.arange(100.0)}, {}), 7)
    (path,) = store.folder.iterdir()
    content = path.read_bytes()
    path.unlink()
    for index, start in enumerate(range(0, len(content), 300)):
        Path(f"{path}.{index}").write_bytes(content[start : start + 300])
    store.join_parts()
    assert [file.name for file in store.folder.iterdir()] == [path.name]
    assert path.read_bytes() == content
    assert store.load(lambda checkpoint: checkpoint.tensors["w"].sum().item()) == 4950
    path.rename(f"{path}.0")
    Path(f"{path}.0").write_bytes(content[:300])
    store.join_parts()
    with pytest.raises(CheckpointError, match="Delete"):
        store.load(lambda checkpoint: checkpoint)

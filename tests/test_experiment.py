"""Whole runs: the same bits every time, whatever kills them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import killing
from resnet_repro import evidence, experiment
from resnet_repro.checkpoint import Checkpoint, CheckpointStore, digest_of, read
from resnet_repro.engine import ResolvedEngine, has_compiler
from resnet_repro.errors import CheckpointError, RunLockedError, TrainingError
from resnet_repro.evidence import Plan, Provenance
from resnet_repro.interruption import EXIT_CODE, Interruption
from resnet_repro.training import Trainer

IDENTITY = {"model": "net", "seed": 1, "torch": "2"}
KILLING = Path(killing.__file__)


def kill_run(folder: Path, family: str, kills: int, seed: int = 1) -> dict[str, Any]:
    command = [sys.executable, str(KILLING), str(folder), family, str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(killing.make_plan("resnet").to_json())
    return path


def train(folder: Path, plan: Path, **options: Any) -> Provenance:
    options = {"observer": killing.Silent(), "seed": 1, "checkpoint_seconds": 0.0} | options
    return experiment.train(
        plan, arrays=killing.make_arrays(), out=folder / "run", checkpoints=folder / "checkpoints", **options
    )


class Stop:
    """An interruption at a step."""

    reason = "the test says so"

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


class TestSameBits:
    @pytest.mark.parametrize("family", killing.FAMILIES)
    def test_two_runs_and_a_resumed_one_are_equal(self, tmp_path: Path, family: str) -> None:
        path = tmp_path / "plan.json"
        path.write_text(killing.make_plan(family).to_json())
        first, second = (train(tmp_path / name, path) for name in ("a", "b"))
        with pytest.raises(experiment.InterruptedRunError, match="step 17 of 60"):
            train(tmp_path / "c", path, interruption=Stop(17))
        third = train(tmp_path / "c", path)
        assert first.weights_sha256 == second.weights_sha256 == third.weights_sha256
        histories = {(tmp_path / name / "run" / evidence.HISTORY).read_bytes() for name in "abc"}
        assert len(histories) == 1
        assert (first.sessions, third.sessions) == (1, 2)
        other = train(tmp_path / "d", path, seed=2)
        assert other.weights_sha256 != first.weights_sha256

    def test_the_optimizer_state_too(self, tmp_path: Path, plan: Path) -> None:
        states = []
        for name in ("a", "b"):
            with pytest.raises(experiment.InterruptedRunError):
                train(tmp_path / name, plan, interruption=Stop(13))
            [path] = (tmp_path / name / "checkpoints").glob("*/*/step-000000013.safetensors")
            identity = json.loads(_metadata(path)["identity"])
            states.append(digest_of(read(path, identity).tensors))
        assert states[0] == states[1]

    def test_history_holds_every_epoch_once(self, tmp_path: Path, plan: Path) -> None:
        train(tmp_path, plan)
        history = pd.read_csv(tmp_path / "run" / evidence.HISTORY)
        assert history.epoch.tolist() == list(range(1, killing.EPOCHS + 1))
        assert history.step.tolist() == [5 * epoch for epoch in history.epoch]  # 40 images, 8 at a time
        warm = history.learning_rate[history.learning_rate == 0.01]
        assert len(warm) >= 1, "the warm-up ends by the training error, at an epoch's end"
        assert set(history.learning_rate.round(6)) <= {0.01, 0.05, 0.005}

    if has_compiler():  # without one there is nothing to compare

        def test_compiled_float32_agrees_with_eager_and_repeats_itself(self, plan: Path) -> None:
            def losses(mode: str) -> tuple[list[float], str]:
                torch._dynamo.reset()
                engine = ResolvedEngine("cpu", mode, "fp32", 1, True)
                parts = experiment.assemble(Plan.read(plan), 1, killing.make_arrays(), engine)
                totals = [parts.trainer.run_epoch() for _ in range(2)]
                error = parts.evaluator.error(experiment.batches(*parts.test, parts.normalizer))
                return [*(t.train_loss for t in totals if t), error[0]], digest_of(parts.trainer.state()[0])

            eager, compiled, again = losses("eager"), losses("compiled"), losses("compiled")
            assert compiled[0] == pytest.approx(eager[0], rel=1e-4)
            assert compiled == again


class TestKilled:
    @pytest.mark.parametrize(
        ("family", "kills"),
        [("wide", 12), *(pytest.param(f, 50, marks=pytest.mark.slow) for f in killing.FAMILIES)],
    )
    def test_the_same_bits_as_the_unbroken_run(self, tmp_path: Path, family: str, kills: int) -> None:
        unbroken = kill_run(tmp_path / "unbroken", family, 0)
        killed = kill_run(tmp_path / "killed", family, kills)
        assert sum(killed["hits"].values()) == kills
        assert killed["digests"] == unbroken["digests"]
        if kills >= 50:
            assert set(killed["hits"]) == set(killing.POINTS)


SIGNALLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
import killing
from pathlib import Path
from resnet_repro import experiment
from resnet_repro.training import Trainer
from resnet_repro.interruption import EXIT_CODE, Interruption
folder = Path(sys.argv[1])
class Slow(killing.Silent):
    def stepped(self, step):
        print(step, flush=True)
        time.sleep(0.05)
with Interruption() as interruption:
    try:
        experiment.train(folder / "plan.json", 1, killing.make_arrays(), folder / "run", folder / "checkpoints",
                         Slow(), interruption)
    except experiment.InterruptedRunError as error:
        print(error, flush=True)
        if len(sys.argv) > 3:
            time.sleep(30)  # a process that hangs on its way out
        sys.exit(EXIT_CODE)
"""


class TestSignals:
    def start(self, folder: Path, *more: str, **environment: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", SIGNALLED, str(folder), str(KILLING.parent), *more]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
        assert process.stdout is not None
        while process.stdout.readline().strip() != "6":  # in the second epoch
            assert process.poll() is None
        return process

    @pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_saves_and_leaves(self, tmp_path: Path, plan: Path, which: signal.Signals) -> None:
        process = self.start(tmp_path)
        process.send_signal(which)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == EXIT_CODE
        assert f"because it received {which.name}" in output
        resumed = train(tmp_path, plan)
        assert resumed.sessions == 2
        assert resumed.weights_sha256 == train(tmp_path / "unbroken", plan).weights_sha256

    def test_a_second_signal_leaves_at_once(self, tmp_path: Path, plan: Path) -> None:
        process = self.start(tmp_path, "hangs")
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 128 + signal.SIGTERM
        assert time.monotonic() - began < 3

    def test_it_stops_when_the_parent_dies(self, tmp_path: Path, plan: Path) -> None:
        """As when DVC is killed: its stage must not train on, unseen."""
        code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SIGNALLED!r}, *sys.argv[1:]])"
        command = [sys.executable, "-c", code, str(tmp_path), str(KILLING.parent)]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"DVC_STAGE": "train"})
        assert parent.stdout is not None
        while parent.stdout.readline().strip() != "6":
            assert parent.poll() is None
        parent.kill()
        rest = parent.stdout.read()  # ends when the orphan, which holds the pipe too, has ended
        assert "because the process that started it is gone" in rest
        assert train(tmp_path, plan).sessions == 2

    def test_without_dvc_no_parent_is_watched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DVC_STAGE", raising=False)
        assert Interruption()._watched == []


class TestCheckpoints:
    def store(self, folder: Path, **changes: object) -> CheckpointStore:
        return CheckpointStore(folder / "net-1", IDENTITY | changes)

    def saved(self, folder: Path, steps: int = 3) -> CheckpointStore:
        store = self.store(folder)
        for step in range(1, steps + 1):
            store.save(Checkpoint({"w": torch.full((2000,), float(step))}, {"counters": step}), step)
        return store

    def test_two_generations_are_kept(self, tmp_path: Path) -> None:
        store = self.saved(tmp_path)
        assert [path.name for path in store._files()] == [
            "step-000000003.safetensors",
            "step-000000002.safetensors",
        ]
        found = store.load()
        assert found is not None
        assert found.content == {"counters": 3}
        assert bool((found.tensors["w"] == 3).all())

    def test_every_damage_is_named_and_the_one_before_used(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = self.saved(tmp_path)
        newest = store._files()[0]
        whole = newest.read_bytes()
        broken = [whole[:size] for size in range(0, len(whole), 512)]
        broken += [whole[:i] + bytes([whole[i] ^ 64]) + whole[i + 1 :] for i in range(0, len(whole), 97)]
        for content in broken:
            newest.write_bytes(content)
            found = store.load()
            assert found is not None
            assert found.content == {"counters": 2}
            assert str(newest) in capsys.readouterr().out

    def test_nothing_whole_is_an_error_with_a_remedy(self, tmp_path: Path) -> None:
        store = self.saved(tmp_path)
        for path in store._files():
            path.write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"damaged.*Delete .* to start over"):
            store.load()

    def test_another_identity_is_never_used(self, tmp_path: Path) -> None:
        mine = self.saved(tmp_path)
        other = self.store(tmp_path, torch="3")
        assert other.load() is None
        assert other.others() == [mine.folder]
        with pytest.raises(CheckpointError, match=r"belongs to another run: torch '2' is now '3'"):
            read(mine._files()[0], other.identity)

    def test_a_full_disk_leaves_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = self.saved(tmp_path)

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(evidence.os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"step-000000009.*bytes\): No space left"):
            store.save(Checkpoint({"w": torch.zeros(9)}, {}), 9)
        monkeypatch.undo()
        found = store.load()
        assert found is not None
        assert found.content == {"counters": 3}
        assert not list(store.folder.glob(".*")), "no temporary file stays behind"

    def test_file_then_rename_then_folder_are_made_durable(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        for name in ("fsync", "replace"):
            real = getattr(os, name)

            def spy(*arguments: Any, _name: str = name, _real: Any = real) -> Any:
                is_folder = _name == "fsync" and os.path.isdir(f"/proc/self/fd/{arguments[0]}")  # noqa: PTH112
                calls.append(f"{_name} folder" if is_folder else _name)
                return _real(*arguments)

            monkeypatch.setattr(evidence.os, name, spy)
        self.saved(tmp_path, steps=1)
        expected = ["fsync", "replace", "fsync"] if sys.platform == "darwin" else ["fsync", "replace", "fsync folder"]
        assert calls == expected

    def test_a_second_trainer_refuses(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        with store.locked(), pytest.raises(RunLockedError, match=rf"process {os.getpid()} is training net-1"):
            _lock(tmp_path)
        with self.store(tmp_path).locked():
            pass  # free again


def _lock(folder: Path) -> None:
    with CheckpointStore(folder / "net-1", IDENTITY).locked():
        raise AssertionError("two trainers at once")


def _metadata(path: Path) -> dict[str, str]:
    import safetensors

    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata())


class TestFailure:
    def test_divergence_names_run_step_and_rate_and_keeps_the_last_finite_state(self, tmp_path: Path) -> None:
        plan = killing.make_plan("plain")
        schedule = plan.recipe.schedule.model_copy(update={"learning_rate": 1e30, "warmup": None})
        none = plan.architecture.batch_norm.model_copy(update={"kind": "none"})
        diverging = plan.model_copy(
            update={
                "recipe": plan.recipe.model_copy(update={"schedule": schedule}),
                "architecture": plan.architecture.model_copy(update={"batch_norm": none}),
            }
        )
        path = tmp_path / "plan.json"
        path.write_text(diverging.to_json())

        class Told(killing.Silent):
            reason = ""

            def failed(self, reason: str) -> None:
                self.reason = reason

        told = Told()
        with pytest.raises(TrainingError, match=r"plain-1: the loss became (nan|inf) at step \d+ .*rate 1e\+30"):
            train(tmp_path, path, observer=told)
        assert "the loss became" in told.reason
        assert not (tmp_path / "run").exists()

    def test_out_of_memory_names_the_batch_and_never_changes_it(
        self, tmp_path: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(trainer: Trainer, size: int) -> None:
            raise torch.OutOfMemoryError("no more")

        monkeypatch.setattr(Trainer, "_full_step", full)
        with pytest.raises(TrainingError, match=r"resnet-1: out of memory on cpu with batches of 8 images.*recipe"):
            train(tmp_path, plan)

    def test_weights_that_do_not_give_their_history_are_refused(self, tmp_path: Path, plan: Path) -> None:
        provenance = train(tmp_path, plan)
        history = pd.read_csv(tmp_path / "run" / evidence.HISTORY)
        history["test_error_percent"] = 0.0
        history.to_csv(tmp_path / "run" / evidence.HISTORY, index=False)
        with pytest.raises(CheckpointError, match="do not belong together"):
            experiment.evaluate(tmp_path / "run", killing.make_arrays(), tmp_path / "out")
        weights = tmp_path / "run" / evidence.WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
        assert evidence.sha256_of(weights) != provenance.weights_sha256
        with pytest.raises(CheckpointError, match="is not what was trained"):
            experiment.evaluate(tmp_path / "run", killing.make_arrays(), tmp_path / "out")


def test_evaluation_agrees_with_the_history(tmp_path: Path, plan: Path) -> None:
    train(tmp_path, plan)
    metrics = experiment.evaluate(tmp_path / "run", killing.make_arrays(), tmp_path / "out")
    last = pd.read_csv(tmp_path / "run" / evidence.HISTORY).iloc[-1]
    assert metrics.test_error_percent == pytest.approx(last.test_error_percent)
    assert metrics.test_loss == pytest.approx(last.test_loss, rel=1e-4)
    assert sum(map(sum, metrics.confusion)) == metrics.num_test_images == 20
    run = evidence.RunEvidence.read(_renamed(tmp_path / "out", "resnet-1"))
    predictions = run.predictions()
    assert 100 * (predictions["predicted"] != predictions["label"]).mean() == metrics.test_error_percent


def _renamed(folder: Path, name: str) -> Path:
    return folder.rename(folder.with_name(name))

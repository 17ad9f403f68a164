"""Whole runs: the same bits every time, and an evaluation that agrees with them."""

import json
from pathlib import Path

import pandas as pd
import pytest
import safetensors
import torch

import killing
from killing import train
from resnet_repro import evidence, experiment
from resnet_repro.checkpoint import digest_of, read
from resnet_repro.engine import ResolvedEngine, compile_problem
from resnet_repro.evidence import Plan


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(killing.make_plan("resnet").to_json())
    return path


class TestSameBits:
    @pytest.mark.parametrize("family", killing.FAMILIES)
    def test_two_runs_and_a_resumed_one_are_equal(self, tmp_path: Path, family: str) -> None:
        path = tmp_path / "plan.json"
        path.write_text(killing.make_plan(family).to_json())
        first, second = (train(tmp_path / name, path) for name in ("a", "b"))
        with pytest.raises(experiment.InterruptedRunError, match="step 17 of 60"):
            train(tmp_path / "c", path, interruption=killing.Stop(17))
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
                train(tmp_path / name, plan, interruption=killing.Stop(13))
            [path] = (tmp_path / name / "checkpoints").glob("*/*/step-000000013.safetensors")
            with safetensors.safe_open(path, "pt") as file:
                identity = json.loads(file.metadata()["identity"])
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

    def test_compiled_float32_agrees_with_eager_and_repeats_itself(self, plan: Path) -> None:
        if problem := compile_problem("cpu"):
            pytest.skip(problem)

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


def test_evaluation_agrees_with_the_history(tmp_path: Path, plan: Path) -> None:
    train(tmp_path, plan)
    metrics = experiment.evaluate(tmp_path / "run", killing.make_arrays(), tmp_path / "out")
    last = pd.read_csv(tmp_path / "run" / evidence.HISTORY).iloc[-1]
    assert metrics.test_error_percent == pytest.approx(last.test_error_percent)
    assert metrics.test_loss == pytest.approx(last.test_loss, rel=1e-4)
    assert sum(map(sum, metrics.confusion)) == metrics.num_test_images == 20
    run = evidence.RunEvidence.read((tmp_path / "out").rename(tmp_path / "resnet-1"))
    predictions = run.predictions()
    assert 100 * (predictions["predicted"] != predictions["label"]).mean() == metrics.test_error_percent

"""The engine on a CUDA device (`make gpu-check`), and as much of its CUDA graphs as a CPU can run."""

from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import killing
from resnet_repro import experiment
from resnet_repro.checkpoint import digest_of
from resnet_repro.engine import ResolvedEngine, configure
from resnet_repro.evidence import Plan
from resnet_repro.params import Engine, load
from resnet_repro.plan import make_plan
from resnet_repro.training import Trainer

ROOT = Path(__file__).parent.parent


def with_drop(momentum: str) -> Plan:
    """With a drop in the middle of the first epoch, at which the momentum is kept or reset."""
    plan = killing.make_plan("resnet")
    rates = plan.recipe.schedule.model_copy(update={"unit": "steps", "stop": 60, "drops": (3,), "warmup": None})
    recipe = plan.recipe.model_copy(update={"schedule": rates, "momentum_at_drops": momentum})
    return plan.model_copy(update={"recipe": recipe})


def train_some(plan: Plan, engine: ResolvedEngine, epochs: int = 3, resume_at: int | None = None) -> tuple[str, float]:
    """Digest of the whole state, and the last training loss."""
    configure(engine)
    torch._dynamo.reset()
    trainer = experiment.assemble(plan, 1, killing.make_arrays(), engine).trainer
    if resume_at is not None:
        assert trainer.run_epoch(lambda: trainer.step >= resume_at) is None
        state = trainer.state()
        trainer = experiment.assemble(plan, 1, killing.make_arrays(), engine).trainer
        trainer.load_state(*state)
    totals = [trainer.run_epoch() for _ in range(epochs)]
    assert totals[-1] is not None
    return digest_of(trainer.state()[0]), totals[-1].train_loss


class TestGraphsOnACpu:
    """With a stand-in for CUDA's graphs: what is captured and replayed is the very step, and the warm-up steps
    that a capture needs leave no trace."""

    @pytest.fixture
    def cuda_stand_in(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        calls: list[str] = []
        recorded: list[Any] = []
        full_step = Trainer._full_step

        class Graph:
            def replay(self) -> None:
                calls.append("replay")
                full_step(*recorded[-1])

        class Stream:
            def wait_stream(self, other: object) -> None: ...

        @contextmanager
        def capture(graph: Graph) -> Any:
            calls.append("capture")
            yield

        def step(trainer: Trainer, size: int) -> None:
            recorded.append((trainer, size))
            full_step(trainer, size)

        monkeypatch.setattr(Trainer, "_full_step", step)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        return calls

    @pytest.mark.parametrize("family", killing.FAMILIES)
    def test_replays_give_the_bits_of_the_eager_step(self, family: str, cuda_stand_in: list[str]) -> None:
        plan = killing.make_plan(family)
        eager = train_some(plan, ResolvedEngine("cpu", "eager", "fp32", 1, True))
        assert cuda_stand_in == []
        graphed = train_some(plan, ResolvedEngine("cpu", "graphed_eager", "fp32", 1, True))
        assert cuda_stand_in.count("capture") == 1, "one graph for each batch size"
        assert cuda_stand_in.count("replay") == 3 * 5
        assert graphed == eager

    def test_a_momentum_that_is_reset_is_the_one_that_the_graph_reads(self, cuda_stand_in: list[str]) -> None:
        eager, graphed = (
            [train_some(with_drop(m), ResolvedEngine("cpu", mode, "fp32", 1, True)) for m in ("keep", "reset")]
            for mode in ("eager", "graphed_eager")
        )
        assert graphed == eager
        assert eager[0] != eager[1]


@pytest.mark.gpu
class TestOnCuda:
    @pytest.mark.parametrize("family", killing.FAMILIES)
    @pytest.mark.parametrize("mode", ["eager", "graphed_eager", "graphed"])
    def test_two_runs_and_a_resumed_one_are_equal(self, family: str, mode: str) -> None:
        plan, engine = killing.make_plan(family), ResolvedEngine("cuda", mode, "bf16", 1, True)
        first = train_some(plan, engine)
        assert train_some(plan, engine) == first
        assert train_some(plan, engine, resume_at=3) == first

    @pytest.mark.parametrize("mode", ["eager", "graphed_eager", "graphed"])
    def test_a_resumed_run_resets_its_momentum_once(self, mode: str) -> None:
        plan, engine = with_drop("reset"), ResolvedEngine("cuda", mode, "fp32", 1, True)
        first = train_some(plan, engine)
        assert [train_some(plan, engine, resume_at=step) for step in (2, 3, 4)] == [first] * 3
        cpu = train_some(plan, ResolvedEngine("cpu", "eager", "fp32", 1, True))[1]
        assert first[1] == pytest.approx(cpu, rel=1e-3)

    @pytest.mark.parametrize("mode", ["graphed_eager", "graphed"])
    def test_graphs_agree_with_eager_and_the_cpu(self, mode: str) -> None:
        plan = killing.make_plan("resnet")
        cpu = train_some(plan, ResolvedEngine("cpu", "eager", "fp32", 1, True))[1]
        for which in ("eager", mode):
            loss = train_some(plan, ResolvedEngine("cuda", which, "fp32", 1, True))[1]
            assert loss == pytest.approx(cpu, rel=1e-3)

    def test_initial_weights_order_and_augmentation_are_those_of_the_cpu(self) -> None:
        plan, arrays = killing.make_plan("bottleneck"), killing.make_arrays()
        states = []
        for device in ("cpu", "cuda"):
            parts = experiment.assemble(plan, 1, arrays, ResolvedEngine(device, "eager", "fp32", 1, True))
            views = parts.trainer._views
            images = parts.trainer.images.take(views.index, views.row, views.column, views.flip)
            states.append((digest_of(parts.trainer.state()[0]), digest_of({"images": images})))
        assert states[0] == states[1]

    def test_the_planned_models_take_steps_without_waiting(self) -> None:
        """No synchronisation inside an epoch: torch itself watches for it."""
        params = load(ROOT / "params.yaml")
        plan = make_plan(params, "resnet20").model_copy(update={"engine": Engine()})
        engine = ResolvedEngine("cuda", "graphed", "bf16", 1, True)
        configure(engine)
        trainer = experiment.assemble(plan, 1, killing.make_arrays(), engine).trainer
        trainer.run_epoch()
        trainer._prepare_epoch(1, 0)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer._run_step(trainer._batch_size(0))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.max_memory_allocated() < 2e9

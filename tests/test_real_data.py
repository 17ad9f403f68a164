"""CIFAR-10 itself, where its archive is found: from the archive to training steps, by the rows' own recipe."""

import os
from pathlib import Path

import pytest
import torch

from killing import Silent
from resnet_repro import experiment
from resnet_repro.data.archive import fetch_members
from resnet_repro.data.arrays import Arrays, load_arrays, prepare_arrays
from resnet_repro.engine import ResolvedEngine, configure
from resnet_repro.evidence import HISTORY, PLAN, PROVENANCE, Plan, Provenance, write_epochs
from resnet_repro.machine import make_session
from resnet_repro.params import load

ROOT = Path(__file__).parent.parent
ARCHIVE = Path(os.environ.get("CIFAR10_ARCHIVE") or ROOT.parent / "shared/data/cifar-10-python.tar.gz")

COMMITTED = ROOT / "reports/ablations/runs/resnet20_brief-1"
REPEATS = {
    "processor": "AuthenticAMD family 26 model 2 stepping 1",
    "cpu_capability": "AVX512",
    "compiler_isa": "avx512 avx512_vnni",
    "onednn_max_cpu_isa": "None",
}
"""The machine that gave this run's first epoch a second time, bit by bit. Its provenance says AMD EPYC, no more."""

if ARCHIVE.is_file():

    @pytest.fixture(scope="module")
    def arrays(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
        data, folder = load(ROOT / "params.yaml").data, tmp_path_factory.mktemp("cifar10")
        fetch_members(data, folder / "members", archive=str(ARCHIVE))
        prepare_arrays(data, folder / "members", folder / "arrays", folder / "report")
        return load_arrays(folder / "arrays")

    @pytest.mark.slow  # one to two minutes on two cores
    def test_a_committed_epoch_is_repeated_bit_by_bit(arrays: Arrays, tmp_path: Path) -> None:
        run = Provenance.read(COMMITTED / PROVENANCE)
        engine = ResolvedEngine(run.device, run.mode, run.precision, run.threads, run.deterministic)
        session = make_session(engine, None)
        here = {name: str(getattr(session, name)) for name in REPEATS}
        versions = (torch.__version__.partition("+")[0], run.versions["torch"])
        if here != REPEATS or versions[0] != versions[1]:
            pytest.skip(f"another machine: {here} with torch {versions[0]}, and not {REPEATS} with {versions[1]}")
        before = torch.get_num_threads()
        configure(engine)
        try:
            parts = experiment.assemble(Plan.read(COMMITTED / PLAN), run.seed, arrays, engine)
            epoch = experiment._run_epoch(parts, lambda: False, Silent())
        finally:
            torch.set_num_threads(before)
        assert epoch is not None
        write_epochs(tmp_path, [epoch])
        assert (tmp_path / HISTORY).read_text().splitlines() == (COMMITTED / HISTORY).read_text().splitlines()[:2]

    def test_resnet20_learns_within_a_few_steps(arrays: Arrays) -> None:
        plan = Plan.read(ROOT / "plans" / "resnet20.json")
        engine = ResolvedEngine("cpu", "eager", "fp32", 1, True)
        trainer = experiment.assemble(plan, 1, arrays, engine).trainer
        assert (trainer.num_images, trainer.epoch_steps, trainer.total_steps) == (50_000, 391, 64_000)
        assert trainer.run_epoch(lambda: trainer.step == 20) is None
        losses = trainer._losses[:20]
        assert bool(torch.isfinite(losses).all())
        assert losses[-5:].mean() < losses[:5].mean()

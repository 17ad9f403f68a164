"""CIFAR-10 itself, where its archive is found: from the archive to training steps, by the rows' own recipe."""

import os
from pathlib import Path

import torch

from resnet_repro import experiment
from resnet_repro.data.archive import fetch_members
from resnet_repro.data.arrays import load_arrays, prepare_arrays
from resnet_repro.engine import ResolvedEngine
from resnet_repro.evidence import Plan
from resnet_repro.params import load

ROOT = Path(__file__).parent.parent
ARCHIVE = Path(os.environ.get("CIFAR10_ARCHIVE") or ROOT.parent / "shared/data/cifar-10-python.tar.gz")

if ARCHIVE.is_file():

    def test_resnet20_learns_within_a_few_steps(tmp_path: Path) -> None:
        data = load(ROOT / "params.yaml").data
        fetch_members(data, tmp_path / "members", archive=str(ARCHIVE))
        prepare_arrays(data, tmp_path / "members", tmp_path / "arrays", tmp_path / "report")
        plan = Plan.read(ROOT / "plans" / "resnet20.json")
        engine = ResolvedEngine("cpu", "eager", "fp32", 1, True)
        trainer = experiment.assemble(plan, 1, load_arrays(tmp_path / "arrays"), engine).trainer
        assert (trainer.num_images, trainer.epoch_steps, trainer.total_steps) == (50_000, 391, 64_000)
        assert trainer.run_epoch(lambda: trainer.step == 20) is None
        losses = trainer._losses[:20]
        assert bool(torch.isfinite(losses).all())
        assert losses[-5:].mean() < losses[:5].mean()

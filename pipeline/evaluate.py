"""Evaluate one trained run on the test images.

reads   RUN (what train wrote), data/cifar10
writes  OUT/metrics.json, predictions.npz, history.csv, timing.csv, plan.json, provenance.json, for Git
"""

import os
from pathlib import Path

import local_source  # noqa: F401
from resnet_repro import experiment, provenance
from resnet_repro.data.arrays import load_arrays
from resnet_repro.params import load
from resnet_repro.stage import run_stage
from resnet_repro.tracking import show_evidence
from resnet_repro.workspace import Workspace


def evaluate(run: str, out: str) -> None:
    arrays = load_arrays(Path("data/cifar10"), load(Path("params.yaml")).data.arrays)
    provenance.keep_committed(Path(run), Path(out), os.environ.get(provenance.REPLACE, ""))
    metrics = experiment.evaluate(Path(run), arrays, Path(out))
    print(f"{Path(run).name}: test error {metrics.test_error_percent:.2f}%", flush=True)
    Workspace(Path()).drop_kept(Path(run).name)
    show_evidence(Path(), Path(out))


if __name__ == "__main__":
    run_stage(evaluate)

"""Train one model with one seed, from its last checkpoint if there is one.

reads   plans/MODEL.json, data/cifar10
writes  OUT/weights.safetensors, history.csv, timing.csv, plan.json, provenance.json
"""

import os
import sys
from pathlib import Path

import local_source  # noqa: F401
from resnet_repro import estimate, evidence, experiment
from resnet_repro.data.arrays import load_arrays
from resnet_repro.errors import DataError
from resnet_repro.interruption import EXIT_CODE, Interruption
from resnet_repro.params import load
from resnet_repro.progress import Progress
from resnet_repro.stage import complain, run_stage
from resnet_repro.tracking import LiveView

DATA, CHECKPOINTS = Path("data/cifar10"), Path("checkpoints")


def train(model: str, seed: str, out: str) -> None:
    digests = load(Path("params.yaml")).data.arrays
    plan_path = Path("plans") / f"{model}.json"
    plan_sha256, arrays = evidence.sha256_of(plan_path), load_arrays(DATA, digests)
    estimate.announce_once(Path(), print)
    view = LiveView(Path())
    with Interruption() as interruption, Progress(f"{model}-{seed}") as progress:
        observers = experiment.Observers([progress, view])
        try:
            provenance = experiment.train(
                plan_path,
                int(seed),
                arrays,
                Path(out),
                CHECKPOINTS,
                observers,
                interruption,
                on_other_machine=os.environ.get(experiment.ON_OTHER_MACHINE, ""),
            )
        except experiment.InterruptedRunError as error:
            complain(str(error))
            sys.exit(EXIT_CODE)
    estimate.remember_speed(Path(), evidence.Plan.read(plan_path), provenance)
    # DVC hashes what a stage depends on after it ran: were it another plan by now, dvc.lock would pair the
    # new plan with the old weights
    if evidence.sha256_of(plan_path) != plan_sha256 or load_arrays(DATA).sha256 != arrays.sha256:
        raise DataError(
            f"{plan_path} or {DATA} changed while {model}-{seed} trained, and DVC would take its weights for those "
            f"of what is there now. Nothing is lost: once {plan_path} and {DATA} are what they were, the same command "
            "writes this run within seconds; as they are now, it trains another"
        )
    view.finished(Path(out), provenance, experiment.load_classifier(Path(out)))


if __name__ == "__main__":
    run_stage(train)

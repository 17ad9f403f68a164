"""params.yaml -> plans/MODEL.json: one specification and fingerprint for every model that a run trains."""

import shutil
from pathlib import Path

import local_source  # noqa: F401
from resnet_repro.params import load
from resnet_repro.plan import make_plan
from resnet_repro.stage import run_stage


def plan(out: str) -> None:
    params = load(Path("params.yaml"))
    plans = [make_plan(params, model) for model in params.planned_models]
    folder = Path(out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for one in plans:
        (folder / f"{one.model}.json").write_text(one.to_json(), encoding="utf-8")


if __name__ == "__main__":
    run_stage(plan)

"""Rows of the table, shrunk to a few steps each on the handwritten digits: a workspace for the farm."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from killing import REPOSITORY
from resnet_repro.data.digits import write_digits_archive
from resnet_repro.demo import ARCHIVE, copy_sources
from resnet_repro.farm.work import in_order
from small_workspace import contents, run

IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
REPEATABLE = ("weights.safetensors", "history.csv", "plan.json", "metrics.json", "predictions.npz")
"""of a run's files: the others say when it ran, and how fast"""
LONG = "resnet20-1"
"""trains long enough to be killed meanwhile"""
THREE = ("plain20-1", LONG, "lasagne_wide-1")
STEPS, LONG_STEPS = 3, 600


def build_rows(workspace: Path, names: Sequence[str] = ()) -> None:
    """Committed, with data and plans, and nothing trained; all twelve rows where none is named."""
    copy_sources(REPOSITORY, workspace)
    (workspace / ARCHIVE).parent.mkdir(parents=True)
    read = YAML(typ="safe").load
    params, data = read(REPOSITORY / "params.yaml"), read(REPOSITORY / "src/resnet_repro/demo.yaml")["data"]
    assert len(params["runs"]) == 12
    params["runs"] = {key: row for key, row in params["runs"].items() if not names or key in names}
    params["models"] = {row["model"]: params["models"][row["model"]] for row in params["runs"].values()}
    params["models"]["resnet20"]["changes"] = {"schedule": {"stop": LONG_STEPS}}
    used = sorted({model["recipe"] for model in params["models"].values()})
    params["recipes"] = {name: _shrunk(params["recipes"][name]) for name in used}
    params["data"] = data | {"members": write_digits_archive(workspace / ARCHIVE)}
    params["engine"] = {"device": "cpu", "mode": "eager", "precision": "fp32", "threads": 1}
    params |= {"ablations": {}, "ablation_groups": {}}
    YAML().dump(params, workspace / "params.yaml")
    experiment = workspace / "src/resnet_repro/experiment.py"  # a checkpoint after each epoch, however fast it is
    text = experiment.read_text()
    assert text.count("CHECKPOINT_SECONDS = 10.0") == 1
    experiment.write_text(text.replace("CHECKPOINT_SECONDS = 10.0", "CHECKPOINT_SECONDS = 0.0"))
    run(workspace, "git", "init", "--quiet")
    run(workspace, "dvc", "repro", "prepare", "plan")
    run(workspace, "git", "add", "--all")
    run(workspace, "git", *IDENTITY, "commit", "--quiet", "--message", "all but the runs")


def _shrunk(recipe: dict[str, Any]) -> dict[str, Any]:
    schedule = {"unit": "steps", "stop": STEPS, "learning_rate": 0.01, "drops": [], "drop_factor": 0.1}
    return recipe | {"schedule": schedule, "batch_size": 8} | ({"held_out": 200} if recipe.get("held_out") else {})


def repeatable(workspace: Path) -> dict[str, bytes]:
    """What every training of the workspace's runs must give again, byte for byte."""
    return {
        f"{folder}/{name}": content
        for folder in ("runs", "reports/runs")
        for name, content in contents(workspace / folder).items()
        if name.endswith(REPEATABLE)
    }


def lock_of(workspace: Path) -> str:
    return (workspace / "dvc.lock").read_text()


def without_clock(lock: str) -> str:
    """A dvc.lock without the digests and sizes of what says when it was made."""
    return re.sub(r"(- path: (?:runs|reports)\S*\n\s+hash: md5\n\s+md5: ).*(\n\s+size: ).*", r"\1*\2*", lock)


def is_as_dvc_repro_leaves_it(workspace: Path, base: Path, serial: Path, tmp: Path) -> None:
    """`serial` trained the same rows by `dvc repro`. The farm's bits are those; so is its dvc.lock, but for the clock;
    and `dvc repro` that gets the farm's trainings out of the run cache leaves all the same bytes."""
    assert repeatable(workspace) == repeatable(serial)
    names = re.findall(r"^  (\S+):$", lock_of(workspace), re.MULTILINE)
    assert without_clock(lock_of(workspace)) == without_clock(in_order(lock_of(serial), lock_of(base), names))

    before = lock_of(workspace)
    assert "up to date" in run(workspace, "dvc", "repro")
    assert lock_of(workspace) == before
    again = shutil.copytree(base, tmp / "again" / "workspace")
    shutil.rmtree(again / ".dvc/cache")
    shutil.copytree(workspace / ".dvc/cache", again / ".dvc/cache")
    assert "train.py" not in run(again, "dvc", "repro"), "it must come out of the cache"
    assert in_order(lock_of(again), lock_of(base), names) == before
    for folder in ("plans", "reports", "runs", "data/cifar10"):
        assert contents(again / folder) == contents(workspace / folder), folder

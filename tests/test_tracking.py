import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from resnet_repro import evidence
from resnet_repro.params import Warmup
from resnet_repro.tracking import connect, publish, show_evidence
from resnet_repro.tracking.live import LiveRun, is_gone, this_process
from resnet_repro.tracking.model import find_model
from resnet_repro.tracking.record import flatten, milliseconds, record_at_end, record_at_start, record_of_evidence
from resnet_repro.tracking.store import PATIENT, Store, TrackingError, sync, tracking_uri
from tracking_records import (
    PLAN,
    STEPS,
    classifier,
    end,
    epochs,
    find,
    history,
    provenance,
    start,
    wait_for,
    write_run,
)

ERRORS = ("test_error_percent", "train_error_percent", "test_loss", "train_loss", "learning_rate")


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store of the user's, and network limits as in a new process."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", *PATIENT):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for most tests (a new one takes seconds), in a folder whose name has a space."""
    return tmp_path_factory.mktemp("a workspace")


@pytest.fixture
def store(workspace: Path) -> Store:
    return connect(workspace)


def content(store: Store, uid: str) -> dict[str, object]:
    """All that MLflow shows of a run but MLflow's own identifiers."""
    run = find(store, uid)
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "times": (run.info.start_time, run.info.end_time),
        "params": run.data.params,
        "tags": run.data.tags,
        "metrics": {key: history(store, run, key) for key in run.data.metrics},
        "files": sorted(f.path for f in store.client.list_artifacts(run.info.run_id, "evidence")),
        "dataset": [(d.dataset.name, d.dataset.digest, d.tags[0].value) for d in run.inputs.dataset_inputs],
    }


def test_a_live_run_equals_the_published_one(workspace: Path, store: Store, tmp_path: Path) -> None:
    rows, who = epochs(10, seed=1), provenance("live", seed=7)
    live = LiveRun.start(workspace, record_at_start(PLAN, who))
    for i in range(1, 11):
        live.log_epochs(rows[:i])
    folder = write_run(workspace, who, rows)
    live.finish(record_at_end(PLAN, who, rows, workspace / "runs" / "resnet20-7"))
    show_evidence(workspace, folder)
    assert find(store, "live").data.metrics["final_test_error_percent"] == 8.71

    shutil.copytree(workspace / "reports", tmp_path / "reports")  # nothing else: no database, no artifacts
    summary = publish(tmp_path)
    assert summary.created == ("resnet20-7",)
    assert content(connect(tmp_path), "live") == content(store, "live")
    again = publish(tmp_path)
    assert (again.created, again.completed, again.unchanged) == ((), (), ("resnet20-7",))


def test_what_is_shown_of_a_run(workspace: Path, store: Store) -> None:
    rows, who = epochs(4), provenance("shown", seed=8)
    folder = write_run(workspace, who, rows)
    sync(store, record_of_evidence(evidence.RunEvidence.read(folder)))
    run = find(store, "shown")
    assert run.info.run_name == "resnet20-8"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == 1_790_000_000_000
    assert run.info.end_time == 1_790_000_100_125
    tags = {
        "stage": "train",
        "model": "resnet20",
        "seed": "8",
        "paper": "He 2015, Table 6: 8.75% (single run, last iteration (inferred))",
        "recipe": "he2015",
        "git_dirty": "true",
        "fingerprint.step": "1f" * 32,
        "device": "cuda",
        "versions.torch": "2.11.0",
        "mlflow.source.git.commit": who.git_commit,
    }
    assert tags.items() <= run.data.tags.items()
    params = {
        "seed": "8",
        "architecture.depth": "20",
        "recipe.schedule.drops": "[32000, 48000]",
        "recipe.weight_decay": "0.0001",
        "recipe.nesterov": "false",  # a neutral default: shown, so that runs can be compared
        "engine.precision": "auto",
    }
    assert params.items() <= run.data.params.items()
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("cifar10", "d" * 36)
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]
    for key in ERRORS:
        assert history(store, run, key) == [
            (row.step, round(row.finished_at * 1000), getattr(row, key)) for row in rows
        ]
    assert "validation_loss" not in run.data.metrics  # nothing was held out


def test_sync_adds_what_is_missing_and_changes_nothing(workspace: Path, store: Store, tmp_path: Path) -> None:
    full = end("sync", epochs(5), write_run(tmp_path, provenance("sync"), epochs(5)))
    half = replace(full, epochs=full.epochs[:2], params={"seed": "1"}, tags={}, summary={}, artifacts=())
    assert sync(store, half).created
    store.client.set_tag(find(store, "sync").info.run_id, "model", "renamed by the user")
    second = sync(store, full)
    assert (second.created, second.added > 0) == (False, True)
    assert sync(store, full) == (second.run_id, False, 0)
    run = find(store, "sync")
    assert run.data.tags["model"] == "renamed by the user"
    assert run.data.params == full.params
    for key in ERRORS:
        assert [step for step, _, _ in history(store, run, key)] == [STEPS * i for i in range(1, 6)]


def test_an_interrupted_run_goes_on_without_double_points(workspace: Path, store: Store) -> None:
    rows = epochs(6)
    first = LiveRun.start(workspace, start("resumed"))
    first.log_epochs(rows[:3])
    first.interrupt()
    assert find(store, "resumed").info.status == "KILLED"

    second = LiveRun.start(workspace, start("resumed", rows[:3]))
    wait_for(lambda: find(store, "resumed").info.status == "RUNNING")
    assert find(store, "resumed").data.tags["process"] == this_process()
    second.log_epochs(rows[:5])
    second.log_epochs(rows[5:])
    second.finish(end("resumed", rows, write_run(workspace, provenance("resumed"), rows)))
    run = find(store, "resumed")
    assert run.info.status == "FINISHED"
    assert "process" not in run.data.tags
    for key in ERRORS:
        assert [step for step, _, _ in history(store, run, key)] == [row.step for row in rows]


def test_a_new_attempt_clears_a_failure(workspace: Path, store: Store) -> None:
    LiveRun.start(workspace, start("failed")).fail("ValueError: the loss is not finite")
    run = find(store, "failed")
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "ValueError: the loss is not finite"
    LiveRun.start(workspace, start("failed")).interrupt()
    run = find(store, "failed")
    assert run.info.status == "KILLED"
    assert "failure" not in run.data.tags


PREDICT = """
import sys
sys.modules["resnet_repro"] = None  # importing it raises
import torch
torch.cuda.is_available = lambda: True  # the model must not ask for a device by itself
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
images = np.load("images.npy")
np.savez("logits.npz", one=model.predict(images[:1]), seven=model.predict(images))
"""


def test_any_client_loads_the_model(workspace: Path, store: Store, tmp_path: Path) -> None:
    net, rows = classifier(), epochs(2)
    record = end("model", rows, write_run(tmp_path, provenance("model"), rows))
    live = LiveRun.start(workspace, start("model"))
    live.finish(record, net)
    run_id = find(store, "model").info.run_id
    assert find_model(store, run_id)

    import mlflow

    name = f"runs:/{run_id}/resnet20-1"
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    script = [sys.executable, "-c", PREDICT, tracking_uri(workspace), name]
    subprocess.run(script, cwd=tmp_path, check=True)
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    logits = np.load(tmp_path / "logits.npz")
    np.testing.assert_allclose(logits["one"], expected[:1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits["seven"], expected, rtol=1e-5, atol=1e-6)

    (logged,) = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'")
    files = mlflow.artifacts.download_artifacts(logged.artifact_location, tracking_uri=store.uri)
    signature = mlflow.models.Model.load(files).signature
    ((images_in,), (logits_out,)) = signature.inputs.inputs, signature.outputs.inputs
    assert (images_in.type, images_in.shape) == (np.dtype("uint8"), (-1, 3, 32, 32))
    assert (logits_out.type, logits_out.shape) == (np.dtype("float32"), (-1, 10))


def test_publish_logs_models_where_the_weights_are(workspace: Path, store: Store) -> None:
    write_run(workspace, provenance("weights", seed=3, weights=b"true"), epochs(2))
    write_run(workspace, provenance("wrong", seed=4, weights=b"true"), epochs(2))
    write_run(workspace, provenance("none", seed=5), epochs(2))
    (workspace / "runs/resnet20-3" / evidence.WEIGHTS).write_bytes(b"true")
    (workspace / "runs/resnet20-4" / evidence.WEIGHTS).write_bytes(b"of another training")
    (workspace / "reports/runs/resnet20-5" / evidence.METRICS).write_text("{}")
    asked: list[str] = []

    def load(folder: Path) -> torch.nn.Module:
        asked.append(folder.name)
        return classifier()

    def broken(folder: Path) -> torch.nn.Module:
        raise RuntimeError("does not export")

    summary = publish(workspace, broken)
    assert "resnet20-3" in summary.created
    assert {"resnet20-4"} <= set(summary.without_weights)
    assert [line.split(":")[0].split()[0] for line in summary.problems] == [
        "resnet20-3",
        "reports/runs/resnet20-5",
    ]
    assert "resnet20-3" in publish(workspace, load).completed
    assert "resnet20-3" in publish(workspace, load).unchanged
    assert asked == ["resnet20-3"]
    assert "weights are not on this machine" in str(summary)
    shutil.rmtree(workspace / "reports/runs/resnet20-5")


def test_figures_of_the_model_are_attached(workspace: Path, store: Store) -> None:
    figures = workspace / "reports" / "figures"
    figures.mkdir(parents=True)
    for name in ("curves_resnet20.png", "curves_resnet200.png", "figure6.png"):
        (figures / name).write_bytes(b"\x89PNG")
    write_run(workspace, provenance("drawn", seed=6), epochs(2))
    publish(workspace)
    artifacts = store.client.list_artifacts(find(store, "drawn").info.run_id, "figures")
    assert [artifact.path for artifact in artifacts] == ["figures/curves_resnet20.png"]


def test_the_report_has_a_run_of_its_own_that_follows_the_files(workspace: Path, store: Store) -> None:
    reports = workspace / "reports"
    (reports / "figures").mkdir(parents=True, exist_ok=True)
    (reports / "README.md").write_text("# Results\n\n| model |\n\n## Figures\n\n![](figures/figure6.png)\n")
    (reports / "figures" / "figure6.png").write_bytes(b"\x89PNG 1")
    assert "report" in publish(workspace).created
    assert "report" in publish(workspace).unchanged
    (reports / "figures" / "figure6.png").write_bytes(b"\x89PNG 2")
    assert "report" in publish(workspace).completed
    run = find(store, "report")
    assert (run.info.run_name, run.info.status) == ("report", "FINISHED")
    assert run.data.tags["mlflow.note.content"] == "# Results\n\n| model |\n\n"
    drawn = store.client.download_artifacts(run.info.run_id, "figures/figure6.png")
    assert Path(drawn).read_bytes() == b"\x89PNG 2"


def test_a_copy_made_by_dvc_logs_to_the_repository(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    repository = f"sqlite:///{workspace.resolve()}/mlflow.db"
    assert tracking_uri(tmp_path) == repository
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db?timeout=9")
    assert tracking_uri(tmp_path) == f"{repository}?timeout=9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/other.db"


def test_a_folder_that_no_address_can_name_is_refused(tmp_path: Path) -> None:
    """What stands behind a question mark would be options: SQLAlchemy would make its tables in the file `a`."""
    (folder := tmp_path / "a?b").mkdir()
    with pytest.raises(TrackingError, match="has a question mark in its name"):
        publish(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a?b"]


def test_runs_of_others_in_the_experiment_are_left_alone(workspace: Path, store: Store) -> None:
    run = store.client.create_run(store.experiment_id, start_time=milliseconds(time.time() - 2 * 86400))
    assert run.info.run_id not in publish(workspace).closed
    assert store.client.get_run(run.info.run_id).info.status == "RUNNING"


def test_a_step_of_the_clock_ends_no_training(tmp_path: Path) -> None:
    """psutil computes when a process began by the clock that stepped."""
    script = tmp_path / "pipeline/train.py"
    script.parent.mkdir()
    script.write_text("input()")
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE) as trainer:
        began = psutil.Process(trainer.pid).create_time()
        while not psutil.Process(trainer.pid).cmdline():  # it has only just become another program
            time.sleep(0.01)
        assert not is_gone(f"{socket.gethostname()} {trainer.pid} {began - 30:.2f}")
        trainer.communicate(b"\n")
    assert is_gone(f"{socket.gethostname()} {trainer.pid} {began:.2f}")


def test_parameters_are_flattened() -> None:
    warmup = Warmup(learning_rate=0.01, until_train_error_percent=80.0)
    tree = {"a": {"b": {"c": 1}, "d": None}, "e": True, "f": (1, 2), "g": "text", "h": warmup.model_dump()}
    assert flatten(tree) == {
        "a.b.c": "1",
        "a.d": "null",
        "e": "true",
        "f": "[1, 2]",
        "g": "text",
        "h.learning_rate": "0.01",
        "h.length": "null",
        "h.until_train_error_percent": "80.0",
    }


def test_the_import_is_quick() -> None:
    code = "import sys, resnet_repro.tracking; assert not {'mlflow', 'torch', 'sqlalchemy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from resnet_repro import evidence
from resnet_repro.evidence import Epoch, Metrics, Plan, Provenance
from resnet_repro.params import Architecture, Augmentation, Preprocessing, Recipe, Schedule, Warmup
from resnet_repro.tracking import (
    LiveRun,
    RunRecord,
    Store,
    TrackingError,
    connect,
    publish,
    record_at_end,
    record_at_start,
    record_of_evidence,
    serve_ui,
    show_evidence,
    sync,
    tracking_uri,
)
from resnet_repro.tracking import live as live_module
from resnet_repro.tracking.live import is_gone, this_process
from resnet_repro.tracking.model import has_model
from resnet_repro.tracking.record import flatten
from resnet_repro.tracking.store import PATIENT

STEPS = 391  # of an epoch: 50,000 images by 128
ERRORS = ("test_error_percent", "train_error_percent", "test_loss", "train_loss", "learning_rate")

PLAN = Plan(
    model="resnet20",
    recipe_name="he2015",
    layers=20,
    parameters=269_722,
    architecture=Architecture(family="resnet", depth=20, shortcut="A"),
    recipe=Recipe(
        source="He 2015, section 4.2",
        schedule=Schedule(unit="steps", stop=64000, learning_rate=0.1, drops=(32000, 48000), drop_factor=0.1),
        batch_size=128,
        momentum=0.9,
        weight_decay=1e-4,
        initialization="fan_out",
        preprocessing=Preprocessing(kind="pixel_mean"),
        augmentation=Augmentation(),
        held_out=5000,
    ),
    fingerprint={"step": "1f" * 32, "order": "2e" * 32},
)


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


@pytest.fixture
def warnings() -> list[str]:
    return []


def epochs(n: int, seed: int = 0) -> list[Epoch]:
    """Numbers with all their digits: what is written and read back must be the same float."""
    draw = np.random.default_rng(seed)
    return [
        Epoch(
            epoch=i,
            step=STEPS * i,
            learning_rate=0.1,
            train_loss=draw.uniform(0, 2),
            train_error_percent=draw.uniform(0, 90),
            test_loss=draw.uniform(0, 2),
            test_error_percent=draw.uniform(0, 90),
            validation_loss=draw.uniform(0, 2) if seed else None,
            validation_error_percent=draw.uniform(0, 90) if seed else None,
            seconds=draw.uniform(8, 9),
            train_seconds=draw.uniform(7, 8),
            images_per_second=draw.uniform(6000, 7000),
            finished_at=1.79e9 + 10 * i + draw.uniform(0, 1),
        )
        for i in range(1, n + 1)
    ]


def provenance(uid: str, seed: int = 1, weights: bytes = b"") -> Provenance:
    return Provenance(
        uid=uid,
        model=PLAN.model,
        seed=seed,
        started_at=1.79e9,
        finished_at=1.79e9 + 100.125,
        duration_seconds=99.5,
        device="cuda",
        device_name="NVIDIA H100",
        mode="graphed",
        precision="bf16",
        threads=1,
        deterministic=True,
        images_per_second=6500.0,
        versions={"torch": "2.11.0", "numpy": "2.3.0"},
        platform="Linux",
        git_commit="c0ffee" * 6,
        git_dirty=True,
        data_sha256="d" * 64,
        plan_sha256="b" * 64,
        weights_sha256=evidence.hashlib.sha256(weights).hexdigest(),
    )


def metrics(seed: int = 1) -> Metrics:
    return Metrics(
        model=PLAN.model,
        seed=seed,
        steps=10 * STEPS,
        epochs=10,
        num_test_images=10_000,
        test_error_percent=8.71,
        test_loss=0.371,
        lowest_test_error_percent=8.6,
        lowest_test_error_epoch=9,
        train_error_percent=0.4,
        train_loss=0.02,
        confusion=[[1000 if i == j else 0 for j in range(10)] for i in range(10)],
    )


def write_run(workspace: Path, who: Provenance, rows: list[Epoch]) -> Path:
    """The files of `train` and of `evaluate`. Returns the folder of the latter."""
    key = f"{who.model}-{who.seed}"
    for parent in (workspace / "runs", workspace / "reports" / "runs"):
        folder = parent / key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / evidence.PLAN).write_text(PLAN.to_json())
        evidence.write_json(folder / evidence.PROVENANCE, who)
        evidence.write_epochs(folder, rows)
    evidence.write_json(folder / evidence.METRICS, metrics(who.seed))
    return folder


def start(uid: str, rows: list[Epoch] | None = None) -> RunRecord:
    return record_at_start(PLAN, provenance(uid), rows or [])


def end(uid: str, rows: list[Epoch], folder: Path) -> RunRecord:
    return record_at_end(PLAN, provenance(uid), rows, folder)


def find(store: Store, uid: str) -> Any:
    (run,) = store.client.search_runs([store.experiment_id], f"tags.uid = '{uid}'")
    return run


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def history(store: Store, run: Any, key: str) -> list[tuple[int, int, float]]:
    return sorted((p.step, p.timestamp, p.value) for p in store.client.get_metric_history(run.info.run_id, key))


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
    with LiveRun.start(workspace, record_at_start(PLAN, who)) as live:
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
        "paper": "He 2015, Table 6: 8.75% (single run, last iteration)",
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


def test_an_exception_ends_a_run_and_a_new_attempt_clears_it(workspace: Path, store: Store) -> None:
    def diverge() -> None:
        with LiveRun.start(workspace, start("failed")):
            raise ValueError("the loss is not finite")

    with pytest.raises(ValueError, match="finite"):
        diverge()
    run = find(store, "failed")
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "ValueError: the loss is not finite"

    def stop() -> None:
        with LiveRun.start(workspace, start("failed")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    run = find(store, "failed")
    assert run.info.status == "KILLED"
    assert "failure" not in run.data.tags


def test_after_an_outage_everything_is_sent(
    workspace: Path, store: Store, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True

    def connect_if_there(*arguments: Any) -> Store:
        if away:
            raise ConnectionError("refused")
        return connect(*arguments)

    monkeypatch.setattr(live_module, "connect", connect_if_there)
    live = LiveRun.start(workspace, start("outage"), warnings.append)
    live.log_epochs(epochs(1))
    wait_for(lambda: warnings)
    away = False
    live.log_epochs(epochs(3))
    wait_for(lambda: store.client.search_runs([store.experiment_id], "tags.uid = 'outage'"))
    live.interrupt()
    assert [step for step, _, _ in history(store, find(store, "outage"), "test_loss")] == [391, 782, 1173]
    assert len(warnings) == 1


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_training_goes_on_without_a_server(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@{uri}")
    live = LiveRun.start(tmp_path, start("away"), warnings.append)
    began = time.monotonic()
    for i in range(1, 6):
        live.log_epochs(epochs(i))
    assert time.monotonic() - began < 0.5
    folder = write_run(tmp_path, provenance("away"), epochs(5))
    live.finish(end("away", epochs(5), folder), torch.nn.Identity())
    assert time.monotonic() - began < 20
    (line,) = warnings
    assert f"http://{uri}" in line
    assert "resnet-repro publish" in line
    assert "secret" not in line
    with pytest.raises(TrackingError, match=uri) as refused:
        publish(tmp_path)
    assert "secret" not in str(refused.value)


def test_training_does_not_wait_for_a_server_that_hangs(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "CLOSE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        live = LiveRun.start(tmp_path, start("hung"), warnings.append)
        began = time.monotonic()
        for i in range(1, 6):
            live.log_epochs(epochs(i))
        assert time.monotonic() - began < 0.5
        live.interrupt()
        show_evidence(tmp_path, write_run(tmp_path, provenance("hung"), epochs(2)), warnings.append)
        assert time.monotonic() - began < 5
    assert len(warnings) == 2


def test_first_use_by_many_processes_at_once(tmp_path: Path) -> None:
    code = "import sys, pathlib; from resnet_repro.tracking import connect; connect(pathlib.Path(sys.argv[1]))"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, cwd=tmp_path)
        for _ in range(4)
    ]
    said = [writer.communicate(timeout=120)[1].decode() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, said
    assert said == [""] * 4  # and nothing scrolls past the user
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    names = [experiment.name for experiment in connect(tmp_path).client.search_experiments()]
    assert names.count("resnet-repro") == 1


def test_runs_of_dead_processes_are_closed(tmp_path: Path, workspace: Path, store: Store) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    of_child = f"{socket.gethostname()} {child.pid} {psutil.Process(child.pid).create_time():.2f}"
    assert not is_gone(of_child)
    child.communicate(b"\n")
    assert is_gone(of_child)
    assert not is_gone(f"another-host {child.pid} 1.00")
    for uid, process in {"dead": of_child, "alive": this_process()}.items():
        sync(store, replace(start(uid), tags={**start(uid).tags, "process": process}))
    summary = publish(workspace)
    assert summary.closed == ("resnet20-1",)
    assert find(store, "dead").info.status == "KILLED"
    assert find(store, "alive").info.status == "RUNNING"


class Classifier(torch.nn.Module):
    """A net of this project in small: preprocessing, convolution, batch normalisation, option A's padding."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(3, 32, 32))
        self.convolution = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.linear = torch.nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float() / 255 - self.mean
        shortcut = torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))
        x = torch.relu(self.norm(self.convolution(x)) + shortcut)
        return self.linear(x.mean(dim=(2, 3)))


def classifier() -> Classifier:
    torch.manual_seed(0)
    net = Classifier()
    net(torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8))  # running statistics that are not 0 and 1
    return net.eval()


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
    assert has_model(store, run_id)

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


def test_a_moved_store_is_refused(workspace: Path, store: Store, tmp_path: Path) -> None:
    shutil.copy(workspace / "mlflow.db", tmp_path)
    with pytest.raises(TrackingError, match="another folder"):
        connect(tmp_path)


def test_a_copy_made_by_dvc_logs_to_the_repository(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    assert tracking_uri(tmp_path) == f"sqlite:///{workspace.resolve()}/mlflow.db"


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


@pytest.fixture
def ui(workspace: Path, store: Store) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    port = closed_port()
    # a shell without job control starts background commands with SIGINT ignored, and so this process may be
    code = "import signal, sys, pathlib; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from resnet_repro.tracking import serve_ui; "
    code += "sys.exit(serve_ui(pathlib.Path(sys.argv[1]), int(sys.argv[2])))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(workspace), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process, port
    process.kill()


def test_the_ui_shows_the_runs_and_stops(
    ui: tuple["subprocess.Popen[str]", int], workspace: Path, store: Store
) -> None:
    process, port = ui
    assert process.stdout
    lines = []
    while not (lines and "http" in lines[-1]):
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()
    assert lines[-1] == f"MLflow's UI: http://127.0.0.1:{port} (Ctrl-C stops it)\n"
    query = json.dumps({"experiment_ids": [store.experiment_id], "max_results": 1}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search", query, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert len(json.load(answer)["runs"]) == 1
    with pytest.raises(TrackingError, match=rf"port {port} is taken.*make ui PORT="):
        serve_ui(workspace, port)
    os.kill(process.pid, signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "", "")
    wait_for(lambda: not _listens(port))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

import killing
from killing import contents, run_script
from reliability import Injections
from resnet_repro import evidence, experiment
from resnet_repro.errors import RunLockedError
from resnet_repro.interruption import EXIT_CODE, Interruption
from resnet_repro.tracking import connect, publish
from synthetic import FakeRun, write_workspace

AREA = "Processes killed"
RERUN = "each file that is there is whole, and running it again gives the same files as a run that nothing broke"


@pytest.mark.parametrize("family", killing.FAMILIES)
@pytest.mark.fault(
    "`kill -9` during training, at each of six points",
    "the next run goes on, and gives the same weights and history, bit by bit",
)
def test_the_same_bits_as_the_unbroken_run(tmp_path: Path, family: str, injected: Injections) -> None:
    _, unbroken = killing.kill_run(tmp_path / "unbroken", family, 0)
    kills = injected.count(3, 50)
    with injected(times=kills):
        hits, digests = killing.kill_run(tmp_path / "killed", family, kills)
        assert hits.total() == kills
        assert digests == unbroken
        assert kills < 50 or set(hits) == set(killing.POINTS)


def kill_everywhere(
    injected: Injections,
    step: int,
    moments: int,
    prepare: Callable[[], object],
    check: Callable[[], object],
    log: Path,
    *work: object,
    **environment: str,
) -> None:
    """Kill `work` before every `step`-th change of a file, then at random moments; check after each kill."""
    began = time.monotonic()
    assert killing.run(log, *work, **environment) == 0, log.read_text()
    seconds, choose, count = time.monotonic() - began, random.Random(0), 1
    prepare()
    while killing.run(log, killing.dying, count, *work, **environment) == -signal.SIGKILL:
        with injected():
            check()
        prepare()
        count += step
    assert count > 1, log.read_text()
    for _ in range(moments):
        prepare()
        process = killing.start(log, *work, **environment)
        process.join(choose.uniform(0, seconds))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:  # else it had ended before
            with injected():
                check()


def kill_stage(injected: Injections, step: int, moments: int, workspace: Path, out: str, *command: str) -> None:
    """Kill a stage that replaces older files in the folder `out`, and run it again."""
    log, folder, environment = workspace / "log", workspace / out, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    work = (run_script, workspace, *command)
    assert killing.run(log, *work, **environment) == 0, log.read_text()
    whole = contents(folder)
    old = dict.fromkeys(whole, b"old")

    def prepare() -> None:
        shutil.rmtree(folder)
        for name, content in old.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def check() -> None:
        for name, content in contents(folder).items():
            assert name.startswith(".new/") or content in (old[name], whole[name]), name
        assert killing.run(log, *work, **environment) == 0, log.read_text()
        assert contents(folder) == whole

    kill_everywhere(injected, step, moments, prepare, check, log, *work, **environment)


@pytest.mark.fault("`kill -9` during evaluation", RERUN)
def test_evaluation(tmp_path: Path, injected: Injections) -> None:
    killing.make_trained(tmp_path)
    kill_stage(injected, injected.count(8, 1), injected.count(2, 40), tmp_path, "out", "evaluate", "run", "out")


@pytest.mark.fault("`kill -9` during the report", RERUN)
def test_report(tmp_path: Path, injected: Injections) -> None:
    write_workspace(tmp_path, [FakeRun("resnet20_brief")])
    kill_stage(injected, injected.count(60, 5), injected.count(1, 15), tmp_path, "out", "report", "out")


def publish_all(workspace: Path) -> None:
    """`resnet-repro publish`, and what MLflow holds then."""
    assert publish(workspace).problems == ()
    store, runs = connect(workspace), []
    for run in store.client.search_runs([store.experiment_id]):
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        points = {
            key: sorted((p.step, p.timestamp, p.value) for p in store.client.get_metric_history(run.info.run_id, key))
            for key in run.data.metrics
        }
        files = {str(path.relative_to(folder)): evidence.sha256_of(path) for path in folder.rglob("[!.]*.*")}
        info = (run.info.run_name, run.info.status, run.info.start_time if run.data.params else 0)
        runs.append([*info, run.data.params, run.data.tags, points, files, len(run.inputs.dataset_inputs)])
    (workspace / "shown.json").write_text(json.dumps(sorted(runs, key=lambda run: run[0]), sort_keys=True))


@pytest.mark.fault("`kill -9` during `publish`", "publishing again leaves no gap, no duplicate and no run that runs")
@pytest.mark.parametrize("has_tables", [True, False])
def test_publish(tmp_path: Path, injected: Injections, has_tables: bool) -> None:
    write_workspace(tmp_path, [FakeRun("resnet20_brief", 1), FakeRun("resnet20_brief", 2)])
    (tmp_path / "reports/README.md").write_text("# Results\n\n| model |\n\n## Figures\n")
    database, log, shown = tmp_path / "mlflow.db", tmp_path / "log", tmp_path / "shown.json"
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    assert killing.run(log, connect, tmp_path, **environment) == 0, log.read_text()
    empty = database.read_bytes()
    assert killing.run(log, publish_all, tmp_path, **environment) == 0, log.read_text()
    whole = shown.read_text()
    assert whole.count("FINISHED") == 3

    def prepare() -> None:
        for path in tmp_path.glob("mlflow.db*"):
            path.unlink()
        shutil.rmtree(tmp_path / "mlartifacts")
        if has_tables:
            database.write_bytes(empty)

    def check() -> None:
        shown.unlink()
        assert killing.run(log, publish_all, tmp_path, **environment) == 0, log.read_text()
        assert shown.read_text() == whole

    step, moments = (injected.count(25, 2), injected.count(2, 30)) if has_tables else (1000, injected.count(1, 15))
    kill_everywhere(injected, step, moments, prepare, check, log, publish_all, tmp_path, **environment)


class Slow(killing.Silent):
    def stepped(self, step: int) -> None:
        print(f"step {step}.", flush=True)
        time.sleep(0.05)


def train_until_stopped(folder: Path, hangs: bool = False) -> None:
    """As pipeline/train.py does."""
    with Interruption() as interruption:
        try:
            killing.train(folder, observer=Slow(), interruption=interruption)
        except experiment.InterruptedRunError as error:
            print(error, flush=True)
            if hangs:
                time.sleep(60)
            raise SystemExit(EXIT_CODE) from None


def train_as_child(folder: Path) -> None:
    """What DVC is to a training."""
    if os.fork() == 0:
        try:
            train_until_stopped(folder)
        finally:
            os._exit(EXIT_CODE)
    os.wait()


def wait_for(log: Path, text: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in {log.read_text()}"
        time.sleep(0.01)


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[], Path]:
    """Makes folders to train in."""

    def make() -> Path:
        return killing.make_folder(tmp_path / str(len(list(tmp_path.iterdir()))), "plain")

    return make


@pytest.fixture
def weights(folders: Callable[[], Path]) -> str:
    """Of the unbroken run."""
    return killing.train(folders()).weights_sha256


def started(
    folder: Path, step: int, work: Callable[..., object], *arguments: object, **environment: str
) -> BaseProcess:
    process = killing.start(folder / "log", work, folder, *arguments, **environment)
    wait_for(folder / "log", f"step {step}.")
    return process


def goes_on(folder: Path, weights: str) -> None:
    resumed = killing.train(folder)
    assert (resumed.sessions, resumed.weights_sha256) == (2, weights)


@pytest.mark.fault(
    "SIGTERM or SIGINT during training", "it saves and leaves with status 75, and the next run gives the same weights"
)
def test_a_signal_saves_and_leaves(folders: Callable[[], Path], weights: str, injected: Injections) -> None:
    for number in range(injected.count(2, 40)):
        folder, which = folders(), (signal.SIGTERM, signal.SIGINT)[number % 2]
        process = started(folder, 1 + number, train_until_stopped)
        with injected():
            os.kill(process.pid or 0, which)
            process.join(20)
            assert process.exitcode == EXIT_CODE
            said = rf"plain-1 stopped at step \d+ of 60 because it received {which.name}; the same command goes on"
            assert re.search(said, (folder / "log").read_text())
            goes_on(folder, weights)


@pytest.mark.fault("a second signal, to a training that hangs while it stops", "it ends at once")
def test_a_second_signal_leaves_at_once(folders: Callable[[], Path], injected: Injections) -> None:
    for number in range(injected.count(1, 20)):
        folder = folders()
        process = started(folder, 1 + number, train_until_stopped, True)
        with injected():
            process.terminate()
            wait_for(folder / "log", "SIGTERM")
            process.terminate()
            process.join(3)
            assert process.exitcode == 128 + signal.SIGTERM


@pytest.mark.fault("`kill -9` of the process that DVC would be", "its training notices, saves and stops, and can go on")
def test_it_stops_when_the_parent_dies(folders: Callable[[], Path], weights: str, injected: Injections) -> None:
    for number in range(injected.count(1, 20)):
        folder = folders()
        parent = started(folder, 1 + number, train_as_child, DVC_STAGE="train")
        with injected():
            parent.kill()
            wait_for(folder / "log", "because the process that started it is gone")
            goes_on(folder, weights)


def test_without_dvc_no_parent_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert Interruption()._watched == []


@pytest.mark.fault(
    "two trainings of one run at once", "the second refuses and names the first; once it is dead, it goes on"
)
def test_a_second_trainer_refuses(folders: Callable[[], Path], weights: str, injected: Injections) -> None:
    for number in range(injected.count(1, 20)):
        folder = folders()
        first = started(folder, 6 + number, train_until_stopped)
        with injected():
            with pytest.raises(RunLockedError, match=f"process {first.pid} is training plain-1 already: wait for it"):
                killing.train(folder)
            first.kill()
            first.join()
            goes_on(folder, weights)

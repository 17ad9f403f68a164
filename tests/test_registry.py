"""The registry of a store that `publish` filled, and what is served from it over HTTP."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet_repro.evidence import RunEvidence
from resnet_repro.tracking import connect, publish
from resnet_repro.tracking.model import find_model
from resnet_repro.tracking.registry import Trained, register
from resnet_repro.tracking.store import PATIENT, Store
from tracking_records import Server, classifier, closed_port, find, wait_for, write_trained


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DVC_ROOT", *PATIENT):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best by validation is the worst by test; plain20 has nothing to choose by."""
    workspace = tmp_path_factory.mktemp("registry")
    for seed, validation, test in ((1, 9.0, 5.0), (2, 8.0, 7.0)):
        write_trained(workspace, "resnet20", seed, 5000, validation, test)
    for seed, test in ((2, 10.0), (10, 8.0)):
        write_trained(workspace, "plain20", seed, 0, 0.0, test)
    return workspace


@pytest.fixture
def store(workspace: Path) -> Store:
    assert publish(workspace, lambda _: classifier()).problems == ()
    return connect(workspace)


def content(store: Store) -> dict[str, Any]:
    """All that the registry shows but MLflow's own identifiers and times."""
    return {
        model.name: {
            "description": model.description,
            "versions": sorted(
                (found.tags["run"], found.description, sorted(found.tags.items()))
                for found in store.client.search_model_versions(f"name = '{model.name}'")
            ),
            "best": store.client.get_model_version_by_alias(model.name, "best").tags["run"],
        }
        for model in store.client.search_registered_models()
    }


def trained(store: Store, workspace: Path, name: str) -> list[Trained]:
    """The runs of resnet20, under another name."""
    folders = [workspace / "reports" / "runs" / f"resnet20-{seed}" for seed in (1, 2)]
    runs = [RunEvidence.read(folder) for folder in folders]
    ids = [find(store, run.provenance.uid).info.run_id for run in runs]
    runs = [replace(run, plan=run.plan.model_copy(update={"model": name})) for run in runs]
    return [Trained(run, run_id, str(find_model(store, run_id))) for run, run_id in zip(runs, ids, strict=True)]


def test_every_model_and_run_is_registered_and_the_test_error_never_chooses(workspace: Path, store: Store) -> None:
    found = content(store)
    assert {name: entry["best"] for name, entry in found.items()} == {"resnet20": "resnet20-2", "plain20": "plain20-2"}
    resnet, plain = found["resnet20"]["description"], found["plain20"]["description"]
    for said in ("20 layers", "269,722 parameters", "8.75%", "He 2015, Table 6", "5,000", "models/resnet20.md"):
        assert said in resnet
    assert 'mlflow.pyfunc.load_model("models:/resnet20@best")' in resnet
    assert "lowest seed" in plain
    (_, first, tags), (_, second, _) = found["resnet20"]["versions"]
    assert "5.00% test error" in first
    assert "9.00% on the 5,000 images held out" in first
    assert "7.00% test error" in second
    assert {"seed": "1", "run": "resnet20-1", "uid": "resnet20-1", "git_commit": "c0ffee" * 6}.items() <= dict(
        tags
    ).items()


def test_a_second_publish_adds_nothing_and_a_lost_store_is_rebuilt(
    workspace: Path, store: Store, tmp_path: Path
) -> None:
    before = content(store)
    assert publish(workspace, lambda _: classifier()).registered == ()
    assert content(store) == before
    for part in ("reports", "runs"):
        shutil.copytree(workspace / part, tmp_path / part)
    summary = publish(tmp_path, lambda _: classifier())
    assert summary.registered == ("plain20-10", "plain20-2", "resnet20-1", "resnet20-2")
    assert content(connect(tmp_path)) == before


def test_files_that_somebody_deleted_are_uploaded_again(workspace: Path, tmp_path: Path) -> None:
    """To free space, say: the database still has all of them."""
    import mlflow

    for part in ("reports", "runs"):
        shutil.copytree(workspace / part, tmp_path / part)
    (tmp_path / "reports/README.md").write_text("# Results\n\n## Figures\n")
    assert publish(tmp_path, lambda _: classifier()).problems == ()
    before = content(store := connect(tmp_path))
    shutil.rmtree(tmp_path / "mlartifacts")
    summary = publish(tmp_path, lambda _: classifier())
    assert len(summary.completed) == 5, summary
    assert summary.registered == ("plain20-10", "plain20-2", "resnet20-1", "resnet20-2")
    assert content(store) == before
    mlflow.set_tracking_uri(store.uri)
    images = np.zeros((1, 3, 32, 32), np.uint8)
    assert mlflow.pyfunc.load_model("models:/resnet20@best").predict(images).shape == (1, 10)
    report = find(store, "report").info.run_id
    assert Path(store.client.download_artifacts(report, "README.md")).read_text() == "# Results\n\n## Figures\n"
    assert len(publish(tmp_path, lambda _: classifier()).unchanged) == 5


class Breaks:
    """A client whose call number `last` is lost, before or after it was done, and all that follow."""

    def __init__(self, client: Any, last: int, done: bool) -> None:
        self.client, self.left, self.done = client, last, done

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left > 0 or (self.left == 0 and self.done):
                answer = getattr(self.client, name)(*arguments, **named)
            if self.left <= 0:
                raise ConnectionError(name)
            return answer

        return call


@pytest.mark.parametrize("done", [False, True])
def test_what_an_outage_left_out_is_added_the_next_time(workspace: Path, store: Store, done: bool) -> None:
    for last in range(1, 99):
        runs = trained(store, workspace, f"outage{last}{done}")
        try:
            register(replace(store, client=Breaks(store.client, last, done)), runs)
        except ConnectionError:
            register(store, runs)
            found = content(store)[runs[0].run.plan.model]
            assert [run for run, *_ in found["versions"]] == ["resnet20-1", "resnet20-2"]
            assert found["best"] == "resnet20-2"
            store.client.delete_registered_model(runs[0].run.plan.model)
        else:
            store.client.delete_registered_model(runs[0].run.plan.model)
            break
    assert last > 6


def test_a_store_without_a_registry_gets_its_runs(
    workspace: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    def refuse(*_: Any) -> None:
        raise PermissionError("http://user:secret@host has no registry")

    monkeypatch.setattr(mlflow.MlflowClient, "search_registered_models", refuse)
    summary = publish(workspace)
    assert len(summary.unchanged) == 4
    (problem,) = summary.problems
    assert "http://host has no registry" in problem


def test_two_publishers_of_one_server(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(tmp_path)
    server = Server(tmp_path, (tmp_path / "mlflow.db").read_bytes())
    server.start()
    with server.stack:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
        assert len(publish(workspace, lambda _: classifier()).registered) == 4
        store = connect(workspace)
        assert content(store)["resnet20"]["best"] == "resnet20-2"
        runs, barrier, errors = trained(store, workspace, "both"), threading.Barrier(2), []

        def publisher() -> None:
            barrier.wait()
            try:
                register(connect(workspace), runs)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=publisher) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) < 2  # MLflow may refuse the slower one, which its next publish mends
        register(store, runs)
        assert [run for run, *_ in content(store)["both"]["versions"]] == ["resnet20-1", "resnet20-2"]


@contextmanager
def serving(store: Store, model: str, folder: Path) -> Iterator[int]:
    port = closed_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)

    def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).status == 200
        except OSError:
            return False

    try:
        wait_for(answers, 120)
        yield port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_the_best_model_is_served_over_http(store: Store, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)
    with torch.no_grad():
        expected = classifier()(torch.from_numpy(images)).numpy()
    with serving(store, "models:/resnet20@best", tmp_path) as port:
        for count in (1, 9):
            body = json.dumps({"inputs": images[:count].tolist()}).encode()
            url, headers = f"http://127.0.0.1:{port}/invocations", {"Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
                logits = np.array(json.load(answer)["predictions"])
            np.testing.assert_allclose(logits, expected[:count], rtol=1e-5, atol=1e-6)
        body = json.dumps({"inputs": images[0].tolist()}).encode()  # one image must still be a batch
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60)

"""`resnet-repro farm`: here, on a Ray cluster that loses a node, and the parts of it that need neither."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from farm_workspace import LONG, THREE, build_rows, is_as_dvc_repro_leaves_it
from killing import REPOSITORY
from ray_cluster import Cluster
from resnet_repro.engine import device_name
from resnet_repro.farm.cluster import Batch, resources_of
from resnet_repro.farm.local import TRIES, Update, jobs_per_device
from resnet_repro.farm.show import View
from resnet_repro.farm.work import FarmError, Job, find_work, in_order, makespan, sort_locks, targets_of
from resnet_repro.farm.worker import Report
from resnet_repro.params import load
from small_workspace import is_alive, run, said, started

pytestmark = pytest.mark.xdist_group("farm")
FARM = ("resnet-repro", "farm", "--jobs", "2")


class TestParts:
    def test_makespan_is_grahams(self) -> None:
        """Graham 1969, figure 4: for 3 machines the longest first takes 11 where 9 would do, 4/3 - 1/9 of it."""
        assert makespan([5, 5, 4, 4, 3, 3, 3], 3) == 11
        assert makespan([], 3) == 0

    @given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 3))
    def test_makespan_is_near_the_best_there_is(self, seconds: list[int], workers: int) -> None:
        loads = [
            [sum(s for s, place in zip(seconds, places, strict=True) if place == worker) for worker in range(workers)]
            for places in product(range(workers), repeat=len(seconds))
        ]
        best = min(map(max, loads))
        assert best <= makespan(sorted(seconds, reverse=True), workers) <= best * (4 / 3 - 1 / (3 * workers)) + 1e-9

    @pytest.mark.parametrize(
        ("failure", "failures", "tries", "comes"),
        [
            ("ERROR: 'a' is busy, it is being blocked by: (PID 1): dvc status", 3, 5, True),  # 3, 1 and the commit
            ("ERROR: 'a' is busy, it is being blocked by: (PID 1): dvc status", 99, TRIES + 1, False),
            ("ERROR: failed to pull data", 3, 1, False),
        ],
    )
    def test_runs_come_home_past_another_dvc(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str, failures: int, tries: int, comes: bool
    ) -> None:
        log = tmp_path / "log"
        fake = f"""
import sys
with open({str(log)!r}, "a+") as log:
    log.write(".")
    if log.tell() <= {failures}:
        sys.exit({failure!r})
"""
        monkeypatch.setattr("resnet_repro.farm.cluster.dvc", lambda *_: [sys.executable, "-c", fake])
        job = Job("plain8-1", ("train@plain8-1", "evaluate@plain8-1"))
        batch = Batch(tmp_path, [(job, Report("a node", returncode=0))])
        while (problem := batch.poll()) is None:
            time.sleep(0.01)
        assert problem == (() if comes else (failure,))
        assert len(log.read_text()) == tries

    def test_new_stages_go_where_dvc_yaml_has_them(self) -> None:
        lock = (REPOSITORY / "dvc.lock").read_text()
        names = re.findall(r"^  (\S+):$", lock, re.MULTILINE)
        parts = re.split(r"^(?=  \S)", lock, flags=re.MULTILINE)
        shuffled = random.Random(1).sample(parts[1:], len(parts) - 1)
        assert in_order(parts[0] + "".join(shuffled), "", names) == lock
        first = "".join([parts[0], *parts[-3:]])  # committed in that order, which stays
        expected = "".join([*names[-3:], *names[:-3]])
        sorted_names = re.findall(r"^  (\S+):$", in_order(lock, first, names), re.MULTILINE)
        assert "".join(sorted_names) == expected

    def test_runs_and_models_are_targets(self) -> None:
        params = load(REPOSITORY / "params.yaml")
        assert targets_of(params, []) == ["dvc.yaml"]
        assert targets_of(params, ["resnet20-1"]) == targets_of(params, ["resnet20"]) == ["evaluate@resnet20-1"]
        zca = [f"ablations/dvc.yaml:evaluate@resnet20_zca-{seed}" for seed in (1, 2, 3)]
        assert targets_of(params, ["resnet20_zca", "report"]) == [*zca, "report"]

    def test_as_many_jobs_as_measured_best(self, tmp_path: Path) -> None:
        assert jobs_per_device(tmp_path, "cpu", ["resnet20"]) == 1  # not measured
        rows = [{"jobs": 1, "runs_per_hour": 10.0}, {"jobs": 2, "runs_per_hour": 19.6}]
        rows += [{"jobs": 4, "runs_per_hour": 20.0}, {"jobs": 8, "runs_per_hour": None}]
        (tmp_path / "reports/scale").mkdir(parents=True)
        content = {"device": device_name("cpu"), "packing": {"rows": rows}}
        (tmp_path / "reports/scale/cpu.json").write_text(json.dumps(content))
        assert jobs_per_device(tmp_path, "cpu", ["resnet20"]) == 2
        (tmp_path / "reports/scale/cpu.json").write_text(json.dumps(content | {"device": "another"}))
        assert jobs_per_device(tmp_path, "cpu", ["resnet20"]) == 1

    def test_tasks_share_a_gpu_or_a_machine(self) -> None:
        nodes = [{"Alive": True, "Resources": {"CPU": cores}} for cores in (16.0, 8.0, 0.0)]
        cluster = SimpleNamespace(nodes=lambda: nodes, cluster_resources=lambda: {"CPU": 24.0})
        assert resources_of(cluster, jobs=2) == {"num_cpus": 4}
        with_gpus = SimpleNamespace(cluster_resources=lambda: {"CPU": 24.0, "GPU": 3.0})
        assert resources_of(with_gpus, jobs=4) == {"num_gpus": 0.25, "num_cpus": 1}

    def test_the_summary_has_the_last_words_of_what_failed(self) -> None:
        jobs = [Job("a-1", ("train@a-1",)), Job("b-1", ("train@b-1",)), Job("c-1", ("train@c-1",))]
        with View(jobs, console := Console(file=None, record=True)) as view:
            lines = (
                "Running stage 'train@a-1':",
                "a-1: epoch 3/9, step 3/9, test error 12.30%, 9 images/s, 1 h 2 min left",
            )
            view.update(Update(jobs[0], "cuda:1", lines))
            assert (view.rows["a-1"].stage, view.rows["a-1"].epoch) == ("train", (3, 9, 12.3, "1 h 2 min"))
            view.update(Update(jobs[0], "cuda:1", lines, 0))
            view.update(Update(jobs[1], "cpu", ("no space left",), 1))
        assert view.summary().startswith("1 runs done, 1 failed, 1 left")
        assert "b-1 failed on cpu:\n  no space left" in view.summary()
        assert "a-1: done on cuda:1 after 0 s, test error 12.30%" in console.export_text()


@pytest.fixture(
    scope="module", params=[pytest.param(THREE, id="three"), pytest.param((), id="twelve", marks=pytest.mark.slow)]
)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build_rows(workspace := tmp_path_factory.mktemp("base") / "workspace", request.param)
    return workspace


@pytest.fixture(scope="module")
def serial(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By `dvc repro` itself."""
    workspace = shutil.copytree(base, tmp_path_factory.mktemp("serial") / "workspace")
    run(workspace, "dvc", "repro")
    return workspace


@pytest.fixture
def workspace(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "workspace")


def seen(condition: Callable[[], bool], farm: "subprocess.Popen[str]", seconds: float = 120) -> None:
    """Wait for it, while the farm works."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert farm.poll() is None, "the farm ended too early"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def trainers(workspace: Path) -> list[psutil.Process]:
    """What trains the long run in the workspace."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] == str(workspace) and (process.info["cmdline"] or [])[1:3] == [
            "pipeline/train.py",
            "resnet20",
        ]:
            found.append(process)
    return found


def everything(workspace: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(workspace) and is_alive(p)]


def trains(workspace: Path) -> bool:
    """Past its start: the log says so."""
    log = workspace / f".cache/farm/{LONG}.log"
    return bool(trainers(workspace)) and log.is_file() and "parameters, recipe" in log.read_text()


@pytest.mark.timeout(1500)
def test_stopped_killed_and_broken_it_ends_as_dvc_repro_does(
    workspace: Path, base: Path, serial: Path, tmp_path: Path
) -> None:
    # Ctrl-C: every process ends, and a checkpoint is left
    farm = started(workspace, *FARM)
    seen(lambda: trains(workspace), farm)
    farm.send_signal(signal.SIGINT)
    assert farm.wait(60) == 130, said(workspace)
    assert "The same command goes on" in said(workspace)
    assert not everything(workspace)
    assert list(workspace.glob(f"checkpoints/{LONG}/*/step-*"))

    # the farm itself is killed: its children see that and end
    farm = started(workspace, *FARM)
    seen(lambda: trains(workspace), farm)
    farm.kill()
    farm.wait()
    deadline = time.monotonic() + 30
    while everything(workspace):
        assert time.monotonic() < deadline, everything(workspace)
        time.sleep(0.2)

    # one training is killed: the others are done, and the command says which and what it said
    farm = started(workspace, *FARM)
    seen(lambda: trains(workspace), farm)
    for process in trainers(workspace):
        process.kill()
    assert farm.wait(600) == 1, said(workspace)
    assert f"{LONG} failed on cpu:" in said(workspace)
    assert f"failed to reproduce 'train@{LONG}'" in said(workspace)
    assert not everything(workspace)
    assert [job.run for job in find_work(workspace, ["dvc.yaml"]).jobs] == [LONG]

    text = run(workspace, *FARM)
    assert "1 runs done, 0 failed" in text
    assert json.loads((workspace / f"reports/runs/{LONG}/provenance.json").read_text())["sessions"] >= 2
    is_as_dvc_repro_leaves_it(workspace, base, serial, tmp_path)
    assert not find_work(workspace, ["dvc.yaml"]).jobs


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (folder := tmp_path / "ray").mkdir()
    cluster = Cluster(folder)
    yield cluster
    cluster.close()


def cluster_trainers() -> list[psutil.Process]:
    """Of the long run, in any clone."""
    found = psutil.process_iter(["cmdline"])
    named = [p for p in found if (p.info["cmdline"] or [])[1:4] == ["pipeline/train.py", "resnet20", "1"]]
    return [p for p in named if is_alive(p) and "/resnet-repro-" in p.cwd()]


@pytest.mark.timeout(1500)
def test_a_node_is_lost_and_all_ends_as_dvc_repro_ends(
    workspace: Path, base: Path, serial: Path, cluster: Cluster, tmp_path: Path
) -> None:
    farm_command = ("resnet-repro", "farm", "--executor", "ray", "--address", cluster.address)
    run(workspace, "dvc", "remote", "add", "--quiet", "--local", "--default", "courier", str(tmp_path / "courier"))

    def kept() -> list[Path]:
        return list(workspace.glob(f"checkpoints/{LONG}/*/step-*"))

    # Ctrl-C: the checkpoint of what was running comes home
    farm = started(workspace, *farm_command)
    seen(lambda: bool(cluster_trainers()), farm, 300)
    seen(lambda: bool(kept()), farm, 300)
    farm.send_signal(signal.SIGINT)
    assert farm.wait(120) == 130, said(workspace)
    assert not cluster_trainers()
    first = kept()[0].name

    # the node that goes on with it is lost, after it sent a newer one
    farm = started(workspace, *farm_command)
    seen(lambda: bool(cluster_trainers()), farm, 300)
    seen(lambda: any(path.name > first for path in kept()), farm, 300)
    cluster.lose(cluster.node_of(cluster_trainers()[0]))
    assert farm.wait(900) == 0, said(workspace)
    assert "0 failed, 0 left" in said(workspace)

    assert json.loads((workspace / f"reports/runs/{LONG}/provenance.json").read_text())["sessions"] >= 3
    assert not cluster_trainers()
    assert not kept()
    is_as_dvc_repro_leaves_it(workspace, base, serial, tmp_path)


def test_what_it_cannot_do_it_says(workspace: Path) -> None:
    assert "resnet99" in run(workspace, *FARM, "resnet99", expected=1)
    assert "one of local, ray" in run(workspace, *FARM, "--executor", "slurm", expected=1)
    (workspace / "README.md").write_text("changed")
    assert "not committed: README.md; commit them first" in run(workspace, *FARM, "--executor", "ray", expected=1)
    run(workspace, "git", "checkout", "README.md")
    assert "dvc remote add --default" in run(workspace, *FARM, "--executor", "ray", expected=1)


def test_the_order_of_the_last_commit_stays(workspace: Path) -> None:
    order = find_work(workspace, ["dvc.yaml"]).order
    before = (workspace / "dvc.lock").read_bytes()
    sort_locks(workspace, order)
    assert (workspace / "dvc.lock").read_bytes() == before
    with pytest.raises(FarmError, match="no-such-stage"):
        find_work(workspace, ["no-such-stage"])

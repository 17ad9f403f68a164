import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from reliability import Injections
from resnet_repro.doctor import CHECKS
from resnet_repro.evidence import PROVENANCE, WEIGHTS
from resnet_repro.workspace import LockFileError, Workspace, stages_of
from small_workspace import (
    EVALUATE,
    OUTPUTS,
    RUN,
    STEPS,
    TRAIN,
    contents,
    damage,
    findings,
    is_alive,
    mend,
    results,
    run,
    said,
    started,
)
from sources import Digits, Server, sends

AREA = "DVC"
KEY, TRAINER = Path(RUN).name, "pipeline/train.py"
TRAIN_ALONE = ("dvc", "repro", "--single-item", TRAIN)
pytestmark = pytest.mark.xdist_group("dvc")


def test_doctor_says_that_a_healthy_workspace_is_one_and_changes_nothing(workspace: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in workspace.rglob("*")}
    text = run(workspace, "resnet-repro", "doctor", "--mend")
    assert text.count(" ok ") == len(CHECKS)
    assert before == {p: (p.stat().st_mtime_ns, p.is_dir() or p.read_bytes()) for p in workspace.rglob("*")}


@pytest.mark.fault(
    "a damaged object in DVC's cache",
    "`doctor` names it and what it is part of, and mends it by the whole copy in the workspace",
)
def test_damaged_cache(workspace: Path, injected: Injections) -> None:
    choose, there = random.Random(0), Workspace(workspace)
    used = {md5: out for out in there.outputs for md5 in (out.md5, *there.parts(out).values())}
    for _ in range(injected.count(1, 2)):
        for md5 in choose.sample(sorted(used), injected.count(3, len(used))):
            whole = damage(there.object(md5), choose)
            with injected():
                first, second = findings(workspace)
                assert f"{there.object(md5)} (part of {used[md5].path}) is damaged: its content does not have" in first
                assert f"`dvc repro` would run {used[md5].stage} again; `dvc commit {used[md5].stage}` adds" in second
                mend(workspace)
                assert there.object(md5).read_bytes() == whole
    assert "Running stage" not in run(workspace, "dvc", "repro", EVALUATE)


@pytest.mark.fault(
    "a damaged object in DVC's cache, which DVC checks out",
    "the next stage refuses it by our own digests; after `doctor --mend`, `dvc repro` gives the same bits",
)
@pytest.mark.parametrize(
    ("output", "name", "user", "maker", "message"),
    [
        ("data/members", "data_batch_1", "prepare", "fetch", "data_batch_1 is not the file of params.yaml"),
        ("data/cifar10", "test_images.npy", EVALUATE, "prepare", f"{RUN} was trained on other data"),
        (RUN, WEIGHTS, EVALUATE, TRAIN, f"{RUN}/{WEIGHTS} is not what was trained"),
    ],
    ids=["members", "arrays", "weights"],
)
def test_damage_checked_out(
    workspace: Path, output: str, name: str, user: str, maker: str, message: str, injected: Injections
) -> None:
    before, choose = results(workspace, output), random.Random(0)
    for _ in range(injected.count(1, 4)):
        there = Workspace(workspace)
        (entry,) = (out for out in there.outputs if out.path == output)
        damage(there.object(there.parts(entry)[name]), choose)
        shutil.rmtree(workspace / output)
        run(workspace, "dvc", "checkout", output)
        with injected():
            assert message in run(workspace, "dvc", "repro", "--single-item", "--force", user, expected=255)
            assert any(f"{output} is damaged: {name}" in found for found in findings(workspace))
            mend(workspace)
            back = f"`dvc pull {output}` fetches it where a remote has it, and `dvc repro {maker}` makes it again"
            assert back in "".join(findings(workspace, "note"))
            assert f"Running stage '{maker}'" in run(workspace, "dvc", "repro", maker)
            assert results(workspace, output) == before


@pytest.mark.fault(
    "a bit of an output in the workspace flips, its size and time do not change",
    "`dvc status` sees nothing; `doctor` names the file, and brings the same bytes back from DVC's cache",
)
def test_damaged_workspace(workspace: Path, injected: Injections) -> None:
    choose, before = random.Random(0), {output: contents(workspace / output) for output in OUTPUTS}
    up_to_date = run(workspace, "dvc", "status", TRAIN)
    for number in range(injected.count(3, 60)):
        output = OUTPUTS[number % 3]
        damage(workspace / output / (name := choose.choice(sorted(before[output]))), choose)
        if number == 0:
            assert run(workspace, "dvc", "status", TRAIN) == up_to_date
        with injected():
            (found,) = findings(workspace)
            assert f"{output} is damaged: {name}; `rm -r {output}; dvc checkout {output}` copies it from" in found
            mend(workspace)
            assert contents(workspace / output) == before[output]
    assert run(workspace, "dvc", "status", TRAIN) == up_to_date


@pytest.mark.fault(
    "`.dvc/tmp/rwlock` is empty or torn", "DVC refuses to work; `doctor` says why and mends it, and DVC works again"
)
def test_torn_rwlock(workspace: Path, injected: Injections) -> None:
    file = workspace / ".dvc/tmp/rwlock"
    whole = json.dumps({"write": {str(workspace / RUN): {"pid": 1 << 22, "cmd": "dvc repro"}}})
    for cut in sorted({0, *random.Random(0).sample(range(1, len(whole)), injected.count(2, 40))}):
        file.write_text(whole[:cut])
        with injected():
            if cut == 0:
                assert "rwlock" in run(workspace, "dvc", "repro", "fetch", expected=255)
            assert findings(workspace) == [f"{file} is empty or damaged, and DVC refuses to work; delete {file}"]
            mend(workspace)
    run(workspace, "dvc", "repro", "fetch")


@pytest.mark.fault(
    "`.dvc/tmp/rwlock` names a dead process, and another has its number now",
    "DVC refuses to work; `doctor` says why and mends it, and DVC works again",
)
def test_rwlock_of_another(workspace: Path, injected: Injections) -> None:
    file, members = workspace / ".dvc/tmp/rwlock", str(workspace / "data/members")
    for _ in range(injected.count(1, 10)):
        with subprocess.Popen(["sleep", "100"]) as other, injected():
            file.write_text(json.dumps({"write": {members: {"pid": other.pid, "cmd": "dvc repro"}}}))
            os.utime(file, (0, time.time() - 3600))
            assert f"(PID {other.pid})" in run(workspace, "dvc", "repro", "fetch", expected=255)
            (found,) = findings(workspace)
            assert f"names processes that have ended: {other.pid} (dvc repro); others have their numbers now" in found
            mend(workspace)
            run(workspace, "dvc", "repro", "fetch")
            other.kill()


@pytest.mark.fault(
    "two `dvc repro` at once",
    "of the same stage, the second is refused and names the first; of two stages, both end well; dvc.lock stays whole",
)
def test_two_at_once(workspace: Path, digits: Digits, serve: Callable[..., Server], injected: Injections) -> None:
    go_on = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        go_on.wait(60)
        sends(digits.path.read_bytes())(handler)

    server, locked, lock = serve(answer), YAML().load(workspace / "dvc.lock"), YAML().load(workspace / "dvc.lock")
    del lock["stages"]["fetch"], lock["stages"]["plan"]
    for _ in range(injected.count(1, 10)):
        go_on.clear()
        server.requests.clear()
        YAML().dump(lock, workspace / "dvc.lock")
        for folder in (".cache/download", ".dvc/cache/runs"):
            shutil.rmtree(workspace / folder, ignore_errors=True)
        first = started(workspace, "dvc", "repro", "--single-item", "fetch", archive=server.url)
        while not server.requests:
            assert first.poll() is None, said(workspace)
            time.sleep(0.02)
        with injected():
            assert f"(PID {first.pid})" in run(workspace, "dvc", "repro", "--single-item", "fetch", expected=255)
            assert any(f"process {first.pid} works here: " in note for note in findings(workspace, "note"))
            run(workspace, "dvc", "--wait-for-lock", "repro", "--single-item", "plan")
            go_on.set()
            assert first.wait(60) == 0
            assert YAML().load(workspace / "dvc.lock") == locked


@pytest.mark.fault(
    "`kill -9` of `dvc repro` while it trains",
    "the training saves and ends within seconds, a second is refused meanwhile, and the next gives the same bits",
)
def test_dvc_is_killed(workspace: Path, injected: Injections) -> None:
    unbroken, choose, lock = results(workspace), random.Random(0), YAML().load(workspace / "dvc.lock")
    del lock["stages"][TRAIN], lock["stages"][EVALUATE]
    for number in range(injected.count(1, 12)):
        for folder in (".dvc/cache/runs", RUN, f"checkpoints/{KEY}"):
            shutil.rmtree(workspace / folder)
        YAML().dump(lock, workspace / "dvc.lock")
        dvc = started(workspace, *TRAIN_ALONE)
        below = psutil.Process(dvc.pid)
        while not (trainers := [p for p in below.children(True) if TRAINER in p.cmdline()]):
            time.sleep(0.02)
        while number % 3 < 2 and f"{STEPS} steps" not in said(workspace):  # else it dies while its training imports
            assert dvc.poll() is None, said(workspace)
            time.sleep(0.02)
        with injected():
            if number % 3 == 0:
                trainers[0].suspend()  # it is slow to end
                dvc.kill()
                dvc.wait()
                orphan = f"process {trainers[0].pid} still trains plain8-1, but the dvc that started it is gone"
                assert any(orphan in found for found in findings(workspace))
                refused = run(workspace, *TRAIN_ALONE, expected=255)
                assert f"process {trainers[0].pid} is training plain8-1 already: wait for it" in refused
                trainers[0].resume()
            elif number % 3 == 1:
                time.sleep(choose.uniform(0, 3))
            dvc.kill()
            dvc.wait()
            deadline = time.monotonic() + 20
            while is_alive(trainers[0]):
                assert time.monotonic() < deadline, said(workspace)
                time.sleep(0.02)
            if number % 3 == 2:
                left = f"stopped at step 0 of {STEPS} because the process that started it is gone"
                assert left in said(workspace)
            is_there = any(workspace.glob("checkpoints/*/*/step-*"))
            assert (f"{KEY} goes on at step" in run(workspace, *TRAIN_ALONE)) == is_there
            assert results(workspace) == unbroken


def cache_is_a_file(workspace: Path) -> None:
    (runs := workspace / ".dvc/cache/runs").touch()
    assert f"{runs}" in run(workspace, *TRAIN_ALONE, expected=255)
    runs.unlink()


def dvc_is_killed(workspace: Path) -> None:
    dvc = started(workspace, *TRAIN_ALONE)
    (trainer,) = wait_for(lambda: [p for p in psutil.Process(dvc.pid).children(True) if TRAINER in p.cmdline()])
    wait_for((workspace / RUN / PROVENANCE).exists)
    dvc.kill()
    dvc.wait()
    wait_for(lambda: not is_alive(trainer))


def plan_changes(workspace: Path) -> None:
    plan = workspace / "plans/plain8.json"
    whole, dvc = plan.read_text(), started(workspace, *TRAIN_ALONE)
    wait_for(lambda: f"{STEPS} steps" in said(workspace))
    plan.write_text(whole.replace('"momentum": 0.9', '"momentum": 0.8'))
    assert dvc.wait(60) == 255
    assert f"plans/plain8.json or data/cifar10 changed while {KEY} trained" in said(workspace)
    plan.write_text(whole)


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


FINISHED = "`doctor` names the finished run, and the same command writes the same bits within seconds, untrained"


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(cache_is_a_file, marks=pytest.mark.fault("DVC's cache takes no finished training", FINISHED)),
        pytest.param(dvc_is_killed, marks=pytest.mark.fault("`kill -9` of DVC when a training has ended", FINISHED)),
        pytest.param(plan_changes, marks=pytest.mark.fault("a plan changes during training, and back", FINISHED)),
    ],
)
def test_a_finished_training_is_not_lost(workspace: Path, stop: Callable[[Path], None], injected: Injections) -> None:
    unbroken, lock = results(workspace), YAML().load(workspace / "dvc.lock")
    del lock["stages"][TRAIN], lock["stages"][EVALUATE]
    for _ in range(injected.count(1, 10)):
        for folder in (".dvc/cache/runs", RUN):
            shutil.rmtree(workspace / folder)
        YAML().dump(lock, workspace / "dvc.lock")
        with injected():
            stop(workspace)
            remedy = f"`dvc repro {TRAIN}` writes it within seconds, without training"
            assert f"{KEY} is finished ({STEPS} steps), and DVC does not have it; {remedy}" in findings(
                workspace, "note"
            )
            text = run(workspace, *TRAIN_ALONE)
            assert f"{KEY} was finished, at step {STEPS}: its files are written again" in text
            assert "epoch 1" not in text
            assert results(workspace) == unbroken
            assert any(workspace.glob("checkpoints/*/*/step-*"))  # until it is evaluated
            run(workspace, "dvc", "repro", EVALUATE)
            assert not any(workspace.glob("checkpoints/*/*/step-*"))


@pytest.mark.fault(
    "`kill -9` of `dvc pull`",
    "no damaged file is left; `doctor` removes what is half copied, and pulling again brings the same bytes",
)
def test_pull_is_killed(workspace: Path, tmp_path: Path, injected: Injections) -> None:
    before, choose, cache = results(workspace), random.Random(0), workspace / ".dvc/cache/files"
    run(workspace, "dvc", "remote", "add", "--default", "copy", str(tmp_path / "remote"))
    run(workspace, "dvc", "push", *OUTPUTS)
    for _ in range(injected.count(1, 25)):
        for folder in (cache, *(workspace / output for output in OUTPUTS)):
            shutil.rmtree(folder)
        pull = started(workspace, "dvc", "pull", *OUTPUTS)
        while not any(cache.rglob("*")) and pull.poll() is None:
            time.sleep(0.001)
        time.sleep(choose.uniform(0, 0.1))
        pull.kill()
        pull.wait()
        with injected():
            assert all(Workspace(workspace).objects.values())
            half_copied = [*cache.rglob(".*.tmp"), *(p for out in OUTPUTS for p in (workspace / out).glob(".*.tmp"))]
            for path in half_copied:
                os.utime(path, (0, 0))
            mend(workspace)
            assert not any(path.exists() for path in half_copied)
            assert results(workspace).items() <= before.items()
            run(workspace, "dvc", "pull", *OUTPUTS)
            assert results(workspace) == before
            assert findings(workspace) == []


@pytest.mark.fault(
    "dvc.lock is truncated, or has the marks of a merge",
    "`doctor` says so, and that Git has the whole one; with that, all is well and nothing runs again",
)
def test_damaged_lock_file(workspace: Path, injected: Injections) -> None:
    file = workspace / "dvc.lock"
    whole = file.read_bytes()
    middle, stages = whole.index(b"  plan:"), stages_of(whole)
    merged = b"<<<<<<< HEAD\n" + whole[middle:] + b"=======\n" + whole[middle:] + b">>>>>>> other\n"
    positions = random.Random(0).sample(range(len(whole) - 1), injected.count(5, 120))
    for broken in (whole[:middle] + merged, *(whole[:cut] for cut in positions)):
        file.write_bytes(broken)
        with injected():
            if broken.endswith(b"other\n"):
                assert "dvc.lock" in run(workspace, "dvc", "repro", "fetch", expected=255)
            found = [found for found in findings(workspace) if found.startswith("dvc.lock ")]
            remedy = "; `git checkout HEAD -- dvc.lock`; what ran since then, `dvc repro` takes from DVC's run cache"
            assert found[0].endswith(remedy) if found else digests(stages_of(broken)) == digests(stages), broken[-90:]
            run(workspace, "git", "checkout", "--quiet", "HEAD", "--", "dvc.lock")
            assert findings(workspace) == []
    assert "Running stage" not in run(workspace, "dvc", "repro", EVALUATE)


def digests(stages: dict | LockFileError) -> dict[str, list[str]]:
    """The lines after the last digest only count its files."""
    assert isinstance(stages, dict)
    return {name: [out["md5"] for out in stage["outs"]] for name, stage in stages.items()}

import ctypes
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

import killing
from killing import REPOSITORY, contents, run_script
from reliability import Injections
from resnet_repro import experiment
from resnet_repro.checkpoint import Checkpoint, CheckpointStore
from resnet_repro.cli import main
from resnet_repro.data.archive import VARIABLE
from resnet_repro.stage import run_stage
from resnet_repro.tracking import LiveView, connect, publish
from sources import Digits, Server, sends
from synthetic import FakeRun, write_workspace

AREA = "Disks"
PROMISE = "it says so, with path and bytes; each old file stays, whole, and once mended it gives the same files as ever"
Serve = Callable[..., Server]
PAGE = 4096


def works(*command: str) -> bool:
    return bool(shutil.which(command[0])) and subprocess.run(command, check=False, capture_output=True).returncode == 0


NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
needs_disks = pytest.mark.skipif(
    not works(*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"), reason="needs a user namespace, to mount disks in"
)


class Disk:
    """A real disk of any size, in memory, mounted in a namespace of its own and seen through /proc."""

    def __init__(self, folder: Path) -> None:
        self.mounted = folder
        self._shell = subprocess.Popen([*NAMESPACE, "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.folder = Path(f"/proc/{self._shell.pid}/root{folder}")
        folder.mkdir()
        self._call(f"mount -t tmpfs tmpfs '{folder}'")

    def _call(self, command: str) -> None:
        assert self._shell.stdin
        assert self._shell.stdout
        print(command, "&& echo done || echo failed", file=self._shell.stdin, flush=True)
        assert self._shell.stdout.readline() == "done\n", command

    def set(self, options: str) -> None:
        self._call(f"mount -o remount,{options} '{self.mounted}'")

    def leave_free(self, num_bytes: int) -> None:
        state = os.statvfs(self.folder)
        used = (state.f_blocks - state.f_bfree) * state.f_frsize
        self.set(f"size={used + max(num_bytes, 1)}")

    def inside(self, work: Callable[..., object], *arguments: object) -> tuple[object, ...]:
        """What to `start`, to call `work` where the disk is mounted at `mounted`."""
        return _inside, self._shell.pid, work, *arguments

    def close(self) -> None:
        self._shell.communicate()


def _inside(process: int, work: Callable[..., object], *arguments: object) -> None:
    for namespace in ("user", "mnt"):
        with Path(f"/proc/{process}/ns/{namespace}").open() as file:
            assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0
    work(*arguments)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.close()


def free_bytes(injected: Injections, most: int, reduced: int, full: int) -> list[int]:
    """How much to leave free: nothing, `most`, and between."""
    choose, count = random.Random(most), injected.count(reduced, full)
    return [0, most, *(choose.randrange(most) for _ in range(count))][:count]


def check_said(said: str, what: str) -> None:
    assert re.search(rf"{what}.*; .*run this again", said), said
    assert "Traceback" not in said


def fill_and_lock(disk: Disk, injected: Injections, reduced: int, full: int, workspace: Path, *command: str) -> None:
    """Run a stage that replaces files in `out`, on a disk too small or read-only; and once more when it is mended."""
    log, out, work = workspace / "log", workspace / "out", (run_script, workspace, *command)
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    assert killing.run(log, *work, **environment) == 0, log.read_text()
    whole = contents(out)
    shutil.rmtree(out)
    out.symlink_to(disk.folder / "out")
    needed = sum(-(-len(content) // PAGE) * PAGE for content in whole.values())
    most = max(needed - PAGE * (len(whole) + 1), needed // 2)  # each old file that goes gives a page back
    for free in (*free_bytes(injected, most, reduced, full), None):
        shutil.rmtree(disk.folder / "out", ignore_errors=True)
        for name in whole:
            (disk.folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(b"old")
        disk.set("ro") if free is None else disk.leave_free(free)
        with injected():
            log.write_text("")
            assert killing.run(log, *work, **environment) == 1, free
            reason = "Read-only file system" if free is None else r"No space left on device \([\d,]+ bytes to write\)"
            check_said(log.read_text(), rf"{command[0]}: \S*out/\S+: {reason}")
            for name, content in contents(out).items():
                assert content in (b"old", whole[name]), name
            disk.set("rw,size=1G")
            assert killing.run(log, *work, **environment) == 0, log.read_text()
            assert contents(out) == whole


def digits_params(workspace: Path, digits: Digits) -> None:
    tree = YAML().load(REPOSITORY / "params.yaml")
    tree["data"] = {"urls": [], "members": digits.sha256}
    (workspace / "params.yaml").write_text(json.dumps(tree))


@needs_disks
@pytest.mark.fault("the disk fills, or is read-only, while data is prepared", PROMISE)
def test_prepare(disk: Disk, digits: Digits, tmp_path: Path, injected: Injections) -> None:
    digits_params(tmp_path, digits)
    (tmp_path / "members").mkdir()
    for name, content in digits.members.items():
        (tmp_path / "members" / name).write_bytes(content)
    fill_and_lock(disk, injected, 2, 60, tmp_path, "prepare", "members", "out/arrays", "out/report")


@needs_disks
@pytest.mark.fault("the disk fills, or is read-only, during evaluation", PROMISE)
def test_evaluation(disk: Disk, tmp_path: Path, injected: Injections) -> None:
    killing.make_trained(tmp_path)
    fill_and_lock(disk, injected, 2, 30, tmp_path, "evaluate", "run", "out")


@needs_disks
@pytest.mark.fault("the disk fills, or is read-only, during the report", PROMISE)
def test_report(disk: Disk, tmp_path: Path, injected: Injections) -> None:
    write_workspace(tmp_path, [FakeRun("resnet20_brief")])
    fill_and_lock(disk, injected, 1, 30, tmp_path, "report", "out")


def report_as_command(workspace: Path) -> None:
    os.chdir(workspace)
    sys.argv = ["resnet-repro", "report", "--partial"]
    main()


@needs_disks
@pytest.mark.fault("the disk fills, or is read-only, during the report", PROMISE)
def test_the_command(disk: Disk, tmp_path: Path) -> None:
    write_workspace(tmp_path, [], not_run=[FakeRun("resnet20_brief")])
    shutil.copytree(tmp_path / "reports", disk.folder / "reports")
    shutil.rmtree(tmp_path / "reports")
    (tmp_path / "reports").symlink_to(disk.folder / "reports")
    disk.set("ro")
    assert killing.run(tmp_path / "log", report_as_command, tmp_path) == 1
    check_said((tmp_path / "log").read_text(), "resnet-repro: reports/.new: Read-only file system")


@needs_disks
@pytest.mark.parametrize("says_length", [True, False])
@pytest.mark.fault("the disk fills during a download", "it says so, with path and bytes; it goes on where it stopped")
def test_download(
    disk: Disk, serve: Serve, digits: Digits, tmp_path: Path, injected: Injections, says_length: bool
) -> None:
    digits_params(tmp_path, digits)
    content = digits.path.read_bytes()
    server = serve(sends(content, length=says_length))
    (tmp_path / ".cache").symlink_to(disk.folder / "cache")
    log, work = tmp_path / "log", (run_script, tmp_path, "fetch", "members")
    for free in free_bytes(injected, len(content) - 2 * PAGE, 3, 100):
        shutil.rmtree(disk.folder / "cache", ignore_errors=True)
        (disk.folder / "cache").mkdir()
        disk.leave_free(free)
        with injected():
            log.write_text("")
            assert killing.run(log, *work, **{VARIABLE: server.url}) == 1
            check_said(log.read_text(), r"fetch: \S*\.cache/download/\S+: No space left on device")
            has_part = any(part.stat().st_size for part in disk.folder.rglob("*.part"))
            disk.set("size=1G")
            assert killing.run(log, *work, **{VARIABLE: server.url}) == 0, log.read_text()
            assert contents(tmp_path / "members") == digits.members
            assert ("Range" in server.requests[-1]) == has_part
        shutil.rmtree(tmp_path / "members")


def train_as_stage(folder: Path) -> None:
    def train() -> None:
        killing.train(folder)

    sys.argv = ["train"]
    run_stage(train)


@needs_disks
@pytest.mark.fault(
    "the disk fills while a checkpoint is saved", "it says so; older ones stay, and training goes on from them"
)
def test_checkpoints(disk: Disk, tmp_path: Path, injected: Injections) -> None:
    unbroken = killing.make_folder(tmp_path / "unbroken", "plain")
    with pytest.raises(experiment.InterruptedRunError):
        killing.train(unbroken, interruption=killing.Stop(8))
    sizes = [path.stat().st_size for path in unbroken.rglob("step-*")]
    weights = killing.train(unbroken).weights_sha256
    for number, free in enumerate(free_bytes(injected, 3 * max(sizes) - PAGE, 4, 60)):
        folder, log = killing.make_folder(tmp_path / str(number), "plain"), tmp_path / f"log{number}"
        shutil.rmtree(disk.folder / "checkpoints", ignore_errors=True)
        (disk.folder / "checkpoints").mkdir()
        (folder / "checkpoints").symlink_to(disk.folder / "checkpoints")
        disk.leave_free(free)
        with injected():
            assert killing.run(log, train_as_stage, folder) == 1, free
            check_said(log.read_text(), r"train: \S+/plain-1/\S*/step-\d+.safetensors: No space left on device")
            disk.set("size=1G")
            saved = len(list(disk.folder.rglob("step-*")))
            resumed = killing.train(folder)
            assert (resumed.sessions, resumed.weights_sha256) == (2 if saved else 1, weights)


def train_in_sight(folder: Path) -> None:
    view = LiveView(folder)
    provenance = killing.train(folder, observer=view)
    view.finished(folder / "run", provenance, None)
    experiment.evaluate(folder / "run", killing.make_arrays(), folder / "reports/runs/plain-1")


def publish_later(folder: Path) -> None:
    assert publish(folder).problems == ()
    store = connect(folder)
    (run,) = store.client.search_runs([store.experiment_id])
    points = store.client.get_metric_history(run.info.run_id, "test_loss")
    assert run.info.status == "FINISHED"
    assert sorted(point.step for point in points) == list(range(5, killing.STEPS + 1, 5))


@needs_disks
@pytest.mark.fault("the disk of MLflow's database fills", "training says so and finishes; `publish` adds the run later")
def test_mlflow(disk: Disk, tmp_path: Path, injected: Injections) -> None:
    database = disk.mounted / "mlflow.db"  # not through /proc, whose links sqlite would follow out of it
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    for number, free in enumerate(free_bytes(injected, 900_000, 2, 12)):
        folder, log = killing.make_folder(tmp_path / str(number), "plain"), tmp_path / f"log{number}"
        disk.leave_free(free)
        with injected():
            assert killing.run(log, *disk.inside(train_in_sight, folder), **environment) == 0, log.read_text()
            said = rf"MLflow .*{database}.*(disk is full|disk I/O error|unable to open)"
            assert re.search(said, log.read_text()), log.read_text()
            disk.set("size=1G")
            assert killing.run(log, *disk.inside(publish_later, folder), **environment) == 0, log.read_text()
        (disk.folder / "mlflow.db").unlink()


CALL = re.compile(r"\d+ +(\w+)\(.*\) = \d")
STRING = re.compile(r'[<"]((?:\\x[0-9a-f]{2})*)[>"]')


def calls_of(trace: Path, root: Path) -> Iterator[tuple[str, list[Path], bytes]]:
    """Of `strace -y -xx`: system calls that succeeded, their paths below `root`, their last string.

    Those that change something there, and writes to pipes.
    """
    for line in trace.read_text().splitlines():
        strings = [bytes.fromhex(text.replace(r"\x", "")) for text in STRING.findall(line)]
        paths = [Path(os.fsdecode(text)) for text in strings if text.startswith(os.fsencode(root))]
        found = CALL.match(line)
        if found and (paths or strings[0].startswith(b"pipe:")) and (found[1] != "openat" or "O_CREAT" in line):
            yield found[1].removesuffix("2").removesuffix("at"), paths, strings[-1]


class Platter:
    """A disk whose power may be cut: only what an fsync covered is certain to be there afterwards."""

    def __init__(self, root: Path) -> None:
        self.folders: dict[Path, list[dict[str, int | None]]] = {root: [{}]}
        """the states of each since its last fsync: names and what they lead to, None for a folder"""
        self.written: list[bytes] = []
        self.safe: list[bytes] = []

    def apply(self, call: str, paths: list[Path], data: bytes) -> None:
        path, states = paths[-1], self.folders[paths[-1].parent if paths[-1] not in self.folders else paths[-1]]
        names = dict(states[-1])
        if call == "fsync" and path in self.folders:
            del states[:-1]
        elif call == "fsync":
            self.safe[names[path.name]] = self.written[names[path.name]]
        elif call == "write":
            self.written[names[path.name]] += data
        elif call != "open" or path.name not in names:
            if call == "mkdir":
                names[path.name], self.folders[path] = None, [{}]
            elif call == "open":
                names[path.name] = len(self.written)
                self.written.append(b"")
                self.safe.append(b"")
            elif call == "rename":
                names[path.name] = names.pop(paths[0].name)
            else:
                assert call == "unlink"
                del names[path.name]
            states.append(names)

    def cut(self, choose: random.Random, folder: Path, out: Path) -> None:
        """What may be found afterwards: folders in a state since their last fsync, files with a part of what came."""
        out.mkdir()
        for name, file in choose.choice(self.folders[folder]).items():
            if file is None:
                self.cut(choose, folder / name, out / name)
            else:
                least, most = len(self.safe[file]), len(self.written[file])
                size = choose.choice([least, choose.randint(least, most), most])
                (out / name).write_bytes(self.written[file][:size])


SAVES = """
import os, sys, torch
from pathlib import Path
from resnet_repro.checkpoint import Checkpoint, CheckpointStore
store = CheckpointStore(Path(sys.argv[1], "checkpoints/net-1"), {"seed": 1})
with store.locked():
    for step in range(1, 5):
        store.save(Checkpoint({"w": torch.full((2000,), float(step))}, {"step": step}), step)
        os.write(1, b"saved %d" % step)
"""


@pytest.mark.skipif(not works("strace", "true"), reason="needs strace, to see the system calls")
@pytest.mark.fault(
    "a power cut at any moment of a checkpoint's writing", "the newest checkpoint whose save returned is there, whole"
)
def test_power_loss(tmp_path: Path, injected: Injections) -> None:
    root, trace = tmp_path / "disk", tmp_path / "trace"
    root.mkdir()
    watched = "openat,mkdir,mkdirat,write,fsync,rename,renameat,renameat2,unlink,unlinkat"
    strace = ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", f"trace={watched}", "-o", str(trace)]
    subprocess.run([*strace, sys.executable, "-c", SAVES, root], cwd="/", check=True, stdout=subprocess.PIPE)
    calls = list(calls_of(trace, root))
    last = [call for call, _, _ in calls][-7:]
    assert last == ["open", "write", "fsync", "rename", "fsync", "unlink", "write"], (
        "the older goes when the new is safe"
    )

    disk, saved, choose = Platter(root), 0, random.Random(0)
    for call, paths, data in calls:
        if paths:
            disk.apply(call, paths, data)
        elif data.startswith(b"saved "):
            saved = int(data.removeprefix(b"saved "))
        for _ in range(injected.count(2, 40)):
            with injected():
                shutil.rmtree(tmp_path / "after", ignore_errors=True)
                disk.cut(choose, root, tmp_path / "after")
                found = CheckpointStore(tmp_path / "after/checkpoints/net-1", {"seed": 1}).load(
                    lambda checkpoint: checkpoint.content["step"]
                )
                assert found in ((saved, saved + 1) if saved else (None, 1))
    assert saved == 4


def test_the_order_of_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is no strace."""
    calls: list[str] = []
    for name in ("fsync", "replace", "unlink"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *paths, _name=name, _real=real: [calls.append(_name), _real(*paths)][1])
    for step in range(3):
        CheckpointStore(tmp_path / "net-1", {}).save(Checkpoint({"w": torch.zeros(1)}, {}), step)
    assert calls[-4:] == ["fsync", "replace", "fsync", "unlink"]

"""One command that works for the farm: here, or on another machine, to which this module is sent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

END_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""
"""A command that the kernel ends when the farm dies (prctl(2)): the trainer below it sees that DVC is gone. Not by
preexec_fn, which is unsafe beside threads."""
STOP_SECONDS = 60.0
"""what a training may take to end its step and write its checkpoint"""


class Child:
    """A process in a session of its own, so that the terminal's Ctrl-C does not reach it; its output goes to a file."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self._asked = log, set[int]()
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", END_WITH_PARENT, str(os.getpid()), *command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self.process.poll()

    def lines(self) -> list[str]:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def ask_to_stop(self) -> None:
        """Ask the stage that it runs, once; not DVC, which would leave its stage behind."""
        for stage in _stages_below(self.process.pid):
            if stage.pid not in self._asked:
                self._asked.add(stage.pid)
                stage.terminate()

    def stop(self) -> None:
        """Ask, wait until it has ended, and kill what has not."""
        deadline = time.monotonic() + STOP_SECONDS
        while self.poll() is None and time.monotonic() < deadline:
            self.ask_to_stop()
            time.sleep(0.2)
        self.kill()

    def kill(self) -> None:
        if self.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def dvc(*arguments: str) -> list[str]:
    """The command of the DVC that belongs to this Python."""
    return [sys.executable, "-m", "dvc", *arguments]


def environment_of(base: Mapping[str, str], **extra: str) -> dict[str, str]:
    """For a stage: with this Python. It says nothing of threads."""
    path = os.pathsep.join([str(Path(sys.executable).parent), base.get("PATH", "")])
    return {**base, "PATH": path, "DVC_NO_ANALYTICS": "1", **extra}


def _stages_below(pid: int) -> list[psutil.Process]:
    found = []
    try:
        for process in psutil.Process(pid).children(recursive=True):
            if any(part.startswith("pipeline/") for part in process.cmdline()[1:2]):
                found.append(process)
    except psutil.Error:  # it ended meanwhile
        pass
    return found

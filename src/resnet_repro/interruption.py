"""When a training has to stop: a signal, or the death of the process that asked for it."""

import os
import re
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import psutil

SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish"}
EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: what was asked for is not done, and asking again will go on with it"""
CHECK_SECONDS = 1.0
GONE = "the process that started it is gone"


class Interruption:
    """Ask it between steps: true once SIGTERM or SIGINT came, or the parent died.

    DVC killed with SIGKILL leaves its stage running, and starts a second one the next time. So inside a DVC
    stage (DVC_STAGE is set) the parent is watched, through a shell that stands between. A second signal ends
    the process at once.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._watched = _ancestors_to_watch() if "DVC_STAGE" in os.environ else []
        self._next_check = 0.0
        if self._watched and not _runs_python(self._watched[-1]):  # DVC died before this was asked: init stands in
            self.reason = GONE

    def __enter__(self) -> Self:
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def __call__(self) -> bool:
        if self.reason is None and self._watched and time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + CHECK_SECONDS
            if not all(map(_lives, self._watched)):
                self.reason = GONE
        return self.reason is not None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            os._exit(128 + signum)
        self.reason = f"it received {signal.Signals(signum).name}"


def _lives(process: psutil.Process) -> bool:
    """Whether it still runs; a reused process id is told apart by its start, a zombie does not run."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _runs_python(process: psutil.Process) -> bool:
    """As every DVC does, and no process that adopts orphans."""
    try:
        command = process.cmdline() or [process.name()]
    except psutil.Error:
        return False
    return re.match("python|dvc", Path(command[0]).name, re.IGNORECASE) is not None


def _ancestors_to_watch() -> list[psutil.Process]:
    parents = psutil.Process().parents()
    if parents and parents[0].name() in SHELLS:
        return parents[:2]
    return parents[:1]

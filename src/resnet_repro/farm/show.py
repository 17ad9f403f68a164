"""What the farm shows: one table while it works, a line per event where there is no terminal, a summary at the end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from resnet_repro.farm.local import Update
from resnet_repro.farm.work import Job
from resnet_repro.progress import EpochLine, duration, read_line

LAST_LINES = 8
"""of what a failed run said"""


@dataclass
class Row:
    """A job as it is seen."""

    job: Job
    state: str = "waiting"  # running, done, failed
    where: str = ""
    stage: str = ""
    epoch: EpochLine | None = None
    started: float = 0.0
    """clock, seconds"""
    seconds: float = 0.0
    """from its start to its end"""
    lines: tuple[str, ...] = ()


class View:
    """The jobs' rows, drawn on a terminal as they change."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.rows = {job.run: Row(job) for job in jobs}
        self.console, self.began = console, time.monotonic()
        # no thread of its own: processes are started beside it
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def update(self, update: Update) -> None:
        row = self.rows[update.job.run]
        if row.state == "waiting":
            row.state, row.started = "running", time.monotonic()
            expected = f", some {duration(row.job.seconds)}" if row.job.seconds and row.job.seconds >= 1 else ""
            self._say(f"{row.job.run}: started on {update.where}{expected}")
        row.where, row.lines, row.seconds = update.where, update.lines, time.monotonic() - row.started
        for line in reversed(update.lines):
            if line.startswith("Running stage '"):
                row.stage = line.split("'")[1].rpartition(":")[2].partition("@")[0]
                break
        row.epoch = next(filter(None, map(read_line, reversed(update.lines))), row.epoch)
        if update.returncode is not None:
            row.state = "failed" if update.returncode else "done"
            error = f", test error {row.epoch.test_error_percent:.2f}%" if row.epoch else ""
            self._say(f"{update.job.run}: {row.state} on {row.where} after {duration(row.seconds)}{error}")

    def draw(self) -> None:
        if self.live:
            self.live.update(self._table(), refresh=True)

    def summary(self) -> str:
        """What was done, how long it took, and of each failure its last lines."""
        ended = [row for row in self.rows.values() if row.state in ("done", "failed")]
        failed = [row for row in ended if row.state == "failed"]
        left = len(self.rows) - len(ended)
        gpu = sum(row.seconds for row in ended if "cuda" in row.where)
        spent = sum(row.seconds for row in ended)
        lines = [
            f"{len(ended) - len(failed)} runs done, {len(failed)} failed, {left} left, in "
            f"{duration(time.monotonic() - self.began)}; together {spent / 3600:.2f} hours, "
            f"{gpu / 3600:.2f} of them on GPUs"
        ]
        for row in failed:
            said = [line for line in row.lines if line.strip()][-LAST_LINES:]
            lines += [f"\n{row.job.run} failed on {row.where}:", *(f"  {line}" for line in said)]
        return "\n".join(lines)

    def _say(self, line: str) -> None:
        if not self.live:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table("run", "stage", "where", "epoch", "test error", "left", box=None, pad_edge=False)
        states = [row.state for row in self.rows.values()]
        room = max(self.console.height - 4, 5)
        order = {"failed": 0, "running": 1, "waiting": 2, "done": 3}
        for row in sorted(self.rows.values(), key=lambda row: order[row.state])[:room]:
            epoch, stage = row.epoch, row.stage if row.state == "running" else row.state
            left = epoch.left if epoch and row.state == "running" and stage == "train" else ""
            if row.state == "waiting" and row.job.seconds:
                left = duration(row.job.seconds)
            cells = [row.job.run, stage, row.where, f"{epoch.epoch}/{epoch.epochs}" if epoch else ""]
            cells += [f"{epoch.test_error_percent:.2f}%" if epoch else "", left]
            table.add_row(*map(Text, cells), style="red" if row.state == "failed" else "")
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "running", "waiting", "failed"))
        table.caption = f"{counts}; {duration(time.monotonic() - self.began)}"
        return table

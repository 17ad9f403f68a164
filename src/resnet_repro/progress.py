"""What a training shows while it runs: a bar on a terminal, a line per epoch elsewhere."""

import re
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from resnet_repro.evidence import Epoch, Origin, Plan
from resnet_repro.training import Trainer

EPOCH_LINE = re.compile(r"epoch (\d+)/(\d+), .*test error ([\d.]+)%.*, ([^,]+) left$")


class EpochLine(NamedTuple):
    """What a line of `Progress` says, as others read it."""

    epoch: int
    epochs: int
    test_error_percent: float
    left: str


def read_line(line: str) -> EpochLine | None:
    """Of the line that an epoch's end prints; None of any other."""
    found = EPOCH_LINE.search(line)
    return EpochLine(int(found[1]), int(found[2]), float(found[3]), found[4]) if found else None


class Progress:
    """An `experiment.Observer` for the console."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.console = Console(file=sys.stdout)
        self.bar: Bar | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def started(self, plan: Plan, origin: Origin, epochs: Sequence[Epoch], trainer: Trainer) -> None:
        self.total_steps, self.total_epochs = trainer.total_steps, trainer.total_epochs
        self.first_step, self.started_at = trainer.step, time.monotonic()
        self.batch_size = plan.recipe.batch_size
        print(
            f"{self.run}: {plan.parameters:,} parameters, recipe {plan.recipe_name}, "
            f"{trainer.total_steps:,} steps ({trainer.total_epochs} epochs) on {trainer.engine}",
            flush=True,
        )
        if self.console.is_terminal:
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[state]}"),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task(self.run, total=trainer.total_steps, completed=trainer.step, state="")
            self.bar.start()
        self._last_epoch = f"epoch {len(epochs) + 1}/{trainer.total_epochs}"

    def stepped(self, step: int) -> None:
        if self.bar is None or self.task is None or step % 10:
            return
        # on CUDA the host runs ahead of the device, so speed and time left settle at the epochs' ends
        self.bar.update(self.task, completed=step, state=f"{self._last_epoch}, {self._pace(step)}")

    def epoch_done(self, epochs: Sequence[Epoch]) -> None:
        last = epochs[-1]
        line = (
            f"epoch {last.epoch}/{self.total_epochs}, step {last.step}/{self.total_steps}, "
            f"learning rate {last.learning_rate:g}, training error {last.train_error_percent:.2f}%, "
            f"test error {last.test_error_percent:.2f}%"
        )
        if last.validation_error_percent is not None:
            line += f", validation error {last.validation_error_percent:.2f}%"
        if self.bar is None:
            print(f"{self.run}: {line}, {self._pace(last.step, last)}", flush=True)
            return
        self._last_epoch = f"epoch {last.epoch}/{self.total_epochs}, test error {last.test_error_percent:.2f}%"
        self.stepped(last.step - last.step % 10)

    def saved(self, epochs: Sequence[Epoch]) -> None:
        pass

    def interrupted(self, reason: str) -> None:
        self.close()

    def failed(self, reason: str) -> None:
        self.close()

    def _pace(self, step: int, last: Epoch | None = None) -> str:
        elapsed = time.monotonic() - self.started_at
        done = step - self.first_step
        speed = last.images_per_second if last else done * self.batch_size / elapsed
        return f"{speed:,.0f} images/s, {duration((self.total_steps - step) * elapsed / max(done, 1))} left"


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min, 4 d 2 h."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 60 * 48:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"

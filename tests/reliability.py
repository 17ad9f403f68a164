"""Counts faults: how often each was injected, and how often what is promised of it held.

A test of a fault carries the mark `fault(NAME, PROMISE)` in a module with an `AREA`. It counts once, or as often as
it enters `with injected():`. `pytest --reliability FILE` writes the table, `--full` makes the counts those that the
committed table has (see `make test-long`).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from resnet_repro.engine import device_name

PROPERTY = "fault"
COLUMNS = ("area", "fault", "what is promised", "injected", "kept")


class Injections:
    """Of one test."""

    def __init__(self, full: bool) -> None:
        self.full = full
        self.injected = self.kept = 0

    def count(self, reduced: int, full: int) -> int:
        """How many to inject: `reduced` in every run of the tests, `full` for the table."""
        return full if self.full else reduced

    @contextmanager
    def __call__(self, times: int = 1) -> Iterator[None]:
        """Around the injection of `times` faults and the checks of what is promised."""
        self.injected += times
        yield
        self.kept += times


INJECTIONS = pytest.StashKey[Injections]()


def row_of(area: str, name: str, promise: str, injections: Injections, passed: bool) -> dict[str, Any]:
    """The row of one test; a test that counts nothing itself counts once."""
    injected, kept = (injections.injected, injections.kept) if injections.injected else (1, int(passed))
    return {"area": area, "fault": name, "what is promised": promise, "injected": injected, "kept": kept}


def table(rows: Sequence[dict[str, Any]], full: bool, seconds: float) -> str:
    """reports/reliability.md."""
    counts = "full counts" if full else "reduced counts"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "dvc", "mlflow"))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    faults = frame.groupby(["area", "fault"], as_index=False).agg(
        {"what is promised": "first", "injected": "sum", "kept": "sum"}
    )
    parts = [
        "# Reliability",
        f"{len(faults)} faults, injected {faults.injected.sum():,} times; what is promised of them held "
        f"{faults.kept.sum():,} times.",
        "Written by `make test-long`: the tests in [tests/faults](../tests/faults) break real processes, files, disks "
        f"and servers. Last run with {counts} on {datetime.now(UTC):%Y-%m-%d}: {device_name('cpu')}, {packages}, "
        f"{seconds / 60:.0f} minutes.",
    ]
    for area, those in faults.groupby("area"):
        parts += [f"## {area}", those.drop(columns="area").to_markdown(index=False, intfmt=",")]
    return "\n\n".join(parts) + "\n"


class FaultTable:
    """A plugin of pytest that writes the table when all tests are done."""

    def __init__(self, path: Path, full: bool) -> None:
        self.path, self.full = path, full
        self.rows: list[dict[str, Any]] = []
        self.started = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.rows += [row for name, row in report.user_properties if name == PROPERTY]

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(table(self.rows, self.full, time.monotonic() - self.started), encoding="utf-8")

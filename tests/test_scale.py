"""The page of `make scale`, and what its numbers are made of."""

import importlib
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy

from resnet_repro.farm.work import makespan
from resnet_repro.params import load
from resnet_repro.tracking.store import hurried, is_fresh

ROOT = Path(__file__).parent.parent
MEASURED = {
    "device": "Abacus 3000",
    "system": "beads 1.1, Linux",
    "packing": {
        "engine": "Abacus 3000, eager",
        "turn_seconds": 31.0,
        "memory_bytes": 1_230_000_000,
        "rows": [
            {"jobs": 1, "images_per_second": [4096.0, 1.0, 9e9], "runs_per_hour": 1.8},
            {"jobs": 2, "images_per_second": [5120.0], "runs_per_hour": 2.25},
            {"jobs": 64, "not_measured": "no beads are left"},
        ],
    },
    "farm": {
        "runs": 2,
        "seconds": {"bare": [100.0, 200.0, 301.0], "dvc": [104.0, 204.0, 306.0], "farm": [107.0, 208.4, 309.0]},
        "run": {"name": "resnet20-1", "seconds": 7200.0},
    },
    "noop": {"runs": 303, "seconds": {"`dvc repro`": [11.5, 12.5, 99.0], "`dvc status`": [6.5]}},
    "publish": {
        "runs": 304,
        "epochs": 205,
        "seconds": 60.5,
        "again_seconds": 17.5,
        "database_bytes": 139_000_000,
        "pages": {"compare 10 runs": 4.75},
    },
    "simulate": {
        "seeds": 5,
        "models": {
            "long": {"runs": 1, "seconds": 72_000.0, "measured": "steps"},
            "brief": {"runs": 40, "seconds": 3_600.0, "measured": "training"},
            "huge": {"runs": 7, "seconds": None, "measured": ""},
        },
    },
}


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield {name: importlib.import_module(name) for name in ("scale", "scale_page")}


def page_of(benchmarks: dict[str, ModuleType], reports: Path, *parts: str) -> str:
    (reports / "scale").mkdir()
    stored = {key: value for key, value in MEASURED.items() if key in ("device", "system", *parts)}
    (reports / "scale/cpu.json").write_text(json.dumps(stored))
    benchmarks["scale_page"].write_page(reports)
    return (reports / "scale.md").read_text()


def test_the_page_says_every_number_once(benchmarks: dict[str, ModuleType], tmp_path: Path) -> None:
    page = page_of(benchmarks, tmp_path, *MEASURED)
    # 4,096 images/s are 32 steps of 128 a second: 3,600 s have 1.8 times 64,000 of them
    once = ["4,096", "1.800", "5,120", "2.250", "1.25", "64 jobs: not measured, no beads are left", "1.23 GB", "31 s"]
    # above the bare commands, a round: 4, 4 and 5 s of two runs; 7, 8.4 and 8 s
    once += ["+2.0", "+4.0", "+0.028", "+0.056", "may cost 3% of a full run (resnet20-1, 2 h 0 min): it holds"]
    once += ["303 runs", "12.5", "6.5", "304 runs of 205", "60.5", "may take 60 s: it does not hold", "17.5", "4.8"]
    once += ["139 MB", "41 runs of 2 models", " huge: not measured, and left out", "that of 1 models was"]
    assert {text: page.count(text) for text in once} == dict.fromkeys(once, 1)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "bottle" in line]
    assert cells == [["devices", "hours", "the least possible", "bottleneck"]]
    rows = [" ".join(line.replace("|", "").split()) for line in page.partition("bottleneck")[2].splitlines()[2:5]]
    assert rows == [
        "1 60.0 60.0 the number of devices",
        "8 20.0 20.0 the longest run, long",
        "64 20.0 20.0 the longest run, long",
    ]
    assert page.count("Not measured.") == 1  # the GPU
    assert (tmp_path / "scale/packing.png").stat().st_size > 5000


def test_what_is_missing_is_not_measured(benchmarks: dict[str, ModuleType], tmp_path: Path) -> None:
    page = page_of(benchmarks, tmp_path, "noop")
    assert page.count("Not measured.") == 5  # the GPU, and four of the five parts
    assert "Abacus 3000" in page
    assert "packing.png" not in page


def test_jobs_are_counted_while_all_of_them_train(benchmarks: dict[str, ModuleType]) -> None:
    early = [(0.0, 0), (5.0, 500), (10.0, 1000)]
    late = [(2.0, 0), (12.0, 500)]
    assert benchmarks["scale"].images_per_second([early]) == 100
    assert benchmarks["scale"].images_per_second([early, late]) == 150


def test_every_model_is_simulated(benchmarks: dict[str, ModuleType]) -> None:
    params = load(ROOT / "params.yaml")
    runs = benchmarks["scale"].every_run(params, 5)
    assert {run.model for run in runs.values()} == set(params.models)
    assert runs.items() >= params.ablations.items()
    assert sum(run.model == "resnet20" for run in runs.values()) == 5


def test_the_schedule_is_grahams() -> None:
    # Graham 1969, theorem 2: on m machines 2m-1, 2m-1, ..., m+1, m+1, m, m, m take 4m-1; the best there is takes 3m
    for m in (2, 3, 4):
        seconds = [length for length in range(2 * m - 1, m, -1) for _ in range(2)] + 3 * [m]
        assert makespan(seconds, m) == 4 * m - 1
        if m < 4:
            assert best(seconds, m) == 3 * m
    choose = random.Random(0)
    for _ in range(20):
        seconds = sorted((choose.randint(1, 20) for _ in range(7)), reverse=True)
        assert best(seconds, 3) <= makespan(seconds, 3) <= (4 / 3 - 1 / 9) * best(seconds, 3)


def test_only_a_new_database_is_written_without_waiting_for_the_disk(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(uri := f"sqlite:///{tmp_path / 'mlflow.db'}")

    def synchronous() -> int:  # sqlite.org/pragma.html: 0 is OFF, 2 is FULL, the default
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS points (value)")
            return int(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())

    with hurried(is_fresh(uri)):
        assert synchronous() == 0
    assert synchronous() == 2
    with hurried(is_fresh(uri)):
        assert synchronous() == 2


def best(seconds: list[int], workers: int) -> int:
    """The least makespan there is, of all ways to share the work."""
    ways = itertools.product(range(workers), repeat=len(seconds))
    return min(
        max(sum(s for s, w in zip(seconds, way, strict=True) if w == one) for one in range(workers)) for way in ways
    )

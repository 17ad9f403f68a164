from pathlib import Path

import pytest

from resnet_repro.reporting import write_report
from synthetic import FakeRun, write_workspace

RUNS = [
    *(FakeRun("resnet20", seed, error) for seed, error in ((1, 8.5), (2, 8.6), (3, 8.7))),
    FakeRun("plain20", 1, 9.4, lowest_test_error_percent=9.1),
    FakeRun("preact110", 1, 6.3, precision="bf16"),
    FakeRun("preact110", 2, 6.5, precision="fp32"),
    FakeRun("lasagne_wide", 1, 5.3),
    FakeRun("resnet20_brief", 1, 14.6),
]
NOT_RUN = [FakeRun("resnet110"), FakeRun("wrn16_4")]
UNNAMED = [FakeRun("resnet20", 4, 99.0)]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evidence with known numbers: several seeds, two precisions, rows without a run, a short schedule."""
    return write_workspace(tmp_path_factory.mktemp("workspace"), RUNS, NOT_RUN, UNNAMED)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report with one net of each kind of figure."""
    runs = [
        FakeRun("resnet20", 1, 8.5),
        FakeRun("resnet20", 2, 8.7),
        FakeRun("preact110", 1, 6.3),
        FakeRun("resnet20_brief", 1, 14.6),
    ]
    workspace = write_workspace(tmp_path_factory.mktemp("report"), runs, not_run=[FakeRun("wrn16_4")])
    write_report(workspace, workspace / "reports")
    return workspace / "reports"

"""`resnet-repro ui` in a real browser, as a newcomer clicks: the table, the curves and the best model."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from browser import NEEDS_CHROME, SECONDS, chrome, click, opens, sees, text
from resnet_repro.tracking import connect, publish
from resnet_repro.tracking.store import PATIENT, Store
from tracking_records import classifier, closed_port, find, write_trained

pytestmark = [NEEDS_CHROME, pytest.mark.xdist_group("browser")]
ERRORS = {("resnet20", 1): 5.25, ("resnet20", 2): 7.75, ("plain20", 1): 9.5, ("plain20", 2): 8.25}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("ui")
    for (model, seed), test in ERRORS.items():
        write_trained(workspace, model, seed, 5000 * (model == "resnet20"), 9.0 - seed, test)
    reports = workspace / "reports"
    (reports / "README.md").write_text("# Results\n\nAll nets.\n\n## Figures\n")
    (workspace / "params.yaml").touch()  # which a repository's root has
    (reports / "models").mkdir()
    (reports / "models" / "resnet20.md").write_text("# resnet20\n")
    return workspace


@pytest.fixture(scope="module")
def store(workspace: Path) -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", *PATIENT):
            patch.delenv(name, raising=False)
        assert publish(workspace, lambda _: classifier()).problems == ()
        yield connect(workspace)


@pytest.fixture(scope="module")
def url(workspace: Path, store: Store) -> Iterator[str]:
    """Of the server that `resnet-repro ui` starts."""
    port = closed_port()
    command = [sys.executable, "-c", "from resnet_repro.cli import main; main()", "ui", "--port", str(port)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, cwd=workspace, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    said = next((line for line in server.stdout if "http:" in line), "")
    yield said.split()[2]
    server.send_signal(signal.SIGINT)
    assert server.wait(SECONDS) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chrome() as driver:
        yield driver


def test_the_table_the_curves_the_report_and_the_best_model_are_two_clicks_away(
    browser: webdriver.Chrome, url: str, store: Store, workspace: Path
) -> None:
    def starts() -> None:
        opens(browser, url)
        click(browser, "resnet-repro")

    starts()
    click(browser, "Table by model")
    shown = sees(
        browser, "final_test_error_percent", "Group: resnet20", "Group: plain20", "4 matching runs", "plain20-2"
    )
    for model, seed in ERRORS:
        folder = workspace / "reports" / "runs" / f"{model}-{seed}"
        assert folder.name in shown
        assert f"\n{json.loads((folder / 'metrics.json').read_text())['test_error_percent']}\n" in shown
    assert "6.5 (average)" in shown.replace("\n(", " (")  # of resnet20: (5.25 + 7.75) / 2
    order = ["Group: resnet20", "resnet20-1", "resnet20-2", "Group: plain20", "plain20-2", "plain20-1"]
    places = [shown.index(f"{name}\n") for name in order]
    assert places == sorted(places)  # by the test error, lowest first
    assert "report\n" not in shown[places[0] :]

    starts()
    click(browser, "Learning curves")
    sees(browser, "Learning curves", "(5)", "train_error_percent", "Group: resnet20")
    WebDriverWait(browser, SECONDS).until(
        lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".js-line")) >= 4, "no lines are drawn"
    )

    starts()
    click(browser, "Best of each model")
    sees(browser, "Registered Models", "plain20", "@ best")
    click(browser, "resnet20")
    sees(browser, "269,722 parameters", "He 2015, Table 6", "8.75%", 'load_model("models:/resnet20@best")', "@ best")

    starts()
    click(browser, "Report")
    sees(browser, "All nets.")


def test_a_run_says_what_it_is(browser: webdriver.Chrome, url: str, store: Store) -> None:
    run = find(store, "resnet20-2").info.run_id
    opens(browser, f"{url}/#/experiments/{store.experiment_id}/runs/{run}")
    sees(browser, "resnet20-2", "He 2015, Table 6: 8.75%", "cifar10", "reports/README.md", "weight_decay")


def test_comparing_can_show_only_what_differs(browser: webdriver.Chrome, url: str, store: Store) -> None:
    first, second = (find(store, uid).info.run_id for uid in ("resnet20-1", "plain20-2"))
    opens(browser, f'{url}/#/compare-runs?runs=["{first}","{second}"]&experiments=["{store.experiment_id}"]')
    sees(browser, "Comparing 2 Runs", "recipe.weight_decay", "recipe.held_out")
    for switch in browser.find_elements(By.XPATH, "//*[normalize-space()='Show diff only']/..//*[@role='switch']"):
        browser.execute_script("arguments[0].click()", switch)
    WebDriverWait(browser, SECONDS).until(lambda _: "recipe.weight_decay" not in text(browser), "equal ones are shown")
    sees(browser, "recipe.held_out", "5000", "seed")

"""DVC's plot page, in a browser that finds no network."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from killing import REPOSITORY
from resnet_repro.demo import copy_sources, demo_environment
from test_cli import call

LINES = "svg g.mark-line path[d*='L']"
"""lines of at least two epochs: a legend's symbol is a line as well, but in a group of its own"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository as somebody else has just cloned it."""
    clone = tmp_path_factory.mktemp("plots") / "clone"
    copy_sources(REPOSITORY, clone)
    shutil.copy(REPOSITORY / "params.yaml", clone)  # which a demo has of its own, as it has reports/
    shutil.copytree(REPOSITORY / "reports", clone / "reports", dirs_exist_ok=True)
    for command in (
        "git init --quiet",
        "git add --all",
        "git -c user.name=test -c user.email=test@localhost -c commit.gpgsign=false commit --quiet --message all",
    ):
        subprocess.run(command.split(), cwd=clone, env=demo_environment(Path()), check=True)
    return clone


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if (chromedriver := shutil.which("chromedriver")) is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    with webdriver.Chrome(options, Service(chromedriver)) as driver:
        yield driver


def written(workspace: Path, *arguments: str) -> Path:
    """The page that `resnet-repro plots` says it has written."""
    said = call(workspace, "plots", *arguments)
    assert said.returncode == 0, said.stderr
    page = workspace / "dvc_plots/index.html"
    assert said.stdout.strip() == page.as_uri()
    return page


def drawn(browser: webdriver.Chrome, page: Path) -> int:
    """Lines that a browser draws, without a complaint, and without asking anybody for anything."""
    browser.get(page.as_uri())
    browser.implicitly_wait(20)
    lines = browser.find_elements("css selector", LINES)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    return len(lines)


def test_the_page_needs_nobody(workspace: Path, browser: webdriver.Chrome) -> None:
    """Every run of the committed curves is a line; and no tag of the page leads anywhere."""
    page = written(workspace)
    html = page.read_text()
    tags = re.sub(r"(<script[^>]*>).*?</script>", r"\1", html, flags=re.DOTALL)
    assert not re.search(r"https?:|src=|href=|import", tags)
    assert not re.search(r"^\s*import\b|\bimport\(", html, flags=re.MULTILINE)
    assert drawn(browser, page) == pd.read_csv(workspace / "reports/curves.csv").run.nunique()
    titles = [title.text for title in browser.find_elements("css selector", "svg .role-axis-title text")]
    assert titles == ["epoch", "test error (%)"]


def test_revisions_are_overlaid(workspace: Path, browser: webdriver.Chrome) -> None:
    """As `dvc plots diff` does; a run of which only the workspace knows is one line more."""
    curves = workspace / "reports/curves.csv"
    committed = curves.read_text()
    table = pd.read_csv(curves)
    first = table[table.run == table.run[0]]
    try:
        pd.concat([table, first.assign(run="other-1", model="other")]).to_csv(curves, index=False)
        page = written(workspace, "--revisions", "HEAD", "workspace", "reports/curves.csv")
    finally:
        curves.write_text(committed)
    assert drawn(browser, page) == 2 * table.run.nunique() + 1
    legend = {text.text for text in browser.find_elements("css selector", "svg .role-legend-label text")}
    assert legend == {*table.model, "other", "HEAD", "workspace"}


def test_a_wrong_target_is_told(workspace: Path) -> None:
    said = call(workspace, "plots", "reports/curve.csv")
    assert said.returncode == 1
    assert "no plot called reports/curve.csv" in said.stderr


def test_elsewhere_it_says_where_to_go(tmp_path: Path) -> None:
    said = call(tmp_path, "plots")
    assert said.returncode == 1
    assert "repository's root" in said.stderr

"""The command line: what a stranger reads when something is wrong."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def call(folder: Path, *arguments: str, before: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
    code = f"{before}; import sys; from resnet_repro.cli import main; sys.argv[0] = 'resnet-repro'; main()"
    command = [sys.executable, "-c", code.removeprefix("; "), *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_help_lists_every_command() -> None:
    said = call(ROOT, "--help")
    assert said.returncode == 0
    for command in (
        "estimate",
        "stale",
        "publish",
        "ui",
        "report",
        "audit",
        "demo",
        "doctor",
        "predict",
        "readme",
        "export",
        "compare",
        "plots",
        "train",
        "test",
    ):
        assert command in said.stdout


@pytest.mark.parametrize("command", ["stale", "publish", "ui", "doctor"])
def test_elsewhere_it_says_where_to_go(command: str, tmp_path: Path) -> None:
    said = call(tmp_path, command)
    assert said.returncode == 1
    assert "there is no params.yaml" in said.stderr
    assert "repository's root" in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_output_that_takes_ascii_only() -> None:
    said = call(ROOT, "compare", "plain20-1", "resnet20-1", PYTHONIOENCODING="ascii")
    assert said.returncode == 0, said.stderr
    assert "?1.55" in said.stdout, "a minus sign that is not in ASCII"


def test_a_user_without_a_home(tmp_path: Path) -> None:
    """As in a container whose user passwd does not know."""
    (tmp_path / "params.yaml").touch()
    unknown = "import os, pwd; os.environ.pop('HOME', 0); pwd.getpwuid = {}.__getitem__"
    said = call(tmp_path, "publish", before=unknown)
    assert said.returncode == 1
    assert said.stderr.startswith("resnet-repro: MLflow cannot be loaded: ")
    assert "Set HOME to a folder that may be written" in said.stderr


@pytest.mark.parametrize(("python", "is_remade"), [(sys.executable, False), ("/moved/away/.venv/bin/python", True)])
def test_an_environment_whose_python_is_gone_is_made_anew(python: str, is_remade: bool, tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    script = tmp_path / ".venv/bin/resnet-repro"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{python}\n")
    (tmp_path / ".venv/ready").touch()
    command = ["make", "--dry-run", "estimate"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert ("Setting up .venv" in said) == is_remade


def test_the_readme_table_is_the_reports_table() -> None:
    """`make lock` copies it; nobody types a number."""
    readme, report = ((ROOT / name).read_text() for name in ("README.md", "reports/README.md"))
    table = readme.split("<!-- table")[1].split("-->\n", 1)[1].split("\n<!-- /table")[0]
    parts = table.split("\n\n")
    assert len([part for part in parts if part.startswith("| model")]) == 2  # what has run, and folded what has not
    assert all(part in report for part in parts)

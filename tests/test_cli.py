"""The command line: what a stranger reads when something is wrong."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def call(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    code = "import sys; from resnet_repro.cli import main; sys.argv[0] = 'resnet-repro'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


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


def test_elsewhere_it_says_where_to_go(tmp_path: Path) -> None:
    said = call(tmp_path, "stale")
    assert said.returncode == 1
    assert "there is no params.yaml" in said.stderr
    assert "repository's root" in said.stderr


def test_the_readme_table_is_the_reports_table() -> None:
    """`make lock` copies it; nobody types a number."""
    readme, report = ((ROOT / name).read_text() for name in ("README.md", "reports/README.md"))
    table = readme.split("<!-- table")[1].split("-->\n", 1)[1].split("\n<!-- /table")[0]
    parts = table.split("\n\n")
    assert len([part for part in parts if part.startswith("| model")]) == 2  # what has run, and folded what has not
    assert all(part in report for part in parts)

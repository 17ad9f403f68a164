"""The command line: what a stranger reads when something is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def call(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    code = "import sys; from resnet_repro.cli import main; sys.argv[0] = 'resnet-repro'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_help_lists_every_command() -> None:
    said = call(ROOT, "--help")
    assert said.returncode == 0
    for command in ("estimate", "stale", "publish", "ui", "report", "audit", "demo", "readme"):
        assert command in said.stdout


@pytest.mark.parametrize("command", ["estimate", "stale"])
def test_a_wrong_file_is_refused_with_its_line_and_no_traceback(tmp_path: Path, command: str) -> None:
    text = (ROOT / "params.yaml").read_text().replace("momentum: 0.9", "momentun: 0.9", 1)
    (tmp_path / "params.yaml").write_text(text)
    line = text[: text.index("momentun")].count("\n") + 1
    said = call(tmp_path, command)
    assert said.returncode == 1
    assert f"params.yaml:{line}: recipes.he2015.momentun: unknown key; did you mean 'momentum'?" in said.stderr
    assert "Traceback" not in said.stderr


def test_elsewhere_it_says_where_to_go(tmp_path: Path) -> None:
    said = call(tmp_path, "stale")
    assert said.returncode == 1
    assert "there is no params.yaml" in said.stderr
    assert "repository's root" in said.stderr


def test_the_readme_table_is_the_reports_table() -> None:
    """`make lock` copies it; nobody types a number."""
    readme, report = ((ROOT / name).read_text() for name in ("README.md", "reports/README.md"))
    table = readme.split("<!-- table")[1].split("-->\n", 1)[1].split("\n<!-- /table")[0]
    table, legend = table.split("\n\n")
    assert table.startswith("| model")
    assert table in report
    assert legend in report

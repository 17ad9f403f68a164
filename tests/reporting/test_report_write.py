import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from resnet_repro.checkpoint import Checkpoint, CheckpointStore
from resnet_repro.errors import ReproError
from resnet_repro.reporting import write_ablations, write_report
from resnet_repro.reporting.write import update_readme
from resnet_repro.reproductions import REPRODUCTIONS
from synthetic import REPOSITORY, FakeRun, write_workspace

PAGES = (
    "README.md",
    "verdicts.md",
    "claims.md",
    "reproductions.md",
    "checklist.md",
    "models/README.md",
    "models/resnet20.md",
)


def contents(report: Path) -> dict[str, bytes]:
    files = [report / name for name in (*PAGES, "metrics.json", "curves.csv")]
    return {path.name: path.read_bytes() for path in [*files, *(report / "figures").iterdir()]}


def run_stage(workspace: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPOSITORY / "pipeline" / "report.py", "reports"]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    return subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, check=False)


def test_the_stage_writes_the_same_bytes_again(report: Path, tmp_path: Path) -> None:
    shutil.copytree(report.parent, tmp_path / "again")
    (tmp_path / "again/reports/figures/of_a_model_that_is_gone.png").touch()
    stage = run_stage(tmp_path / "again")
    assert stage.returncode == 0, stage.stderr
    assert contents(tmp_path / "again/reports") == contents(report)
    assert not list((tmp_path / "again/reports").glob(".figures*"))


def test_the_stage_names_what_is_missing_without_a_traceback(tmp_path: Path) -> None:
    write_workspace(tmp_path, [FakeRun("resnet20")])
    (tmp_path / "plans/resnet20.json").unlink()
    stage = run_stage(tmp_path)
    assert stage.returncode == 1
    assert "plans/resnet20.json is missing; `dvc repro plan` writes it" in stage.stderr
    assert "Traceback" not in stage.stderr


def test_every_figure_is_a_picture_in_both_formats(report: Path) -> None:
    names = {path.stem for path in (report / "figures").iterdir()}
    assert names == {
        "figure6",
        "figure6_short",
        "depth",
        "size",
        "reproductions",
        "curves",
        "sample_images",
        "curves_preact110",
        "confusion_resnet20",
        "confusion_preact110",
        "confusion_resnet20_brief",
    }
    for name in names:
        with Image.open(report / "figures" / f"{name}.png") as picture:
            assert picture.width >= 900
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
        assert (report / "figures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_figures_carry_no_date(report: Path) -> None:
    assert "<dc:date>" not in (report / "figures/figure6.svg").read_text()
    with Image.open(report / "figures/figure6.png") as picture:
        assert "Software" not in picture.info


def test_all_links_of_the_readme_lead_somewhere(report: Path) -> None:
    write_ablations(report.parent, report / "ablations")
    links_of_others = {number.link for number in REPRODUCTIONS}
    links = {page: re.findall(r"\]\(([^)]+)\)", (report / page).read_text()) for page in PAGES}
    assert len(links["README.md"]) == 11 * 2 + 4 + 8  # figures in two formats, runs, pages
    outside = {
        "../docs/assumptions.md",
        "../docs/explanation.md#what-few-runs-may-say",
        "../src/resnet_repro/reproductions.csv",
        "audit.md",
    }
    broken = [
        (page, link)
        for page, found in links.items()
        for link in found
        if link not in outside | links_of_others and not ((report / page).parent / link).exists()
    ]
    assert broken == []
    assert all((REPOSITORY / "reports" / link.partition("#")[0]).is_file() for link in outside)


def test_every_figure_is_in_the_readme(report: Path) -> None:
    text = (report / "README.md").read_text()
    assert [path.name for path in (report / "figures").iterdir() if f"figures/{path.name}" not in text] == []


def test_published_numbers_stand_only_above_the_short_table(report: Path) -> None:
    main, short = (report / "README.md").read_text().split("## Short schedules")
    assert "8.75" in main
    assert "resnet20_brief" not in main
    assert "resnet20_brief" in short
    assert "8.75" not in short


def test_a_table_before_any_run(tmp_path: Path) -> None:
    write_workspace(tmp_path, [], not_run=[FakeRun("resnet20"), FakeRun("wrn16_4")])
    write_report(tmp_path, tmp_path / "reports")
    text = (tmp_path / "reports/README.md").read_text()
    assert "Not run yet: 2 of 2 rows" in text
    assert "last epoch, mean" not in text
    assert (tmp_path / "reports/metrics.json").read_text() == "{}\n"
    assert (tmp_path / "reports/curves.csv").read_text().startswith("model,run,seed,epoch,step,")


def test_the_page_of_reproductions_has_every_number_and_folds_what_has_not_run(report: Path) -> None:
    text = (report / "reproductions.md").read_text()
    shown = re.findall(r"^\| \[([^]]+)\]\(([^)]+)\) +\| +([\d.]+)", text, re.MULTILINE)
    assert sorted((project, link, float(error)) for project, link, error in shown) == sorted(
        (number.project, number.link, float(f"{number.error_percent:.2f}")) for number in REPRODUCTIONS
    )
    assert re.findall("^## (.+)", text, re.MULTILINE) == [
        "resnet20",
        "preact110",
        "Rows that have not run here",
        "Nets that are no row here",
    ]
    open_part, folded = text.split("## Rows that have not run here")
    assert "<details>" not in open_part
    assert re.search(
        r"\*\*this repository\*\* +\| +8\.60 ± 0\.14 +\| mean of 2 .* 95% interval by the first 1 7\.\d\d to 9",
        open_part,
    )
    assert "<summary>wrn16_4: printed 5.02</summary>" in folded
    assert "<summary>preact164: printed 5.46; 0" not in folded
    assert "<summary>plain32: printed 10.11; 2 by others, 11.15 to 13.04</summary>" in folded
    assert folded.count("**another net**") == 5


def test_audited_weights_stand_beside_the_others(tmp_path: Path) -> None:
    write_workspace(tmp_path, [FakeRun("resnet20")])
    shutil.copy(REPOSITORY / "reports/audit.json", tmp_path / "reports")
    write_report(tmp_path, tmp_path / "reports")
    text = (tmp_path / "reports/reproductions.md").read_text()
    assert re.search(r"weights of a-martyn, \[audited\]\(audit\.md\) +\| +8\.04 ", text)
    (tmp_path / "reports/audit.json").write_text("{}")
    with pytest.raises(ReproError, match=r"audit\.json cannot be read .* `resnet-repro audit` writes it anew"):
        write_report(tmp_path, tmp_path / "reports")


def test_the_readme_leads_with_the_rows_that_have_run(tmp_path: Path) -> None:
    write_workspace(tmp_path, [FakeRun("resnet20")], not_run=[FakeRun("wrn16_4")])
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    update_readme(tmp_path)
    text = (tmp_path / "README.md").read_text()
    before, marked = text.split("<!-- table: written by `make lock` -->\n")
    marked, after = marked.split("<!-- /table -->")
    assert before + after == re.sub(
        "<!-- table.*/table -->", "", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL
    )
    table, folded = marked.split("<details>")
    assert table.startswith("| model ")
    assert "| resnet20 " in table
    assert "wrn16_4" not in table
    assert "| wrn16_4 " in folded
    assert "resnet20" not in folded


def test_a_partial_report_says_what_becomes_of_the_missing_runs(tmp_path: Path) -> None:
    runs = [FakeRun("resnet20"), FakeRun("plain20")]
    write_workspace(tmp_path, [FakeRun("resnet20", 2)], not_run=runs)
    store = CheckpointStore(tmp_path / "checkpoints/plain20-1", {})
    store.save(Checkpoint({"x": torch.zeros(1)}, {}), 1234)
    refused = _command(tmp_path, "report")
    assert refused.returncode == 1
    assert "2 runs are missing, resnet20-1 first" in refused.stderr
    assert _command(tmp_path, "report", "--partial").returncode == 0
    text = (tmp_path / "reports/README.md").read_text()
    assert re.search(r"resnet20-1 +\| +waits", text)
    assert re.search(r"plain20-1 +\| +interrupted at step 1,234", text)
    with store.locked():
        _command(tmp_path, "report", "--partial")
    assert "runs, at step 1,234" in (tmp_path / "reports/README.md").read_text()


def _command(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from resnet_repro.cli import main; sys.argv[0] = 'resnet-repro'; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)

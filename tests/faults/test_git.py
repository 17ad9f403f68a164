"""What Git may do to a checkout."""

import subprocess
from pathlib import Path

import pytest

from resnet_repro.evidence import RunEvidence

AREA = "Git"
ROOT = Path(__file__).parents[2]


@pytest.mark.fault("Git turns line ends into CRLF (core.autocrlf)", "every committed file keeps its bytes, and is read")
def test_a_clone_with_other_line_ends_has_the_same_bytes(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    plain = tmp_path / "plain"
    for folder, ends in ((clone, "true"), (plain, "false")):
        subprocess.run(["git", "clone", "--quiet", "--config", f"core.autocrlf={ends}", ROOT, folder], check=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=plain, capture_output=True, text=True, check=True).stdout
    changed = [
        name for name in filter(None, listed.split("\0")) if (plain / name).read_bytes() != (clone / name).read_bytes()
    ]
    assert changed == []
    runs = sorted((clone / "reports/runs").iterdir())
    assert len(runs) >= 2
    for run in runs:
        assert RunEvidence.read(run).provenance.sha256

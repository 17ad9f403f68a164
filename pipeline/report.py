"""Write the report: python pipeline/report.py OUT

Reads   params.yaml, plans/, reports/runs/, reports/data/, reports/audit.json
Writes  OUT/README.md, verdicts.md, claims.md, reproductions.md, checklist.md, models/, figures/,
        metrics.json, curves.csv
"""

from pathlib import Path

import local_source  # noqa: F401
from resnet_repro.reporting import write_report
from resnet_repro.stage import run_stage


def report(out: str) -> None:
    write_report(Path(), Path(out))


if __name__ == "__main__":
    run_stage(report)

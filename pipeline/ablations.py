"""Write the page of the ablations, from the evidence that is there: python pipeline/ablations.py OUT

reads   params.yaml, plans/, reports/runs/, OUT/runs/, reports/data/, reports/audit.json
writes  OUT/README.md, OUT/figures/
"""

from pathlib import Path

import local_source  # noqa: F401
from resnet_repro.reporting import write_ablations
from resnet_repro.stage import run_stage


def ablations(out: str) -> None:
    write_ablations(Path(), Path(out))


if __name__ == "__main__":
    run_stage(ablations)

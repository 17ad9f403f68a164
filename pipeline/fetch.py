"""Download CIFAR-10's archive and keep its seven members, verified.

reads   params.yaml (data), and the archive: from the mirrors, or from CIFAR10_ARCHIVE, a path or an URL
writes  MEMBERS/batches.meta, data_batch_1 to data_batch_5, test_batch
"""

import os
from pathlib import Path

import local_source  # noqa: F401
from resnet_repro.data.archive import VARIABLE, fetch_members
from resnet_repro.params import load
from resnet_repro.stage import run_stage


def fetch(members: str) -> None:
    params = load(Path("params.yaml"))  # the whole file: a mistake further down is refused before the download
    fetch_members(params.data, Path(members), archive=os.environ.get(VARIABLE))


if __name__ == "__main__":
    run_stage(fetch)

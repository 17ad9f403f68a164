"""Decode the members into integer arrays, and describe them on the data card.

reads   params.yaml (data), MEMBERS/
writes  ARRAYS/train_images.npy, train_labels.npy, test_images.npy, test_labels.npy, classes.json
        REPORT/card.json, samples.npz
"""

from pathlib import Path

import local_source  # noqa: F401
from resnet_repro.data.arrays import prepare_arrays
from resnet_repro.params import load
from resnet_repro.stage import run_stage


def prepare(members: str, arrays: str, report: str) -> None:
    params = load(Path("params.yaml"))
    prepare_arrays(params.data, Path(members), Path(arrays), Path(report))


if __name__ == "__main__":
    run_stage(prepare)

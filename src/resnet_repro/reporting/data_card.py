"""What `prepare` wrote about the data: its card and a few of its images."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from resnet_repro.data.arrays import CARD, SAMPLES


@dataclass(frozen=True)
class Split:
    num_images: int
    images_per_class: dict[str, int]
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    """red, green, blue, of pixels from 0 to 1"""


@dataclass(frozen=True)
class DataCard:
    classes: tuple[str, ...]
    splits: dict[str, Split]
    sha256: str
    """of the whole data set"""
    files: dict[str, str]
    """sha256 of each of its files"""
    samples: dict[str, np.ndarray]
    """{split: (classes, k, 3, 32, 32) uint8}"""

    @classmethod
    def read(cls, folder: Path) -> "DataCard":
        """Read `card.json` and `samples.npz`.

        Raises:
            OSError, ValueError, KeyError: a file is missing, or is not what `prepare` writes.
        """
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        with np.load(folder / SAMPLES, allow_pickle=False) as arrays:
            samples = {name: arrays[name] for name in card["splits"]}
        splits = {
            name: Split(
                num_images=split["num_images"],
                images_per_class=split["images_per_class"],
                channel_mean=tuple(split["channel_mean"]),
                channel_std=tuple(split["channel_std"]),
            )
            for name, split in card["splits"].items()
        }
        return cls(tuple(card["classes"]), splits, card["sha256"], card["files"], samples)


def split_table(card: DataCard) -> pd.DataFrame:
    """One row per split: images, mean and standard deviation per channel (pixels from 0 to 1)."""
    return pd.DataFrame(
        {
            "split": name,
            "images": f"{split.num_images:,}",
            "channel mean (R, G, B)": _channels(split.channel_mean),
            "channel standard deviation": _channels(split.channel_std),
        }
        for name, split in card.splits.items()
    )


def class_table(card: DataCard) -> pd.DataFrame:
    """Images per class, a column for each class."""
    return pd.DataFrame(
        {"images": name, **{c: f"{n:,}" for c, n in split.images_per_class.items()}}
        for name, split in card.splits.items()
    )


def digest_table(card: DataCard) -> pd.DataFrame:
    return pd.DataFrame({"file": name, "sha256": f"`{digest}`"} for name, digest in card.files.items())


def _channels(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)

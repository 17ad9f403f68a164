"""What other people got who trained the nets of the papers, one number a line of `reproductions.csv`.

The two source projects' own numbers stand in papers.py, those of ours in the evidence.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, TypeAdapter

from resnet_repro.papers import read_table


@dataclass(frozen=True)
class Reproduction:
    """One published number: a test error in percent."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str
    """as in params.yaml"""
    project: str
    error_percent: float
    statistic: Literal["single run", "mean", "median"]
    epoch: str
    split: Literal["50k", "45k", "unknown"]
    """training images"""
    runs: int
    deviations: str
    """from the paper's recipe"""
    link: str
    sd_points: float | None = None
    mislabelled: str = ""
    """how the net that was trained differs from the one it is called; "": it does not"""

    @property
    def is_faithful(self) -> bool:
        """The last epoch, and no deviation from the paper's recipe known."""
        return self.epoch == "last" and self.split == "50k" and self.deviations.startswith("none known")


REPRODUCTIONS = TypeAdapter(tuple[Reproduction, ...]).validate_python(read_table("reproductions.csv"))


def reproductions_of(model: str) -> tuple[Reproduction, ...]:
    return tuple(number for number in REPRODUCTIONS if number.model == model)

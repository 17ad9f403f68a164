"""The published spreads over seeds, and the ratio that was derived from them by hand."""

from pathlib import Path

import pytest

from resnet_repro import params
from resnet_repro.papers import PAPERS, SOURCE_PROJECTS
from resnet_repro.seed_spread import pooled_ratio, seed_spreads

MODELS = params.load(Path(__file__).parents[1] / "params.yaml").models
TABLE = seed_spreads()
POOLED = TABLE[TABLE.left_out == ""]


def test_pooled_ratio_is_the_one_that_was_derived() -> None:
    """0.99, 0.83 to 1.22, 52 degrees of freedom."""
    ratio, interval, freedom = pooled_ratio(POOLED)
    assert freedom == 52
    assert (ratio, *interval) == pytest.approx((0.99, 0.83, 1.22), abs=0.005)


@pytest.mark.parametrize(
    ("source", "ratio", "low", "freedom"),
    [("akamaster/pytorch_resnet_cifar10", 1.25, 1.06, 57), ("AmroAbujabal/resnet-cifar-repro", 1.20, 1.01, 56)],
)
def test_what_is_left_out_would_raise_it(source: str, ratio: float, low: float, freedom: int) -> None:
    found, interval, degrees = pooled_ratio(TABLE[(TABLE.left_out == "") | (TABLE.source == source)])
    assert (found, interval[0]) == pytest.approx((ratio, low), abs=0.005)
    assert degrees == freedom
    assert all(TABLE[TABLE.source == source].left_out)


def test_ratio_of_one_row_by_hand() -> None:
    """0.16 / sqrt(6.61 / 200) = 0.880; with 4 degrees of freedom chi-squared is 11.143 and 0.4844."""
    ratio, interval, freedom = pooled_ratio(TABLE[TABLE.source == "He 2015, Table 6"])
    assert (ratio, *interval) == pytest.approx((0.880, 0.527, 2.529), abs=0.001)
    assert freedom == 4


def test_spread_of_single_runs_is_computed() -> None:
    """Of 6.04 and 5.89: half the difference times the square root of two."""
    (pair,) = TABLE[TABLE.source == "facebookarchive/fb.resnet.torch"].itertuples()
    assert (pair.runs, pair.mean_percent, pair.sd_points) == pytest.approx((2, 5.965, 0.15 / 2**0.5))


def test_the_papers_spreads_are_those_of_the_papers() -> None:
    printed = {(n.model, n.value, n.std, n.runs) for n in PAPERS if n.std}
    rows = TABLE[TABLE.source.str.startswith("He ")]
    assert set(zip(rows.model, rows.mean_percent, rows.sd_points, rows.runs, strict=True)) == printed


def test_the_lasagne_projects_runs_are_those_it_and_its_reviewers_print() -> None:
    rows = TABLE[TABLE.source == "Lasagne PreResNet at three sites"]
    for row in rows.itertuples():
        values = [n.value for n in SOURCE_PROJECTS if n.model == row.model and "ReScience" in n.source]
        assert (row.runs, row.mean_percent) == pytest.approx((3, sum(values) / 3))


def test_every_spread_has_a_known_net_and_a_source() -> None:
    assert set(TABLE.model) - set(MODELS) == {"lasagne_wide_dropout"}  # its dropout is commented out in its code
    assert not TABLE.duplicated(["source", "model"]).any()
    # one page of a stored copy without its address
    assert set(TABLE[~TABLE.link.str.startswith("https://")].link) == {"unknown"}
    assert TABLE.mean_percent.between(0, 100).all()
    assert TABLE.sd_points.between(0, 1).all()
    assert (TABLE.runs >= 2).all()

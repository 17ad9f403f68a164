"""The published spreads over seeds, and the ratio that was derived from them by hand."""

from pathlib import Path

import pytest

from resnet_repro import params
from resnet_repro.papers import PAPERS, SOURCE_PROJECTS
from seed_spreads import pooled_ratio, seed_spreads

MODELS = params.load(Path(__file__).parents[1] / "params.yaml").models
TABLE = seed_spreads()
POOLED = TABLE[TABLE.left_out == ""]


def test_pooled_ratio_is_the_one_that_was_derived() -> None:
    """1.19, 1.01 to 1.44, 64 degrees of freedom; 86 runs of 15 nets (docs/explanation.md)."""
    ratio, interval, freedom = pooled_ratio(POOLED)
    assert freedom == 64
    assert (ratio, *interval) == pytest.approx((1.19, 1.01, 1.44), abs=0.005)
    assert (POOLED.runs.sum(), POOLED.model.nunique()) == (86, 15)
    assert POOLED[POOLED.link == "unknown"].runs.sum() == 14
    of_he = POOLED[POOLED.model.isin(["plain20", "plain56", "resnet20", "resnet56", "resnet110"])]
    assert pooled_ratio(of_he)[0] == pytest.approx(1.37, abs=0.005)
    assert pooled_ratio(POOLED[POOLED.model == "resnet56"])[0] == pytest.approx(2.35, abs=0.01)
    outlying = (POOLED.source == "AmroAbujabal/resnet-cifar-repro") & (POOLED.model == "resnet56")
    assert pooled_ratio(POOLED[~outlying])[0] == pytest.approx(1.02, abs=0.01)


def test_the_prior_of_the_verdicts_is_no_narrower_than_what_is_published() -> None:
    """Its ratio lies between the pooled one and that of printed SDs which were divided by n and not n - 1; it counts
    for fewer degrees of freedom than the data have, since the sources differ among themselves."""
    at_most = POOLED.copy()
    as_printed = at_most.source.str.startswith(("He 20", "nabla0001", "zjunzhao"))
    at_most.loc[as_printed, "sd_points"] *= (at_most.runs / (at_most.runs - 1)) ** 0.5
    prior = params.load(Path(__file__).parents[1] / "params.yaml").verdicts.prior
    assert pooled_ratio(POOLED)[0] <= prior.sd_ratio <= pooled_ratio(at_most)[0] == pytest.approx(1.26, abs=0.005)
    assert prior.degrees_of_freedom <= pooled_ratio(POOLED)[2]


@pytest.mark.parametrize(
    ("source", "ratio", "freedom"),
    [("akamaster/pytorch_resnet_cifar10", 1.37, 69), ("AmroAbujabal/resnet-cifar-repro", 1.00, 60)],
)
def test_with_or_without_one_source(source: str, ratio: float, freedom: int) -> None:
    """The one that is left out would raise it; the one with the largest spreads raises it most."""
    table = TABLE[(TABLE.left_out == "") != (TABLE.source == source)]
    found, _, degrees = pooled_ratio(table)
    assert (found, degrees) == (pytest.approx(ratio, abs=0.005), freedom)


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

"""`reproductions.csv`: what others got for the nets of the papers. The source projects' own numbers stand in
`source_projects.csv`."""

from pathlib import Path

import pandas as pd
import pytest

import resnet_repro
from resnet_repro import params
from resnet_repro.papers import SOURCE_PROJECTS
from resnet_repro.reproductions import REPRODUCTIONS, reproductions_of
from seed_spreads import seed_spreads

MODELS = params.load(Path(__file__).parents[1] / "params.yaml").models
TABLE = pd.read_csv(Path(resnet_repro.__file__).with_name("reproductions.csv"))


def test_every_net_is_a_known_one() -> None:
    without_model = {
        "preact1202",  # no paper prints it
        "lasagne_wide_dropout",  # the source project's code has its dropout commented out
    }
    assert set(TABLE.model) - set(MODELS) == without_model


def test_every_number_can_be_followed() -> None:
    assert TABLE.link.str.startswith("https://github.com/").all()
    assert TABLE.project.str.fullmatch(r"[\w.-]+/[\w.-]+").all()
    assert not TABLE.duplicated(["model", "project", "error_percent", "epoch"]).any()


def test_numbers_are_percent_and_say_what_they_are() -> None:
    assert TABLE.error_percent.between(0, 100, inclusive="neither").all()
    assert set(TABLE.statistic) == {"single run", "mean", "median"}
    assert set(TABLE.epoch) == {"last", "lowest", "best-validation", "not stated", "epoch 85"}
    assert set(TABLE.split) == {"50k", "45k", "unknown"}
    assert ((TABLE.runs > 1) == (TABLE.statistic != "single run")).all()
    assert (TABLE.runs[TABLE.sd_points.notna()] > 1).all()
    assert TABLE.deviations.notna().all()


@pytest.mark.parametrize(
    ("project", "model", "errors"),
    [
        ("bearpaw/pytorch-classification", "original164", {6.11}),
        ("bearpaw/pytorch-classification", "preact164", {4.94}),
        ("hysts/pytorch_image_classification", "preact164", {5.90}),
        ("FlorianMuellerklein/Identity-Mapping-ResNet-Lasagne", "lasagne_wide_dropout", {4.86, 4.73}),
    ],
)
def test_nets_under_a_wrong_name_are_marked(project: str, model: str, errors: set[float]) -> None:
    marked = TABLE[TABLE.mislabelled.notna()]
    assert set(marked[(marked.project == project) & (marked.model == model)].error_percent) == errors
    assert len(marked) == 5


def test_numbers_are_read_as_they_stand() -> None:
    assert [number.error_percent for number in REPRODUCTIONS] == list(TABLE.error_percent)
    assert [number.mislabelled for number in REPRODUCTIONS] == list(TABLE.mislabelled.fillna(""))
    assert {number.link for number in reproductions_of("wrn16_8")} == set(TABLE.link[TABLE.model == "wrn16_8"])


def test_faithful_is_the_last_epoch_of_the_papers_recipe() -> None:
    faithful = [(number.model, number.error_percent) for number in REPRODUCTIONS if number.is_faithful]
    plain = [("plain20", 9.57), ("plain20", 9.35), ("plain56", 12.32)]
    residual = [("resnet20", 8.39), ("resnet20", 8.51), ("resnet20", 8.23), ("resnet56", 7.45), ("resnet56", 7.13)]
    assert faithful == [*plain, *residual, ("wrn16_8", 4.40)]


def test_spreads_are_those_of_seed_spreads() -> None:
    both = TABLE.merge(seed_spreads(), on=["link", "model"], suffixes=("", "_of_seeds"))
    both = both[
        both.sd_points.notna() & (both.epoch != "lowest") | (both.project == "akamaster/pytorch_resnet_cifar10")
    ]
    assert len(both) == 12
    assert list(both.runs) == list(both.runs_of_seeds)
    assert list(both.sd_points) == pytest.approx(list(both.sd_points_of_seeds), abs=0.0051)
    means = both[both.statistic == "mean"]
    assert list(means.error_percent) == pytest.approx(list(means.mean_percent), abs=0.0051)


def test_the_reviewers_numbers_are_those_of_the_source_project() -> None:
    by_reviewers = TABLE[TABLE.project.str.startswith("FlorianMuellerklein/")]
    recorded = {(n.model, n.value) for n in SOURCE_PROJECTS if n.source.endswith("ReScience reviewers")}
    assert set(zip(by_reviewers.model, by_reviewers.error_percent, strict=True)) == recorded

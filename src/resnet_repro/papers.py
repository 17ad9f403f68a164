"""Published CIFAR-10 test errors, each with where it stands and what statistic it is. Data only.

The papers: He 2015 (arXiv 1512.03385), He 2016 (arXiv 1603.05027), Zagoruyko 2016 (arXiv 1605.07146).
The source projects: github.com/a-martyn/resnet and
github.com/FlorianMuellerklein/Identity-Mapping-ResNet-Lasagne with its ReScience article.

Models are named as in `params.yaml`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Role = Literal["judged", "beside", "recorded"]


@dataclass(frozen=True)
class Published:
    """One printed number: a test error in percent."""

    model: str
    value: float
    statistic: str
    source: str
    role: Role
    """judged: the row is measured against it; beside: shown next to that; recorded: kept for the claims."""
    runs: int | None = None
    """None: not stated"""
    std: float | None = None
    relation: Literal["=", ">"] = "="
    second_hand: bool = False
    """found only as quoted by others"""


LAST, LOWEST, FIRST = "last epoch", "lowest over epochs", "single run, last iteration"
MEDIAN, MEAN, BEST = "median of 5", "mean of 5", "best of 5"
READ_OFF = "end of the curve, read off, ±0.1"
UNSTATED = "number of runs not stated"
VALIDATION = "best-validation epoch"

HE_2015_TABLE = "He 2015, Table 6"
HE_2015_FIGURE = "He 2015, Figure 6"
HE_2016_SHORTCUTS = "He 2016, Table 1"
HE_2016 = "He 2016, Tables 2 to 4"
WRN_KERNELS = "Zagoruyko 2016, Tables 2 and 3 (ZCA)"
WRN_ZCA = "Zagoruyko 2016, Table 4 (ZCA)"
WRN = "Zagoruyko 2016, Tables 5 and 6 (mean/std)"
A_MARTYN = "a-martyn, README"
A_MARTYN_LOGS = "a-martyn, results/*.csv"
A_MARTYN_BEFORE = "a-martyn, commit e0de616 (no running statistics)"
LASAGNE = "Lasagne PreResNet, README"
RESCIENCE = "Lasagne PreResNet, ReScience article"
RESCIENCE_REVIEW = "Lasagne PreResNet, ReScience reviewers"


def _each(
    values: dict[str, float],
    statistic: str,
    source: str,
    role: Role,
    runs: int | None = None,
    second_hand: bool = False,
) -> tuple[Published, ...]:
    return tuple(
        Published(model, value, statistic, source, role, runs, second_hand=second_hand)
        for model, value in values.items()
    )


FIGURE_6_END = {
    "plain20": 9.67,
    "plain32": 10.11,
    "plain44": 11.39,
    "plain56": 13.24,
    "resnet20": 8.84,
    "resnet32": 7.52,
    "resnet44": 7.17,
    "resnet56": 6.99,
    "resnet110": 6.56,
}
"""Where the test curves of He 2015, Figure 6 end, in percent, measured on its image: ±0.1. The residual nets
agree with Table 6 within 0.1 while the minima of their curves are lower: the table is the last iteration."""

PAPERS: tuple[Published, ...] = (
    *_each(
        {m: e for m, e in FIGURE_6_END.items() if m.startswith("plain")},
        READ_OFF,
        HE_2015_FIGURE,
        "judged",
        1,
    ),
    *_each(
        {m: e for m, e in FIGURE_6_END.items() if m.startswith("resnet")},
        READ_OFF,
        HE_2015_FIGURE,
        "recorded",
        1,
    ),
    Published("plain110", 60.0, "higher than 60% and not displayed", HE_2015_FIGURE, "judged", 1, relation=">"),
    *_each(
        {"resnet20": 8.75, "resnet32": 7.51, "resnet44": 7.17, "resnet56": 6.97, "resnet1202": 7.93},
        FIRST,
        HE_2015_TABLE,
        "judged",
        1,
    ),
    Published("resnet110", 6.61, MEAN, HE_2015_TABLE, "judged", 5, std=0.16),
    Published("resnet110", 6.43, BEST, HE_2015_TABLE, "beside", 5),
    *_each(
        {"preact110": 6.37, "preact164": 5.46, "original164": 5.93, "preact1001": 4.92},
        MEDIAN,
        HE_2016,
        "judged",
        5,
    ),
    Published("preact1001", 4.89, MEAN, HE_2016, "beside", 5, std=0.14),
    Published("preact1001_batch64", 4.62, MEDIAN, HE_2016, "judged", 5),
    Published("preact1001_batch64", 4.69, MEAN, HE_2016, "beside", 5, std=0.20),
    Published("original1001", 7.61, MEDIAN, HE_2016, "judged", 5),
    Published("resnet110", 6.61, MEDIAN, HE_2016, "recorded", 5),  # the mean of He 2015 again
    *_each(
        {
            "original110_scaled_both": 12.35,
            "original110_exclusive_gating_6": 8.70,
            "original110_exclusive_gating_7": 9.81,
            "original110_shortcut_gating_0": 12.86,
            "original110_shortcut_gating_6": 6.91,
            "original110_projections": 12.22,
        },
        MEDIAN,
        HE_2016_SHORTCUTS,
        "judged",
        5,
    ),
    *(
        Published(model, 20.0, '"fail": median of 5 higher than 20%', HE_2016_SHORTCUTS, "judged", 5, relation=">")
        for model in (
            "original110_scaled_shortcut",
            "original110_exclusive_gating_0",
            "original110_exclusive_gating_5",
            "original110_dropout_shortcut",
        )
    ),
    *_each(
        {
            "original110_single_layer": 9.90,
            "preact110_single_layer": 8.91,
            "original110_bn_after_addition": 8.17,
            "original164_bn_after_addition": 6.50,
            "original110_relu_before_addition": 7.84,
            "original164_relu_before_addition": 6.14,
            "original110_relu_only_preactivation": 6.71,
            "original164_relu_only_preactivation": 5.91,
        },
        MEDIAN,
        HE_2016,
        "judged",
        5,
    ),
    *_each(
        {
            "wrn40_2_b131_zca": 6.06,
            "wrn40_2_b31_zca": 5.78,
            "wrn40_2_b13_zca": 6.42,
            "wrn40_2_b311_zca": 5.86,
            "wrn28_2_zca": 5.73,
            "wrn22_2_b313_zca": 5.78,
            "wrn40_2_b3_zca": 6.69,
            "wrn40_2_b333_zca": 5.65,
            "wrn40_2_b3333_zca": 5.93,
        },
        MEDIAN,
        WRN_KERNELS,
        "judged",
        5,
    ),
    Published("wrn40_2_zca", 5.43, MEDIAN, WRN_KERNELS, "beside", 5),
    *_each(
        {
            "wrn40_1_zca": 6.85,
            "wrn40_2_zca": 5.33,
            "wrn40_4_zca": 4.97,
            "wrn40_8_zca": 4.66,
            "wrn28_10_zca": 4.17,
            "wrn28_12_zca": 4.33,
            "wrn22_8_zca": 4.38,
            "wrn22_10_zca": 4.44,
            "wrn16_8_zca": 4.81,
            "wrn16_10_zca": 4.56,
        },
        UNSTATED,
        WRN_ZCA,
        "judged",
    ),
    *_each(
        {
            "wrn40_4": 4.53,
            "wrn16_8": 4.27,
            "wrn28_10": 4.00,
            "wrn28_10_dropout": 3.89,
            "wrn16_4": 5.02,
            "wrn16_4_dropout": 5.24,
            "wrn52_1": 6.43,
            "wrn52_1_dropout": 6.28,
        },
        MEDIAN,
        WRN,
        "judged",
        5,
    ),
    Published("wrn40_10_dropout", 3.8, "single run", "Zagoruyko 2016, Table 9", "judged", 1),
    Published(
        "wrn16_4",
        5.55,
        "second-hand, as the Lasagne README and the ReScience article quote it",
        "Zagoruyko 2016, first version",
        "beside",
        second_hand=True,
    ),
    *_each(
        {"plain20": 9.5, "plain32": 10.0, "plain44": 12.0, "plain56": 13.5},
        "read off Figure 6 by eye",
        A_MARTYN,
        "recorded",
        second_hand=True,
    ),
)
"""What the papers print (or what was read off their figures)."""

_A_MARTYN_LOWEST = {
    "plain20": 9.5,
    "plain32": 9.92,
    "plain44": 11.35,
    "plain56": 12.76,
    "resnet20": 8.0,
    "resnet32": 7.51,
    "resnet44": 7.38,
    "resnet56": 7.33,
}
_A_MARTYN_LAST = {
    "plain20": 9.69,
    "plain32": 10.04,
    "plain44": 11.56,
    "plain56": 13.07,
    "resnet20": 8.04,
    "resnet32": 7.79,
    "resnet44": 7.51,
    "resnet56": 7.46,
}
_A_MARTYN_NO_RUNNING_STATISTICS = {
    "plain20": 10.62,
    "plain32": 10.85,
    "plain44": 12.42,
    "plain56": 14.22,
    "resnet20": 10.98,
    "resnet32": 10.73,
    "resnet44": 11.10,
    "resnet56": 8.96,
}


def _suffixed(values: dict[str, float], suffix: str) -> dict[str, float]:
    return {f"{model}{suffix}": value for model, value in values.items()}


SOURCE_PROJECTS: tuple[Published, ...] = (
    # a-martyn: beside the papers' rows, and what the rows of its own recipe are measured against. Its README
    # prints the lowest epoch; its own per-epoch files, and the weights it publishes, end at the last.
    *_each(_A_MARTYN_LOWEST, LOWEST, A_MARTYN, "beside", 1),
    *_each(_A_MARTYN_LAST, LAST, A_MARTYN_LOGS, "beside", 1),
    *_each(_suffixed(_A_MARTYN_LOWEST, "_a_martyn"), LOWEST, A_MARTYN, "beside", 1),
    *_each(_suffixed(_A_MARTYN_LAST, "_a_martyn"), LAST, A_MARTYN_LOGS, "judged", 1),
    *_each(
        _suffixed(_A_MARTYN_NO_RUNNING_STATISTICS, "_a_martyn_batch_statistics"),
        "statistic not stated",
        A_MARTYN_BEFORE,
        "judged",
        1,
    ),
    # Lasagne: its 110 and 164 have projections and its wide net has 2, 4, 4 blocks; the models of those nets
    # have names of their own. It kept the best of its 5,000 held-out images.
    *_each({"preact110": 6.38, "preact164": 5.66}, VALIDATION, LASAGNE, "beside", 1),
    *_each({"lasagne110": 6.38, "lasagne164": 5.66, "lasagne_wide": 5.41}, VALIDATION, LASAGNE, "judged", 1),
    Published("lasagne164", 6.07, VALIDATION, "Lasagne PreResNet, earlier README", "recorded", 1),
    *_each(
        {"lasagne110": 6.06, "lasagne164": 5.64, "lasagne_wide_dropout": 5.11},
        VALIDATION,
        RESCIENCE,
        "recorded",
        1,
    ),
    *_each(
        {"lasagne110": 6.150, "lasagne164": 5.180, "lasagne_wide_dropout": 4.86},
        VALIDATION,
        RESCIENCE_REVIEW,
        "recorded",
        1,
    ),
    *_each(
        {"lasagne110": 6.189, "lasagne164": 5.820, "lasagne_wide_dropout": 4.73},
        VALIDATION,
        RESCIENCE_REVIEW,
        "recorded",
        1,
    ),
)
"""What the two source projects print."""

NUM_PARAMETERS = {
    **{
        f"{family}{depth}": count
        for family in ("plain", "resnet")  # shortcut A adds none
        for depth, count in {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}.items()
    },
    "resnet1202": 19_421_274,
    "plain20_a_martyn": 269_722,
    "resnet20_a_martyn": 269_722,
    "original110_single_layer": 1_727_962,  # its 108 convolutions have the shapes of the 54 units' two
    "preact110_single_layer": 1_727_962,
    "original110_bn_after_addition": 1_727_962,
    "original110_relu_before_addition": 1_727_962,
    "original110_relu_only_preactivation": 1_727_962,
    "preact110": 1_727_962,
    "preact164": 1_703_258,
    "preact1001": 10_327_706,
    "preact1001_batch64": 10_327_706,
    "wrn40_2_b131_zca": 1_429_082,
    "wrn40_2_b31_zca": 1_211_354,
    "wrn40_2_b13_zca": 1_297_370,
    "wrn40_2_b311_zca": 1_343_066,
    "wrn28_2_zca": 1_467_610,
    "wrn22_2_b313_zca": 1_145_498,
    "wrn40_2_b3_zca": 2_243_546,
    "wrn40_2_b333_zca": 2_243_546,
    "wrn40_2_b3333_zca": 2_243_546,
    "wrn40_1_zca": 563_930,
    "wrn40_2_zca": 2_243_546,
    "wrn40_4_zca": 8_949_210,
    "wrn40_8_zca": 35_748_314,
    "wrn28_10_zca": 36_479_194,
    "wrn28_12_zca": 52_517_850,
    "wrn22_8_zca": 17_158_106,
    "wrn22_10_zca": 26_797_914,
    "wrn16_8_zca": 10_961_370,
    "wrn16_10_zca": 17_116_634,
    "wrn16_4": 2_748_890,
    "wrn16_4_dropout": 2_748_890,
    "wrn52_1": 758_362,
    "wrn52_1_dropout": 758_362,
    "wrn16_8": 10_961_370,
    "wrn40_4": 8_949_210,
    "wrn28_10": 36_479_194,
    "wrn28_10_dropout": 36_479_194,
    "wrn40_10_dropout": 55_841_754,
    "lasagne110": 1_732_538,
    "lasagne164": 1_711_322,
}
"""Exact counts, derived from the papers' descriptions; 164 and 40-4 also stand in Zagoruyko's logs."""

PRINTED_MILLIONS_OF_PARAMETERS = {
    **{
        f"{family}{depth}": count
        for family in ("plain", "resnet")
        for depth, count in {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}.items()
    },
    "resnet1202": 19.4,
    "preact110": 1.7,
    "preact164": 1.7,
    "preact1001": 10.2,  # counts no batch normalisation: 10,178,490
    "wrn40_2_b131_zca": 1.4,
    "wrn40_2_b31_zca": 1.2,
    "wrn40_2_b13_zca": 1.3,
    "wrn40_2_b311_zca": 1.3,
    "wrn28_2_zca": 1.5,
    "wrn22_2_b313_zca": 1.1,
    "wrn40_2_b3_zca": 2.2,
    "wrn40_2_b333_zca": 2.2,
    "wrn40_2_b3333_zca": 2.2,
    "wrn40_1_zca": 0.6,
    "wrn40_2_zca": 2.2,
    "wrn40_4_zca": 8.9,
    "wrn40_8_zca": 35.7,
    "wrn28_10_zca": 36.5,
    "wrn28_12_zca": 52.5,
    "wrn22_8_zca": 17.2,
    "wrn22_10_zca": 26.8,
    "wrn16_8_zca": 11.0,
    "wrn16_10_zca": 17.1,
}
"""As the papers print them."""


def paper_numbers(model: str) -> tuple[Published, ...]:
    """What the papers print about a model, the number it is judged against first."""
    return _of(model, PAPERS)


def source_project_numbers(model: str) -> tuple[Published, ...]:
    """What the source projects print about a model."""
    return _of(model, SOURCE_PROJECTS)


def judged_against(model: str) -> Published | None:
    """The paper's number that a model's row is measured against; for a source project's own net or recipe
    the project's; None where nothing is printed."""
    numbers = (*paper_numbers(model), *source_project_numbers(model))
    return next((number for number in numbers if number.role == "judged"), None)


def _of(model: str, numbers: Iterable[Published]) -> tuple[Published, ...]:
    ranks = ("judged", "beside", "recorded")
    found = (number for number in numbers if number.model == model)
    return tuple(sorted(found, key=lambda number: ranks.index(number.role)))

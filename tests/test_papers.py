"""The published numbers against copies of the tables they come from, and against each other."""

from pathlib import Path

import numpy as np
import pytest

from resnet_repro import params
from resnet_repro.papers import (
    EYE,
    FIGURE_6_END,
    FIRST,
    NUM_PARAMETERS,
    PAPERS,
    PRINTED_MILLIONS_OF_PARAMETERS,
    READ_OFF,
    SOURCE_PROJECTS,
    Published,
    judged_against,
    paper_numbers,
    source_project_numbers,
)

PARAMS = params.load(Path(__file__).parents[1] / "params.yaml")

# README of github.com/a-martyn/resnet, "Best test error"; * is read off Figure 6
A_MARTYN_README = """
| Plain Net | 20 | 9.5* | 9.5 |
| Plain Net | 32 | 10* | 9.92 |
| Plain Net | 44 | 12* | 11.35 |
| Plain Net | 56 | 13.5* | 12.76 |
| ResNet | 20 | 8.75 | 8.0 |
| ResNet | 32 | 7.51 | 7.51 |
| ResNet | 44 | 7.17 | 7.38 |
| ResNet | 56 | 6.97 | 7.33 |
"""
# the last line of each of its results/*.csv; its published weights give the same
A_MARTYN_LAST = "9.69 10.04 11.56 13.07 8.04 7.79 7.51 7.46"

# README of github.com/FlorianMuellerklein/Identity-Mapping-ResNet-Lasagne
LASAGNE_README = """
| ResNet-110 | 6.37 | 6.38 |
| ResNet-164 | 5.46 | 5.66 |
| Wide-ResNet | 5.55 | 5.41 |
"""

# He 2015, Table 6: layers, millions of parameters, error
HE_2015_TABLE_6 = """
20 0.27 8.75
32 0.46 7.51
44 0.66 7.17
56 0.85 6.97
1202 19.4 7.93
"""

# Zagoruyko 2016, Table 4 (ZCA): depth, k, millions of parameters, error
WRN_TABLE_4 = """
40 1 0.6 6.85
40 2 2.2 5.33
40 4 8.9 4.97
40 8 35.7 4.66
28 10 36.5 4.17
28 12 52.5 4.33
22 8 17.2 4.38
22 10 26.8 4.44
16 8 11.0 4.81
16 10 17.1 4.56
"""


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]


# He 2016, Table 1: kind, factor on the shortcut, on the residual function, error; all of ResNet-110 with option A
HE_2016_TABLE_1 = """
constant_scaling 0 1 fail
constant_scaling 0.5 1 fail
constant_scaling 0.5 0.5 12.35
exclusive_gating 0 fail
exclusive_gating -5 fail
exclusive_gating -6 8.70
exclusive_gating -7 9.81
shortcut_only_gating 0 12.86
shortcut_only_gating -6 6.91
dropout 0.5 fail
"""

# Zagoruyko 2016, Tables 2 and 3 (ZCA): depth, kernels, millions of parameters, error
WRN_TABLES_2_AND_3 = """
40 131 1.4 6.06
40 31 1.2 5.78
40 13 1.3 6.42
40 311 1.3 5.86
28 33 1.5 5.73
22 313 1.1 5.78
40 3 2.2 6.69
40 33 2.2 5.43
40 333 2.2 5.65
40 3333 2.2 5.93
"""


def the(numbers: tuple[Published, ...], **wanted: object) -> float:
    """The value of the one number with these attributes."""
    (found,) = [n for n in numbers if all(getattr(n, key) == value for key, value in wanted.items())]
    return found.value


def test_a_martyn_readme() -> None:
    last = A_MARTYN_LAST.split()
    for (net, depth, paper, own), final in zip(cells(A_MARTYN_README), last, strict=True):
        model = ("plain" if net == "Plain Net" else "resnet") + depth
        assert the(source_project_numbers(model), statistic="lowest over epochs") == float(own)
        assert the(source_project_numbers(model), statistic="last epoch") == float(final)
        if paper.endswith("*"):
            read_by_eye = the(paper_numbers(model), statistic="read off Figure 6 by eye")
            assert read_by_eye == float(paper.rstrip("*"))
        else:
            assert the(paper_numbers(model), source="He 2015, Table 6") == float(paper)


def test_what_the_a_martyn_readme_says_about_its_numbers() -> None:
    lowest = {n.model: n.value for n in SOURCE_PROJECTS if n.source == "a-martyn, README"}
    assert 100 - lowest["resnet56"] == pytest.approx(92.67)  # "achieves 92.67% test set accuracy"
    assert lowest["plain20"] - lowest["resnet20"] == pytest.approx(1.5)  # "outperforming ... by 1.5%"
    paper = judged_against("resnet20")
    assert paper
    assert paper.value - lowest["resnet20"] == pytest.approx(0.75)  # "0.75% below ... the original paper"


def test_lasagne_readme() -> None:
    models = [("preact110", "lasagne110"), ("preact164", "lasagne164"), ("wrn16_4", "lasagne_wide")]
    for (of_paper, own_net), (_, paper, own) in zip(models, cells(LASAGNE_README), strict=True):
        assert float(paper) in [n.value for n in paper_numbers(of_paper)]
        judged = judged_against(own_net)
        assert judged
        assert (judged.value, judged.statistic) == (float(own), "best-validation epoch")
        assert not paper_numbers(own_net)


def test_he_2015_table_6() -> None:
    for depth, millions, error in map(str.split, HE_2015_TABLE_6.strip().splitlines()):
        number = judged_against(f"resnet{depth}")
        assert number
        assert (number.value, number.source, number.runs) == (float(error), "He 2015, Table 6", 1)
        assert number.statistic == FIRST
        assert PRINTED_MILLIONS_OF_PARAMETERS[f"resnet{depth}"] == float(millions)


def test_he_2015_resnet110_is_best_and_mean_of_five() -> None:
    """Table 6: 6.43 (6.61 ± 0.16)."""
    numbers = [n for n in paper_numbers("resnet110") if n.source == "He 2015, Table 6"]
    assert [(n.value, n.std, n.statistic, n.runs) for n in numbers] == [
        (6.61, 0.16, "mean of 5", 5),
        (6.43, None, "best of 5", 5),
    ]


def test_zagoruyko_2016_table_4() -> None:
    for depth, factor, millions, error in map(str.split, WRN_TABLE_4.strip().splitlines()):
        model = f"wrn{depth}_{factor}_zca"
        assert the(paper_numbers(model), source="Zagoruyko 2016, Table 4 (ZCA)") == float(error)
        assert PRINTED_MILLIONS_OF_PARAMETERS[model] == float(millions)


def test_zagoruyko_2016_tables_2_and_3() -> None:
    for depth, kernels, millions, error in map(str.split, WRN_TABLES_2_AND_3.strip().splitlines()):
        model = f"wrn{depth}_2_zca" if kernels == "33" else f"wrn{depth}_2_b{kernels}_zca"
        (number,) = [n for n in paper_numbers(model) if n.source == "Zagoruyko 2016, Tables 2 and 3 (ZCA)"]
        assert (number.value, number.statistic) == (float(error), "median of 5")
        assert PRINTED_MILLIONS_OF_PARAMETERS[model] == float(millions)
        net = PARAMS.models[model].architecture
        assert "".join(map(str, net.kernels)) == kernels
        # by the printed parameters units with 1x1 convolutions are as many as those of two convolutions
        assert net.blocks_per_group == (int(depth) - 4) // (6 if "1" in kernels else 3 * len(kernels))


def test_he_2016_table_1() -> None:
    skips = {name: model.architecture.skip for name, model in PARAMS.models.items()}
    for line in HE_2016_TABLE_1.strip().splitlines():
        kind, *options, error = line.split()
        if options == ["0", "1"]:  # "this is a plain net"
            assert the(paper_numbers("plain110"), source="He 2016, Table 1", relation=">") == 20.0
            continue
        names = ("shortcut_factor", "residual_factor") if len(options) == 2 else ("gate_bias",)
        names = ("dropout",) if kind == "dropout" else names
        wanted = params.Skip.model_validate({"kind": kind, **dict(zip(names, map(float, options), strict=True))})
        (model,) = [name for name, skip in skips.items() if skip == wanted]
        assert PARAMS.models[model].architecture.depth == 110
        number = judged_against(model)
        assert number
        assert (number.relation, number.value) == ((">", 20.0) if error == "fail" else ("=", float(error)))
    conv = judged_against("original110_projections")  # "1x1 conv shortcut", He 2015's option C
    assert conv
    assert (conv.value, PARAMS.models["original110_projections"].architecture.shortcut) == (12.22, "C")


@pytest.mark.parametrize(
    ("model", "value"),
    [
        ("preact110", 6.37),
        ("preact164", 5.46),
        ("original164", 5.93),
        ("preact1001", 4.92),
        ("wrn16_4", 5.02),
        ("wrn16_8", 4.27),
        ("wrn28_10", 4.00),
        ("wrn28_10_dropout", 3.89),
        ("wrn40_4", 4.53),
    ],
)
def test_medians_of_five(model: str, value: float) -> None:
    number = judged_against(model)
    assert number
    assert (number.value, number.statistic, number.runs) == (value, "median of 5", 5)


def test_zagoruyko_2016_figure_4_contradicts_table_4() -> None:
    """Its text prints 40-4: 4.66, 16-10: 4.56, 28-10: 4.38 and pre-act 1001: 4.64."""
    figure = {n.model: n.value for n in PAPERS if n.source == "Zagoruyko 2016, Figure 4"}
    assert figure == {"wrn40_4_zca": 4.66, "wrn16_10_zca": 4.56, "wrn28_10_zca": 4.38}
    table = {n.model: n.value for n in PAPERS if n.source == "Zagoruyko 2016, Table 4 (ZCA)"}
    others = {"wrn40_4_zca": "wrn40_8_zca", "wrn16_10_zca": "wrn16_10_zca", "wrn28_10_zca": "wrn22_8_zca"}
    assert figure == {model: table[other] for model, other in others.items()}
    assert the(paper_numbers("preact1001_batch64"), second_hand=True) == 4.64


def test_the_authors_logs_end_around_the_printed_number() -> None:
    logs = [n for n in PAPERS if n.source.endswith("logs/ of its code (ZCA)")]
    assert [(n.model, n.statistic, n.value) for n in logs] == [
        ("wrn40_4_zca", "last epoch", 5.11),
        ("wrn40_4_zca", "lowest over epochs", 4.92),
        ("preact164_zca", "last epoch", 5.75),
        ("preact164_zca", "lowest over epochs", 5.53),
    ]
    assert 4.92 < the(paper_numbers("wrn40_4_zca"), role="judged") < 5.11


def test_training_errors_are_kept_apart_from_test_errors() -> None:
    """The ends of the dashed curves of He 2015, Figure 6."""
    (plain32,) = paper_numbers("plain32", "training error")
    assert (plain32.value, plain32.reading_sd, plain32.role) == (1.16, 0.075, "recorded")
    ends = {n.model: n.value for n in PAPERS if n.measure == "training error"}
    assert list(ends.values()) == [1.42, 1.16, 3.22, 5.92, 0.83, 0.27]
    assert all(n.measure == "test error" for model in ends for n in paper_numbers(model))
    assert all(value < FIGURE_6_END[model] for model, value in ends.items())


def test_what_is_read_off_says_how_well() -> None:
    """± is two standard deviations of a reading; what is printed as a number was not read off."""
    for number in (*PAPERS, *SOURCE_PROJECTS):
        if "read off, ±" in number.statistic:
            assert float(number.statistic.split("±")[1]) == pytest.approx(2 * number.reading_sd)
        else:
            assert bool(number.reading_sd) == (number.statistic == EYE)


def test_readings_by_eye_are_marked_and_coarse() -> None:
    by_eye = [n for n in PAPERS if n.statistic == EYE]
    assert {n.model for n in by_eye} == {"plain20", "plain32", "plain44", "plain56"}
    assert not {n.role for n in by_eye} - {"recorded"}
    rms = np.sqrt(np.mean([(n.value - FIGURE_6_END[n.model]) ** 2 for n in by_eye]))
    assert [n.reading_sd for n in by_eye] == pytest.approx([rms] * 4, abs=0.005)


def test_the_second_hand_number_is_marked_and_not_judged_against() -> None:
    (quoted,) = [n for n in paper_numbers("wrn16_4") if n.second_hand]
    assert (quoted.value, quoted.role) == (5.55, "beside")


def test_plain110_is_only_a_bound() -> None:
    """Figure 6: 'The error of plain-110 is higher than 60% and not displayed.'"""
    number = judged_against("plain110")
    assert number
    assert (number.relation, number.value) == (">", 60.0)


def test_figure_6_ends_at_table_6() -> None:
    """To the accuracy of reading: so the table is inferred to be the last iteration."""
    assert {n.model for n in PAPERS if n.statistic == READ_OFF} == set(FIGURE_6_END)
    for model in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"):
        number = judged_against(model)
        assert number
        assert FIGURE_6_END[model] == pytest.approx(number.value, abs=0.1)


def test_exact_parameter_counts_round_to_the_printed_ones() -> None:
    for model, millions in PRINTED_MILLIONS_OF_PARAMETERS.items():
        decimals = 2 if millions < 1 and not model.startswith("wrn") else 1
        without_batch_norm = 10_178_490  # what the paper seems to have counted for this net
        counted = without_batch_norm if model == "preact1001" else NUM_PARAMETERS[model]
        assert round(counted / 1e6, decimals) == millions, model


def test_every_full_length_run_has_something_to_be_judged_against() -> None:
    models = {run.model for run in PARAMS.runs.values()}
    full = {model for model in models if not PARAMS.recipe_of(model).short}
    assert len(full) >= 12
    assert {model for model in full if judged_against(model) is None} == set()
    assert {model for model in models - full if judged_against(model)} == set()


def test_a_run_of_every_judged_number_is_one_line() -> None:
    """A net for whatever the papers print, and for what a row of a source project is measured against."""
    printed = {n.model for n in PAPERS} | {n.model for n in SOURCE_PROJECTS if n.role == "judged"}
    assert printed - set(PARAMS.models) == {"wrn28_10_dropout_zca", "preact164_zca"}
    assert {n.role for n in PAPERS if n.model not in PARAMS.models} == {"recorded"}


def test_parameter_counts_are_of_known_models() -> None:
    assert set(NUM_PARAMETERS) <= set(PARAMS.models)


def test_a_row_is_judged_against_one_number() -> None:
    judged = [n.model for n in (*PAPERS, *SOURCE_PROJECTS) if n.role == "judged"]
    assert sorted(judged) == sorted(set(judged))


def test_all_numbers_are_percentages_with_a_source() -> None:
    for number in (*PAPERS, *SOURCE_PROJECTS):
        assert (0 if number.measure == "training error" else 3) < number.value <= 60
        assert number.source
        assert number.statistic

"""What the papers and the two source projects claim about CIFAR-10, in our words. Data only.

A claim says that one or several gaps, each a model minus another model or minus a printed number, lie in a
range. It is tested by `resnet_repro.reporting.claims`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from resnet_repro.evidence import RunEvidence
from resnet_repro.papers import HE_2016_SHORTCUTS, LOWEST, PAPERS, paper_numbers, source_project_numbers
from resnet_repro.params import Verdicts


@dataclass(frozen=True)
class Measure:
    """What is compared: one number per run."""

    name: str
    of: Callable[[RunEvidence], float]
    unit: Literal["points", "nats"] = "points"
    seeds_known: bool = False
    """whether other people's runs tell how far seeds lie apart: so for test errors"""

    def text(self, value: float, sign: bool = False) -> str:
        digits = 2 if self.unit == "points" else 4
        return f"{value:{'+' if sign else ''}z.{digits}f}"


TEST_ERROR = Measure("test error", lambda run: run.metrics.test_error_percent, seeds_known=True)
LOWEST_TEST_ERROR = Measure(
    "lowest test error over epochs", lambda run: run.metrics.lowest_test_error_percent, seeds_known=True
)
TRAIN_ERROR = Measure("training error", lambda run: run.metrics.train_error_percent)
TRAIN_LOSS = Measure("training loss", lambda run: run.metrics.train_loss, "nats")
FIRST_EPOCH_TRAIN_ERROR = Measure(
    "training error of the first epoch", lambda run: float(run.history["train_error_percent"].iloc[0])
)


@dataclass(frozen=True)
class Gap:
    """Model minus reference, means over seeds in the measure's unit, lies between `low` and `high`."""

    model: str
    reference: str | float
    """another model, or a printed number"""
    low: float = -math.inf
    high: float = math.inf
    margin: Literal["margin_points", "wide_margin_points"] | None = None
    """which of `verdicts` in params.yaml widens the range"""
    measure: Measure = TEST_ERROR

    def bounds(self, settings: Verdicts) -> tuple[float, float]:
        margin = getattr(settings, self.margin) if self.margin else 0.0
        return self.low - margin, self.high + margin

    def __str__(self) -> str:
        is_model = isinstance(self.reference, str)
        return f"`{self.model}` − {f'`{self.reference}`' if is_model else f'{self.reference:.2f}'}"


@dataclass(frozen=True)
class Claim:
    name: str
    text: str
    """in our words"""
    source: str
    gaps: tuple[Gap, ...]

    @property
    def models(self) -> tuple[str, ...]:
        return models_of(self.gaps)


def lower(model: str, reference: str, measure: Measure = TEST_ERROR, by: float = 0.0) -> Gap:
    """The model is below the reference, by more than `by`."""
    return Gap(model, reference, high=-by, measure=measure)


def falling(*models: str, measure: Measure = TEST_ERROR) -> tuple[Gap, ...]:
    """Each model is below the one before it."""
    return tuple(lower(model, before, measure) for before, model in pairwise(models))


def rising(*models: str, measure: Measure = TEST_ERROR) -> tuple[Gap, ...]:
    """Each model is above the one before it."""
    return tuple(lower(before, model, measure) for before, model in pairwise(models))


def lowest(model: str, others: Sequence[str], measure: Measure = TEST_ERROR) -> tuple[Gap, ...]:
    return tuple(lower(model, other, measure) for other in others if other != model)


def highest(model: str, others: Sequence[str]) -> tuple[Gap, ...]:
    return tuple(lower(other, model) for other in others if other != model)


def no_gain(model: str, reference: str) -> Gap:
    """The model is not below the reference by more than the margin."""
    return Gap(model, reference, low=0, margin="margin_points")


def as_printed(model: str, margin: Literal["margin_points", "wide_margin_points"]) -> Gap:
    """The model is within the margin of the paper's number."""
    return Gap(model, printed(model), low=0, high=0, margin=margin)


def printed(model: str) -> float:
    """The paper's number that a model is judged against."""
    return paper_numbers(model)[0].value


def printed_lowest(model: str) -> float:
    """What the first source project prints: the lowest test error over all epochs."""
    return next(number.value for number in source_project_numbers(model) if number.statistic == LOWEST)


PLAIN = ("plain20", "plain32", "plain44", "plain56")
RESIDUAL = ("resnet20", "resnet32", "resnet44", "resnet56")
WITH_1X1 = tuple(f"wrn{net}_zca" for net in ("40_2_b131", "40_2_b31", "40_2_b13", "40_2_b311", "22_2_b313"))

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Deeper plain nets are worse",
        "From 20 over 32 and 44 to 56 layers a plain net's test error rises.",
        "He 2015, section 4.2 and Figure 6",
        rising(*PLAIN),
    ),
    Claim(
        "Deeper plain nets are harder to fit",
        "A plain net's training error rises with depth too, so this is not overfitting.",
        "He 2015, section 4.2 and Figure 6",
        rising(*PLAIN, measure=TRAIN_ERROR),
    ),
    Claim(
        "110 plain layers do not train",
        "A plain net of 110 layers stays above 60% test error.",
        "He 2015, Figure 6",
        (Gap("plain110", printed("plain110"), low=0),),
    ),
    Claim(
        "Deeper residual nets are better",
        "From 20 over 32 and 44 to 56 layers a residual net's test error falls.",
        "He 2015, section 4.2 and Table 6",
        falling(*RESIDUAL),
    ),
    Claim(
        "Deeper residual nets are not harder to fit",
        "A residual net's training error falls with depth.",
        "He 2015, section 4.2 and Figure 6",
        falling(*RESIDUAL, measure=TRAIN_ERROR),
    ),
    Claim(
        "110 layers are better still",
        "A residual net of 110 layers has a lower test error than one of 56.",
        "He 2015, section 4.2 and Table 6",
        (lower("resnet110", "resnet56"),),
    ),
    Claim(
        "1202 layers are too many",
        "A residual net of 1202 layers has a higher test error than one of 110.",
        "He 2015, section 4.2 and Table 6",
        (lower("resnet110", "resnet1202"),),
    ),
    Claim(
        "1202 layers can be trained",
        "The training error of the net of 1202 layers ends below 0.1%.",
        "He 2015, section 4.2",
        (Gap("resnet1202", 0.1, high=0, measure=TRAIN_ERROR),),
    ),
    Claim(
        "Residual beats plain",
        "At each depth from 20 to 56 layers the residual net has a lower test error than the plain net.",
        "He 2015, section 4.2 and Figure 6",
        tuple(map(lower, RESIDUAL, PLAIN)),
    ),
    Claim(
        "ResNet-110 needs the warm-up to start",
        "Without it, at a learning rate of 0.1 at once, the first epoch's training error is higher.",
        "He 2015, section 4.2",
        (lower("resnet110", "resnet110_no_warmup", FIRST_EPOCH_TRAIN_ERROR),),
    ),
    Claim(
        "ResNet-110 does not need the warm-up to arrive",
        "Without it, the test error comes out similar.",
        "He 2015, footnote 5",
        (Gap("resnet110_no_warmup", "resnet110", low=0, high=0, margin="margin_points"),),
    ),
    Claim(
        "Whatever stands on the shortcut hurts",
        "Factors, gates, projections or dropout on every shortcut of 110 layers give a higher test error than nothing.",
        "He 2016, section 3.1 and Table 1",
        lowest("resnet110", [n.model for n in PAPERS if n.source == HE_2016_SHORTCUTS]),
    ),
    Claim(
        "A gate hurts less the nearer it starts to the identity",
        "With gates on the shortcut alone a bias of -6 has a lower test error than one of 0.",
        "He 2016, section 3.1 and Table 1",
        (lower("original110_shortcut_gating_6", "original110_shortcut_gating_0"),),
    ),
    Claim(
        "Normalising after the addition hurts",
        "With it, residual nets of 110 and 164 layers have a higher test error than with the original unit.",
        "He 2016, section 4.1 and Table 2",
        (
            lower("resnet110", "original110_bn_after_addition"),
            lower("original164", "original164_bn_after_addition"),
        ),
    ),
    Claim(
        "A ReLU before the addition hurts",
        "Where the residual function ends in one, nets of 110 and 164 layers have a higher test error.",
        "He 2016, section 4.1 and Table 2",
        (
            lower("resnet110", "original110_relu_before_addition"),
            lower("original164", "original164_relu_before_addition"),
        ),
    ),
    Claim(
        "Pre-activation by ReLU alone changes little",
        "Where only the ReLU comes before the weights, the test error is similar to the original unit's.",
        "He 2016, section 4.1 and Table 2",
        tuple(
            Gap(f"original{depth}_relu_only_preactivation", original, low=0, high=0, margin="margin_points")
            for depth, original in ((110, "resnet110"), (164, "original164"))
        ),
    ),
    Claim(
        "Pre-activation helps units of a single layer",
        "With a shortcut around every layer, 110 layers have a lower test error where they are pre-activated.",
        "He 2016, Table 3",
        (lower("preact110_single_layer", "original110_single_layer"),),
    ),
    Claim(
        "Pre-activation helps at 110 layers",
        "The pre-activation unit has a lower test error than the original one.",
        "He 2016, Table 3",
        (lower("preact110", "resnet110"),),
    ),
    Claim(
        "Pre-activation helps at 164 layers",
        "The same with bottleneck units.",
        "He 2016, Table 3",
        (lower("preact164", "original164"),),
    ),
    Claim(
        "Pre-activation helps at 1001 layers",
        "The same with 333 bottleneck units.",
        "He 2016, Table 3",
        (lower("preact1001", "original1001"),),
    ),
    Claim(
        "1001 layers are too many for the original unit",
        "With it, 1001 layers have a higher test error than 164.",
        "He 2016, Table 3",
        (lower("original164", "original1001"),),
    ),
    Claim(
        "1001 layers are better with pre-activation",
        "With it, 1001 layers have a lower test error than 164.",
        "He 2016, section 5 and Table 4",
        (lower("preact1001", "preact164"),),
    ),
    Claim(
        "Pre-activation regularizes",
        "The pre-activation nets of 110 and 164 layers end at a higher training loss and at a lower test error.",
        "He 2016, section 4.2",
        (
            lower("preact110", "resnet110"),
            lower("resnet110", "preact110", TRAIN_LOSS),
            lower("preact164", "original164"),
            lower("original164", "preact164", TRAIN_LOSS),
        ),
    ),
    Claim(
        "1001 pre-activation layers are the easiest to fit",
        "They reach the lowest training loss of all nets of the paper.",
        "He 2016, section 4.2",
        lowest("preact1001", ("resnet110", "preact110", "original164", "preact164", "original1001"), TRAIN_LOSS),
    ),
    Claim(
        "The mini-batch matters",
        "With batches of 64 instead of 128 images the net of 1001 layers has a lower test error.",
        "He 2016, Table 4",
        (lower("preact1001_batch64", "preact1001"),),
    ),
    Claim(
        "Two 3x3 convolutions make the best unit",
        "At about as many parameters B(3,3) has a lower test error than any unit with 1x1 convolutions.",
        "Zagoruyko 2016, section 3 and Table 2",
        lowest("wrn28_2_zca", WITH_1X1),
    ),
    Claim(
        "Two convolutions a unit are the right number",
        "In 40 layers, B(3,3) has a lower test error than units of one, three or four 3x3 convolutions.",
        "Zagoruyko 2016, section 3 and Table 3",
        lowest("wrn40_2_zca", ("wrn40_2_b3_zca", "wrn40_2_b333_zca", "wrn40_2_b3333_zca")),
    ),
    Claim(
        "Widening helps at 40 layers",
        "Each widening, by 1, 2, 4 and 8, lowers the test error.",
        "Zagoruyko 2016, section 3 and Table 4",
        falling("wrn40_1_zca", "wrn40_2_zca", "wrn40_4_zca", "wrn40_8_zca"),
    ),
    Claim(
        "Widening helps at 22 layers",
        "Widening by 10 instead of 8 lowers the test error, as the text says and the table does not.",
        "Zagoruyko 2016, section 3",
        falling("wrn22_8_zca", "wrn22_10_zca"),
    ),
    Claim(
        "Widening helps at 16 layers",
        "Widening by 10 instead of 8 lowers the test error.",
        "Zagoruyko 2016, section 3 and Table 4",
        falling("wrn16_8_zca", "wrn16_10_zca"),
    ),
    Claim(
        "Depth helps wide nets up to 28 layers",
        "Widened by 8, 22 layers have a lower test error than 16; widened by 10, 28 than 22 and 22 than 16.",
        "Zagoruyko 2016, section 3 and Table 4",
        (*falling("wrn16_8_zca", "wrn22_8_zca"), *falling("wrn16_10_zca", "wrn22_10_zca", "wrn28_10_zca")),
    ),
    Claim(
        "40 layers are too many for wide nets",
        "Widened by 8, 40 layers have a higher test error than 22.",
        "Zagoruyko 2016, section 3 and Table 4",
        (lower("wrn22_8_zca", "wrn40_8_zca"),),
    ),
    Claim(
        "16 wide layers beat 164 thin ones",
        "WRN-16-4 has a lower test error than the pre-activation net of 164 layers.",
        "Zagoruyko 2016, Tables 5 and 6",
        (lower("wrn16_4", "preact164"),),
    ),
    Claim(
        "16 wide layers beat all thin and deep nets",
        "WRN-16-8 has a lower test error than each residual net before it, those of a thousand layers included.",
        "Zagoruyko 2016, abstract and Table 5",
        lowest("wrn16_8", ("resnet110", "resnet1202", "preact110", "preact164", "preact1001", "preact1001_batch64")),
    ),
    Claim(
        "40 wide layers beat 1001 thin ones",
        "With about as many parameters, WRN-40-4 has a lower test error than the pre-activation net of 1001 layers.",
        "Zagoruyko 2016, section 3 and Table 5",
        (lower("wrn40_4", "preact1001"),),
    ),
    Claim(
        "28 wider layers beat 1001 thin ones",
        "At the same batch size WRN-28-10 has a lower test error than the pre-activation net of 1001 layers.",
        "Zagoruyko 2016, section 3 and Table 5",
        (lower("wrn28_10", "preact1001"),),
    ),
    Claim(
        "Whitening is worse than mean and deviation",
        "Wide nets have a lower test error with channel means and deviations than with ZCA whitening.",
        "Zagoruyko 2016, section 3, Tables 4 and 5",
        tuple(lower(model, f"{model}_zca") for model in ("wrn16_8", "wrn40_4", "wrn28_10")),
    ),
    Claim(
        "Dropout helps WRN-28-10",
        "With dropout between the convolutions its test error is lower.",
        "Zagoruyko 2016, section 3 and Table 6",
        (lower("wrn28_10_dropout", "wrn28_10"),),
    ),
    Claim(
        "Dropout helps WRN-52-1",
        "With dropout between the convolutions its test error is lower.",
        "Zagoruyko 2016, section 3 and Table 6",
        (lower("wrn52_1_dropout", "wrn52_1"),),
    ),
    Claim(
        "Dropout hurts WRN-16-4",
        "With dropout between the convolutions its test error is higher.",
        "Zagoruyko 2016, section 3 and Table 6",
        (lower("wrn16_4", "wrn16_4_dropout"),),
    ),
    Claim(
        "Within 1%",
        "The test errors of the plain and residual nets of 20 to 56 layers come within a point of the paper's.",
        "a-martyn, README, first paragraph",
        tuple(as_printed(model, "wide_margin_points") for model in (*PLAIN, *RESIDUAL)),
    ),
    Claim(
        "The plain nets come out as printed",
        "The test errors of the four plain nets are about those of the paper.",
        "a-martyn, README, Best test error",
        tuple(as_printed(model, "margin_points") for model in PLAIN),
    ),
    Claim(
        "ResNet-56 is worse than printed",
        "Its test error is above the paper's.",
        "a-martyn, README, Best test error",
        (Gap("resnet56", printed("resnet56"), low=0),),
    ),
    Claim(
        "ResNet-20 is better than printed",
        "Its test error is below the paper's.",
        "a-martyn, README, Best test error",
        (Gap("resnet20", printed("resnet20"), high=0),),
    ),
    Claim(
        "ResNet-20 is better than printed, by a-martyn's recipe",
        "Trained as its code does it, ResNet-20's test error is below the paper's.",
        "a-martyn, README, Best test error",
        (Gap("resnet20_a_martyn", printed("resnet20"), high=0),),
    ),
    Claim(
        "92.67% accuracy",
        "At its best epoch a net of the eight, ResNet-56, has this accuracy or a higher one.",
        "a-martyn, README, second paragraph",
        (Gap("resnet56", printed_lowest("resnet56"), high=0, measure=LOWEST_TEST_ERROR),),
    ),
    Claim(
        "56 residual layers are the best",
        "ResNet-56 has the lowest test error of the plain and residual nets of 20 to 56 layers.",
        "a-martyn, README, Summary",
        lowest("resnet56", (*RESIDUAL, *PLAIN)),
    ),
    Claim(
        "56 plain layers are the worst",
        "Plain-56 has the highest test error of the plain and residual nets of 20 to 56 layers.",
        "a-martyn, README, Summary",
        highest("plain56", (*RESIDUAL, *PLAIN)),
    ),
    Claim(
        "Shortcuts help small nets, by 1.5 points",
        "By a-martyn's recipe ResNet-20's test error is below plain-20's by at least as much.",
        "a-martyn, README, Summary",
        (lower("resnet20_a_martyn", "plain20_a_martyn", by=1.5),),
    ),
    Claim(
        "Running statistics are worth 2 to 3 points",
        "By a-martyn's recipe, batch normalisation that tests with the statistics of the test batch costs "
        "ResNet-20 that much.",
        "a-martyn, README, note 5",
        (Gap("resnet20_a_martyn_batch_statistics", "resnet20_a_martyn", low=2, high=3),),
    ),
    Claim(
        "Running statistics are worth 2 to 3 points by the paper's recipe",
        "There, too, the statistics of the test batch cost ResNet-20 2 to 3 points.",
        "a-martyn, README, note 5",
        (Gap("resnet20_batch_statistics", "resnet20", low=2, high=3),),
    ),
    Claim(
        "Shortcuts gain nothing at 20 layers without running statistics",
        "By a-martyn's recipe and with the test batch's statistics ResNet-20 is no better than plain-20.",
        "a-martyn, README, note 5",
        (no_gain("resnet20_a_martyn_batch_statistics", "plain20_a_martyn_batch_statistics"),),
    ),
    Claim(
        "Shortcuts gain nothing without running statistics by the paper's recipe",
        "There, too, ResNet-20 is no better than plain-20 with the test batch's statistics.",
        "a-martyn, README, note 5",
        (no_gain("resnet20_batch_statistics", "plain20_batch_statistics"),),
    ),
    Claim(
        "Shortcuts gain nothing without normalisation",
        "Note 5 read the other way: with no batch normalisation at all ResNet-20 is no better than plain-20.",
        "a-martyn, README, note 5",
        (no_gain("resnet20_no_norm", "plain20_no_norm"),),
    ),
    Claim(
        "Wide beats bottleneck beats thin",
        "By the Lasagne project's recipe its wide net has the lowest test error, then its 164, then its 110 layers.",
        "Lasagne PreResNet, README, Results",
        falling("lasagne110", "lasagne164", "lasagne_wide"),
    ),
)


def models_of(gaps: Sequence[Gap]) -> tuple[str, ...]:
    """Their models, each once."""
    names = (name for gap in gaps for name in (gap.model, gap.reference))
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))

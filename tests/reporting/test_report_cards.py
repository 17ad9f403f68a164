import re
from pathlib import Path

import pytest

from resnet_repro.reporting.cards import checklist, model_card, training_flops
from resnet_repro.reporting.load import Evidence, load


@pytest.fixture(scope="module")
def evidence(workspace: Path) -> Evidence:
    return load(workspace)


def test_a_card_says_what_was_trained_how_and_with_what_result(evidence: Evidence) -> None:
    row = next(row for row in evidence.rows if row.name == "resnet20")
    card = model_card(row, evidence)
    assert "**8.60%** test error" in card
    assert "- recipe: `he2015`" in card
    assert "stop 64000" in card
    assert re.search(r"\| +8\.60 \| +0\.10 \| +8\.60 \| 8\.50 to 8\.70", card)
    assert "6.93 to" not in card  # 1,000 images here, so wider than with 10,000
    assert "He 2015, Table 6" in card  # the printed numbers and their verdicts
    assert "../runs/resnet20-3/" in card
    assert re.search(r"test error, % \| +in training's precision \| +population statistics", card)


def test_the_cost_of_training_is_steps_times_images_times_the_nets_operations(evidence: Evidence) -> None:
    """ResNet-20's forward pass has 40.8 million multiply-adds; backward is about twice that."""
    row = next(row for row in evidence.rows if row.name == "resnet20")
    forward = 2 * 40.8e6 * 64_000 * 128
    assert training_flops(row, 50_000) == pytest.approx(3 * forward, rel=0.02)


def test_the_checklist_counts_what_was_run(evidence: Evidence) -> None:
    text = checklist(evidence)
    assert "8 of 10 planned" in text
    assert "12.0 hours in all" in text  # eight runs of an hour and a half
    assert "NVIDIA H100 80GB HBM3 (bf16): 7 runs" in text
    assert "at ±0.3 and ±1 points, each verdict with its margin; alpha 0.025 a look" in text

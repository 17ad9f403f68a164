from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resnet_repro import schedule
from resnet_repro.params import Schedule, Warmup, load
from resnet_repro.schedule import learning_rate, resets_momentum, steps_per_epoch, total_steps, warmup_ends

PARAMS = load(Path(__file__).parents[1] / "params.yaml")


def rate(model: str, step: int, num_images: int = 50_000, warm_since: int | None = None) -> float:
    recipe = PARAMS.recipe_of(model)
    return learning_rate(recipe.schedule, step, steps_per_epoch(recipe, num_images), warm_since)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)],
)
def test_he2015_divides_at_32k_and_48k(step, expected):
    assert rate("resnet20", step) == pytest.approx(expected, rel=1e-12)


def test_he2015_stops_at_64k_iterations():
    recipe = PARAMS.recipes["he2015"]
    assert steps_per_epoch(recipe, 50_000) == 391
    assert total_steps(recipe, 50_000) == 64_000


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.01), (399, 0.01), (400, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001)],
)
def test_he2016_warms_up_for_400_iterations(step, expected):
    for model in ("preact110", "preact164", "original164"):
        assert rate(model, step) == pytest.approx(expected, rel=1e-12)


def test_zagoruyko2016_multiplies_by_a_fifth_at_epochs_60_120_160():
    recipe = PARAMS.recipes["wrn2016"]
    assert steps_per_epoch(recipe, 50_000) == 390  # its code drops the last 80 images
    assert total_steps(recipe, 50_000) == 200 * 390
    for epoch, expected in ((0, 0.1), (60, 0.02), (120, 0.004), (160, 0.0008)):
        assert rate("wrn16_4", epoch * 390) == pytest.approx(expected, rel=1e-12)
        assert rate("wrn16_4", (epoch + 1) * 390 - 1) == pytest.approx(expected, rel=1e-12)
        if epoch:
            assert rate("wrn16_4", epoch * 390 - 1) == pytest.approx(5 * expected, rel=1e-12)


def test_zagoruykos_code_lowers_the_rate_and_forgets_the_momentum_one_epoch_before():
    """train.lua: `for epoch=1,200`, and before the epochs 60, 120 and 160 of that count the rate is multiplied by
    0.2 and the optimizer's state is made anew (scripts/train_cifar.sh: epoch_step={60,120,160})."""
    recipe = PARAMS.recipe_of("wrn16_4_released_code")
    lr, resets, steps = 0.1, [], []
    for epoch in range(1, 201):
        if epoch in (60, 120, 160):
            lr *= 0.2
            resets.append((epoch - 1) * 390)
        for step in ((epoch - 1) * 390, epoch * 390 - 1):
            assert rate("wrn16_4_released_code", step) == pytest.approx(lr, rel=1e-12)
    steps = [step for step in range(total_steps(recipe, 50_000)) if resets_momentum(recipe, step, 390)]
    assert steps == resets
    assert not any(resets_momentum(PARAMS.recipes["wrn2016"], 390 * epoch, 390) for epoch in range(200))


def test_he_2016s_torch_code_drops_at_the_start_of_epochs_81_and_122():
    """train.lua of fb.resnet.torch: `epoch >= 122 and 2 or epoch >= 81 and 1 or 0`, counted from 1; its loader
    keeps the last 16 images, and the authors' command says -batchSize 64 -nEpochs 200."""
    recipe = PARAMS.recipe_of("preact1001_batch64")
    assert steps_per_epoch(recipe, 50_000) == 782
    assert total_steps(recipe, 50_000) == 200 * 782
    for epoch in range(1, 201):
        expected = 0.1 * 0.1 ** (2 if epoch >= 122 else 1 if epoch >= 81 else 0)
        for step in ((epoch - 1) * 782, epoch * 782 - 1):
            assert rate("preact1001_batch64", step) == pytest.approx(expected, rel=1e-12)


def test_a_martyn_drops_where_its_csv_files_show_it():
    recipe = PARAMS.recipes["a_martyn"]
    assert total_steps(recipe, 50_000) == 164 * 391
    rates = [rate("resnet20_a_martyn", epoch * 391) for epoch in range(164)]
    assert rates == pytest.approx([0.1] * 83 + [0.01] * 41 + [0.001] * 40)


def test_lasagnes_table():
    """LR_SCHEDULE of its train_nn.py: {0: 0.01, 10: 0.1, 80: 0.01, 120: 0.001}, 45,000 images by 64."""
    recipe = PARAMS.recipes["lasagne"]
    per_epoch = steps_per_epoch(recipe, 45_000)
    assert per_epoch == 704
    assert total_steps(recipe, 45_000) == 200 * 704
    for epoch in range(200):
        expected = 0.01 if epoch < 10 else 0.1 if epoch < 80 else 0.01 if epoch < 120 else 0.001
        for step in (epoch * per_epoch, (epoch + 1) * per_epoch - 1):
            assert rate("lasagne110", step, 45_000) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("warm_since", [391, 782, 33_000])
def test_resnet110s_warm_up_ends_by_its_training_error_and_leaks_nowhere(warm_since):
    assert rate("resnet110", 0) == rate("resnet110", 40_000) == 0.01  # as long as it lasts
    for step in (warm_since - 1, warm_since, 31_999, 32_000, 47_999, 48_000, 63_999):
        after = rate("resnet20", step)  # the paper's without a warm-up
        assert rate("resnet110", step, warm_since=warm_since) == (0.01 if step < warm_since else after)


def test_the_warm_up_ends_below_80_percent():
    warm = PARAMS.recipe_of("resnet110").schedule
    assert [warmup_ends(warm, error) for error in (90.0, 80.0, 79.99)] == [False, False, True]
    assert not warmup_ends(PARAMS.recipe_of("resnet20").schedule, 0.0)
    assert not warmup_ends(PARAMS.recipe_of("preact110").schedule, 0.0)  # a length ends this one


@given(
    st.lists(st.integers(1, 98), unique=True, max_size=5).map(sorted),
    st.floats(1e-3, 10),
    st.floats(0.01, 0.9),
)
def test_the_rates_are_torchs_multistep(drops, start, factor):
    plan = Schedule(unit="epochs", stop=99, learning_rate=start, drops=tuple(drops), drop_factor=factor)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=start)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, factor)
    for epoch in range(99):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(plan, epoch * 7 + 6, 7, None) == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


@given(st.data())
def test_after_the_warm_up_the_rate_never_rises(data):
    drops = data.draw(st.lists(st.integers(1, 98), unique=True, max_size=4).map(sorted))
    length = data.draw(st.none() | st.integers(1, 50))
    until = 80.0 if length is None else None
    plan = Schedule(
        unit=data.draw(st.sampled_from(["steps", "epochs"])),
        stop=99,
        learning_rate=data.draw(st.floats(1e-3, 1)),
        drops=tuple(drops),
        drop_factor=data.draw(st.floats(0.01, 0.99)),
        warmup=data.draw(
            st.none() | st.just(Warmup(learning_rate=0.01, length=length, until_train_error_percent=until))
        ),
    )
    epoch_steps, warm_since = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 99))
    unit = 1 if plan.unit == "steps" else epoch_steps
    first = 0 if plan.warmup is None else warm_since if length is None else length * unit
    rates = [learning_rate(plan, step, epoch_steps, warm_since) for step in range(99 * unit)]
    assert all(value == 0.01 for value in rates[:first])
    assert rates[first:] == sorted(rates[first:], reverse=True)
    without = plan.model_copy(update={"warmup": None})
    assert rates[first:] == [learning_rate(without, step, epoch_steps, None) for step in range(first, 99 * unit)]


@given(
    st.sampled_from(["steps", "epochs"]),
    st.lists(st.integers(1, 29), unique=True, max_size=5).map(sorted),
    st.none() | st.integers(1, 29),
    st.integers(1, 9),
)
def test_the_rate_changes_at_the_drops_and_the_end_of_the_warm_up_and_nowhere_else(unit, drops, length, epoch_steps):
    warmup = None if length is None else Warmup(learning_rate=0.05, length=length)
    rates = {"learning_rate": 1.0, "drops": tuple(drops), "drop_factor": 0.1, "warmup": warmup}
    plan = Schedule(unit=unit, stop=30, **rates)
    each = 1 if unit == "steps" else epoch_steps
    values = [learning_rate(plan, step, epoch_steps, None) for step in range(30 * each)]
    changes = [step for step in range(1, len(values)) if values[step] != values[step - 1]]
    after = [drop for drop in drops if length is None or drop > length]
    assert changes == [each * at for at in ([] if length is None else [length]) + after]
    for drop in after:
        assert values[each * drop] == pytest.approx(0.1 * values[each * drop - 1])


@given(
    st.sampled_from(["steps", "epochs"]),
    st.lists(st.integers(1, 29), unique=True, min_size=1, max_size=5).map(sorted),
    st.integers(1, 9),
)
def test_the_momentum_is_reset_before_the_first_step_with_each_lower_rate(unit, drops, epoch_steps):
    plan = Schedule(unit=unit, stop=30, learning_rate=1.0, drops=tuple(drops), drop_factor=0.1)
    recipe = PARAMS.recipes["wrn2016"].model_copy(update={"schedule": plan, "momentum_at_drops": "reset"})
    steps = range(30 * (1 if unit == "steps" else epoch_steps))
    rates = [learning_rate(plan, step, epoch_steps, None) for step in steps]
    lowered = [step for step in steps if step and rates[step] < rates[step - 1]]
    assert [step for step in steps if resets_momentum(recipe, step, epoch_steps)] == lowered
    kept = recipe.model_copy(update={"momentum_at_drops": "keep"})
    assert not any(resets_momentum(kept, step, epoch_steps) for step in steps)


@given(st.integers(1, 1000), st.integers(1, 200), st.sampled_from(["keep", "drop"]))
def test_steps_of_an_epoch_are_the_data_loaders(num_images, batch_size, last):
    recipe = PARAMS.recipes["he2015"].model_copy(update={"batch_size": batch_size, "last_batch": last})
    loader = torch.utils.data.DataLoader(range(num_images), batch_size=batch_size, drop_last=last == "drop")
    assert schedule.steps_per_epoch(recipe, num_images) == len(loader)

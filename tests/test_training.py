from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_repro.checkpoint import digest_of
from resnet_repro.counter_hash import hash32
from resnet_repro.data.batches import DROPOUT, PaddedImages, epoch_views, pad
from resnet_repro.data.preprocessing import Normalizer
from resnet_repro.engine import ResolvedEngine
from resnet_repro.errors import TrainingError
from resnet_repro.evaluation import Evaluator
from resnet_repro.models import build_model
from resnet_repro.models.initialization import initialize
from resnet_repro.models.layers import Dropout
from resnet_repro.params import Architecture, Augmentation, BatchNorm, Preprocessing, Recipe, Schedule, Warmup
from resnet_repro.training import EpochTotals, Trainer

ENGINE = ResolvedEngine("cpu", "eager", "fp32", 1, True)
SEED, COUNT, SIZE = 3, 10, 8
RECIPE = Recipe(
    schedule=Schedule(unit="steps", stop=9, learning_rate=0.1, drops=(4,), drop_factor=0.1),
    batch_size=4,  # steps of 4, 4 and 2 images
    momentum=0.9,
    weight_decay=0.05,
    initialization="fan_in",
    preprocessing=Preprocessing(kind="pixel_mean"),
    augmentation=Augmentation(padding=2),
)
RATES = [0.1] * 4 + [0.01] * 5
NETS = {
    "plain": Architecture(family="plain", depth=8),
    "resnet": Architecture(family="resnet", depth=8),
    "bottleneck": Architecture(family="preact", depth=11, block="bottleneck"),
    "wide": Architecture(family="wide", depth=10, widen_factor=2, dropout=0.3),
}


def net_of(params: Architecture, dtype: torch.dtype = torch.float32, seed: int = SEED) -> nn.Module:
    net = build_model(params)
    initialize(net, "fan_in", seed)
    return net.to(dtype)


def images_of(dtype: torch.dtype = torch.float32, recipe: Recipe = RECIPE, count: int = COUNT) -> PaddedImages:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    normalizer = Normalizer(torch.full((3, SIZE, SIZE), 128.0), torch.full((3, 1, 1), 1 / 64))
    return pad(recipe.augmentation, images, labels, normalizer.to(torch.device("cpu"), dtype))


def trainer_of(
    params: Architecture, recipe: Recipe = RECIPE, dtype: torch.dtype = torch.float32, seed: int = SEED
) -> Trainer:
    return Trainer(net_of(params, dtype), recipe, images_of(dtype, recipe), seed, ENGINE)


def changed(recipe: Recipe = RECIPE, **changes: Any) -> Recipe:
    return Recipe.model_validate(recipe.model_copy(update=changes).model_dump())


def decays(net: nn.Module, name: str, decayed: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    is_weight = isinstance(net.get_submodule(owner), nn.Conv2d | nn.Linear) and leaf == "weight"
    is_scale = isinstance(net.get_submodule(owner), nn.BatchNorm2d) and leaf == "weight"
    return {"all": True, "weights": is_weight, "weights_and_scales": is_weight or is_scale}[decayed]


def by_hand(
    params: Architecture, recipe: Recipe, sizes: Sequence[int], rates: Sequence[float], epochs: int
) -> tuple[nn.Module, list[tuple[float, float]]]:
    """A loop as any tutorial has it, on the same batches; mean loss and error (percent) of every epoch."""
    net, images = net_of(params, torch.float64), images_of(torch.float64, recipe)
    groups = [
        {"params": [p], "weight_decay": recipe.weight_decay if decays(net, name, recipe.decayed) else 0.0}
        for name, p in net.named_parameters()
    ]
    optimizer = torch.optim.SGD(
        groups, lr=1.0, momentum=recipe.momentum, nesterov=recipe.nesterov, foreach=False, fused=False
    )
    step, results = 0, []
    for epoch in range(epochs):
        views = epoch_views(recipe.augmentation, SEED, epoch, COUNT, recipe.batch_size)
        start, loss_sum, wrong = 0, 0.0, 0
        for size in sizes:
            part = slice(start, start + size)
            for module in net.modules():
                if isinstance(module, Dropout):
                    module.key = hash32(DROPOUT, SEED, torch.tensor(step))
            if recipe.momentum_at_drops == "reset" and step and rates[step] < rates[step - 1]:
                optimizer.state.clear()  # as Zagoruyko's code, which makes the state anew
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
            logits = net(images.take(views.index[part], views.row[part], views.column[part], views.flip[part]))
            labels = images.labels[views.index[part]]
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += float(loss.detach()) * size
            wrong += int((logits.argmax(dim=1) != labels).sum())
            start, step = start + size, step + 1
        results.append((loss_sum / start, 100 * wrong / start))
    return net, results


@pytest.mark.parametrize("model", NETS)
@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, (4, 4, 2)),
        ({"nesterov": True}, (4, 4, 2)),
        ({"decayed": "weights"}, (4, 4, 2)),
        ({"decayed": "weights_and_scales", "nesterov": True}, (4, 4, 2)),
        ({"weight_decay": 0.0}, (4, 4, 2)),
        ({"momentum": 0.0}, (4, 4, 2)),
        ({"last_batch": "drop"}, (4, 4)),
        ({"momentum_at_drops": "reset"}, (4, 4, 2)),  # within the second epoch
        ({"momentum_at_drops": "reset", "nesterov": True, "last_batch": "drop"}, (4, 4)),  # between two
        ({"augmentation": Augmentation(padding=3, fill="reflect", draw="batch", crop="five")}, (4, 4, 2)),
    ],
    ids=str,
)
def test_training_is_torchs_sgd_on_the_same_batches(model, changes, sizes):
    recipe = changed(**changes)
    trainer = trainer_of(NETS[model], recipe, torch.float64)
    totals = [trainer.run_epoch() for _ in range(3 if len(sizes) == 3 else 4)]
    net, results = by_hand(NETS[model], recipe, sizes, RATES, len(totals))
    for (name, value), (_, expected) in zip(trainer.net.state_dict().items(), net.state_dict().items(), strict=True):
        torch.testing.assert_close(
            value, expected, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )
    for epoch, (total, (loss, error)) in enumerate(zip(totals, results, strict=True)):
        assert total is not None
        assert total.train_loss == pytest.approx(loss, rel=1e-10)
        assert total.train_error_percent == pytest.approx(error, rel=1e-12)
        step = (epoch + 1) * len(sizes)
        assert (total.epoch, total.step, total.num_images) == (epoch + 1, step, sum(sizes))
        assert total.learning_rate == pytest.approx(RATES[step - 1])


def test_the_reset_is_that_of_zagoruykos_code():
    """optim.sgd of Torch, whose state is made anew at a drop: its velocity is then the gradient alone."""
    recipe = changed(momentum_at_drops="reset", nesterov=True)
    trainer, kept = (trainer_of(NETS["resnet"], r, torch.float64) for r in (recipe, changed(nesterov=True)))
    for one in (trainer, kept):
        run(one, 4)
    assert digest_of(trainer.state()[0]) == digest_of(kept.state()[0])  # nothing else is touched, nothing too early
    before = {n: p.detach().clone() for n, p in trainer.net.named_parameters()}
    for one in (trainer, kept):
        run(one, 5)
    for name, value in trainer.net.named_parameters():
        velocity = trainer.state()[0][f"momentum.{name}"]  # = the gradient, decay included
        torch.testing.assert_close(value.detach(), before[name] - 0.01 * 1.9 * velocity)
    assert digest_of(trainer.state()[0]) != digest_of(kept.state()[0])


@pytest.mark.parametrize("draw", ["image", "batch"])
def test_momentum_is_kept_over_drops_and_the_rate_is_outside_of_it(draw):
    """v = 0.9 v + g; w = w - rate v, as in Torch (not Caffe, which has the rate inside)."""
    recipe = changed(weight_decay=0.0, augmentation=Augmentation(padding=2, draw=draw))
    trainer = trainer_of(NETS["resnet"], recipe, torch.float64)
    trainer.run_epoch(interrupted=lambda: trainer.step == 2)
    buffers = {n: v for n, v in trainer.state()[0].items() if n.startswith("momentum.")}
    before = {n: p.detach().clone() for n, p in trainer.net.named_parameters()}
    trainer.run_epoch(interrupted=lambda: trainer.step == 3)
    for name, value in trainer.net.named_parameters():
        after = trainer.state()[0][f"momentum.{name}"]
        torch.testing.assert_close(value.detach(), before[name] - 0.1 * after)
        assert not torch.equal(after, buffers[f"momentum.{name}"]) or not after.any()


def test_64_000_iterations_are_163_epochs_and_267_steps():
    class Cheap(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.flatten(1))

    plan = Schedule(unit="steps", stop=64_000, learning_rate=0.1, drops=(32_000, 48_000), drop_factor=0.1)
    recipe = changed(schedule=plan, batch_size=128, augmentation=Augmentation(padding=0))
    zeros = torch.zeros(50_000, 3, 1, 1, dtype=torch.uint8)
    images = PaddedImages(zeros, torch.zeros(3, 1, 1), torch.ones(3, 1, 1), torch.zeros(50_000, dtype=torch.int64), 1)
    trainer = Trainer(Cheap(3, 10), recipe, images, 1, ENGINE)
    assert (trainer.epoch_steps, trainer.total_steps, trainer.total_epochs) == (391, 64_000, 164)
    tensors, counters = trainer.state()
    trainer.load_state(tensors, counters | {"step": 163 * 391})
    assert (trainer.epoch, trainer.done) == (163, False)
    totals = trainer.run_epoch()
    assert totals is not None
    assert (totals.epoch, totals.step, totals.num_images) == (164, 64_000, 267 * 128)
    assert totals.learning_rate == pytest.approx(0.001)
    assert (trainer.epoch, trainer.done) == (164, True)


@pytest.mark.parametrize(
    ("unit", "stop", "last", "steps", "epochs"),
    [
        ("steps", 7, "keep", 7, 3),
        ("steps", 6, "keep", 6, 2),
        ("epochs", 3, "keep", 9, 3),
        ("epochs", 3, "drop", 6, 3),
    ],
)
def test_training_stops_after_exactly_its_steps(unit, stop, last, steps, epochs):
    plan = Schedule(unit=unit, stop=stop, learning_rate=0.01, drops=(), drop_factor=0.1)
    trainer = trainer_of(NETS["plain"], changed(schedule=plan, last_batch=last))
    told: list[int] = []
    totals = []
    while not trainer.done:
        totals.append(trainer.run_epoch(on_step=told.append))
    assert told == list(range(1, steps + 1))
    assert (trainer.step, trainer.epoch, len(totals)) == (steps, epochs, epochs)
    if (unit, stop) == ("steps", 7):
        assert totals[-1] is not None
        assert totals[-1].num_images == 4  # one step of the third epoch


def run(trainer: Trainer, stop: int | None = None) -> list[EpochTotals]:
    """Train to the end, or until `stop` steps are done."""
    totals = []
    while not trainer.done:
        total = trainer.run_epoch(interrupted=lambda: trainer.step == stop)
        if total is None:
            break
        totals.append(total)
    return totals


WARM = changed(
    schedule=RECIPE.schedule.model_copy(update={"warmup": Warmup(learning_rate=0.01, until_train_error_percent=99.9)})
)


@pytest.mark.parametrize("model", NETS)
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 8])
@pytest.mark.parametrize(
    "recipe",
    [changed(nesterov=True), WARM, changed(nesterov=True, momentum_at_drops="reset")],
    ids=["fixed", "warm-up", "reset"],
)
def test_a_resumed_run_has_the_bits_of_the_unbroken_one(model, stop, recipe):
    whole = trainer_of(NETS[model], recipe)
    expected = run(whole)
    broken = trainer_of(NETS[model], recipe)
    before = run(broken, stop)
    assert broken.step == stop
    tensors, counters = broken.state()
    kept = digest_of(tensors)
    run(broken)  # to see that the state is a copy
    assert digest_of(tensors) == kept

    resumed = Trainer(net_of(NETS[model], seed=99), recipe, images_of(), SEED, ENGINE)
    resumed.load_state(tensors, counters)
    assert before + run(resumed) == expected
    assert digest_of(resumed.state()[0]) == digest_of(whole.state()[0])
    assert resumed.state()[1] == whole.state()[1]


def test_a_run_depends_on_its_seed():
    digests = {digest_of(t.state()[0]) for t in [trainer_of(NETS["wide"], seed=s) for s in (1, 1, 2)] if run(t)}
    assert len(digests) == 2


def test_an_interruption_comes_between_steps():
    trainer = trainer_of(NETS["plain"])
    assert trainer.run_epoch(interrupted=lambda: True) is None
    assert trainer.step == 0
    assert digest_of(trainer.state()[0]) == digest_of(trainer_of(NETS["plain"]).state()[0])


class Reader(nn.Module):
    """Reads the label that stands in the middle pixel: always right if image and label stay together."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return -self.scale * (images[:, 0, SIZE // 2, SIZE // 2, None] - torch.arange(10)) ** 2


def reading(recipe: Recipe) -> Trainer:
    labels = torch.arange(37) % 10
    pixels = labels.to(torch.uint8)[:, None, None, None].expand(37, 3, SIZE, SIZE)
    normalizer = Normalizer(torch.zeros(3, SIZE, SIZE), torch.ones(3, 1, 1))
    return Trainer(Reader(), recipe, pad(recipe.augmentation, pixels, labels, normalizer), SEED, ENGINE)


@pytest.mark.parametrize("draw", ["image", "batch"])
@pytest.mark.parametrize("last", ["keep", "drop"])
def test_an_image_is_never_separated_from_its_label(draw, last):
    trainer = reading(changed(augmentation=Augmentation(padding=2, draw=draw), last_batch=last))
    totals = run(trainer)
    assert [total.train_error_percent for total in totals] == [0.0] * len(totals)


def test_a_warm_up_ends_with_the_epoch_whose_error_is_low_enough():
    def recipe(until: float) -> Recipe:
        warmup = Warmup(learning_rate=0.0002, until_train_error_percent=until)
        rates = {"learning_rate": 0.001, "drops": (25,), "drop_factor": 0.1, "warmup": warmup}
        return changed(schedule=Schedule(unit="steps", stop=40, **rates))

    # epochs of 10 steps, all without an error; the drop at step 25 is from 0.001
    rates = [total.learning_rate for total in run(reading(recipe(50.0)))]
    assert rates == pytest.approx([0.0002, 0.001, 0.0001, 0.0001])
    assert {total.learning_rate for total in run(trainer_of(NETS["plain"], recipe(1e-3)))} == {0.0002}


def test_a_loss_that_is_not_finite_names_step_and_rate():
    recipe = changed(schedule=RECIPE.schedule.model_copy(update={"learning_rate": 1e6}))
    trainer = trainer_of(Architecture(family="plain", depth=8, batch_norm=BatchNorm(kind="none")), recipe)
    with pytest.raises(TrainingError, match=r"became (nan|inf) at step 1 \(epoch 1\), at learning rate 1e\+06"):
        run(trainer)


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(TrainingError, match="10 training images do not fill one batch of 128"):
        trainer_of(NETS["plain"], changed(batch_size=128, last_batch="drop"))


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_training_error_in_eval_mode_is_over_the_epochs_augmented_images(epochs):
    """As a-martyn measures it: after the epoch, all of its images, running statistics."""
    trainer = trainer_of(NETS["resnet"], dtype=torch.float64)
    for _ in range(epochs):
        trainer.run_epoch()
    loss, error = trainer.augmented_error(Evaluator(trainer.net, ENGINE))
    views = epoch_views(RECIPE.augmentation, SEED, epochs - 1, COUNT, RECIPE.batch_size)
    with torch.no_grad():
        logits = trainer.net.eval()(trainer.images.take(views.index, views.row, views.column, views.flip))
    labels = trainer.images.labels[views.index]
    assert loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-10)
    assert error == pytest.approx(100 * float((logits.argmax(dim=1) != labels).double().mean()))

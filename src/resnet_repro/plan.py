"""One model's plan: its specification, and a fingerprint of what the code computes for it.

The fingerprint runs the very functions that train, on the CPU, eagerly and in float64, on a few synthetic
8x8 images, and digests the results rounded to what every machine agrees on. So a comment or a moved module
changes nothing, and a changed constant in the step changes the plans it concerns, and with them `train`.
"""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from resnet_repro import schedule
from resnet_repro.counter_hash import hash32
from resnet_repro.data import preprocessing
from resnet_repro.data.batches import epoch_views, pad, split
from resnet_repro.engine import ResolvedEngine
from resnet_repro.evaluation import Evaluator, batches
from resnet_repro.evidence import Plan
from resnet_repro.models import build_model, count_layers, count_parameters
from resnet_repro.models.initialization import initialize
from resnet_repro.params import CIFAR10_TRAIN_IMAGES, Architecture, Params, Recipe
from resnet_repro.training import Trainer

NUM_IMAGES, SIZE, BATCH_SIZE, SEED = 7, 8, 2, 1  # an odd number, so that the last batch is a partial one
STEP_RATE = 1e-3
"""With the papers' 0.1 and two images the loss explodes, and amplifies the last digit's differences."""
ENGINE = ResolvedEngine("cpu", "eager", "fp32", 1, True)


def make_plan(params: Params, model: str) -> Plan:
    entry, recipe = params.models[model], params.recipe_of(model)
    net = build_model(entry.architecture)
    return Plan(
        model=model,
        recipe_name=entry.recipe,
        # the wide nets' depth counts the projections and not the linear layer; the Lasagne project's names
        # say less than it builds
        layers=count_layers(net) if entry.architecture.family == "lasagne" else entry.architecture.depth,
        parameters=count_parameters(net),
        architecture=entry.architecture,
        recipe=recipe.model_copy(update={"source": ""}),  # rewording it must not retrain
        engine=params.engine_of(model),
        fingerprint=fingerprint(entry.architecture, recipe, net),
    )


def fingerprint(architecture: Architecture, recipe: Recipe, net: nn.Module | None = None) -> dict[str, str]:
    """Digests by component: the initial weights, the split and the batches, the learning rate, some steps,
    and the evaluation after them."""
    net = net or build_model(architecture)
    initialize(net, recipe.initialization, SEED, recipe.scales)
    initial_weights = _digest(_tensor_lines(dict(net.named_parameters())))

    net = build_model(_small(architecture))
    initialize(net, recipe.initialization, SEED, recipe.scales)
    images, labels = synthetic_images()
    normalizer = preprocessing.fit(recipe.preprocessing, images).to(torch.device("cpu"), torch.float64)
    # more padding than an 8x8 image can reflect would fail
    small = recipe.augmentation.model_copy(update={"padding": min(recipe.augmentation.padding, SIZE - 1)})
    padded = pad(small, torch.from_numpy(images), torch.from_numpy(labels), normalizer)

    drops = (2,) if recipe.momentum_at_drops == "reset" else ()  # a drop among the steps, for whom it does something
    rate = recipe.schedule.model_copy(
        update={"unit": "steps", "stop": 4, "learning_rate": STEP_RATE, "drops": drops, "warmup": None}
    )
    trainer = Trainer(
        net.double(),
        recipe.model_copy(update={"batch_size": BATCH_SIZE, "schedule": rate, "augmentation": small}),
        padded,
        SEED,
        ENGINE,
    )
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        totals = trainer.run_epoch()
        assert totals is not None
        state, _ = trainer.state()
        evaluator = Evaluator(net, ENGINE)
        evaluation = evaluator.error(batches(torch.from_numpy(images), padded.labels, normalizer))
        probabilities = evaluator.probabilities(batches(torch.from_numpy(images), padded.labels, normalizer))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    return {
        "initial_weights": initial_weights,
        "batches": _digest(_batch_lines(recipe, padded)),
        "learning_rate": _digest(_rate_lines(recipe)),
        "steps": _digest([_number(totals.train_loss), *_tensor_lines(state)]),
        "evaluation": _digest([*map(_number, evaluation), *_tensor_lines({"probabilities": probabilities})]),
    }


def _small(architecture: Architecture) -> Architecture:
    """The net whose steps are taken: at most three blocks a group, since blocks are alike, and a deep net
    amplifies the last digit's differences from layer to layer until no two machines agree. Two images can
    only be grouped one by one."""
    step, offset = architecture.depth_rule
    norm = architecture.batch_norm
    if norm.group_size is not None:
        norm = norm.model_copy(update={"group_size": 1})
    depth = min(architecture.depth, 3 * step + offset)
    return architecture.model_copy(update={"depth": depth, "batch_norm": norm})


def synthetic_images() -> tuple[np.ndarray, np.ndarray]:
    """(NUM_IMAGES, 3, SIZE, SIZE) uint8 images and (NUM_IMAGES,) int64 labels from the counter hash."""
    pixels = hash32(7, torch.arange(NUM_IMAGES * 3 * SIZE * SIZE)) >> 24
    labels = hash32(8, torch.arange(NUM_IMAGES)) % 10
    return pixels.to(torch.uint8).view(NUM_IMAGES, 3, SIZE, SIZE).numpy(), labels.numpy()


def _batch_lines(recipe: Recipe, padded: object) -> Iterable[str]:
    """Order and augmentation of the first, a middle and the last epoch, and the split: integers, so exact."""
    num_images = 1000
    epochs = _epochs(recipe)
    for epoch in (0, epochs // 2, epochs - 1):
        views = epoch_views(recipe.augmentation, SEED, epoch, num_images, recipe.batch_size)
        for values in (views.index, views.row, views.column, views.flip):
            yield hashlib.sha256(values.to(torch.int64).numpy().tobytes()).hexdigest()
    if recipe.held_out:
        trained, held_out = split(num_images, 100, recipe.split_seed)
        yield f"{trained.tolist()} {held_out.tolist()}"


def _epochs(recipe: Recipe) -> int:
    per_epoch = schedule.steps_per_epoch(recipe, CIFAR10_TRAIN_IMAGES)
    return -(-schedule.total_steps(recipe, CIFAR10_TRAIN_IMAGES) // per_epoch)


def _rate_lines(recipe: Recipe) -> Iterable[str]:
    """The rate around every change, for 50,000 images; a warm-up by error lasts, or ended at step 500."""
    plan, per_epoch = recipe.schedule, schedule.steps_per_epoch(recipe, CIFAR10_TRAIN_IMAGES)
    scale = 1 if plan.unit == "steps" else per_epoch
    edges = [0, *(d * scale for d in plan.drops), plan.stop * scale]
    if plan.warmup is not None and plan.warmup.length is not None:
        edges.append(plan.warmup.length * scale)
    steps = [step for edge in edges for step in (edge - 1, edge, edge + 1)]
    for warm_since in (None, 500):
        for step in steps:
            yield f"{step} {schedule.learning_rate(plan, max(step, 0), per_epoch, warm_since):.6e}"
    if recipe.momentum_at_drops == "reset":
        yield f"reset {[step for step in steps if schedule.resets_momentum(recipe, step, per_epoch)]}"
    yield f"{schedule.total_steps(recipe, CIFAR10_TRAIN_IMAGES)}"
    yield f"{[schedule.warmup_ends(plan, error) for error in (79.9, 80.0, 80.1)]}"


def _tensor_lines(tensors: Mapping[str, Tensor]) -> Iterable[str]:
    """Per tensor: name, shape, norm, and a weighted sum that sees where a value stands."""
    for name in sorted(tensors):
        values = tensors[name].detach().double().reshape(-1)
        norm = float(values.norm())
        if norm < 1e-10:  # what should cancel to zero leaves other dust on every machine
            yield f"{name} {tuple(tensors[name].shape)} 0"
            continue
        weights = torch.cos(torch.arange(len(values), dtype=torch.float64))
        yield f"{name} {tuple(tensors[name].shape)} {_number(norm)} {float(values @ weights) / norm:.5f}"


def _number(value: float) -> str:
    return f"{value:.6e}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

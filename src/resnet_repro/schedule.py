"""The learning rate as a function of the step: computed, never mutated."""

from bisect import bisect_right

from resnet_repro.params import Recipe, Schedule


def steps_per_epoch(recipe: Recipe, num_images: int) -> int:
    whole, rest = divmod(num_images, recipe.batch_size)
    return whole + (1 if rest and recipe.last_batch == "keep" else 0)


def total_steps(recipe: Recipe, num_images: int) -> int:
    schedule = recipe.schedule
    return schedule.stop if schedule.unit == "steps" else schedule.stop * steps_per_epoch(recipe, num_images)


def learning_rate(schedule: Schedule, step: int, epoch_steps: int, warm_since: int | None) -> float:
    """The rate of a step (counted from 0).

    warm_since: the step at which a warm-up bound to the training error ended, None while it lasts. The rate
    after a warm-up is the schedule's own at that step, so a warm-up cannot leak into later drops.
    """
    now = step if schedule.unit == "steps" else step // epoch_steps
    warmup = schedule.warmup
    if warmup is not None:
        lasts = now < warmup.length if warmup.length is not None else warm_since is None or step < warm_since
        if lasts:
            return warmup.learning_rate
    return schedule.learning_rate * schedule.drop_factor ** bisect_right(schedule.drops, now)


def resets_momentum(recipe: Recipe, step: int, epoch_steps: int) -> bool:
    """Whether the momentum is set to zero before a step (counted from 0): the first with each lower rate."""
    unit = 1 if recipe.schedule.unit == "steps" else epoch_steps
    return recipe.momentum_at_drops == "reset" and step in (drop * unit for drop in recipe.schedule.drops)


def warmup_ends(schedule: Schedule, train_error_percent: float) -> bool:
    """Whether an epoch with this training error ends a warm-up that is bound to it."""
    warmup = schedule.warmup
    return (
        warmup is not None
        and warmup.until_train_error_percent is not None
        and train_error_percent < warmup.until_train_error_percent
    )

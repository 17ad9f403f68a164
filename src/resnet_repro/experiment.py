"""One run: assembles data, net, engine and checkpoints, trains, and writes the run's files."""

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from resnet_repro import evidence
from resnet_repro.checkpoint import Checkpoint, CheckpointStore, Elsewhere, check_tensors, differences, step_of
from resnet_repro.data import preprocessing
from resnet_repro.data.arrays import Arrays
from resnet_repro.data.batches import epoch_views, pad, split
from resnet_repro.engine import ResolvedEngine, configure, peak_memory_bytes, resolve
from resnet_repro.errors import CheckpointError, OtherMachineError, ReproError, TrainingError
from resnet_repro.evaluation import Evaluator, average_statistics, batches, response_stds
from resnet_repro.evidence import Epoch, Metrics, Origin, Plan, Provenance
from resnet_repro.models import NUM_CLASSES, build_model
from resnet_repro.models.classifier import Classifier, to_fastest_layout
from resnet_repro.models.initialization import initialize
from resnet_repro.params import Engine
from resnet_repro.provenance import go_on, identity_of, make_origin
from resnet_repro.training import Trainer

CHECKPOINT_SECONDS = 10.0
"""Epochs that are shorter share a checkpoint, so that saving stays below 2% of a run."""


ON_OTHER_MACHINE = "RESNET_REPRO_CHECKPOINT"
"""the environment variable that answers what becomes of another kind of machine's checkpoint"""
ANSWERS = ("", "move", "restart")


class InterruptedRunError(ReproError):
    """The run was asked to stop and left a checkpoint."""


class Observer(Protocol):
    """Is told what happens; whatever it does must not fail or block.

    An epoch that is done may be trained again after a crash; one that is saved will not.
    """

    def started(self, plan: Plan, origin: Origin, epochs: Sequence[Epoch], trainer: Trainer) -> None: ...
    def stepped(self, step: int) -> None: ...
    def epoch_done(self, epochs: Sequence[Epoch]) -> None: ...
    def saved(self, epochs: Sequence[Epoch]) -> None: ...
    def interrupted(self, reason: str) -> None: ...
    def failed(self, reason: str) -> None: ...


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = observers

    def started(self, plan: Plan, origin: Origin, epochs: Sequence[Epoch], trainer: Trainer) -> None:
        for observer in self.observers:
            observer.started(plan, origin, epochs, trainer)

    def stepped(self, step: int) -> None:
        for observer in self.observers:
            observer.stepped(step)

    def epoch_done(self, epochs: Sequence[Epoch]) -> None:
        for observer in self.observers:
            observer.epoch_done(epochs)

    def saved(self, epochs: Sequence[Epoch]) -> None:
        for observer in self.observers:
            observer.saved(epochs)

    def interrupted(self, reason: str) -> None:
        for observer in self.observers:
            observer.interrupted(reason)

    def failed(self, reason: str) -> None:
        for observer in self.observers:
            observer.failed(reason)


@dataclass(frozen=True)
class Assembled:
    """A run that is ready to train."""

    trainer: Trainer
    evaluator: Evaluator
    normalizer: preprocessing.Normalizer
    test: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor] | None


def assemble(plan: Plan, seed: int, arrays: Arrays, engine: ResolvedEngine) -> Assembled:
    """Put data and net on the device."""
    device, recipe = engine.torch_device, plan.recipe
    (images, labels), held_out = _training_images(plan, arrays)
    validation = None if held_out is None else (held_out[0].to(device), held_out[1].to(device))
    normalizer = preprocessing.fit(recipe.preprocessing, images.numpy()).to(device)
    padded = pad(recipe.augmentation, images.to(device), labels.to(device), normalizer)
    test = (
        torch.from_numpy(arrays.test_images).to(device),
        torch.from_numpy(arrays.test_labels).long().to(device),
    )

    net = build_model(plan.architecture)
    initialize(net, recipe.initialization, seed, recipe.scales)
    net = to_fastest_layout(net, device)
    return Assembled(Trainer(net, recipe, padded, seed, engine), Evaluator(net, engine), normalizer, test, validation)


def _training_images(plan: Plan, arrays: Arrays) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """Images and labels that are trained on, and those held out of them, on the CPU."""
    images, labels = torch.from_numpy(arrays.train_images), torch.from_numpy(arrays.train_labels).long()
    if not plan.recipe.held_out:
        return (images, labels), None
    trained, held_out = split(len(labels), plan.recipe.held_out, plan.recipe.split_seed)
    return (images[trained], labels[trained]), (images[held_out], labels[held_out])


def train(
    plan_path: Path,
    seed: int,
    arrays: Arrays,
    out: Path,
    checkpoints: Path,
    observer: Observer,
    interruption: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_other_machine: str = "",
) -> Provenance:
    """Train one run to its end, from its last checkpoint if there is one, and write its files to `out`.

    The checkpoint of the end stays: from it, the same files are written again within seconds, byte by byte.

    Args:
        on_other_machine: what to do where another kind of machine was further with this run than this one:
            `move` goes on from there, `restart` puts that aside, and "" is no answer.

    Raises:
        InterruptedRunError: `interruption` said stop; a checkpoint is left.
        OtherMachineError: another kind of machine was further, and there is no answer.
        TrainingError, CheckpointError, RunLockedError: see there.
    """
    if on_other_machine not in ANSWERS:
        raise ReproError(f"{ON_OTHER_MACHINE} is {on_other_machine!r}: it can be move or restart")
    plan, plan_bytes = Plan.read(plan_path), plan_path.read_bytes()
    engine = resolve(plan.engine)
    configure(engine)
    origin = make_origin(plan, seed, engine, arrays.sha256, hashlib.sha256(plan_bytes).hexdigest())
    store = CheckpointStore(checkpoints / origin.key, identity_of(origin))
    with store.locked():
        store.join_parts()
        while (elsewhere := store.elsewhere()) is not None:
            _decide(store, elsewhere, on_other_machine)
        for other in store.others():
            print(f"{other} holds checkpoints of another plan or data set, or older ones: not used", flush=True)
        parts = assemble(plan, seed, arrays, engine)
        trainer, epochs, duration, sessions, peak = parts.trainer, list[Epoch](), 0.0, 1, 0
        if (found := store.load(lambda checkpoint: _resume(trainer, checkpoint))) is not None:
            epochs, duration = found.epochs, found.duration_seconds
            origin = found.origin if trainer.done else go_on(found.origin, origin)
            sessions, peak = found.sessions + 1, found.peak_memory_bytes or 0
            says = f"goes on at step {trainer.step} of {trainer.total_steps}"
            if trainer.done:
                says = (
                    f"was finished, at step {trainer.step}: its files are written again, without training; "
                    f"to train it again, delete {store.run_folder} first"
                )
            print(f"{origin.key} {says}", flush=True)
        observer.started(plan, origin, epochs, trainer)
        clock = time.monotonic() - duration
        saved_at = time.monotonic()

        def save() -> _Content:
            tensors, counters = trainer.state()
            content = _Content(
                counters=counters,
                epochs=epochs,
                origin=origin,
                duration_seconds=time.monotonic() - clock,
                sessions=sessions,
                peak_memory_bytes=max(peak, peak_memory_bytes(engine.device) or 0) or None,
                done=trainer.done,
            )
            store.save(Checkpoint(tensors, content.model_dump(mode="json")), trainer.step)
            observer.saved(epochs)
            return content

        try:
            while not trainer.done:
                epoch = _run_epoch(parts, interruption, observer)
                if epoch is None:
                    save()
                    reason = str(getattr(interruption, "reason", "")) or "it was asked to"
                    observer.interrupted(reason)
                    raise InterruptedRunError(
                        f"{origin.key} stopped at step {trainer.step} of {trainer.total_steps} "
                        f"because {reason}; the same command goes on from there"
                    )
                epochs.append(epoch)
                observer.epoch_done(epochs)
                if time.monotonic() - saved_at >= checkpoint_seconds and not trainer.done:
                    save()
                    saved_at = time.monotonic()
        except (TrainingError, CheckpointError) as error:
            observer.failed(str(error))
            raise type(error)(f"{origin.key}: {error}") from error
        except InterruptedRunError:
            raise
        except Exception as error:
            observer.failed(f"{type(error).__name__}: {error}")
            raise

        return _write_run(out, parts, found if found is not None and found.done else save(), plan_bytes)


def _decide(store: CheckpointStore, elsewhere: Elsewhere, answer: str) -> None:
    """Adopt or put aside what another kind of machine left of this run.

    Raises:
        OtherMachineError: nobody has said which.
    """
    run, step = store.run_folder.name, f"step {step_of(elsewhere.path):,}"
    was, now = elsewhere.identity, store.identity
    differ = differences({key: was[key] for key in was if key in now}, {key: now[key] for key in now if key in was})
    if answer == "move":
        store.adopt(elsewhere)
        print(f"{run} moves here at {step}, from another kind of machine: {differ}", flush=True)
    elif answer == "restart":
        print(f"{run} starts over; what was at {step} is put aside in {store.put_aside(elsewhere)}", flush=True)
    else:
        there, here = (f"{of.get('device_name')} ({of.get('processor', of.get('device'))})" for of in (was, now))
        same = f"The same bits come of that kind of machine only{_threads_of(was, now)}."
        raise OtherMachineError(
            f"{run} reached {step} on {there}, and this is {here}: {differ}. {same} "
            f"Either {ON_OTHER_MACHINE}=move goes on from {elsewhere.path}, and the run is marked "
            f'"{evidence.MOVED}"; or {ON_OTHER_MACHINE}=restart puts that aside, and trains from step 0'
        )


def _threads_of(was: dict[str, Any], now: dict[str, Any]) -> str:
    """What gives the same bits here, too, where only the threads differ."""
    only = all(was[key] == now.get(key) for key in was if key != "threads")
    return f", or here of OMP_NUM_THREADS={was.get('threads')}" if only else ""


class _Content(evidence.Record):
    """What a checkpoint says beside its tensors."""

    counters: dict[str, int | None]
    epochs: list[Epoch]
    origin: Origin
    duration_seconds: float
    sessions: int
    peak_memory_bytes: int | None = None
    done: bool = False
    """at the last step; these two are not in checkpoints of before there was this"""


def _resume(trainer: Trainer, checkpoint: Checkpoint) -> _Content:
    """Raises ValueError, KeyError, TypeError: the checkpoint is not of a state of this trainer."""
    content = _Content.model_validate(checkpoint.content)
    check_tensors(checkpoint.tensors, trainer.state()[0])
    trainer.load_state(checkpoint.tensors, content.counters)
    if trainer.epoch != len(content.epochs):
        raise ValueError(f"step {trainer.step} is not in epoch {len(content.epochs) + 1}")
    if content.done != trainer.done:
        raise ValueError(f"step {trainer.step} of {trainer.total_steps} is not where it says it is")
    return content


def _run_epoch(parts: Assembled, interruption: Callable[[], bool], observer: Observer) -> Epoch | None:
    trainer, started = parts.trainer, time.monotonic()
    before = trainer.step
    totals = trainer.run_epoch(interruption, observer.stepped)
    if totals is None:
        return None
    train_seconds = time.monotonic() - started
    train_loss, train_error = totals.train_loss, totals.train_error_percent
    if trainer.recipe.train_error == "eval":
        train_loss, train_error = trainer.augmented_error(parts.evaluator)
    test_loss, test_error = parts.evaluator.error(batches(*parts.test, parts.normalizer))
    validation: tuple[float | None, float | None] = (None, None)
    if parts.validation is not None:
        validation = parts.evaluator.error(batches(*parts.validation, parts.normalizer))
    # a resumed epoch trained only its remaining steps in this session
    images = totals.num_images * (trainer.step - before) / (trainer.step - (totals.epoch - 1) * trainer.epoch_steps)
    return Epoch(
        epoch=totals.epoch,
        step=totals.step,
        learning_rate=totals.learning_rate,
        train_loss=train_loss,
        train_error_percent=train_error,
        test_loss=test_loss,
        test_error_percent=test_error,
        validation_loss=validation[0],
        validation_error_percent=validation[1],
        seconds=time.monotonic() - started,
        train_seconds=train_seconds,
        images_per_second=images / train_seconds,
        finished_at=time.time(),
    )


def _write_run(out: Path, parts: Assembled, end: _Content, plan_bytes: bytes) -> Provenance:
    """The files of a run from what its last checkpoint says, so that they are the same whenever they are written."""
    origin, epochs = end.origin, end.epochs
    evidence.write_atomically(out / evidence.PLAN, plan_bytes)
    evidence.write_epochs(out, epochs)
    classifier = Classifier(parts.trainer.net, parts.normalizer)
    classifier.save(out / evidence.WEIGHTS, {"model": origin.model, "seed": origin.seed, "plan": origin.plan_sha256})
    provenance = Provenance(
        **origin.model_dump(),
        finished_at=epochs[-1].finished_at,
        duration_seconds=end.duration_seconds,
        sessions=end.sessions,
        peak_memory_bytes=end.peak_memory_bytes,
        images_per_second=statistics.median(epoch.images_per_second for epoch in epochs),
        weights_sha256=evidence.sha256_of(out / evidence.WEIGHTS),
        files_sha256={name: evidence.sha256_of(out / name) for name in (evidence.HISTORY, evidence.TIMING)},
    )
    provenance.write(out / evidence.PROVENANCE)
    return Provenance.read(out / evidence.PROVENANCE)


def evaluate(run: Path, arrays: Arrays, out: Path) -> Metrics:
    """Evaluate a trained run on the test images and write what is committed of it to `out`.

    Raises:
        CheckpointError: a file is not the one that was trained, or the weights do not give their history's error.
        DataError: the data is not what the run was trained on.
    """
    plan, provenance = evidence.read_trained(run)
    classifier = load_classifier(run)
    if arrays.sha256 != provenance.data_sha256:
        raise CheckpointError(
            f"{run} was trained on other data than data/cifar10 now holds: if that was not meant to change, "
            "`resnet-repro doctor`; else train it again"
        )

    # what anybody measures who loads the weights, whatever the training's arithmetic was
    engine = resolve(Engine(mode="eager", precision="fp32"))
    configure(engine)
    device = engine.torch_device
    evaluator = Evaluator(to_fastest_layout(classifier.net, device), engine)
    normalizer = classifier.normalizer.to(device)
    images, labels = (
        torch.from_numpy(arrays.test_images).to(device),
        torch.from_numpy(arrays.test_labels).long(),
    )
    probabilities = evaluator.probabilities(batches(images, labels.to(device), normalizer)).numpy()
    responses: tuple[float, ...] = ()
    averaged = None
    if plan.architecture.is_he2015:
        responses = response_stds(evaluator.net, (seen for seen, _ in batches(images, labels.to(device), normalizer)))
    if average_statistics(evaluator.net, _seen_in_training(plan, provenance.seed, arrays, normalizer, device)):
        _, averaged = evaluator.error(batches(images, labels.to(device), normalizer))
    metrics = _metrics(plan, provenance, evidence.read_history(run), labels.numpy(), probabilities, responses, averaged)

    with evidence.replacing(out) as folder:
        for name in (evidence.PLAN, evidence.PROVENANCE, evidence.HISTORY, evidence.TIMING):
            evidence.write_atomically(folder / name, (run / name).read_bytes())
        evidence.write_predictions(folder / evidence.PREDICTIONS, labels.numpy(), probabilities)
        evidence.write_json(folder / evidence.METRICS, metrics)
    return metrics


def _seen_in_training(
    plan: Plan, seed: int, arrays: Arrays, normalizer: preprocessing.Normalizer, device: torch.device
) -> Iterator[Tensor]:
    """Batches of preprocessed training images, each image once, cropped and flipped as in the first epoch."""
    (images, labels), _ = _training_images(plan, arrays)
    recipe = plan.recipe
    padded = pad(recipe.augmentation, images.to(device), labels.to(device), normalizer)
    views = epoch_views(recipe.augmentation, seed, 0, len(labels), recipe.batch_size, device)
    for start in range(0, len(labels), recipe.batch_size):
        part = slice(start, start + recipe.batch_size)
        yield padded.take(views.index[part], views.row[part], views.column[part], views.flip[part])


def load_classifier(run: Path) -> Classifier:
    """The trained net of a folder that `train` wrote, in eval mode on the CPU.

    Raises:
        CheckpointError: a file of it is missing or is not what was trained.
    """
    plan, _ = evidence.read_trained(run)
    return Classifier.load(run / evidence.WEIGHTS, plan.architecture)


AGREEMENT_PERCENT = {"fp32": 0.2, "bf16": 0.5}
"""How far the error may lie from the history's, by the training's precision. Two devices, or compiled and eager
arithmetic, judge a few of 10,000 images differently; bf16 and fp32 some 30 (of resnet20-1 and plain20-1: 31, 23)."""


def _metrics(
    plan: Plan,
    provenance: Provenance,
    history: Any,
    labels: np.ndarray,
    probabilities: np.ndarray,
    responses: tuple[float, ...],
    averaged: float | None,
) -> Metrics:
    predicted = probabilities.argmax(axis=1)
    error = 100 * int((predicted != labels).sum()) / len(labels)
    last = history.iloc[-1]
    if abs(error - last.test_error_percent) > AGREEMENT_PERCENT[provenance.precision] + 100 / len(labels):
        raise CheckpointError(
            f"{provenance.key}: the weights give {error:.2f}% test error, and their history ends with "
            f"{last.test_error_percent:.2f}%: they do not belong together: train it again"
        )
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    lowest = history.loc[history.test_error_percent.idxmin()]
    best: dict[str, float | int] = {}
    if plan.recipe.held_out:
        row = history.loc[history.validation_error_percent.idxmin()]
        best = {
            "best_validation_epoch": int(row.epoch),
            "best_validation_error_percent": float(row.validation_error_percent),
            "best_validation_test_error_percent": float(row.test_error_percent),
        }
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return Metrics(
        model=plan.model,
        seed=provenance.seed,
        steps=int(last.step),
        epochs=int(last.epoch),
        num_test_images=len(labels),
        test_error_percent=error,
        test_loss=float(-np.log(chosen.clip(1e-30)).mean()),
        training_precision_test_error_percent=float(last.test_error_percent),
        population_statistics_test_error_percent=averaged,
        response_stds=responses or None,
        lowest_test_error_percent=float(lowest.test_error_percent),
        lowest_test_error_epoch=int(lowest.epoch),
        train_error_percent=float(last.train_error_percent),
        train_loss=float(last.train_loss),
        confusion=confusion.tolist(),
        **best,  # type: ignore[arg-type]
    )

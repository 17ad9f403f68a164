"""The engine: images and labels in, one `EpochTotals` per epoch out.

The whole data set lives on the device. A step (batch, forward, backward, update) reads where it is from a
tensor on the device, so the host never waits inside an epoch, and on CUDA a step is one graph replay.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_repro import schedule
from resnet_repro.counter_hash import hash32
from resnet_repro.data.batches import DROPOUT, PaddedImages, Views, epoch_views
from resnet_repro.engine import ResolvedEngine, synchronize
from resnet_repro.errors import TrainingError
from resnet_repro.evaluation import BATCH_SIZE, Evaluator, autocast
from resnet_repro.models.layers import Dropout
from resnet_repro.params import Recipe


@dataclass(frozen=True)
class EpochTotals:
    """What one epoch of training gave; loss in nats, error in percent, over the epoch's augmented images."""

    epoch: int  # counted from 1
    step: int  # steps done at its end
    learning_rate: float  # of its last step
    num_images: int
    train_loss: float
    train_error_percent: float


class Trainer:
    """Trains one net by one recipe; the state of a run is `state()`, and nothing else."""

    def __init__(self, net: nn.Module, recipe: Recipe, images: PaddedImages, seed: int, engine: ResolvedEngine) -> None:
        """
        Args:
            net: initialised, on the engine's device
            images: the training images, on the engine's device; their dtype after `take` is the net's
            seed: of order, augmentation and dropout
        """
        self.net, self.recipe, self.images, self.seed, self.engine = net, recipe, images, seed, engine
        device = engine.torch_device
        self.num_images = len(images.labels)
        self.epoch_steps = schedule.steps_per_epoch(recipe, self.num_images)
        self.total_steps = schedule.total_steps(recipe, self.num_images)
        if self.epoch_steps == 0:
            raise TrainingError(
                f"{self.num_images} training images do not fill one batch of {recipe.batch_size}: "
                "lower batch_size or set last_batch to keep"
            )
        self.step = 0
        self.warm_since: int | None = None

        real = images.mean.dtype
        self._rates = torch.zeros(self.epoch_steps, dtype=real, device=device)
        self._losses = torch.zeros(self.epoch_steps, dtype=real, device=device)
        self._wrong = torch.zeros(self.epoch_steps, dtype=torch.int64, device=device)
        self._steps = torch.arange(self.epoch_steps, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._rate = torch.zeros((), dtype=real, device=device)
        self._views = epoch_views(recipe.augmentation, seed, 0, self.num_images, recipe.batch_size, device)
        self._first_step = torch.zeros(1, dtype=torch.int64, device=device)
        self._dropout_key = torch.zeros((), dtype=torch.int64, device=device)
        dropouts = [module for module in net.modules() if isinstance(module, Dropout)]
        self._has_dropout = bool(dropouts)
        for module in dropouts:
            module.key = self._dropout_key
        self.optimizer = _optimizer(net, recipe, self._rate)
        loss = torch.compile(self._loss, dynamic=False) if engine.compiles else self._loss
        self._batch_loss: Callable[[int], tuple[Tensor, Tensor]] = loss
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self.total_epochs if self.done else self.step // self.epoch_steps

    @property
    def total_epochs(self) -> int:
        return math.ceil(self.total_steps / self.epoch_steps)

    @property
    def done(self) -> bool:
        return self.step >= self.total_steps

    def run_epoch(
        self,
        interrupted: Callable[[], bool] = lambda: False,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> EpochTotals | None:
        """Train to the end of the current epoch; None if `interrupted`, which is asked before every step.

        Raises:
            TrainingError: the loss is not finite (the state is then of no use), or memory ran out.
        """
        epoch, start = self.step // self.epoch_steps, self.step % self.epoch_steps
        first = epoch * self.epoch_steps
        stop = min(self.epoch_steps, self.total_steps - first)
        self._prepare_epoch(epoch, start)
        self.net.train()
        for position in range(start, stop):
            if interrupted():
                return None
            if schedule.resets_momentum(self.recipe, self.step, self.epoch_steps):
                self._reset_momentum()
            self._run_step(self._batch_size(position))
            self.step += 1
            on_step(self.step)
        losses, wrong = self._losses[:stop].cpu().double(), self._wrong[:stop].cpu()
        rates = [self._learning_rate(first + position) for position in range(stop)]
        if not losses.isfinite().all():
            bad = int((~losses.isfinite()).nonzero()[0])
            raise TrainingError(
                f"the loss became {losses[bad].item()} at step {first + bad} (epoch {epoch + 1}), "
                f"at learning rate {rates[bad]:g}"
            )
        sizes = torch.tensor([self._batch_size(position) for position in range(stop)])
        count = int(sizes.sum())
        totals = EpochTotals(
            epoch=epoch + 1,
            step=self.step,
            learning_rate=rates[-1],
            num_images=count,
            train_loss=float((losses * sizes).sum()) / count,
            train_error_percent=100 * int(wrong.sum()) / count,
        )
        ended = schedule.warmup_ends(self.recipe.schedule, totals.train_error_percent)
        if self.warm_since is None and ended:
            self.warm_since = self.step
        return totals

    @torch.no_grad()
    def augmented_error(self, evaluator: Evaluator) -> tuple[float, float]:
        """Loss and error (percent) in eval mode over the last epoch's augmented images (a-martyn)."""
        views = self._views
        parts = [slice(start, start + BATCH_SIZE) for start in range(0, self.num_images, BATCH_SIZE)]
        return evaluator.error(
            (
                self.images.take(views.index[p], views.row[p], views.column[p], views.flip[p]),
                self.images.labels[views.index[p]],
            )
            for p in parts
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs: tensors by name, and counters for JSON."""
        synchronize(self.engine.device)
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            tensors[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
        tensors |= {"epoch.losses": self._losses, "epoch.wrong": self._wrong}
        copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        return copies, {"step": self.step, "warm_since": self.warm_since}

    def load_state(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Go on from `state()`."""
        with torch.no_grad():
            for name, value in self.net.state_dict().items():
                value.copy_(tensors[f"net.{name}"])
            for name, parameter in self.net.named_parameters():
                self.optimizer.state[parameter]["momentum_buffer"].copy_(tensors[f"momentum.{name}"])
            self._losses.copy_(tensors["epoch.losses"])
            self._wrong.copy_(tensors["epoch.wrong"])
        self.step, self.warm_since = counters["step"], counters["warm_since"]

    def _batch_size(self, position: int) -> int:
        return min(self.recipe.batch_size, self.num_images - position * self.recipe.batch_size)

    def _learning_rate(self, step: int) -> float:
        return schedule.learning_rate(self.recipe.schedule, step, self.epoch_steps, self.warm_since)

    def _reset_momentum(self) -> None:
        """In place, since a captured graph reads these very tensors. Zeros are what the optimizer began with: a
        first step from them is that of Torch's optim.sgd with a fresh state."""
        for parameter in self.net.parameters():
            self.optimizer.state[parameter]["momentum_buffer"].zero_()

    def _prepare_epoch(self, epoch: int, position: int) -> None:
        """Fill the epoch's buffers in place: a captured graph reads these very tensors."""
        recipe, device = self.recipe, self.engine.torch_device
        views = epoch_views(recipe.augmentation, self.seed, epoch, self.num_images, recipe.batch_size, device)
        for name in ("index", "row", "column", "flip"):
            getattr(self._views, name).copy_(getattr(views, name))
        first = epoch * self.epoch_steps
        rates = [self._learning_rate(first + position) for position in range(self.epoch_steps)]
        self._rates.copy_(torch.tensor(rates, dtype=self._rates.dtype))
        self._first_step.fill_(first)
        self._position.fill_(position)

    def _loss(self, size: int) -> tuple[Tensor, Tensor]:
        """Mean loss and number of wrong answers of the batch at the current position."""
        places = self._position * self.recipe.batch_size + torch.arange(size, device=self._position.device)
        views: Views = self._views
        index = views.index[places]
        images = self.images.take(index, views.row[places], views.column[places], views.flip[places])
        labels = self.images.labels[index]
        with autocast(self.engine):
            logits = self.net(images.contiguous(memory_format=torch.channels_last))
        logits = logits.to(images.dtype)
        return F.cross_entropy(logits, labels), (logits.argmax(dim=1) != labels).sum()

    def _full_step(self, size: int) -> None:
        """One update, and where it leaves its traces. Runs as it stands, or inside a CUDA graph."""
        # index_select, since `rates[position]` would copy the position to the host
        self._rate.copy_(self._rates.index_select(0, self._position)[0])
        if self._has_dropout:
            self._dropout_key.copy_(hash32(DROPOUT, self.seed, self._first_step + self._position)[0])
        loss, wrong = self._batch_loss(size)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        here = self._steps == self._position  # and no index_copy_, whose deterministic kernel on CUDA sorts
        self._losses.copy_(torch.where(here, loss.detach(), self._losses))
        self._wrong.copy_(torch.where(here, wrong, self._wrong))
        self._position.add_(1)

    def _run_step(self, size: int) -> None:
        try:
            if not self.engine.graphs:
                self._full_step(size)
            else:
                if size not in self._graphs:
                    self._graphs[size] = self._capture(size)
                self._graphs[size].replay()
        except torch.OutOfMemoryError as error:
            raise TrainingError(self._out_of_memory(size)) from error

    def _capture(self, size: int) -> torch.cuda.CUDAGraph:
        """Record one step. The warm-up steps that CUDA graphs need change the state, so it is put back."""
        tensors, counters = self.state()
        position = self._position.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._position.copy_(position)
                self._full_step(size)
        torch.cuda.current_stream().wait_stream(side)
        self._position.copy_(position)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._full_step(size)
        self.load_state(tensors, counters)
        self._position.copy_(position)
        return graph

    def _out_of_memory(self, size: int) -> str:
        text = f"out of memory on {self.engine.device} with batches of {size} images"
        if self.engine.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            peak = torch.cuda.max_memory_allocated()
            text += f"; at most {peak:,} bytes were allocated, {free:,} of {total:,} are free"
        return text + ". The batch size is part of the recipe: free memory or use another device"


def _optimizer(net: nn.Module, recipe: Recipe, rate: Tensor) -> torch.optim.SGD:
    """SGD whose learning rate is a tensor on the device, its momentum allocated from the start."""
    scales = {f"{n}.weight" for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        decays = recipe.decayed == "all" or parameter.dim() > 1
        decays |= recipe.decayed == "weights_and_scales" and name in scales
        (decayed if decays else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=True,
    )
    for parameter in net.parameters():
        # zeros, not None: momentum * 0 + gradient is what torch takes on the first step anyway, and a CUDA
        # graph needs the memory to exist
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer

"""Loss, error and predictions of a net on images without augmentation."""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_repro.data.preprocessing import Normalizer
from resnet_repro.engine import ResolvedEngine

BATCH_SIZE = 500
"""Larger is not faster: on a CPU the activations of a batch should stay near its caches."""


def autocast(engine: ResolvedEngine) -> torch.autocast:
    # no cache of casts: it would outlive the CUDA graph that fills it
    return torch.autocast(engine.device, torch.bfloat16, enabled=engine.precision == "bf16", cache_enabled=False)


class Evaluator:
    """Evaluates one net again and again, compiled once where the engine compiles."""

    def __init__(self, net: nn.Module, engine: ResolvedEngine) -> None:
        self.net, self.engine = net, engine

        def logits(images: Tensor) -> Tensor:
            with autocast(engine):
                return self.net(images.contiguous(memory_format=torch.channels_last)).to(images.dtype)

        # the one compiled function, so that predictions are exactly those whose error was counted
        compiled = torch.compile(logits, dynamic=False) if engine.compiles else logits
        self._logits: Callable[[Tensor], Tensor] = compiled

    @torch.no_grad()
    def error(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Mean loss (nats) and error (percent) over batches of preprocessed images and their labels."""
        self.net.eval()
        sums, count = [], 0
        for images, labels in batches:
            output = self._logits(images)
            loss, wrong = F.cross_entropy(output, labels, reduction="sum"), (output.argmax(dim=1) != labels).sum()
            sums.append(torch.stack([loss, wrong.to(loss.dtype)]))
            count += len(labels)
        loss_sum, wrong_sum = torch.stack(sums).cpu().double().sum(dim=0).tolist()
        return loss_sum / count, 100 * wrong_sum / count

    @torch.no_grad()
    def probabilities(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """(N, 10) float32 class probabilities, on the CPU."""
        self.net.eval()
        return torch.cat([self._logits(images).softmax(dim=1).float().cpu() for images, _ in batches])


@torch.no_grad()
def average_statistics(net: nn.Module, batches: Iterable[Tensor]) -> bool:
    """Put in place of batch normalisation's moving averages the plain averages over batches of training images.

    The authors' released nets were tested so: "strictly computed using average (not moving average)", README of
    KaimingHe/deep-residual-networks. Dropout stays off, as in the test. (Over 12,800 of the training images the error
    of resnet20-1 was 8.17 to 8.23, by which; over all 50,000 in batches of 128 or 500 it was 8.22 and 8.21.)

    Args:
        batches: (B, 3, H, W) preprocessed images each, as the training saw them.

    Returns:
        Whether the net has such statistics; without them nothing is done.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats]
    if not norms:
        return False
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: a cumulative average
        norm.train()
    for images in batches:
        net(images.contiguous(memory_format=torch.channels_last))
    net.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return True


@torch.no_grad()
def response_stds(net: nn.Module, batches: Iterable[Tensor]) -> tuple[float, ...]:
    """Standard deviation of the responses of each 3x3 convolution, in order: of all that its normalisation puts out,
    before addition and nonlinearity (He 2015, Figure 7). For nets of He 2015's units; empty without normalisation.

    Args:
        batches: (B, 3, H, W) preprocessed images each.
    """
    sums: list[Tensor] = []
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    norms = [
        norm
        for conv, norm in pairwise(layers)
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and isinstance(norm, nn.BatchNorm2d)
    ]

    def add_up(_module: nn.Module, _input: object, output: Tensor) -> None:
        values = output.double()
        sums.append(torch.stack([torch.tensor(values.numel()).to(values), values.sum(), values.square().sum()]))

    hooks = [norm.register_forward_hook(add_up) for norm in norms]
    net.eval()
    for images in batches:
        net(images.contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    if not norms:
        return ()
    count, first, second = torch.stack(sums).reshape(-1, len(norms), 3).sum(dim=0).cpu().unbind(dim=1)
    return tuple((second / count - (first / count).square()).sqrt().tolist())


def batches(images: Tensor, labels: Tensor, normalizer: Normalizer) -> Iterator[tuple[Tensor, Tensor]]:
    """(N, 3, H, W) uint8 images, preprocessed in batches, with their int64 labels."""
    for start in range(0, len(images), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        yield normalizer(images[part]), labels[part]

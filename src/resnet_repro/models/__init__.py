"""`build_model`: a net from its specification."""

from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_repro.models.preact import PreActResNet
from resnet_repro.models.resnet import NUM_CLASSES, ResNet
from resnet_repro.params import Architecture

__all__ = ["NUM_CLASSES", "build_model", "count_flops", "count_layers", "count_parameters"]


def build_model(params: Architecture) -> nn.Module:
    """The net of a specification, its weights not yet initialised (`initialization.initialize`)."""
    return ResNet(params) if params.family in ("plain", "resnet") else PreActResNet(params)


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def count_layers(net: nn.Module) -> int:
    """Weighted layers as the papers count them: convolutions and the linear layer, those of shortcuts left out."""
    return sum(
        isinstance(module, nn.Conv2d | nn.Linear) and {"projection", "merge"}.isdisjoint(name.split("."))
        for name, module in net.named_modules()
    )


@cache
def count_flops(params: Architecture, size: int = 32) -> int:
    """Floating-point operations of one training step (forward and backward) per image; a multiply-add counts as two.

    Convolutions and the linear layer alone. Nothing is computed: the net is on the meta device.

    Args:
        size: height and width of the image in pixels.
    """
    batch_size = 2
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_model(params).train()(torch.empty(batch_size, 3, size, size)).sum().backward()
    return counter.get_total_flops() // batch_size

"""`build_model`: a net from its specification."""

from torch import nn

from resnet_repro.models.preact import PreActResNet
from resnet_repro.models.resnet import NUM_CLASSES, ResNet
from resnet_repro.params import Architecture

__all__ = ["NUM_CLASSES", "build_model", "count_layers", "count_parameters"]


def build_model(params: Architecture) -> nn.Module:
    """The net of a specification, its weights not yet initialised (`initialization.initialize`)."""
    return ResNet(params) if params.family in ("plain", "resnet") else PreActResNet(params)


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def count_layers(net: nn.Module) -> int:
    """Weighted layers as the papers count them: convolutions and the linear layer, projections left out."""
    return sum(
        isinstance(module, nn.Conv2d | nn.Linear) and "projection" not in name for name, module in net.named_modules()
    )

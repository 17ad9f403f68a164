"""Plain and residual nets of He et al. 2015, section 4.2: one class, the shortcuts are a switch.

Depth 6n+2: a 3x3 convolution, three groups of n blocks with 16, 32 and 64 channels, global mean, linear.
With bottleneck blocks (depth 9n+2) this is the "original unit" that He et al. 2016 compare with.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_repro.models.layers import Conv3x3, batch_norm, conv1x1, global_mean, shortcut
from resnet_repro.params import Architecture

NUM_CLASSES = 10


class Block(nn.Module):
    """relu(residual(x) + shortcut(x)), normalisation after every convolution; a plain net has no shortcut."""

    def __init__(self, channels: int, width: int, stride: int, kind: str | None, params: Architecture) -> None:
        super().__init__()
        norm = params.batch_norm
        if params.block == "basic":
            self.out_channels = width
            layers = [
                Conv3x3(channels, width, stride, params),
                batch_norm(width, norm),
                nn.ReLU(),
                Conv3x3(width, width, 1, params),
                batch_norm(width, norm),
            ]
        else:  # the stride in the first 1x1, as in the authors' code (resnet-1k-layers)
            self.out_channels = 4 * width
            layers = [
                conv1x1(channels, width, stride, params),
                batch_norm(width, norm),
                nn.ReLU(),
                Conv3x3(width, width, 1, params),
                batch_norm(width, norm),
                nn.ReLU(),
                conv1x1(width, 4 * width, 1, params),
                batch_norm(4 * width, norm),
            ]
        self.residual = nn.Sequential(*layers)
        self.projection: nn.Module | None = None
        if kind is not None:
            self.projection = shortcut(kind, channels, self.out_channels, stride, params)
            if isinstance(self.projection, nn.Conv2d):
                # fb.resnet.torch, where option B and C come from, normalises what it adds to a normalised sum
                self.projection = nn.Sequential(self.projection, batch_norm(self.out_channels, norm))

    def forward(self, input: Tensor) -> Tensor:
        output = self.residual(input)
        if self.projection is not None:
            output = output + self.projection(input)
        return F.relu(output)


class ResNet(nn.Module):
    """(N, 3, 32, 32) float, preprocessed -> (N, 10) logits. Other even sizes divisible by 4 work as well."""

    def __init__(self, params: Architecture) -> None:
        super().__init__()
        kind = None if params.family == "plain" else params.shortcut or ("A" if params.block == "basic" else "B")
        self.stem = Conv3x3(3, 16, 1, params)
        self.stem_norm = batch_norm(16, params.batch_norm)
        channels, groups = 16, []
        for group, width in enumerate((16, 32, 64)):
            blocks = []
            for index in range(params.blocks_per_group):
                block = Block(channels, width, 2 if group > 0 and index == 0 else 1, kind, params)
                channels = block.out_channels
                blocks.append(block)
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.linear = nn.Linear(channels, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.stem_norm(self.stem(images)))
        return self.linear(global_mean(self.groups(features)))

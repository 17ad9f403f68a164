"""Pre-activation nets (He et al. 2016), wide nets (Zagoruyko and Komodakis 2016) and the nets that the
Lasagne project builds under their names: normalisation and ReLU come before each convolution.

One class, since a wide net is a pre-activation net of basic blocks with more channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_repro.models.layers import Conv3x3, Dropout, batch_norm, convolutions, global_mean, shortcut
from resnet_repro.models.resnet import NUM_CLASSES
from resnet_repro.params import Architecture


class PreActBlock(nn.Module):
    """x + residual(activate(x)).

    In the first block of a net the activation comes before the paths split; a projection always takes the
    activated input (He 2016, appendix). An identity or parameter-free shortcut takes x itself, in a wide net's
    first block too (models/wide-resnet.lua; it matters where the factor is 1). Dropout comes before the last
    convolution.
    """

    def __init__(
        self, channels: int, width: int, stride: int, kind: str, first: bool, index: int, params: Architecture
    ) -> None:
        super().__init__()
        self.norm = batch_norm(channels, params.batch_norm)
        weighted = convolutions(channels, width, stride, params)
        self.out_channels = weighted[-1].out_channels
        layers: list[nn.Module] = [weighted[0]]
        for convolution in weighted[1:]:
            layers += [batch_norm(convolution.in_channels, params.batch_norm), nn.ReLU(), convolution]
        if params.dropout:
            layers.insert(-1, Dropout(params.dropout, index))
        self.residual = nn.Sequential(*layers)
        self.projection = shortcut(kind, channels, self.out_channels, stride, params)
        self.activates_both = (first and params.family != "wide") or isinstance(self.projection, nn.Conv2d)

    def forward(self, input: Tensor) -> Tensor:
        activated = F.relu(self.norm(input))
        return self.residual(activated) + self.projection(activated if self.activates_both else input)


class PreActResNet(nn.Module):
    """(N, 3, 32, 32) float, preprocessed -> (N, 10) logits. Other even sizes divisible by 4 work as well."""

    def __init__(self, params: Architecture) -> None:
        super().__init__()
        by_family = "A" if params.family == "preact" and params.block == "basic" else "B"
        kind = params.shortcut or by_family
        self.stem = Conv3x3(3, 16, 1, params)
        channels, index, groups = 16, 0, []
        for group, count in enumerate(blocks_of_groups(params)):
            blocks = []
            for position in range(count):
                width, stride = 16 * 2**group * params.widen_factor, 2 if group > 0 and position == 0 else 1
                block = PreActBlock(channels, width, stride, kind, index == 0, index, params)
                channels = block.out_channels
                blocks.append(block)
                index += 1
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.norm = batch_norm(channels, params.batch_norm)
        self.linear = nn.Linear(channels, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.groups(self.stem(images))
        return self.linear(global_mean(F.relu(self.norm(features))))


def blocks_of_groups(params: Architecture) -> tuple[int, int, int]:
    """Blocks in each group. The Lasagne project's loop for wide nets runs to n+2 in the second and third
    group, so that its "16-4" has 2, 4 and 4 blocks."""
    n = params.blocks_per_group
    return (n, n + 2, n + 2) if params.family == "lasagne" and params.widen_factor > 1 else (n, n, n)

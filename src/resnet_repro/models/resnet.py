"""Plain and residual nets of He et al. 2015, section 4.2: one class, the shortcuts are a switch.

Depth 6n+2: a 3x3 convolution, three groups of n blocks with 16, 32 and 64 channels, global mean, linear.
With bottleneck blocks (depth 9n+2), or units of a single layer (3n+2), this is the "original unit" that
He et al. 2016 compare with; `activation` and `skip` are its variants there.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_repro.models.layers import Conv3x3, Merge, Reshape, ZeroPad, batch_norm, convolutions, global_mean, shortcut
from resnet_repro.params import Architecture

NUM_CLASSES = 10


class Block(nn.Module):
    """relu(residual(x) + shortcut(x)), normalisation after every convolution; a plain net has no shortcut.

    `activation` moves the last normalisation or ReLU, as in He 2016, Figure 4: behind or before the addition,
    or the ReLU before the first convolution. There a projection takes what the convolutions take, an identity
    or parameter-free shortcut x itself, as in the pre-activation nets.
    """

    def __init__(
        self, channels: int, width: int, stride: int, kind: str | None, index: int, params: Architecture
    ) -> None:
        super().__init__()
        self.activation = params.activation
        layers: list[nn.Module] = []
        for convolution in convolutions(channels, width, stride, params):
            self.out_channels = convolution.out_channels
            layers += [convolution, batch_norm(self.out_channels, params.batch_norm), nn.ReLU()]
        moved_out = {"relu_before_addition": 0, "bn_after_addition": 2}.get(self.activation, 1)
        self.residual = nn.Sequential(*layers[: len(layers) - moved_out])
        self.projection: nn.Module | None = None
        if kind is not None:
            self.projection = shortcut(kind, channels, self.out_channels, stride, params)
            if isinstance(self.projection, nn.Conv2d) and self.activation != "bn_after_addition":
                # fb.resnet.torch, where option B and C come from, normalises what it adds to a normalised sum
                self.projection = nn.Sequential(self.projection, batch_norm(self.out_channels, params.batch_norm))
        changed = params.skip.kind != "identity"
        self.merge = Merge(channels, self.out_channels, stride, index, params.skip) if changed else None
        if self.activation == "bn_after_addition":
            self.norm = batch_norm(self.out_channels, params.batch_norm)

    def forward(self, input: Tensor) -> Tensor:
        convolved = F.relu(input) if self.activation == "relu_only_preactivation" else input
        output = self.residual(convolved)
        if self.projection is not None:
            has_weights = not isinstance(self.projection, nn.Identity | ZeroPad | Reshape)
            shortcut = self.projection(convolved if has_weights else input)
            output = output + shortcut if self.merge is None else self.merge(input, shortcut, output)
        if self.activation == "bn_after_addition":
            output = self.norm(output)
        ends_in_relu = self.activation in ("original", "bn_after_addition")
        return F.relu(output) if ends_in_relu else output


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
            for position in range(params.blocks_per_group):
                stride, index = 2 if group > 0 and position == 0 else 1, group * params.blocks_per_group + position
                block = Block(channels, width, stride, kind, index, params)
                channels = block.out_channels
                blocks.append(block)
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        # "an extra activation right after its element-wise addition" in the last unit (He 2016, appendix)
        self.relu_at_the_end = params.activation == "relu_only_preactivation"
        self.linear = nn.Linear(channels, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.groups(F.relu(self.stem_norm(self.stem(images))))
        if self.relu_at_the_end:
            features = F.relu(features)
        return self.linear(global_mean(features))

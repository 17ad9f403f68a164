"""The parts that the three papers' nets share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_repro.counter_hash import hash32
from resnet_repro.params import Architecture, BatchNorm, Skip


class BatchNorm2d(nn.BatchNorm2d):
    """torch's layer, with its training statistics written out where they are compiled for a CPU.

    What torch's compiler makes of the layer there adds value to value in one long chain (Welford's algorithm)
    and rounds the mean and scale that the backward pass reads to bf16. Two passes in float32 are more exact and
    took 3% off ResNet-20's step.
    """

    def forward(self, input: Tensor) -> Tensor:
        written_out = torch.compiler.is_compiling() and input.device.type == "cpu"
        if not (written_out and self.training and self.track_running_stats):
            return super().forward(input)
        assert self.momentum is not None
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        count = input.numel() // input.shape[1]
        mean = values.mean(dim=(0, 2, 3), keepdim=True)
        centred = values - mean
        variance = centred.square().mean(dim=(0, 2, 3), keepdim=True)
        with torch.no_grad():
            self.get_buffer("running_mean").lerp_(mean.flatten(), self.momentum)
            self.get_buffer("running_var").lerp_(variance.flatten() * (count / (count - 1)), self.momentum)
            self.get_buffer("num_batches_tracked").add_(1)
        scale = self.weight[:, None, None] * (variance + self.eps).rsqrt()
        return (centred * scale + self.bias[:, None, None]).to(input.dtype)


class GroupedBatchNorm2d(BatchNorm2d):
    """Batch normalisation whose training statistics are those of `group_size` images at a time, as when the
    papers split 128 images between two GPUs. The running statistics see every group."""

    def __init__(self, channels: int, group_size: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.group_size = group_size

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return torch.cat([super(GroupedBatchNorm2d, self).forward(part) for part in input.split(self.group_size)])


def batch_norm(channels: int, params: BatchNorm) -> nn.Module:
    if params.kind == "none":
        return nn.Identity()
    if params.kind == "running" and params.group_size is not None:
        return GroupedBatchNorm2d(channels, params.group_size, params.eps, params.momentum)
    running = params.kind == "running"
    return BatchNorm2d(channels, eps=params.eps, momentum=params.momentum, track_running_stats=running)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the size at stride 1 (a-martyn's note 2) and halves it at stride 2, by the
    stride itself or, for subsampling `pool`, by a 2x2 average pool behind it (note 3)."""

    def __init__(self, channels: int, out_channels: int, stride: int, params: Architecture, bias: bool = False) -> None:
        self.reflect = params.conv_padding == "reflect"
        self.pool = stride if params.subsampling == "pool" else 1
        super().__init__(
            channels,
            out_channels,
            3,
            stride=stride // self.pool,
            padding=0 if self.reflect else 1,
            bias=bias or params.batch_norm.kind == "none",
        )

    def forward(self, input: Tensor) -> Tensor:
        if self.reflect:
            # Slices and not F.pad: its backward pass has no deterministic kernel on CUDA.
            input = torch.cat([input[:, :, 1:2], input, input[:, :, -2:-1]], dim=2)
            input = torch.cat([input[:, :, :, 1:2], input, input[:, :, :, -2:-1]], dim=3)
        output = super().forward(input)
        return F.avg_pool2d(output, self.pool) if self.pool > 1 else output


def conv1x1(channels: int, out_channels: int, stride: int, params: Architecture, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 1, stride=stride, bias=bias or params.batch_norm.kind == "none")


def convolutions(channels: int, width: int, stride: int, params: Architecture) -> list[nn.Conv2d]:
    """The weighted layers of one unit; a bottleneck's last has 4 x `width` channels.

    The first has the stride (a bottleneck's: the authors' code, resnet-1k-layers), but in the Lasagne project's
    bottlenecks the 3x3; the last of that project's units has a bias.
    """
    bottleneck, lasagne = params.block == "bottleneck", params.family == "lasagne"
    last, strided = len(params.unit) - 1, 1 if bottleneck and lasagne else 0
    layers: list[nn.Conv2d] = []
    for i, kernel in enumerate(params.unit):
        make = Conv3x3 if kernel == 3 else conv1x1
        out_channels = 4 * width if bottleneck and i == last else width
        layers.append(make(channels, out_channels, stride if i == strided else 1, params, lasagne and i == last))
        channels = out_channels
    return layers


class ZeroPad(nn.Module):
    """Option A (He 2015, section 3.3): every other pixel, zeros for the channels that are missing."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels, self.stride = extra_channels, stride

    def forward(self, input: Tensor) -> Tensor:
        kept = input[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, 0, self.extra_channels))


class Reshape(nn.Module):
    """Every pixel goes on: of each 2x2 square, the means of its two rows become two channels. Parameter-free
    like option A, which drops three of four pixels (the question of a-martyn's note 4)."""

    def forward(self, input: Tensor) -> Tensor:
        n, c, h, w = input.shape
        rows = input.reshape(n, c, h // 2, 2, w // 2, 2).mean(dim=5)
        return rows.permute(0, 1, 3, 2, 4).reshape(n, 2 * c, h // 2, w // 2)


def shortcut(kind: str, channels: int, out_channels: int, stride: int, params: Architecture) -> nn.Module:
    """The shortcut of one block; a projection is a 1x1 convolution without a normalisation of its own."""
    same = channels == out_channels and stride == 1
    if kind == "C" or (kind == "B" and not same):
        return conv1x1(channels, out_channels, stride, params)
    if same:
        return nn.Identity()
    if kind == "reshape" and stride == 2 and out_channels == 2 * channels:
        return Reshape()
    return ZeroPad(out_channels - channels, stride)


class Gate(nn.Conv2d):
    """sigmoid(1x1 convolution + bias), the bias starting where it is told (`initialization.initialize`)."""

    def __init__(self, channels: int, out_channels: int, stride: int, initial_bias: float) -> None:
        super().__init__(channels, out_channels, 1, stride=stride)
        self.initial_bias = initial_bias

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).sigmoid()


class Dropout(nn.Module):
    """Dropout whose mask is a hash of (key, layer, element). `key` is set by the training step, so a mask
    depends on seed and step alone: the same on every device, and after a resume."""

    key: Tensor

    def __init__(self, rate: float, layer: int) -> None:
        super().__init__()
        self.rate, self.layer = rate, layer
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return input
        elements = torch.arange(input.numel(), device=input.device).view(input.shape)
        kept = hash32(self.key, self.layer, elements) >= int(self.rate * 2**32)
        return input * kept / (1 - self.rate)


class Merge(nn.Module):
    """(input of the unit, its shortcut, its residual function) -> what is added, each path times what `Skip` says."""

    def __init__(self, channels: int, out_channels: int, stride: int, index: int, params: Skip) -> None:
        super().__init__()
        self.factors = params.shortcut_factor, params.residual_factor
        self.exclusive = params.kind == "exclusive_gating"
        gated = params.kind.endswith("gating")
        self.gate = Gate(channels, out_channels, stride, params.gate_bias) if gated else None
        self.dropout = Dropout(params.dropout, index) if params.kind == "dropout" else None

    def forward(self, input: Tensor, shortcut: Tensor, residual: Tensor) -> Tensor:
        if self.gate is not None:
            gate = self.gate(input)
            return (1 - gate) * shortcut + (gate * residual if self.exclusive else residual)
        if self.dropout is not None:
            return self.dropout(shortcut) + residual
        return self.factors[0] * shortcut + self.factors[1] * residual


def global_mean(features: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C). `mean`, since adaptive pooling has no deterministic backward pass on CUDA."""
    return features.mean(dim=(2, 3))

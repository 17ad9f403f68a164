"""Initial weights: drawn in float64 on the CPU, a generator of its own for every tensor.

A tensor's values depend on seed, name and shape alone: not on the device, on the other layers, or on the
order in which they are made.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn

from resnet_repro.models.layers import Gate


def initialize(net: nn.Module, scheme: str, seed: int, scales: str = "ones") -> None:
    """Set all weights of `net` in place.

    Convolutions are normal with variance 2/fan (He et al. 2015, reference 13 of the paper): `fan_in`,
    `fan_out`; `lasagne` fan-in with Glorot-uniform projections; `a_martyn` fan-out but for the stem, which
    keeps PyTorch's default. The linear layer is uniform within 1/sqrt(fan_in), Torch's default, for the
    first two, He normal for a_martyn, and for lasagne its HeNormal without gain: variance 1/fan_in.
    Biases are 0 but for gates', which start where they are told; the scales of normalisations are 1 or, for
    `uniform`, drawn from U(0, 1).
    """
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(_draw(name, parameter, scheme, seed).to(parameter.dtype))
            elif scales == "uniform" and _is_scale(net, name):
                drawn = _generator(name, seed).uniform(0, 1, tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(drawn).to(parameter.dtype))
            else:
                parameter.fill_(_constant(net, name))


def _constant(net: nn.Module, name: str) -> float:
    """Where a scale or bias starts."""
    module = net.get_submodule(name.rpartition(".")[0])
    if isinstance(module, Gate):
        return module.initial_bias
    return 1.0 if _is_scale(net, name) else 0.0


def _is_scale(net: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(net.get_submodule(owner), nn.BatchNorm2d)


def _generator(name: str, seed: int) -> np.random.Generator:
    """A tensor's own."""
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))


def _draw(name: str, parameter: Tensor, scheme: str, seed: int) -> Tensor:
    """float64 values of the parameter's shape."""
    receptive = math.prod(parameter.shape[2:])
    fan_out, fan_in = parameter.shape[0] * receptive, parameter.shape[1] * receptive
    uniform_default, glorot = 1 / math.sqrt(fan_in), math.sqrt(6 / (fan_in + fan_out))
    is_linear, is_projection = parameter.dim() == 2, ".projection." in name
    normals: dict[str, float] = {"fan_in": fan_in, "fan_out": fan_out, "a_martyn": fan_out, "lasagne": fan_in}

    uniform: float | None = None
    if is_linear:
        uniform = None if scheme in ("a_martyn", "lasagne") else uniform_default
    elif scheme == "a_martyn" and name == "stem.weight":
        uniform = uniform_default
    elif scheme == "lasagne" and is_projection:
        uniform = glorot

    generator, shape = _generator(name, seed), tuple(parameter.shape)
    if uniform is not None:
        return torch.from_numpy(generator.uniform(-uniform, uniform, shape))
    gain = 1 if is_linear and scheme == "lasagne" else 2
    fan = fan_in if is_linear else normals[scheme]
    return torch.from_numpy(generator.standard_normal(shape) * math.sqrt(gain / fan))

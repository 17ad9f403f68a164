import math
from collections import OrderedDict

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from resnet_repro.models import build_model
from resnet_repro.models.initialization import initialize
from resnet_repro.params import Architecture, BatchNorm

SCHEMES = ["fan_in", "fan_out", "a_martyn", "lasagne"]
NETS = {
    "resnet": Architecture(family="resnet", depth=20, shortcut="B"),
    "preact": Architecture(family="preact", depth=20, block="bottleneck"),
    "wide": Architecture(family="wide", depth=10, widen_factor=4),
    "lasagne": Architecture(family="lasagne", depth=20),
}


def weights(params: Architecture, scheme: str = "fan_in", seed: int = 1) -> dict[str, Tensor]:
    net = build_model(params)
    initialize(net, scheme, seed)
    return {name: value.detach() for name, value in net.named_parameters()}


def fans(weight: Tensor) -> tuple[int, int]:
    """As torch counts them."""
    return torch.nn.init._calculate_fan_in_and_fan_out(weight)


def is_normal(weight: Tensor, variance: float) -> bool:
    """Kolmogorov's and Smirnov's test at one in 10,000; the seed is fixed, so no chance is left."""
    return stats.kstest(weight.flatten().numpy(), stats.norm(0, math.sqrt(variance)).cdf).pvalue > 1e-4


def is_uniform(weight: Tensor, bound: float) -> bool:
    uniform = stats.uniform(-bound, 2 * bound)
    inside = bool((weight.abs() <= bound).all())
    return inside and stats.kstest(weight.flatten().numpy(), uniform.cdf).pvalue > 1e-4


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_tensor_has_its_schemes_distribution(net, scheme):
    """He et al. 2015 (reference 13), equations 10 and 14; the source projects' code for theirs."""
    for name, weight in weights(NETS[net], scheme).items():
        if weight.dim() == 1:
            continue
        fan_in, fan_out = fans(weight)
        glorot = math.sqrt(6 / (fan_in + fan_out))
        if name == "linear.weight":
            as_expected = {
                "fan_in": is_uniform(weight, 1 / math.sqrt(fan_in)),  # torch's own
                "fan_out": is_uniform(weight, 1 / math.sqrt(fan_in)),
                "a_martyn": is_normal(weight, 2 / fan_in),  # nn.init.kaiming_normal
                "lasagne": is_normal(weight, 1 / fan_in),  # lasagne.init.HeNormal(), whose gain is 1
            }[scheme]
        elif scheme == "a_martyn" and name == "stem.weight":
            as_expected = is_uniform(weight, 1 / math.sqrt(27))  # torch's own, for 3 channels of 3x3
        elif scheme == "lasagne" and ".projection." in name:
            as_expected = is_uniform(weight, glorot)
        else:
            as_expected = is_normal(weight, 2 / (fan_out if scheme in ("fan_out", "a_martyn") else fan_in))
        assert as_expected, name


def test_torchs_own_linear_layer_is_what_is_imitated():
    torch.manual_seed(0)
    assert is_uniform(nn.Linear(64, 100).weight.detach(), 1 / math.sqrt(64))
    assert is_uniform(nn.Conv2d(3, 100, 3).weight.detach(), 1 / math.sqrt(27))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scales_are_one_and_every_bias_and_shift_zero(scheme):
    for kind in ("running", "none"):
        net = build_model(Architecture(family="lasagne", depth=8, batch_norm=BatchNorm(kind=kind)))
        initialize(net, scheme, 1)
        for name, module in net.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            bias = getattr(module, "bias", None)
            assert bias is None or not bias.any(), name


@pytest.mark.parametrize("net", NETS)
def test_uniform_scales_are_torchs_of_2016(net):
    """BatchNormalization.lua of Torch's nn: `self.weight:uniform()`, which is U(0, 1), and `self.bias:zero()`; the
    convolutions and the linear layer keep the bits that they have with scales of 1."""
    drawn = build_model(NETS[net])
    initialize(drawn, "fan_in", 1, "uniform")
    ones, found = weights(NETS[net]), {name: value.detach() for name, value in drawn.named_parameters()}
    names = {f"{name}.weight" for name, module in drawn.named_modules() if isinstance(module, nn.BatchNorm2d)}
    scales = torch.cat([found[name] for name in names])
    assert stats.kstest(scales.numpy(), stats.uniform(0, 1).cdf).pvalue > 1e-4
    assert scales.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / len(scales)))
    assert scales.var().item() == pytest.approx(1 / 12, abs=4 * math.sqrt(1 / 180 / len(scales)))
    assert (0 <= scales.min() < 0.05, 0.95 < scales.max() <= 1) == (True, True)
    assert all(torch.equal(value, ones[name]) for name, value in found.items() if name not in names)
    firsts = {tuple(found[name][:4].tolist()) for name in names}
    assert len(firsts) == len(names)  # each layer draws its own


def test_a_seed_gives_its_bits_and_another_seed_others():
    first, again, other = (weights(NETS["resnet"], seed=seed) for seed in (1, 1, 2))
    drawn = [name for name, value in first.items() if value.dim() > 1]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_layers_of_the_same_shape_differ():
    drawn = [value for value in weights(NETS["resnet"]).values() if value.dim() > 1]
    firsts = [value.flatten()[:16] * math.sqrt(fans(value)[0]) for value in drawn]  # before the scaling
    for i, one in enumerate(firsts):
        assert not any(torch.allclose(one, other) for other in firsts[:i])


def test_a_tensor_does_not_depend_on_the_others():
    """Nets share the weights of the layers that they share; the order of making them does not count."""
    shallow, deep = (weights(Architecture(family="resnet", depth=depth)) for depth in (20, 32))
    assert all(torch.equal(value, deep[name]) for name, value in shallow.items())
    layers = [("a", nn.Conv2d(3, 8, 3)), ("b", nn.Conv2d(8, 8, 3)), ("c", nn.Linear(8, 10))]
    forwards, backwards = nn.Sequential(OrderedDict(layers)), nn.Sequential(OrderedDict(reversed(layers)))
    initialize(forwards, "fan_in", 3)
    expected = {name: value.clone() for name, value in forwards.state_dict().items()}
    initialize(backwards, "fan_in", 3)
    assert all(torch.equal(value, expected[name]) for name, value in backwards.state_dict().items())


def test_float32_is_the_rounded_float64():
    """So that the bits do not depend on how a CPU draws float32."""
    nets = [build_model(NETS["preact"]) for _ in range(2)]
    nets[1].double()
    for net in nets:
        initialize(net, "fan_out", 5, "uniform")
    for name, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[name].to(value.dtype)), name

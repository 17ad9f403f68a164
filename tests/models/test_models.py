from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_repro.models import build_model, count_flops, count_layers, count_parameters
from resnet_repro.models.initialization import initialize
from resnet_repro.models.layers import Dropout
from resnet_repro.params import Architecture, BatchNorm, load

MODELS = load(Path(__file__).parents[2] / "params.yaml").models
PARAMETERS = {
    # He 2015, Table 6: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M, 19.4M; exact ones as peers print them
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
    # He 2016, Tables 2 and 3: what moves a ReLU or a normalisation, or adds shortcuts without weights, leaves all
    **{f"{unit}110_single_layer": 1_727_962 for unit in ("original", "preact")},
    "original110_bn_after_addition": 1_727_962,
    "original110_relu_before_addition": 1_727_962,
    "original110_relu_only_preactivation": 1_727_962,
    # He 2016, Table 4: 1.7M, 1.7M, 10.2M (which leaves normalisation out: 10,178,490)
    "preact110": 1_727_962,
    "preact164": 1_703_258,
    "preact1001": 10_327_706,
    # Zagoruyko 2016, Tables 4 to 6; 40-4 as in the released log
    "wrn16_4": 2_748_890,
    "wrn16_8": 10_961_370,
    "wrn40_4": 8_949_210,
    "wrn28_10": 36_479_194,
    "wrn28_10_dropout": 36_479_194,
    "wrn40_1_zca": 563_930,
    "wrn40_2_zca": 2_243_546,
    "wrn40_8_zca": 35_748_314,
    "wrn16_10_zca": 17_116_634,
    "wrn22_8_zca": 17_158_106,
    "wrn22_10_zca": 26_797_914,
    "wrn28_12_zca": 52_517_850,
    # the Lasagne project's code
    "lasagne110": 1_732_538,
    "lasagne164": 1_711_322,
}


def architecture(family: str, depth: int = 8, **options: object) -> Architecture:
    return Architecture.model_validate({"family": family, "depth": depth, **options})


def on_paper(params: Architecture) -> nn.Module:
    """The net without memory for its weights."""
    with torch.device("meta"):
        return build_model(params)


def named(model: str) -> nn.Module:
    return on_paper(MODELS[model].architecture)


def blocks(net: nn.Module) -> list[nn.Module]:
    return [block for group in net.groups for block in group]


@pytest.mark.parametrize(("model", "parameters"), PARAMETERS.items())
def test_the_papers_parameter_counts(model, parameters):
    assert count_parameters(named(model)) == parameters


def test_the_lasagne_projects_wide_net_is_no_16_4():
    net = named("lasagne_wide")
    assert round(count_parameters(net) / 1e6, 2) == 5.70  # its article says 2.7
    assert [len(group) for group in net.groups] == [2, 4, 4]


def test_the_paper_counts_resnet1001_without_normalisation():
    net = named("preact1001")
    norms = sum(count_parameters(module) for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert count_parameters(net) - norms == 10_178_490


def test_the_flops_of_resnet20s_training_step():
    first = 32 * 32 * 16 * (9 * 3)
    full = 32 * 32 * 16 * (9 * 16)  # a 3x3 layer; half the size with twice the channels makes as many
    multiply_adds = first + 6 * full + 2 * (full // 2 + 5 * full) + 64 * 10
    assert multiply_adds == 40_551_040
    # Backward, every layer has a gradient by its weights and one by its input; but nobody asks for the images'.
    assert count_flops(MODELS["resnet20"].architecture) == 2 * (3 * multiply_adds - first)


@pytest.mark.parametrize("model", ["preact164", "wrn16_4_dropout", "lasagne_wide", "resnet20_statistics64"])
def test_flops_are_the_same_on_paper_and_computed(model):
    params = MODELS[model].architecture
    with FlopCounterMode(display=False) as counter:
        build_model(params).train()(torch.randn(2, 3, 8, 8)).sum().backward()
    assert count_flops(params, size=8) == counter.get_total_flops() / 2


@pytest.mark.parametrize(
    "model", [m for m, p in MODELS.items() if p.architecture.family in ("plain", "resnet", "preact")]
)
def test_a_name_says_how_many_weighted_layers(model):
    assert count_layers(named(model)) == MODELS[model].architecture.depth


@pytest.mark.parametrize("model", MODELS)
def test_a_depth_says_how_many_blocks(model):
    params = MODELS[model].architecture
    if params.block == "bottleneck":  # 9n+2, He 2016
        n = (params.depth - 2) // 9
    elif params.family == "wide":  # 6n+4, Zagoruyko 2016
        n = (params.depth - 4) // (3 * len(params.kernels))
    elif params.kernels == (3,):
        n = (params.depth - 2) // 3
    else:  # 6n+2, He 2015
        n = (params.depth - 2) // 6
    expected = [2, 4, 4] if model == "lasagne_wide" else [n, n, n]
    assert [len(group) for group in named(model).groups] == expected


@pytest.mark.parametrize("depth", [20, 56])
def test_a_plain_net_is_the_residual_net_without_shortcuts(depth):
    plain, residual = (on_paper(architecture(family, depth)) for family in ("plain", "resnet"))
    assert count_parameters(plain) == count_parameters(residual)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in residual.named_parameters()]
    assert all(block.projection is None for block in blocks(plain))


@pytest.mark.parametrize("family", ["resnet", "preact"])
@pytest.mark.parametrize(
    ("kind", "projections"),
    [("A", []), ("reshape", []), ("B", [(16, 32), (32, 64)]),
     ("C", [(16, 16)] * 3 + [(16, 32)] + [(32, 32)] * 2 + [(32, 64)] + [(64, 64)] * 2)],
)  # fmt: skip
def test_which_shortcuts_have_weights(family, kind, projections):
    net = on_paper(architecture(family, 20, shortcut=kind))
    found = [m for n, m in net.named_modules() if "projection" in n and isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in found] == projections
    assert {m.kernel_size for m in found} <= {(1, 1)}
    assert all(m.bias is None for m in found)


@pytest.mark.parametrize(
    ("family", "block", "expected"),
    [
        ("resnet", "basic", "A"),
        ("resnet", "bottleneck", "B"),
        ("preact", "basic", "A"),
        ("preact", "bottleneck", "B"),
        ("wide", "basic", "B"),
        ("lasagne", "basic", "B"),
        ("lasagne", "bottleneck", "B"),
    ],
)
def test_a_familys_own_shortcut(family, block, expected):
    depth = 11 if block == "bottleneck" else 10 if family == "wide" else 8
    own, named = (
        on_paper(architecture(family, depth, block=block, shortcut=kind)).state_dict() for kind in (None, expected)
    )
    assert {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in named.items()}


TABLE_1 = (  # He 2016
    {"kind": "constant_scaling", "shortcut_factor": 0.5},
    {"kind": "constant_scaling", "shortcut_factor": 0.5, "residual_factor": 0.25},
    {"kind": "exclusive_gating", "gate_bias": -6.0},
    {"kind": "shortcut_only_gating", "gate_bias": -6.0},
    {"kind": "dropout", "dropout": 0.5},
)
FIGURE_4 = ("original", "bn_after_addition", "relu_before_addition", "relu_only_preactivation")
VARIANTS = [
    *(architecture(f, shortcut=s) for f in ("resnet", "preact") for s in ("A", "B", "C", "reshape")),
    architecture("plain"),
    architecture("resnet", 11, block="bottleneck"),
    architecture("preact", 11, block="bottleneck"),
    *(architecture(f, kernels=[3]) for f in ("resnet", "preact")),
    architecture("wide", 13, kernels=[1, 3, 1], widen_factor=2),
    *(architecture("resnet", skip=skip) for skip in TABLE_1),
    *(architecture("resnet", activation=a) for a in FIGURE_4),
    *(architecture("resnet", 11, block="bottleneck", activation=a) for a in FIGURE_4[1:]),
    architecture("wide", 10, widen_factor=2, dropout=0.3),
    architecture("lasagne"),
    architecture("lasagne", 11, block="bottleneck"),
    architecture("lasagne", 10, widen_factor=2),
    *(architecture(f, subsampling="pool") for f in ("plain", "resnet", "preact")),
    *(architecture(f, conv_padding="reflect") for f in ("resnet", "preact")),
    architecture("resnet", conv_padding="reflect", subsampling="pool"),
    *(architecture(f, batch_norm={"kind": k}) for f in ("resnet", "preact") for k in ("batch", "none")),
    architecture("resnet", batch_norm={"group_size": 2}),
]


@pytest.mark.parametrize("params", VARIANTS, ids=lambda p: str(p.model_dump(exclude_defaults=True)))
@pytest.mark.parametrize("size", [32, 8])
def test_sizes_halve_and_channels_double(params, size):
    net = build_model(params)
    initialize(net, "fan_in", 1)
    shapes: list[tuple[int, ...]] = []
    for group in net.groups:
        group.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    logits = net(torch.rand(4, 3, size, size))
    width = 16 * params.widen_factor * (4 if params.block == "bottleneck" else 1)
    assert shapes == [(width * 2**g, size // 2**g, size // 2**g) for g in range(3)]
    assert logits.shape == (4, 10)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


class Weights:
    """Takes a net's weights one by one, in the order of the net's layers."""

    def __init__(self, net: nn.Module, eps: float) -> None:
        self.parameters: Iterator[Tensor] = iter(list(net.parameters()))
        self.eps = eps

    def convolve(self, x: Tensor, stride: int = 1, bias: bool = False) -> Tensor:
        weight = next(self.parameters)
        return F.conv2d(x, weight, next(self.parameters) if bias else None, stride, padding=weight.shape[-1] // 2)

    def normalize(self, x: Tensor) -> Tensor:
        """Ioffe and Szegedy 2015, algorithm 1."""
        mean = x.mean(dim=(0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        scale, shift = (next(self.parameters)[:, None, None] for _ in range(2))
        return scale * (x - mean) / (variance + self.eps).sqrt() + shift

    def activate(self, x: Tensor) -> Tensor:
        return self.normalize(x).clamp(min=0)

    def classify(self, x: Tensor) -> Tensor:
        weight, bias = next(self.parameters), next(self.parameters)
        assert next(self.parameters, None) is None
        return x.mean(dim=(2, 3)) @ weight.T + bias


def as_in_he2015(w: Weights, x: Tensor, n: int, residual: bool) -> Tensor:
    """Section 3.2, equation 1: y = F(x) + x, a second nonlinearity after the addition; section 4.2."""
    x = w.activate(w.convolve(x))
    for group in range(3):
        for block in range(n):
            stride = 2 if group > 0 and block == 0 else 1
            y = w.normalize(w.convolve(w.activate(w.convolve(x, stride))))
            if residual:
                y[:, : x.shape[1]] += x[:, :, ::stride, ::stride]  # option A: zeros for new channels
            x = y.clamp(min=0)
    return w.classify(x)


def as_in_figure_4(w: Weights, x: Tensor, n: int, layers: int, order: str = "original") -> Tensor:
    """He 2016, Figure 4 (a) to (d), with the projections of docs/assumptions.md where there are three layers."""
    x = w.activate(w.convolve(x))
    for group in range(3):
        for block in range(n):
            stride = 2 if group > 0 and block == 0 else 1
            start = x.clamp(min=0) if order == "relu_only_preactivation" else x
            y = w.convolve(start, stride)
            for _ in range(layers - 1):
                y = w.convolve(w.activate(y))
            if order != "bn_after_addition":
                y = w.normalize(y)
            if order == "relu_before_addition":
                y = y.clamp(min=0)
            if y.shape == x.shape:
                x = x + y
            elif layers == 3:
                projected = w.convolve(start, stride)
                x = y + (projected if order == "bn_after_addition" else w.normalize(projected))
            else:  # option A
                y[:, : x.shape[1]] += x[:, :, ::stride, ::stride]
                x = y
            if order == "bn_after_addition":
                x = w.normalize(x)
            if order in ("original", "bn_after_addition"):
                x = x.clamp(min=0)
    return w.classify(x.clamp(min=0) if order == "relu_only_preactivation" else x)


def as_in_table_1(
    w: Weights,
    x: Tensor,
    n: int,
    kind: str,
    shortcut_factor: float = 1,
    residual_factor: float = 1,
    gate_bias: float = 0,
) -> Tensor:
    """He 2016, Table 1 and section 3.1: y = a h(x) + b F(x), with constants or g(x) = sigmoid(W x + b) in their
    place; a ReLU after the addition. `gate_bias` is what the bias started at, no part of the function."""
    x = w.activate(w.convolve(x))
    for group in range(3):
        for block in range(n):
            stride = 2 if group > 0 and block == 0 else 1
            y = w.normalize(w.convolve(w.activate(w.convolve(x, stride))))
            h = torch.zeros_like(y)
            h[:, : x.shape[1]] = x[:, :, ::stride, ::stride]  # option A
            if kind.endswith("gating"):
                g = 1 / (1 + torch.exp(-w.convolve(x, stride, bias=True)))
                h, y = (1 - g) * h, (g * y if kind == "exclusive_gating" else y)
            x = (shortcut_factor * h + residual_factor * y).clamp(min=0)
    return w.classify(x)


def as_in_he2016(w: Weights, x: Tensor, n: int, layers: int) -> Tensor:
    """Equations 1 and 5, and the appendix: x + F(x), full pre-activation; the first unit is activated before
    the paths split, and a projection is fed by the pre-activation (its released Lua code)."""
    x = w.convolve(x)
    for group in range(3):
        for block in range(n):
            stride = 2 if group > 0 and block == 0 else 1
            activated = w.activate(x)
            y = w.convolve(activated, stride)
            for _ in range(layers - 1):
                y = w.convolve(w.activate(y))
            if y.shape == x.shape:
                x = (activated if group == block == 0 else x) + y
            elif layers == 3:
                x = w.convolve(activated, stride) + y
            else:  # option A
                source = activated if group == block == 0 else x
                y[:, : x.shape[1]] += source[:, :, ::stride, ::stride]
                x = y
    return w.classify(w.activate(x))


def as_in_zagoruyko2016(
    w: Weights, x: Tensor, n: int, dropouts: Sequence[nn.Module] = (), convolutions: int = 2
) -> Tensor:
    """Section 2 and models/wide-resnet.lua: B(3,3), dropout between the convolutions; a shortcut is a
    projection of the activated input where the channels change, and else the input itself, in the first block
    too."""
    x, masks = w.convolve(x), iter(dropouts)
    for group in range(3):
        for block in range(n):
            stride = 2 if group > 0 and block == 0 else 1
            activated = w.activate(x)
            y = w.convolve(activated, stride)
            for _ in range(convolutions - 1):
                y = w.activate(y)
                y = w.convolve(next(masks)(y) if dropouts else y)
            x = y + (x if y.shape == x.shape else w.convolve(activated, stride))
    return w.classify(w.activate(x))


def as_in_lasagne(w: Weights, x: Tensor, counts: Sequence[int], bottleneck: bool = False) -> Tensor:
    """Its models.py, with the correction of 2016-08-12: the projection sees the pre-activation. The last
    convolution of a block has a bias; a bottleneck has its stride in the 3x3."""
    x = w.activate(w.convolve(x))
    for group, count in enumerate(counts):
        for block in range(count):
            first, stride = group == block == 0, 2 if group > 0 and block == 0 else 1
            activated = x if first else w.activate(x)
            if bottleneck:
                y = w.activate(w.convolve(activated))
                y = w.convolve(w.activate(w.convolve(y, stride)), bias=True)
            else:
                y = w.convolve(w.activate(w.convolve(activated, stride)), bias=True)
            x = y + (x if y.shape == x.shape else w.convolve(activated, stride))
    return w.classify(w.activate(x))


def random_net(params: Architecture) -> nn.Module:
    """In float64, with scales, shifts and biases that are not neutral."""
    net = build_model(params)
    initialize(net, "fan_in", 1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net.double()


@pytest.mark.parametrize(
    ("params", "paper"),
    [
        (architecture("plain", 14), partial(as_in_he2015, n=2, residual=False)),
        (architecture("resnet", 20), partial(as_in_he2015, n=3, residual=True)),
        *(
            (architecture("resnet", layers * 6 + 2, **block, activation=order),
             partial(as_in_figure_4, n=2, layers=layers, order=order))
            for layers, block in enumerate(({"kernels": [3]}, {}, {"block": "bottleneck"}), 1) for order in FIGURE_4
        ),
        *((architecture("resnet", 14, skip=skip), partial(as_in_table_1, n=2, **skip)) for skip in TABLE_1[:4]),
        (architecture("preact", 8, kernels=[3]), partial(as_in_he2016, n=2, layers=1)),
        (architecture("preact", 14), partial(as_in_he2016, n=2, layers=2)),
        (architecture("preact", 20, block="bottleneck"), partial(as_in_he2016, n=2, layers=3)),
        (architecture("wide", 16, widen_factor=2), partial(as_in_zagoruyko2016, n=2)),
        (architecture("wide", 16, widen_factor=1), partial(as_in_zagoruyko2016, n=2)),
        *(
            (architecture("wide", 6 * len(kernels) + 4, widen_factor=2, kernels=kernels),
             partial(as_in_zagoruyko2016, n=2, convolutions=len(kernels)))
            for kernels in ([3], [1, 3], [3, 1, 3], [1, 3, 1], [3, 3, 3, 3])
        ),
        (architecture("lasagne", 14), partial(as_in_lasagne, counts=(2, 2, 2))),
        (
            architecture("lasagne", 20, block="bottleneck"),
            partial(as_in_lasagne, counts=(2, 2, 2), bottleneck=True),
        ),
        (architecture("lasagne", 16, widen_factor=2), partial(as_in_lasagne, counts=(2, 4, 4))),
    ],
    ids=lambda p: str(p.model_dump(exclude_defaults=True)) if isinstance(p, Architecture) else "",
)  # fmt: skip
def test_a_net_computes_what_its_paper_writes(params, paper):
    net = random_net(params)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(net(x), paper(Weights(net, 1e-5), x), rtol=1e-10, atol=1e-10)


def test_a_dropped_shortcut_is_the_plain_net_plus_what_is_kept():
    """He 2016, Figure 2 (f): dropout of the shortcut alone, with a mask of its own in every unit."""
    net = random_net(architecture("resnet", 14, skip={"kind": "dropout", "dropout": 0.5}))
    dropouts = [module for module in net.modules() if isinstance(module, Dropout)]
    assert [module.layer for module in dropouts] == list(range(6))
    for module in dropouts:
        module.key = torch.tensor(5)
    x = torch.randn(3, 16, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).abs() + 1
    with torch.no_grad():
        block = blocks(net)[0]
        added = block.merge(x, x, torch.zeros_like(x))
        assert set((added / x).unique().round(decimals=9).tolist()) == {0.0, 2.0}
        assert (added != 0).double().mean().item() == pytest.approx(0.5, abs=0.05)  # of 3072 values
        torch.testing.assert_close(block(x), F.relu(added + block.residual(x)))
        torch.testing.assert_close(block.eval()(x), F.relu(x + block.residual(x)))


def test_a_gates_bias_starts_where_it_is_told():
    net = build_model(architecture("resnet", 14, skip={"kind": "shortcut_only_gating", "gate_bias": -6.0}))
    initialize(net, "fan_out", 1)
    biases = [p for name, p in net.named_parameters() if name.endswith("gate.bias")]
    assert len(biases) == 6
    assert all((bias == -6).all() for bias in biases)
    weights = dict(net.named_parameters())
    assert (weights["groups.0.0.merge.gate.weight"] != 0).all()
    assert weights["linear.bias"].count_nonzero() == 0


def test_dropout_stands_between_a_wide_blocks_convolutions():
    net = random_net(architecture("wide", 16, widen_factor=2, dropout=0.3))
    dropouts = [module for module in net.modules() if isinstance(module, Dropout)]
    for module in dropouts:
        module.key = torch.tensor(5)
    assert len(dropouts) == 6
    assert len({module.layer for module in dropouts}) == 6  # else two layers would share a mask
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = as_in_zagoruyko2016(Weights(net, 1e-5), x, 2, dropouts)
        torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)


def test_the_normalisations_constants_arrive_everywhere():
    norm = BatchNorm(eps=1e-4, momentum=0.3)
    for family, depth in (("resnet", 8), ("preact", 8), ("wide", 10), ("lasagne", 8)):
        net = on_paper(architecture(family, depth, batch_norm=norm))
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {(m.eps, m.momentum) for m in norms} == {(1e-4, 0.3)}


@pytest.mark.parametrize(
    ("family", "depth", "block"),
    [
        ("plain", 8, "basic"),
        ("resnet", 11, "bottleneck"),
        ("preact", 8, "basic"),
        ("preact", 11, "bottleneck"),
        ("wide", 10, "basic"),
    ],
)
def test_biases_only_where_there_is_no_normalisation(family, depth, block):
    for kind in ("running", "batch", "none"):
        net = on_paper(architecture(family, depth, block=block, batch_norm={"kind": kind}))
        convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        assert {m.bias is not None for m in convolutions} == {kind == "none"}
        assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == (kind != "none")


def test_statistics_of_the_test_batch():
    """a-martyn's note 5: without running statistics, evaluation depends on the batch."""
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    nets = {kind: random_net(architecture("resnet", batch_norm={"kind": kind})) for kind in ("batch", "running")}
    alone = {kind: torch.cat([net.eval()(x[:4]), net(x[4:])]) for kind, net in nets.items()}
    together = {kind: net(x) for kind, net in nets.items()}
    torch.testing.assert_close(together["running"], alone["running"])
    assert (together["batch"] - alone["batch"]).abs().max() > 1e-2
    torch.testing.assert_close(together["batch"], nets["batch"].train()(x))
    assert not any(name.startswith("running") for name in nets["batch"].state_dict())


def test_blocks_without_effect_leave_the_input():
    """The papers' point: depth can do no harm, since a block of zero weights is the identity."""
    net = random_net(architecture("preact", 110))
    x = torch.randn(2, 3, 8, 8).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".residual." in name:
                parameter.zero_()
        activated = F.relu(net.groups[0][0].norm(net.stem(x)))
        kept = F.pad(activated[:, :, ::4, ::4], (0, 0, 0, 0, 0, 48))
        torch.testing.assert_close(net(x), net.linear(F.relu(net.norm(kept)).mean(dim=(2, 3))))

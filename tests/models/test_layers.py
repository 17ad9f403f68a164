import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from resnet_repro.engine import compile_problem
from resnet_repro.models.layers import (
    Conv3x3,
    Dropout,
    Reshape,
    ZeroPad,
    batch_norm,
    conv1x1,
    global_mean,
    shortcut,
)
from resnet_repro.params import Architecture, BatchNorm


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def params(**options: object) -> Architecture:
    return Architecture.model_validate({"family": "resnet", "depth": 8, **options})


def norm_of(channels: int, **options: object) -> nn.Module:
    """With a scale and a shift that are not neutral."""
    norm = batch_norm(channels, BatchNorm.model_validate(options)).double()
    with torch.no_grad():
        norm.weight.copy_(random(channels, seed=2))
        norm.bias.copy_(random(channels, seed=3))
    return norm


def normalized(x: Tensor, norm: nn.Module) -> Tensor:
    """By the statistics of x itself: Ioffe and Szegedy 2015, algorithm 1."""
    mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
    x = (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_written_out_statistics_are_those_of_torch() -> None:
    """In float64, where only another formula could differ: output, gradients and running statistics."""
    if problem := compile_problem("cpu"):
        pytest.skip(problem)
    answers = []
    for compiled in (False, True):
        norm, x = norm_of(3, momentum=0.3, eps=1e-3), random(4, 3, 5, 6).requires_grad_()
        run = torch.compile(norm, fullgraph=True) if compiled else norm
        for _ in range(2):
            y = run(x)
        (y * random(4, 3, 5, 6, seed=7)).sum().backward()
        gradients = [x.grad, *(parameter.grad for parameter in norm.parameters())]
        answers.append([y, *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked])
    torch.testing.assert_close(answers[1], answers[0])


def test_running_statistics_serve_evaluation():
    x, norm = 3 + 2 * random(8, 4, 5, 5), norm_of(4, momentum=1.0)
    torch.testing.assert_close(norm(x), normalized(x, norm))
    # momentum 1: the statistics of that batch, its variance without the bias of a sample's
    mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=True)
    factor = norm.weight / (variance + norm.eps).sqrt()
    expected = (3 * x - mean[:, None, None]) * factor[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm.eval()(3 * x), expected)


def test_batch_statistics_serve_evaluation_where_no_running_ones_are_kept():
    x, norm = random(8, 4, 5, 5), norm_of(4, kind="batch")
    torch.testing.assert_close(norm(x), normalized(x, norm))
    torch.testing.assert_close(norm.eval()(2 + x), normalized(2 + x, norm))
    assert set(norm.state_dict()) == {"weight", "bias"}


def test_without_normalisation_the_layer_is_left_out():
    assert isinstance(batch_norm(4, BatchNorm(kind="none")), nn.Identity)
    assert Conv3x3(3, 4, 1, params(batch_norm={"kind": "none"})).bias is not None
    assert conv1x1(3, 4, 1, params(batch_norm={"kind": "none"})).bias is not None
    assert Conv3x3(3, 4, 1, params()).bias is None


@pytest.mark.parametrize("num_images", [8, 4, 7, 3])
def test_grouped_statistics_are_those_of_each_group_alone(num_images):
    """As when 128 images are 64 on each of two GPUs; the last group may be smaller."""
    x = random(num_images, 4, 5, 5).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    grouped, plain = norm_of(4, group_size=4), norm_of(4)
    together = grouped(x)
    alone = torch.cat([plain(part) for part in twin.split(4)])
    torch.testing.assert_close(together, alone)
    weights = random(*x.shape, seed=4)
    (together * weights).sum().backward()
    (alone * weights).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)
    torch.testing.assert_close(grouped.weight.grad, plain.weight.grad)
    for name, value in plain.state_dict().items():  # the running statistics too
        torch.testing.assert_close(grouped.state_dict()[name], value)
    torch.testing.assert_close(grouped.eval()(x), plain.eval()(twin))
    if num_images > 4:
        assert (together - normalized(x, grouped)).abs().max() > 1e-2


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("padding", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
def test_padding_of_a_convolution(stride, padding, mode):
    convolution = Conv3x3(3, 5, stride, params(conv_padding=padding)).double()
    x = random(2, 3, 8, 8).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    output = convolution(x)
    expected = F.conv2d(F.pad(twin, (1, 1, 1, 1), mode=mode), convolution.weight, stride=stride)
    assert output.shape == (2, 5, 8 // stride, 8 // stride)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_subsampling_by_a_pool_behind_a_convolution_of_stride_1(padding):
    x = random(2, 3, 8, 8)
    pooled = Conv3x3(3, 5, 2, params(subsampling="pool", conv_padding=padding)).double()
    whole = Conv3x3(3, 5, 1, params(conv_padding=padding)).double()
    whole.load_state_dict(pooled.state_dict())
    torch.testing.assert_close(pooled(x), F.avg_pool2d(whole(x), 2))
    same = Conv3x3(3, 5, 1, params(subsampling="pool", conv_padding=padding)).double()
    assert same(x).shape == (2, 5, 8, 8)


def test_option_a_keeps_every_other_pixel_and_adds_zeros_behind():
    """As a-martyn writes it: a 1x1 average pool of stride 2, and zeros after the channels."""
    x = random(2, 3, 8, 8)
    kept = F.avg_pool2d(x, kernel_size=1, stride=2)
    torch.testing.assert_close(ZeroPad(3, 2)(x), torch.cat([kept, 0 * kept], dim=1))


def test_reshape_keeps_the_mean_of_every_square():
    x = random(2, 3, 8, 6)
    output = Reshape()(x)
    assert output.shape == (2, 6, 4, 3)
    torch.testing.assert_close(output.view(2, 3, 2, 4, 3).mean(dim=2), F.avg_pool2d(x, 2))
    gradient = torch.autograd.functional.jacobian(lambda x: Reshape()(x).sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 0.5))  # no pixel is dropped, none counts more


@pytest.mark.parametrize("kind", ["A", "B", "C", "reshape"])
@pytest.mark.parametrize(("channels", "width", "stride"), [(4, 4, 1), (4, 8, 2), (4, 16, 1), (4, 8, 1)])
def test_a_shortcut_has_the_residuals_shape(kind, channels, width, stride):
    module = shortcut(kind, channels, width, stride, params()).double()
    x = random(2, channels, 8, 8)
    assert module(x).shape == (2, width, 8 // stride, 8 // stride)
    same = (channels, stride) == (width, 1)
    weights = width * channels if kind == "C" or (kind == "B" and not same) else 0
    assert sum(p.numel() for p in module.parameters()) == weights
    if same and kind != "C":
        assert module(x) is x


def dropped(rate: float, layer: int = 0, key: int = 1, size: int = 100_000) -> Tensor:
    module = Dropout(rate, layer)
    module.key = torch.tensor(key)
    return module(torch.ones(size))


@given(st.floats(0.01, 0.99), st.integers(0, 2**32 - 1), st.integers(0, 100))
def test_dropout_drops_at_its_rate(rate, key, layer):
    size = 20_000
    output = dropped(rate, layer, key, size)
    kept = int((output != 0).sum())
    deviation = (size * rate * (1 - rate)) ** 0.5
    assert abs(kept - size * (1 - rate)) < 6 * deviation + 1
    torch.testing.assert_close(output[output != 0], torch.full((kept,), 1 / (1 - rate)))


def test_masks_depend_on_key_layer_and_element_only():
    mask = dropped(0.5) != 0
    assert torch.equal(mask, dropped(0.5) != 0)
    assert torch.equal(mask[:1000], dropped(0.5, size=1000) != 0)
    for other in (dropped(0.5, key=2), dropped(0.5, layer=1), dropped(0.5).roll(1)):
        agreement = (mask == (other != 0)).double().mean()
        assert abs(agreement - 0.5) < 6 * 0.5 / len(mask) ** 0.5  # as two fair coins


def test_dropout_in_evaluation_and_backwards():
    module = Dropout(0.3, 0)
    x = random(4, 3, 2, 2).requires_grad_()
    assert module.eval()(x) is x
    output = module.train()(x)
    output.sum().backward()
    torch.testing.assert_close(output, x * x.grad)
    assert "key" not in module.state_dict()


def test_global_mean():
    x = random(2, 3, 4, 6)
    torch.testing.assert_close(global_mean(x), F.adaptive_avg_pool2d(x, 1).flatten(1))

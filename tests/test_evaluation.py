import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from resnet_repro.data.preprocessing import Normalizer
from resnet_repro.engine import ResolvedEngine
from resnet_repro.evaluation import BATCH_SIZE, Evaluator, average_statistics, batches, response_stds
from resnet_repro.models import build_model
from resnet_repro.models.initialization import initialize
from resnet_repro.params import Architecture

ENGINE = ResolvedEngine("cpu", "eager", "fp32", 1, True)
COUNT = 2 * BATCH_SIZE + 203
GENERATOR = torch.Generator().manual_seed(1)
IMAGES = torch.randint(0, 256, (COUNT, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.randint(0, 10, (COUNT,), generator=GENERATOR)
NORMALIZER = Normalizer(
    torch.full((3, 8, 8), 128, dtype=torch.float64), torch.full((3, 1, 1), 1 / 64, dtype=torch.float64)
)


def net_of(**options: object) -> nn.Module:
    net = build_model(Architecture.model_validate({"family": "resnet", "depth": 8, **options}))
    initialize(net, "fan_in", 1)
    net.double().train()
    net(NORMALIZER(IMAGES[:100]))  # so that the running statistics are not neutral
    return net


@pytest.fixture(scope="module")
def whole() -> tuple[nn.Module, Tensor]:
    """A net and its logits of all images at once."""
    net = net_of().eval()
    with torch.no_grad():
        return net, net(NORMALIZER(IMAGES))


def test_loss_and_error_are_those_of_the_whole_set(whole):
    net, logits = whole
    net.train()
    loss, error = Evaluator(net, ENGINE).error(batches(IMAGES, LABELS, NORMALIZER))
    assert loss == pytest.approx(float(F.cross_entropy(logits, LABELS)), rel=1e-12)
    assert error == pytest.approx(100 * float((logits.argmax(dim=1) != LABELS).double().mean()), rel=1e-12)
    assert 0 < error < 100


def test_probabilities_are_the_softmax_in_the_images_order(whole):
    net, logits = whole
    probabilities = Evaluator(net.train(), ENGINE).probabilities(batches(IMAGES, LABELS, NORMALIZER))
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, logits.softmax(dim=1).float())
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(COUNT))


def test_evaluation_changes_nothing(whole):
    net, _ = whole
    before = {name: value.clone() for name, value in net.state_dict().items()}
    Evaluator(net, ENGINE).error(batches(IMAGES, LABELS, NORMALIZER))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_batches_hold_every_image_once_with_its_label():
    parts = list(batches(IMAGES, LABELS, NORMALIZER))
    assert [len(images) for images, _ in parts] == [BATCH_SIZE, BATCH_SIZE, 203]
    torch.testing.assert_close(torch.cat([images for images, _ in parts]), NORMALIZER(IMAGES))
    assert torch.equal(torch.cat([labels for _, labels in parts]), LABELS)


def test_without_running_statistics_the_test_batch_has_its_own():
    net = net_of(batch_norm={"kind": "batch"})
    loss, _ = Evaluator(net, ENGINE).error(batches(IMAGES, LABELS, NORMALIZER))
    with torch.no_grad():
        logits = torch.cat([net.train()(NORMALIZER(part)) for part in IMAGES.split(BATCH_SIZE)])
    assert loss == pytest.approx(float(F.cross_entropy(logits, LABELS)), rel=1e-12)


def test_averaged_statistics_are_those_of_torch_s_update_bn() -> None:
    reference, net = net_of(), net_of()
    parts = NORMALIZER(IMAGES).split(100)
    update_bn(parts, reference)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert average_statistics(net, parts)
    for (name, ours), theirs in zip(net.state_dict().items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert "running" not in name or not torch.equal(ours, before[name])
    assert not net.training
    assert {module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}
    assert not average_statistics(net_of(batch_norm={"kind": "batch"}), parts)


def test_responses_are_those_behind_each_3x3_convolution() -> None:
    """By a walk through the net: stem, then two a block, before the shortcut is added; projections do not count."""
    net = net_of(shortcut="B").eval()
    found = response_stds(net, NORMALIZER(IMAGES).split(300))
    outputs: list[Tensor] = []
    with torch.no_grad():
        values = net.stem_norm(net.stem(NORMALIZER(IMAGES)))
        outputs.append(values)
        values = values.relu()
        for group in net.groups:
            for block in group:
                first = block.residual[1](block.residual[0](values))
                second = block.residual[4](block.residual[3](first.relu()))
                outputs += [first, second]
                values = block(values)
    assert found == pytest.approx([float(output.std(correction=0)) for output in outputs], rel=1e-9)
    assert len(found) == 7
    assert response_stds(net_of(batch_norm={"kind": "none"}), NORMALIZER(IMAGES).split(300)) == ()

"""The loop as everybody writes it, which the engine is held against: torchvision's data set interface with PIL
transforms, a DataLoader with workers, eager float32, and `.item()` at every step."""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from resnet_repro.engine import ResolvedEngine, synchronize

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """As torchvision.datasets.CIFAR10 hands them out: a PIL image made from an array, then the transforms."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images.transpose(0, 2, 3, 1), labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def plain_loop(
    net: nn.Module, images: np.ndarray, labels: np.ndarray, batch_size: int, engine: ResolvedEngine
) -> Callable[[float], float]:
    """A function that trains for some seconds and returns images per second."""
    device = engine.torch_device
    net.to(device).train()
    workers = 2 if engine.device == "cpu" else 4
    loader = DataLoader(
        Pictures(images, labels),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=engine.device == "cuda",
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    batches = iter(loader)

    def run(seconds: float) -> float:
        nonlocal batches
        synchronize(engine.device)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            try:
                inputs, targets = next(batches)
            except StopIteration:
                batches = iter(loader)
                inputs, targets = next(batches)
            inputs, targets = inputs.to(device), targets.to(device)
            optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs), targets)
            loss.backward()
            optimizer.step()
            loss.item()
            count += len(targets)
        synchronize(engine.device)
        return count / (time.perf_counter() - began)

    return run

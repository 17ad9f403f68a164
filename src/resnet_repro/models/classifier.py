"""A net with its preprocessing: pixels in, logits out. What is saved, loaded, exported and served."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from resnet_repro.checkpoint import check_tensors, read_tensors
from resnet_repro.data.preprocessing import Normalizer
from resnet_repro.errors import CheckpointError
from resnet_repro.evidence import write_atomically
from resnet_repro.models import build_model
from resnet_repro.params import Architecture

METADATA = "resnet_repro"
"""its entry in a file"""


class Classifier(nn.Module):
    """(N, 3, 32, 32) uint8 pixels, red, green, blue -> (N, 10) float32 logits."""

    whitening: Tensor | None
    whitening_mean: Tensor | None
    classes: tuple[str, ...] = ()
    """names of the classes, where what was loaded says them"""

    def __init__(self, net: nn.Module, normalizer: Normalizer) -> None:
        super().__init__()
        self.net = net
        matrix, mean = normalizer.whitening or (None, None)
        self.register_buffer("mean", normalizer.mean.clone())
        self.register_buffer("scale", normalizer.scale.clone())
        self.register_buffer("whitening", matrix)
        self.register_buffer("whitening_mean", mean)

    @property
    def normalizer(self) -> Normalizer:
        whitening = None
        if self.whitening is not None and self.whitening_mean is not None:
            whitening = (self.whitening, self.whitening_mean)
        return Normalizer(self.get_buffer("mean"), self.get_buffer("scale"), whitening)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.normalizer(images))

    def to_bytes(self, metadata: dict[str, Any]) -> bytes:
        """As safetensors. Equal weights and metadata give equal bytes: the metadata is one entry, since safetensors
        writes several in any order."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        return safetensors.torch.save(tensors, {METADATA: json.dumps(metadata)})

    def save(self, path: Path, metadata: dict[str, Any]) -> None:
        """Write `to_bytes`."""
        write_atomically(path, self.to_bytes(metadata))

    @classmethod
    def load(cls, path: Path, architecture: Architecture) -> "Classifier":
        """The classifier that `save` wrote, in eval mode on the CPU.

        Raises:
            CheckpointError: the file is missing or damaged, or holds the weights of another net.
        """
        tensors, _ = read_tensors(path)
        try:
            whitening = (tensors["whitening"], tensors["whitening_mean"]) if "whitening" in tensors else None
            classifier = cls(build_model(architecture), Normalizer(tensors["mean"], tensors["scale"], whitening))
            check_tensors(tensors, classifier.state_dict())
            classifier.load_state_dict(tensors)
            one = torch.zeros(1, *classifier.get_buffer("mean").shape, dtype=torch.uint8)
            classifier.eval().requires_grad_(False)(one)
        except (KeyError, ValueError, RuntimeError, IndexError) as error:
            raise CheckpointError(
                f"{path} does not hold the weights of this net ({error!r}): take a whole copy, or train it again"
            ) from None
        return classifier


def to_fastest_layout(net: nn.Module, device: torch.device) -> nn.Module:
    """Channels last is what the convolutions of CPUs and of tensor cores want."""
    return net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

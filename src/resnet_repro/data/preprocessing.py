"""What is subtracted from the pixels and what they are divided by, computed on the images trained on.

Pixels are read as 0..1. He et al. 2015 does not state the range; batch normalisation behind the first
convolution makes the net indifferent to it (docs/assumptions.md).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnet_repro.params import Preprocessing

GCN_SCALE, ZCA_BIAS = 55.0, 0.1
"""Of Pylearn2's CIFAR-10 script (Goodfellow et al. 2013), whose output the wide nets' authors trained on."""


@dataclass(frozen=True)
class Normalizer:
    """x -> (x - mean) * scale, after an optional whitening of the flattened image.

    mean: (3, H, W) float32, in units of a uint8 pixel (of the whitened value for zca); scale: (3, 1, 1)
    float32. whitening: (D, D) float64 (until `to`) and its (D,) mean, D = 3 * H * W, or None.
    """

    mean: Tensor
    scale: Tensor
    whitening: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Normalizer":
        whitening = None
        if self.whitening is not None:
            whitening = (self.whitening[0].to(device, dtype), self.whitening[1].to(device, dtype))
        return Normalizer(self.mean.to(device, dtype), self.scale.to(device, dtype), whitening)

    def whiten(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> float, or unchanged where there is no whitening."""
        if self.whitening is None:
            return images
        matrix, mean = self.whitening
        flat = _contrast_normalized(images.flatten(1).to(matrix.dtype))
        return ((flat - mean) @ matrix).view(images.shape)

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 3, H, W) float, preprocessed."""
        return (self.whiten(images).to(self.mean.dtype) - self.mean) * self.scale


def fit(params: Preprocessing, images: np.ndarray) -> Normalizer:
    """The normalizer of (N, 3, H, W) uint8 training images."""
    _, channels, height, width = images.shape
    shape = (channels, height, width)
    mean, scale, whitening = np.zeros(shape), np.full((channels, 1, 1), 1 / 255), None
    if params.kind == "pixel_mean":
        mean = images.sum(axis=0, dtype=np.int64) / len(images)
    elif params.kind == "mean_std":
        count = len(images) * height * width
        total = images.sum(axis=(0, 2, 3), dtype=np.int64)
        # integers, so exact: CIFAR-10's sum of squares is some 4e12
        squares = np.array([np.square(images[:, c].astype(np.int64)).sum() for c in range(channels)])
        channel_mean = total / count
        std = np.sqrt(squares / count - channel_mean**2)
        mean, scale = np.broadcast_to(channel_mean[:, None, None], shape), (1 / std)[:, None, None]
    elif params.kind == "constants":
        mean = np.broadcast_to(np.array(params.mean)[:, None, None] * 255, shape)
        scale = (1 / (255 * np.array(params.std)))[:, None, None]
    elif params.kind == "zca":
        scale = np.ones((channels, 1, 1))
        whitening = _zca(images)
    return Normalizer(torch.tensor(mean, dtype=torch.float32), torch.tensor(scale, dtype=torch.float32), whitening)


def _contrast_normalized(flat: Tensor) -> Tensor:
    """Each row less its mean, scaled to a norm of GCN_SCALE."""
    flat = flat - flat.mean(dim=1, keepdim=True)
    return flat * (GCN_SCALE / flat.norm(dim=1, keepdim=True).clamp_min(1e-8))


def _zca(images: np.ndarray) -> tuple[Tensor, Tensor]:
    # float64, since in float32 two machines' plans differ in the 7th digit; 1.2 GB for CIFAR-10
    flat = _contrast_normalized(torch.from_numpy(images).flatten(1).double())
    mean = flat.mean(dim=0)
    flat -= mean
    covariance = (flat.T @ flat) / len(flat)
    values, vectors = torch.linalg.eigh(covariance)
    matrix = (vectors * (values + ZCA_BIAS).rsqrt()) @ vectors.T
    return matrix, mean

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as vision

from resnet_repro.data.archive import read_members
from resnet_repro.data.decoding import decode_batch
from resnet_repro.data.preprocessing import GCN_SCALE, ZCA_BIAS, Normalizer, fit
from resnet_repro.params import Preprocessing, load

REPOSITORY = Path(__file__).parents[2]
CIFAR10 = Path(os.environ.get("CIFAR10_ARCHIVE", REPOSITORY.parent / "shared/data/cifar-10-python.tar.gz"))

RNG = np.random.default_rng(1)
SMOOTH = RNG.normal(size=(2000, 3, 5, 5)).cumsum(axis=2).cumsum(axis=3) + RNG.normal(size=(2000, 1, 1, 1))
IMAGES = np.clip(128 + 25 * SMOOTH, 0, 255).astype(np.uint8)  # neighbours correlate, as in pictures


def preprocessed(kind: str, **constants: tuple[float, ...]) -> tuple[Normalizer, np.ndarray]:
    normalizer = fit(Preprocessing(kind=kind, **constants), IMAGES)
    return normalizer, normalizer(torch.from_numpy(IMAGES)).numpy()


def test_per_pixel_mean():
    normalizer, output = preprocessed("pixel_mean")
    np.testing.assert_allclose(normalizer.mean, IMAGES.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(output, (IMAGES - IMAGES.astype(np.float64).mean(axis=0)) / 255, atol=1e-6)
    assert output.dtype == np.float32


def test_channel_mean_and_standard_deviation():
    _, output = preprocessed("mean_std")
    pixels = IMAGES.astype(np.float64) / 255
    mean, std = pixels.mean(axis=(0, 2, 3)), pixels.std(axis=(0, 2, 3))
    expected = vision.normalize(torch.from_numpy(pixels), mean.tolist(), std.tolist())
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_constants():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    _, output = preprocessed("constants", mean=mean, std=std)
    pixels = vision.to_dtype(torch.from_numpy(IMAGES), torch.float32, scale=True)
    expected = vision.normalize(pixels, mean, std)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def contrast_normalized(images: np.ndarray) -> np.ndarray:
    """Of Goodfellow et al. 2013: each image less its mean, with a norm of 55."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    return 55 * flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_zca_gives_each_principal_direction_the_same_variance_but_for_the_bias():
    """Krizhevsky 2009, appendix A: W = V (L + bias)^-1/2 V', so the covariance becomes V L/(L + bias) V'."""
    assert (GCN_SCALE, ZCA_BIAS) == (55.0, 0.1)
    normalizer, output = preprocessed("zca")
    flat = contrast_normalized(IMAGES)
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    values = values.clip(min=0)  # contrast normalisation took one dimension away
    whitened = output.reshape(len(IMAGES), -1).astype(np.float64)
    expected = (vectors * (values / (values + ZCA_BIAS))) @ vectors.T
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), expected, atol=2e-4)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-4)
    matrix = normalizer.whitening[0].numpy()
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)  # zero-phase: it stays an image
    direct = (flat - flat.mean(axis=0)) @ ((vectors / np.sqrt(values + ZCA_BIAS)) @ vectors.T)
    np.testing.assert_allclose(whitened, direct, atol=2e-3)


def test_an_image_of_one_colour_is_no_division_by_zero():
    normalizer, _ = preprocessed("zca")
    assert normalizer(torch.full((1, 3, 5, 5), 77, dtype=torch.uint8)).isfinite().all()


def test_other_images_are_preprocessed_with_what_was_fitted():
    normalizer, _ = preprocessed("pixel_mean")
    other = torch.from_numpy(255 - IMAGES[:3])
    torch.testing.assert_close(normalizer(other), (other - normalizer.mean) / 255)


@pytest.mark.parametrize("kind", ["pixel_mean", "mean_std", "zca"])
def test_in_float64_it_computes_the_same(kind):
    normalizer, output = preprocessed(kind)
    exact = normalizer.to(torch.device("cpu"), torch.float64)(torch.from_numpy(IMAGES))
    assert exact.dtype == torch.float64
    np.testing.assert_allclose(output, exact, atol=2e-3 if kind == "zca" else 1e-5)


if CIFAR10.exists():

    def test_cifar10s_known_mean_and_standard_deviation():
        """0.4914, 0.4822, 0.4465 and 0.2470, 0.2435, 0.2616, as many projects print them."""
        sha256 = load(REPOSITORY / "params.yaml").data.members
        with CIFAR10.open("rb") as stream:
            members = dict(read_members(stream, sha256))
        images = np.concatenate([decode_batch(members[f"data_batch_{i}"])[0] for i in range(1, 6)])
        assert images.shape == (50_000, 3, 32, 32)
        normalizer = fit(Preprocessing(kind="mean_std"), images)
        np.testing.assert_allclose(normalizer.mean[:, 0, 0] / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)
        np.testing.assert_allclose(1 / normalizer.scale[:, 0, 0] / 255, [0.2470, 0.2435, 0.2616], atol=5e-5)
        assert torch.equal(normalizer.mean, normalizer.mean[:, :1, :1].expand(3, 32, 32))

import gzip

import numpy as np
import torch
from sklearn.datasets import load_digits

from resnet_repro.data.decoding import decode_batch
from resnet_repro.data.digits import enlarge, write_digits_archive
from sources import Digits


def test_the_bytes_are_the_same_every_time(digits: Digits, tmp_path):
    again = tmp_path / "again.tar.gz"
    assert write_digits_archive(again) == digits.sha256
    assert again.read_bytes() == digits.path.read_bytes()
    assert gzip.decompress(again.read_bytes())[:32].startswith(b"cifar-10-batches-py/batches.meta")


def test_enlarged_as_pytorch_does():
    images = load_digits().images[:200]
    oracle = torch.nn.functional.interpolate(
        torch.from_numpy(images)[:, None], size=(32, 32), mode="bilinear", align_corners=False
    )
    expected = np.floor(oracle[:, 0].numpy() * 255 / 16 + 1e-9)
    assert np.array_equal(enlarge(images.astype(np.int64)), expected)


def test_every_image_once_and_every_class_in_every_batch(digits: Digits):
    batches = {name: decode_batch(content) for name, content in digits.members.items() if "batch_" in name}
    batches["test_batch"] = decode_batch(digits.members["test_batch"])
    images = np.concatenate([images for images, _ in batches.values()])
    labels = np.concatenate([labels for _, labels in batches.values()])
    source = load_digits()
    ours = sorted((label, image[0].tobytes()) for image, label in zip(images, labels, strict=True))
    enlarged = enlarge(source.images.astype(np.int64))
    assert ours == sorted((label, image.tobytes()) for image, label in zip(enlarged, source.target, strict=True))
    assert all(set(labels.tolist()) == set(range(10)) for _, labels in batches.values())
    assert {name: len(labels) for name, (_, labels) in batches.items() if name == "test_batch"} == {"test_batch": 296}
    assert np.array_equal(images[:, 0], images[:, 1])
    assert np.array_equal(images[:, 0], images[:, 2])

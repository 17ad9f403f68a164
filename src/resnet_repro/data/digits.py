"""scikit-learn's handwritten digits in CIFAR-10's own format: real images for `make demo`, no download.

1,797 images of 8x8 pixels from 0 to 16, shown as 32x32 RGB. Source: the test images of Optical Recognition of
Handwritten Digits, https://archive.ics.uci.edu/dataset/80
"""

import gzip
import hashlib
import io
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnet_repro.data.archive import FOLDER, META_MEMBER, TEST_MEMBER, TRAIN_MEMBERS
from resnet_repro.evidence import write_atomically

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCALE = 4  # 8x8 to 32x32
MAX_VALUE = 16
TEST_EVERY = 6  # every sixth image of a class, about CIFAR-10's 10,000 of 60,000


def write_digits_archive(path: Path) -> dict[str, str]:
    """Write the archive; returns the sha256 of each of its seven members. The same bytes every time.

    1,501 training images in five batches and 296 test images; every class is in every batch.
    """
    from sklearn.datasets import load_digits  # a development dependency

    digits = load_digits()
    images, labels = enlarge(digits.images.astype(np.int64)), digits.target.astype(np.int64)
    is_test = rank_in_class(labels) % TEST_EVERY == TEST_EVERY - 1
    train = np.array_split(np.flatnonzero(~is_test), len(TRAIN_MEMBERS))
    members = {META_MEMBER: pickled({"label_names": CLASSES, "num_cases_per_batch": len(train[0])})}
    for name, rows in zip((*TRAIN_MEMBERS, TEST_MEMBER), (*train, np.flatnonzero(is_test)), strict=True):
        members[name] = pickled(
            {"batch_label": f"digits, {name}", "labels": labels[rows].tolist(), "data": as_rows(images[rows])}
        )
    write_atomically(path, _tar_gz(members))
    return {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}


def enlarge(images: np.ndarray) -> np.ndarray:
    """(N, 8, 8) integers, 0 to 16, as (N, 32, 32) uint8, 0 to 255: bilinear, pixel centres aligned.

    In integers, eighths of a pixel, so that every machine gets the same.
    """
    size = images.shape[-1]
    denominator = 2 * SCALE
    centre = 2 * np.arange(SCALE * size) + 1 - SCALE
    pixel, fraction = np.divmod(centre, denominator)
    weights = np.zeros((SCALE * size, size), dtype=np.int64)
    for offset, weight in ((0, denominator - fraction), (1, fraction)):
        np.add.at(weights, (np.arange(len(centre)), np.clip(pixel + offset, 0, size - 1)), weight)
    enlarged = weights @ images @ weights.T
    return (enlarged * 255 // (MAX_VALUE * denominator**2)).astype(np.uint8)


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """(N,): how many images of the same class come before each."""
    ranks = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = labels == label
        ranks[of_class] = np.arange(of_class.sum())
    return ranks


def as_rows(images: np.ndarray) -> np.ndarray:
    """(N, 32, 32) grey as (N, 3072): red, green and blue one after the other."""
    return np.tile(images.reshape(len(images), -1), 3)


def pickled(batch: dict[str, object]) -> bytes:
    """A pickle as Python 2 wrote CIFAR-10's: protocol 2, texts of bytes.

    Put down by hand, because Python 3's `pickle` writes no such texts and NumPy's module names have changed;
    `pickletools.dis` shows the same opcodes for an official file.
    """
    return b"\x80\x02" + _dict(batch) + b"."


def _dict(items: dict[str, object]) -> bytes:
    return b"}(" + b"".join(_value(key) + _value(item) for key, item in items.items()) + b"u"


def _value(value: object) -> bytes:
    match value:
        case str():
            return _text(value.encode())
        case int():
            return b"J" + struct.pack("<i", value)
        case np.ndarray():
            return _array(value)
        case Sequence():
            return b"](" + b"".join(map(_value, value)) + b"e"
    raise TypeError(f"CIFAR-10's format has no {type(value).__name__}")


def _text(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text


def _array(array: np.ndarray) -> bytes:
    """uint8, two dimensions: what ndarray.__reduce__ and dtype.__reduce__ gave in NumPy 1."""
    reconstruct = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _value(0) + b"\x85" + _text(b"b") + b"\x87R"
    )
    dtype = b"cnumpy\ndtype\n" + _text(b"u1") + _value(0) + _value(1) + b"\x87R"
    byte_order = b"(" + _value(3) + _text(b"|") + b"NNN" + _value(-1) + _value(-1) + _value(0) + b"tb"
    shape = b"".join(map(_value, array.shape)) + b"\x86"
    state = b"(" + _value(1) + shape + dtype + byte_order + b"\x89" + _text(array.tobytes()) + b"tb"
    return reconstruct + state


def _tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in members.items():
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()

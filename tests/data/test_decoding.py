"""The restricted unpickler against Python's own; hostile streams are in tests/faults."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from resnet_repro.data.decoding import decode_batch, decode_classes
from resnet_repro.data.digits import CLASSES, pickled
from resnet_repro.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
LABELS = [number % 10 for number in range(20)]
BATCH = pickled({"batch_label": "made up", "labels": LABELS, "data": PIXELS})


def test_reads_what_python_2_wrote():
    images, labels = decode_batch(BATCH)
    oracle = pickle.loads(BATCH, encoding="bytes")
    assert np.array_equal(images, oracle[b"data"].reshape(20, 3, 32, 32))
    assert np.array_equal(oracle[b"data"], PIXELS)
    assert labels.tolist() == oracle[b"labels"] == LABELS
    assert images.dtype == labels.dtype == np.uint8


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("key", [str, str.encode])
def test_reads_what_python_3_writes(protocol: int, key: Callable[[str], Any]):
    images, labels = decode_batch(pickle.dumps({key("data"): PIXELS, key("labels"): LABELS}, protocol=protocol))
    assert np.array_equal(images.reshape(20, 3072), PIXELS)
    assert labels.tolist() == LABELS


def test_the_image_is_red_green_blue_and_row_major():
    row = np.arange(3072).astype(np.uint8)
    images, _ = decode_batch(pickled({"labels": [0], "data": row[None]}))
    assert images[0, 1, 2, 3] == row[1024 + 2 * 32 + 3]


def test_classes():
    assert decode_classes(pickled({"label_names": CLASSES})) == CLASSES


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": LABELS}, "`data`"),
        ({"labels": LABELS, "data": PIXELS[:, :3071]}, r"shape \(20, 3071\)"),
        ({"labels": LABELS, "data": LABELS}, "20 of them"),
        ({"labels": LABELS[1:], "data": PIXELS}, "as many `labels`, not 19"),
        ({"labels": [*LABELS[1:], 10], "data": PIXELS}, "not 10"),
        ({"labels": [*LABELS[1:], -1], "data": PIXELS}, "not -1"),
        ({"labels": [*LABELS[1:], "1"], "data": PIXELS}, "not a bytes"),
        ({"data": PIXELS}, "a NoneType"),
    ],
)
def test_refuses_another_content(batch: dict[str, object], message: str):
    with pytest.raises(DataError, match=message):
        decode_batch(pickled(batch))


@pytest.mark.parametrize("names", [None, CLASSES[:9], (*CLASSES[:9], "zero"), (*CLASSES[:9], 9)])
def test_refuses_other_classes(names: tuple[object, ...] | None):
    with pytest.raises(DataError, match="label_names"):
        decode_classes(pickled({"label_names": names} if names else {}))


@pytest.mark.parametrize(
    "array",
    [
        PIXELS.astype(np.int64),
        PIXELS.astype(object),
        PIXELS.astype("V1"),
        np.asfortranarray(PIXELS),
        PIXELS[0],
        PIXELS[:, :, None],
        PIXELS[:0],
        np.array([("x", 1)], dtype=[("a", object), ("b", int)]),
    ],
)
def test_refuses_other_arrays(array: np.ndarray):
    with pytest.raises(DataError, match=r"is refused|is not called as"):
        decode_batch(pickle.dumps({"data": array, "labels": LABELS}, protocol=4))

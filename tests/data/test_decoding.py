"""The restricted unpickler against Python's own, and against streams that Python's own would run."""

import builtins
import itertools
import os
import pickle
import random
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
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
    with pytest.raises(DataError, match=REFUSED):
        decode_batch(pickle.dumps({"data": array, "labels": LABELS}, protocol=4))


class Payload:
    """Calls `function(*arguments)` when Python's own unpickler reads it."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


REFUSED = r"is refused|not called as"


@pytest.mark.parametrize("protocol", range(6))
def test_runs_nothing_that_python_runs(protocol: int, tmp_path: Path):
    folder = tmp_path / "made"
    content = pickle.dumps({"data": Payload(os.mkdir, str(folder)), "labels": LABELS}, protocol=protocol)
    with pytest.raises(DataError, match=REFUSED):
        decode_batch(content)
    assert not folder.exists()
    pickle.loads(content)
    assert folder.exists()


@pytest.mark.parametrize(
    "payload",
    [
        Payload(os.system, "exit"),
        Payload(subprocess.Popen, ["true"]),
        Payload(builtins.eval, "1"),
        Payload(builtins.getattr, "text", "upper"),
        Payload(np.load, "x"),
        Payload(np.ndarray, (1 << 40,)),
        Payload(np.dtype, "O"),
        Payload(np._core.multiarray._reconstruct, np.ndarray, (1 << 40,), b"b"),  # type: ignore[attr-defined]
        Payload(Payload, Payload(os.system, "exit")),
    ],
    ids=lambda payload: getattr(payload.call[0], "__name__", "nested"),
)
def test_refuses_payloads_everywhere(payload: Payload):
    for protocol, content in itertools.product(
        range(6),
        (
            payload,
            {"data": payload, "labels": LABELS},
            {"data": PIXELS, "labels": payload},
            {"data": PIXELS, "labels": [[(payload,)]]},
            {payload: 1},
        ),
    ):
        with pytest.raises(DataError, match=REFUSED):
            decode_batch(pickle.dumps(content, protocol=protocol))


BOMBS = {
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "bytes": b"\x80\x03B" + struct.pack("<I", 1 << 31) + b".",
    "bytes8": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b".",
    "text": b"\x80\x02T" + struct.pack("<i", -5) + b".",
    "dicts": b"\x80\x02" + b"}" * 1_000_000 + b".",
    "nothings": b"\x80\x02" + b"N" * 1_000_000 + b".",
    "nested tuples as a key": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
    "long digits": b"I" + b"9" * 3_000_000 + b"\n.",
    "long name": b"\x80\x02c" + b"a" * 3_000_000 + b"\nb\n.",
    "list in itself": b"\x80\x02]q\x00h\x00a.",
    "attributes of a global": b"\x80\x02cnumpy\ndtype\nN}U\x08__call__Ns\x86b.",
    "class of a global": b"\x80\x02cnumpy\ndtype\nN}U\x09__class__cnumpy\nndarray\ns\x86b.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_stays_in_proportion(bomb: str):
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            decode_batch(BOMBS[bomb])
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 500


def test_damaged_streams_end_in_a_clear_error_or_in_a_batch():
    whole = pickled({"labels": [3], "data": PIXELS[:1]})
    pixels = PIXELS[0].tobytes()
    start = whole.index(pixels)
    structure = [*range(start), *range(start + len(pixels), len(whole))]
    rng = random.Random(0)
    num_refused = 0
    for _ in range(3000):
        damaged = bytearray(whole)
        for position in rng.sample(structure, rng.randint(1, 4)):
            damaged[position] = rng.randrange(256)
        if rng.random() < 0.2:
            del damaged[rng.choice(structure) :]
        try:
            images, labels = decode_batch(bytes(damaged))
        except DataError:
            num_refused += 1
            continue
        assert images.shape == (1, 3, 32, 32)
        assert labels.shape == (1,)
    assert num_refused > 2000

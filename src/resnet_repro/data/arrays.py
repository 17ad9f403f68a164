"""The images and labels as integer arrays: the same bytes on every machine, with a digest and a card."""

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from resnet_repro.data.archive import META_MEMBER, TEST_MEMBER, TRAIN_MEMBERS, verify_members
from resnet_repro.data.decoding import IMAGE_SHAPE, decode_batch, decode_classes
from resnet_repro.errors import DataError
from resnet_repro.evidence import sha256_of, write_atomically, write_json
from resnet_repro.params import Data

T = TypeVar("T")
SPLITS = ("train", "test")
CLASSES = "classes.json"
FILES = (CLASSES, "test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy")

CARD, SAMPLES = "card.json", "samples.npz"
SAMPLES_PER_CLASS = 4


@dataclass(frozen=True)
class Arrays:
    """A data set: images (N, 3, 32, 32) uint8, 0 to 255, RGB; labels (N,) uint8, indices of `classes`."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    sha256: str
    """of all five files: `data_digest`"""


def prepare_arrays(data: Data, members: Path, arrays: Path, report: Path) -> None:
    """Decode the verified members in `members` into `arrays`, and write the data card into `report`.

    Raises:
        DataError: a member or an array is not what params.yaml says.
        OSError: the disk is full or refuses.
    """
    verify_members(members, data.members)
    classes = _decoded(members / META_MEMBER, decode_classes)
    splits = {"train": _decode(members, TRAIN_MEMBERS), "test": _decode(members, (TEST_MEMBER,))}
    contents = {CLASSES: _json(classes)}
    for split, (images, labels) in splits.items():
        contents[f"{split}_images.npy"] = _npy(images)
        contents[f"{split}_labels.npy"] = _npy(labels)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    _check_digests(arrays, digests, data.arrays, "For data of your own, leave data.arrays out")
    for name, content in contents.items():
        write_atomically(arrays / name, content)
    card = {
        "sha256": data_digest(arrays),
        "files": {name: digests[name] for name in FILES},
        "classes": list(classes),
        "splits": {split: describe(*pair, classes) for split, pair in splits.items()},
    }
    write_json(report / CARD, card)
    samples = {split: first_of_each_class(*pair, classes) for split, pair in splits.items()}
    write_atomically(report / SAMPLES, _npz(samples))


def load_arrays(folder: Path, expected: Mapping[str, str] | None = None) -> Arrays:
    """Read what `prepare_arrays` wrote.

    Args:
        expected: sha256 of each file, as params.yaml has it; None or empty for data of one's own.

    Raises:
        DataError: a file is missing, is not the expected one, or has not the shape and dtype that `Arrays` says.
    """
    try:
        digests = {name: sha256_of(folder / name) for name in FILES}
        _check_digests(folder, digests, expected or {}, "Run `dvc repro --force prepare`")
        classes = _load_classes(folder / CLASSES)
        train, test = (_load_split(folder, split, len(classes)) for split in SPLITS)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing: run `dvc repro prepare`") from None
    return Arrays(*train, *test, classes=classes, sha256=_digest(digests))


def data_digest(folder: Path) -> str:
    """One sha256 for the data set in `folder`: that of what `sha256sum *` prints there for its five files."""
    return _digest({name: sha256_of(folder / name) for name in FILES})


def _digest(digests: Mapping[str, str]) -> str:
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def describe(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """Counts and channel statistics of one split.

    Sums are over pixels from 0 to 255; mean and standard deviation (of the population) are of pixels from 0
    to 1, to six decimals. They come from exact integers, so that no order of additions matters.
    """
    channels = [_sums(images[:, channel]) for channel in range(images.shape[1])]
    num_pixels = images[:, 0].size
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    deviations = [math.sqrt(num_pixels * squares - total**2) / num_pixels for total, squares in channels]
    return {
        "num_images": len(images),
        "images_per_class": dict(zip(classes, counts, strict=True)),
        "channel_sum": [total for total, _ in channels],
        "channel_sum_of_squares": [squares for _, squares in channels],
        "channel_mean": [round(total / num_pixels / 255, 6) for total, _ in channels],
        "channel_std": [round(deviation / 255, 6) for deviation in deviations],
    }


def first_of_each_class(images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """(classes, SAMPLES_PER_CLASS, 3, 32, 32) uint8: the first images of each class."""
    rows = []
    for label, name in enumerate(classes):
        first = np.flatnonzero(labels == label)[:SAMPLES_PER_CLASS]
        if len(first) < SAMPLES_PER_CLASS:
            raise DataError(f"class {name} has {len(first)} images in a split: at least {SAMPLES_PER_CLASS} are needed")
        rows.append(images[first])
    return np.stack(rows)


def _decode(members: Path, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The members one after another: images and labels."""
    images, labels = zip(*(_decoded(members / name, decode_batch) for name in names), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _decoded(path: Path, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(path.read_bytes())
    except DataError as error:
        raise DataError(f"{path}, although params.yaml has its sha256: {error}") from None


def _sums(pixels: np.ndarray) -> tuple[int, int]:
    """Sum and sum of squares of (N, 32, 32) uint8. In parts, because bincount takes 8 bytes a pixel."""
    histogram = np.zeros(256, dtype=np.int64)
    for part in np.array_split(pixels, max(len(pixels) // 5000, 1)):
        histogram += np.bincount(part.ravel(), minlength=256)
    values = np.arange(256)
    return int(histogram @ values), int(histogram @ values**2)


def _check_digests(folder: Path, actual: Mapping[str, str], expected: Mapping[str, str], remedy: str) -> None:
    if expected and set(expected) != set(FILES):
        raise DataError(f"params.yaml: data.arrays must be empty or have just the keys {', '.join(FILES)}")
    for name, digest in expected.items():
        if actual[name] != digest:
            raise DataError(
                f"{folder / name} has the sha256 {actual[name]}; params.yaml, data.arrays, expects {digest}. {remedy}"
            )


def _json(classes: tuple[str, ...]) -> bytes:
    return (json.dumps(classes, indent=1) + "\n").encode()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Not compressed: versions of zlib compress to different bytes. NumPy dates every entry 1980."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _load_classes(path: Path) -> tuple[str, ...]:
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _damaged(path, "not a list of names")
    return tuple(classes)


def _load_split(folder: Path, split: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    images_path, labels_path = folder / f"{split}_images.npy", folder / f"{split}_labels.npy"
    images, labels = _load(images_path), _load(labels_path)
    if images.shape[1:] != IMAGE_SHAPE:
        raise _damaged(images_path, f"shape {images.shape}, not (N, 3, 32, 32)")
    if labels.shape != images.shape[:1]:
        raise _damaged(labels_path, f"shape {labels.shape} for {len(images)} images")
    if labels.max(initial=0) >= num_classes:
        raise _damaged(labels_path, f"label {labels.max()} of {num_classes} classes")
    return images, labels


def _load(path: Path) -> np.ndarray:
    try:
        # mapped first: a header that promises more than the file holds would otherwise reserve memory for it
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header is parsed as Python, and raises whatever it happens to spell
        raise _damaged(path, str(error)) from None
    if array.dtype != np.uint8:
        raise _damaged(path, f"dtype {array.dtype}, not uint8")
    return np.array(array, order="C")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is not what `prepare` wrote ({reason}): run `dvc repro --force prepare`")

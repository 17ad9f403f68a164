"""Every test here runs on the handwritten digits, and on CIFAR-10 where its archive is."""

import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from resnet_repro.data.archive import TRAIN_MEMBERS, fetch_members
from resnet_repro.data.arrays import FILES, SAMPLES_PER_CLASS, data_digest, load_arrays, prepare_arrays
from resnet_repro.errors import DataError
from resnet_repro.params import Data, load
from sources import Digits

REPOSITORY = Path(__file__).parents[2]
CIFAR10 = Path(os.environ.get("CIFAR10_ARCHIVE") or REPOSITORY.parent / "shared/data/cifar-10-python.tar.gz")
AVAILABLE = ["digits", *(["cifar10"] if CIFAR10.is_file() else [])]


@dataclass(frozen=True)
class Known:
    """What others say of a data set; means and standard deviations of the training images, from 0 to 1."""

    classes: str
    counts: dict[str, list[int]]
    mean: list[float]
    std: list[float]
    tolerance: float


# The page of the data set, and the constants with which PyTorch's examples normalise
KNOWN_CIFAR10 = Known(
    classes="airplane automobile bird cat deer dog frog horse ship truck",
    counts={"train": [5000] * 10, "test": [1000] * 10},
    mean=[0.4914, 0.4822, 0.4465],
    std=[0.2470, 0.2435, 0.2616],
    tolerance=5.1e-5,
)


def known_digits() -> Known:
    """By PyTorch from scikit-learn's images, test images included."""
    source = load_digits()
    images = torch.from_numpy(source.images)[:, None] / 16
    enlarged = torch.nn.functional.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    of_class = np.bincount(source.target)
    return Known(
        classes="zero one two three four five six seven eight nine",
        counts={"train": (of_class - of_class // 6).tolist(), "test": (of_class // 6).tolist()},
        mean=[enlarged.mean().item()] * 3,
        std=[enlarged.std().item()] * 3,
        tolerance=5e-3,
    )


@dataclass(frozen=True)
class Prepared:
    data: Data
    members: Path
    arrays: Path
    report: Path
    known: Known


def prepare(data: Data, archive: Path, folder: Path, known: Known) -> Prepared:
    result = Prepared(data, folder / "members", folder / "arrays", folder / "report", known)
    fetch_members(data, result.members, archive=str(archive))
    prepare_arrays(data, result.members, result.arrays, result.report)
    return result


@pytest.fixture(scope="module", params=AVAILABLE)
def prepared(request, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "cifar10":
        return prepare(load(REPOSITORY / "params.yaml").data, CIFAR10, folder, KNOWN_CIFAR10)
    return prepare(Data(urls=(), members=digits.sha256), digits.path, folder, known_digits())


def test_arrays_are_the_members_in_order(prepared: Prepared):
    arrays = load_arrays(prepared.arrays)
    splits = {
        "train": (TRAIN_MEMBERS, arrays.train_images, arrays.train_labels),
        "test": (("test_batch",), arrays.test_images, arrays.test_labels),
    }
    for names, images, labels in splits.values():
        start = 0
        for name in names:
            batch = pickle.loads((prepared.members / name).read_bytes(), encoding="bytes")  # verified above
            stop = start + len(batch[b"labels"])
            assert np.array_equal(images[start:stop].reshape(-1, 3072), batch[b"data"])
            assert labels[start:stop].tolist() == batch[b"labels"]
            start = stop
        assert start == len(images) == len(labels)
    assert arrays.sha256 == data_digest(prepared.arrays)


def test_the_card_against_numpy(prepared: Prepared):
    card = json.loads((prepared.report / "card.json").read_text())
    arrays = load_arrays(prepared.arrays)
    figures = card["splits"]["test"]
    assert card["sha256"] == arrays.sha256
    assert card["classes"] == list(arrays.classes)
    assert figures["num_images"] == len(arrays.test_images)
    for channel in range(3):
        pixels = arrays.test_images[:, channel]
        assert figures["channel_sum"][channel] == pixels.sum(dtype=np.uint64)
        assert figures["channel_sum_of_squares"][channel] == (pixels.astype(np.uint32) ** 2).sum()
        assert figures["channel_mean"][channel] == pytest.approx(np.mean(pixels / 255), abs=6e-7)
        assert figures["channel_std"][channel] == pytest.approx(np.std(pixels / 255), abs=6e-7)


def test_samples_are_the_first_of_each_class(prepared: Prepared):
    arrays = load_arrays(prepared.arrays)
    with np.load(prepared.report / "samples.npz") as samples:
        for split, images, labels in (
            ("train", arrays.train_images, arrays.train_labels),
            ("test", arrays.test_images, arrays.test_labels),
        ):
            assert samples[split].shape == (10, SAMPLES_PER_CLASS, 3, 32, 32)
            for label in range(10):
                assert np.array_equal(samples[split][label], images[labels == label][:SAMPLES_PER_CLASS])


def test_the_same_bytes_again(prepared: Prepared, tmp_path):
    prepare_arrays(prepared.data, prepared.members, tmp_path / "arrays", tmp_path / "report")
    for first, again in ((prepared.arrays, tmp_path / "arrays"), (prepared.report, tmp_path / "report")):
        names = {path.name for path in first.iterdir()}
        assert names == {path.name for path in again.iterdir()}
        assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_the_card_against_published_statistics(prepared: Prepared):
    card = json.loads((prepared.report / "card.json").read_text())
    known = prepared.known
    assert card["classes"] == known.classes.split()
    for split, counts in known.counts.items():
        figures = card["splits"][split]
        assert figures["num_images"] == sum(counts)
        assert list(figures["images_per_class"].values()) == counts
    assert card["splits"]["train"]["channel_mean"] == pytest.approx(known.mean, abs=known.tolerance)
    assert card["splits"]["train"]["channel_std"] == pytest.approx(known.std, abs=known.tolerance)


@pytest.fixture
def own(digits: Digits, tmp_path: Path) -> Prepared:
    """Files of digits to damage."""
    return prepare(Data(urls=(), members=digits.sha256), digits.path, tmp_path, known_digits())


def test_arrays_are_held_against_params(own: Prepared, tmp_path):
    card = json.loads((own.report / "card.json").read_text())
    assert set(card["files"]) == set(FILES)
    right = own.data.model_copy(update={"arrays": card["files"]})
    prepare_arrays(right, own.members, tmp_path / "right", own.report)
    wrong = own.data.model_copy(update={"arrays": card["files"] | {"test_labels.npy": "0" * 64}})
    with pytest.raises(DataError, match=r"test_labels\.npy has the sha256 [0-9a-f]{64}; .* expects 0{64}"):
        prepare_arrays(wrong, own.members, tmp_path / "wrong", own.report)
    assert not (tmp_path / "wrong").exists()
    incomplete = own.data.model_copy(update={"arrays": {"test_labels.npy": "0" * 64}})
    with pytest.raises(DataError, match="just the keys"):
        prepare_arrays(incomplete, own.members, tmp_path / "wrong", own.report)


def test_a_damaged_member_is_caught_before_it_is_decoded(own: Prepared):
    path = own.members / "data_batch_4"
    path.write_bytes(path.read_bytes().replace(b"u1", b"i8"))
    with pytest.raises(DataError, match=r"data_batch_4 is not the file of params\.yaml"):
        prepare_arrays(own.data, own.members, own.arrays, own.report)


def npy(array: np.ndarray):
    return lambda path: np.save(path, array)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("test_images.npy", lambda path: path.write_bytes(path.read_bytes()[:-1]), "is not what"),
        ("test_images.npy", lambda path: path.write_bytes(b""), "is not what"),
        (
            "test_images.npy",
            lambda path: path.write_bytes(path.read_bytes().replace(b"(296,", b"(999999999999,")),
            "is not what",
        ),
        ("test_images.npy", npy(np.zeros((296, 3, 32, 31), np.uint8)), "shape"),
        ("test_images.npy", npy(np.zeros((296, 3, 32, 32), np.float32)), "float32, not uint8"),
        ("train_labels.npy", npy(np.zeros(3, np.uint8)), r"shape \(3,\) for 1501 images"),
        ("train_labels.npy", npy(np.full(1501, 10, np.uint8)), "label 10 of 10 classes"),
        (
            "train_labels.npy",
            lambda path: path.unlink(),
            "train_labels.npy is missing: run `dvc repro prepare`",
        ),
        ("train_labels.npy", lambda path: path.write_bytes(pickle.dumps(np.zeros(1501))), "is not what"),
        ("classes.json", lambda path: path.write_text("{}"), "not a list of names"),
        ("classes.json", lambda path: path.write_text("["), "not a list of names"),
    ],
)
def test_damaged_arrays_are_refused(own: Prepared, name: str, damage, message: str):
    digest = data_digest(own.arrays)
    damage(own.arrays / name)
    with pytest.raises(DataError, match=message) as caught:
        load_arrays(own.arrays)
    assert name in str(caught.value)
    if (own.arrays / name).exists():
        assert data_digest(own.arrays) != digest

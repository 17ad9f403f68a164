"""`resnet-repro predict` against Pillow's and torchvision's own answers."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from killing import make_trained
from resnet_repro import predict as module
from resnet_repro.data.arrays import load_arrays
from resnet_repro.data.preprocessing import Normalizer
from resnet_repro.errors import ReproError
from resnet_repro.evidence import PREDICTIONS, read_predictions
from resnet_repro.experiment import evaluate, load_classifier
from resnet_repro.models import build_model
from resnet_repro.models.classifier import Classifier
from resnet_repro.models.initialization import initialize
from resnet_repro.params import Architecture
from resnet_repro.predict import CLASSES, class_names, find_images, predict, read_image, trained_run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    net = build_model(Architecture(family="resnet", depth=8))
    initialize(net, "fan_out", 1)
    return Classifier(net, Normalizer(torch.full((3, 32, 32), 120.0), torch.full((3, 1, 1), 1 / 60))).eval()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_exported_test_images_get_the_predictions_of_the_pipeline(tmp_path: Path) -> None:
    make_trained(tmp_path)
    arrays = load_arrays(tmp_path / "data/cifar10")
    evaluate(tmp_path / "run", arrays, tmp_path / "out")
    expected = read_predictions(tmp_path / "out" / PREDICTIONS)
    (tmp_path / "images").mkdir()
    for index, image in enumerate(arrays.test_images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"images/{index:02}.png")
    found, _ = find_images([tmp_path / "images"])
    predictions = list(predict(load_classifier(tmp_path / "run"), found, class_names(tmp_path), num_top=1))
    assert np.array_equal([one.image for one in predictions], arrays.test_images)
    tops = [one.top[0] for one in predictions]
    assert [name for name, _ in tops] == [arrays.classes[label] for label in expected["predicted"]]
    assert np.array_equal(np.float16([p for _, p in tops]), expected["probability_predicted"])


def test_probabilities_come_in_the_order_of_files_and_the_likeliest_first(
    tmp_path: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    pixels = noise(5, 32, 32, 3)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_text("no image")
    found, _ = find_images([tmp_path])
    predictions = list(predict(classifier, found, CLASSES, num_top=10))
    assert [bool(one.problem) for one in predictions] == [False, False, True, False, False]
    with torch.inference_mode():
        chances = classifier(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()).softmax(dim=1)
    for one, row in zip(predictions, chances, strict=True):
        if not one.problem:
            assert [name for name, _ in one.top] == [CLASSES[label] for label in row.argsort(descending=True)]
            assert [p for _, p in one.top] == pytest.approx(row.sort(descending=True).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (96, 40), (40, 96), (20, 31)])
def test_others_are_cropped_to_a_square_and_resized_as_torchvision_does(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    pixels = noise(height, width, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, side = torch.from_numpy(pixels).permute(2, 0, 1), min(size)
    expected = transforms.resize(transforms.center_crop(image, [side]), [32, 32], antialias=True)
    assert torch.equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_large_one_is_first_reduced_and_looks_the_same(tmp_path: Path, form: str) -> None:
    slope = np.linspace(0, 255, 2100).astype(np.uint8)
    picture = np.stack([np.tile(slope, (2100, 1)), np.tile(slope[:, None], (1, 2100)), np.full((2100,) * 2, 90)], -1)
    Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "a", form, quality=95)
    expected = torch.linspace(0, 255, 65)[1::2]  # the middle of each of 32 parts
    red, green, blue = read_image(tmp_path / "a").float()
    assert (red - expected).abs().max() < 4
    assert (green - expected[:, None]).abs().max() < 4
    assert (blue - 90).abs().max() < 4


def test_folders_are_read_in_order_and_other_files_counted(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.JPG", "b/readme.txt", "c.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found, others = find_images([tmp_path, tmp_path / "b/readme.txt"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/1.JPG", "b/2.png", "c.gif", "b/readme.txt"]
    assert others == 1


def test_json_csv_and_table_say_the_same(tmp_path: Path, classifier: Classifier) -> None:
    Image.fromarray(noise(32, 32, 3)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    predictions = list(predict(classifier, [tmp_path / "a.png", tmp_path / "b.png"], CLASSES))
    records = json.loads(module.as_json(predictions, "net_a-1"))
    assert [(record["class"], record["probability"]) for record in records] == list(predictions[0].top)
    rest = {"file": str(tmp_path / "a.png"), "model": "net_a", "run": "net_a-1"}
    assert [record | rest for record in records] == records
    assert [record["rank"] for record in records] == [1, 2, 3]
    rows = list(csv.DictReader(io.StringIO(module.as_csv(predictions, "net_a-1"))))
    assert rows == [{key: str(value) for key, value in record.items()} for record in records]
    table = module.as_table(predictions, "net_a-1")
    for name, probability in predictions[0].top:
        assert f"{name} " in table
        assert f"{probability:.2%}" in table
    assert "b.png" in predictions[1].problem


def test_a_contact_sheet_shows_the_images(tmp_path: Path, classifier: Classifier) -> None:
    for index in range(103):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(tmp_path / f"{index:03}.png")
    predictions = list(predict(classifier, find_images([tmp_path])[0], CLASSES))
    assert module.write_sheet(predictions, tmp_path / "sheet.png") == 100
    with Image.open(tmp_path / "sheet.png") as sheet:
        reds = {pixel[0] for _, pixel in sheet.convert("RGB").getcolors(1 << 24) if pixel[1:] == (0, 0)}
    assert set(range(1, 100)) <= reds


def test_a_run_is_found_by_its_model_or_its_key(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    with pytest.raises(
        ReproError, match=r"resnet20 are not here: `dvc pull runs/resnet20-1`.*`dvc repro train@resnet20-1`"
    ):
        trained_run(tmp_path, "resnet20")
    with pytest.raises(ReproError, match="no model or run resnt20; did you mean 'resnet20'"):
        trained_run(tmp_path, "resnt20")
    for key in ("resnet20_fp32-2", "resnet20_fp32-1", "resnet20-1"):
        (tmp_path / "runs" / key).mkdir(parents=True)
        (tmp_path / "runs" / key / "weights.safetensors").touch()
    assert trained_run(tmp_path, "resnet20").name == "resnet20-1"
    assert trained_run(tmp_path, "resnet20_fp32").name == "resnet20_fp32-1"
    assert trained_run(tmp_path, "resnet20_fp32-2").name == "resnet20_fp32-2"
    with pytest.raises(ReproError, match=r"resnet32 are not here: .*; trained here: resnet20-1, resnet20_fp32-1, "):
        trained_run(tmp_path, "resnet32")


def test_class_names_are_those_of_the_data(tmp_path: Path) -> None:
    assert class_names(tmp_path) == CLASSES
    path = tmp_path / "data/cifar10/classes.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([*"abcdefghij"]))
    assert class_names(tmp_path) == (*"abcdefghij",)
    for damaged in ('["a", "b"', '["a"]', "1"):
        path.write_text(damaged)
        with pytest.raises(ReproError, match=r"classes\.json is no list of 10 names: run `dvc repro --force prepare`"):
            class_names(tmp_path)

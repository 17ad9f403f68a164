"""What `notebooks/tour.ipynb` calls: data that is always there, a net trained while you wait, and its pictures."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from ruamel.yaml import YAML

from resnet_repro import evidence, experiment
from resnet_repro.data.archive import read_members
from resnet_repro.data.arrays import Arrays, load_arrays, prepare_arrays
from resnet_repro.data.batches import epoch_views, pad
from resnet_repro.data.digits import write_digits_archive
from resnet_repro.data.preprocessing import fit
from resnet_repro.errors import ReproError
from resnet_repro.evidence import Plan
from resnet_repro.models import build_model, count_parameters
from resnet_repro.models.classifier import Classifier
from resnet_repro.params import Architecture, Data, Engine, Recipe, Schedule
from resnet_repro.reporting.figures.style import GREY, RED, TEST, TRAIN, WIDTH

MOST_IMAGES = 4000, 1000
"""trained on and tested on, so that an epoch takes seconds"""


def find_root(start: Path) -> Path:
    """The repository's root: `start`, or the nearest folder above it that has a params.yaml.

    Raises:
        ReproError: there is none.
    """
    found = (folder for folder in (start.absolute(), *start.absolute().parents) if (folder / "params.yaml").is_file())
    if (root := next(found, None)) is None:
        raise ReproError(f"no params.yaml in {start.absolute()} or above: open the notebook inside the repository")
    return root


def load_data(root: Path) -> tuple[Arrays, bool]:
    """The prepared data, or else scikit-learn's handwritten digits; and whether left and right may be exchanged."""
    if (root / "data/cifar10").is_dir():
        arrays = load_arrays(root / "data/cifar10")
        return arrays, "horse" in arrays.classes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        members = write_digits_archive(folder / "digits.tar.gz")
        (folder / "members").mkdir()
        with (folder / "digits.tar.gz").open("rb") as stream:
            for member, content in read_members(stream, members):
                (folder / "members" / member).write_bytes(content)
        prepare_arrays(Data(urls=(), members=members), folder / "members", folder / "arrays", folder / "card")
        return load_arrays(folder / "arrays"), False


def make_recipe(num_steps: int, flip: bool) -> Recipe:
    """The recipe of `make demo`, for `num_steps` steps."""
    tree = YAML(typ="safe").load(Path(__file__).with_name("demo.yaml"))["recipes"]["demo"]
    drops = (num_steps * 2 // 3, num_steps * 5 // 6)
    schedule = Schedule(unit="steps", stop=num_steps, learning_rate=0.1, drops=drops, drop_factor=0.1)
    tree |= {"schedule": schedule.model_dump(), "augmentation": {"flip": flip}}
    return Recipe.model_validate(tree)


def augmented(arrays: Arrays, recipe: Recipe, image: int, num_epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """What the net sees of a training image in the first epochs.

    Returns (num_epochs, 3, 32, 32) float32, preprocessed, and the same as uint8 with the mean added back.
    """
    images, labels = (torch.from_numpy(part[: MOST_IMAGES[0]]) for part in (arrays.train_images, arrays.train_labels))
    normalizer = fit(recipe.preprocessing, images.numpy())
    padded = pad(recipe.augmentation, images, labels, normalizer)
    seen = []
    for epoch in range(num_epochs):
        views = epoch_views(recipe.augmentation, 1, epoch, len(labels), recipe.batch_size)
        here = views.index == image
        seen.append(padded.take(views.index[here], views.row[here], views.column[here], views.flip[here])[0])
    preprocessed = torch.stack(seen)
    shown = (preprocessed / normalizer.scale + normalizer.mean).round().clamp(0, 255).to(torch.uint8)
    return preprocessed.numpy(), shown.numpy()


def train_small_net(arrays: Arrays, recipe: Recipe, seed: int = 1) -> tuple[pd.DataFrame, Classifier, Arrays]:
    """Train an 8-layer ResNet as the pipeline trains, on some of the images.

    Returns its history, the net, and the images that were used.
    """
    train, test = MOST_IMAGES
    small = replace(
        arrays,
        train_images=arrays.train_images[:train],
        train_labels=arrays.train_labels[:train],
        test_images=arrays.test_images[:test],
        test_labels=arrays.test_labels[:test],
    )
    architecture = Architecture(family="resnet", depth=8)
    plan = Plan(
        model="resnet8",
        recipe_name="tour",
        layers=8,
        parameters=count_parameters(build_model(architecture)),
        architecture=architecture,
        recipe=recipe,
        engine=Engine(mode="eager", precision="fp32"),
        fingerprint={},
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
        run, nobody = folder / "run", experiment.Observers([])
        experiment.train(folder / "plan.json", seed, small, run, folder / "checkpoints", nobody)
        return evidence.read_history(run), experiment.load_classifier(run), small


def learning_figure(history: pd.DataFrame) -> Figure:
    """Loss (left) and error (right) over the epochs, of training and of test images."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    for axes, kind, label in zip(
        figure.subplots(1, 2), ("loss", "error_percent"), ("loss (nats)", "error (%)"), strict=True
    ):
        axes.plot(history["epoch"], history[f"train_{kind}"], color=GREY, label="training", **TRAIN)
        axes.plot(history["epoch"], history[f"test_{kind}"], color=RED, label="test", **TEST)
        axes.set(xlabel="epoch", ylabel=label, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    return figure


@torch.no_grad()
def predictions_of(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Per image: `label`, `predicted`, `probability_predicted`; as in a run's predictions.npz."""
    probabilities = classifier(torch.from_numpy(images)).softmax(dim=1)
    chosen = probabilities.max(dim=1)
    columns = {"label": labels, "predicted": chosen.indices, "probability_predicted": chosen.values}
    return pd.DataFrame({name: np.asarray(column) for name, column in columns.items()})


def most_confident_mistakes(predictions: pd.DataFrame, images: np.ndarray, classes: Sequence[str]) -> Figure:
    """Up to twelve images whose wrong class has the highest probability."""
    wrong = predictions[predictions.label != predictions.predicted].astype({"probability_predicted": float})
    worst = wrong.nlargest(12, "probability_predicted")
    columns = (worst["label"], worst["predicted"], worst["probability_predicted"])
    titles = [
        f"{classes[label]}, said\n{classes[predicted]} ({probability:.0%})"
        for label, predicted, probability in zip(*columns, strict=True)
    ]
    return image_grid(images[worst.index], titles, columns=6)


def image_grid(images: np.ndarray, titles: Sequence[str], columns: int) -> Figure:
    """(N, 3, H, W) uint8 images with a title each."""
    lines = max(-(-len(images) // columns), 1)
    figure = Figure(figsize=(WIDTH, lines * (WIDTH / columns + 0.4)), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes in panels:
        axes.set_axis_off()
    for axes, image, title in zip(figure.axes, images, titles, strict=False):
        axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        axes.set_title(title, fontsize=8, fontweight="normal")
    return figure

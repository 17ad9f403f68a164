import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from resnet_repro.data.batches import PaddedImages, epoch_order, epoch_views, pad, split
from resnet_repro.data.preprocessing import Normalizer, fit
from resnet_repro.params import Augmentation, Preprocessing, load
from resnet_repro.schedule import steps_per_epoch

RECIPE = load(Path(__file__).parents[2] / "params.yaml").recipes["he2015"]
CPU = torch.device("cpu")
SIZE = 10
RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (6, 3, SIZE, SIZE), dtype=np.uint8)
LABELS = torch.arange(6)
KINDS = {
    "pixel_mean": Preprocessing(kind="pixel_mean"),
    "mean_std": Preprocessing(kind="mean_std"),
    "constants": Preprocessing(kind="constants", mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26)),
    "zca": Preprocessing(kind="zca"),
}


def normalizer_of(kind: str) -> Normalizer:
    return fit(KINDS[kind], IMAGES).to(CPU, torch.float64)


def padded(params: Augmentation, kind: str = "pixel_mean") -> PaddedImages:
    return pad(params, torch.from_numpy(IMAGES), LABELS, normalizer_of(kind))


def by_torchvision(params: Augmentation, kind: str, row: int, column: int, flip: bool) -> Tensor:
    """Pad, crop, flip of torchvision, before or after the preprocessing as the recipe's fill says."""
    normalizer, images, p = normalizer_of(kind), torch.from_numpy(IMAGES), params.padding
    if params.fill == "zero":
        images = vision.pad(normalizer(images), [p] * 4, fill=0)
    elif params.fill == "reflect":
        images = vision.pad(normalizer(images), [p] * 4, padding_mode="reflect") if p else normalizer(images)
    else:  # black
        mean, std = normalizer.mean[:, 0, 0].tolist(), (1 / normalizer.scale[:, 0, 0]).tolist()
        images = vision.normalize(vision.pad(images, [p] * 4, fill=0).double(), mean, std)
    images = vision.crop(images, row, column, SIZE, SIZE)
    return vision.horizontal_flip(images) if flip else images


@pytest.mark.parametrize(
    ("fill", "kind"),
    [
        *(("zero", kind) for kind in KINDS),
        ("black", "mean_std"),
        ("black", "constants"),
        *(("reflect", kind) for kind in KINDS),
    ],
)
@settings(max_examples=25)
@given(data=st.data())
def test_every_view_is_torchvisions(fill, kind, data):
    padding = data.draw(st.integers(0, 4), label="padding")
    row, column = (data.draw(st.integers(0, 2 * padding)) for _ in range(2))
    flip = data.draw(st.booleans())
    params = Augmentation(padding=padding, fill=fill)
    count = len(IMAGES)
    rows, columns, flips = (torch.full((count,), value) for value in (row, column, flip))
    views = padded(params, kind).take(torch.arange(count), rows, columns, flips)
    torch.testing.assert_close(views, by_torchvision(params, kind, row, column, flip), rtol=1e-12, atol=1e-12)


def test_reflection_of_pixels_is_reflection_of_the_preprocessed_image():
    """Zagoruyko 2016 reflects the image and then normalises; one mean per channel makes no difference."""
    normalizer = normalizer_of("mean_std")
    reflected = torch.from_numpy(np.pad(IMAGES, ((0, 0), (0, 0), (3, 3), (3, 3)), mode="reflect"))
    mean, std = normalizer.mean[:, 0, 0].tolist(), (1 / normalizer.scale[:, 0, 0]).tolist()
    expected = vision.crop(vision.normalize(reflected.double(), mean, std), 1, 6, SIZE, SIZE)
    views = padded(Augmentation(padding=3, fill="reflect"), "mean_std")
    six = torch.ones(6, dtype=torch.int64)
    torch.testing.assert_close(views.take(torch.arange(6), six, 6 * six, six == 0), expected)


def test_a_batch_mixes_views():
    params = Augmentation(padding=2, fill="zero")
    index, row = torch.tensor([4, 0, 4, 5]), torch.tensor([0, 4, 1, 2])
    column, flip = torch.tensor([3, 0, 4, 2]), torch.tensor([True, False, False, True])
    batch = padded(params).take(index, row, column, flip)
    for i in range(4):
        expected = by_torchvision(params, "pixel_mean", int(row[i]), int(column[i]), bool(flip[i]))[index[i]]
        torch.testing.assert_close(batch[i], expected)


def test_float32_images_are_as_good():
    normalizer = fit(KINDS["pixel_mean"], IMAGES)
    views = pad(Augmentation(crop="none", flip=False), torch.from_numpy(IMAGES), LABELS, normalizer)
    four = torch.full((6,), 4)
    images = views.take(torch.arange(6), four, four, four == 0)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, normalizer(torch.from_numpy(IMAGES)))


@given(st.integers(1, 2**31), st.integers(0, 2**20), st.integers(1, 500))
def test_an_epochs_order_is_a_permutation(seed, epoch, count):
    assert torch.equal(epoch_order(seed, epoch, count).sort().values, torch.arange(count))


@given(st.integers(1, 2**31), st.integers(0, 2**20))
def test_other_epochs_and_seeds_have_other_orders(seed, epoch):
    order = epoch_order(seed, epoch, 50)
    assert torch.equal(order, epoch_order(seed, epoch, 50))
    for other in ((seed, epoch + 1), (seed + 1, epoch), (seed + 1, epoch + 1)):
        assert not torch.equal(order, epoch_order(*other, 50))


def test_every_image_comes_equally_often_at_every_place():
    places = torch.stack([epoch_order(1, epoch, 10) for epoch in range(3000)])
    for image in range(10):
        counts = [int((places[:, place] == image).sum()) for place in range(10)]
        assert stats.chisquare(counts).pvalue > 1e-4
    neighbours = torch.bincount((places[:, 0] * 10 + places[:, 1]), minlength=100).view(10, 10)
    assert stats.chisquare(neighbours[~torch.eye(10, dtype=torch.bool)]).pvalue > 1e-4


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("draw", ["image", "batch"])
def test_crops_and_flips_are_uniform_and_independent(seed, draw):
    params = Augmentation(padding=4, draw=draw)
    batch_size = 1 if draw == "batch" else 128
    views = [epoch_views(params, seed, epoch, 10_000, batch_size) for epoch in range(3)]
    row, column, flip = (torch.cat([getattr(v, name) for v in views]) for name in ("row", "column", "flip"))
    assert (int(row.min()), int(row.max()), int(column.min()), int(column.max())) == (0, 8, 0, 8)
    table = torch.bincount((row * 9 + column) * 2 + flip, minlength=162)
    assert stats.chisquare(table).pvalue > 1e-3
    # from one epoch to the next, by image
    first, second = (v.row[v.index.argsort()] for v in views[:2])
    assert stats.chisquare(torch.bincount(first * 9 + second, minlength=81)).pvalue > 1e-3


@pytest.mark.parametrize("padding", [0, 1, 2, 7, 16])
def test_every_crop_comes_and_equally_often(padding):
    offsets = 2 * padding + 1
    views = epoch_views(Augmentation(padding=padding), 1, 0, 50 * offsets**2, 128)
    seen = torch.bincount(views.row * offsets + views.column)
    assert len(seen) == offsets**2
    assert int(seen.min()) > 0
    assert padding == 0 or stats.chisquare(seen).pvalue > 1e-3


AUGMENTATIONS = st.builds(
    Augmentation,
    padding=st.integers(0, 5),
    fill=st.sampled_from(["zero", "reflect"]),
    crop=st.sampled_from(["random", "five", "none"]),
    flip=st.booleans(),
    draw=st.sampled_from(["image", "batch"]),
)


@given(AUGMENTATIONS, st.sampled_from(["keep", "drop"]), st.integers(1, 60), st.integers(1, 20), st.integers(0, 9))
def test_an_epoch_has_every_image_once_with_its_label(params, last_batch, count, batch_size, epoch):
    """Image n is all n + 1, wherever it is not padding, and so is its label."""
    labels = torch.arange(1, count + 1)
    pixels = labels.to(torch.uint8)[:, None, None, None].expand(count, 3, 6, 6)
    images = pad(params, pixels, labels, Normalizer(torch.zeros(3, 6, 6), torch.ones(3, 1, 1)))
    views = epoch_views(params, 1, epoch, count, batch_size)
    places = torch.arange(count).split(batch_size)
    batches = [place for place in places if last_batch == "keep" or len(place) == batch_size]
    recipe = RECIPE.model_copy(update={"batch_size": batch_size, "last_batch": last_batch})
    assert len(batches) == steps_per_epoch(recipe, count)
    seen = []
    for place in batches:
        index = views.index[place]
        batch = images.take(index, views.row[place], views.column[place], views.flip[place])
        assert torch.equal(batch.amax(dim=(1, 2, 3)).long(), images.labels[index])
        assert set(batch.unique().tolist()) <= {0.0, *images.labels[index].tolist()}
        seen += index.tolist()
    assert len(seen) == len(set(seen)) == (count if last_batch == "keep" else count // batch_size * batch_size)
    assert set(seen) <= set(range(count))


@given(AUGMENTATIONS, st.integers(1, 2**32 - 1), st.integers(0, 10**6))
@settings(max_examples=10)
def test_views_do_not_depend_on_threads_or_on_what_was_drawn_before(params, seed, epoch):
    first = epoch_views(params, seed, epoch, 5000, 64)
    epoch_views(params, seed, epoch + 1, 5000, 64)
    torch.set_num_threads(4)
    again = epoch_views(params, seed, epoch, 5000, 64)
    torch.set_num_threads(1)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in ("index", "row", "column", "flip"))


def test_five_crops_are_torchvisions():
    params = Augmentation(padding=2, crop="five", fill="zero", flip=False)
    images = padded(params)
    whole = vision.pad(normalizer_of("pixel_mean")(torch.from_numpy(IMAGES)), [2] * 4, fill=0)
    crops = vision.five_crop(whole, [SIZE, SIZE])
    seen = [0] * 5
    for epoch in range(200):
        views = epoch_views(params, 1, epoch, 6, 128)
        batch = images.take(views.index, views.row, views.column, views.flip)
        for image, index in zip(batch, views.index.tolist(), strict=True):
            (which,) = [i for i in range(5) if torch.allclose(image, crops[i][index], atol=1e-12)]
            seen[which] += 1
    assert stats.chisquare(seen).pvalue > 1e-3


def test_neither_crop_nor_flip_leaves_the_image():
    params = Augmentation(crop="none", flip=False)
    views = epoch_views(params, 1, 0, 6, 128)
    images = padded(params).take(views.index, views.row, views.column, views.flip)
    expected = normalizer_of("pixel_mean")(torch.from_numpy(IMAGES))[views.index]
    torch.testing.assert_close(images, expected)


def test_one_draw_per_batch():
    """The Lasagne project's utils.py: one offset and one flip for all images of a batch."""
    views = epoch_views(Augmentation(draw="batch"), 1, 0, 1000, 64)
    drawn = torch.stack([views.row, views.column, views.flip.long()], dim=1).split(64)
    assert [len(batch.unique(dim=0)) for batch in drawn] == [1] * 16
    assert len(torch.stack([batch[0] for batch in drawn]).unique(dim=0)) > 10


def test_one_draw_per_image_does_not_depend_on_the_batch():
    one, other = (epoch_views(Augmentation(), 1, 0, 1000, size) for size in (64, 128))
    for name in ("index", "row", "column", "flip"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@given(st.integers(1, 300), st.data())
def test_a_split_is_disjoint_and_complete(count, data):
    held_out = data.draw(st.integers(0, count))
    trained, rest = split(count, held_out, data.draw(st.integers(0, 1000)))
    assert len(rest) == held_out
    assert torch.equal(torch.cat([trained, rest]).sort().values, torch.arange(count))
    assert torch.equal(trained, trained.sort().values)
    assert torch.equal(rest, rest.sort().values)


def test_a_split_depends_on_its_seed_only():
    assert torch.equal(split(50_000, 5000, 1)[1], split(50_000, 5000, 1)[1])
    common = np.intersect1d(split(50_000, 5000, 1)[1], split(50_000, 5000, 2)[1])
    expected, deviation = 500, math.sqrt(5000 * 0.1 * 0.9 * 0.9)  # hypergeometric
    assert abs(len(common) - expected) < 5 * deviation

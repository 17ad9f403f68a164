"""Which image comes when, cropped and flipped how: pure functions of (seed, epoch, image).

Nothing here has a state, so a resumed run sees what the unbroken run would have seen, on any device.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_repro.counter_hash import hash32
from resnet_repro.data.preprocessing import Normalizer
from resnet_repro.params import Augmentation

# What a hash is for; the first counter of every hash, so that no two uses share their numbers.
ORDER, ROW, COLUMN, FLIP, SPLIT, DROPOUT = range(1, 7)


def epoch_order(seed: int, epoch: int, num_images: int, device: torch.device | None = None) -> Tensor:
    """The images of an epoch in order: (num_images,) int64, a permutation."""
    return _permutation(num_images, device, ORDER, seed, epoch)


def split(num_images: int, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (int64, ascending) of the images trained on and of those held out."""
    order = _permutation(num_images, None, SPLIT, seed, 0)
    return order[held_out:].sort().values, order[:held_out].sort().values


def _permutation(num_images: int, device: torch.device | None, *counters: int) -> Tensor:
    image = torch.arange(num_images, device=device)
    # 62 bits, so that ties practically never occur; a stable sort settles them the same way everywhere
    keys = (hash32(*counters, 0, image) >> 1 << 31) | (hash32(*counters, 1, image) >> 1)
    return keys.sort(stable=True).indices


@dataclass(frozen=True)
class Views:
    """How each image of an epoch is seen, in the epoch's order.

    index: (N,) int64 image; row, column: (N,) int64 upper left corner of the crop in the padded image;
    flip: (N,) bool.
    """

    index: Tensor
    row: Tensor
    column: Tensor
    flip: Tensor


def epoch_views(
    params: Augmentation,
    seed: int,
    epoch: int,
    num_images: int,
    batch_size: int,
    device: torch.device | None = None,
) -> Views:
    """The order and the augmentation of one epoch (counted from 0)."""
    index = epoch_order(seed, epoch, num_images, device)
    # one draw per image, or the same for all of a batch
    drawn_by = index if params.draw == "image" else torch.arange(num_images, device=device) // batch_size
    offsets = 2 * params.padding + 1
    if params.crop == "random":
        row = hash32(ROW, seed, epoch, drawn_by) * offsets >> 32
        column = hash32(COLUMN, seed, epoch, drawn_by) * offsets >> 32
    elif params.crop == "five":  # four corners and the centre
        which = hash32(ROW, seed, epoch, drawn_by) * 5 >> 32
        far = 2 * params.padding
        row = torch.where(which == 4, params.padding, (which >> 1 & 1) * far)
        column = torch.where(which == 4, params.padding, (which & 1) * far)
    else:
        row = column = torch.full_like(index, params.padding)
    flip = hash32(FLIP, seed, epoch, drawn_by) >= 2**31
    return Views(index, row, column, flip if params.flip else torch.zeros_like(flip))


@dataclass(frozen=True)
class PaddedImages:
    """A data set ready for cropping: whitened where the recipe says so, padded, not yet normalised.

    images: (N, 3, H + 2p, W + 2p) uint8 (float for zca); mean: (3, H + 2p, W + 2p) and scale: (3, 1, 1)
    float, to be applied after the crop; labels: (N,) int64.
    """

    images: Tensor
    mean: Tensor
    scale: Tensor
    labels: Tensor
    size: int

    def take(self, index: Tensor, row: Tensor, column: Tensor, flip: Tensor) -> Tensor:
        """Crop, flip and normalise: four (B,) tensors as in `Views` -> (B, 3, H, W) of the mean's dtype.

        One gather does order, crop and flip. What is normalised is the pixel with the mean of its own place,
        so padding that is 0 in both stays 0.
        """
        device = self.images.device
        place = torch.arange(self.size, device=device)
        rows = (row[:, None] + place)[:, None, :, None]
        mirrored = torch.where(flip[:, None], self.size - 1 - place, place)
        columns = (column[:, None] + mirrored)[:, None, None, :]
        channels = torch.arange(self.images.shape[1], device=device)[None, :, None, None]
        pixels = self.images[index[:, None, None, None], channels, rows, columns]
        return (pixels.to(self.mean.dtype) - self.mean[channels, rows, columns]) * self.scale


def pad(params: Augmentation, images: Tensor, labels: Tensor, normalizer: Normalizer) -> PaddedImages:
    """Pad (N, 3, H, W) uint8 images on all four sides for `params`, on the device where they are."""
    p = params.padding
    around = (p, p, p, p)
    images = normalizer.whiten(images)
    if params.fill == "reflect":
        # torch has no reflection for uint8, and a float copy of the whole set would be four times as large
        for dim in (2, 3):
            before = images.narrow(dim, 1, p).flip(dim)
            after = images.narrow(dim, images.shape[dim] - 1 - p, p).flip(dim)
            images = torch.cat([before, images, after], dim=dim)
        mean = F.pad(normalizer.mean[None], around, mode="reflect")[0] if p else normalizer.mean
    elif params.fill == "black":  # one mean per channel (params.Recipe sees to it), so its value is known outside
        images, mean = F.pad(images, around), F.pad(normalizer.mean[None], around, mode="replicate")[0]
    else:
        images, mean = F.pad(images, around), F.pad(normalizer.mean, around)
    size = images.shape[-1] - 2 * p
    return PaddedImages(images, mean, normalizer.scale, labels.to(torch.int64), size)

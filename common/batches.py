"""The data set on the device, as uint8, and batches cut from it there: no DataLoader, no workers.

An augmented image is a *view*: one of a finite set of shifts, mirrored or not, with a hole in one
of many places. So a pair (index, view) names an input exactly, and what a frozen network says to it
can be remembered.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from common.config import Config
from common.data import Arrays, split
from common.models import MEAN

SIDE = 28  # pixels
GREY = round(255 * MEAN)  # the training images' mean


class Batch(NamedTuple):
    images: Tensor  # (N, 1, 28, 28) uint8: networks normalise their input themselves
    labels: Tensor  # (N,) int64
    index: Tensor  # (N,) int64, position in the training set
    view: Tensor  # (N,) int64, below Views.count


@dataclass(frozen=True)
class Views:
    """Random crops of the image padded by `padding` black pixels; with `flip` mirrored or not;
    with a grey square of `cutout` pixels a side around any pixel (DeVries and Taylor 2017, Cutout).
    """

    padding: int
    flip: bool
    cutout: int = 0

    @classmethod
    def of(cls, config: Config) -> Self:
        return cls(config.padding, config.flip, config.cutout)

    @property
    def count(self) -> int:
        shifts = (2 * self.padding + 1) ** 2
        return shifts * (1 + self.flip) * (SIDE**2 if self.cutout else 1)

    def met(self, epochs: int) -> float:
        """How many views of an image so many epochs are expected to show."""
        return self.count * (1 - (1 - 1 / self.count) ** epochs)

    def cut(self, padded: Tensor, index: Tensor, view: Tensor) -> Tensor:
        """View number `view` (N,) of image `index` (N,) of `padded` (M, 28 + 2p, 28 + 2p).

        Returns (N, 1, 28, 28). A view's number is ((shift · 2 + mirrored) · 784 + hole's centre),
        without what there is not: with padding 1 and flip, number 8 is the image itself.
        """
        place = torch.arange(SIDE, device=view.device)
        if self.cutout:
            view, centre = view // SIDE**2, view % SIDE**2
        side, flips = 2 * self.padding + 1, 1 + self.flip
        shift, mirrored = view // flips, (view % flips == 1)[:, None]
        rows = place + (shift // side)[:, None]
        columns = torch.where(mirrored, SIDE - 1 - place, place) + (shift % side)[:, None]
        images = padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        if self.cutout:
            hole = self._near(centre // SIDE)[:, :, None] & self._near(centre % SIDE)[:, None, :]
            images = images.masked_fill(hole, GREY)
        return images.unsqueeze(1)

    def _near(self, centre: Tensor) -> Tensor:
        """Which of an image's rows, or columns, a hole around `centre` (N,) reaches: (N, 28)."""
        start = (centre - self.cutout // 2)[:, None]
        place = torch.arange(SIDE, device=centre.device)
        return (place >= start) & (place < start + self.cutout)


class Dataset:
    """Training, held-out and test images and labels on one device."""

    def __init__(self, arrays: Arrays, views: Views, device: torch.device | str):
        def place(values, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        train, held_out = split(arrays.train_labels)
        self.digest = arrays.digest
        self.views = views
        self.device = torch.device(device)
        margin = (views.padding,) * 4
        images = place(arrays.train_images[train], torch.uint8)
        self.train_images = functional.pad(images, margin)  # (55000, 28 + 2p, 28 + 2p) uint8
        self.train_labels = place(arrays.train_labels[train], torch.int64)
        self.val_images = place(arrays.train_images[held_out], torch.uint8).unsqueeze(1)
        self.val_labels = place(arrays.train_labels[held_out], torch.int64)
        self.test_images = place(arrays.test_images, torch.uint8).unsqueeze(1)
        self.test_labels = place(arrays.test_labels, torch.int64)

    def __len__(self) -> int:
        return len(self.train_labels)

    def epoch(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Order and views (index, view), both (55000,), of an epoch: functions of (seed, epoch).

        Drawn on the CPU, so that every device sees the same epoch. Of the generator's seed 32 bits
        count: below 4,000 no two seeds share an epoch, above it a few may.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        index = torch.randperm(len(self), generator=generator)
        view = torch.randint(self.views.count, (len(self),), generator=generator)
        return index.to(self.device), view.to(self.device)

    def batch(self, index: Tensor, view: Tensor) -> Batch:
        images = self.views.cut(self.train_images, index, view)
        return Batch(images, self.train_labels[index], index, view)

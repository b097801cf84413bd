import itertools

import numpy as np
import torch

from common.batches import Dataset, Views
from common.data import load


def test_views_are_shifts_and_mirrors():
    image = torch.arange(28 * 28).remainder(251).to(torch.uint8).reshape(1, 28, 28)
    views = Views(padding=1, flip=True)
    assert views.count == 18
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    cut = views.cut(padded, torch.zeros(18, dtype=torch.long), torch.arange(18))
    for view in range(18):
        shift, mirrored = divmod(view, 2)
        dy, dx = divmod(shift, 3)
        expected = padded[0, dy : dy + 28, dx : dx + 28]
        expected = expected.flip(1) if mirrored else expected
        assert torch.equal(cut[view, 0], expected), view


def test_a_cutout_is_a_grey_square_around_any_pixel():
    image = torch.full((1, 30, 30), 200, dtype=torch.uint8)
    views = Views(padding=1, flip=True, cutout=8)
    assert views.count == 18 * 784
    for view, row, column in ((0, 0, 0), (5 * 784 + 400, 14, 8), (views.count - 1, 27, 27)):
        cut = views.cut(image, torch.tensor([0]), torch.tensor([view]))[0, 0]
        expected = torch.full((28, 28), 200, dtype=torch.uint8)
        expected[max(row - 4, 0) : row + 4, max(column - 4, 0) : column + 4] = 73
        assert torch.equal(cut, expected), view


def test_a_view_with_a_cutout_is_shifted_and_mirrored_as_without():
    image = torch.randint(256, (1, 30, 30), dtype=torch.uint8)
    whole, holed = Views(1, True), Views(1, True, cutout=4)
    for view in range(18):
        without = whole.cut(image, torch.tensor([0]), torch.tensor([view]))[0, 0]
        cut = holed.cut(image, torch.tensor([0]), torch.tensor([784 * view + 27]))[0, 0]
        assert torch.equal(cut[4:], without[4:]) and torch.equal(cut[:, :24], without[:, :24])


def test_augmentation_can_be_switched_off(tiny_data):
    arrays = load(tiny_data)
    data = Dataset(arrays, Views(padding=0, flip=False), "cpu")
    assert data.views.count == 1
    index, view = data.epoch(seed=0, epoch=1)
    batch = data.batch(index[:8], view[:8])
    assert batch.images.shape == (8, 1, 28, 28) and batch.images.dtype == torch.uint8
    kept = {image.tobytes() for image in arrays.train_images}
    assert all(image.numpy().tobytes() in kept for image in batch.images)


def test_an_epoch_is_a_function_of_seed_and_epoch(dataset):
    index, view = dataset.epoch(3, 5)
    torch.rand(7)  # the global generator does not matter
    again = dataset.epoch(3, 5)
    assert torch.equal(index, again[0]) and torch.equal(view, again[1])
    assert sorted(index.tolist()) == list(range(len(dataset)))
    for one, two in itertools.combinations([(3, 5), (3, 6), (4, 5)], 2):
        pairs = zip(dataset.epoch(*one), dataset.epoch(*two), strict=True)
        assert not any(torch.equal(*pair) for pair in pairs)
    assert set(view.tolist()) == set(range(18))


def test_batches_have_the_labels_of_their_images(dataset):
    index, view = dataset.epoch(0, 1)
    batch = dataset.batch(index, view)
    assert torch.equal(batch.labels, dataset.train_labels[index])
    rows = batch.images[:, 0].float().mean(2).numpy()  # the bar's place tells the class
    bar = np.array([np.convolve(row, np.ones(3), "valid").argmax() for row in rows])
    shift = (view // 2 // 3).numpy() - 1  # the crop starts so many rows further down
    assert ((bar + shift - 4) / 2 == batch.labels.numpy()).all()


def test_held_out_and_test_images_are_not_trained_on(tiny_data, dataset):
    arrays = load(tiny_data)
    train = {image[1:-1, 1:-1].numpy().tobytes() for image in dataset.train_images}
    assert len(dataset) == 240 and len(dataset.val_labels) == 20
    for images in (dataset.val_images, dataset.test_images):
        assert not any(image[0].numpy().tobytes() in train for image in images)
    assert len(arrays.train_labels) == 260

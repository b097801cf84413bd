import pytest
import torch
from torch import nn

from common.claims import NOTES
from common.models import (
    MEAN,
    NETWORKS,
    STD,
    ConvNorm,
    Normalize,
    build,
    count_multiply_adds,
    count_parameters,
    freeze,
)

# name: parameters, and the most multiply-adds an image that the bench allows itself
BUDGETS = {
    "resnet": (1_351_882, 60e6),
    "cnn": (1_031_018, 60e6),
    "small-cnn": (175_018, 25e6),
    "deeper-cnn": (174_602, 45e6),
}
IMAGES = torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8)


@pytest.mark.parametrize("name", BUDGETS)
def test_sizes(name):
    parameters, most = BUDGETS[name]
    network = build(name)
    assert count_parameters(network) == parameters
    assert count_multiply_adds(network) <= most
    assert network.training  # counting leaves the mode as it was


def test_sizes_are_those_of_the_notes():
    for arch, name in (("resnet", "teacher-resnet"), ("small-cnn", "baseline")):
        _, parameters = NOTES[name]
        assert count_parameters(build(arch)) == pytest.approx(parameters, rel=0.005)


def test_multiply_adds_by_hand():
    # 3x3 convolutions at 28, 14 and 7 pixels a side, then two matrix products
    expected = 28**2 * 9 * (32 + 32 * 32) + 14**2 * 9 * (32 * 64 + 64 * 64) + 7**2 * 9 * 64 * 128
    assert count_multiply_adds(build("small-cnn")) == expected + 128 * 256 + 256 * 10


@pytest.mark.parametrize("name", BUDGETS)
def test_widths_are_multiples_of_8(name):
    widths = [m.out_channels for m in build(name).modules() if isinstance(m, nn.Conv2d)]
    assert widths and all(width % 8 == 0 for width in widths)


def test_the_small_network_is_plain():
    allowed = (nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.ReLU, nn.MaxPool2d, nn.Linear)
    for module in build("small-cnn").modules():
        if isinstance(module, nn.Conv2d):
            assert module.groups == 1  # no depthwise tricks
        if not list(module.children()):
            assert isinstance(module, allowed) or type(module).__name__ in (
                "Normalize",
                "GlobalMean",
            )


@pytest.mark.parametrize("name", BUDGETS)
def test_logits_of_images_as_they_are_on_disk(name):
    torch.manual_seed(0)
    network = build(name).eval()
    with torch.no_grad():
        logits = network(IMAGES)
        normalised = (IMAGES.float() / 255 - MEAN) / STD
        torch.testing.assert_close(network(normalised), logits, rtol=1e-4, atol=1e-5)
    assert logits.shape == (8, 10) and logits.dtype == torch.float32


def test_normalisation_is_that_of_the_training_images():
    from common.data import load

    pixels = torch.from_numpy(load().train_images.copy())
    normalised = Normalize()(pixels)
    assert normalised.mean().abs() < 1e-3 and (normalised.std() - 1).abs() < 1e-3


def test_the_seed_decides_the_initial_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return list(build("small-cnn").parameters())

    assert all(map(torch.equal, weights(3), weights(3)))
    assert not all(map(torch.equal, weights(3), weights(4)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_frozen_network_is_the_same_function(name):
    torch.manual_seed(0)
    network = build(name)
    for _ in range(3):
        network(IMAGES)  # running statistics other than the initial ones
    network.eval()
    with torch.no_grad():
        expected = network(IMAGES)
    frozen = freeze(network)
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    assert not any(isinstance(m, ConvNorm) for m in frozen.modules())
    torch.testing.assert_close(frozen(IMAGES), expected, rtol=1e-3, atol=1e-4)


def test_a_frozen_network_keeps_what_a_block_of_ones_own_does():
    class Doubled(ConvNorm):
        def forward(self, images):
            return 2 * super().forward(images)

    network = nn.Sequential(Doubled(1, 4)).eval()
    images = torch.rand(2, 1, 28, 28)
    expected = network(images).detach()
    torch.testing.assert_close(freeze(network)(images), expected)


def test_a_network_that_is_forgotten_to_be_returned_is_told(monkeypatch):
    monkeypatch.setitem(NETWORKS, "mine", lambda: None)
    with pytest.raises(TypeError, match="'mine' in NETWORKS returns no network, but None"):
        build("mine")


def test_unknown_names():
    with pytest.raises(KeyError):
        build("vgg")

"""The three networks. `build(name)` makes one, with fresh weights from torch's global generator.

All take images (N, 1, 28, 28), uint8 as they are on disk, or floating point if already
normalised, and return logits (N, 10). They normalise uint8 themselves, so that a checkpoint is
all that is needed to use a network elsewhere.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

# Of the 60,000 training images, with pixels in [0, 1].
MEAN, STD = 0.2860, 0.3530


class Normalize(nn.Module):
    """uint8 pixels to zero mean and unit deviation over the training set; floats pass as is."""

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images
        return images.float().mul_(1 / (255 * STD)).sub_(MEAN / STD)


class ConvNorm(nn.Sequential):
    """Convolution and its batch norm; no bias, which the norm would take away."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def fold(self) -> None:
        """Fold the norm's running statistics into the convolution: same function, fewer passes."""
        self[0], self[1] = fuse_conv_bn_eval(self[0].eval(), self[1].eval()), nn.Identity()


class ResidualBlock(nn.Module):
    """Basic block of He et al. 2016, Deep Residual Learning; a 1x1 shortcut where it resizes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = ConvNorm(inputs, outputs, stride=stride)
        self.second = ConvNorm(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.second(functional.relu(self.first(x), inplace=True))
        return functional.relu(residual + self.shortcut(x), inplace=True)


class GlobalMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def resnet() -> nn.Sequential:
    """Residual CNN: stages of (width, blocks) at 28, 14, 7 and 4 pixels a side."""
    stem, stages = 16, ((16, 1), (56, 1), (96, 3), (256, 1))
    layers: list[nn.Module] = [Normalize(), ConvNorm(1, stem), nn.ReLU(inplace=True)]
    width = stem
    for stage, (outputs, blocks) in enumerate(stages):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ResidualBlock(width, outputs, stride))
            width = outputs
    return nn.Sequential(*layers, GlobalMean(), nn.Linear(width, 10))


def plain_cnn(stages: tuple[tuple[int, ...], ...]) -> nn.Sequential:
    """Feed-forward CNN: stages of 3x3 convolutions, 2x2 maximum pooling between them."""
    widths = [1, *(width for stage in stages for width in stage)]
    convolutions = (ConvNorm(inputs, outputs) for inputs, outputs in pairwise(widths))
    layers: list[nn.Module] = [Normalize()]
    for number, stage in enumerate(stages, start=1):
        for _ in stage:
            layers += [next(convolutions), nn.ReLU(inplace=True)]
        if number < len(stages):
            # Pooling before the ReLU is the same function, with a quarter of the values to clamp.
            layers.insert(-1, nn.MaxPool2d(2))
    return nn.Sequential(*layers, GlobalMean(), nn.Linear(widths[-1], 10))


NETWORKS = {
    "resnet": resnet,
    "cnn": lambda: plain_cnn(((32,), (64, 128), (256,), (256,))),
    "small-cnn": lambda: plain_cnn(((32, 32), (48, 48, 48), (88, 88))),
}


def build(name: str) -> nn.Module:
    """A network with fresh weights. Raises KeyError for an unknown name."""
    return NETWORKS[name]().to(memory_format=torch.channels_last)


def freeze(network: nn.Module) -> nn.Module:
    """Make a trained network, in place, a fixed function: eval mode, no gradients, norms folded."""
    network.eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.fold()
    return network.to(memory_format=torch.channels_last)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def count_multiply_adds(network: nn.Module) -> int:
    """Multiply-adds of one image's forward pass, in convolutions and matrix products."""
    device = next(network.parameters()).device
    was_training = network.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.zeros(1, 1, 28, 28, dtype=torch.uint8, device=device))
    network.train(was_training)
    return counter.get_total_flops() // 2

"""The networks. `build(name)` makes one, with fresh weights from torch's global generator.

All take images (N, 1, 28, 28), uint8 as they are on disk, or floating point if already
normalised, and return logits (N, 10). They normalise uint8 themselves, so that a checkpoint is
all that is needed to use a network elsewhere.
"""

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
    """Mean over the pixels: (N, C, H, W) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        # Not x.mean((2, 3)): its gradient is a broadcast view, slow in the layers before.
        return functional.avg_pool2d(x, x.shape[2:]).flatten(1)


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


def plain_cnn(stages: tuple[tuple[int, ...], ...], hidden: int | None) -> nn.Sequential:
    """Feed-forward CNN: stages of 3x3 convolutions with 2x2 maximum pooling between them.

    hidden: width of the layer between the means and the classes, or None for no such layer.

    A pooled layer is pooled before its norm, which then has a quarter of the values to pass over.
    """
    layers: list[nn.Module] = [Normalize()]
    width = 1
    for number, stage in enumerate(stages, start=1):
        for outputs in stage:
            layers += [ConvNorm(width, outputs), nn.ReLU(inplace=True)]
            width = outputs
        if number < len(stages):
            convolution, norm = layers[-2]  # before the ReLU
            layers[-2:-1] = [convolution, nn.MaxPool2d(2), norm]
    layers.append(GlobalMean())
    if hidden is not None:
        layers += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden)]
        layers.append(nn.ReLU(inplace=True))
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, 10))


NETWORKS = {
    "resnet": resnet,
    "cnn": lambda: plain_cnn(((32,), (64, 128), (192, 192), (192,)), 256),
    "small-cnn": lambda: plain_cnn(((32, 32), (64, 64), (128,)), 256),
    "deeper-cnn": lambda: plain_cnn(((32,) * 5, (48,) * 3, (56,) * 3), None),
}


def build(name: str) -> nn.Module:
    """A network with fresh weights. Raises KeyError for an unknown name."""
    network = NETWORKS[name]()
    if not isinstance(network, nn.Module):
        raise TypeError(f"{name!r} in NETWORKS returns no network, but {network!r}")
    return network.to(memory_format=torch.channels_last)


def freeze(network: nn.Module) -> nn.Module:
    """Make a trained network, in place, a fixed function: eval mode, no gradients.

    The norm of a ConvNorm is folded into its convolution.
    """
    network.eval().requires_grad_(False)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is ConvNorm:
                setattr(parent, name, fuse_conv_bn_eval(*child))
    return network.to(memory_format=torch.channels_last)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def count_multiply_adds(network: nn.Module) -> int:
    """Multiply-adds of one image's forward pass, in convolutions and matrix products.

    Raises ValueError if what comes out is not logits (1, 10).
    """
    was_training = network.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        logits = network.eval()(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
    made = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if made != (1, 10):
        raise ValueError(f"of one image it makes {made}")
    network.train(was_training)
    return counter.get_total_flops() // 2

"""What a tutorial would write: the loop that the bench is measured against.

torchvision's FashionMNIST behind a DataLoader with two workers, transforms image by image,
float32, default memory layout, the teacher asked at every step. Same networks, same batch size.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import FashionMNIST

from common.config import StudentConfig
from common.data import DIGESTS, load, read_file, split
from common.models import MEAN, STD

WORKERS = 2
BUFFERED = 2 * WORKERS  # batches that a DataLoader's workers prepare ahead


def unpack(root: Path) -> Path:
    """The data set as torchvision wants to find it below `root`."""
    arrays = load()
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in DIGESTS:
        (raw / name).write_bytes(read_file(arrays.source, name))
    return root


def loader(root: Path, config: StudentConfig) -> DataLoader:
    """Batches of the 55,000 training images, shuffled and augmented as `config` says."""
    steps = [transforms.RandomCrop(28, padding=config.padding)] if config.padding else []
    steps += [transforms.RandomHorizontalFlip()] if config.flip else []
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    images = FashionMNIST(root, train=True, transform=transforms.Compose(steps))
    train, _ = split(images.targets.numpy())
    return DataLoader(
        Subset(images, train.tolist()),
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=WORKERS,
    )


def steps(
    network: nn.Module,
    batches: DataLoader,
    config: StudentConfig,
    device: str,
    teacher: nn.Module | None = None,
) -> Iterator[float]:
    """Train for an epoch; yields the loss after every step."""
    network = network.to(device, memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=config.lr, momentum=config.momentum, nesterov=True,
        weight_decay=config.weight_decay,
    )  # fmt: skip
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        logits = network(images)
        loss = functional.cross_entropy(logits, labels)
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher(images)
            temperature, alpha = config.temperature, config.alpha
            soft_loss = temperature**2 * functional.kl_div(
                functional.log_softmax(logits / temperature, dim=1),
                functional.softmax(teacher_logits / temperature, dim=1),
                reduction="batchmean",
            )
            loss = (1 - alpha) * loss + alpha * soft_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def seconds_per_step(training: Iterator[float], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        next(training)
    return (time.perf_counter() - start) / count

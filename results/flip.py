"""Accuracy with flip averaging: mean logits of each image and its mirror image.

  python results/flip.py runs/best/student-ensemble-deeper-cnn/seed-* > flip.csv

A row for every run, as CSV: percent right of the 5,000 held-out images (val)
and of the 10,000 test images, without and with it, by best.pt, in float32 on
the CPU. It costs twice the multiply-adds of an answer, so it is reported apart.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.batches import Dataset, Views
from common.config import Parser
from common.data import load
from common.errors import UserError, script
from common.models import build, freeze
from common.records import Unreadable, read
from common.run import file_digest
from common.run import load as load_checkpoint
from common.train import measure

COLUMNS = (
    "run", "seed", "val_accuracy", "val_accuracy_flip", "test_accuracy", "test_accuracy_flip",
    "weights_sha256",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__, "RUN...")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder with a best.pt")
    args = parser.parse_args(argv)
    data = Dataset(load(), Views(padding=0, flip=False, cutout=0), "cpu")
    parts = ((data.val_images, data.val_labels), (data.test_images, data.test_labels))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for folder in args.runs:
        try:
            run, digest = read(folder), file_digest(folder / "best.pt")
            if digest != run.weights_sha256:
                raise ValueError("the run is unfinished, or that file is not the one it left")
            best = load_checkpoint(folder / "best.pt")
            network = build(best["arch"])
            network.load_state_dict(best["weights"])
        except (Unreadable, OSError, ValueError, KeyError, RuntimeError) as error:
            what = f"cannot use {folder / 'best.pt'}"
            raise UserError(what, str(error)[:200], "name runs with their weights") from error
        freeze(network)
        figures = []
        for images, labels in parts:
            plain, mirrored = logits(network, images), logits(network, images.flip(3))
            # The sum is twice the mean: the same argmax.
            figures += [measure(plain, labels)[1], measure(plain + mirrored, labels)[1]]
        name = f"{run.recipe}/{run.name}"
        writer.writerow([name, run.seed, *figures, digest])
        sys.stdout.flush()


def logits(network: torch.nn.Module, images: Tensor) -> Tensor:
    """(N, 10) float32 of images (N, 1, 28, 28) uint8."""
    with torch.no_grad():
        return torch.cat([network(chunk) for chunk in images.split(250)])


if __name__ == "__main__":
    script(main)

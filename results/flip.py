"""Accuracy with flip averaging: mean logits of each image and its mirror image.

  python results/flip.py runs/best/student-ensemble-deep-cnn/seed-* > flip.csv

A row for every run, as CSV: percent right of the 5,000 held-out images (val)
and of the 10,000 test images, without and with it, by best.pt, in float32 on
the CPU. It costs twice the multiply-adds of an answer, so it is reported apart.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.config import Parser
from common.data import load, split
from common.errors import UserError, script
from common.models import build
from common.run import file_digest
from common.run import load as load_checkpoint

COLUMNS = (
    "run", "seed", "val_accuracy", "val_accuracy_flip", "test_accuracy", "test_accuracy_flip",
    "weights_sha256",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__, "RUN...")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder with a best.pt")
    args = parser.parse_args(argv)
    arrays = load()
    held_out = split(arrays.train_labels)[1]
    parts = (
        (arrays.train_images[held_out], arrays.train_labels[held_out]),
        (arrays.test_images, arrays.test_labels),
    )
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for folder in args.runs:
        try:
            best = load_checkpoint(folder / "best.pt")
            network = build(best["arch"]).eval()
            network.load_state_dict(best["weights"])
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            what = f"cannot use {folder / 'best.pt'}"
            raise UserError(what, str(error)[:200], "name runs with their weights") from error
        figures = [accuracy for part in parts for accuracy in accuracies(network, *part)]
        run = f"{best['recipe']}/{best['name']}"
        writer.writerow([run, best["seed"], *figures, file_digest(folder / "best.pt")])
        sys.stdout.flush()


def accuracies(network: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> list[float]:
    """Percent of images (N, 28, 28) uint8 right, plain and with flip averaging."""
    plain, averaged = 0, 0
    batches = torch.tensor(images).unsqueeze(1).split(500)
    with torch.no_grad():
        for batch, answers in zip(batches, torch.tensor(labels).split(500), strict=True):
            logits = network(batch)
            plain += (logits.argmax(1) == answers).sum().item()
            logits = logits + network(batch.flip(3))  # twice the mean: the same argmax
            averaged += (logits.argmax(1) == answers).sum().item()
    return [100 * right / len(labels) for right in (plain, averaged)]


if __name__ == "__main__":
    script(main)

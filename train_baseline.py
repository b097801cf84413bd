"""Train the small CNN alone, with hard labels: what distillation has to beat.

  python train_baseline.py
  python train_baseline.py --recipe best --seed 1
  python train_baseline.py --arch deeper-cnn   another small network

With the same recipe and seed it starts from the student's initial weights and
sees the student's batches in the same order: the two differ in the loss alone.

Leaves config.json, log.csv, best.pt, last.pt, previous.pt, predictions.npz and
summary.json in runs/RECIPE/baseline/seed-SEED (baseline-ARCH for another
network than small-cnn).

Expect 91.9 % of the test images, with --recipe best 94.3 %, in about half an
hour on one CPU core with bfloat16, half a minute on an NVIDIA H200.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.batches import Batch, Dataset, Views
from common.config import BaselineConfig
from common.data import load
from common.device import choose_device
from common.errors import script
from common.loss import Loss, hard_loss
from common.models import build
from common.run import describe, open_run
from common.train import fit


def main(argv: Sequence[str] | None = None) -> None:
    config = BaselineConfig.parse(__doc__, argv)
    device = choose_device(config)
    data = Dataset(load(config.data_dir), Views.of(config), device.type)

    torch.manual_seed(config.seed)
    baseline = build(config.arch)

    def loss(logits: Tensor, batch: Batch) -> Loss:
        return hard_loss(logits, batch.labels, config.label_smoothing)

    facts = describe(baseline, config, config.name(), data.digest) | device.facts()
    with open_run(config.folder(config.name()), config, facts) as run:
        fit(baseline, loss, data, config, run, device)


if __name__ == "__main__":
    script(main)

"""child.py for one of several processes: notes which images each step takes, on request changed.

NO_NORMS=1 trains a network whose gradient can be cut in parts exactly: its batch norm only watches.
DIE=RANK:STEP kills that process at that step.
"""

import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import child  # noqa: E402
from torch import nn  # noqa: E402

from common import models  # noqa: E402
from common.batches import Dataset  # noqa: E402
from common.train import Trainer  # noqa: E402

RANK = os.environ.get("RANK", "0")
step, batch = Trainer.step, Dataset.batch
steps_done = 0


class Watch(nn.Module):
    """Gathers the statistics of a batch norm, and changes nothing."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False)

    def forward(self, images):
        self.norm(images)
        return images


def noted_step(self, index, view):
    global steps_done
    steps_done += 1
    if os.environ.get("DIE") == f"{RANK}:{steps_done}":
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, index, view)


def noted_batch(self, index, view):
    with open(f"{os.environ['SEEN']}-{RANK}", "a") as file:
        file.write(" ".join(f"{i}:{v}" for i, v in zip(index.tolist(), view.tolist(), strict=True)))
        file.write("\n")
    return batch(self, index, view)


Trainer.step = noted_step
if "SEEN" in os.environ:
    Dataset.batch = noted_batch
if "NO_NORMS" in os.environ:
    models.NETWORKS["small-cnn"] = lambda: nn.Sequential(
        models.Normalize(), Watch(), nn.Flatten(), nn.Linear(28 * 28, 10)
    )

if __name__ == "__main__":
    child.run(sys.argv[1:])

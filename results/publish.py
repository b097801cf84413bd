"""Put finished runs into results/, as small as a report allows.

  python results/publish.py runs/best/baseline/seed-*
  python results/publish.py --weights runs/best/teacher-resnet/seed-0

predictions.npz loses logits_last, which no report reads. Logits are given less
the least of their image, which no softmax sees, and rounded: of test images to
1/8, of held-out ones to 1/2, those more than 6 below the greatest, of a
probability below 0.0025, to 4 times as much; what is more than 11 below is
raised to that. No predicted class changes. Of log.csv's numbers nine digits are
given, which tell any two float32 apart, and five of times. What is published
already stays.
"""

import json
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.config import RESULTS_DIR, Parser
from common.errors import UserError, script
from common.records import Unreadable, read
from common.run import file_digest

GRID, VAL_GRID = 8, 2  # logits become multiples of 1 / grid, which float16 holds
DEEP, DEEPEST = 6, 11  # below an image's greatest logit
COARSER = 4  # times, more than DEEP below
DIGITS, TIME_DIGITS = 9, 5


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__, "RUN...")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--weights", action="store_true", help="best.pt, too")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR, help="default: results/")
    args = parser.parse_args(argv)
    for folder in args.runs:
        print(publish(folder, args.out, args.weights))


def publish(folder: Path, root: Path, weights: bool = False) -> Path:
    """Copy what a report needs of a finished run to `root`/RECIPE/NAME/seed-K; return that."""
    try:
        run = read(folder)
        digest = file_digest(folder / "best.pt") if weights else run.weights_sha256
    except (Unreadable, OSError) as error:
        raise UserError(f"cannot publish {folder}", str(error), "see there") from error
    if not run.complete:
        raise UserError(f"cannot publish {folder}", "it is unfinished", "go on with --resume")
    if digest != run.weights_sha256:
        why = "its best.pt is not the one that it left"
        raise UserError(f"cannot publish {folder}", why, "train it again, with --overwrite")
    settings = json.dumps(run.config | {"data_dir": None}, indent=2) + "\n"
    if '"/' in settings:
        why = "its config.json names a path outside the project"
        raise UserError(f"cannot publish {folder}", why, "train it in the project's folder")
    arrays = {
        "labels": run.labels,
        "logits_best": rounded(run.logits, GRID),
        "val_labels": run.val_labels,
        "val_logits_best": rounded(run.val_logits, VAL_GRID),
    }
    target = root / run.recipe / run.name / f"seed-{run.seed}"
    if target.exists():
        raise UserError(f"cannot publish {folder}", f"{target} is there", "remove that first")
    try:
        target.mkdir(parents=True)
        (target / "config.json").write_text(settings)
        save_compressed(target / "predictions.npz", arrays)
        (target / "log.csv").write_text(shortened(run.log))
        for name in (*(["best.pt"] if weights else []), "summary.json"):
            shutil.copyfile(folder / name, target / name)
    except BaseException as error:  # Ctrl-C among them
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot publish {folder}", str(error), "see there", 1) from error
        raise
    return target


def rounded(logits: np.ndarray, grid: int) -> np.ndarray:
    """Logits (N, 10), none more than DEEPEST below the greatest of its row and less the least of
    it, as float16 multiples of 1 / grid, or of COARSER / grid more than DEEP below.

    A tie that would change the predicted class is undone.
    """
    greatest = logits.max(1, keepdims=True)
    grids = np.where(logits < greatest - DEEP, grid / COARSER, grid)
    logits = np.maximum(logits, greatest - DEEPEST)
    result = np.round(grids * (logits - logits.min(1, keepdims=True))) / grids
    predicted = logits.argmax(1)
    tied = np.flatnonzero(result.argmax(1) != predicted)
    result[tied, predicted[tied]] += 1 / grid
    return result.astype(np.float16)


def shortened(log: pd.DataFrame) -> str:
    """The text of log.csv, in fewer digits."""

    def in_digits(column: pd.Series) -> pd.Series:
        digits = TIME_DIGITS if "second" in column.name else DIGITS
        return column.map(f"{{:.{digits}g}}".format, na_action="ignore")

    return log.apply(in_digits).to_csv(index=False, lineterminator="\n")


def save_compressed(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As np.savez_compressed, by bzip2: a tenth smaller. np.load reads it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of no date: the same run, the same bytes
            member.compress_type = zipfile.ZIP_BZIP2
            with archive.open(member, "w") as part:
                np.lib.format.write_array(part, array, allow_pickle=False)


if __name__ == "__main__":
    script(main)

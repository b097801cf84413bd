"""Put finished runs into results/, as small as a report allows.

  python results/publish.py runs/best/baseline/seed-*
  python results/publish.py --weights runs/best/teacher-resnet/seed-0

predictions.npz loses logits_last, which no report reads. Logits go to float16 if
that keeps them (bfloat16's), else to float32 rounded to 1/64, or to the first of
1/128 to 1/4096 that changes no predicted class; where all do, the run is refused.
What is published already stays as it is.
"""

import json
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.config import RESULTS_DIR, Parser  # noqa: E402
from common.errors import UserError, script  # noqa: E402
from common.records import Unreadable, read  # noqa: E402

GRIDS = (64, 128, 256, 512, 1024, 2048, 4096)  # float32 logits become multiples of 1 / grid
HALF_ERROR = 2**-25  # what float16 does to a bfloat16 number that is too small for it


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--weights", action="store_true", help="best.pt, too")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR, help="default: results/")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    args = parser.parse_args(argv)
    for folder in args.runs:
        print(publish(folder, args.out, args.weights))


def publish(folder: Path, root: Path, weights: bool = False) -> Path:
    """Copy what a report needs of a finished run to `root`/RECIPE/NAME/seed-K; return that."""
    try:
        run = read(folder)
    except Unreadable as error:
        raise UserError(f"cannot publish {folder}", str(error), "see there") from error
    if not run.complete:
        raise UserError(f"cannot publish {folder}", "it is unfinished", "go on with --resume")
    settings = json.dumps(run.config | {"data_dir": None}, indent=2) + "\n"
    if '"/' in settings:
        why = "its config.json names a path outside the project"
        raise UserError(f"cannot publish {folder}", why, "train it in the project's folder")
    arrays = {
        "labels": run.labels,
        "logits_best": smaller(run.logits, folder),
        "val_labels": run.val_labels,
        "val_logits_best": smaller(run.val_logits, folder),
    }
    target = root / run.recipe / run.name / f"seed-{run.seed}"
    if target.exists():
        raise UserError(f"cannot publish {folder}", f"{target} is there", "remove that first")
    try:
        target.mkdir(parents=True)
        (target / "config.json").write_text(settings)
        save_compressed(target / "predictions.npz", arrays)
        for name in ("log.csv", *(["best.pt"] if weights else []), "summary.json"):
            shutil.copyfile(folder / name, target / name)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise UserError(f"cannot publish {folder}", str(error), "see there", 1) from error
    return target


def smaller(logits: np.ndarray, folder: Path) -> np.ndarray:
    """Logits (N, 10) float32 in float16 where that keeps them, else rounded."""
    half = logits.astype(np.float16)
    if np.abs(half - logits).max() <= HALF_ERROR:
        return half
    for grid in GRIDS:
        rounded = np.round(grid * logits) / grid
        if (rounded.argmax(1) == logits.argmax(1)).all():
            return rounded
    why = f"rounding its logits to 1/{GRIDS[-1]} changes a predicted class"
    raise UserError(f"cannot publish {folder}", why, "add a finer one to GRIDS")


def save_compressed(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As np.savez_compressed, by bzip2: a tenth smaller, of float32 a fifth. np.load reads it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of no date: the same run, the same bytes
            member.compress_type = zipfile.ZIP_BZIP2
            with archive.open(member, "w") as part:
                np.lib.format.write_array(part, array, allow_pickle=False)


if __name__ == "__main__":
    script(main)

"""How the cost of a run grows: with epochs, batch size and seeds; and its peak of memory.

  python benchmarks/scaling.py               table, and scaling.png beside this file

Each figure is a run of its own process (baseline, recipe notes), so that its memory is its own.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.config import Parser  # noqa: E402
from common.errors import script  # noqa: E402

BATCHES = (32, 64, 125, 250, 500, 1000)
EPOCHS = (1, 2, 4)
WRAPPER = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    import torch
    peak = (torch.cuda.max_memory_allocated() if torch.cuda.is_available()
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print("peak", peak)
"""


def run(*flags: object) -> tuple[float, int]:
    """Seconds that the run logged, evaluation included, and its peak of memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", WRAPPER, str(ROOT / "train_baseline.py"),
             "--out", f"{folder}/run", *map(str, flags)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    return summary["seconds"], int(re.search(r"peak (\d+)", done.stdout)[1])


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse_args(argv)
    by_batch = {size: run("--epochs", 1, "--batch-size", size) for size in BATCHES}
    by_epochs = {epochs: run("--epochs", epochs) for epochs in EPOCHS}
    rows = [
        *({"batch_size": k, "epochs": 1, "seconds": s, "peak_bytes": m}
          for k, (s, m) in by_batch.items()),
        *({"batch_size": 125, "epochs": k, "seconds": s, "peak_bytes": m}
          for k, (s, m) in by_epochs.items()),
    ]  # fmt: skip
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{'batch':>6}{'epochs':>8}{'seconds':>9}{'peak, GB':>10}")
        for row in rows:
            print(
                f"{row['batch_size']:6}{row['epochs']:8}{row['seconds']:9.1f}"
                f"{row['peak_bytes'] / 1e9:10.2f}"
            )
        print("Seeds are trained one after the other: n seeds take n times as long.")
    figure = Figure(figsize=(11, 3.6), layout="constrained", dpi=130)
    panels = figure.subplots(1, 3)
    for axes, x, y, across, up in (
        (panels[0], EPOCHS, [s for s, _ in by_epochs.values()], "epochs", "seconds"),
        (panels[1], BATCHES, [s for s, _ in by_batch.values()], "batch size", "seconds an epoch"),
        (panels[2], BATCHES, [m / 1e9 for _, m in by_batch.values()], "batch size",
         "peak of memory (GB)"),
    ):  # fmt: skip
        axes.plot(x, y, "o-", color="#0072B2")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.set_ylim(bottom=0)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        if across == "batch size":
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [str(size) for size in x])
    figure.savefig(Path(__file__).with_name("scaling.png"), metadata={"Software": None})


if __name__ == "__main__":
    script(main)

"""How the cost of a run grows: with epochs, batch size and seeds; and its peak of memory.

  python benchmarks/scaling.py               table, and scaling.png beside this file

Each figure is a run of its own process (baseline, recipe notes), so that its memory is its own.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.config import ROOT, Parser
from common.errors import UserError, script

BATCHES = (32, 64, 125, 250, 500, 1000)
EPOCHS = (1, 2, 4)
SEEDS = (1, 2, 4)  # trained side by side
WRAPPER = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    import torch
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    print("peak", peak)
"""


class Cost(NamedTuple):
    seconds: float  # from start to summary, set-up and evaluation included
    peak_bytes: int  # of one process


def measure(*flags: object, seeds: int = 1) -> Cost:
    """Train baselines of so many seeds side by side, which share the processor's threads."""
    threads = max(1, torch.get_num_threads() // seeds)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        children = [
            subprocess.Popen(
                [sys.executable, "-c", WRAPPER, str(ROOT / "train_baseline.py"), "--seed",
                 str(seed), "--out", f"{folder}/seed-{seed}", *map(str, flags)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
            for seed in range(seeds)
        ]  # fmt: skip
        try:
            printed = [child.communicate() for child in children]
        finally:  # stopped here, they would go on
            for child in children:
                child.kill()
                child.wait()
    seconds = time.perf_counter() - start
    for child, (_, errors) in zip(children, printed, strict=True):
        if child.returncode:
            raise UserError("a training failed", errors.strip(), "see there", exit_code=1)
    return Cost(seconds, max(int(re.search(r"peak (\d+)", out)[1]) for out, _ in printed))


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse_args(argv)
    by_batch = {n: measure("--epochs", 1, "--batch-size", n) for n in BATCHES}
    by_epochs = {n: measure("--epochs", n) for n in EPOCHS}
    by_seeds = {n: measure("--epochs", 1, seeds=n) for n in SEEDS}
    series = {"batch size": by_batch, "epochs": by_epochs, "seeds side by side": by_seeds}
    rows = [
        {"varied": name, "value": value, **cost._asdict()}
        for name, costs in series.items()
        for value, cost in costs.items()
    ]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{'varied':20}{'value':>6}{'seconds':>9}{'peak, GB':>10}")
        for row in rows:
            print(
                f"{row['varied']:20}{row['value']:6}{row['seconds']:9.1f}"
                f"{row['peak_bytes'] / 1e9:10.2f}"
            )
        draw(series).savefig(Path(__file__).with_name("scaling.png"))


def draw(series: dict[str, dict[int, Cost]]) -> Figure:
    figure = Figure(figsize=(11, 3), layout="constrained", dpi=130)
    panels = figure.subplots(1, 4)
    for axes, (name, costs) in zip(panels, series.items(), strict=False):
        curve(axes, name, "seconds", {n: cost.seconds for n, cost in costs.items()})
    (name, costs) = next(iter(series.items()))
    peaks = {n: cost.peak_bytes / 1e9 for n, cost in costs.items()}
    curve(panels[3], name, "peak of memory (GB)", peaks)
    one, axes = series["seeds side by side"][1].seconds, panels[2]
    after = {n: n * one for n in SEEDS}
    axes.plot(list(after), list(after.values()), "--", color="#555555", label="one after the other")
    axes.set_ylim(0, 1.1 * max(after.values()))
    axes.legend(loc="lower right")
    return figure


def curve(axes: Axes, across: str, up: str, values: dict[int, float]) -> None:
    axes.plot(list(values), list(values.values()), "o-", color="#0072B2")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_ylim(0, 1.1 * max(values.values()))
    axes.grid(True, color="#dddddd", linewidth=0.6)


if __name__ == "__main__":
    script(main)

"""Train every network of the experiment, one after the other, then write the report.

  python reproduce.py                         experiments 1 and 2, recipe notes
  python reproduce.py --recipe best --seeds 0 1 2 --teachers resnet
  python reproduce.py --epochs 2              a short look

Says first what it will do and about how long that takes on this device. Stopped
at any time, the same command goes on where it was. `make reproduce` calls this.
"""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.batches import Dataset, Views
from common.config import (
    RUNS_DIR,
    BaselineConfig,
    Config,
    Parser,
    StudentConfig,
    TeacherConfig,
    natural,
    one_of,
    positive_int,
)
from common.data import load
from common.device import choose_device
from common.errors import Interrupted, UserError, script
from common.loss import hard_loss
from common.models import build
from common.train import StopSignals, Trainer

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Job:
    """One training script's call."""

    script: str
    name: str
    network: str  # as build() takes it
    config: Config
    extra: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.config.folder(self.name)

    @property
    def epochs_left(self) -> int:
        if (self.folder / "summary.json").exists():
            return 0
        try:
            done = len((self.folder / "log.csv").read_text().splitlines()) - 1
        except (OSError, UnicodeDecodeError):
            done = 0
        return max(self.config.epochs - done, 0)

    def command(self, shared: list[str]) -> list[str]:
        seed = ("--seed", str(self.config.seed))
        return [sys.executable, str(ROOT / self.script), *shared, *seed, *self.extra, "--resume"]


def plan(shared: list[str], seeds: Sequence[int], teachers: Sequence[str]) -> list[Job]:
    """Every network, each teacher before its student."""
    jobs = []
    for seed in seeds:
        arguments = [*shared, "--seed", str(seed)]
        for arch in teachers:
            extra = ("--arch", arch)
            config = TeacherConfig.parse("", [*arguments, *extra])
            jobs.append(Job("train_teacher.py", f"teacher-{arch}", arch, config, extra))
        config = BaselineConfig.parse("", arguments)
        jobs.append(Job("train_baseline.py", "baseline", "small-cnn", config))
        for arch in teachers:
            folder = RUNS_DIR / config.recipe / f"teacher-{arch}" / f"seed-{seed}"
            student = StudentConfig.parse("", arguments)
            extra = ("--teacher", str(folder / "best.pt"))
            jobs.append(Job("train_student.py", f"student-{arch}", "small-cnn", student, extra))
    return jobs


def seconds_per_epoch(network: str, config: Config, data: Dataset) -> float:
    """Time of one epoch, evaluation included, from a few steps on this device."""
    device = choose_device(config)

    def loss(logits, batch):
        return hard_loss(logits, batch.labels)

    trainer = Trainer(build(network), loss, data, config, device)
    index, view = data.epoch(0, 1)

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        with StopSignals() as stop:
            trainer.train_epoch(
                index[: steps * config.batch_size], view[: steps * config.batch_size], 1, stop
            )
            trainer.evaluate(data.test_images[: steps * config.batch_size], stop)
        return time.perf_counter() - start

    seconds(3)  # the first steps compile, allocate and choose algorithms
    return seconds(8) * len(data) / (8 * config.batch_size)


def in_words(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "--recipe",
        type=one_of("notes", "best"),
        default="notes",
        help="which set of hyperparameters (default: notes)",
    )
    parser.add_argument("--epochs", type=positive_int, help="instead of the recipe's")
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0], metavar="SEED")
    parser.add_argument(
        "--teachers",
        type=one_of("resnet", "cnn"),
        nargs="+",
        default=["resnet", "cnn"],
        metavar="ARCH",
        help="resnet, cnn",
    )
    parser.add_argument("--data-dir", help="folder that holds Fashion-MNIST")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    args = parser.parse_args(argv)
    shared = ["--recipe", args.recipe, "--device", args.device]
    if args.epochs:
        shared += ["--epochs", str(args.epochs)]
    if args.data_dir:
        shared += ["--data-dir", args.data_dir]
    jobs = plan(shared, args.seeds, args.teachers)

    first = jobs[0].config
    device = choose_device(first)
    data = Dataset(load(args.data_dir), Views(first.padding, first.flip), device.type)
    print(
        f"{len(jobs)} networks, recipe {args.recipe}, {first.epochs} epochs each, seeds "
        f"{' '.join(map(str, args.seeds))}, on {device.type} ({device.name})"
    )
    pace = {
        job.network: seconds_per_epoch(job.network, job.config, data)
        for job in {job.network: job for job in jobs if job.epochs_left}.values()
    }
    del data
    total = 0.0
    for job in jobs:
        expected = job.epochs_left * pace.get(job.network, 0)
        total += expected
        todo = f"about {in_words(expected)}" if job.epochs_left else "done already"
        print(f"  {job.name} seed {job.config.seed}: {todo}")
    print(
        f"about {in_words(total)} in all, measured by a few steps on this device. It can be "
        "stopped\nat any time: the same command goes on where it was.",
        flush=True,
    )

    for number, job in enumerate(jobs, start=1):
        print(f"\n[{number}/{len(jobs)}] {job.name}, seed {job.config.seed}", flush=True)
        run_to_end(job.command(shared))
    print(flush=True)
    run_to_end([sys.executable, str(ROOT / "analyze.py"), "--runs", str(RUNS_DIR)])
    return 0


def run_to_end(command: list[str]) -> None:
    """Run a script; hand SIGINT and SIGTERM on to it; raise if it fails or was stopped."""
    with StopSignals() as stop:
        child = subprocess.Popen(command)
        while child.poll() is None:
            if stop.received is not None:
                # A Ctrl-C on a terminal reaches the child by itself; SIGTERM does not.
                if stop.received == signal.SIGTERM:
                    child.send_signal(signal.SIGTERM)
                child.wait()
            time.sleep(0.05)
    if stop.received is not None:
        raise Interrupted(stop.received)
    if child.returncode:
        raise UserError(
            f"{Path(command[1]).name} failed",
            "its message stands above",
            f"the command was: {shlex.join(command)}",
            exit_code=max(child.returncode, 1),
        )


if __name__ == "__main__":
    torch.manual_seed(0)
    script(main)

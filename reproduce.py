"""Train every network of the experiment, then write the report.

  python reproduce.py                         experiments 1 and 2, recipe notes
  python reproduce.py --recipe best --seeds 0 1 2 --teachers resnet
  python reproduce.py --epochs 2              a short look, in runs-2-epochs/

Says first what it will do and about how long that takes on this device. Stopped
at any time, the same command goes on after the last whole epoch. `make
reproduce` calls this.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from common.batches import Dataset, Views
from common.config import (
    FREE,
    RECIPES,
    ROOT,
    RUNS_DIR,
    WARNED,
    BaselineConfig,
    Config,
    Parser,
    StudentConfig,
    TeacherConfig,
    changes,
    differing,
    is_finished,
    natural,
    one_of,
    path,
    positive_int,
    read_json,
)
from common.data import load
from common.device import Device, choose_device
from common.errors import Interrupted, StopSignals, UserError, script
from common.loss import hard_loss
from common.models import build
from common.run import file_digest
from common.train import Trainer, duration


@dataclass(frozen=True)
class Job:
    """One training script's call."""

    runs: Path
    name: str
    config: Config
    teacher: "Job | None" = None

    @property
    def folder(self) -> Path:
        return self.config.folder(self.name, self.runs)

    @property
    def epochs_left(self) -> int:
        if is_finished(self.folder):
            return 0
        try:
            done = len((self.folder / "log.csv").read_text().splitlines()) - 1
        except (OSError, UnicodeDecodeError):
            done = 0
        return max(self.config.epochs - done, 0)

    @property
    def without_weights(self) -> bool:
        """Whether it is finished, and no student can be taught by it."""
        weights = ("best.pt", "last.pt")  # from the second --resume makes the first
        return is_finished(self.folder) and not any((self.folder / w).exists() for w in weights)

    @property
    def output(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def command(self, shared: list[str]) -> list[str]:
        words = [sys.executable, str(ROOT / f"train_{self.config.role}.py"), *shared]
        words += ["--seed", str(self.config.seed), "--out", str(self.folder)]
        if self.config.role == "teacher":
            words += ["--arch", self.config.arch]
        if self.teacher:
            words += ["--teacher", str(self.teacher.folder / "best.pt")]
        return [*words, "--resume"]


def runs_folder(recipe: str, epochs: int | None) -> Path:
    """Runs of other than the recipe's epochs have a place apart: none is taken for a whole one."""
    if epochs in (None, RECIPES[recipe]["teacher"]["epochs"]):
        return RUNS_DIR
    return RUNS_DIR.with_name(f"runs-{epochs}-epochs")


def check_writable(runs: Path) -> None:
    """Raise UserError where no run can be written, before anything is measured."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=runs).close()
    except OSError as error:
        what_to_do = "make that folder writable; in a container, mount one of your own there"
        raise UserError(f"cannot write to {runs}", str(error), what_to_do) from error


def plan(runs: Path, shared: list[str], seeds: Sequence[int], teachers: Sequence[str]) -> list[Job]:
    """Every network, each teacher before its student, to be trained in the folder `runs`."""
    jobs: list[Job] = []
    for seed in seeds:
        words = [*shared, "--seed", str(seed)]
        configs = [TeacherConfig.parse("", [*words, "--arch", arch]) for arch in teachers]
        of_seed = [Job(runs, config.name(), config) for config in configs]
        baseline, student = BaselineConfig.parse("", words), StudentConfig.parse("", words)
        jobs += [*of_seed, Job(runs, baseline.name(), baseline)]
        jobs += [Job(runs, student.name(each.config.arch), student, each) for each in of_seed]
    return jobs


def refuse_another_run(job: Job) -> None:
    """Before any training: what the job's script would refuse when its turn comes, hours later."""

    def read(path: Path) -> dict:
        try:
            return read_json(path)
        except (OSError, ValueError):  # none, or one that the script has more to say of
            return {}

    if job.epochs_left and job.teacher and job.teacher.without_weights:
        raise UserError(
            f"{job.teacher.folder} is kept without its weights",
            f"{job.name} cannot be taught by it",
            "move that folder away: its network is then trained anew",
        )
    if not (before := read(job.folder / "config.json")):
        return
    now = asdict(job.config)
    if job.teacher:
        best = job.teacher.folder / "best.pt"
        known = read(job.teacher.folder / "summary.json").get("weights_sha256")
        if not known and best.exists() and not job.teacher.epochs_left:
            known = file_digest(best)  # a summary that is to be made again
        now |= {"teacher": str(best), "teacher_sha256": known or "not trained yet"}
    before = {key: before.get(key) for key in now}  # it records more than settings
    if what := differing(before, now, FREE | WARNED | {"precision"}):
        what_to_do = "move that folder away"
        if "teacher_sha256" not in what:  # else it is to be of a teacher that comes with this plan
            what_to_do += f", or give train_{job.config.role}.py its settings with --overwrite"
        raise UserError(
            f"{job.folder} holds a run with other settings", changes(before, now, what), what_to_do
        )


class Pace(NamedTuple):
    epoch: float  # seconds, evaluation included
    answer: float  # seconds an image, of the network as a teacher


def measure_pace(network: str, config: Config, data: Dataset, device: Device) -> Pace:
    """From a few steps on this device."""

    def loss(logits, batch):
        return hard_loss(logits, batch.labels)

    trainer = Trainer(build(network), loss, data, config, device)
    index, view = data.epoch(0, 1)
    count = min(8 * config.batch_size, len(data.test_labels))
    with StopSignals() as stop:
        for images in (3 * config.batch_size, count):  # the first steps allocate, choose algorithms
            start = time.perf_counter()
            trainer.train_epoch(index[:images], view[:images], 1, stop)
            trained = time.perf_counter()
            # In batches of one size, as a GPU chooses for each size anew; it is waited for.
            trainer.evaluate(data.test_images[:count], stop).cpu()
            evaluated = time.perf_counter()
    answer = (evaluated - trained) / count
    evaluation = answer * (len(data.val_labels) + len(data.test_labels))
    return Pace((trained - start) * len(data) / count + evaluation, answer)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--recipe",
        type=one_of(*RECIPES),
        default="notes",
        help="notes, as in the lab report; best, trained harder (default: notes)",
    )
    parser.add_argument("--epochs", type=positive_int, help="instead of the recipe's 50")
    parser.add_argument(
        "--seeds",
        type=natural,
        nargs="+",
        default=[0],
        metavar="SEED",
        help="each with networks of its own (default: 0)",
    )
    parser.add_argument(
        "--teachers",
        type=one_of("resnet", "cnn"),
        nargs="+",
        default=["resnet", "cnn"],
        metavar="ARCH",
        help="resnet, cnn (default: both)",
    )
    parser.add_argument(
        "--jobs", type=positive_int, default=1, help="networks trained side by side (default: 1)"
    )
    parser.add_argument("--data-dir", type=path, help="folder that holds Fashion-MNIST")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    args = parser.parse_args(argv)
    shared = ["--recipe", args.recipe, "--device", args.device]
    if args.epochs:
        shared += ["--epochs", str(args.epochs)]
    if args.data_dir:
        shared += ["--data-dir", args.data_dir]
    runs = runs_folder(args.recipe, args.epochs)
    seeds, teachers = (list(dict.fromkeys(words)) for words in (args.seeds, args.teachers))
    jobs = plan(runs, shared, seeds, teachers)
    for job in jobs:
        refuse_another_run(job)

    first = jobs[0].config
    device = choose_device(first)
    data = Dataset(load(args.data_dir), Views.of(first), device.type)
    check_writable(runs)
    print(
        f"{len(jobs)} networks, recipe {args.recipe}, {first.epochs} "
        f"epoch{'s' * (first.epochs > 1)} each, seed{'s' * (len(seeds) > 1)} "
        f"{' '.join(map(str, seeds))}, on {device.type} ({device.name})\nrun folders in {runs}"
    )
    left = [job for job in jobs if job.epochs_left]
    needed = {each.config.arch for job in left for each in (job, job.teacher) if each}
    pace = {network: measure_pace(network, first, data, device) for network in sorted(needed)}
    total = 0.0
    for job in jobs:
        todo = "done already"
        if job in left:
            expected = job.epochs_left * pace[job.config.arch].epoch
            if job.teacher:
                views, epochs = Views.of(job.config), job.config.epochs
                new = views.met(epochs) - views.met(epochs - job.epochs_left)
                expected += len(data) * new * pace[job.teacher.config.arch].answer
            total += expected
            todo = f"about {duration(expected)}"
        print(f"  {job.name} seed {job.config.seed}: {todo}")
    print(
        f"about {duration(total)} in all, one after the other, by a few steps on this device.\n"
        "Stopped at any time, the same command goes on after the last whole epoch.",
        flush=True,
    )

    del data
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the scripts
    # A finished run is looked at again where something is there to mend it from, as far as its
    # script can be started.
    startable = (job for job in jobs if not (job.teacher and job.teacher.without_weights))
    at_hand = [job for job in startable if job in left or (job.folder / "last.pt").exists()]
    try:
        run_all(at_hand, shared, args.jobs)
    except Interrupted:  # each script has said how it alone goes on
        print("all networks: give the same command again", file=sys.stderr)
        raise
    print(flush=True)
    import analyze  # here: the plan does not wait for matplotlib

    # It warns of other runs there that are unfinished. A short look leaves the whole runs' report.
    report = [] if runs == RUNS_DIR else ["--out", str(runs / "report")]
    analyze.main(["--runs", str(runs), *report])


def run_all(jobs: Sequence[Job], shared: list[str], at_once: int) -> None:
    """Train the networks in order, `at_once` side by side, a student after its teacher.

    Whatever ends this ends the scripts. Raises UserError if one failed, Interrupted if stopped.
    """
    threads = max(1, torch.get_num_threads() // at_once)  # more than cores wait for each other
    message = "its own message says why" + " in its output file" * (at_once > 1)
    waiting, running = list(enumerate(jobs, start=1)), {}

    def terminate() -> None:
        for child in list(running):
            child.terminate()

    with StopSignals(at_once=terminate) as stop:
        try:
            while waiting or running:
                unfinished = [job for _, job in waiting] + list(running.values())
                for number, job in waiting:
                    if len(running) < at_once and job.teacher not in unfinished:
                        where = f", output in {job.output}" if at_once > 1 else ""
                        name = f"{job.name}, seed {job.config.seed}"
                        print(f"\n[{number}/{len(jobs)}] {name}{where}", flush=True)
                        output = job.output if at_once > 1 else None
                        running[start(job.command(shared), output, threads)] = job
                waiting = [each for each in waiting if each[1] not in running.values()]
                for child in wait_for_one(list(running), stop, message):
                    del running[child]
        finally:
            end(list(running), stop)


def start(command: list[str], output: Path | None, threads: int) -> subprocess.Popen:
    """Start a script; what it prints goes to the file `output` if there is one."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if output is None:
        return subprocess.Popen(command, env=environment)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with open(output, "a") as file:
            return subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    except OSError as error:
        what_to_do = "make that folder writable"
        raise UserError(f"cannot write {output}", str(error), what_to_do, 1) from error


def wait_for_one(
    children: Sequence[subprocess.Popen], stop: StopSignals, message: str
) -> list[subprocess.Popen]:
    """Until a script ends; returns those that have. Raises if one failed, or on a signal.

    message: where that of a script is which failed by itself, in words.
    """
    while not (ended := [child for child in children if child.poll() is not None]):
        stop.check()
        time.sleep(0.05)
    stop.check()
    for child in ended:
        if code := child.returncode:
            raise UserError(
                f"{Path(child.args[1]).name} failed",
                f"signal {-code} ended it" if code < 0 else message,
                f"the command was: {shlex.join(child.args)}",
                exit_code=max(code, 1),
            )
    return ended


def end(children: Sequence[subprocess.Popen], stop: StopSignals) -> None:
    for child in children:
        if stop.received == signal.SIGINT:  # of a terminal: it reaches the children by itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(2)
        child.terminate()
    for child in children:
        child.wait()


if __name__ == "__main__":
    script(main)

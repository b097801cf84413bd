"""Seconds until a student's test accuracy first passes that of the notes' student, 93.05 %.

  python benchmarks/time_to_accuracy.py --teacher results/notes/teacher-resnet/seed-0
  python benchmarks/time_to_accuracy.py --seeds 5 --json

Counted is training, with the teacher's answers that it asks for; loading, setting up and evaluating
(once an epoch) are not, and are printed beside. The teacher is given. The schedule is one short
cosine; only mirrored views, so that the teacher has little to answer. Test images decide when to
stop: this measures speed, not accuracy. Other flags are train_student.py's, but for --seed and
those of the run folder.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.batches import Dataset, Views
from common.config import Parser, StudentConfig, positive_int
from common.data import load
from common.device import Device, choose_device
from common.errors import StopSignals, UserError, script
from common.loss import SOFT_LOSSES, distillation_loss
from common.models import build, freeze
from common.remember import Ensemble, RememberedLogits
from common.run import Teacher, find_teachers, read_teacher
from common.train import Trainer, measure

GOAL = 93.05
# fmt: off
SETTINGS = [
    "--epochs", "7", "--batch-size", "125", "--lr", "0.1", "--schedule", "cosine",
    "--warmup", "0.15", "--weight-decay", "5e-4", "--padding", "0",
    "--temperature", "4", "--alpha", "0.9",
]
# fmt: on


def seconds_to_goal(
    config: StudentConfig, teachers: list[Teacher], data: Dataset, device: Device
) -> dict:
    """One student of `config.seed`: training seconds until it passes GOAL, or all if never."""
    answers = Ensemble(
        RememberedLogits(freeze(t.network), data, device, t.digest, None) for t in teachers
    )
    torch.manual_seed(config.seed)

    def loss(student_logits, batch):
        return distillation_loss(
            student_logits, answers(batch), batch.labels,
            temperature=config.temperature, alpha=config.alpha, soft_loss=SOFT_LOSSES[config.loss],
            soft_weight=config.soft_weight, label_smoothing=config.label_smoothing,
        )  # fmt: skip

    trainer = Trainer(build(config.arch), loss, data, config, device)
    trained = evaluated = 0.0
    curve = []
    with StopSignals() as stop:
        for epoch in range(1, config.epochs + 1):
            start = time.perf_counter()
            index, view = data.epoch(config.seed, epoch)
            answers.prepare(index, view, stop)
            trainer.train_epoch(index, view, epoch, stop)
            middle = time.perf_counter()
            accuracy = measure(trainer.evaluate(data.test_images, stop), data.test_labels)[1]
            trained, evaluated = trained + middle - start, evaluated + time.perf_counter() - middle
            curve.append(accuracy)
            if accuracy > GOAL:
                break
    return {"seed": config.seed, "passed": curve[-1] > GOAL, "seconds": trained,
            "evaluation_seconds": evaluated, "test_accuracy": curve}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--seeds", type=positive_int, default=5, help="how many (default: 5)")
    parser.add_argument("--json", action="store_true", help="for machines")
    args, rest = parser.parse_known_args(argv)
    settings = [*SETTINGS, *rest]
    start = time.perf_counter()
    first = StudentConfig.parse("", settings)
    device = choose_device(first)
    data = Dataset(load(first.data_dir), Views.of(first), device.type)
    teachers = [read_teacher(path) for path in find_teachers(first)]
    setting_up = time.perf_counter() - start
    runs = []
    for seed in range(args.seeds):
        config = StudentConfig.parse("", [*settings, "--seed", str(seed)])
        runs.append(seconds_to_goal(config, teachers, data, device))
        if not args.json:
            run = runs[-1]
            word = "passed" if run["passed"] else "never passed"
            curve = " ".join(f"{value:.2f}" for value in run["test_accuracy"])
            print(
                f"seed {seed}: {word} {GOAL} % after {run['seconds']:.1f} s ({curve})", flush=True
            )
    mean = statistics.mean(run["seconds"] for run in runs)
    if args.json:
        print(json.dumps(device.facts() | {"mean_seconds": mean, "runs": runs}, indent=2))
    else:
        evaluation = statistics.mean(run["evaluation_seconds"] for run in runs)
        print(
            f"{device.type} ({device.name}), {device.precision}: mean {mean:.1f} s over "
            f"{len(runs)} seeds; not counted: {evaluation:.1f} s of evaluation a seed, "
            f"{setting_up:.1f} s of setting up"
        )
    if not all(run["passed"] for run in runs):
        raise UserError("not every seed passed", "see above", "another --lr or --epochs", 1)


if __name__ == "__main__":
    script(main)

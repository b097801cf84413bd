"""Runs made up for the tests: their errors, curves and settings are what the test chooses."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from common.claims import Part, Trio
from common.config import LOG_COLUMNS
from common.records import Record

ERRORS = np.array([10, 2, 12, 7, 12, 2, 22, 4, 2, 4]) / 100  # shares of the classes' images
VERSIONS = {"python": "3", "torch": "2", "numpy": "2"}
SHARED = {
    "batch_size": 125, "lr": 0.1, "schedule": "constant", "drop": 0.4, "warmup": 0.0,
    "momentum": 0.9, "weight_decay": 5e-4, "label_smoothing": 0.0, "padding": 1, "flip": True,
    "device": "cpu", "device_name": "CPU", "precision": "float32", "threads": 1,
    "versions": VERSIONS, "data_sha256": "0",
}  # fmt: skip
NETWORKS = {"resnet": (1_351_882, 47_341_056), "cnn": (1_031_018, 48_421_888)}
LOSS = ("loss", "temperature", "alpha", "soft_weight")  # what a student has besides
SMALL = (175_018, 21_937_152)


def labels_of(count: int) -> np.ndarray:
    return np.arange(count) % 10


def logits(
    generator: np.random.Generator, labels: np.ndarray, errors: np.ndarray, hardness: np.ndarray
) -> np.ndarray:
    """(N, 10) float32, wrong where an image's `hardness` in [0, 1] is below its class's error."""
    count = len(labels)
    values = generator.normal(0, 1, (count, 10)).astype(np.float32)
    target = np.where(hardness < errors[labels], (labels + 2) % 10, labels)
    values[np.arange(count), target] += 9
    return values


def record(
    name: str, seed: int, *, errors: np.ndarray = ERRORS, recipe: str = "notes", epochs: int = 30,
    count: int = 2000, swing: float = 0.2, speed: float = 3.0, change: int | None = None,
    settled: float = 1.0, loss_swing: float = 0.01, noise: float = 0.003, own: float = 0.5,
    teacher_sha256: str | None = None, stream: int = 0, folder: Path = Path(), **settings,
) -> Record:  # fmt: skip
    """A finished run whose classes have the shares `errors` (10,) of wrong images, and such curves.

    Accuracy rises with time constant `speed` epochs, swings by `swing` points, and with `change`
    rises by another two points at that epoch and swings `settled` times as much from there on;
    the training loss swings by `loss_swing`. `noise` is how far the errors of a seed lie from
    `errors`. For a share `own` of the images the run alone decides whether they are hard, for
    the rest all runs of the seed agree. `stream` numbers repetitions.
    """
    role, _, arch = name.partition("-")
    generator = np.random.default_rng([stream, seed, *name.encode()])
    shared = np.random.default_rng([stream, seed])

    def predict(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = labels_of(count)
        hardness = np.where(
            shared.random(count) < own, generator.random(count), shared.random(count)
        )
        return labels, logits(generator, labels, errors + shift, hardness)

    shift = generator.normal(0, noise)
    labels, test_logits = predict(count)
    val_labels, val_logits = predict(count // 2)
    final = 100 * (test_logits.argmax(1) == labels).mean()
    epoch = np.arange(1, epochs + 1)
    after = epoch >= (change or 1)
    swings = np.where(after, settled, 1) * generator.normal(0, swing, epochs)
    val = np.clip(final - 20 * np.exp(-epoch / speed) - 2 * ~after + swings, 0, 99)
    test = np.clip(val + generator.normal(0, swing, epochs), 0, 100)
    test[val.argmax()] = final  # the epoch that is chosen
    loss = 0.2 + np.exp(-epoch / speed) + loss_swing * generator.random(epochs)
    log = pd.DataFrame(
        {
            "epoch": epoch, "lr": 0.1, "train_loss": loss, "train_hard_loss": loss,
            "train_soft_loss": 2 * loss if role == "student" else np.nan,
            "train_accuracy": val + 1, "val_loss": loss, "val_accuracy": val, "test_loss": loss,
            "test_accuracy": test, "images_per_second": 1000.0, "seconds": 10.0,
        },
        columns=LOG_COLUMNS,
    )  # fmt: skip
    parameters, multiply_adds = NETWORKS[arch.partition("-")[0]] if role == "teacher" else SMALL
    config = SHARED | dict(
        recipe=recipe, epochs=epochs, seed=seed, role=role, name=name,
        arch=arch if role == "teacher" else "small-cnn",
        parameters=parameters, multiply_adds=multiply_adds,
    )  # fmt: skip
    if role == "student":
        config |= {"loss": "kd", "temperature": 4.0, "alpha": 0.5, "soft_weight": 1.0,
                   "teacher_sha256": teacher_sha256}  # fmt: skip
    return Record(
        folder, recipe, name, seed, config | settings, log, True, f"{name}-{seed}",
        labels, test_logits, val_labels, val_logits,
    )  # fmt: skip


def trio(
    seeds: int, *, teacher: dict | None = None, baseline: dict | None = None,
    student: dict | None = None, **options,
) -> Trio:  # fmt: skip
    """An experiment in memory, each student taught by the teacher of its seed.

    The options are those of `record`, for all runs or for one role.
    """

    def runs(name: str, options: dict) -> list[Record]:
        return [
            record(name, seed, **{"teacher_sha256": f"teacher-resnet-{seed}"} | options)
            for seed in range(seeds)
        ]

    return Trio(
        "notes", 2, runs("teacher-resnet", {"errors": 0.8 * ERRORS} | options | (teacher or {})),
        runs("baseline", options | (baseline or {})),
        runs("student-resnet", options | (student or {})),
    )  # fmt: skip


def beside(part: Part, name: str) -> float:
    """The value called `name` of what a claim's part says besides, in words."""
    return float(re.search(rf"{re.escape(name)} ([+-]?[\d.]+)", part.aside)[1])


def write_run(
    root: Path, name: str, seed: int, *, recipe: str = "notes", finished: bool = True, **options
) -> Path:
    """A run's folder as training leaves it, without checkpoints. The options are `record`'s."""
    folder = root / recipe / name / f"seed-{seed}"
    run = record(name, seed, recipe=recipe, folder=folder, **options)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(run.config))
    with open(folder / "log.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LOG_COLUMNS)
        writer.writerows(
            ["" if value != value else value for value in (int(first), *rest)]
            for first, *rest in run.log.to_numpy().tolist()
        )
    if finished:
        np.savez_compressed(
            folder / "predictions.npz", labels=run.labels, logits_best=run.logits,
            logits_last=run.logits, val_labels=run.val_labels, val_logits_best=run.val_logits,
        )  # fmt: skip
        summary = {"epochs": len(run.log), "weights_sha256": run.weights_sha256}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_experiment(
    root: Path, seeds: int, *, gain: float = 0.0, arch: str = "resnet", recipe: str = "notes",
    teacher: dict | None = None, baseline: dict | None = None, student: dict | None = None,
    **options,
) -> None:  # fmt: skip
    """Teacher, baseline and student; the student errs by `gain` points less in every class."""
    for seed in range(seeds):
        common = {"recipe": recipe} | options
        better = {"errors": 0.8 * ERRORS}
        write_run(root, f"teacher-{arch}", seed, **better | common | (teacher or {}))
        if not (root / recipe / "baseline" / f"seed-{seed}").exists():
            write_run(root, "baseline", seed, **common | (baseline or {}))
        better = {"errors": np.maximum(ERRORS - gain / 100, 0)}
        write_run(
            root, f"student-{arch}", seed, teacher_sha256=f"teacher-{arch}-{seed}",
            **better | common | (student or {}),
        )  # fmt: skip

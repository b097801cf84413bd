"""Run folders of networks that were never trained, with effects that the test chooses."""

import csv
import json
from pathlib import Path

import numpy as np

from common.config import LOG_COLUMNS

VERSIONS = {"python": "3", "torch": "2", "numpy": "2"}
SHARED = {
    "recipe": "notes", "batch_size": 125, "lr": 0.1, "schedule": "constant", "warmup": 0.0,
    "weight_decay": 5e-4, "label_smoothing": 0.0, "padding": 1, "flip": True,
    "optimizer": "SGD", "device": "cpu", "device_name": "CPU", "precision": "float32",
    "threads": 1, "versions": VERSIONS, "data_sha256": "0",
}  # fmt: skip
NETWORKS = {"resnet": (1_351_882, 47_341_056), "cnn": (1_031_018, 48_421_888)}


def labels_of(count: int) -> np.ndarray:
    return (np.arange(count) % 10).astype(np.int64)


def logits(
    generator: np.random.Generator, labels: np.ndarray, errors: np.ndarray, base: np.ndarray
) -> np.ndarray:
    """(N, 10): wrong where `base`, an image's hardness in [0, 1], is below its class's `errors`."""
    count = len(labels)
    values = generator.normal(0, 1, (count, 10)).astype(np.float32)
    hard = base < errors[labels]
    target = np.where(hard, (labels + 2) % 10, labels)
    values[np.arange(count), target] += 9
    return values


def write_run(
    root: Path, name: str, seed: int, *, errors: np.ndarray, recipe: str = "notes",
    epochs: int = 30, count: int = 2000, swing: float = 0.2, speed: float = 3.0,
    change: int | None = None, teacher_sha256: str | None = None, finished: bool = True,
    noise: float = 0.003, **settings,
) -> Path:  # fmt: skip
    """A run whose classes have the shares `errors` (10,) of wrong images, and such a curve.

    Its accuracy rises with time constant `speed` epochs, swings by `swing` points, and with
    `change` rises by another two points at that epoch.
    """
    folder = root / recipe / name / f"seed-{seed}"
    folder.mkdir(parents=True)
    role, _, arch = name.partition("-")
    generator = np.random.default_rng([seed, *name.encode()])
    shared = np.random.default_rng(seed)  # what the runs of one seed have in common
    labels = labels_of(count)
    test_logits = logits(
        generator, labels, errors + generator.normal(0, noise), shared.random(count)
    )
    val_labels = labels_of(count // 2)
    val_logits = logits(generator, val_labels, errors, shared.random(count // 2))
    final = 100 * (test_logits.argmax(1) == labels).mean()
    epoch = np.arange(1, epochs + 1)
    val = final - 20 * np.exp(-epoch / speed) + generator.normal(0, swing, epochs)
    if change is not None:
        val -= np.where(epoch < change, 2, 0)
    val[-1] = val.max() + 0.01  # the last epoch is the chosen one
    test = np.minimum(val, final)
    test[-1] = final
    is_student = role == "student"
    with open(folder / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for k in range(epochs):
            loss = 0.2 + np.exp(-epoch[k] / speed) + 0.01 * generator.random()
            writer.writerow(
                dict(
                    epoch=k + 1,
                    lr=0.1,
                    train_loss=loss,
                    train_hard_loss=loss,
                    train_soft_loss=loss if is_student else "",
                    train_accuracy=val[k] + 1,
                    val_loss=loss,
                    val_accuracy=val[k],
                    test_loss=loss,
                    test_accuracy=test[k],
                    images_per_second=1000.0,
                    seconds=10.0,
                )  # fmt: skip
            )
    parameters, multiply_adds = NETWORKS[arch] if role == "teacher" else (175_018, 21_937_152)
    config = SHARED | dict(
        recipe=recipe, epochs=epochs, seed=seed, role=role, name=name,
        arch=arch if role == "teacher" else "small-cnn",
        parameters=parameters, multiply_adds=multiply_adds,
    ) | settings  # fmt: skip
    if is_student:
        config |= {"loss": "kd", "temperature": 4.0, "alpha": 0.5, "soft_weight": 1.0,
                   "teacher_sha256": teacher_sha256}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    if finished:
        np.savez_compressed(
            folder / "predictions.npz", labels=labels, logits_best=test_logits,
            logits_last=test_logits, val_labels=val_labels, val_logits_best=val_logits,
        )  # fmt: skip
        summary = {"epochs": epochs, "best_epoch": epochs, "weights_sha256": f"{name}-{seed}"}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_experiment(
    root: Path, seeds: int, *, gain: float = 0.0, arch: str = "resnet", recipe: str = "notes",
    teacher: dict | None = None, baseline: dict | None = None, student: dict | None = None,
    **options,
) -> None:  # fmt: skip
    """Teacher, baseline and student; the student errs by `gain` points less in every class."""
    errors = np.array([10, 2, 12, 7, 12, 2, 22, 4, 2, 4]) / 100
    for seed in range(seeds):
        common = {"recipe": recipe} | options
        write_run(root, f"teacher-{arch}", seed, errors=0.8 * errors, **common | (teacher or {}))
        if not (root / recipe / "baseline" / f"seed-{seed}").exists():
            write_run(root, "baseline", seed, errors=errors, **common | (baseline or {}))
        write_run(
            root, f"student-{arch}", seed, errors=np.maximum(errors - gain / 100, 0),
            teacher_sha256=f"teacher-{arch}-{seed}", **common | (student or {}),
        )  # fmt: skip

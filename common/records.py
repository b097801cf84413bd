"""Run folders read back, without torch: what analyze.py knows of the runs.

Nothing in a folder is trusted: a run that cannot be read whole is left out and named.
"""

import csv
import json
import math
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.config import LOG_COLUMNS

CLASS_COUNT = 10
# Order of the rows and of the colours; runs of other names come after these.
NAMES = ("teacher-resnet", "teacher-cnn", "baseline", "student-resnet", "student-cnn")
OPTIONAL = ("train_soft_loss",)  # columns that may be empty
# What runs of one name may have otherwise than each other: everything else in config.json is a
# setting, and a table row that mixes settings says so.
NOT_SETTINGS = {
    "seed", "out", "data_dir", "resume", "overwrite", "debug", "teacher", "teacher_sha256",
    "git_commit", "versions", "device", "device_name", "threads", "processes", "deterministic",
    "compile", "precision", "name",
}  # fmt: skip
# What a student has besides, or otherwise than, a baseline.
LOSS_SETTINGS = {"role", "temperature", "alpha", "soft_weight", "loss"}


@dataclass(frozen=True)
class Record:
    """One run. Accuracies are in percent, logits (N, 10) float32, labels (N,)."""

    folder: Path
    recipe: str
    name: str
    seed: int
    config: dict[str, Any]
    log: pd.DataFrame
    complete: bool
    weights_sha256: str | None = None  # of best.pt
    labels: np.ndarray | None = None
    logits: np.ndarray | None = None  # test images, at the epoch chosen on held-out images
    val_labels: np.ndarray | None = None
    val_logits: np.ndarray | None = None

    @property
    def role(self) -> str:
        return self.config["role"]

    @property
    def best_row(self) -> pd.Series:
        """The log's row of the epoch chosen on held-out images (the first of equal ones)."""
        return self.log.loc[self.log["val_accuracy"].idxmax()]

    @property
    def right(self) -> np.ndarray:
        """Which test images the chosen weights get right: (N,) bool."""
        return self.logits.argmax(1) == self.labels

    @property
    def probabilities(self) -> np.ndarray:
        powers = np.exp(self.logits - self.logits.max(1, keepdims=True), dtype=np.float64)
        return powers / powers.sum(1, keepdims=True)


class Unreadable(Exception):
    """A file of a run folder that is not what it has to be."""


def read_all(root: Path) -> tuple[list[Record], list[str]]:
    """Every run below `root`, ordered by recipe, network and seed; and what was wrong with others.

    Unfinished runs are among the records, without predictions, and among the problems.
    """
    folders = {path.parent for name in ("config.json", "log.csv") for path in root.rglob(name)}
    records, problems = [], []
    for folder in sorted(folders):
        try:
            record = read(folder)
        except Unreadable as error:
            problems.append(str(error))
            continue
        records.append(record)
        if not record.complete:
            problems.append(
                f"{folder} is unfinished: epoch {len(record.log)} of {record.config['epochs']}; "
                "the same command with --resume goes on with it"
            )
    records.sort(key=lambda r: (r.recipe, order(r.name), r.seed))
    return records, problems + list(inconsistencies(records))


def order(name: str) -> tuple[int, str]:
    return (NAMES.index(name) if name in NAMES else len(NAMES), name)


def read(folder: Path) -> Record:
    """One run folder. Raises Unreadable, naming file and line, for a missing or malformed file."""
    config = _read_json(folder / "config.json")
    try:
        recipe, seed, role = str(config["recipe"]), int(config["seed"]), config["role"]
        for key in ("epochs", "parameters", "multiply_adds"):
            if not isinstance(config[key], int):
                raise ValueError(f"its {key} is {config[key]!r}, not a whole number")
        if role not in ("teacher", "baseline", "student"):
            raise ValueError(f"its role is {role!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"{folder / 'config.json'}: not a run's settings ({error})") from error
    # runs/RECIPE/NAME/seed-K: a method of one's own is a row of its own by its folder's name.
    name = folder.parent.name if folder.name == f"seed-{seed}" else folder.name
    log = _read_log(folder / "log.csv")
    record = Record(folder, recipe, name, seed, config, log, complete=False)
    if not (folder / "summary.json").exists():
        return record
    summary = _read_json(folder / "summary.json")
    if summary.get("epochs") != len(log):
        raise Unreadable(
            f"{folder / 'log.csv'}: {len(log)} epochs, summary.json says {summary.get('epochs')}"
        )
    arrays = _read_predictions(folder / "predictions.npz")
    digest = summary.get("weights_sha256")
    record = Record(folder, recipe, name, seed, config, log, True, digest, *arrays)
    found, logged = 100 * record.right.mean(), record.best_row["test_accuracy"]
    if not math.isclose(found, logged, abs_tol=0.01):
        raise Unreadable(
            f"{folder / 'predictions.npz'}: its accuracy is {found:.2f} %, log.csv says "
            f"{logged:.2f} % for epoch {record.best_row['epoch']:.0f}"
        )
    return record


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Unreadable(f"{path}: missing") from error
    except json.JSONDecodeError as error:
        raise Unreadable(f"{path}, line {error.lineno}: {error.msg}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise Unreadable(f"{path}: not a JSON object")
    return content


def _read_log(path: Path) -> pd.DataFrame:
    rows: list[list[float]] = []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if tuple(header) != LOG_COLUMNS:
                raise Unreadable(f"{path}, line 1: not the columns of a log")
            for row in reader:
                try:
                    if len(row) != len(LOG_COLUMNS):
                        raise ValueError(f"{len(row)} values for {len(LOG_COLUMNS)} columns")
                    rows.append([_number(*pair) for pair in zip(LOG_COLUMNS, row, strict=True)])
                    if rows[-1][0] != len(rows):
                        raise ValueError(f"epoch {row[0]} where {len(rows)} is due")
                except ValueError as error:
                    raise Unreadable(f"{path}, line {reader.line_num}: {error}") from error
    except FileNotFoundError as error:
        raise Unreadable(f"{path}: missing") from error
    except csv.Error as error:
        raise Unreadable(f"{path}, line {reader.line_num}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{path}: {error}") from error
    if not rows:
        raise Unreadable(f"{path}, line 2: no epoch yet")
    return pd.DataFrame(rows, columns=LOG_COLUMNS)


def _number(column: str, text: str) -> float:
    if not text and column in OPTIONAL:
        return math.nan
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{column} is {text}")
    return value


def _read_predictions(path: Path) -> tuple[np.ndarray, ...]:
    """labels, logits_best, and the held-out images' val_labels and val_logits_best."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [
                file[key] for key in ("labels", "logits_best", "val_labels", "val_logits_best")
            ]
    except FileNotFoundError as error:
        raise Unreadable(f"{path}: missing") from error
    # numpy and zip have no common error; what is not an archive of plain arrays is unreadable.
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise Unreadable(f"{path}: not predictions of a run ({error})") from error
    for labels, logits in (arrays[:2], arrays[2:]):
        if (
            labels.ndim != 1
            or labels.dtype.kind not in "iu"
            or logits.shape != (len(labels), CLASS_COUNT)
            or logits.dtype.kind != "f"
            or not np.isfinite(logits).all()
            or not ((labels >= 0) & (labels < CLASS_COUNT)).all()
        ):
            raise Unreadable(f"{path}: not labels (N,) and finite logits (N, {CLASS_COUNT})")
    return tuple(arrays)


def inconsistencies(records: list[Record]) -> list[str]:
    """Rows that mix settings, and students that differ from the baseline in more than the loss."""
    problems = []

    def differing(a: Record, b: Record, ignored: set[str]) -> str:
        keys = (a.config.keys() | b.config.keys()) - ignored
        return ", ".join(
            f"{key}: {a.config.get(key)} and {b.config.get(key)}"
            for key in sorted(keys)
            if a.config.get(key) != b.config.get(key)
        )

    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.recipe, record.name].append(record)
    for (recipe, name), group in groups.items():
        for other in group[1:]:
            if what := differing(group[0], other, NOT_SETTINGS):
                problems.append(f"{other.folder}: not the settings of {group[0].folder} ({what})")
        twin = groups.get((recipe, "baseline"), group)[0]
        what = differing(twin, group[0], NOT_SETTINGS | LOSS_SETTINGS)
        if what and group[0].role == "student" and name in NAMES:
            problems.append(f"{group[0].folder}: not the baseline's settings ({what})")
    return problems

"""Run folders read back, without torch: what analyze.py knows of the runs.

Nothing in a folder is trusted: a run that cannot be read whole is left out and named.
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import stats
from common.config import FREE, LOG_COLUMNS, NAME, SIZE, WARNED, differing, is_finished, read_json

CLASS_COUNT = 10
CHECKPOINTS = {"last.pt", "previous.pt"}
FOUND_BY = {"config.json", "log.csv"} | CHECKPOINTS  # any of them makes a folder a run's
# Order of the rows and of the colours; runs of other names come after these.
NAMES = ("teacher-resnet", "teacher-cnn", "baseline", "student-resnet", "student-cnn")
# What the report takes from config.json, and its types.
NUMBER = (int, float)
SETTINGS = {
    "recipe": str, "role": str, "arch": str, "seed": int, "epochs": int, "parameters": int,
    "multiply_adds": int, "batch_size": int, "lr": NUMBER, "schedule": str, "weight_decay": NUMBER,
    "label_smoothing": NUMBER, "device_name": str, "precision": str, "versions": dict,
}  # fmt: skip
IF_THERE = {
    "loss": str, "temperature": NUMBER, "alpha": NUMBER, "teacher_sha256": str,
    "device": str, "processes": int,
    "resumed_with": list,  # of dicts: what it was gone on with, and after which epoch
}  # fmt: skip
# How a run is carried out, as far as a result may depend on it.
WHERE = {"device", "device_name", "precision", "processes"}
# What runs of one name may have otherwise than each other: everything else in config.json is a
# setting, and a table row that mixes settings says so.
# The number of processes counts as a setting: batch norm normalises by a process's part of a batch.
NOT_SETTINGS = FREE | WARNED | {"seed", "teacher_sha256", "compile", "precision", "name"}
NOT_SETTINGS -= {"processes"}
# What a student has besides, or otherwise than, a baseline.
LOSS_SETTINGS = {"role", "temperature", "alpha", "soft_weight", "loss"}
# All else in config.json is a field of the user's own.
OURS = NOT_SETTINGS | LOSS_SETTINGS | SETTINGS.keys() | IF_THERE.keys()
OURS |= {"drop", "warmup", "momentum", "padding", "flip", "cutout", "data_sha256"}


def own_settings(config: Mapping[str, Any]) -> list[str]:
    """Names of the settings that the user has added and that are on, such as a hint's weight."""
    return sorted(key for key in config.keys() - OURS if config[key])


def network_folder(folder: Path, seed: int) -> Path:
    """The folder whose name is a run's network's, so that a method of one's own is a row of its
    own: NAME of runs/RECIPE/NAME/seed-K, and of a run that lies elsewhere its own."""
    place = Path(os.path.abspath(folder))  # "." has no name
    return place.parent if place.name == f"seed-{seed}" else place


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
    def teacher_digests(self) -> tuple[str, ...]:
        """Of a student: the digest of its teacher's best.pt, or of each of an ensemble, sorted: in
        whatever order they are named, they teach the same."""
        digests = self.config.get("teacher_sha256")
        return tuple(sorted(digests.split("+"))) if digests else ()

    @property
    def stages(self) -> list[tuple[pd.DataFrame, dict[str, Any]]]:
        """Log rows and settings of each stage: going on with other settings begins a new one."""
        later = self.config.get("resumed_with") or []
        ends = [*(change["after_epoch"] for change in later), len(self.log)]
        stages, start, config = [], 0, self.config
        for end, change in zip(ends, [*later, {}], strict=True):
            stages.append((self.log[start:end], config))
            start, config = end, config | change
        return stages

    @property
    def settings(self) -> dict[str, Any]:
        """config.json; of a run that went on elsewhere with where, and after which epoch."""
        settings = dict(self.config)
        for change in self.config.get("resumed_with") or ():
            for key in change.keys() & WHERE:
                before = settings.get(key, 1)  # older versions had one process, and did not say so
                settings[key] = f"{before}, after epoch {change['after_epoch']} {change[key]}"
        return settings

    @property
    def best_row(self) -> pd.Series:
        return best_row(self.log)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The classes that the chosen weights take the test images for: (N,) int."""
        return self.logits.argmax(1)

    @cached_property
    def right(self) -> np.ndarray:
        """Which test images the chosen weights get right: (N,) bool."""
        return self.predicted == self.labels

    @cached_property
    def class_errors(self) -> np.ndarray:
        """Wrong test images of each class, in percent: (10,)."""
        return stats.class_errors(self.labels, self.predicted)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Percent of the test images of class i that are taken for class j: (10, 10)."""
        return stats.confusion(self.labels, self.predicted)


def best_row(log: pd.DataFrame) -> pd.Series:
    """The log's row of the epoch chosen on held-out images (the first of equal ones)."""
    return log.loc[log["val_accuracy"].idxmax()]


def ensemble(members: Sequence[Record]) -> Record:
    """The first of the members, answering with the mean of all their logits."""
    if len(members) == 1:
        return members[0]
    return dataclasses.replace(
        members[0],
        name="ensemble",
        weights_sha256="+".join(sorted(member.weights_sha256 for member in members)),
        logits=np.mean([member.logits for member in members], axis=0),
        val_logits=np.mean([member.val_logits for member in members], axis=0),
    )


class Unreadable(Exception):
    """A file of a run folder that is not what it has to be."""


class Foreign(Unreadable):
    """Settings that are no run's, or not of the run that its folder is named after."""


def run_folders(root: Path, onerror: Callable[[OSError], object] | None = None) -> list[Path]:
    """Every folder below `root` that holds files of a run, in order. Links are followed, but for
    those to a folder that is there by itself, or within another link's."""
    found, seen, starts = [], set(), [os.fspath(root)]
    while starts:  # the root, then its links, then the links behind these
        links = []
        # A folder before those within it, and of one folder's links always the same.
        for start in sorted(starts, key=lambda path: (os.path.realpath(path), path)):
            for folder, inner, files in os.walk(start, onerror=onerror):
                if (real := os.path.realpath(folder)) in seen:
                    inner.clear()
                    continue
                seen.add(real)
                names = inner + files  # a broken link counts as a file
                if not FOUND_BY.isdisjoint(names):
                    found.append(Path(folder))
                    names = inner
                links += filter(os.path.islink, (os.path.join(folder, name) for name in names))
        starts = links
    return sorted(found)


def read_all(root: Path) -> tuple[list[Record], list[str]]:
    """Every run below `root`, ordered by recipe, network and seed; and what was wrong with others.

    Unfinished runs are among the records, without predictions, and among the problems.
    """
    errors: list[OSError] = []
    folders = run_folders(root, errors.append)
    denied = (
        error
        for error in errors
        if isinstance(error, PermissionError)
        or (isinstance(error, FileNotFoundError) and os.path.islink(error.filename))
    )
    found, problems = [], [f"{error.filename}: left out, {error.strerror}" for error in denied]
    for folder in folders:
        try:
            found.append(read(folder))
        except Unreadable as error:
            words = textwrap.shorten(str(error), 400)
            resumable = any(os.path.exists(folder / name) for name in CHECKPOINTS)
            if resumable and not isinstance(error, Foreign):
                words += "; the same command with --resume makes it again"
            problems.append(words)
    records: dict[tuple[str, str, int], Record] = {}
    for record in sorted(found, key=lambda r: not r.complete):
        twin = records.setdefault((record.recipe, record.name, record.seed), record)
        if twin is not record:
            problems.append(
                f"{record.folder}: left out, {twin.folder} has its recipe, network and seed"
            )
        elif not record.complete:
            holder = ""
            with contextlib.suppress(OSError):  # there while a run goes on, or was killed
                holder = (record.folder / ".holder").read_text(errors="replace").strip()
            problems.append(
                f"{record.folder} is unfinished: epoch {len(record.log)} of "
                f"{record.config['epochs']}; "
                + f"unless {holder} is at it, " * bool(holder)
                + "the same command with --resume goes on with it"
            )
    alike, others = _of_one_test_set(list(records.values()))
    alike.sort(key=lambda r: (r.recipe, order(r.name), r.seed))
    return alike, problems + others + inconsistencies(alike)


def _of_one_test_set(records: list[Record]) -> tuple[list[Record], list[str]]:
    """The records whose test images are those that most have, and what was left out."""
    counts = Counter(record.labels.tobytes() for record in records if record.complete)
    usual = max(counts, key=counts.get, default=None)
    kept, problems = [], []
    for record in records:
        if not record.complete or record.labels.tobytes() == usual:
            kept.append(record)
        else:
            problems.append(
                f"{record.folder / 'predictions.npz'}: left out, its test images are not those of "
                "the other runs"
            )
    return kept, problems


def order(name: str) -> tuple[int, str]:
    return (NAMES.index(name) if name in NAMES else len(NAMES), name)


def read(folder: Path) -> Record:
    """One run folder. Raises Unreadable, naming file and line, for a missing or malformed file."""
    config = _read_json(folder / "config.json")
    try:
        types = SETTINGS | IF_THERE
        known = {key: kind for key, kind in IF_THERE.items() if config.get(key) is not None}
        _check(config, SETTINGS | known)
        if config["role"] not in ("teacher", "baseline", "student"):
            raise ValueError(f"its role is {config['role']!r}")
        for change in config.get("resumed_with") or ():
            if not isinstance(change, dict):
                raise ValueError("its resumed_with is no list of changes")
            new = {key: kind for key, kind in types.items() if key in change}
            _check(change, {"after_epoch": int} | new)
        recipe, seed = config["recipe"], config["seed"]
        name = network_folder(folder, seed).name
        if re.fullmatch(r"seed-\d+", name):
            raise ValueError(f"its seed is {seed}, its folder is {name}")
        for word in (recipe, name):
            if not NAME.fullmatch(word):
                raise ValueError(f"{word!r} is no name for a recipe or a network")
    except ValueError as error:
        raise Foreign(f"{folder / 'config.json'}: not a run's settings ({error})") from error
    if not is_finished(folder):
        log = pd.DataFrame(columns=LOG_COLUMNS)
        if (folder / "log.csv").exists():  # else its first epoch is not done yet
            log = _read_log(folder / "log.csv")
        return Record(folder, recipe, name, seed, config, log, complete=False)
    results = read_results(folder, config["epochs"])
    return Record(folder, recipe, name, seed, config, complete=True, **results)


def read_results(folder: Path, epochs: int) -> dict[str, Any]:
    """What a Record has of a finished run beyond its settings. Raises Unreadable as `read`."""
    log = _read_log(folder / "log.csv")
    summary = _read_json(folder / "summary.json")
    if not summary.get("epochs") == epochs == len(log):
        raise Unreadable(
            f"{folder / 'log.csv'}: {len(log)} epochs, but summary.json says "
            f"{summary.get('epochs')!r} and config.json {epochs}"
        )
    digest = summary.get("weights_sha256")
    if not isinstance(digest, str):
        raise Unreadable(f"{folder / 'summary.json'}: no weights_sha256")
    names = ("labels", "logits", "val_labels", "val_logits")
    arrays = dict(zip(names, _read_predictions(folder / "predictions.npz"), strict=True))
    best = best_row(log)
    found = 100 * (arrays["logits"].argmax(1) == arrays["labels"]).mean()
    if not math.isclose(found, best["test_accuracy"], abs_tol=0.01):
        raise Unreadable(
            f"{folder / 'predictions.npz'}: its accuracy is {found:.2f} %, log.csv says "
            f"{best['test_accuracy']:.2f} % for epoch {best['epoch']:.0f}"
        )
    return {"log": log, "weights_sha256": digest} | arrays


def _check(config: dict[str, Any], types: dict[str, type | tuple[type, ...]]) -> None:
    """Raise ValueError unless `config` has values of such types, and numbers that are sizes."""
    for key, kind in types.items():
        value, least = config.get(key), int(key in SIZE | {"epochs"})
        right = isinstance(value, kind) and not isinstance(value, bool)
        if not right or (isinstance(value, NUMBER) and not least <= value < 1e15):
            raise ValueError(f"its {key} is {value!r}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError as error:
        raise Unreadable(f"{path}: missing") from error
    except json.JSONDecodeError as error:
        raise Unreadable(f"{path}, line {error.lineno}: {error.msg}") from error
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path}: {error}") from error


def _read_log(path: Path) -> pd.DataFrame:
    rows: list[list[float]] = []
    try:
        # What is not UTF-8 is not a number either, and is found in its line.
        text = path.read_text(encoding="utf-8", errors="backslashreplace")
    except FileNotFoundError as error:
        raise Unreadable(f"{path}: missing") from error
    except OSError as error:
        raise Unreadable(f"{path}: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        if tuple(next(reader, [])) != LOG_COLUMNS:
            raise ValueError("not the columns of a log")
        for row in reader:
            if len(row) != len(LOG_COLUMNS):
                raise ValueError(f"{len(row)} values for {len(LOG_COLUMNS)} columns")
            rows.append([_number(*pair) for pair in zip(LOG_COLUMNS, row, strict=True)])
            if rows[-1][0] != len(rows):
                raise ValueError(f"epoch {row[0]!r} where {len(rows)} is due")
        if not rows:
            raise ValueError("no epoch yet")
        if not text.endswith("\n"):  # a number that was cut is a number still
            raise ValueError("it ends in the middle of a line")
    except (csv.Error, ValueError) as error:
        raise Unreadable(f"{path}, line {max(reader.line_num, 1)}: {error}") from error
    return pd.DataFrame(rows, columns=LOG_COLUMNS)


def _number(column: str, text: str) -> float:
    if not text and column == "train_soft_loss":  # without a teacher
        return math.nan
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{column} is {text!r}")
    if column.endswith("accuracy") and not 0 <= value <= 100:
        raise ValueError(f"{column} is {text!r}, not in percent")
    return value


def _read_predictions(path: Path) -> tuple[np.ndarray, ...]:
    """labels, logits_best, and the held-out images' val_labels and val_logits_best."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            content = {key: archive[key] for key in archive.files}  # all, so every CRC is tested
            arrays = [
                content[key] for key in ("labels", "logits_best", "val_labels", "val_logits_best")
            ]
    except FileNotFoundError as error:
        raise Unreadable(f"{path}: missing") from error
    except Exception as error:  # zip, zlib and numpy each have their own ways to fail
        raise Unreadable(f"{path}: not predictions of a run ({error})") from error
    for labels, logits in (arrays[:2], arrays[2:]):
        if (
            labels.ndim != 1
            or len(labels) == 0
            or labels.dtype.kind not in "iu"
            or logits.shape != (len(labels), CLASS_COUNT)
            or logits.dtype.kind != "f"
            or not np.isfinite(logits).all()
            or not ((labels >= 0) & (labels < CLASS_COUNT)).all()
        ):
            raise Unreadable(f"{path}: not labels (N,) and finite logits (N, {CLASS_COUNT})")
    types = (np.int64, np.float32, np.int64, np.float32)  # float16 holds bfloat16's logits too
    return tuple(array.astype(kind) for array, kind in zip(arrays, types, strict=True))


def inconsistencies(records: list[Record]) -> list[str]:
    """Rows that mix settings, and students that differ from the baseline in more than the loss."""
    problems = []
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.recipe, record.name].append(record)
    for (recipe, name), group in groups.items():
        for other in group[1:]:
            if what := in_words(group[0].settings, other.settings, NOT_SETTINGS):
                problems.append(f"{other.folder}: not the settings of {group[0].folder} ({what})")
        problems += [
            f"{run.folder} holds a run of {own}, and counts as {name} by its folder"
            for run in group
            if name in NAMES and (own := run.config.get("name", name)) != name
        ]
        twin = groups.get((recipe, "baseline"), group)[0]
        ignored = (NOT_SETTINGS | LOSS_SETTINGS) - {"precision"}
        what = in_words(twin.settings, group[0].settings, ignored)
        if what and group[0].role == "student" and name in NAMES:
            problems.append(f"{group[0].folder}: not the baseline's settings ({what})")
    return problems


def in_words(a: Mapping[str, Any], b: Mapping[str, Any], ignored: Container[str]) -> str:
    """In which settings two configurations differ."""
    return ", ".join(
        f"{key}: {a.get(key)!r} and {b.get(key)!r}" for key in differing(a, b, ignored)
    )

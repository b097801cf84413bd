"""The report from run folders: right numbers from good ones, plain words about bad ones."""

import csv
import html.parser
import io
import itertools
import json
import math
import os
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import fake
import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import analyze
from common import claims, compare, config, missing, plots, records, stats
from common.config import LOG_COLUMNS, RESULTS_DIR
from common.data import load as load_data
from common.errors import UserError
from common.page import Picture, Table, Text, to_bytes
from common.stats import Estimate
from conftest import ROOT, only_line, run_script

RESULTS_COLUMNS = (
    "recipe,name,parameters,seeds,train_accuracy,test_selected,test_selected_std,test_last,"
    "test_last_std,test_best_epoch,test_best_epoch_std,delta,delta_low,delta_high,gap_recovered,"
    "mcnemar_p,agreement_with_teacher,kl_to_teacher,ece,nll,seconds,val_selected,pairs,"
    "baseline,besides,kd,delta_kd,delta_kd_low,delta_kd_high,pairs_kd,"
    "delta_p,delta_kd_p,arch,epochs,lr,loss,temperature,alpha,soft_weight"
)
CLAIMS_COLUMNS = "claim,recipe,experiment,statistic,value,low,high,verdict,over,p,p_statistic"
SMALL = {"count": 200, "epochs": 16}
HEADLINE = plots.headline  # as it is before a test has it not drawn


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Three seeds of experiment 2; the student errs less."""
    root = tmp_path_factory.mktemp("runs")
    fake.write_experiment(root, 3, gain=4, epochs=20, count=1000)
    return root


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory) -> tuple[Path, str]:
    """The folder that the script leaves for these runs, and what it prints."""
    out = tmp_path_factory.mktemp("report")
    done = run_script("analyze.py", "--runs", runs, "--out", out, PYTHONHASHSEED="1")
    assert done.stderr == ""
    return out, done.stdout


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("small")
    fake.write_experiment(root, 2, **SMALL)
    return root


@pytest.fixture
def small(two_seeds, tmp_path) -> Path:
    """Two seeds of experiment 2, for a test to damage."""
    return Path(shutil.copytree(two_seeds, tmp_path / "runs"))


@pytest.fixture
def undrawn(monkeypatch):
    """No figures: they are what takes long."""
    for name in ("curves", "headline", "class_errors", "confusions", "reliability", "cost", "seeds",
                 "claim", "gallery"):  # fmt: skip
        monkeypatch.setattr(plots, name, lambda *_: None)
    monkeypatch.setattr(Picture, "of", lambda name, _, alt: Picture(name, b"", b"", alt))
    monkeypatch.setattr(analyze, "to_bytes", lambda *_: b"")
    monkeypatch.setattr(analyze, "test_images", lambda _: None)


@pytest.fixture
def reported(undrawn, capsys, tmp_path):
    """Analyse a folder in this process; returns exit code, results.csv and stderr."""

    def run(root: Path, *more: object) -> tuple[int, pd.DataFrame, str]:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        code = analyze.main(["--runs", str(root), "--out", str(out), *map(str, more)])
        return code, pd.read_csv(out / "results.csv"), capsys.readouterr().err

    return run


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def left_out(table: pd.DataFrame) -> set[tuple[str, int]]:
    """Networks with fewer than the two seeds that `small` has."""
    counts = dict(zip(table["name"], table["seeds"], strict=True))
    names = ("teacher-resnet", "baseline", "student-resnet")
    return {(name, 2 - counts.get(name, 0)) for name in names if counts.get(name, 0) != 2}


# ---------------------------------------------------------------- numbers


def load(runs: Path, name: str) -> list[dict]:
    """What is in the folders of a network, read without the product's code."""
    found = []
    for seed in range(3):
        folder = runs / "notes" / name / f"seed-{seed}"
        with open(folder / "log.csv", newline="") as file:
            log = [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(file)]
        with np.load(folder / "predictions.npz") as file:
            arrays = dict(file)
        best = max(log, key=lambda row: row["val_accuracy"])
        right = arrays["logits_best"].argmax(1) == arrays["labels"]
        found.append({"log": log, "best": best, "right": right, **arrays})
    return found


def test_results_have_the_columns_and_rows_that_are_promised(report):
    lines = (report[0] / "results.csv").read_text().splitlines()
    assert lines[0] == RESULTS_COLUMNS
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["notes", "teacher-resnet", "1351882", "3"],
        ["notes", "baseline", "175018", "3"],
        ["notes", "student-resnet", "175018", "3"],
    ]


@pytest.mark.parametrize("name", ["teacher-resnet", "baseline", "student-resnet"])
def test_results_are_those_of_the_files(runs, report, name):
    row = pd.read_csv(report[0] / "results.csv").set_index("name").loc[name]
    own, base = load(runs, name), load(runs, "baseline")
    teachers = load(runs, "teacher-resnet")
    expected = {
        "train_accuracy": np.mean([run["best"]["train_accuracy"] for run in own]),
        "seconds": np.mean([sum(row["seconds"] for row in run["log"]) for run in own]),
    }
    for key, values in {
        "test_selected": [100 * np.mean(run["right"]) for run in own],
        "test_last": [run["log"][-1]["test_accuracy"] for run in own],
        "test_best_epoch": [max(row["test_accuracy"] for row in run["log"]) for run in own],
    }.items():
        expected |= {key: np.mean(values), f"{key}_std": np.std(values, ddof=1)}
    p = [scipy.special.softmax(run["logits_best"].astype(float), axis=1) for run in own]
    labels = own[0]["labels"]
    expected["nll"] = np.mean([-np.log(q[np.arange(1000), labels]).mean() for q in p])
    expected["ece"] = np.mean([ece(q, labels) for q in p])
    told = name != "teacher-resnet"
    of_teachers = [scipy.special.softmax(t["logits_best"].astype(float), axis=1) for t in teachers]
    pairs = list(zip(of_teachers, p, strict=True))
    expected["agreement_with_teacher"] = (
        100 * np.mean([(a.argmax(1) == b.argmax(1)).mean() for a, b in pairs]) if told else math.nan
    )
    expected["kl_to_teacher"] = (
        np.mean([scipy.special.rel_entr(a, b).sum(1).mean() for a, b in pairs])
        if told
        else math.nan
    )
    compared = ("delta", "delta_low", "delta_high", "gap_recovered", "mcnemar_p")
    expected |= dict.fromkeys(compared, math.nan)
    if name == "student-resnet":
        rights = [np.stack([run["right"] for run in each]) for each in (own, base, teachers)]
        student, baseline, teacher = (each.mean() for each in rights)
        deltas = 100 * (rights[0].mean(1) - rights[1].mean(1))
        reach = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(deltas)
        expected |= {
            "delta": deltas.mean(),
            "delta_low": deltas.mean() - reach,
            "delta_high": deltas.mean() + reach,
            "gap_recovered": (student - baseline) / (teacher - baseline),
        }
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, rel=1e-4, nan_ok=True), key


def ece(p: np.ndarray, labels: np.ndarray) -> float:
    order = np.argsort(p.max(1), kind="stable")
    gaps = [
        len(part) * abs((p[part].argmax(1) == labels[part]).mean() - p[part].max(1).mean())
        for part in np.array_split(order, 15)
    ]
    return 100 * sum(gaps) / len(labels)


def test_claims_have_the_columns_that_are_promised_and_one_verdict_each(report):
    assert (report[0] / "claims.csv").read_text().splitlines()[0] == CLAIMS_COLUMNS
    table = pd.read_csv(report[0] / "claims.csv")
    assert list(table["claim"].unique()) == [f"C{k}" for k in range(1, 9)]
    assert set(table["recipe"]) == {"notes"} and set(table["experiment"]) == {2}
    assert (table.groupby("claim")["verdict"].nunique() == 1).all()
    assert set(table["verdict"]) <= {"supported", "contradicted", "undecided"}
    assert not table["statistic"].str.contains(r"\d\.\d").any()  # a name, without values


@pytest.mark.parametrize(
    ("claim", "row", "value"),
    [
        ("C1", 1, lambda run: np.mean([row["val_accuracy"] for row in run["log"]])),
        ("C3", 0, lambda run: run["best"]["train_accuracy"]),
        ("C3", 1, lambda run: 100 * run["right"].mean()),
        ("C5", 0, lambda run: 100 * (1 - run["right"][run["labels"] == 6].mean())),
        (
            "C6",
            0,
            lambda run: scipy.stats.variation(
                [(~run["right"])[run["labels"] == label].mean() for label in range(10)]
            ),
        ),
    ],
)
def test_claims_are_about_the_files(runs, report, claim, row, value):
    table = pd.read_csv(report[0] / "claims.csv")
    found = table[table["claim"] == claim].iloc[row]
    differences = [
        value(student) - value(base)
        for student, base in zip(load(runs, "student-resnet"), load(runs, "baseline"), strict=True)
    ]
    test = scipy.stats.ttest_1samp(differences, 0)
    interval = test.confidence_interval()
    expected = [np.mean(differences), interval.low, interval.high, test.pvalue]
    columns = ["value", "low", "high", "p_statistic"]
    assert found[columns].tolist() == pytest.approx(expected, rel=1e-4)
    assert found["p"] >= found["p_statistic"]  # adjusted


def test_what_choosing_on_the_test_images_adds_is_told(report):
    rows = pd.read_csv(report[0] / "results.csv").itertuples()
    added = [f"{row.name} {row.test_best_epoch - row.test_selected:.2f}" for row in rows]
    words = f"\n- choosing the epoch on the test images adds, in points: {', '.join(added)}\n"
    assert words in (report[0] / "report.md").read_text() and not words.count("-0.")


def test_what_choosing_adds_is_not_below_0_where_it_is_nothing():
    row = SimpleNamespace(name="mine", test_best_epoch=87.06, test_selected=87.06 + 1e-12)
    words = analyze.what_choosing_adds(SimpleNamespace(rows=lambda _: [row]), "notes")
    assert words.endswith(" adds, in points: mine 0.00")


def test_the_headline_has_the_gain_of_the_table(report):
    row = pd.read_csv(report[0] / "results.csv").set_index("name").loc["student-resnet"]
    words = f"distillation gains {row['delta']:.2f} points of test accuracy (95 % interval"
    assert row["delta_low"] > 0
    for text in (
        report[1],
        *((report[0] / f"report.{kind}").read_text() for kind in ("html", "md")),
    ):
        assert words in " ".join(html.unescape(text).split())


@pytest.mark.parametrize(
    ("teachers", "words", "given"),
    [
        ((0, 1, 2), "3 seeds)", False),
        ((0, 1, 0), "3 seeds, 2 of them with the same teacher)", True),
        ((1, 1, 1), "3 seeds, one teacher for all)", True),
    ],
)
def test_the_headline_tells_how_many_seeds_share_a_teacher(teachers, words, given):
    better = {"student": {"errors": 0.7 * fake.ERRORS}, "teacher": {"errors": 0.5 * fake.ERRORS}}
    trio = fake.trio(3, **better, noise=0, count=20_000)
    for student, teacher in zip(trio.students, teachers, strict=True):
        student.config["teacher_sha256"] = f"teacher-resnet-{teacher}"
    sentence = analyze.headline(trio)
    assert words in sentence and " % of the gap to the teacher (interval " in sentence
    assert sentence.endswith(", given these teachers).") == given


def test_a_student_that_is_worse_is_said_to_lose():
    trio = fake.trio(5, student={"errors": 1.5 * fake.ERRORS})
    loss = np.mean([base.right.mean() - student.right.mean() for base, student in trio.pairs()])
    assert claims.gain(trio).high < 0
    sentence = analyze.headline(trio)
    assert f"distillation loses {100 * loss:.2f} points" in sentence and "gap" not in sentence


def test_the_headline_tells_what_else_than_the_loss_differs():
    trio = fake.trio(3)
    assert "more than the loss" not in analyze.headline(trio)
    trio.students[1].config["processes"] = 8
    words = "; student and baseline differ in more than the loss: processes: None and 8 (seed 1)."
    assert analyze.headline(trio).endswith(words)


def test_a_temperature_is_fitted_on_held_out_images_and_judged_on_test_images():
    run = fake.record("baseline", 0, count=4000)
    run.val_logits[:] *= 3  # three times as sure of the held-out images
    table = list(analyze.calibration_blocks(compare.Comparison([run])))[-1]
    ((_, temperature, ece, _, nll, *_),) = table.rows
    fitted = 3 * stats.fit_temperature(run.val_logits / 3, run.val_labels)
    assert temperature == f"{fitted:.2f}"
    for words, measure, digits in (
        (ece, stats.expected_calibration_error, 2),
        (nll, stats.negative_log_likelihood, 3),
    ):
        before, after = (measure(run.logits / t, run.labels) for t in (1, fitted))
        assert words == f"{before:.{digits}f} → {after:.{digits}f}"


def test_the_headline_tells_of_how_many_seeds_the_teachers_accuracy_is():
    trio = fake.trio(4)
    trio.students[2].config["teacher_sha256"] = "elsewhere"
    accuracy = np.mean([100 * trio.teachers[seed].right.mean() for seed in (0, 1, 3)])
    words = f"teachers {accuracy:.2f} % in the 3 of 4 seeds whose teacher is here"
    assert words in analyze.headline(trio)
    assert " whose teacher is here" not in analyze.headline(fake.trio(4))


@pytest.mark.parametrize(("loss", "words"), [("kd", "temperature"), ("mine", "temperature, too")])
def test_what_differs_does_so_too_where_the_loss_does(loss, words):
    first, second = (fake.trio(2).students for _ in range(2))
    for run in second:
        run.config.update(temperature=1.0, loss=loss)
    trio = claims.Trio("notes", 0, [], first, second)
    assert analyze.difference_in_words(compare.Comparison([]), trio).endswith(
        f"they differ in {words}"
    )


def test_a_copied_run_is_no_further_network(small, reported):
    folder = small / "notes" / "baseline"
    shutil.copytree(folder / "seed-0", folder / "seed-0-backup")
    code, table, errors = reported(small)
    assert code == 1 and "seed-0-backup" in list(table["name"])
    copied = f"{folder / 'seed-0-backup'} is a copy of {folder / 'seed-0'}: no evidence of its own"
    assert copied in errors


def test_a_longer_run_that_chose_the_same_epoch_is_no_copy(small, reported):
    """As of a constant rate, whose first epochs are the shorter run's."""
    folder = small / "notes" / "baseline"
    longer = shutil.copytree(folder / "seed-0", small / "notes" / "baseline-longer" / "seed-0")
    log = (longer / "log.csv").read_text().splitlines()
    last = log[-1].split(",")
    log.append(",".join([str(int(last[0]) + 1), *last[1:]]))
    (longer / "log.csv").write_text("\n".join(log) + "\n")
    for name in ("config.json", "summary.json"):
        change(longer / name, epochs=len(log) - 1)
    code, table, errors = reported(small)
    assert (code, errors) == (0, "") and "baseline-longer" in list(table["name"])


def test_of_an_ensemble_the_teacher_that_is_gone_is_named(small, reported):
    here = records.read(small / "notes" / "teacher-resnet" / "seed-0").weights_sha256
    taught = {"teacher_sha256": f"1f+{here}", "teacher": ["/gone/best.pt", "/here/best.pt"]}
    fake.write_run(small, "student-ensemble", 0, **taught, **SMALL)
    code, _, errors = reported(small)
    assert code == 1 and "not among these runs (/gone/best.pt): what needs" in errors


def test_a_copied_run_is_no_further_seed(small, reported):
    folder = small / "notes" / "baseline"
    shutil.copytree(folder / "seed-0", folder / "seed-7")
    change(folder / "seed-7" / "config.json", seed=7)
    code, _, errors = reported(small)
    assert code == 1
    assert f"{folder / 'seed-7'} is a copy of {folder / 'seed-0'}: no evidence of its own" in errors


def test_students_are_compared_with_the_baselines_of_their_seeds_only(tmp_path, reported):
    root = tmp_path / "runs"
    for seed, errors in ((0, 0.9), (1, 1.0), (2, 1.1)):
        fake.write_run(root, "teacher-resnet", seed, **SMALL)
        if seed != 2:
            fake.write_run(root, "baseline", seed, errors=errors * fake.ERRORS, **SMALL)
        if seed != 0:
            fake.write_run(
                root, "student-resnet", seed, teacher_sha256=f"teacher-resnet-{seed}", **SMALL
            )
    code, table, errors = reported(root)
    student, base = (
        records.read(root / "notes" / name / "seed-1") for name in ("student-resnet", "baseline")
    )
    delta = table.set_index("name").loc["student-resnet", "delta"]
    assert delta == pytest.approx(100 * (student.right.mean() - base.right.mean()), rel=1e-4)
    assert code == 1 and "baseline has no run of seed 2 to compare " in errors
    assert "train_baseline.py --recipe notes --seed 2" in errors


def test_plain_distillation_is_the_one_of_the_nearest_settings(small, undrawn, capsys):
    """Not one with a hint besides, though of kd, of the same teacher and of more seeds."""
    shared = {"teacher_sha256": "teacher-resnet-0"} | SMALL
    for seed in range(3):
        hint = {"hint_weight": 1.0, "hint_layer": 8, "a {b}": True, "parameters": 180_000}
        fake.write_run(small, "student-resnet-hint", seed, flip=False, **hint, **shared)
        fake.write_run(small, "student-mine", seed, loss="mine", alpha=0.9, **shared)
    fake.write_run(small, "student-kd-a0.9", 0, alpha=0.9, **shared)  # nearer, but of one seed
    out = small.parent / "out"
    analyze.main(["--runs", str(small), "--out", str(out)])
    printed, page = capsys.readouterr().out, (out / "report.md").read_text()
    assert "student-mine − student-resnet: " in printed and "− student-resnet-hint" not in printed
    assert pd.read_csv(out / "results.csv").set_index("name").loc["student-mine", "kd"] == (
        "student-resnet"
    )
    row = next(
        line for line in page.splitlines() if line.startswith("| student-resnet-hint, notes | e")
    )
    for seed in range(2):  # as near and of the same teacher, but of the same device, too
        for name, loss in (("student-resnet-there", "kd"), ("student-new", "new")):
            where = {"device_name": "A card", "loss": loss} | shared
            fake.write_run(
                small, name, seed, **where | {"teacher_sha256": f"teacher-resnet-{seed}"}
            )
    analyze.main(["--runs", str(small), "--out", str(out)])
    table = pd.read_csv(out / "results.csv").set_index("name")
    assert table.loc["student-new", "kd"] == "student-resnet-there"
    for name in ("student-resnet-there", "student-new"):
        shutil.rmtree(small / "notes" / name)
    how = "soft weight 1.0, no flip, a {b} True, hint_layer 8, hint_weight 1.0 | 0 1 2 |"
    assert how in row and "momentum 0.9" in row
    shutil.rmtree(small / "notes" / "student-resnet")
    analyze.main(["--runs", str(small), "--out", str(out)])
    assert "student-mine − student-kd-a0.9: " in capsys.readouterr().out
    page = (out / "report.md").read_text()
    assert re.search(r"^\| student-mine \|.*\(n 1\) on student-kd-a0.9 \|", page, re.M)


@pytest.mark.parametrize("arch", ["small-cnn", "tiny"])
@pytest.mark.parametrize("tuned", [{"alpha": 0.7}, {"alpha": 0.7, "temperature": 8.0}], ids=str)
def test_a_loss_is_compared_with_the_best_plain_distillation_and_with_the_others(
    tmp_path, undrawn, tuned, arch
):
    """Best on held-out images: as many of its settings may differ as those of the others, or more.
    Not with a student of more teachers, nor with experiment 1's, whose teachers are others as well.
    """
    root, out, tail = tmp_path / "runs", tmp_path / "out", "-tiny" * (arch == "tiny")
    fake.write_experiment(root, 2, **SMALL)
    if arch == "tiny":
        for seed in range(2):
            fake.write_run(root, "baseline-tiny", seed, arch=arch, **SMALL)
    for seed in range(2):
        shared = {"teacher_sha256": f"teacher-resnet-{seed}", "arch": arch} | SMALL
        if arch == "tiny":
            fake.write_run(root, "student-resnet-tiny", seed, **shared)
        worse, better = {"errors": 1.2 * fake.ERRORS}, {"errors": 0.5 * fake.ERRORS}
        fake.write_run(root, f"student-resnet-weak{tail}", seed, alpha=0.7, **worse, **shared)
        fake.write_run(root, f"student-resnet-tuned{tail}", seed, **tuned, **better, **shared)
        fake.write_run(root, f"student-mine{tail}", seed, loss="mine", alpha=0.9, **shared)
        more = shared | {"teacher_sha256": "+".join(f"teacher-resnet-{each}" for each in range(2))}
        best = {"errors": 0.1 * fake.ERRORS}
        fake.write_run(root, f"student-ensemble{tail}", seed, **best, **more)
        plain = shared | {"teacher_sha256": f"teacher-cnn-{seed}"}
        fake.write_run(root, f"student-cnn{tail}", seed, **best, **plain)
        elsewhere = shared | {"teacher_sha256": f"elsewhere-{seed}"}
        fake.write_run(root, f"student-other{tail}", seed, loss="mine", alpha=0.9, **elsewhere)
    analyze.main(["--runs", str(root), "--out", str(out)])
    page = (out / "report.md").read_text()
    gain = r"[^|;]+\] \(other {}\) on student-resnet{}"
    first = gain.format(", ".join(tuned), f"-tuned{tail}")
    others = [gain.format("alpha", which) for which in (tail, f"-weak{tail}")]
    row = rf"^\| student-mine{tail} \|.*\| {first} \| {'; '.join(others)} \| – \|$"
    assert re.search(row, page, re.MULTILINE)
    table = pd.read_csv(out / "results.csv").set_index("name")
    for name in ("student-mine", "student-other"):
        assert table.loc[f"{name}{tail}", "kd"] == f"student-resnet-tuned{tail}"


@pytest.mark.parametrize("seeds", [1, 2])
def test_dots_of_seeds_are_told_of_where_they_are_drawn(tmp_path, undrawn, seeds):
    fake.write_experiment(tmp_path / "runs", seeds, **SMALL)
    analyze.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "report.md").read_text()
    assert ("baseline and student (dots: the seeds), and" in page) == (seeds > 1)
    assert "Errors class by class for teacher, baseline and student" in page


def test_plain_distillation_of_the_cnn_is_named(tmp_path, undrawn):
    """What has no name is student-resnet's."""
    fake.write_experiment(tmp_path / "runs", 2, arch="cnn", **SMALL)
    for seed in range(2):
        taught = {"teacher_sha256": f"teacher-cnn-{seed}", "loss": "mine"} | SMALL
        fake.write_run(tmp_path / "runs", "student-cnn-mine", seed, **taught)
    analyze.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "report.md").read_text()
    assert re.search(r"^\| student-cnn-mine \|.*\] on student-cnn \| – \|$", page, re.M)


def test_the_command_for_a_seed_of_a_baseline_has_that_baselines_settings(
    tmp_path, reported, monkeypatch
):
    """Not the student's: it would not be of its row. A control is not named by its architecture."""
    root, slow = tmp_path / "runs", {"arch": "tiny", "schedule": "step", "drop": 0.2, "lr": 0.05}
    fake.write_run(root, "baseline", 0, **SMALL)
    fake.write_run(root, "baseline-tiny-slow", 0, **slow, **SMALL)
    for seed in range(2):
        taught = {"teacher_sha256": "1f"} | SMALL
        fake.write_run(root, "student-mine", seed, lr=0.07, **taught)
        fake.write_run(root, "student-resnet-tiny", seed, **slow, **taught)
    monkeypatch.setattr(missing, "RUNS_DIR", root)
    change(root / "notes" / "baseline" / "seed-0" / "config.json", drop=None, flip=None)  # old
    errors = reported(root)[2]
    command = "train_baseline.py --recipe notes --seed 1"
    assert f"{command} --epochs 16 --no-flip --lr 0.1 makes it" in errors
    place = root / "notes" / "baseline-tiny-slow" / "seed-1"
    flags = f"--arch tiny --drop 0.2 --epochs 16 --lr 0.05 --schedule step --out {place}"
    assert f"{command} {flags} makes it" in errors


def test_a_mark_of_what_is_not_in_the_table_is_explained(tmp_path, undrawn, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("kd", "mine"):
        fake.write_run(one, name, 100, role="student", teacher_sha256="1f", loss=name, **SMALL)
    good = {"errors": 0.2 * fake.ERRORS}
    fake.write_experiment(two, 4, gain=4, teacher=good, count=2000, epochs=16)
    for seed in (1, 2, 3):  # in the headline alone: of the one seed whose teacher is here
        shutil.rmtree(two / "notes" / "teacher-resnet" / f"seed-{seed}")
    for root, words in ((one, "† points, one seed"), (two, "†).")):
        analyze.main(["--runs", str(root), "--out", str(tmp_path / "out")])
        printed = capsys.readouterr().out
        assert words in printed and printed.count("\n† one seed of each") == 1
    readme = tmp_path / "README.md"
    readme.write_text(MARKED)
    analyze.main(["--runs", str(two), "--out", str(tmp_path / "out"), "--readme", str(readme)])
    block = readme.read_text().partition("middle")[0]
    assert "†).**" in block and block.count("\n† one seed of each") == 1


def test_networks_that_differ_in_the_same_from_the_baseline_share_a_line(small, undrawn, capsys):
    for name, rate in (("student-a", 0.05), ("student-b", 0.05), ("student-c", 0.07)):
        for seed in range(2):
            taught = {"teacher_sha256": f"teacher-resnet-{seed}", "lr": rate} | SMALL
            fake.write_run(small, name, seed, **taught)
    analyze.main(["--runs", str(small), "--out", str(small.parent / "out")])
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "from the baseline in" in line]
    assert len(told) == 2 and told[0].startswith("student-a, student-b differ from the baseline in")
    assert told[1].startswith("student-c differs from the baseline in lr: ")


def test_the_readme_explains_every_column_of_the_tables():
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## What is logged")[2].partition("\n## ")[0]
    log, _, results = section.partition("`analyze.py` leaves")
    assert not set(LOG_COLUMNS) - set(re.findall(r"`(\w+)`", log))
    named = set(re.findall(r"`(\w+)`", results))
    ends = ("_std", "_low", "_high", "_p")
    expanded = named | {f"{name}{end}" for name in named for end in ends}
    assert not set(RESULTS_COLUMNS.split(",")) - expanded


def test_a_method_of_ones_own_is_a_row_compared_with_the_baseline(small, reported):
    for seed in range(2):
        fake.write_run(small, "student-mine", seed, teacher_sha256=f"teacher-resnet-{seed}",
                       alpha=0.7, errors=0.7 * fake.ERRORS, **SMALL)  # fmt: skip
    code, table, errors = reported(small)
    assert code == 0 and errors == ""
    row = table.iloc[-1]
    assert row["name"] == "student-mine" and row["seeds"] == 2
    assert row["delta"] > 0 and row["agreement_with_teacher"] > 50
    own = pd.read_csv(small.parent / "out" / "claims.csv")
    assert set(own["experiment"]) == {2}  # the notes claim nothing about it


def test_a_method_of_ones_own_is_compared_with_plain_distillation(small, undrawn, capsys):
    """And it is said in what besides the loss it differs from the runs beside it."""
    options = {"errors": 0.5 * fake.ERRORS, **SMALL}
    for seed in range(2):
        teacher = f"teacher-resnet-{seed}"
        fake.write_run(small, "student-mine", seed, teacher_sha256=teacher, precision="bfloat16",
                       lr=0.05, **options)  # fmt: skip
        fake.write_run(small, "student-fair", seed, teacher_sha256=teacher, **options)
        fake.write_run(small, "student-other", seed, teacher_sha256="1f", **options)
        fake.write_run(
            small, "student-more", 2 * seed, teacher_sha256="teacher-resnet-0", **options
        )
        warm = {"temperature": 2.0, "soft_weight": 9.0}
        fake.write_run(small, "student-warm", seed, teacher_sha256=teacher, **warm, **options)
    out = small.parent / "out"
    assert analyze.main(["--runs", str(small), "--out", str(out)]) == 1  # an unknown teacher
    printed = " ".join(capsys.readouterr().out.split())
    mine, kd = (
        [100 * records.read(small / "notes" / name / f"seed-{k}").right.mean() for k in (0, 1)]
        for name in ("student-mine", "student-resnet")
    )
    gain = np.mean(mine) - np.mean(kd)
    assert f"student-mine − student-resnet: {gain:+.2f} [" in printed
    table = pd.read_csv(out / "results.csv").set_index("name").loc["student-mine"]
    assert table["kd"] == "student-resnet" and table["baseline"] == "baseline"
    assert table["delta_kd"] == pytest.approx(gain, rel=1e-4)
    reach = scipy.stats.t.ppf(0.975, 1) * scipy.stats.sem(np.subtract(mine, kd))
    ends = list(table[["delta_kd_low", "delta_kd_high"]])
    assert ends == pytest.approx([gain - reach, gain + reach], rel=1e-4)
    p = scipy.stats.ttest_rel(mine, kd).pvalue
    assert table["delta_kd_p"] == pytest.approx(p, rel=1e-4) != table["delta_p"]
    base = records.read(small / "notes" / "baseline" / "seed-0").config
    words = f"lr: {base['lr']} and 0.05, precision: {base['precision']!r} and 'bfloat16'"
    assert f"student-mine differs from the baseline in {words}" in printed
    assert table["besides"] == words
    assert "student-other had another teacher than" in printed
    lines = {
        name: re.search(rf"{name} − student-resnet: [^a-z]+ points, 2 seeds([^−]*) ", printed)[1]
        for name in ("student-warm", "student-fair")
    }
    assert lines["student-warm"].startswith("; they differ in soft_weight, temperature student-")
    assert "differ in" not in lines["student-fair"]
    assert not any(
        word in printed for word in ("student-fair differs", "student-fair had", "student-mine had")
    )
    page = (out / "report.md").read_text()
    assert "| gain on a control" not in page
    assert "− student-resnet:" not in page  # a table says it there
    for name, words in (
        ("student-mine", rf"{re.escape(f'{gain:+.2f}')} \[[^|]*\] \| [^|]*precision: "),
        ("student-warm", r"[^|]* \(other soft_weight, temperature\) \| – \|"),
        ("student-more", r"[^|]* \(n 1\) \| – \|"),
        ("student-fair", r"[+-][\d.]+ \[[^|(]*\] \| – \|"),
    ):
        assert re.search(rf"^\| {name} \| 2 \| [^|‡]+ \| {words}", page, re.MULTILINE), name


def test_a_gain_on_a_baseline_of_other_settings_is_marked(small, undrawn, capsys):
    change(small / "notes" / "student-resnet" / "seed-1" / "config.json", lr=0.05)
    fake.write_run(small, "student-mine", 0, teacher_sha256="teacher-resnet-0", **SMALL)
    fake.write_run(small, "student-slow", 0, teacher_sha256="teacher-resnet-0", lr=0.05, **SMALL)
    assert analyze.main(["--runs", str(small), "--out", str(small.parent / "out")]) == 1
    lines = capsys.readouterr().out.splitlines()
    marked = [line.split()[0] for line in lines if line.endswith("‡")]
    told = [line for line in lines if "‡ it differs from its baseline" in line]
    assert marked == ["student-resnet", "student-slow"] and len(told) == 1
    page = (small.parent / "out" / "report.md").read_text()
    assert re.findall(r"^\| (student-\w+) \|.*‡ \|", page, re.MULTILINE) == marked
    words = r"student-resnet differs from the baseline in lr: 0\.\d+ and 0\.05 \(seed 1\)"
    assert len(re.findall(rf"^- {words}$", page, re.MULTILINE)) == 1


def test_a_student_trained_on_another_device_than_its_baseline_is_told(small, undrawn, capsys):
    """One of the notes' students, and one seed of it."""
    config = small / "notes" / "student-resnet" / "seed-1" / "config.json"
    change(config, device_name="Elsewhere")
    assert analyze.main(["--runs", str(small), "--out", str(small.parent / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("student-resnet differs from the baseline in device_name: ") == 1
    assert "and 'Elsewhere'" in printed
    threads, device = {"after_epoch": 3, "threads": 2}, {"after_epoch": 5, "device": "cuda"}
    for seed in range(2):
        base = small / "notes" / "baseline" / f"seed-{seed}" / "config.json"
        change(base, resumed_with=[threads, device | {"device_name": "A card"}])
    change(config, resumed_with=[device | {"after_epoch": 4}])
    assert analyze.main(["--runs", str(small), "--out", str(small.parent / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    words = "baseline seed 0, 1 went on elsewhere after epoch 5: device cuda, device_name A card"
    assert words in printed
    assert "student-resnet seed 1 went on elsewhere after epoch 4: device cuda" in printed
    assert printed.count("went on") == 2
    words = "in device_name: 'CPU, after epoch 5 A card' and 'Elsewhere' (seed 1)"
    assert words in printed


def test_what_of_a_run_was_done_elsewhere_is_counted_there(small, undrawn, capsys):
    """Seconds, versions, and the device that the loss is not alone with: 16 epochs of 10 s."""
    moved = {"after_epoch": 5, "device_name": "A card", "versions": {"torch": "3.1"}}
    again = {"after_epoch": 9, "threads": 2}
    config = small / "notes" / "student-resnet" / "seed-1" / "config.json"
    change(config, resumed_with=[moved, again])
    assert analyze.main(["--runs", str(small), "--out", str(small.parent / "out")]) == 0
    page = (small.parent / "out" / "report.md").read_text()
    row = next(
        line for line in page.splitlines() if line.startswith("| student-resnet, notes | ep")
    )
    times = (
        "A card, float32: 110 (11 of the epochs); CPU, float32: 50 to 160 (5 to 16 of the epochs)"
    )
    assert row.endswith(f"| 2, 3.1 | {times} |")
    words = (
        "student-resnet differs from the baseline in device_name: 'CPU' and 'CPU, after epoch 5 A"
    )
    assert words in " ".join(capsys.readouterr().out.split())
    assert len(re.findall(r"^\| student-resnet \|.*‡ \|", page, re.MULTILINE)) == 1
    change(config, resumed_with=[moved, again | {"processes": 2}])
    assert analyze.main(["--runs", str(small), "--out", str(small.parent / "out")]) == 1
    errors = capsys.readouterr().err
    assert "seed-1: not the settings of " in errors
    assert "(processes: None and '1, after epoch 9 2')" in errors
    for damage in (
        [moved | {"after_epoch": "5"}],
        [moved | {"versions": "3"}],
        ["5"],
        [again | {"processes": []}],
    ):
        change(config, resumed_with=damage)
        assert analyze.main(["--runs", str(small), "--out", str(small.parent / "out")]) == 1
        assert f"{config}: not a run's settings (its " in capsys.readouterr().err


def test_a_run_that_has_not_learned_is_told(small, undrawn, capsys):
    for seed, errors in enumerate((0.85, 0.75)):
        fake.write_run(small, "baseline-fast", seed, errors=np.full(10, errors), **SMALL)
    assert analyze.main(["--runs", str(small), "--out", str(small.parent / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.findall(r"(\S+ seed \d+) learned next to", printed) == ["baseline-fast seed 0"]
    assert "baseline-fast seed 0 learned" in (small.parent / "out" / "report.md").read_text()


def test_a_student_of_other_settings_is_compared_with_a_control_of_the_same(small, undrawn, capsys):
    for seed in range(2):
        for name, rate, own in (
            ("baseline-slow", 0.05, seed),
            ("baseline-fast", 0.2, seed),
            ("baseline-of-other-seeds", 0.05, seed + 7),
        ):
            fake.write_run(small, name, own, lr=rate, **SMALL)
        taught = {"teacher_sha256": f"teacher-resnet-{seed}", "lr": 0.05} | SMALL
        fake.write_run(small, "student-slow", seed, **taught)
        fake.write_run(small, "student-mine", seed, loss="mine", errors=0.5 * fake.ERRORS, **taught)
        taught["teacher_sha256"] = f"teacher-resnet-{1 - seed}"
        fake.write_run(small, "student-of-another", seed, **taught)
        taught["teacher_sha256"] = "teacher-resnet-0"
        fake.write_run(small, "student-of-one", seed, **taught)
    assert analyze.main(["--runs", str(small), "--out", str(small.parent / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    mine, slow, kd = (
        [100 * records.read(small / "notes" / name / f"seed-{k}").right.mean() for k in (0, 1)]
        for name in ("student-mine", "baseline-slow", "student-slow")
    )
    assert f"student-mine − baseline-slow: {np.mean(mine) - np.mean(slow):+.2f} [" in printed
    assert f"student-mine − student-slow: {np.mean(mine) - np.mean(kd):+.2f} [" in printed
    assert "student-slow − baseline-slow: " in printed
    assert "student-slow − student-mine" not in printed
    assert "student-mine − student-of-" not in printed  # not even if one pair is equal
    assert "− baseline-fast" not in printed
    assert "student-resnet − baseline-slow" not in printed
    page = (small.parent / "out" / "report.md").read_text()
    assert page.count("| gain on a control that differs in the loss alone |") == 1
    gains = (  # on plain distillation of these settings, and on the control
        rf"{re.escape(f'{np.mean(mine) - np.mean(kd):+.2f}')} \[[^|;]+\] on student-slow \| "
        rf"{re.escape(f'{np.mean(mine) - np.mean(slow):+.2f}')} \[[^|;]+\] on baseline-slow"
    )
    assert re.search(rf"^\| student-mine \|[^|]+\|[^|]+\| {gains} \| lr: ", page, re.MULTILINE)
    assert re.search(r"^\| baseline-slow \|[^|]+\|[^|]+\|[^|]+\| – \| lr: ", page, re.MULTILINE)
    assert "student-mine −" not in page  # the table says it


def test_another_baseline_of_ones_own_network_is_compared_with_its_first(small, reported):
    right = {}
    for name, errors in (("baseline-tiny", 1.2), ("baseline-tiny-slow", 0.9)):
        for seed in range(2):
            lr = {"lr": 0.02} if name.endswith("slow") else {}
            run = fake.write_run(small, name, seed, arch="tiny", errors=errors * fake.ERRORS,
                                 **lr, **SMALL)  # fmt: skip
            right.setdefault(name, []).append(100 * records.read(run).right.mean())
    code, table, _ = reported(small)
    table = table.set_index("name")
    base, slow = map(np.mean, right.values())
    row = table.loc["baseline-tiny-slow"]
    assert row["baseline"] == "baseline-tiny" and row["delta"] == pytest.approx(slow - base)
    assert row["besides"].startswith("lr: ") and row["arch"] == "tiny" and row["lr"] == 0.02
    assert table.loc["baseline-tiny", "baseline"] == "baseline"


def test_where_only_ones_own_network_is_trained_alone_its_student_is_wanted(tmp_path, reported):
    for seed in range(2):
        fake.write_run(tmp_path / "runs", "baseline-tiny", seed, arch="tiny", **SMALL)
    code, _, errors = reported(tmp_path / "runs")
    assert code == 1 and "student-resnet-tiny of recipe notes is missing; python" in errors
    assert "--arch tiny" in errors and "student-resnet of recipe" not in errors


def test_a_network_of_ones_own_is_compared_with_its_own(small, undrawn, capsys):
    """Its baseline and its plain distillation; where they are all, nothing else is missed."""
    right = {}
    for seed in range(2):
        taught = {"teacher_sha256": f"teacher-resnet-{seed}"}
        for name, errors, options in (
            ("baseline-tiny", 1.2, {}),
            ("student-resnet-tiny", 1.1, taught),
            ("student-resnet-mine-tiny", 0.9, taught | {"loss": "mine"}),
        ):
            run = fake.write_run(small, name, seed, arch="tiny", errors=errors * fake.ERRORS,
                                 **options, **SMALL)  # fmt: skip
            right.setdefault(name, []).append(100 * records.read(run).right.mean())
    base, kd, mine = map(np.mean, right.values())
    for alone in (False, True):
        if alone:
            for name in ("baseline", "student-resnet"):
                shutil.rmtree(small / "notes" / name)
        out = small.parent / f"out-{alone}"
        assert analyze.main(["--runs", str(small), "--out", str(out)]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        marked = [line.split()[0] for line in printed.out.splitlines() if line.endswith("‡")]
        assert marked == ["baseline-tiny"] * (not alone)  # its gain is on the other network
        delta = pd.read_csv(out / "results.csv").set_index("name")["delta"]
        assert delta["student-resnet-tiny"] == pytest.approx(kd - base, rel=1e-3)
        assert delta["student-resnet-mine-tiny"] == pytest.approx(mine - base, rel=1e-3)
        assert "baseline-tiny −" not in printed.out  # the students' gains say it
        words = "the gain of student-resnet-mine-tiny, student-resnet-tiny is on baseline-tiny"
        assert words in " ".join(printed.out.split())
        row = re.search(r"^\| student-resnet-mine-tiny \| 2 (\|[^|]+){3}\|$",
                        (out / "report.md").read_text(), re.MULTILINE)[0]  # fmt: skip
        assert f"| {mine - base:+.2f} [" in row and "(baseline-tiny) |" in row
        assert f"| {mine - kd:+.2f} [" in row and row.endswith("| – |")
    shutil.rmtree(small / "notes" / "baseline-tiny" / "seed-1")
    assert analyze.main(["--runs", str(small), "--out", str(out)]) == 1
    place = small / "notes" / "baseline-tiny" / "seed-1"
    command = f"--seed 1 --arch tiny --epochs 16 --lr 0.1 --out {place}"
    assert f"train_baseline.py --recipe notes {command}" in capsys.readouterr().err
    shutil.rmtree(small / "notes" / "baseline-tiny")
    assert analyze.main(["--runs", str(small), "--out", str(out)]) == 1
    missing = (
        "baseline-tiny of recipe notes is missing; python train_baseline.py --recipe notes --arch"
    )
    assert missing in capsys.readouterr().err


def test_a_loss_is_compared_with_plain_distillation_from_the_same_teacher(small, undrawn, capsys):
    fake.write_experiment(small, 2, arch="cnn", **SMALL)
    for seed in range(2):
        fake.write_run(
            small, "student-cnn-dkd", seed, teacher_sha256=f"teacher-cnn-{seed}", **SMALL
        )
    assert analyze.main(["--runs", str(small), "--out", str(small.parent / "out")]) == 0
    printed = capsys.readouterr().out
    assert "student-cnn-dkd − student-cnn: " in printed
    assert "student-cnn-dkd − student-resnet" not in printed
    assert "student-cnn-dkd had another teacher" not in " ".join(printed.split())


def test_a_baseline_in_a_students_folder_is_named_and_the_rest_reported(tmp_path, undrawn, capsys):
    for name in ("baseline", "student-resnet"):
        fake.write_run(tmp_path, name, 0, **SMALL)
    config = tmp_path / "notes" / "student-resnet" / "seed-0" / "config.json"
    settings = json.loads(config.read_text()) | {"role": "baseline", "name": "baseline"}
    config.write_text(json.dumps(settings))
    assert analyze.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "holds a run of baseline, and counts as student-resnet" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.csv").exists()


@pytest.mark.parametrize("inside", ["notes/baseline", "notes/baseline/seed-0"])
def test_a_run_has_its_name_from_wherever_it_is_read(small, inside, monkeypatch):
    monkeypatch.chdir(small / inside)
    found, problems = records.read_all(Path())
    assert {record.name for record in found} == {"baseline"} and problems == []


def test_an_ensemble_of_teachers_answers_with_the_mean_of_their_logits(small, reported, tmp_path):
    digests = [f"teacher-resnet-{seed}" for seed in range(2)]
    for seed in range(2):
        for name in ("student-ensemble", "student-ensemble-mine"):
            fake.write_run(small, name, seed, teacher_sha256="+".join(digests), **SMALL)
        digests.reverse()  # in another order it is the same ensemble
    code, table, _ = reported(small)
    assert code == 0
    teachers, baselines, students = (
        [records.read(small / "notes" / name / f"seed-{seed}") for seed in range(2)]
        for name in ("teacher-resnet", "baseline", "student-ensemble")
    )
    answers = np.mean([teacher.logits for teacher in teachers], axis=0)
    right = 100 * (answers.argmax(1) == baselines[0].labels).mean()
    words = (
        "the ensemble of notes/teacher-resnet/seed-0 and notes/teacher-resnet/seed-1 has a test "
        f"accuracy of {right:.2f} %\n"
    )
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count(words) == 1
    for name in ("student-ensemble", "student-ensemble-mine"):
        words = f"one ensemble taught all seeds of {name}, whose interval leaves out the chance in "
        assert text.count(f"- {words}the training of that ensemble\n") == 1
    row = table.set_index("name").loc["student-ensemble"]
    agreement = [100 * (run.predicted == answers.argmax(1)).mean() for run in students]
    assert row["agreement_with_teacher"] == pytest.approx(np.mean(agreement))
    gap = np.mean([right - 100 * run.right.mean() for run in baselines])
    assert row["gap_recovered"] == pytest.approx(row["delta"] / gap)


@pytest.mark.parametrize("second", [(1, 2), (2, 3)])
def test_several_ensembles_are_one_line(small, undrawn, capsys, second):
    for seed in (2, 3):
        fake.write_run(small, "teacher-resnet", seed, errors=2 * fake.ERRORS, **SMALL)
    right = []
    for seed, members in enumerate(((0, 1), second)):
        digests = "+".join(f"teacher-resnet-{member}" for member in members)
        fake.write_run(small, "student-ensemble", seed, teacher_sha256=digests, **SMALL)
        runs = [records.read(small / "notes" / "teacher-resnet" / f"seed-{m}") for m in members]
        answers = np.mean([run.logits for run in runs], axis=0)
        right.append(100 * (answers.argmax(1) == runs[0].labels).mean())
    assert analyze.main(["--runs", str(small), "--out", str(small.parent / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert right[0] > right[1] + 0.01
    accuracies = f"test accuracies of {right[1]:.2f} to {right[0]:.2f} %"
    assert f"the 2 ensembles that taught student-ensemble have {accuracies}" in printed
    assert printed.count("ensembles that taught") == 1 and "the ensemble of" not in printed
    words = "seeds of student-ensemble share teachers, so its interval is too narrow"
    assert (words in printed) == (second == (1, 2))


@pytest.mark.parametrize("teachers", ["012 012 012", "012 120 201", "0 0 0"])
def test_a_teacher_or_an_ensemble_of_all_seeds_is_named(tmp_path, undrawn, capsys, teachers):
    fake.write_experiment(tmp_path / "runs", 3, **SMALL)
    for seed, members in enumerate(teachers.split()):
        digests = "+".join(f"teacher-resnet-{member}" for member in members)
        fake.write_run(tmp_path / "runs", "student-mine", seed, teacher_sha256=digests, **SMALL)
    assert analyze.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    one = "teacher" if teachers == "0 0 0" else "ensemble"
    words = f"one {one} taught all seeds of student-mine, whose interval leaves out the chance in "
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count(f"{words}the training of that {one}") == 1
    assert "ensembles" not in printed and "share teachers" not in printed


def test_an_ensemble_is_the_same_in_another_order(tmp_path, reported):
    root = tmp_path / "runs"
    fake.write_experiment(root, 4, **SMALL)
    better = {"errors": 0.5 * fake.ERRORS}
    for seed in range(4):
        for name, digests, more in (
            ("student-ensemble", "teacher-resnet-0+teacher-resnet-1", {}),
            ("student-others", "teacher-resnet-2+teacher-resnet-3", better),
            ("student-ensemble-dkd", "teacher-resnet-1+teacher-resnet-0", {"loss": "dkd"}),
        ):
            fake.write_run(root, name, seed, teacher_sha256=digests, **SMALL | more)
    code, table, errors = reported(root)
    assert code == 0, errors
    assert table.set_index("name").loc["student-ensemble-dkd", "kd"] == "student-ensemble"
    comparison = compare.Comparison(records.read_all(root)[0])
    equal = comparison.against_equal("notes", "student-ensemble-dkd")
    assert {trio.baselines[0].name for trio in equal} == {"baseline", "student-ensemble"}


def test_what_is_said_of_a_teacher_is_said_of_the_seeds_it_taught(tmp_path, reported):
    root = tmp_path / "runs"
    fake.write_experiment(root, 3, **SMALL)
    fake.write_run(root, "teacher-resnet", 7, recipe="best", **SMALL)
    elsewhere = root / "notes" / "student-resnet" / "seed-2" / "config.json"
    change(elsewhere, teacher_sha256="teacher-resnet-7")
    for seed, teacher in enumerate((0, 2, 2)):
        taught = {"teacher_sha256": f"teacher-resnet-{teacher}"} | SMALL
        fake.write_run(root, "student-mine", seed, **taught)
        fake.write_run(root, "student-more", seed, teacher_sha256="teacher-resnet-7", **SMALL)
    code, _, errors = reported(root)
    assert code == 0, errors
    page = (tmp_path / "out" / "report.md").read_text()
    for words in (
        "student-mine (seed 1, 2) had another teacher than student-resnet of its seed",
        "student-more (seed 0, 1) had another teacher than student-resnet of its seed",
        "seeds of student-mine share teachers, so its interval is too narrow",
        "student-resnet (seed 2), student-more were taught by best/teacher-resnet/seed-7",
    ):
        assert page.count(f"- {words}\n") == 1, words
    assert "the student's teachers of recipes best and notes 9" in page
    told = re.findall(r"^\| ([\w-]+) \|.* \(other teacher\) \|", page, re.MULTILINE)
    assert told == ["student-mine", "student-more"]


def test_a_teacher_is_known_by_its_weights_not_by_its_seed(small, reported):
    """The student of seed 0 had the teacher of seed 1, and the other way round."""
    for seed in range(2):
        path = small / "notes" / "student-resnet" / f"seed-{seed}" / "config.json"
        change(path, teacher_sha256=f"teacher-resnet-{1 - seed}")
    _, table, _ = reported(small)
    teachers, bases, students = (
        [records.read(small / "notes" / name / f"seed-{seed}") for seed in range(2)]
        for name in ("teacher-resnet", "baseline", "student-resnet")
    )
    threes = list(zip(teachers[::-1], bases, students, strict=True))
    agreement = [100 * (student.predicted == t.predicted).mean() for t, _, student in threes]
    found = table.set_index("name").loc["student-resnet", "agreement_with_teacher"]
    assert found == pytest.approx(np.mean(agreement), rel=1e-4)
    # The table of who is right: all three, all but the student, all but the baseline, and so on.
    text = (small.parent / "out" / "report.md").read_text()
    cells = re.findall(r"(?:right|wrong) \| ([\d.]+) % \| ([\d.]+) % \|", text)
    kinds = list(itertools.product((True, False), repeat=3))
    for column, last in enumerate((students, bases[::-1])):  # the other seed's baseline
        rights = np.concatenate(
            [[t.right, b.right, s.right] for (t, b, _), s in zip(threes, last, strict=True)], axis=1
        )
        shares = [100 * np.all(rights == np.array([kind]).T, axis=0).mean() for kind in kinds]
        assert [float(row[column]) for row in cells] == pytest.approx(shares, abs=0.006)


def test_one_seed_is_reported_with_what_its_images_can_tell(tmp_path, undrawn, capsys):
    root = tmp_path / "runs"
    fake.write_experiment(
        root, 1, gain=4, teacher={"errors": 0.2 * fake.ERRORS}, count=1000, epochs=16
    )
    assert analyze.main(["--runs", str(root), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "distillation cannot be judged by one seed: +" in printed and "gains" not in printed
    assert "†\n" in printed and "±" not in printed
    report = (tmp_path / "out" / "report.md").read_text()
    for statistic in ("errors on class 6", "test accuracy, student", "coefficient of variation"):
        (line,) = (line for line in report.splitlines() if f"| {statistic}" in line)
        assert "] †" in line  # in the claims' tables too
    csv = pd.read_csv(tmp_path / "out" / "claims.csv").set_index("claim")["over"]
    assert csv["C5"] == "images" and csv["C4"] == "classes" and np.isnan(csv["C7"])
    assert all(len(line) <= 80 for line in printed.split("\n\nExperiment")[0].splitlines()[1:])
    teacher, base, student = (
        records.read(root / "notes" / name / "seed-0").right
        for name in ("teacher-resnet", "baseline", "student-resnet")
    )
    row = pd.read_csv(tmp_path / "out" / "results.csv").set_index("name").loc["student-resnet"]
    share = (student.mean() - base.mean()) / (teacher.mean() - base.mean())
    assert row["gap_recovered"] == pytest.approx(share, rel=1e-4)
    assert "no better than the baseline" not in printed
    assert f"The student recovers {100 * share:.0f} % of the gap" in report
    assert "| teacher | baseline | student | share |  |" in report and "By chance: " not in report
    gained, lost = (student & ~base).sum(), (base & ~student).sum()
    p = scipy.stats.binomtest(int(gained), int(gained + lost)).pvalue
    assert row["mcnemar_p"] == pytest.approx(p, rel=1e-4)


def test_a_student_of_a_published_teacher_is_compared(tmp_path, undrawn, monkeypatch, capsys):
    own, published = tmp_path / "runs", tmp_path / "results"
    for module in (analyze, compare):
        monkeypatch.setattr(module, "RESULTS_DIR", published)
    fake.write_experiment(published, 1, **SMALL)
    fake.write_experiment(own, 1, **SMALL)
    shutil.rmtree(own / "notes" / "teacher-resnet")
    assert analyze.main(["--runs", str(own), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    words = "student-resnet was taught by the published notes/teacher-resnet/seed-0\n"
    assert words in printed and "Experiment 2" in printed
    drawn = compare.Comparison(records.read_all(own)[0], records.read_all(published)[0])
    assert [*drawn.drawn_together("notes")] == ["teacher-resnet", "baseline", "student-resnet"]
    look = tmp_path / "look"
    fake.write_experiment(look, 1, **SMALL | {"epochs": 2})
    shutil.rmtree(look / "notes" / "teacher-resnet")
    taught = {"loss": "mine", "teacher_sha256": "teacher-resnet-0", "epochs": 2}
    fake.write_run(look, "student-resnet-mine", 0, **SMALL | taught)
    assert analyze.main(["--runs", str(look), "--out", str(tmp_path / "out")]) == 0
    several = words.strip().replace(" was", ", student-resnet-mine were")
    assert f"{several} (16 epochs)" in " ".join(capsys.readouterr().out.split())
    drawn = compare.Comparison(records.read_all(look)[0], records.read_all(published)[0])
    assert [*drawn.drawn_together("notes")] == ["baseline", "student-resnet"]  # 16 epochs hide 2
    for name in ("baseline", "student-resnet"):
        shutil.rmtree(look / "notes" / name)
    drawn = compare.Comparison(records.read_all(look)[0], records.read_all(published)[0])
    assert drawn.drawn_together("notes") == {}  # the published teacher alone is nothing to see
    page = (tmp_path / "out" / "report.md").read_text()
    none = "| – | undecided | too few epochs, or all alike |"
    assert page.count(none) == 3  # the halves of C2, and C7
    fake.write_run(own, "teacher-resnet", 1, **SMALL)  # a row of its own kind is not mixed with it
    both = "teacher-resnet-0+teacher-resnet-1"
    fake.write_run(own, "student-ensemble", 0, teacher_sha256=both, **SMALL)
    assert analyze.main(["--runs", str(own), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "the ensemble of notes/teacher-resnet/seed-0 and notes/teach" in printed
    assert "taught all seeds" not in printed  # of one run
    table = pd.read_csv(tmp_path / "out" / "results.csv").set_index("name")
    mine = records.read(own / "notes" / "teacher-resnet" / "seed-1")
    assert table["test_selected"]["teacher-resnet"] == pytest.approx(100 * mine.right.mean())
    assert table["agreement_with_teacher"][["student-resnet", "student-ensemble"]].notna().all()
    found = records.read_all(own)[0]
    comparison = compare.Comparison(found, analyze.lent_teachers(found))
    assert [run.seed for run in comparison.trio("notes", "student-resnet").teachers] == [0]


def test_a_teacher_of_ones_own_is_found_where_the_student_found_it(small, reported, monkeypatch):
    """As of a short look, whose teachers are those of the whole runs."""
    look = small.parent / "look"
    shutil.copytree(small, look)
    shutil.rmtree(look / "notes" / "teacher-resnet")
    monkeypatch.setattr(analyze, "RESULTS_DIR", small.parent / "results")
    for seed in range(2):
        weights = f"runs/notes/teacher-resnet/seed-{seed}/best.pt"
        teacher = [weights] if seed else weights  # as an older version has it
        student = look / "notes" / "student-resnet" / f"seed-{seed}"
        change(student / "config.json", teacher=teacher)
    code, table, errors = reported(look)
    assert code == 0 and errors == ""
    assert set(table["name"]) == {"teacher-resnet", "baseline", "student-resnet"}
    assert table["agreement_with_teacher"].notna().sum() == 2
    assert dict(zip(table["name"], table["seeds"], strict=True))["teacher-resnet"] == 0
    where = small / "notes" / "teacher-resnet" / "seed-0"
    page = (look.parent / "out" / "report.md").read_text()
    assert f"student-resnet was taught by {where}, " in page
    assert re.search(r"^\| teacher-resnet \| – \| 9", page, re.MULTILINE)  # no run of this folder
    for path in (small / "notes" / "teacher-resnet").rglob("predictions.npz"):
        with np.load(path) as arrays:  # of other images: of no use
            fewer = {key: values[:100] for key, values in arrays.items()}
        np.savez_compressed(path, **fewer)
    code, table, errors = reported(look)
    assert code == 1 and "has a teacher that is not among these runs" in errors


def test_with_a_teacher_of_ones_own_the_notes_networks_are_not_missed(tmp_path, undrawn, capsys):
    root = tmp_path / "runs"
    fake.write_experiment(root, 2, arch="cnn-mine", **SMALL)
    for seed in range(2):
        taught = {"teacher_sha256": f"teacher-cnn-mine-{seed}", "loss": "mine"} | SMALL
        fake.write_run(root, "student-cnn-mine-mine", seed, **taught)
    arguments = ["--runs", str(root), "--out", str(tmp_path / "out")]
    assert analyze.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "student-cnn-mine-mine − student-cnn-mine: " in printed.out
    comparison = compare.Comparison(records.read_all(root)[0])
    beside = comparison.drawn_beside("notes")["student-cnn-mine-mine"]
    assert set(beside) == {"baseline", "student-cnn-mine"}


def test_a_folder_that_may_not_be_entered_is_named(small, reported, monkeypatch):
    closed, scandir = small / "notes" / "student-resnet" / "seed-1", os.scandir

    def denied(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    closed.chmod(0)
    if os.geteuid() == 0:  # nothing is denied to root
        monkeypatch.setattr(os, "scandir", denied)
    code, table, errors = reported(small)
    closed.chmod(0o755)
    assert code == 1 and f"{closed}: left out, Permission denied\n" in errors
    assert left_out(table) == {("student-resnet", 1)}


def test_linked_runs_are_read_once(small, reported, tmp_path):
    """From another disk, say; and not again what is there by itself."""
    own, other = small / "notes", tmp_path / "disk"
    shutil.move(own / "baseline", other)
    (own / "baseline").symlink_to(other)
    shutil.move(own / "student-resnet" / "seed-1", tmp_path / "student")
    (own / "student-resnet" / "seed-1").symlink_to(tmp_path / "student")
    (small / "latest").symlink_to(own / "student-resnet" / "seed-0")
    (own / "all").symlink_to(small)
    whole = [("teacher-resnet", 2, 0), ("baseline", 2, 0), ("student-resnet", 2, 2)]
    code, table, errors = reported(small)
    assert code == 0, errors
    assert list(zip(table.name, table.seeds, table.pairs, strict=True)) == whole
    shutil.move(own, tmp_path / "notes")
    own.symlink_to(tmp_path / "notes")
    code, table, errors = reported(small)  # nothing is there by itself any more
    assert code == 0, errors
    assert list(zip(table.name, table.seeds, table.pairs, strict=True)) == whole
    shutil.move(tmp_path / "student", tmp_path / "elsewhere")
    code, table, errors = reported(small)
    place = own / "student-resnet" / "seed-1"
    assert code == 1 and f"warning: {place}: left out, No such file or directory\n" in errors
    assert left_out(table) == {("student-resnet", 1)}


def test_runs_that_are_links_are_found_without_flags(small, undrawn, monkeypatch, tmp_path, capsys):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes").symlink_to(small / "notes")
    monkeypatch.setattr(analyze, "RUNS_DIR", tmp_path / "own")
    assert analyze.main(["--out", str(tmp_path / "out")]) == 0
    assert f"runs in {tmp_path / 'own'}\n" in capsys.readouterr().out


def test_a_link_to_runs_that_are_not_there_is_no_report_on_others(monkeypatch, tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(analyze, "RUNS_DIR", tmp_path / "runs")
    with pytest.raises(UserError, match=f"a broken link to {tmp_path / 'disk'}; "):
        analyze.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_name_is_no_utf8_is_named(small, tmp_path):
    strange = Path(os.fsdecode(b"caf\xe9"))
    shutil.move(small / "notes" / "baseline" / "seed-1", small / "notes" / strange)
    done = run_script("analyze.py", "--runs", small, "--out", tmp_path / "out", check=1)
    assert "is no name for a recipe or a network" in done.stderr
    for name in ("report.html", "report.md"):
        assert r"notes/caf\udce9" in (tmp_path / "out" / name).read_text()


def test_a_run_in_another_networks_folder_is_named(small, reported):
    folder = small / "notes" / "student-resnet" / "seed-1"
    change(folder / "config.json", name="student-ensemble")
    code, _, errors = reported(small)
    assert code == 1
    assert f"{folder} holds a run of student-ensemble, and counts as student-resnet" in errors


def test_a_teacher_lent_by_another_recipe_leaves_nothing_missing(tmp_path, reported):
    root = tmp_path / "runs"
    fake.write_experiment(root, 2, recipe="best", **SMALL)
    (root / "notes").mkdir()
    shutil.move(root / "best" / "teacher-resnet", root / "notes")
    for path in (root / "notes").rglob("config.json"):
        change(path, recipe="notes")
    code, table, errors = reported(root)
    assert code == 0 and errors == ""
    assert table["agreement_with_teacher"].notna().tolist() == [False, True, True]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "the student's teachers of recipe notes" in page
    assert "taught by notes/teacher-resnet/seed-0, notes/teacher-resnet/seed-1" in page


def test_networks_of_the_notes_that_were_not_trained_as_the_recipe_says_are_named(small, reported):
    """Of a recipe of one's own nothing is said, nor of what is as the recipe says."""
    recipe = config.RECIPES["notes"]
    own = {"count": 200, "recipe": "mine", "epochs": 16}
    fake.write_run(small, "baseline", 0, **own)
    code, _, errors = reported(small)
    assert code == 1 and "not the settings of recipe" not in errors
    assert "student-resnet of recipe mine is missing\n" in errors and "makes it" not in errors
    page = (small.parent / "out" / "report.md").read_text()
    assert page.count("not the settings of recipe notes: ") == 2
    assert "recipe notes: baseline, student-resnet (epochs: 50 and 16, lr: 0.08 and 0.1)" in page
    change(small / "notes" / "baseline" / "seed-0" / "config.json", arch="tiny")
    reported(small)
    page = (small.parent / "out" / "report.md").read_text()
    assert "recipe notes: baseline (arch: 'small-cnn' and 'tiny', epochs: 50 and 16, " in page
    assert "recipe mine: " not in page
    change(small / "notes" / "baseline" / "seed-0" / "config.json", arch="small-cnn")
    for path in (small / "notes").rglob("config.json"):
        settings = recipe["teacher" if "teacher" in str(path) else "small-cnn"]
        change(path, **{key: value for key, value in settings.items() if key != "epochs"})
    reported(small)
    page = (small.parent / "out" / "report.md").read_text()
    assert "notes: teacher-resnet, baseline, student-resnet (epochs: 50 and 16)" in page
    for name in ("baseline-tiny", "student-resnet-mine", "baseline-other"):
        taught = {"loss": "mine", "teacher_sha256": "teacher-resnet-0"} if "mine" in name else {}
        settings = {key: v for key, v in recipe["small-cnn"].items() if key not in fake.LOSS}
        settings |= {"arch": "tiny"} if "tiny" in name else {}
        settings |= {"lr": 0.05} if "other" in name else {}
        fake.write_run(small, name, 0, **settings | taught | SMALL)
    reported(small)
    page = (small.parent / "out" / "report.md").read_text()
    named = "teacher-resnet, baseline, student-resnet, baseline-tiny, student-resnet-mine"
    assert f"notes: {named} (epochs: 50 and 16)" in page  # a short look: so are those of one's own
    assert re.search(r"^\| baseline-other \|.* lr: 0.08 and 0.05 \|$", page, re.MULTILINE)
    for seed in range(2):
        change(small / "notes" / "student-resnet" / f"seed-{seed}" / "config.json", temperature=9.0)
    reported(small)
    page = (small.parent / "out" / "report.md").read_text()
    assert "recipe notes: student-resnet (epochs: 50 and 16, temperature: 4.0 and 9.0)" in page


def test_a_network_of_another_name_is_held_against_its_own_roles_settings(tmp_path, reported):
    for name, kind, other in (
        ("teacher-resnet", "teacher", "big"),
        ("baseline", "small-cnn", "teacher-free"),
    ):
        settings = {k: v for k, v in config.RECIPES["notes"][kind].items() if k not in fake.LOSS}
        folder = fake.write_run(tmp_path / "runs", name, 0, count=200, **settings)
        change(folder / "config.json", name=other)
        folder.parent.rename(folder.parent.with_name(other))
    reported(tmp_path / "runs")
    assert "not the settings of" not in (tmp_path / "out" / "report.md").read_text()


def test_the_claims_about_the_teacher_are_of_all_its_seeds(tmp_path):
    """Though one alone may have taught every student."""
    root = tmp_path / "runs"
    fake.write_experiment(root, 3, **SMALL)
    for path in (root / "notes" / "student-resnet").rglob("config.json"):
        change(path, teacher_sha256="teacher-resnet-1")
    comparison = compare.Comparison(records.read_all(root)[0])
    (trio,) = comparison.experiments()
    assert {run.seed for run in trio.teachers} == {0, 1, 2}
    assert [teacher.seed for teacher, _, _ in trio.threes()] == [1, 1, 1]


def test_a_gain_of_fewer_pairs_than_seeds_says_of_how_many(small, undrawn, capsys):
    fake.write_run(small, "student-resnet", 2, teacher_sha256="teacher-resnet-0", **SMALL)
    analyze.main(["--runs", str(small), "--out", str(small.parent / "out")])
    student = capsys.readouterr().out.split("\nstudent-resnet")[1].splitlines()[0]
    assert student.split()[0] == "3" and student.endswith("] (n 2)")
    shutil.rmtree(small / "notes" / "baseline" / "seed-1")
    analyze.main(["--runs", str(small), "--out", str(small.parent / "out")])
    student = capsys.readouterr().out.split("\nstudent-resnet")[1].splitlines()[0]
    assert student.split()[0] == "3" and student.endswith("] † (n 1)")


def test_the_share_of_the_gap_is_of_the_seeds_whose_teacher_is_there(tmp_path, reported):
    """And the same in table, headline and report."""
    root = tmp_path / "runs"
    teacher = {"errors": 0.3 * fake.ERRORS}
    fake.write_experiment(root, 4, gain=3, teacher=teacher, count=1000, epochs=16)
    change(root / "notes" / "student-resnet" / "seed-3" / "config.json", teacher_sha256="1f")
    _, table, _ = reported(root)
    right = {
        name: np.mean(
            [records.read(root / "notes" / name / f"seed-{seed}").right.mean() for seed in range(3)]
        )
        for name in ("teacher-resnet", "baseline", "student-resnet")
    }
    teacher, baseline, student = right.values()
    share = (student - baseline) / (teacher - baseline)
    found = table.set_index("name")["gap_recovered"]
    assert found["student-resnet"] == pytest.approx(share, rel=1e-4)
    text = (tmp_path / "out" / "report.md").read_text()
    words = f"{100 * share:.0f} % of the gap to the teacher in the 3 of 4 seeds whose teacher is"
    assert text.count(words) == 2 and "Fieller" in text


def test_without_arguments_finished_runs_come_before_the_published_ones(
    tmp_path, undrawn, monkeypatch, capsys
):
    own, published = tmp_path / "runs", tmp_path / "results"
    monkeypatch.setattr(analyze, "RUNS_DIR", own)
    monkeypatch.setattr(analyze, "RESULTS_DIR", published)
    fake.write_experiment(published, 1, **SMALL)
    fake.write_run(own, "baseline", 0, finished=False, **SMALL)
    out = ["--out", str(tmp_path / "out")]
    analyze.main(out)
    printed = capsys.readouterr()
    assert f"runs in {published}\n" in printed.out
    assert f"no run in {own} is finished: this report is on the published ones" in printed.err
    fake.write_run(own, "baseline", 1, **SMALL)
    analyze.main(out)
    assert f"runs in {own}\n" in capsys.readouterr().out


# ---------------------------------------------------------------- missing, unfinished, unequal


def test_nothing_at_all_is_exit_2_and_says_what_to_do(tmp_path):
    done = run_script("analyze.py", "--runs", tmp_path, "--out", tmp_path / "out", check=2)
    assert f"no finished run in {tmp_path}" in only_line(done)
    assert "make reproduce" in only_line(done) and not (tmp_path / "out").exists()
    done = run_script("analyze.py", "--runs", tmp_path / "none", "--out", tmp_path / "o", check=2)
    assert f"no finished run in {tmp_path / 'none'}; there is no such folder" in only_line(done)


def test_nothing_but_damage_is_exit_2_and_named(small, undrawn, capsys):
    for path in small.rglob("predictions.npz"):
        path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        analyze.main(["--runs", str(small), "--out", str(small / "out")])
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err.count("predictions.npz") == 6


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("teacher-resnet", "train_teacher.py --recipe notes --arch resnet"),
        ("baseline", "train_baseline.py --recipe notes"),
        ("student-resnet", "train_student.py --recipe notes --teacher {teacher}"),
    ],
)
def test_a_missing_network_is_named_with_the_command_that_makes_it(small, reported, name, command):
    shutil.rmtree(small / "notes" / name)
    code, table, errors = reported(small)
    assert code == 1 and left_out(table) == {(name, 2)}
    command = command.format(teacher=small / "notes" / "teacher-resnet" / "seed-0")
    command += " --epochs 16" + " --lr 0.1" * (name != "teacher-resnet")  # as the small ones have
    command += f" --out {small / 'notes' / name / 'seed-0'}"
    assert f"{name} of recipe notes is missing; python {command} makes it" in errors
    page = (small.parent / "out" / "report.md").read_text()
    assert f"{name} of recipe notes is missing" in page
    assert "No experiment of the notes is whole yet" in page
    place = small / "notes" / name / "seed-0"
    place.mkdir(parents=True)
    (place / ".lock").touch()  # all that a run leaves that found the disk full
    assert reported(small)[2] == errors
    for checkpoint in ("last.pt", "previous.pt"):  # of an --overwrite that was killed
        (place / checkpoint).touch()
        code, _, errors = reported(small)
        assert code == 1 and f"{name} of recipe notes is missing" not in errors
        words = "config.json: missing; the same command with --resume makes it again"
        assert f"warning: {place / words}\n" in errors
        (place / checkpoint).unlink()


def test_plain_distillation_is_made_without_a_hint_of_ones_own(small, reported, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class StudentConfig(config.StudentConfig):
        hint_weight: float = config.setting(float, "weight of the hint", 0.0)

    monkeypatch.setattr(missing, "StudentConfig", StudentConfig)
    shutil.rmtree(small / "notes" / "baseline")
    (small / "notes" / "student-resnet").rename(small / "notes" / "student-resnet-hint")
    for path in small.glob("notes/student-resnet-hint/*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"hint_weight": 1.0}))
    _, _, errors = reported(small)
    (advice,) = (line for line in errors.splitlines() if "student-resnet of recipe notes" in line)
    assert "train_student.py" in advice and "--lr 0.1" in advice and "hint-weight" not in advice


def test_what_lies_in_a_folder_of_its_own_wants_the_others_beside_it(tmp_path, reported):
    """Where the report will find them, and take them for what they are."""
    folder = fake.write_run(tmp_path / "runs", "mine", 3, role="student", **SMALL)
    folder.rename(tmp_path / "runs" / "mine")
    code, table, errors = reported(tmp_path / "runs")
    assert code == 1 and list(table["name"]) == ["mine"]
    assert f"--out {tmp_path / 'runs' / 'baseline' / 'seed-3'} makes it" in errors


def test_a_baseline_of_another_name_is_to_be_renamed(small, undrawn, capsys):
    shutil.move(small / "notes" / "baseline", small / "notes" / "base")
    shutil.move(small / "notes" / "student-resnet", small / "notes" / "plain")
    assert analyze.main(["--runs", str(small), "--out", str(small.parent / "out")]) == 1
    printed = capsys.readouterr()
    words = "baseline of recipe notes is missing; rename the folder base to baseline if it is"
    assert words in printed.err
    assert printed.err.count("rename the folder") == 1  # student-resnet is missing, too
    assert "plain − base: " in printed.out and "base − plain" not in printed.out


def test_a_network_of_ones_own_trained_alone_wants_a_baseline(tmp_path, reported):
    fake.write_run(tmp_path / "runs", "baseline-smoothed", 0, count=200, epochs=50)
    code, _, errors = reported(tmp_path / "runs")
    words = "baseline of recipe notes is missing; rename the folder baseline-smoothed to baseline"
    assert code == 1 and words in errors and "--epochs" not in errors  # as many as the recipe says


def test_another_networks_own_baseline_is_wanted_where_the_small_one_has_one(small, reported):
    for seed in (0, 7):  # the small one's baseline has no seed 7, and would be no help either
        taught = {"teacher_sha256": "teacher-resnet-0", "loss": "mine", "arch": "tiny"}
        fake.write_run(small, "student-resnet-mine-tiny", seed, count=200, epochs=17, **taught)
    code, _, errors = reported(small)
    flags = f"--arch tiny --epochs 17 --lr 0.1 --out {small / 'notes' / 'baseline-tiny' / 'seed-0'}"
    words = "baseline-tiny of recipe notes is missing; python train_baseline.py --recipe notes"
    assert code == 1 and f"{words} {flags} makes it" in errors and "seed 7" not in errors


def test_a_seed_that_plain_distillation_lacks_is_told_once_with_its_command(small, reported):
    for name in ("student-resnet-a", "student-resnet-b"):
        for seed in range(2):
            taught = {"teacher_sha256": f"teacher-resnet-{seed}", "loss": "mine"} | SMALL
            fake.write_run(small, name, seed, **taught)
    assert reported(small)[0] == 0
    change(small / "notes" / "student-resnet" / "seed-0" / "config.json", alpha=0.7)
    shutil.rmtree(small / "notes" / "student-resnet" / "seed-1")
    code, _, errors = reported(small)
    folders = ", ".join(str(small / "notes" / f"student-resnet-{k}" / "seed-1") for k in "ab")
    teacher, place = (small / "notes" / f"{k}-resnet" / "seed-1" for k in ("teacher", "student"))
    flags = f"--seed 1 --teacher {teacher} --alpha 0.7 --epochs 16 --lr 0.1 --out {place}"
    words = f"student-resnet has no run of seed 1 to compare {folders} with; python"
    assert code == 1 and f"{words} train_student.py --recipe notes {flags} makes it" in errors
    fake.write_run(small, "student-resnet", 1, finished=False, **SMALL)
    errors = reported(small)[2]
    assert "seed-1 is unfinished" in errors and "makes it" not in errors


def test_a_student_of_a_teacher_of_ones_own_wants_plain_distillation_of_that(tmp_path, reported):
    root = tmp_path / "runs"
    fake.write_run(root, "baseline", 0, **SMALL)
    folder = fake.write_run(root, "teacher-resnet", 0, **SMALL)
    change(folder / "config.json", arch="tiny", name="teacher-tiny")
    folder.parent.rename(root / "notes" / "teacher-tiny")
    taught = {"teacher_sha256": "teacher-resnet-0", "loss": "mine"} | SMALL
    fake.write_run(root, "student-tiny-mine", 0, **taught)
    errors = reported(root)[2]
    teacher, place = (root / "notes" / f"{k}-tiny" / "seed-0" for k in ("teacher", "student"))
    flags = f"--teacher {teacher} --epochs 16 --lr 0.1 --out {place}"
    words = "student-tiny of recipe notes is missing; python train_student.py --recipe notes"
    assert f"{words} {flags} makes it" in errors and "student-resnet" not in errors


def test_plain_distillation_that_is_advised_has_the_students_own_teacher(tmp_path, reported):
    """Not one of more seeds, nor an ensemble; nor the default one of its recipe."""
    root = tmp_path / "runs"
    for arch, seeds in (("resnet", 2), ("cnn", 1)):
        fake.write_experiment(root, seeds, arch=arch, **SMALL)
    for seed in range(2):
        together = "teacher-resnet-0+teacher-resnet-1"
        for name, digest in (("cnn-mine", f"teacher-cnn-{seed}"), ("all-mine", together)):
            taught = {"teacher_sha256": digest, "loss": "mine"} | SMALL
            fake.write_run(root, f"student-{name}", seed, **taught)
    fake.write_run(root, "teacher-cnn", 1, **SMALL)
    errors = reported(root)[2]
    teacher, place = (root / "notes" / f"{k}-cnn" / "seed-1" for k in ("teacher", "student"))
    words = f"student-cnn has no run of seed 1 to compare {root / 'notes' / 'student-cnn-mine'}"
    assert words in errors and f"--teacher {teacher} --epochs" in errors
    assert f"--out {place} makes it" in errors and errors.count("makes it") == 1
    (root / "best").mkdir()
    for name in ("baseline", "student-cnn-mine"):
        shutil.move(root / "notes" / name, root / "best")
    for path in (root / "best").rglob("config.json"):
        change(path, recipe="best")
    lines = reported(root)[2].splitlines()
    (words,) = (line for line in lines if "student-cnn of recipe best is missing" in line)
    assert f" --teacher {root / 'notes' / 'teacher-cnn' / 'seed-0'} " in words


def test_a_short_run_that_is_compared_with_nothing_is_told_as_such(tmp_path, reported):
    fake.write_run(tmp_path / "runs", "mine", 0, role="student", teacher_sha256="1f", **SMALL)
    reported(tmp_path / "runs")
    words = "not the settings of recipe notes: mine (epochs: 50 and 16, lr: 0.08 and 0.1)"
    assert words in (tmp_path / "out" / "report.md").read_text()


def test_an_absent_student_is_to_be_of_the_seed_that_has_a_baseline(
    tmp_path, reported, monkeypatch
):
    """And of its length, with the teacher of that seed, if there is one."""
    runs, long = tmp_path / "some runs", {"count": 200, "epochs": 40}
    for seed in (3, 4, 5):
        fake.write_run(runs, "teacher-resnet", seed, **long)
    fake.write_run(runs, "baseline", 4, flip=False, **SMALL)
    code, _, errors = reported(runs)
    place = runs / "notes" / "student-resnet" / "seed-4"
    teacher = runs / "notes" / "teacher-resnet" / "seed-4"
    command = (
        f"--seed 4 --teacher '{teacher}' --epochs 16 --no-flip --lr 0.1 --out '{place}' makes it"
    )
    assert code == 1 and command in errors
    fake.write_run(runs, "baseline", 1, **SMALL)
    assert command in reported(runs)[2]  # that has no teacher of its own
    shutil.rmtree(runs / "notes" / "baseline" / "seed-4")
    teacher = runs / "notes" / "teacher-resnet" / "seed-3"
    assert f"--seed 1 --teacher '{teacher}' --epochs 16 --lr 0.1 --out " in reported(runs)[2]
    monkeypatch.setattr(missing, "RUNS_DIR", runs)  # where a teacher of the seed is the default
    assert f"--seed 1 --teacher '{teacher}' --epochs 16 --lr 0.1 makes it" in reported(runs)[2]


def test_runs_beside_the_folder_are_told_of(small, reported, monkeypatch):
    """Of one network alone, where the others are there."""
    code, table, errors = reported(small / "notes" / "baseline")
    assert code == 1 and list(table["name"]) == ["baseline"]
    folder = small / "notes" / "student-resnet" / "seed-0"
    words = (
        f"student-resnet of recipe notes is not below {small / 'notes' / 'baseline'}, but {folder}"
    )
    assert words + " holds one: name a folder above both with --runs" in errors
    assert "makes it" not in errors
    monkeypatch.chdir(small / "notes" / "baseline")
    assert f" is not below ., but {folder} holds one" in reported(Path("."))[2]
    (folder / "summary.json").unlink()
    assert "student-resnet" not in reported(Path("."))[2]  # not finished: it is begun


def test_a_lent_teacher_is_not_what_a_missing_network_is_to_be_like(tmp_path, reported):
    own, published = tmp_path / "runs", tmp_path / "published"
    fake.write_experiment(published, 1, **SMALL)
    teacher = published / "notes" / "teacher-resnet" / "seed-0" / "best.pt"
    like = {"epochs": 17, "count": 200, "teacher_sha256": "teacher-resnet-0"}
    fake.write_run(own, "student-resnet", 0, teacher=[str(teacher)], **like)
    code, _, errors = reported(own)
    assert (
        code == 1
        and "--epochs 17 --lr 0.1 --out " + str(own / "notes" / "baseline" / "seed-0") in errors
    )


@pytest.mark.parametrize("recipe", ["notes", "my recipe (2)"])
def test_of_the_report_that_was_there_no_figure_is_left(small, undrawn, recipe):
    out = small.parent / "out"
    (small / "notes").rename(small / recipe)
    for path in small.rglob("config.json"):
        change(path, recipe=recipe)
    analyze.main(["--runs", str(small), "--out", str(out)])
    (out / "figures" / "mine.png").write_bytes(b"")
    before = set(tree(out / "figures"))
    for name in ("baseline", "student-resnet"):
        shutil.rmtree(small / recipe / name)
    analyze.main(["--runs", str(small), "--out", str(out)])
    page = (out / "report.md").read_text()
    left = set(tree(out / "figures"))
    assert left < before and "mine.png" in left
    assert all(quote(Path(name).stem) in page for name in left - {"mine.png"})


def test_a_page_that_is_no_report_of_ours_stays_with_its_pictures(small, undrawn, tmp_path):
    out = tmp_path / "paper"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "setup.png").write_bytes(b"a picture")
    (out / "report.md").write_text("# My paper\n\n![the setup](figures/setup.png)\n")
    before = tree(out)
    with pytest.raises(UserError, match=r"report\.md; what is there is no report; use another"):
        analyze.main(["--runs", str(small), "--out", str(out)])
    assert tree(out) == before


def test_an_unfinished_run_is_named_and_the_rest_reported(small, reported):
    fake.write_run(small, "baseline", 2, finished=False, **SMALL)
    code, table, errors = reported(small)
    assert code == 1 and left_out(table) == set()
    assert "seed-2 is unfinished: epoch 16 of 16; the same command with --resume goes" in errors
    (small / "notes" / "baseline" / "seed-2" / ".holder").write_text("process 7 on here\n")
    assert "of 16; unless process 7 on here is at it, the same command" in reported(small)[2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "/config.json: missing"),
        ("log.csv", "/log.csv: missing"),
        ("predictions.npz", "/predictions.npz: missing"),
        ("summary.json", " is unfinished"),
    ],
)
def test_a_missing_file_is_named_and_the_rest_reported(small, reported, name, words):
    folder = small / "notes" / "baseline" / "seed-1"
    (folder / name).unlink()
    code, table, errors = reported(small)
    assert code == 1 and left_out(table) == {("baseline", 1)}
    assert f"{folder}{words}" in errors


def test_a_damaged_run_is_to_be_made_again_and_not_begun(small, reported):
    for seed, name in enumerate(("predictions.npz", "summary.json")):
        run = small / "notes" / "student-resnet" / f"seed-{seed}"
        (run / "last.pt").touch()
        (run / name).write_bytes(b'{"epochs": 3}')  # of whose 16 log.csv and config.json speak
    code, _, errors = reported(small)
    assert code == 1 and "is missing" not in errors
    assert errors.count("; the same command with --resume makes it again") == 2


def test_a_folder_in_a_files_place_is_named_and_the_rest_reported(small, reported):
    log = small / "notes" / "baseline" / "seed-1" / "log.csv"
    log.unlink()
    log.mkdir()
    code, table, errors = reported(small)
    assert code == 1 and left_out(table) == {("baseline", 1)} and f"{log}: " in errors


def test_an_unfinished_run_is_to_be_resumed_and_not_begun_again(small, reported):
    """Its teacher need not be here: there is a default one."""
    shutil.rmtree(small / "notes" / "teacher-resnet")
    for seed in range(2):
        (small / "notes" / "student-resnet" / f"seed-{seed}" / "summary.json").unlink()
    (small / "notes" / "student-resnet" / "seed-0" / "log.csv").unlink()  # its first epoch goes on
    code, _, errors = reported(small)
    begun, ended = (
        f"seed-{seed} is unfinished: epoch {epoch} of 16; the same command with --resume goes on"
        for seed, epoch in ((0, 0), (1, 16))
    )
    assert code == 1 and begun in errors and ended in errors
    assert "missing" not in errors


def test_a_folder_of_another_seed_is_left_out(small, reported):
    folder = small / "notes" / "baseline"
    (folder / "seed-1").rename(folder / "seed-7")
    (folder / "seed-7" / "last.pt").touch()
    code, table, errors = reported(small)
    assert "--resume" not in errors  # it would be told the same
    assert code == 1 and "its seed is 1, its folder is seed-7" in errors
    assert left_out(table) == {("baseline", 1)}


def test_runs_of_unequal_length_are_reported_and_named(small, reported):
    fake.write_run(small, "baseline", 2, count=200, epochs=25)
    code, table, errors = reported(small)
    assert code == 1 and table.set_index("name").loc["baseline", "seeds"] == 3
    assert "seed-2: not the settings of" in errors and "epochs: 16 and 25" in errors


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"label_smoothing": 0.1}, "label_smoothing: 0.0 and 0.1"), ({"precision": "float64"}, "64")],
)
def test_a_student_trained_otherwise_than_its_baseline_is_named(settings, words, small, reported):
    shutil.rmtree(small / "notes" / "student-resnet")
    for seed in range(2):
        fake.write_run(small, "student-resnet", seed, teacher_sha256=f"teacher-resnet-{seed}",
                       **settings, **SMALL)  # fmt: skip
    code, _, errors = reported(small)
    assert code == 1 and "not the baseline's settings (" in errors and words in errors


def test_a_finished_run_counts_where_an_unfinished_one_is_like_it(small, reported):
    twin = small / "a-copy" / "notes" / "baseline" / "seed-1"  # found first
    shutil.copytree(small / "notes" / "baseline" / "seed-1", twin)
    (twin / "summary.json").unlink()
    code, table, errors = reported(small)
    assert code == 1 and left_out(table) == set()
    assert f"{twin}: left out, {small / 'notes' / 'baseline' / 'seed-1'} has its recipe" in errors


def test_a_run_that_is_there_twice_counts_once(small, reported):
    shutil.copytree(small / "notes", small / "copy" / "notes")
    code, table, errors = reported(small)
    assert (
        code == 1
        and left_out(table) == set()
        and errors.count(" has its recipe, network and seed") == 6
    )


@pytest.mark.parametrize(
    ("name", "seed"), [("baseline", 2), ("baseline", 0), ("teacher-resnet", 0)]
)
def test_a_run_on_other_test_images_is_left_out(small, reported, name, seed):
    """Be it the first of all."""
    shutil.rmtree(small / "notes" / name / f"seed-{seed}", ignore_errors=True)
    fake.write_run(small, name, seed, count=100, epochs=16)
    code, table, errors = reported(small)
    assert code == 1 and left_out(table) == ({(name, 1)} if seed == 0 else set())
    assert f"{name}/seed-{seed}/predictions.npz: left out, its test images are not those" in errors


# ---------------------------------------------------------------- damaged


def test_a_log_cut_anywhere_is_named_with_its_line(small):
    folder = small / "notes" / "baseline" / "seed-1"
    content = (folder / "log.csv").read_bytes()
    for offset in [*range(0, len(content), 23), len(content) - 1]:
        (folder / "log.csv").write_bytes(content[:offset])
        with pytest.raises(records.Unreadable) as caught:
            records.read(folder)
        found = re.search(r"log\.csv(?:, line (\d+))?: ", str(caught.value))
        line = content[:offset].count(b"\n") + 1
        if content[offset - 1 : offset] == b"\n" and line > 2:  # whole rows, but too few
            assert found[1] is None and f"{line - 2} epochs, but summary.json says 16" in str(
                caught.value
            )
        else:
            assert int(found[1]) == max(1, line - (content[offset - 1 : offset] == b"\n"))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("epoch", "4"), ("epoch", "6.5"), ("epoch", ""), ("lr", "fast"), ("lr", ""),
        ("train_loss", "nan"), ("train_loss", "-inf"), ("train_loss", "1e999"),
        ("val_accuracy", "101"), ("test_accuracy", "-1"), ("seconds", "1,2"), ("seconds", "\0"),
        ("seconds", "1e"), ("seconds", "\x1b[31m"), ("seconds", "\ud800"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named_with_file_and_line(small, reported, column, value):
    path = small / "notes" / "baseline" / "seed-1" / "log.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    rows[5][LOG_COLUMNS.index(column)] = value
    text = "\n".join(map(",".join, rows)) + "\n"
    path.write_bytes(text.encode(errors="surrogatepass"))
    code, table, errors = reported(small)
    assert code == 1 and left_out(table) == {("baseline", 1)}
    assert f"{path}, line 6: " in errors
    assert errors.replace("\n", "").isprintable()  # nothing that a terminal would obey


@pytest.mark.parametrize("rows", [[0, 1, 2, 4, 5], [0, 1, 2, 2, 3], [0, 2, 1, 3], [1, 2, 3], [0]])
def test_rows_missing_doubled_or_out_of_order_are_found(small, rows):
    path = small / "notes" / "baseline" / "seed-1" / "log.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[k] for k in rows))
    with pytest.raises(records.Unreadable, match=r"log\.csv, line \d+: "):
        records.read(path.parent)


def test_predictions_cut_anywhere_are_refused(small):
    path = small / "notes" / "baseline" / "seed-1" / "predictions.npz"
    content = path.read_bytes()
    for offset in range(0, len(content), len(content) // 60):
        path.write_bytes(content[:offset])
        with pytest.raises(records.Unreadable, match=r"predictions\.npz: "):
            records.read(path.parent)


def test_a_flipped_bit_in_predictions_is_found_or_changes_nothing(small):
    path = small / "notes" / "baseline" / "seed-1" / "predictions.npz"
    content, whole = path.read_bytes(), records.read(path.parent)
    generator, found = np.random.default_rng(0), 0
    for place in generator.integers(len(content), size=150):
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            read = records.read(path.parent)
        except records.Unreadable:
            found += 1
            continue
        for field in ("labels", "logits", "val_labels", "val_logits"):
            assert np.array_equal(getattr(read, field), getattr(whole, field))
    assert found > 130


@pytest.mark.parametrize(
    "arrays",
    [
        {"logits_best": np.eye(10, dtype=np.float32)[[3] * 200]},  # not the accuracy of the log
        {"labels": np.zeros(0, int), "logits_best": np.zeros((0, 10), np.float32)},
        {"labels": np.zeros(200)},
        {"labels": np.full(200, 10)},
        {"labels": np.full(200, -1)},
        {"labels": np.zeros((200, 1), int)},
        {"logits_best": np.zeros((200, 9), np.float32)},
        {"logits_best": np.full((200, 10), np.nan, np.float32)},
        {"logits_best": np.zeros((200, 10), int)},
        {"val_logits_best": np.zeros((3, 10), np.float32)},
        {"val_labels": None},
    ],
)
def test_predictions_of_another_kind_are_refused(small, reported, arrays):
    path = small / "notes" / "baseline" / "seed-1" / "predictions.npz"
    with np.load(path) as file:
        content = {k: v for k, v in (dict(file) | arrays).items() if v is not None}
    np.savez(path, **content)
    code, table, errors = reported(small)
    assert code == 1 and left_out(table) == {("baseline", 1)} and f"{path}: " in errors


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("kind", ["pickle", "npy", "npz"])
def test_a_pickle_as_predictions_is_not_run(small, reported, tmp_path, kind):
    path, trace = small / "notes" / "baseline" / "seed-1" / "predictions.npz", tmp_path / "trace"
    array = np.array([Bomb(trace)], object)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
    elif kind == "npy":
        with open(path, "wb") as file:
            np.save(file, array, allow_pickle=True)
    else:
        with np.load(path) as file:
            content = dict(file) | {"labels": array}
        np.savez(path, **content)
    code, table, errors = reported(small)
    assert not trace.exists()
    assert code == 1 and left_out(table) == {("baseline", 1)} and f"{path}: " in errors
    with pytest.raises(FileExistsError):  # the bomb is live: the second time its folder is there
        for _ in range(2):
            pickle.loads(pickle.dumps(Bomb(trace)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FUZZ = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", ["log.csv", "config.json", "summary.json", "predictions.npz"])
@FUZZ
@given(content=st.binary(max_size=300))
def test_random_bytes_in_a_file_are_named_and_the_rest_is_read(small, name, content):
    path = small / "notes" / "baseline" / "seed-1" / name
    path.write_bytes(content)
    found, problems = records.read_all(small)
    assert len(found) == 5 and all(record.complete for record in found)
    assert len(problems) == 1 and problems[0].startswith(str(path))


@pytest.mark.parametrize("name", ["log.csv", "config.json", "summary.json", "predictions.npz"])
def test_random_bytes_in_a_file_are_a_warning_and_exit_1(small, reported, name):
    path = small / "notes" / "baseline" / "seed-1" / name
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    code, table, errors = reported(small)
    assert code == 1 and left_out(table) == {("baseline", 1)}
    assert errors.startswith(f"warning: {path}") and errors.replace("\n", "").isprintable()


@FUZZ
@given(rows=st.lists(st.lists(st.text(max_size=6) | st.floats().map(str), max_size=13), max_size=4))
def test_random_rows_below_a_right_header_are_named_with_their_line(small, rows):
    path = small / "notes" / "baseline" / "seed-1" / "log.csv"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([LOG_COLUMNS, *rows])
    path.write_bytes(text.getvalue().encode(errors="surrogatepass"))
    with pytest.raises(records.Unreadable, match=r"log\.csv, line \d+: "):
        records.read(path.parent)


@settings(FUZZ, max_examples=25)
@given(
    name=st.sampled_from(["config.json", "summary.json"]),
    values=st.dictionaries(
        st.sampled_from([*records.SETTINGS, *records.IF_THERE, "weights_sha256"]),
        JSON,
        min_size=1,
        max_size=3,
    ),
)
def test_values_of_any_kind_in_settings_and_summary_never_break_the_report(
    small, reported, name, values
):
    path = small / "notes" / "student-resnet" / "seed-1" / name
    before = path.read_text()
    change(path, **values)
    code, table, _ = reported(small)
    path.write_text(before)
    assert code in (0, 1) and left_out(table) <= {("student-resnet", 1)}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe", "../../elsewhere"), ("recipe", ""), ("recipe", None), ("role", "pupil"),
        ("seed", 1e400), ("seed", -1), ("parameters", True), ("parameters", 10**20),
        ("epochs", 17), ("multiply_adds", 0), ("versions", "1"), ("teacher_sha256", ["a"]),
        ("lr", "fast"), ("arch", None),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(small, reported, key, value):
    folder = small / "notes" / "baseline" / "seed-1"
    change(folder / "config.json", **{key: value})
    code, table, errors = reported(small)
    assert code == 1 and left_out(table) == {("baseline", 1)} and f"{folder}" in errors


def test_a_message_about_a_huge_value_stays_short(small, reported):
    change(small / "notes" / "baseline" / "seed-1" / "config.json", role="x" * 100_000)
    _, _, errors = reported(small)
    assert len(errors) < 2000


def test_how_a_run_was_made_has_the_drop_where_the_rate_drops():
    records = [fake.record("baseline", 0), fake.record("teacher-resnet", 0, schedule="step")]
    rows = analyze.runs_table(compare.Comparison(records)).rows
    said = {row[0]: "drop to 0.4" in row[1] for row in rows}
    assert said == {"teacher-resnet, notes": True, "baseline, notes": False}


def test_no_line_of_the_terminal_begins_with_a_percent_sign():
    for length in range(70, 80):
        lines = analyze.wrapped("x" * length + " 95 % and so on", indent="  ").splitlines()
        assert max(map(len, lines)) <= 80
        assert not any(line.lstrip().startswith("%") for line in lines)


# ---------------------------------------------------------------- README, terminal, files

MARKS = [mark for pair in analyze.README_MARKS.values() for mark in pair]
MARKED = "# Title\n\n{}\nold\n{}\n\nmiddle\n{}\nold\n{}\n\nthen\n{}\nold\n{}\n\ntail\n".format(
    *MARKS
)


def test_the_results_are_written_between_the_readmes_marks(small, reported, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(MARKED)
    fake.write_run(small, "student-mine", 0, teacher_sha256="teacher-resnet-0", lr=0.05, **SMALL)
    reported(small, "--readme", readme)
    first = readme.read_text()
    head, block, middle, claims, then, own, tail = re.split("|".join(map(re.escape, MARKS)), first)
    assert (head, middle) == ("# Title\n\n", "\n\nmiddle\n")
    assert (then, tail) == ("\n\nthen\n", "\n\ntail\n")
    assert "old" not in first
    assert re.findall(r"^\| (C\d) ", claims, re.MULTILINE) == [f"C{i}" for i in range(1, 9)]
    assert "**Experiment 2, recipe notes: distillation" in block
    assert "| student-resnet | 175.0 K | 93.05 | " in block and "student-mine" not in block
    assert "| student-mine | 1 | " in own and "student-resnet |" not in own
    assert analyze.ONE_SEED_EXPLAINED in own  # of student-mine
    (row,) = re.findall(r"^\| student-mine .*", own, re.MULTILINE)
    assert row.endswith(
        f"| lr: {records.read(small / 'notes/baseline/seed-0').config['lr']} and 0.05 |"
    )
    kd, mine = (
        100 * records.read(small / "notes" / name / "seed-0").right.mean()
        for name in ("student-resnet", "student-mine")
    )
    assert f"| {mine - kd:+.2f} [" in row
    alone, taught = (
        np.mean([pd.read_csv(log)["test_accuracy"].max() for log in small.glob(logs)])
        for logs in ("notes/baseline/*/log.csv", "notes/student-resnet/*/log.csv")
    )
    assert f"the gain is +0.76 points in the notes, {taught - alone:+.2f} [" in block
    alone, taught = (
        np.mean([pd.read_csv(log)["test_accuracy"].iloc[-1] for log in small.glob(logs)])
        for logs in ("notes/baseline/*/log.csv", "notes/student-resnet/*/log.csv")
    )
    assert f"at the last epoch, without choosing, {taught - alone:+.2f} [" in block
    assert (tmp_path / re.search(r"!\[.*\]\((.*)\)", block)[1]).exists()
    reported(small, "--readme", readme)
    assert readme.read_text() == first


def test_a_former_recipe_is_no_part_of_the_first_screen(small, reported, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(MARKED)
    fake.write_experiment(small, 2, recipe="best-v1", **SMALL)
    reported(small, "--readme", readme)
    _, block, _, claims, _, own, _ = re.split("|".join(map(re.escape, MARKS)), readme.read_text())
    assert "recipe notes" in block and "notes, experiment 2" in claims
    assert "best-v1" not in block + claims
    assert "Recipe `best-v1`, accuracies in %:" in own
    rows = re.findall(r"^\| (\S+) \| 2 \|", own, re.MULTILINE)
    assert rows == ["teacher-resnet", "baseline", "student-resnet"]
    reported(small / "best-v1", "--readme", readme)
    assert "**Experiment 2, recipe best-v1: " in readme.read_text()  # there is no other


def test_a_page_gets_the_parts_whose_marks_it_has(small, reported, tmp_path):
    whole, part = tmp_path / "README.md", tmp_path / "pages" / "README.md"
    whole.write_text(MARKED)
    part.parent.mkdir()
    part.write_text("\n".join(["# Controls", *MARKS[4:], "tail\n"]))
    fake.write_run(small, "student-mine", 0, teacher_sha256="teacher-resnet-0", lr=0.05, **SMALL)
    reported(small, "--readme", whole, "--readme", part)
    of_whole, of_part = (page.read_text().partition(MARKS[4])[2] for page in (whole, part))
    assert part.read_text().startswith(f"# Controls\n{MARKS[4]}\n")
    assert "| student-mine | 1 | " in of_part and of_part.endswith(f"{MARKS[5]}\ntail\n")
    assert of_part.partition(MARKS[5])[0] == of_whole.partition(MARKS[5])[0]
    assert list(part.parent.iterdir()) == [part]  # the picture is the results'


@pytest.mark.parametrize(
    "text",
    [
        "# Title\n",
        MARKED.split("old")[0],
        MARKED.replace(MARKS[-1], ""),
        MARKED.replace(MARKS[-2], ""),
        MARKED + MARKS[0] + MARKS[1],  # a second time
        "\n".join([MARKS[0], MARKS[2], MARKS[1], MARKS[3]]),  # one into another
        "\n".join([MARKS[0], MARKS[2], MARKS[3], MARKS[1]]),  # one within another
        "\n".join(MARKS[::-1]),
        None,
    ],
)
def test_a_readme_without_its_marks_is_refused_before_anything_is_written(small, tmp_path, text):
    readme, out = tmp_path / "README.md", tmp_path / "out"
    if text is not None:
        readme.write_text(text)
    with pytest.raises(UserError, match="put <!-- results") as caught:
        analyze.main(["--runs", str(small), "--out", str(out), "--readme", str(readme)])
    assert caught.value.exit_code == 2 and not out.exists()
    assert text is None or readme.read_text() == text


def test_the_readme_and_its_picture_are_current_with_the_published_results(
    tmp_path, undrawn, monkeypatch
):
    monkeypatch.setattr(plots, "headline", HEADLINE)
    monkeypatch.setattr(analyze, "to_bytes", to_bytes)
    names = ("README.md", "results/README.md")
    (tmp_path / "results").mkdir()
    pages = [shutil.copy(ROOT / name, tmp_path / name) for name in names]
    words = ["--runs", RESULTS_DIR, "--out", tmp_path / "out", "--readme", *pages]
    analyze.main([*map(str, words)])
    texts = [page.read_text() for page in pages]
    assert texts == [(ROOT / name).read_text() for name in names]
    assert all(mark in "".join(texts) for mark in MARKS)
    number = re.compile(r"-?\d+\.\d+")  # the last digit is the processor's
    drawn, published = (
        (folder / "headline.svg").read_text() for folder in (tmp_path / "results", RESULTS_DIR)
    )
    assert number.sub("", drawn) == number.sub("", published)
    places = [np.array(number.findall(text), float) for text in (drawn, published)]
    np.testing.assert_allclose(*places, atol=1e-3)


def test_the_terminal_table_fits_80_columns(tmp_path, undrawn, capsys):
    root = tmp_path / "runs"
    name = "a-method-with-a-name-of-thirty-eight-letters"
    for seed in range(10):
        fake.write_run(root, "baseline", seed, errors=np.full(10, 0.5), noise=0.1, **SMALL)
        fake.write_run(root, "student-resnet", seed, noise=0.2, **SMALL)
        fake.write_run(root, name, seed, role="student", **SMALL)
    analyze.main(["--runs", str(root), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    table = printed.split("\n\n")[1].splitlines()
    assert len(table) == 6 and table[-2] == name and re.match(" +10 ", table[-1])
    assert table[-1].index("10 ") == table[1].index("n ")  # below its heading
    assert max(map(len, table)) <= 80


def test_an_output_folder_that_cannot_be_made_is_one_line(small, tmp_path):
    (tmp_path / "file").write_text("")
    done = run_script("analyze.py", "--runs", small, "--out", tmp_path / "file" / "out", check=1)
    assert "cannot write the report" in only_line(done)


def test_the_same_runs_give_the_same_bytes_without_torch(runs, report, tmp_path):
    """A second report, with other hashes, by an interpreter that looks whether torch was there."""
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text(
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    out = tmp_path / "out"
    words = (ROOT / "analyze.py", "--runs", runs, "--out", out)
    done = run_script(wrapper, *words, PYTHONHASHSEED="2")
    assert done.stdout.replace(str(out), str(report[0])) == report[1]
    first, second = tree(report[0]), tree(out)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


class Words(html.parser.HTMLParser):
    """The words of a page outside its head and contents, in order."""

    def __init__(self):
        super().__init__()
        self.words: list[str] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag in ("head", "nav", "figcaption"):
            self.inside.append(tag)
        if tag == "img":
            self.words += dict(attributes)["alt"].split()

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.words += data.split()


def test_page_and_markdown_say_the_same(report):
    page = Words()
    page.feed((report[0] / "report.html").read_text())
    text = (report[0] / "report.md").read_text()
    text = re.sub(r"!\[(.*?)\]\(.*?\)", r"\1", text)  # the picture's words
    text = re.sub(r"^\|( --- \|)+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^#+ |^- |^\*+|\*+$|(?<!\\)\||\\", " ", text, flags=re.MULTILINE)
    assert page.words == text.split()


def test_every_picture_of_the_markdown_is_there_in_both_formats(report):
    names = re.findall(r"!\[.*?\]\((.*?)\)", (report[0] / "report.md").read_text())
    assert len(names) > 12
    for name in names:
        assert (report[0] / name).read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (report[0] / name).with_suffix(".svg").read_bytes()
    assert len(list((report[0] / "figures").iterdir())) == 2 * len(names)


def test_images_are_shown_where_they_are_those_that_the_runs_were_tested_on():
    data = load_data()
    assert (analyze.test_images(data.test_labels) == data.test_images).all()
    assert analyze.test_images(data.test_labels[::-1]) is None


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (
            Estimate(3.11, np.nan, np.nan),
            "the student recovers cannot be told: there may be no gap.",
        ),
        (
            Estimate(0.5, 0.1, 0.9),
            "The student recovers 50 % of the gap to the teacher (interval 10 ",
        ),
        (None, None),
    ],
)
def test_a_share_of_a_gap_that_may_be_none_is_no_number(undrawn, monkeypatch, share, words):
    monkeypatch.setattr(analyze, "gap_recovered", lambda _: share)
    texts = [b.text for b in analyze.difference_blocks(fake.trio(2), None) if isinstance(b, Text)]
    told = [text for text in texts if "recovers" in text]
    assert len(told) == (words is not None) and all(words in text for text in told)


@pytest.mark.parametrize("images", [np.zeros((2000, 28, 28), np.uint8), None])
def test_the_gallery_is_there_where_the_images_are(small, reported, monkeypatch, images):
    monkeypatch.setattr(analyze, "test_images", lambda _: images)
    reported(small)
    page = (small.parent / "out" / "report.md").read_text()
    assert ("gallery-notes-2.png" in page) == (images is not None)
    assert ("The gallery of images is left out" in page) == (images is None)


def test_images_are_counted_by_who_is_right(undrawn):
    """And what that says is beside the right ones; by chance: with the next seed's baseline."""
    trio = fake.trio(3, student={"errors": 0.7 * fake.ERRORS})
    blocks = analyze.difference_blocks(trio, None)
    tables = {block.caption: block.rows for block in blocks if isinstance(block, Table)}
    by_kind = {tuple(row[:3]): row[3:] for row in tables[
        "Test images by who is right, all seeds whose teacher is here"]}  # fmt: skip
    assert len(by_kind) == 8
    said = {kind: words for kind, (*_, words) in by_kind.items() if words}
    assert said == {
        ("right", "wrong", "right"): "gained, as the teacher",
        ("wrong", "right", "wrong"): "lost, as the teacher",
        ("right", "right", "wrong"): "lost, unlike the teacher",
        ("wrong", "wrong", "right"): "gained, unlike the teacher",
    }
    right = [[run.right for run in runs] for runs in (trio.teachers, trio.baselines, trio.students)]
    for kind, (share, by_chance, _) in by_kind.items():
        of = [[is_right == (word == "right") for is_right in runs]
              for word, runs in zip(kind, right, strict=True)]  # fmt: skip
        other = np.roll([run == (kind[2] == "right") for run in right[1]], -1, axis=0)
        assert share == f"{100 * np.logical_and.reduce(of).mean():.2f} %"
        assert by_chance == f"{100 * (of[0] & np.array(of[1]) & other).mean():.2f} %"

    seeds = tables["Student against baseline, seed by seed"]
    for seed, (base, student) in enumerate(zip(*right[1:], strict=True)):
        only = [(base & ~student).sum(), (student & ~base).sum()]
        p = scipy.stats.binomtest(only[0], sum(only)).pvalue
        words = [f"{100 * run.mean():.2f}" for run in (base, student)]
        assert seeds[seed] == [str(seed), *words, claims.p_in_words(p)]


def test_a_statistic_has_its_sign_where_the_claim_is_about_its_side_of_0():
    for claimed, words in (
        (claims.POSITIVE, "+0.50 [-0.10, +1.10]"),
        (claims.NEGATIVE, "+0.50 [-0.10, +1.10]"),
        ((25.0, 35.0), "0.50 [-0.10, 1.10]"),
    ):
        assert analyze.measured(claims.Part("", Estimate(0.5, -0.1, 1.1), claimed)) == words


def test_the_shortest_and_the_flawless_runs_can_be_drawn(tmp_path, capsys):
    """One epoch, one seed, no error anywhere, on two recipes and a method of one's own."""
    root = tmp_path / "runs"
    perfect = {"epochs": 1, "count": 20, "errors": np.zeros(10), "noise": 0.0}
    fake.write_experiment(root, 1, **perfect, teacher=perfect, student=perfect)
    fake.write_run(root, "mine", 0, role="student", **perfect)
    assert analyze.main(["--runs", str(root), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "the teacher is no better than the baseline" in " ".join(captured.out.split())
    assert captured.err.count("warning") == captured.err.count("\n") == 1  # mine has no teacher


def test_only_a_teacher_is_a_report_too(tmp_path, capsys):
    fake.write_run(tmp_path / "runs", "teacher-cnn", 3, **SMALL)
    out = tmp_path / "out"
    assert analyze.main(["--runs", str(tmp_path / "runs"), "--out", str(out)]) == 1
    assert (out / "claims.csv").read_text() == CLAIMS_COLUMNS + "\n"
    teacher = tmp_path / "runs" / "notes" / "teacher-cnn" / "seed-3"
    command = f"train_student.py --recipe notes --seed 3 --teacher {teacher} --epochs 16"
    command += f" --out {tmp_path / 'runs' / 'notes' / 'student-cnn' / 'seed-3'}"
    errors = capsys.readouterr().err
    assert f"student-cnn of recipe notes is missing; python {command} makes it" in errors
    assert "baseline of recipe notes is missing; python train_baseline.py --recipe notes" in errors

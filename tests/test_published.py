"""The published runs in results/: their weights, their commands, and what is said of them."""

import io
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import fake
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

import train_baseline
import train_student
import train_teacher
from common import claims, compare, records, stats
from common.config import RESULTS_DIR, BaselineConfig, StudentConfig, TeacherConfig, differing
from common.data import load
from common.errors import UserError
from common.models import build
from common.run import file_digest
from common.run import load as load_checkpoint
from common.run import save as save_checkpoint
from conftest import only_line, pages, run_script
from results import flip, publish

TEACHERS = ("teacher-resnet", "teacher-cnn")
WEIGHTS = sorted(RESULTS_DIR.glob("*/*/seed-*/best.pt"))


@pytest.mark.parametrize(
    "weights", WEIGHTS, ids=[str(each.parent.relative_to(RESULTS_DIR)) for each in WEIGHTS]
)
def test_published_weights_give_the_stored_predictions(weights):
    """In float32, where the run was in bfloat16: hence the bounds."""
    config = json.loads((weights.parent / "config.json").read_text())
    network = build(config["arch"]).eval()
    network.load_state_dict(load_checkpoint(weights)["weights"])
    images = torch.as_tensor(load().test_images.copy()).unsqueeze(1)
    images = images[::5]  # all take their time
    logits = flip.logits(network, images).numpy()
    with np.load(weights.parent / "predictions.npz") as stored:
        expected = stored["logits_best"][::5].astype(np.float32)
    logits = np.maximum(logits, logits.max(1, keepdims=True) - publish.DEEPEST)
    logits -= logits.min(1, keepdims=True)  # as they are published
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.995
    near = logits > logits.max(1, keepdims=True) - publish.DEEP  # the others are stored coarsely
    rounded = publish.rounded(logits, publish.GRID)
    assert np.abs(logits - expected)[near].mean() < 0.02 * expected.std()
    assert np.abs(rounded - expected).mean() < 0.02 * expected.std()


def test_the_command_of_a_published_run_gives_its_first_epoch_again(tmp_path):
    """Bit for bit on the same device and versions; elsewhere as near as rounding leaves it."""
    # The recipe's rate is constant: the first epoch of one is the first epoch of fifty.
    words = ("--recipe", "notes", "--seed", 2, "--epochs", 1, "--device", "cpu")
    words += ("--out", tmp_path / "run")
    # With a processor's AMX oneDNN would round otherwise than for this run.
    run_script("train_baseline.py", *words, timeout=600, ONEDNN_MAX_CPU_ISA="AVX512_CORE_BF16")
    runs = (tmp_path / "run", RESULTS_DIR / "notes" / "baseline-on-cpu" / "seed-2")
    configs = [json.loads((run / "config.json").read_text()) for run in runs]
    logs = [pd.read_csv(run / "log.csv").iloc[0] for run in runs]
    again, first = (log.drop(["images_per_second", "seconds"]).dropna() for log in logs)
    where = ("device_name", "precision", "threads", "versions")
    if all(configs[0][key] == configs[1][key] for key in where):
        digits = f"{{:.{publish.DIGITS}g}}".format  # as are published: they tell float32 apart
        assert again.map(digits).equals(first.map(digits))
    # In the same precision the nearest other seed is 0.009 and 0.3 away; float32 is 0.012 and 0.25.
    alike = configs[0]["precision"] == configs[1]["precision"]
    loss, accuracy = (0.006, 0.2) if alike else (0.02, 1)
    assert again["train_loss"] == pytest.approx(first["train_loss"], rel=loss)
    assert again["train_accuracy"] == pytest.approx(first["train_accuracy"], abs=accuracy)


CONFIGS = {"teacher": TeacherConfig, "baseline": BaselineConfig, "student": StudentConfig}
# Where files are, and what is asked of the hardware.
NOT_COMPARED = {"data_dir", "out", "resume", "device", "precision", "teacher"}


def published(path: str | Path) -> Path:
    """Where the run is published whose own place is `path`."""
    recipe, name, seed = Path(path).parts[-3:]
    return RESULTS_DIR / recipe / name / seed


def calls_of_reproduce_sh(folder: Path, *, failing: str = "nothing") -> tuple[int, list[str]]:
    """Its exit code and its calls, of a python that notes them, and fails at a word of them."""
    (folder / "results").mkdir()
    script = shutil.copy(RESULTS_DIR / "reproduce.sh", folder / "results")
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> calls\ncase "$*" in *{failing}*) exit 3;; esac\n')
    python.chmod(0o755)
    done = subprocess.run(["bash", script, "notes", "best", "on-cpu"])
    return done.returncode, (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("failing", ["resnet", "best", "dist", "on-cpu"])
def test_reproduce_sh_ends_with_the_first_command_that_fails(tmp_path, failing):
    code, calls = calls_of_reproduce_sh(tmp_path, failing=failing)
    assert code == 3
    assert [failing in call for call in calls] == [False] * (len(calls) - 1) + [True]


def test_every_published_run_is_of_a_command_in_reproduce_sh(tmp_path):
    """By its settings and its teacher's weights."""
    code, calls = calls_of_reproduce_sh(tmp_path)
    assert code == 0
    found = set()
    for call in calls:
        name, *words = call.split()
        config = CONFIGS[name.removeprefix("train_").removesuffix(".py")].parse("", words)
        teachers = [published(path) for path in getattr(config, "teacher", [])]
        if teachers:
            arch = teachers[0].parent.name.removeprefix("teacher-")
            name = config.name(arch if len(teachers) == 1 else "ensemble")
        else:
            name = config.name()
        folder = published(config.folder(name))
        found.add(folder)
        recorded = json.loads((folder / "config.json").read_text())
        known = {key: recorded.get(key) for key in asdict(config)}
        assert differing(asdict(config), known, NOT_COMPARED) == [], folder
        summaries = [json.loads((t / "summary.json").read_text()) for t in teachers]
        digests = "+".join(each["weights_sha256"] for each in summaries)
        assert recorded.get("teacher_sha256", "") == digests, folder
    assert found == {path.parent for path in RESULTS_DIR.glob("*/*/*/config.json")}


def gains(trio: claims.Trio) -> list[float]:
    """Seed by seed, in points."""
    return [100 * (student.right.mean() - base.right.mean()) for base, student in trio.pairs()]


def analysis_of_variance(values: np.ndarray) -> float:
    """p of the levels' means, of (blocks, levels): every level has every block."""
    blocks, levels = values.shape
    rest = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    freedom = levels - 1, (blocks - 1) * (levels - 1)
    ratio = blocks * values.mean(0).var(ddof=1) / ((rest**2).sum() / freedom[1])
    return scipy.stats.f.sf(ratio, *freedom)


def test_what_the_readme_says_by_hand_is_what_the_runs_say():
    readme = " ".join(pages().split())
    comparison = compare.Comparison(records.read_all(RESULTS_DIR)[0])
    notes, best = comparison.main_experiments()
    assert all(len(runs) == 5 for trio in (notes, best) for runs in trio.groups().values())
    half = [(gain.high - gain.low) / 2 for gain in map(claims.gain, (notes, best))]
    words = "±{:.2f} and ±{:.2f} (five seeds of `notes` and of `best`)"
    assert words.format(*half) in readme
    of_notes, of_best = map(gains, (notes, best))
    welch = scipy.stats.ttest_ind(of_notes, of_best, equal_var=False)
    interval = welch.confidence_interval()
    words = (
        "Under `notes` distillation gains about a point. Under `best`, where the small CNN alone "
        "is better, it gains perhaps {:.1f} points. The two gains differ by {:.2f} points (95 % "
        "interval {:.2f} to {:.2f}, Welch's), against"
    )
    less = np.mean(of_notes) - np.mean(of_best), *interval
    assert words.format(np.mean(of_best), *less) in readme
    words = "| `student-resnet`, `notes` minus `best` | {:.2f} [{:.2f}, {:.2f}] |"
    assert words.format(*less) in readme
    held_out = stats.over_seeds(
        [
            student.best_row["val_accuracy"] - base.best_row["val_accuracy"]
            for base, student in best.pairs()
        ]
    )
    words = (
        "n the held-out images, by which the settings of `best` were chosen, {} "
        "{:+.2f} [{:+.2f}, {:+.2f}]"
    )
    for who in ("`student-resnet` gains", "it is"):
        assert words.format(who, *held_out[:3]) in readme
    (alone, teacher), (alone_best, teacher_best) = (
        [100 * np.mean([run.right.mean() for run in runs]) for runs in (t.baselines, t.teachers)]
        for t in (notes, best)
    )
    words = (
        f"alone rises by {alone_best - alone:.1f} points and the ResNet by "
        f"{teacher_best - teacher:.1f}: {teacher_best - alone_best:.1f} points are left between "
        f"them, against {teacher - alone:.1f} under `notes`"
    )
    assert words in readme

    words = (
        "a held-out accuracy of 92 % on average {:.0f} epochs before the baseline under `notes` "
        "(p {}), and of 94 % {:.0f} epochs before it under `best` (p {}: it may be chance)"
    )
    of_its_own = (
        "it comes {:.1f} epochs later than the baseline under `notes` (p {}: not told apart), "
        "{:.1f} epochs earlier under `best` (p {})"
    )
    saved, nearly = [], []
    for trio, level in ((notes, 92), (best, 94)):
        part = claims.faster(trio)[0]
        for found, name in (
            (saved, f"at {level} %, which all runs reach,"),
            (nearly, "at 1 point below its own final level"),
        ):
            found.append(fake.beside(part, name))
            found.append(re.search(rf"{name} [^(]*\(p by itself ([\d.]+)", part.aside)[1])
    later, *others = nearly
    assert words.format(*saved) in readme and of_its_own.format(-later, *others) in readme
    for trio in (notes, best):
        assert claims.faster(trio)[1].estimate.low > 0
        ahead = [s.log["val_accuracy"] - base.log["val_accuracy"] for base, s in trio.pairs()]
        assert np.mean(ahead, axis=0).min() > 0, "ahead in every epoch"
    (unstable, steady), (unstable_best, steady_best) = map(claims.steadier, (notes, best))
    assert steady.estimate.high < 0 < steady_best.estimate.high, "steadier under notes alone"
    assert unstable.estimate.low < 0 < unstable_best.estimate.low, "each recipe shows another half"
    for part in (unstable, unstable_best):
        blind = re.search(r"descent [^(]*\(p by itself ([\d.]+)", part.aside)
        assert float(blind[1]) > 0.1, "without the descent"
    hard, hard_best = (
        re.search(r"hard loss alone \+[^(]*\(p by itself ([\d.]+)", part.aside)[1]
        for part in (unstable, unstable_best)
    )
    words = "alone, which both have, is less stable under `best` (p {}), under `notes` not seen"
    assert words.format(hard_best) in readme and f"not seen to be (p {hard})." in readme
    fits, generalises = claims.better(best)
    assert generalises.estimate.low > 0
    assert f"generalising holds by itself (p {generalises.estimate.p:.3f})" in readme
    assert fits.estimate.low < 0 < fits.estimate.high and f"{fits.estimate.value:.1f}" == "0.1"
    assert f"{fake.beside(fits, 'at the last epoch'):.1f}" == "0.1"
    on_cpus = [
        comparison.trio(t.recipe, "student-resnet", 2, "baseline-on-cpu") for t in (notes, best)
    ]
    p, p_on_cpus = (
        re.search(r"at the last epoch [^(]*\(p by itself ([\d.]+)", part.aside)[1]
        for part in (fits, claims.better(on_cpus[1])[0])
    )
    words = (
        "at the chosen epoch; at the last one it is p {}, against the baselines from a CPU p {}."
    )
    assert words.format(p, p_on_cpus) in readme
    name = "in the last third of the epochs"
    late, late_best = (claims.oscillates(trio)[0] for trio in (notes, best))
    assert float(re.search(r"p by itself ([\d.]+)", late_best.aside)[1]) > 0.05, "chance"
    swings = f"of `notes` swings {np.exp(fake.beside(late, name)):.1f} times as much as chance."
    assert swings in readme
    verdicts, on_those = (
        [claims.judge(trio) for trio in trios] for trios in ((notes, best), on_cpus)
    )
    changed = [
        (k, claim)
        for k, claim in itertools.product(range(2), claims.CLAIMS)
        if verdicts[k][claim].word != on_those[k][claim].word
    ]
    other = on_those[0]["C3"]
    assert changed == [(0, "C3")]
    words = "these verdicts stay but one: C3 under `notes` is {} (p {:.3f})"
    assert words.format(other.word, other.p) in readme
    both = stats.holm([claims._p(verdict.parts) for each in verdicts for verdict in each.values()])
    assert next(iter(claims.CLAIMS)) == "C1" and verdicts[1]["C1"].word == "supported"
    words = "both columns at once, C1 under `best` would be undecided (p {:.3f})"
    p = both[len(verdicts[0])]
    assert p > claims.SIGNIFICANCE and words.format(p) in readme

    figures = {row.name: row for row in comparison.table.query("recipe == 'notes'").itertuples()}
    published = {"teacher-resnet": 95.59, "baseline": 92.50, "student-resnet": 93.09}  # on train
    away = [abs(figures[name].train_accuracy - value) for name, value in published.items()]
    assert f"within {np.ceil(100 * max(away)) / 100:.2f} points of the train accuracies" in readme
    away = [abs(figures[name].test_best_epoch - claims.NOTES[name][0]) for name in published]
    assert f"within {max(away):.1f} points of the test accuracies at the best test epoch" in readme
    assert max(away) < 0.3, "what was aimed at"

    differ = 0
    for one, other in itertools.combinations(notes.baselines, 2):
        pair = claims.Trio("notes", 2, [], [one], [replace(other, seed=one.seed)])
        low, high = claims.class_error_change(pair, claims.SHIRT)[1:3]
        differ += low > 0 or high < 0
    assert f"{differ} of the 10 pairs among the five baselines of `notes` differ" in readme


def test_where_the_published_runs_are_from_is_what_the_readme_says():
    configs = [json.loads(path.read_text()) for path in RESULTS_DIR.glob("*/*/*/config.json")]
    gpus = [each for each in configs if each["device_name"] == "NVIDIA H200"]
    assert all(each["versions"]["torch"].startswith("2.11.") for each in gpus)
    moved = [each for each in gpus if each.get("resumed_with")]
    assert {each["name"] for each in moved} == {"student-ensemble"}
    words = (
        "Of the {} published runs {} are from one GPU with torch 2.11, {} from CPUs, and {}, of "
        "`student-ensemble`, from both"
    )
    counts = len(gpus) - len(moved), len(configs) - len(gpus), len(moved)
    assert words.format(len(configs), *counts) in " ".join(pages().split())


def test_what_the_scripts_tell_to_expect_is_what_was_published():
    table = compare.Comparison(records.read_all(RESULTS_DIR)[0]).table
    tests = {(row.recipe, row.name): f"{row.test_selected:.1f}" for row in table.itertuples()}
    words = " of the test images, with --recipe best "
    for script, name in ((train_baseline, "baseline"), (train_student, "student-resnet")):
        own = f"{tests['notes', name]} %{words}{tests['best', name]} %"
        assert f"Expect {own}" in " ".join(script.__doc__.split())
    values = (tests[key] for key in itertools.product(("notes", "best"), TEACHERS))
    words = "Expect {} % of the test images, of the CNN {} %; with --recipe best {} and {} %."
    assert words.format(*values) in " ".join(train_teacher.__doc__.split())


def test_the_published_runs_stay_below_20_megabytes():
    files = (path for path in RESULTS_DIR.glob("*/*/seed-*/*.*"))
    files = (path for path in files if not path.match("logits-*.pt"))  # what a student left here
    assert sum(path.stat().st_size for path in files) < 20e6


def test_what_the_readme_says_by_hand_of_controls_is_what_the_runs_say():
    readme = " ".join(pages().split())
    comparison = compare.Comparison(records.read_all(RESULTS_DIR)[0])
    notes, best = comparison.main_experiments()
    of_three, own_device = [], []
    for recipe in ("notes", "best"):
        on_gpu, on_cpu = (
            gains(comparison.trio(recipe, "student-cnn", against=base))
            for base in ("baseline", "baseline-on-cpu")
        )
        of_three += stats.over_seeds(on_gpu[:3])[:3]
        own_device += stats.over_seeds(on_gpu[:3] + on_cpu[3:])[:3]
    words = (
        "which gained {:+.2f} [{:+.2f}, {:+.2f}] under `notes` and {:+.2f} [{:+.2f}, {:+.2f}] "
        "under `best`; against baselines of each student's own device the mean of all five is "
        "{:+.2f} [{:+.2f}, {:+.2f}] and {:+.2f} [{:+.2f}, {:+.2f}]."
    )
    assert words.format(*of_three, *own_device) in readme
    smoothed = claims.gain(comparison.trio("best", "baseline-smoothed"))
    behind = claims.gain(comparison.against_kd("best", "baseline-smoothed"))
    longer = claims.gain(comparison.trio("best", "baseline-100-epochs"))
    beside = claims.gain(comparison.trio("best", "baseline-100-epochs", against="baseline-on-cpu"))
    words = (
        "without a teacher may do as much: training for twice as many epochs gains "
        "{:+.2f} [{:+.2f}, {:+.2f}], against baselines of [the same device]"
        "(results/README.md#controls-and-other-losses) {:+.2f} [{:+.2f}, {:+.2f}]; label "
        "smoothing gains {:+.2f} [{:+.2f}, {:+.2f}]"
    )
    assert words.format(*longer[:3], *beside[:3], *smoothed[:3]) in readme
    assert beside.low < 0 < longer.low, "may do as much"
    assert smoothed.low < 0 < smoothed.high and behind.low < 0 < behind.high, "told from neither"
    as_good = claims.gain(comparison.against_kd("best", "baseline-100-epochs"))
    assert -0.3 < as_good.low < 0 < as_good.high < 0.3, "cannot be told from it"
    dist = claims.gain(comparison.against_kd("best", "student-resnet-dist"))
    assert -0.4 < dist.low < 0 < dist.high < 0.4, "cannot be told from it"
    names = [f"student-resnet-{loss}" for loss in ("dist", "dkd", "logit-standard")]
    losses = {name: claims.gain(comparison.against_kd("best", name)) for name in names}
    behind = losses["student-resnet-dkd"]
    p = stats.holm([gain.p for gain in losses.values()])[1]
    words = "`dkd` is behind `kd` by {:.2f} points [{:.2f}, {:.2f}]"
    assert words.format(-behind.value, -behind.high, -behind.low) in readme
    assert f"for three losses at once not beyond chance (p {p:.3f})" in readme and p > 0.05
    standard = losses["student-resnet-logit-standard"]
    assert standard.low < 0 < standard.high, "cannot be told from kd"
    beside = [claims.gain(*comparison.against_equal("best", name)) for name in names[1:]]
    assert all(gain.low < 0 < gain.high for gain in beside), "perhaps nothing"
    words = (
        "they gain {:+.2f} [{:+.2f}, {:+.2f}] and {:+.2f} [{:+.2f}, {:+.2f}], so perhaps nothing"
    )
    assert words.format(*beside[0][:3], *beside[1][:3]) in readme
    students = (own for own in comparison.own("best") if comparison.role("best", own) == "student")
    on_kd = filter(None, (comparison.against_kd("best", own) for own in students))
    half = [(gain.high - gain.low) / 2 for gain in map(claims.gain, on_kd)]
    assert f"under `best` of ±{min(half):.2f} to ±{max(half):.2f}" in readme
    trio = comparison.trio("best", "student-ensemble")
    of_three = gains(trio)

    def accuracies(recipe: str, *names: str) -> np.ndarray:
        runs = itertools.chain(*(comparison.groups[recipe, name] for name in names))
        return np.array([100 * run.right.mean() for run in runs])

    def on_ten(recipe: str, student: str) -> tuple[float, float, float]:
        """Its gain on all ten baselines, unpaired, with Welch's interval."""
        both = accuracies(recipe, student), accuracies(recipe, "baseline", "baseline-on-cpu")
        welch = scipy.stats.ttest_ind(*both, equal_var=False).confidence_interval()
        return both[0].mean() - both[1].mean(), *welch

    words = (
        "Under `best` a student of three ResNets gains {:+.2f} [{:+.2f}, {:+.2f}], against ten "
        "baselines {:+.2f} [{:+.2f}, {:+.2f}]; both intervals are too narrow"
    )
    unpaired = on_ten("best", "student-ensemble")
    assert words.format(*claims.gain(trio)[:3], *unpaired) in readme
    assert f"five seeds gain, by {min(of_three):.2f} to {max(of_three):.2f} points" in readme
    ahead = claims.gain(comparison.against_kd("best", "student-ensemble"))
    assert ahead.low < 0 < ahead.high, "better than the student of one they cannot tell"
    single = np.mean([teacher.right.mean() for teacher in best.teachers])
    together = [comparison.teacher_of(student).right.mean() for student in trio.students]
    better = [100 * (each - single) for each in together]
    assert f"which are {np.mean(better):.1f} points better than one." in readme
    assert min(better) > 0.4 and max(better) < 0.5

    deep = claims.gain(comparison.trio("best", "baseline-deeper-cnn"))
    taught = claims.gain(comparison.trio("best", "student-ensemble-deeper-cnn"))
    as_much = claims.gain(comparison.trio("best", "baseline-deeper-cnn", against="student-resnet"))
    assert as_much.low < 0 < as_much.high, "cannot be told"
    words = "from `student-resnet` it cannot be told ({:+.2f} [{:+.2f}, {:+.2f}])"
    assert words.format(*as_much[:3]) in readme
    words = "Alone it gains {:+.2f} [{:+.2f}, {:+.2f}] over the small CNN"
    assert words.format(*deep[:3]) in readme
    words = "it gains another {:+.2f} [{:+.2f}, {:+.2f}] and has the highest mean"
    assert words.format(*taught[:3]) in readme
    small = {row.test_selected: row.name for row in comparison.rows("best") if row.parameters < 2e5}
    deeper = "student-ensemble-deeper-cnn"
    assert small[max(small)] == deeper and max(small) < 95
    better = claims.gain(comparison.trio("best", deeper, against="student-ensemble"))
    words = "{:.2f} %, where 95.0 was aimed at; against `student-ensemble` that is "
    words += "{:+.2f} [{:+.2f}, {:+.2f}]. All five students have the same three teachers"
    assert words.format(max(small), *better[:3]) in readme
    runs = comparison.groups["best", deeper]
    assert len(runs) == 5 and len({run.config["teacher_sha256"] for run in runs}) == 1
    names = ("baseline-deeper-cnn", "baseline", "teacher-resnet")
    configs = [comparison.groups["best", name][0].config for name in names]
    deeper, small, resnet = (config["multiply_adds"] for config in configs)
    fewer = configs[2]["parameters"] / configs[1]["parameters"], resnet / small
    words = (
        "has {:.1f} times fewer parameters than the ResNet, and {:.1f} times fewer multiply-adds."
    )
    assert words.format(*fewer) in readme
    words = "as many parameters, {:.1f} times the multiply-adds, {:.2f} times those of the ResNet."
    assert words.format(deeper / small, deeper / resnet) in readme
    assert "`deep-cnn` of nine (alone 94.66 %, taught 94.87) by held-out" in readme
    notes_file = (RESULTS_DIR / "NOTES.md").read_text()
    for row in (
        "| `baseline-deep-cnn` | 95.83 | 95.17 | 94.66 |",
        "| `student-ensemble-deep-cnn` | 96.21 | 95.41 | 94.87 |",
    ):
        assert row in notes_file

    elsewhere = comparison.trio("notes", "baseline-on-cpu")
    better = claims.gain(elsewhere)
    words = (
        "Under `notes` it is better by {:.2f} points [{:+.2f}, {:+.2f}] at the chosen epoch, by "
        "{:.1f} at the best test epoch"
    )
    best_epoch = claims.gain_at_best_test_epoch(elsewhere).value
    assert words.format(*better[:3], best_epoch) in readme
    on_those = comparison.trio("notes", "student-resnet", 2, "baseline-on-cpu")
    mean = 100 * np.mean([run.right.mean() for run in elsewhere.students])
    of_cnn = claims.gain(comparison.trio("notes", "student-cnn", 1, "baseline-on-cpu"))
    under_notes = claims.gain(on_those)
    assert under_notes.low > 0 and 0.8 < under_notes.value < claims.gain(notes).value < 1.3
    interval = "{:+.2f} [{:+.2f}, {:+.2f}]"

    def in_table(student: str, recipe: str, on_cpus: stats.Estimate) -> bool:
        usual = claims.gain(comparison.trio(recipe, student))
        each = usual[:3], on_cpus[:3], on_ten(recipe, student)
        cells = [interval.format(*figures) for figures in each]
        cells[0] += " ‡" * (student == "student-cnn")
        return f"| `{recipe}`, `{student}` | {' | '.join(cells)} |" in readme

    assert in_table("student-resnet", "notes", under_notes)
    assert in_table("student-cnn", "notes", of_cnn)
    of_table = 100 * np.mean([run.right.mean() for run in notes.baselines])
    words = (
        f"is partly luck: {of_table:.2f} % in README's table, {mean:.2f} % from a CPU, 92.24 % in "
    )
    assert f"{words}five earlier ones from the GPU, replaced since." in readme
    assert "| baseline, seeds 0 to 4 | 93.12 | 92.95 | 92.24 |" in notes_file
    earlier = "+0.08 [-0.19, +0.34]"
    assert f"| {earlier} |" in notes_file
    first = [re.search(rf"^\| {role}, test \|([^|]+\|){{5}}", notes_file, re.M)[0]
             for role in ("student", "baseline")]  # fmt: skip
    first = np.subtract(*(list(map(float, re.findall(r"\d+\.\d+", row))) for row in first))
    words = f"could tell: {interval}, from CPUs with one teacher of other settings, and {earlier}"
    assert words.format(*stats.over_seeds(first.tolist())[:3]) in readme
    beside = [
        claims.gain(trio)
        for name in comparison.of("best")
        if (trio := comparison.trio("best", name)) and trio.baselines[0].name == "baseline"
        if name != "baseline-on-cpu"
    ]
    assert len(beside) == 9 and beside[0].p == claims.gain(best).p
    adjusted = f"{stats.holm([gain.p for gain in beside])[0]:.3f}"
    words = f"has p {beside[0].p:.3f} by itself, adjusted for"
    assert f"{words} nine (Holm) {adjusted}." in readme
    assert f"{words} the nine networks compared under `best` (Holm) {adjusted};" in readme
    elsewhere = comparison.trio("best", "baseline-on-cpu")
    alike = claims.gain(elsewhere)
    assert -0.3 < alike.low < 0 < alike.high < 0.3 and abs(alike.value) < 0.2
    words = "under `best` by {:.2f} [{:+.2f}, {:+.2f}]. Both rows"
    assert words.format(*alike[:3]) in readme
    trio = comparison.trio("best", "student-resnet", 2, "baseline-on-cpu")
    welch = scipy.stats.ttest_ind(gains(on_those), gains(trio), equal_var=False)
    lead = claims.gain(trio)
    mean = 100 * np.mean([run.right.mean() for run in elsewhere.students])
    of_cnn = claims.gain(comparison.trio("best", "student-cnn", 1, "baseline-on-cpu"))
    assert in_table("student-resnet", "best", lead) and in_table("student-cnn", "best", of_cnn)
    less = under_notes.value - lead.value, *welch.confidence_interval()
    four = [
        accuracies(recipe, *names)
        for recipe in ("notes", "best")
        for names in (("student-resnet",), ("baseline", "baseline-on-cpu"))
    ]
    each = [of.var(ddof=1) / len(of) for of in four]  # Welch's test, of four means
    freedom = sum(each) ** 2 / sum(e**2 / (len(of) - 1) for e, of in zip(each, four, strict=True))
    middle = np.dot([1, -1, -1, 1], [of.mean() for of in four])
    ends = scipy.stats.t.interval(0.95, freedom, middle, np.sqrt(sum(each)))
    last_row = re.search(r"`notes` minus `best` \|[^|]+\| ([^|]+) \| ([^|]+) \|", readme)
    words = "{:.2f} [{:.2f}, {:.2f}]"
    assert last_row.groups() == (words.format(*less), words.format(middle, *ends))
    less_in_words = words.format(middle, *ends)
    assert f"Welch's), against ten baselines of each recipe by {less_in_words}." in readme
    words = (
        "[five others](results/README.md#how-sure-the-gains-are) of the same settings the gains "
        f"are {interval}"
    )
    assert f"{words} and {interval}.".format(*under_notes[:3], *lead[:3]) in readme
    for recipe in ("notes", "best"):
        own = [name for name in comparison.of(recipe) if comparison.role(recipe, name) != "teacher"]
        runs = np.array([accuracies(recipe, name) for name in own])  # (networks, seeds)
        assert analysis_of_variance(runs) > 0.3, "seeds are not seen to matter"
    words = "`best` from a CPU are at {:.2f} %, and there the mean gains stay, in intervals that"
    assert words.format(mean) in readme
    assert lead.low < 0 < lead.high and of_cnn.low < 0 < of_cnn.high, "intervals that contain 0"
    usual = (comparison.trio("best", student) for student in ("student-resnet", "student-cnn"))
    for on_cpus, trio in zip((lead, of_cnn), usual, strict=True):
        assert abs(on_cpus.value - claims.gain(trio).value) < 0.03
    on_those = [
        claims.gain(comparison.trio("best", own, against="baseline-on-cpu"))
        for own in ("baseline-100-epochs", "baseline-deeper-cnn")
    ]
    words = (
        "`baseline-on-cpu` they gain {:+.2f} [{:+.2f}, {:+.2f}], "
        "`baseline-deeper-cnn` {:+.2f} [{:+.2f}, {:+.2f}]"
    )
    assert words.format(*on_those[0][:3], *on_those[1][:3]) in readme


def test_what_the_readme_says_of_temperature_and_alpha_is_what_the_search_gave():
    rows = pd.read_csv(RESULTS_DIR / "search.csv")
    searched = rows.dropna().pivot(index=["seed", "temperature"], columns="alpha")["val_accuracy"]
    cells = searched.to_numpy().reshape(5, 4, 3)  # by seed, temperature, alpha
    assert np.isfinite(cells).all()
    text = pages()
    for temperature, of_seeds in zip((1, 2, 4, 8), cells.transpose(1, 2, 0), strict=True):
        words = (f"{of.mean():.2f} ± {of.std(ddof=1):.2f}" for of in of_seeds)
        assert f"\n| {temperature} | {' | '.join(words)} |\n" in text
    on_gpu = rows[rows.device_name == "NVIDIA H200"]
    assert set(on_gpu.seed) == {100} and len(on_gpu) == 12
    assert set(rows.device_name) == {"NVIDIA H200", "Intel Xeon"}
    readme = " ".join(text.split())
    alone = rows[rows.alpha == 0].set_index("seed").val_accuracy[[100, 101, 102, 103, 104]]
    words = "alone has {:.2f} ± {:.2f}, all on the CPU."
    assert words.format(alone.mean(), alone.std()) in readme

    def chosen(cells):
        return 2 ** cells.mean((0, 2)).argmax(), (0.5, 0.9, 1.0)[cells.mean((0, 1)).argmax()]

    recipe = StudentConfig.parse("", ["--recipe", "best"])
    assert chosen(cells[:1]) == (recipe.temperature, recipe.alpha) == (2, 0.5)
    own = [(4, 0.5), (8, 0.5), (8, 0.5), (1, 0.5)]
    assert [chosen(cells[k : k + 1]) for k in (1, 2, 3, 4)] == own
    words = "would have chosen 4, 8, 8 and 1, each with 0.5; all five together choose {} and {}, by"
    assert f"{words.format(*chosen(cells))} less than 0.01 points before 8." in readme
    alphas, temperatures = cells.mean(1), cells.mean(2)  # by seed
    assert 0 < temperatures[:, 1].mean() - temperatures[:, 3].mean() < 0.01
    assert (alphas.argmax(1) == 0).all(), "alpha 0.5 has the highest mean in each seed"
    p, p_of_temperatures = map(analysis_of_variance, (alphas, temperatures))
    assert f"chance alone would part alphas so much with p {p:.3f}; none below" in readme
    words = "means of 1, 2, 4 and 8 are {:.2f}, {:.2f}, {:.2f} and {:.2f}, for {:.2f} alone "
    words += "(p {:.2f})."
    assert words.format(*temperatures.mean(0), alone.mean(), p_of_temperatures) in readme
    taken = cells[:, :, 0]
    later = stats.over_seeds((taken[:, 3] - taken[:, 1]).tolist())
    words = "At alpha 0.5, the one that was taken, they rise with it: {:.2f}, {:.2f}, {:.2f} and "
    words += "{:.2f}; 8 is not told from 2 there ({:+.2f} [{:+.2f}, {:+.2f}])."
    assert words.format(*taken.mean(0), *later[:3]) in readme
    assert (np.diff(taken.mean(0)) > 0).all() and later.low < 0


def test_flip_averaging_is_of_the_published_runs_and_comes_out_again():
    rows = pd.read_csv(RESULTS_DIR / "flip.csv")
    away = []  # in images
    for row in rows.itertuples():
        folder = RESULTS_DIR / row.run / f"seed-{row.seed}"
        summary = json.loads((folder / "summary.json").read_text())
        assert row.weights_sha256 == summary["weights_sha256"]
        stored = summary["test_accuracy_selected"], summary["val_accuracy"]
        # In float32, where the run was in bfloat16.
        assert (row.test_accuracy, row.val_accuracy) == pytest.approx(stored, abs=0.2)
        away.append(100 * abs(row.test_accuracy - stored[0]))
    assert round(max(away)) == 8
    text = " ".join((RESULTS_DIR / "README.md").read_text().split())
    assert "by up to eight test images" in text
    student, teacher = "best/student-resnet", "best/teacher-resnet"
    with_weights = [RESULTS_DIR / run / "seed-0" for run in (student, teacher)]
    done = run_script("results/flip.py", *with_weights, timeout=600)
    again = pd.read_csv(io.StringIO(done.stdout))
    published = rows[(rows.run == student) | ((rows.run == teacher) & (rows.seed == 0))]
    published = published.set_index("run").loc[again.run].reset_index()
    key = ["run", "seed", "weights_sha256"]
    assert (again[key].to_numpy() == published[key].to_numpy()).all()
    columns = [column for column in rows if "accuracy" in column]
    np.testing.assert_allclose(again[columns], published[columns], rtol=0, atol=0.03)

    readme = " ".join(pages().split())
    means = rows.groupby("run")[columns].mean()
    of_all_seeds = rows.groupby("run").size().drop([student, "best/teacher-resnet-on-cpu"])
    assert (of_all_seeds == 5).all()
    deep = rows[rows.run == "best/student-ensemble-deeper-cnn"].test_accuracy_flip
    words = "at twice the cost of an answer, they have {:.2f} % [{:.2f}, {:.2f}]"
    assert words.format(*stats.over_seeds(deep.tolist())[:3]) in readme
    gained = means.test_accuracy_flip - means.test_accuracy
    words = (
        "The ResNets gain {:.2f} by that, `student-ensemble` {:.2f}; no other number here has it "
        "([flip.csv](flip.csv), by weights most of which are not published)"
    )
    of = teacher, "best/student-ensemble"
    assert words.format(*gained[list(of)]) in readme


def test_flip_averaging_without_weights_is_one_line(tmp_path):
    folder = RESULTS_DIR / "best" / "student-resnet" / "seed-1"
    done = run_script("results/flip.py", folder, check=2)
    assert f"cannot use {folder / 'best.pt'}" in only_line(done)
    other = fake.write_run(tmp_path, "baseline", 0)
    save_checkpoint(other / "best.pt", {"arch": "small-cnn", "weights": {}})
    summary = json.loads((other / "summary.json").read_text())
    with pytest.raises(UserError, match="is not the one it left"):  # but of another run
        flip.main([str(other)])
    summary["weights_sha256"] = file_digest(other / "best.pt")
    (other / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=f"cannot use {other / 'best.pt'}; .*state_dict") as caught:
        flip.main([str(other)])
    assert caught.value.exit_code == 2
    (other / "summary.json").unlink()
    with pytest.raises(UserError, match="the run is unfinished"):
        flip.main([str(other)])


def change_logits(folder, change) -> None:
    with np.load(folder / "predictions.npz") as archive:
        arrays = dict(archive)
    for key in arrays:
        if "logits" in key:
            arrays[key] = change(arrays[key])
    np.savez_compressed(folder / "predictions.npz", **arrays)


def nearly_tied(logits: np.ndarray) -> np.ndarray:
    """An image's class leads the one before it by little, and loses to it where both are equal."""
    image = logits.argmax(1).argmax()  # of a class that has one before it
    winner = logits[image].argmax()
    logits[image] = 0
    logits[image, winner - 1 : winner + 1] = 20, 20.001
    return logits


@pytest.mark.parametrize(("change", "bound"), [(None, 1 / 16), (nearly_tied, 1 / 8)])
def test_publishing_keeps_what_a_report_reads_in_fewer_bytes(tmp_path, change, bound):
    folder = fake.write_run(tmp_path / "runs", "baseline", 3, data_dir="/home/someone/data")
    leave_weights(folder)
    if change:
        change_logits(folder, change)
    target = publish.publish(folder, tmp_path / "results", weights=True)
    before, after = records.read(folder), records.read(target)
    assert target == tmp_path / "results" / "notes" / "baseline" / "seed-3"
    assert (target / "best.pt").read_bytes() == b"weights"
    assert after.config == before.config | {"data_dir": None}
    assert after.weights_sha256 == before.weights_sha256
    times = ["images_per_second", "seconds"]
    np.testing.assert_allclose(after.log[times], before.log[times], rtol=5e-5)
    others = [log.drop(columns=times) for log in (after.log, before.log)]
    np.testing.assert_allclose(*others, rtol=5e-9)
    assert (target / "log.csv").stat().st_size < 0.7 * (folder / "log.csv").stat().st_size
    assert (after.predicted == before.predicted).all()
    assert (after.val_logits.argmax(1) == before.val_logits.argmax(1)).all()
    for was, now, allowed in (
        (before.logits, after.logits, bound), (before.val_logits, after.val_logits, 4 * bound),
    ):  # fmt: skip
        below = was.max(1, keepdims=True) - was
        was = np.maximum(was, was.max(1, keepdims=True) - 11)  # of less than 0.00002
        was = was - was.min(1, keepdims=True)  # which changes no probability
        assert (abs(now - was) <= np.where(below > 6, 4 * allowed, allowed)).all()
    sizes = [(each / "predictions.npz").stat().st_size for each in (folder, target)]
    assert sizes[1] < 0.5 * sizes[0]


def leave_weights(folder) -> None:
    (folder / "best.pt").write_bytes(b"weights")
    summary = json.loads((folder / "summary.json").read_text())
    summary["weights_sha256"] = file_digest(folder / "best.pt")
    (folder / "summary.json").write_text(json.dumps(summary))


def test_weights_that_are_not_the_runs_are_not_published(tmp_path):
    folder = fake.write_run(tmp_path / "runs", "baseline", 0)
    leave_weights(folder)
    (folder / "best.pt").write_bytes(b"of another run")
    with pytest.raises(UserError, match=r"its best\.pt is not the one that it left"):
        publish.publish(folder, tmp_path / "results", weights=True)
    assert not (tmp_path / "results").exists()


def unfinish(folder) -> None:
    (folder / "summary.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "settings", "why"),
    [
        (unfinish, {}, "it is unfinished"),
        (None, {"out": "/home/someone/run"}, "names a path outside the project"),
        (lambda folder: (folder / "log.csv").write_text(""), {}, "not the columns of a log"),
    ],
)
def test_what_cannot_be_published_is_one_line_and_leaves_nothing(tmp_path, spoil, settings, why):
    folder = fake.write_run(tmp_path / "runs", "baseline", 0, **settings)
    if spoil:
        spoil(folder)
    with pytest.raises(UserError, match=why):
        publish.publish(folder, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_stop_while_a_run_is_published_leaves_no_half_of_it(tmp_path, monkeypatch):
    folder = fake.write_run(tmp_path / "runs", "baseline", 0)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish.shutil, "copyfile", stop)
    with pytest.raises(KeyboardInterrupt):
        publish.publish(folder, tmp_path / "results")
    assert not list((tmp_path / "results").rglob("seed-0"))


def test_a_published_run_is_not_replaced(tmp_path):
    folder = fake.write_run(tmp_path, "baseline", 0)
    before = (folder / "predictions.npz").read_bytes()
    done = run_script("results/publish.py", "--out", tmp_path, folder, check=2)
    assert f"{folder} is there" in only_line(done)
    assert (folder / "predictions.npz").read_bytes() == before


def test_a_run_without_the_weights_asked_for_is_not_published_by_halves(tmp_path):
    folder = fake.write_run(tmp_path / "runs", "baseline", 0)
    with pytest.raises(UserError, match=r"best\.pt"):
        publish.publish(folder, tmp_path / "results", weights=True)
    assert not list((tmp_path / "results").rglob("seed-0"))

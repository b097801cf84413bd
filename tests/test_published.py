"""The published runs in results/: their weights, and that their commands give them again."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import fake
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from common import claims, compare, records, stats
from common.config import RESULTS_DIR, BaselineConfig, StudentConfig, TeacherConfig, differing
from common.data import load
from common.errors import UserError
from common.models import build
from common.run import load as load_checkpoint
from conftest import ROOT, only_line, run_script
from results import publish

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
    with torch.no_grad():
        logits = torch.cat([network(chunk) for chunk in images.split(500)]).numpy()
    with np.load(weights.parent / "predictions.npz") as stored:
        expected = stored["logits_best"][::5].astype(np.float32)
    logits -= logits.min(1, keepdims=True)  # as they are published
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.995
    assert np.abs(logits - expected).mean() < 0.02 * expected.std()


def test_the_command_of_a_published_run_gives_its_first_epoch_again(tmp_path):
    """Bit for bit on the same device and versions; elsewhere as near as rounding leaves it."""
    # The recipe's rate is constant: the first epoch of one is the first epoch of fifty.
    words = ("--recipe", "notes", "--seed", 2, "--epochs", 1, "--out", tmp_path / "run")
    run_script("train_baseline.py", *words, timeout=600)
    runs = (tmp_path / "run", RESULTS_DIR / "notes" / "baseline" / "seed-2")
    configs = [json.loads((run / "config.json").read_text()) for run in runs]
    logs = [pd.read_csv(run / "log.csv").iloc[0] for run in runs]
    again, first = (log.drop(["images_per_second", "seconds"]).dropna() for log in logs)
    where = ("device_name", "precision", "threads", "versions")
    if all(configs[0][key] == configs[1][key] for key in where):
        assert again.equals(first)
    assert again["train_loss"] == pytest.approx(first["train_loss"], rel=0.02)
    assert again["train_accuracy"] == pytest.approx(first["train_accuracy"], abs=1)


CONFIGS = {"teacher": TeacherConfig, "baseline": BaselineConfig, "student": StudentConfig}
# Where files are, and what is asked of the hardware; best-v1 is best with settings of its own.
NOT_COMPARED = {"data_dir", "out", "resume", "device", "precision", "recipe", "teacher"}


def published(path: str | Path) -> Path:
    """Where the run is published whose own place is `path`."""
    recipe, name, seed = Path(path).parts[-3:]
    return RESULTS_DIR / recipe.removeprefix("runs-") / name / seed


def test_every_published_run_is_of_a_command_in_reproduce_sh(tmp_path):
    """By its settings and its teacher's weights. The script has a python that notes its calls."""
    (tmp_path / "results").mkdir()
    script = shutil.copy(RESULTS_DIR / "reproduce.sh", tmp_path / "results")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> calls\n')
    python.chmod(0o755)
    subprocess.run(["bash", script, "notes", "best", "best-v1"], check=True)
    found = set()
    for call in (tmp_path / "calls").read_text().splitlines():
        name, *words = call.split()
        config = CONFIGS[name.removeprefix("train_").removesuffix(".py")].parse("", words)
        teachers = [published(path) for path in getattr(config, "teacher", [])]
        if teachers:
            arch = teachers[0].parent.name.removeprefix("teacher-")
            name = config.name(arch if len(teachers) == 1 else "ensemble")
        else:
            name = f"teacher-{config.arch}" if hasattr(config, "arch") else "baseline"
        folder = published(config.folder(name))
        if folder.exists():  # else it is still to run
            found.add(folder)
            recorded = json.loads((folder / "config.json").read_text())
            known = {key: recorded.get(key) for key in asdict(config)}
            assert differing(asdict(config), known, NOT_COMPARED) == [], folder
            summaries = [json.loads((t / "summary.json").read_text()) for t in teachers]
            digests = "+".join(each["weights_sha256"] for each in summaries)
            assert recorded.get("teacher_sha256", "") == digests, folder
    assert found == {path.parent for path in RESULTS_DIR.glob("*/*/*/config.json")}


def test_what_the_readme_says_by_hand_is_what_the_runs_say(monkeypatch):
    readme = " ".join((ROOT / "README.md").read_text().split())
    comparison = compare.Comparison(records.read_all(RESULTS_DIR)[0])
    notes, best = comparison.main_experiments()
    half = [(gain.high - gain.low) / 2 for gain in map(claims.gain, (notes, best))]
    words = "±{:.2f} and ±{:.2f} (five seeds of `notes` and of `best`)"
    assert words.format(*half) in readme
    of_notes, of_best = (
        [100 * (student.right.mean() - base.right.mean()) for base, student in trio.pairs()]
        for trio in (notes, best)
    )
    welch = scipy.stats.ttest_ind(of_notes, of_best, equal_var=False)
    interval = welch.confidence_interval()
    words = "smaller by {:.2f} points (95 % interval {:.2f} to {:.2f}, Welch's), and whether any is"
    assert words.format(np.mean(of_notes) - np.mean(of_best), *interval) in readme
    assert claims.gain(best).low < 0 < claims.gain(best).high and len(of_best) == 5
    words = "gains lie from {:+.2f} to {:+.2f}, under `notes` from {:+.2f} to {:+.2f}."
    assert words.format(*(f(each) for each in (of_best, of_notes) for f in (min, max))) in readme
    earlier = (0.79, 1.49, 0.56, 0.74, 0.24)  # of notes-v1, in the history
    deviation = np.sqrt((np.var(of_notes, ddof=1) + np.var(earlier, ddof=1)) / 2)
    reach = scipy.stats.t.ppf(0.975, 8) * deviation / np.sqrt(5)
    words = (
        "from {:+.2f} to {:+.2f}, and with the deviation pooled over both groups (8 degrees of "
        "freedom) the interval of `notes` would be ±{:.2f}"
    )
    assert words.format(min(earlier), max(earlier), reach) in readme
    (alone, teacher), (alone_best, teacher_best) = (
        [100 * np.mean([run.right.mean() for run in runs]) for runs in (t.baselines, t.teachers)]
        for t in (notes, best)
    )
    assert len(notes.teachers) == len(best.teachers) == 5
    words = (
        f"alone gains {alone_best - alone:.1f} points and the ResNet {teacher_best - teacher:.1f}: "
        f"{teacher_best - alone_best:.1f} points are left between them, for "
        f"{teacher - alone:.1f} under `notes`"
    )
    assert words in readme

    words = "at 92 % of the held-out images {:.0f} epochs before the baseline under `notes`, at 94 "
    words += "% {:.0f} epochs before it under `best`"
    saved = [
        fake.beside(claims.faster(trio)[0], f"at {level} %, which all runs reach,")
        for trio, level in ((notes, 92), (best, 94))
    ]
    assert words.format(*saved) in readme
    worse = fake.beside(claims.better(best)[0], "at the last epoch")
    assert f"training images worse at the last epoch, by {-worse:.1f} points" in readme
    name = "in the last third of the epochs"
    late = [fake.beside(claims.oscillates(each)[0], name) for each in (notes, best)]
    assert late[1] < 0 and abs(late[0] - claims.oscillates(notes)[0].estimate.value) < 0.1
    for trio in (notes, best):
        assert claims.faster(trio)[1].estimate.low > 0, "the student is ahead early on"
        unstable, steady = claims.steadier(trio)
        others = map(float, re.findall(r"p by itself ([\d.]+)", unstable.aside))
        assert max(steady.estimate.p, unstable.estimate.p) < 0.05 < min(others), "of C2"
    figures = {row.name: row for row in comparison.table.query("recipe == 'notes'").itertuples()}
    published = {"teacher-resnet": 95.59, "baseline": 92.50, "student-resnet": 93.09}  # on train
    fits = {name: figures[name].train_accuracy - value for name, value in published.items()}
    assert f"the teacher's is {-fits.pop('teacher-resnet'):.1f} points below" in readme
    assert max(map(abs, fits.values())) < 1, "the others' within a point"
    for name in published:
        assert abs(figures[name].test_best_epoch - claims.NOTES[name][0]) < 0.3

    first = comparison.trio("best-v1", "student-resnet", 2)
    words = (RESULTS_DIR / "README.md").read_text().split()
    monkeypatch.setattr(stats, "LEVEL", 1 - 0.0294)  # Pocock's, of two looks: 0.05 in all
    gain = claims.gain(first)
    assert f"five seeds is {gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]" in " ".join(words)


def test_the_published_runs_stay_below_20_megabytes():
    files = (path for path in RESULTS_DIR.rglob("*.*") if path.suffix != ".pyc")
    assert sum(path.stat().st_size for path in files) < 20e6


def test_what_the_readme_says_by_hand_of_controls_is_what_the_runs_say():
    readme = " ".join((ROOT / "README.md").read_text().split())
    comparison = compare.Comparison(records.read_all(RESULTS_DIR)[0])
    for trio in (
        comparison.trio("best-v1", "baseline-smoothed"),
        comparison.against_kd("best-v1", "baseline-smoothed"),
    ):
        low, high = claims.gain(trio)[1:3]
        assert len(trio.students) == 5 and low < 0 < high
    assert max(-low, high) < 0.205, "as good as plain distillation, to 0.2 points"
    first, *others = (
        100 * (student.right.mean() - base.right.mean())
        for base, student in comparison.trio("best-v1", "student-resnet-dist").pairs()
    )
    of_others = stats.over_seeds(others)
    words = "best by its first seed ({:+.2f}); the next four, with {:+.2f} [{:+.2f}, {:+.2f}]"
    assert words.format(first, *of_others[:3]) in readme
    best = comparison.of("best-v1")
    (longer,) = best["baseline-100-epochs"]
    students = [run for runs in best.values() for run in runs if run.role == "student"]
    accuracy = max(run.right.mean() for run in students if run.seed == longer.seed)
    assert longer.right.mean() > accuracy
    lead = claims.gain(comparison.against_kd("best-v1", longer.name))
    assert lead.low < 0 < lead.high
    times = [
        student.log["seconds"].sum() / base.log["seconds"].sum()
        for student, base in zip(best["student-resnet"], best["baseline"], strict=True)
    ]
    assert f"a student takes, on these CPUs, {min(times):.1f} to {max(times):.1f} times" in readme


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
    (folder / "best.pt").write_bytes(b"weights")
    if change:
        change_logits(folder, change)
    target = publish.publish(folder, tmp_path / "results", weights=True)
    before, after = records.read(folder), records.read(target)
    assert target == tmp_path / "results" / "notes" / "baseline" / "seed-3"
    assert (target / "best.pt").read_bytes() == b"weights"
    assert after.config == before.config | {"data_dir": None}
    assert after.log.equals(before.log) and after.weights_sha256 == before.weights_sha256
    assert (after.predicted == before.predicted).all()
    assert (after.val_logits.argmax(1) == before.val_logits.argmax(1)).all()
    for was, now, allowed in (
        (before.logits, after.logits, bound), (before.val_logits, after.val_logits, 2 * bound),
    ):  # fmt: skip
        was = was - was.min(1, keepdims=True)  # which changes no probability
        np.testing.assert_allclose(now, was, rtol=0, atol=allowed)
    sizes = [(each / "predictions.npz").stat().st_size for each in (folder, target)]
    assert sizes[1] < 0.5 * sizes[0]


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

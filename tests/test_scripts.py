"""The four scripts as a user calls them, one after the other, on the tiny data set."""

import functools
import json
import math
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

import common.config
import common.data
import common.loss
import common.models
import train_baseline
import train_student
import train_teacher
from common.batches import Dataset, Views
from common.config import LOG_COLUMNS, RECIPES, RESULTS_DIR
from common.errors import UserError
from common.loss import SOFT_LOSSES
from common.models import NETWORKS, Normalize, build
from common.run import load, read_teacher
from common.train import duration
from conftest import PAGES, ROOT, only_line, pages, run_script

SCRIPTS = ("train_teacher.py", "train_baseline.py", "train_student.py", "analyze.py")
QUICK = ("--epochs", 3, "--batch-size", 32, "--precision", "float32", "--lr", 0.02)
FILES = {"config.json", "log.csv", "last.pt", "previous.pt", "best.pt", "predictions.npz",
         "summary.json"}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, server):
    """Teacher, baseline and student of seed 3, trained by the scripts from another folder."""
    folder = tmp_path_factory.mktemp("runs of a user") / "notes"  # with spaces in its path
    folder.mkdir()
    printed = {}
    for script, name, extra in (
        ("train_teacher.py", "teacher-resnet", ()),
        ("train_baseline.py", "baseline", ()),
        ("train_student.py", "student-resnet", ("--teacher", "teacher-resnet/seed-3")),
    ):
        words = (*QUICK, "--seed", 3, "--out", f"{name}/seed-3", *extra)
        done = server.run(script, *words, faults=[["change_folder", str(folder)]])
        assert done.code == 0 and done.err == "", done.err
        printed[name] = done.out
    return folder, printed


def test_files_columns_and_rows(runs):
    folder, _ = runs
    for name in ("teacher-resnet", "baseline", "student-resnet"):
        run = folder / name / "seed-3"
        kept = {path.name for path in run.iterdir() if not path.name.startswith(".")}
        assert {file for file in kept if not file.startswith("logits-")} == FILES
        log = pd.read_csv(run / "log.csv")
        assert tuple(log.columns) == LOG_COLUMNS and log["epoch"].tolist() == [1, 2, 3]
        others = log.drop(columns="train_soft_loss")
        assert np.isfinite(others.to_numpy()).all()
        assert log["train_soft_loss"].notna().all() == (name == "student-resnet")
        assert log["train_soft_loss"].isna().all() == (name != "student-resnet")
        for column in ("train_accuracy", "val_accuracy", "test_accuracy"):
            assert log[column].between(0, 100).all()


def test_the_loss_is_the_weighted_sum_of_its_parts(runs):
    folder, _ = runs
    config = json.loads((folder / "student-resnet/seed-3/config.json").read_text())
    log = pd.read_csv(folder / "student-resnet/seed-3/log.csv")
    alpha = config["alpha"]
    expected = (1 - alpha) * log["train_hard_loss"] + alpha * log["train_soft_loss"]
    np.testing.assert_allclose(log["train_loss"], expected, rtol=1e-5)
    base = pd.read_csv(folder / "baseline/seed-3/log.csv")
    np.testing.assert_allclose(base["train_loss"], base["train_hard_loss"])


def test_summary_log_and_predictions_agree(runs):
    folder, _ = runs
    for name in ("teacher-resnet", "baseline", "student-resnet"):
        run = folder / name / "seed-3"
        log = pd.read_csv(run / "log.csv").set_index("epoch")
        summary = json.loads((run / "summary.json").read_text())
        best = log["val_accuracy"].idxmax()
        assert summary["best_epoch"] == best  # the first of equal ones, on held-out images
        assert summary["test_accuracy_selected"] == log["test_accuracy"][best]
        assert summary["test_accuracy_last"] == log["test_accuracy"].iloc[-1]
        assert summary["test_accuracy_best_epoch"] == log["test_accuracy"].max()
        with np.load(run / "predictions.npz", allow_pickle=False) as file:
            for key, epoch in (("logits_best", best), ("logits_last", 3)):
                assert file[key].shape == (60, 10) and file[key].dtype == np.float32
                found = 100 * (file[key].argmax(1) == file["labels"]).mean()
                assert abs(found - log["test_accuracy"][epoch]) < 1e-4
            assert file["val_logits_best"].shape == (20, 10)
            found = 100 * (file["val_logits_best"].argmax(1) == file["val_labels"]).mean()
            assert abs(found - log["val_accuracy"][best]) < 1e-4


def test_best_weights_give_the_stored_predictions(runs, tiny_data):
    folder, _ = runs
    for name, arch in (("teacher-resnet", "resnet"), ("student-resnet", "small-cnn")):
        run = folder / name / "seed-3"
        content = load(run / "best.pt")
        network = build(arch).eval()
        network.load_state_dict(content["weights"])
        data = common.data.load(tiny_data)
        held_out = data.train_images[common.data.split(data.train_labels)[1]]
        with torch.no_grad(), np.load(run / "predictions.npz") as file:
            for images, key in ((data.test_images, "logits_best"), (held_out, "val_logits_best")):
                logits = network(torch.tensor(images)[:, None])
                np.testing.assert_allclose(logits, file[key], rtol=1e-3, atol=1e-4)


# None of them a default, so that one that is dropped on the way from the command line is seen.
UNUSUAL = {
    "epochs": 2, "batch-size": 32, "lr": 0.03, "schedule": "cosine", "warmup": 0.25,
    "momentum": 0.8, "weight-decay": 0.01, "label-smoothing": 0.2, "padding": 1, "cutout": 6,
    "seed": 6, "device": "cpu", "precision": "float32",
}  # fmt: skip


def smooth_network():
    """Without ReLU and pooling: a last bit decides nothing that all after it would hang on."""
    return nn.Sequential(
        Normalize(), nn.Flatten(), nn.Linear(784, 16), nn.Tanh(), nn.Linear(16, 10)
    )


@pytest.mark.parametrize(
    ("script", "loss"),
    [(train_teacher, None), (train_baseline, None), (train_student, "kd"), (train_student, "dist")],
)
def test_a_script_trains_as_a_plain_loop_with_its_settings(
    runs, tiny_data, tmp_path, monkeypatch, script, loss
):
    """The last weights, and what the last row says of them."""
    monkeypatch.setitem(NETWORKS, "smooth", smooth_network)
    teacher = runs[0] / "teacher-resnet" / "seed-3"
    flags = [word for key, value in UNUSUAL.items() for word in (f"--{key}", value)]
    flags += ["--arch", "smooth", "--no-flip", "--out", tmp_path, "--data-dir", tiny_data]
    if loss:
        flags += ["--teacher", teacher, "--loss", loss, "--temperature", 3, "--alpha", 0.3]
        flags += ["--soft-weight", 2]
    script.main([str(flag) for flag in flags])

    arrays = common.data.load(tiny_data)
    data = Dataset(arrays, Views(padding=1, flip=False, cutout=6), "cpu")
    resnet = build("resnet").eval()
    resnet.load_state_dict(load(teacher / "best.pt")["weights"])
    torch.manual_seed(6)
    network = smooth_network()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1, momentum=0.8, nesterov=True, weight_decay=0.01
    )
    images_seen, sums = 0, np.zeros(3)  # of the last epoch
    for step in range(16):
        epoch, place = 1 + step // 8, slice(step % 8 * 32, (step % 8 + 1) * 32)
        rate = 0.015 * (1 + math.cos(math.pi * (step - 4) / 12)) if step > 4 else 0.03
        optimizer.param_groups[0]["lr"] = min(rate, 0.03 * (step + 1) / 4)  # 4 steps of warm-up
        batch = data.batch(*(part[place] for part in data.epoch(6, epoch)))
        logits = network(batch.images)
        hard = value = functional.cross_entropy(logits, batch.labels, label_smoothing=0.2)
        if loss:
            with torch.no_grad():
                answers = resnet(batch.images)
            soft = SOFT_LOSSES[loss](logits, answers, batch.labels, 3.0)
            value = 0.7 * hard + 0.3 * 2 * soft
        if epoch == 2:
            right = 100 * (logits.argmax(1) == batch.labels).float().mean()
            sums += len(batch.labels) * np.array([part.item() for part in (value, hard, right)])
            images_seen += len(batch.labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    trained = load(tmp_path / "last.pt")["network"]
    for key, weights in network.state_dict().items():
        torch.testing.assert_close(trained[key], weights, rtol=1e-4, atol=1e-5)

    row = pd.read_csv(tmp_path / "log.csv").iloc[-1]
    assert row["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])
    logged = row[["train_loss", "train_hard_loss", "train_accuracy"]].to_list()
    assert images_seen == len(data) and logged == pytest.approx(sums / len(data), rel=1e-4)
    assert row["images_per_second"] > len(data) / row["seconds"]  # without the evaluation
    _, held_out = common.data.split(arrays.train_labels)
    with np.load(tmp_path / "predictions.npz") as file:
        predictions = dict(file)
    for part, images, labels, stored in (
        ("val", arrays.train_images[held_out], arrays.train_labels[held_out], "val_labels"),
        ("test", arrays.test_images, arrays.test_labels, "labels"),
    ):
        assert (predictions[stored] == labels).all()
        with torch.no_grad():
            logits = network(torch.from_numpy(images.copy())[:, None])
        found = functional.cross_entropy(logits, torch.from_numpy(labels.astype(int)))
        assert row[f"{part}_loss"] == pytest.approx(found.item(), rel=1e-4)
    np.testing.assert_allclose(predictions["logits_last"], logits, rtol=1e-4, atol=1e-4)


def test_config_records_what_made_the_run(runs, tiny):
    folder, _ = runs
    config = json.loads((folder / "student-resnet/seed-3/config.json").read_text())
    teacher = load(folder / "teacher-resnet/seed-3/best.pt")
    assert teacher["role"] == "teacher" and teacher["arch"] == "resnet"
    expected = {"role": "student", "arch": "small-cnn", "parameters": 175_018, "seed": 3,
                "lr": 0.02, "device": "cpu", "precision": "float32", "threads": 1}  # fmt: skip
    assert expected.items() <= config.items()
    summary = json.loads((folder / "teacher-resnet/seed-3/summary.json").read_text())
    assert config["teacher_sha256"] == summary["weights_sha256"]
    assert config["versions"]["torch"] == torch.__version__ and len(config["data_sha256"]) == 64


def test_what_is_printed(runs):
    folder, printed = runs
    for name, text in printed.items():
        lines = text.splitlines()
        assert all(len(line) <= 80 for line in lines if "/3 " in line or "/" not in line)
        start = "\n".join(lines[:4])
        assert f"{name}:" in start and "parameters" in start and "multiply-adds" in start
        assert "cpu (" in start and "float32" in start and "\nno GPU: " in text
        for epoch in (1, 2, 3):
            (line,) = (line for line in lines if line.startswith(f"  {epoch}/3 "))
            taught = name.startswith("student")
            loss = r"hard \d+\.\d{3} soft \d+\.\d{3}" if taught else r"loss \d+\.\d{3}"
            shares = r"train \d+\.\d\d held-out \d+\.\d\d test \d+\.\d\d %"
            assert re.fullmatch(rf"  {epoch}/3 {loss}, {shares}, \d+\.\d s", line)
        log = pd.read_csv(folder / name / "seed-3" / "log.csv")
        to_go = f"at this pace {duration(2 * log['seconds'][0])} to go"
        assert lines[lines.index(to_go) - 1].startswith("  1/3 ") and text.count("to go") == 1
        end = "\n".join(lines[-3:])
        assert "chosen on held-out images" in end and "at the last epoch" in end
        assert "chosen on the test images themselves" in end
    assert printed["student-resnet"].startswith("teacher: ")


def test_analyze_reports_the_three(runs, tmp_path):
    folder, _ = runs
    done = run_script("analyze.py", "--runs", folder.parent, "--out", tmp_path / "report")
    table = pd.read_csv(tmp_path / "report" / "results.csv")
    assert table["name"].tolist() == ["teacher-resnet", "baseline", "student-resnet"]
    assert table["parameters"].tolist() == [1_351_882, 175_018, 175_018]
    student = table.set_index("name").loc["student-resnet"]
    assert student[["delta", "delta_low", "delta_high", "kl_to_teacher"]].notna().all()
    for file in ("claims.csv", "report.html", "report.md", "figures/curves-notes.png",
                 "figures/class-errors-notes-2.svg"):  # fmt: skip
        assert (tmp_path / "report" / file).stat().st_size > 100
    assert "report.html" in done.stdout and done.stderr == ""


def test_another_loss_is_a_network_of_another_name(runs, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common.config.Config.folder, "__defaults__", (tmp_path,))
    words = ("--epochs", 1, "--loss", "dkd", "--precision", "float32", "--data-dir", tiny_data,
             "--teacher", runs[0] / "teacher-resnet" / "seed-3")  # fmt: skip
    train_student.main([str(word) for word in words])
    assert (tmp_path / "notes" / "student-resnet-dkd" / "seed-0" / "summary.json").exists()
    assert "to go" not in capsys.readouterr().out  # after the last epoch


@pytest.mark.parametrize(
    ("mine", "error", "words"),
    [
        (lambda ours, theirs, *_: (ours - theirs).sum(1), UserError, "of shape (125,)"),
        (
            lambda ours, theirs: (ours - theirs).mean(),
            UserError,
            "is not a function of (student_logits, teacher_logits, labels, temperature): too many",
        ),
        ("mine", UserError, "is not a function of (student_logits, teacher_logits, labels, temp"),
        (lambda ours, *_: (ours - 1e9).log().mean(), UserError, "made-up logits, or its gradient"),
        (
            lambda ours, *_: (ours.square() * ours.add_(1)).mean(),
            UserError,
            "labels in place; what",
        ),
        (lambda ours, theirs, *_: (ours @ theirs).mean(), RuntimeError, "cannot be multiplied"),
    ],
)
def test_a_loss_that_does_not_work_fails_before_the_teacher_is_asked(
    runs, tiny_data, tmp_path, monkeypatch, mine, error, words
):
    teacher = shutil.copy(runs[0] / "teacher-resnet" / "seed-3" / "best.pt", tmp_path)
    monkeypatch.setitem(SOFT_LOSSES, "mine", mine)
    flags = ("--loss", "mine", "--teacher", teacher, "--data-dir", str(tiny_data))
    with pytest.raises(error, match=re.escape(words)):
        train_student.main([*flags, "--out", str(tmp_path / "run")])
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]  # no answers, no run


def test_several_teachers_are_an_ensemble(runs, tmp_path, server):
    """Twice the same one teaches as that one alone, to the last bit."""
    folder, _ = runs
    one, out = folder / "teacher-resnet" / "seed-3", tmp_path / "seed-3"
    words = ("train_student.py", *QUICK, "--seed", 3, "--out", out, "--teacher", one)
    done = server.run(*words, one / "best.pt")
    assert done.code == 0, done.err
    assert "already complete" in server.run(*words, "--teacher", one, "--resume").out
    alone = server.run(*words, "--resume")
    assert alone.code == 2 and "teacher_sha256: " in only_line(alone)
    config = json.loads((out / "config.json").read_text())
    digest = json.loads((one / "summary.json").read_text())["weights_sha256"]
    assert config["name"] == "student-ensemble"
    assert config["teacher"] == [str(one / "best.pt")] * 2
    assert config["teacher_sha256"] == f"{digest}+{digest}"
    columns = ["epoch", "train_loss", "train_soft_loss", "val_loss", "test_loss"]
    logs = [pd.read_csv(run / "log.csv") for run in (out, folder / "student-resnet" / "seed-3")]
    pd.testing.assert_frame_equal(*(log[columns] for log in logs), check_exact=True)


def test_the_readmes_lines_load_a_student(runs, tiny_data, monkeypatch):
    """The very lines but for whose best.pt and which data set: a student, its ten logits."""
    text = pages()
    section = text[text.index("## Using the trained student elsewhere") :]
    lines = section.split("```python\n")[1].split("```")[0]
    (published,) = re.findall(r"results/\S*best\.pt", lines)
    assert (ROOT / published).exists()
    folder, _ = runs
    monkeypatch.chdir(folder / "student-resnet" / "seed-3")
    monkeypatch.setattr("common.data.load", functools.partial(common.data.load, tiny_data))
    names = {}
    exec(lines.replace(published, "best.pt"), names)
    with np.load("predictions.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(
            names["logits"].detach(), file["logits_best"], rtol=1e-3, atol=1e-4
        )


def test_the_readmes_softened_outputs_are_the_published_teachers():
    """By its weights: the logits in predictions.npz are rounded for softmax at temperature 1."""
    readme = pages()
    data = common.data.load()
    shirts = torch.tensor(data.test_images[data.test_labels == 0]).unsqueeze(1)
    published = RESULTS_DIR / "notes" / "teacher-resnet" / "seed-0" / "best.pt"
    network = read_teacher(published).network.eval()
    with torch.no_grad():
        logits = torch.cat([network(chunk) for chunk in shirts.split(250)])
    classes = [common.data.CLASSES.index(c) for c in ("T-shirt/top", "Shirt", "Pullover")] + [9]
    for temperature in (1, 2, 4, 8):
        row = re.search(rf"^\| {temperature} \|(( [\d.]+ % \|){{4}})$", readme, re.M)[1]
        told = [float(value) for value in re.findall(r"[\d.]+", row)]
        found = 100 * (logits / temperature).softmax(1).mean(0)[classes]
        # 86.85 and 25.45 may be rounded either way.
        assert told == pytest.approx(found.tolist(), abs=0.06)
    words = "half of the test T-shirts are T-shirts to it with more than 99 %"
    assert logits.softmax(1)[:, 0].median() > 0.99 and words in " ".join(readme.split())


def test_the_pages_lead_to_what_is_there():
    for page in (*PAGES, ROOT / "benchmarks" / "README.md", RESULTS_DIR / "NOTES.md"):
        for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]+)?)\)", page.read_text()):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), (page.name, target)
            if anchor:  # as GitHub makes them of headings
                headings = re.findall(r"^#+ (.*)$", there.read_text().lower(), re.M)
                known = [re.sub(r"[^\w -]", "", each).replace(" ", "-") for each in headings]
                assert anchor in known, (page.name, target)


def test_the_readmes_table_of_settings_is_the_recipes():
    teacher, small, best = *RECIPES["notes"].values(), RECIPES["best"]["small-cnn"]
    assert best.items() >= RECIPES["best"]["teacher"].items()
    assert [each["schedule"] for each in (teacher, small, best)] == ["step", "constant", "cosine"]
    steps = f"{teacher['lr']}, times {teacher['drop']} after 60 % of the steps"
    warmup = f"up to {best['lr']} in {100 * best['warmup']:.0f} % of the steps, then cosine to 0"
    sizes = (f"{each['padding']}, {each['cutout'] or 'none'}" for each in (teacher, small, best))
    soft = (f"{each['temperature']:.0f}, {each['alpha']}" for each in (small, best))
    for row in (
        f"| learning rate | {steps} | {small['lr']}, constant | {warmup} |",
        f"| shifts by up to, side of the cutout, in pixels | {' | '.join(sizes)} |",
        f"| temperature, alpha | – | {' | '.join(soft)} |",
    ):
        assert f"\n{row}\n" in pages()
    for each in (teacher, small, best):
        words = (
            f"{each['epochs']} epochs, batches of {each['batch_size']}, SGD with Nesterov momentum "
            f"{each['momentum']}, weight decay {each['weight_decay']} and mirror images"
        )
        assert words in " ".join(pages().split()) and each["flip"]
        assert not each["label_smoothing"]


def test_the_tests_that_the_readme_names_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", pages())
    assert len(named) >= 10
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), name


def test_the_readmes_loss_and_network_work():
    readme = pages()
    loss, network = (
        next(code for code in re.findall(r"```python\n(.*?)```", readme, re.S) if word in code)
        for word in ("def mine(", "def tiny(")
    )
    names = vars(common.loss) | vars(common.models)
    exec(loss + network, names)
    ours, others = torch.randn(2, 8, 10)
    assert names["mine"](ours, ours, None, 4) == 0 < names["mine"](ours, others, None, 4)
    small, tiny = common.models.build("small-cnn"), names["tiny"]()
    assert 0 < common.models.count_multiply_adds(tiny) < common.models.count_multiply_adds(small)


def test_the_readmes_teacher_of_another_program_teaches(runs, tiny_data, tmp_path, monkeypatch):
    """The very line, and the network that the page enters."""
    readme = pages()
    code = re.findall(r"```python\n(.*?)```", readme, re.S)
    names = vars(common.models) | {"torch": torch}
    exec(next(each for each in code if "def tiny(" in each), names)
    names["network"] = names["tiny"]()
    monkeypatch.setitem(common.models.NETWORKS, "tiny", names["tiny"])
    monkeypatch.chdir(tmp_path)
    exec(next(each for each in code if '"role": "teacher"' in each), names)
    flags = [*map(str, QUICK), "--seed", "3", "--data-dir", str(tiny_data), "--teacher", "best.pt"]
    train_student.main([*flags, "--out", "runs/notes/student-tiny/seed-3"])
    shutil.copytree(runs[0] / "baseline", "runs/notes/baseline")
    config = json.loads(Path("runs/notes/student-tiny/seed-3/config.json").read_text())
    assert config["name"] == "student-tiny"
    nine = nn.Sequential(Normalize(), nn.Flatten(), nn.Linear(784, 9))
    monkeypatch.setitem(common.models.NETWORKS, "tiny", lambda: nine)
    names["network"] = nine
    exec(next(each for each in code if '"role": "teacher"' in each), names)
    with pytest.raises(UserError, match=r"best.pt as the teacher; of one image it makes \(1, 9\)"):
        train_student.main([*flags, "--out", "nine"])
    bare = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    monkeypatch.setitem(common.models.NETWORKS, "tiny", lambda: bare)
    names["network"] = bare
    exec(next(each for each in code if '"role": "teacher"' in each), names)
    with pytest.raises(UserError, match=r"best.pt as the teacher; .* begin with Normalize\(\) of"):
        train_student.main([*flags, "--out", "nine"])
    assert not Path("nine").exists()
    done = run_script("analyze.py", "--runs", "runs", "--out", "report", check=1)
    words = f"has a teacher that is not among these runs ({Path('best.pt').resolve()}): what needs"
    assert f"student-tiny/seed-3 {words} its answers is left out" in done.stderr
    assert "| student-tiny | 1 |" in Path("report/report.md").read_text()


def test_the_readmes_method_on_features_trains(tiny, tmp_path):
    readme = pages()
    code = next(c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if "with_hint" in c)
    field = re.search(r"`(hint_weight: .*)`\. Train", readme)[1]
    shutil.copytree(ROOT / "common", tmp_path / "common")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    for path, place, added in (
        (tmp_path / "common" / "config.py", "    temperature: float = setting", f"    {field}\n"),
        (tmp_path / "train_student.py", "    name = config.name", textwrap.indent(code, "    ")),
    ):
        text = (ROOT / path.relative_to(tmp_path)).read_text()
        assert text.count(place) == 1
        text = text.replace(place, added + place)
        path.write_text(text.replace("fit(student, loss, ", "fit(student, objective, "))
    # A copy: beside it its logits are kept.
    published = RESULTS_DIR / "notes" / "teacher-resnet" / "seed-0" / "best.pt"
    teacher = shutil.copy(published, tmp_path)

    runs = []
    for weight in (0, 1):
        out = tmp_path / f"weight-{weight}"
        child = [sys.executable, tmp_path / "tests" / "child.py", tiny]
        words = ["--hint-weight", weight, "--teacher", teacher, "--data-dir", tiny, "--out", out]
        command = [*child, tmp_path / "train_student.py", *QUICK, *words]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        runs.append(load(out / "last.pt"))
    plain, hinted = runs
    assert hinted["config"]["hint_weight"] == 1
    assert hinted["rows"][0]["train_loss"] > plain["rows"][0]["train_loss"]
    assert "regressor" not in plain["network"]
    torch.manual_seed(hinted["config"]["seed"])
    build(hinted["config"]["arch"])
    drawn = torch.randn(56, 64, 1, 1) / 8
    alike = torch.cosine_similarity(hinted["network"]["regressor"].flatten(), drawn.flatten(), 0)
    assert 0.9 < alike < 0.9999  # it is trained: weight decay alone would leave its direction


def test_the_readmes_annealed_temperature_is_one_after_the_last_step(
    tiny_data, tmp_path, monkeypatch
):
    readme = pages()
    code = next(c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if "all_steps" in c)
    script = (ROOT / "train_student.py").read_text()
    place = "    name = config.name"
    script = script.replace(place, textwrap.indent(code, "    ") + place)
    script = script.replace("fit(student, loss, ", "fit(student, objective, ")
    seen = []

    def spy(student_logits, teacher_logits, labels, temperature):
        seen.append(float(temperature))
        return common.loss.kd(student_logits, teacher_logits, labels, temperature)

    monkeypatch.setitem(common.loss.SOFT_LOSSES, "spy", spy)
    names = {"__name__": "annealed"}
    exec(script, names)
    published = RESULTS_DIR / "notes" / "teacher-resnet" / "seed-0" / "best.pt"
    words = ["--teacher", shutil.copy(published, tmp_path), "--loss", "spy", "--temperature", 4]
    words += ["--device", "cpu", "--data-dir", tiny_data, "--out", tmp_path / "run"]
    names["main"]([*map(str, [*QUICK, *words])])
    steps = int(load(tmp_path / "run" / "last.pt")["network"]["steps"])
    tried, annealed = seen[:-steps], seen[-steps:]  # the first are of the trial before
    assert set(tried) == {4} and steps > 2
    expected = 4 ** (1 - np.arange(1, len(annealed) + 1) / len(annealed))
    np.testing.assert_allclose(annealed, expected, rtol=1e-5)

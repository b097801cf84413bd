"""`reproduce.py` whole, in a copy of the project whose pinned data set is the tiny one."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import reproduce
from common.errors import Interrupted, UserError
from conftest import ROOT, quick_config


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("a copy") / "of the project"  # with spaces in its path
    shutil.copytree(ROOT / "common", folder / "common")
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    shutil.copytree(tiny, folder / "data")
    with open(folder / "common" / "data.py", "r+") as file:
        text = file.read().replace(
            "HELD_OUT_SHARE = 12",
            f"DIGESTS = {(tiny / 'digests.json').read_text()}\nHELD_OUT_SHARE = 12",
        )
        file.seek(0)
        file.write(text)
    return folder


def start(project, *flags):
    return subprocess.Popen(
        [sys.executable, str(project / "reproduce.py"), "--teachers", "resnet", *flags],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip


def test_stopped_and_started_again_it_trains_everything_once_and_reports(project):
    flags = ("--epochs", "2", "--jobs", "2", "--seeds", "0", "0")  # once is enough
    process = start(project, *flags)
    runs = project / "runs-2-epochs"  # where no run of all epochs is looked for
    baseline = runs / "notes" / "baseline" / "seed-0"
    deadline = time.monotonic() + 120
    while not (baseline / "log.csv").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143 and "Traceback" not in err, out + err
    assert err.endswith("all networks: give the same command again\n")
    assert "3 networks, recipe notes, 2 epochs each" in out and "in all" in out

    given_up = runs / "notes" / "given-up" / "seed-0"  # that nobody asks for now
    shutil.copytree(baseline, given_up)
    (given_up / "summary.json").unlink(missing_ok=True)  # on a busy machine it may be finished
    process = start(project, *flags)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "given-up/seed-0 is unfinished" in err and "error" not in err
    for name in ("teacher-resnet", "baseline", "student-resnet"):
        folder = runs / "notes" / name / "seed-0"
        assert pd.read_csv(folder / "log.csv")["epoch"].tolist() == [1, 2]
        assert (folder / "summary.json").exists()
        config = json.loads((folder / "config.json").read_text())
        assert config["threads"] == 1  # two threads, shared by two jobs

    table = pd.read_csv(runs / "report" / "results.csv")
    assert not (project / "report").exists()  # that of whole runs
    assert table["name"].tolist() == ["teacher-resnet", "baseline", "student-resnet"]
    assert out.rstrip().endswith("report.html")


@pytest.fixture
def run_scripts(monkeypatch):
    """Run `reproduce.run_all` with shell commands in place of scripts; returns their processes.

    then: called once all are started.
    """

    def run(*commands, then=lambda: None):
        waiting = [["sh", "-c", command] for command in commands]

        def start(*_):
            children.append(subprocess.Popen(waiting.pop(0)))
            if not waiting:
                then()
            return children[-1]

        monkeypatch.setattr(reproduce, "start", start)
        jobs = [reproduce.Job(Path(), each, quick_config()) for each in commands]
        reproduce.run_all(jobs, [], len(jobs))

    children = run.children = []
    return run


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exec sleep 60", -signal.SIGTERM),  # as `docker run` without a terminal and `kill` send it
        ("exec sleep 0.3", 0),  # a terminal's Ctrl-C reached it too: it ends by itself
    ],
)
def test_a_signal_ends_the_scripts(run_scripts, command, code):
    with pytest.raises(Interrupted):
        run_scripts(command, then=lambda: os.kill(os.getpid(), signal.SIGINT))
    assert [child.returncode for child in run_scripts.children] == [code]


@pytest.mark.parametrize("pause", [0, 0.7])
def test_two_signals_end_the_scripts_too(pause):
    """At once, as of `make`, which passes on what has reached this process by itself; and later,
    as of a user who does not wait."""
    code = f"""if True:
        import os, signal, subprocess, time
        from pathlib import Path
        import reproduce
        from common.config import BaselineConfig
        from common.errors import script
        def wait(children, stop, _):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep({pause})
            os.kill(os.getpid(), signal.SIGTERM)
            stop.check()
        reproduce.start = lambda *_: subprocess.Popen(["sleep", "60"])
        reproduce.wait_for_one = wait
        job = reproduce.Job(Path(), "it", BaselineConfig())
        script(lambda: reproduce.run_all([job], [], 1))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=50)
    assert done.returncode == 143  # and it was over: what it started holds its output open


@pytest.mark.parametrize(
    ("command", "why", "code"),
    [
        ("exit 2", "its own message says why in its output file", 2),
        ("kill -9 $$", "signal 9 ended it", 1),
    ],
)
def test_a_script_that_fails_ends_the_others(run_scripts, command, why, code):
    message = re.escape(f"-c failed; {why}; the command was: ")
    with pytest.raises(UserError, match=message) as error:
        run_scripts("exec sleep 60", command)
    other, _ = run_scripts.children
    assert error.value.exit_code == code and other.returncode == -signal.SIGTERM


def test_what_fails_here_ends_the_scripts_too(run_scripts):
    def fail():
        raise BrokenPipeError  # of `| head`

    with pytest.raises(BrokenPipeError):
        run_scripts("exec sleep 60", "exec sleep 60", then=fail)
    assert run_scripts.children[0].returncode == -signal.SIGTERM
    with run_scripts.children[1] as never_got:
        never_got.kill()


def test_a_script_that_fails_when_another_has_just_ended_is_not_passed_over(run_scripts):
    def end_both():
        for child in run_scripts.children:
            child.wait()
        states = iter([None])  # at first the second is not seen to have ended
        run_scripts.children[1].poll = lambda: next(states, 3)

    with pytest.raises(UserError, match="-c failed"):
        run_scripts("exit 0", "exit 3", then=end_both)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path):
    (tmp_path / "runs").touch()  # no folder, whoever runs this
    with pytest.raises(UserError, match="cannot write to .*; make that folder writable"):
        reproduce.check_writable(tmp_path / "runs")
    (tmp_path / "one.log").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*one\.log; "):
        reproduce.start(["true"], tmp_path / "one.log", 1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--data-dir", ""), "argument --data-dir: '' is not a path"),
        (("--device", "gpu"), "argument --device: 'gpu' is none of"),
        (("--data-dir", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_run_leaves_no_folder_for_it(project, flags, words):
    process = start(project, "--epochs", "3", *flags)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and words in err and err.count("\n") == 1 and not out
    assert not (project / "runs-3-epochs").exists()


def test_the_plan_has_each_teacher_before_its_student():
    jobs = reproduce.plan(reproduce.RUNS_DIR, [], [0, 1], ["resnet", "cnn"])
    assert [job.name for job in jobs] == [
        "teacher-resnet", "teacher-cnn", "baseline", "student-resnet", "student-cnn"
    ] * 2  # fmt: skip
    for student in (3, 4, 8, 9):
        assert jobs[student].teacher is jobs[student - 3]  # its own seed's, of its own kind


@pytest.mark.parametrize("shared", [[], ["--epochs", "3", "--data-dir", "data"]])
def test_a_command_asks_its_script_for_what_was_planned(tmp_path, shared):
    for job in reproduce.plan(tmp_path / "runs", shared, [0, 7], ["resnet", "cnn"]):
        _, script, *words = job.command(shared)
        assert Path(script).name == f"train_{job.config.role}.py"
        folder = tmp_path / "runs" / "notes" / job.name / f"seed-{job.config.seed}"
        expected = replace(job.config, out=str(folder), resume=True)
        if job.config.role == "student":
            teacher = folder.parent.with_name(f"teacher-{job.name.removeprefix('student-')}")
            best = teacher / folder.name / "best.pt"
            expected = replace(expected, teacher=[str(best)])
        assert type(expected).parse("", words) == expected


class Child:
    """A script that takes so long."""

    def __init__(self, left):
        self.left = left

    def poll(self):
        return None if self.left else 0


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_so_many_are_trained_at_once_and_a_student_after_its_teacher(
    tmp_path, monkeypatch, at_once
):
    jobs = reproduce.plan(tmp_path, [], [0, 1], ["resnet", "cnn"])
    started, ended, most = {}, [], 0

    def start(command, output, threads):
        job = next(job for job in jobs if job.command([]) == command)
        assert job not in started.values() and (output == job.output) == (at_once > 1)
        assert output is None or at_once > 1
        assert job.teacher is None or job.teacher in ended
        child = Child(3 if job.config.role == "teacher" else 1)
        started[child] = job
        return child

    def wait(children, stop, where):
        nonlocal most
        most = max(most, len(children))
        for child in children:
            child.left -= 1
        over = [child for child in children if child.poll() == 0]
        ended.extend(started[child] for child in over)
        return over

    monkeypatch.setattr(reproduce, "start", start)
    monkeypatch.setattr(reproduce, "wait_for_one", wait)
    reproduce.run_all(jobs, [], at_once)
    assert most == at_once and len(ended) == len(started) == 10


class Timed:
    """A Trainer that takes 0.1 s an image to train, 0.01 s to answer, and 60 s to begin, as with
    each number of images to answer that is new to it."""

    now = 0.0

    def __init__(self, *_):
        Timed.now += 60
        self.met = set()

    def train_epoch(self, index, view, epoch, stop):
        assert len(index) == len(view)
        Timed.now += 0.1 * len(index)

    def evaluate(self, images, stop):
        Timed.now += 0.01 * len(images) + 60 * (len(images) not in self.met)
        self.met.add(len(images))
        return torch.zeros(len(images), 10)


def test_the_pace_is_that_of_whole_epochs_and_of_single_answers(dataset, device, monkeypatch):
    monkeypatch.setattr(reproduce, "Trainer", Timed)
    monkeypatch.setattr(reproduce, "time", SimpleNamespace(perf_counter=lambda: Timed.now))
    pace = reproduce.measure_pace("small-cnn", quick_config(batch_size=4), dataset, device)
    epoch = 240 * 0.1 + (20 + 60) * 0.01  # training, held-out and test images
    assert (pace.epoch, pace.answer) == pytest.approx((epoch, 0.01))


def test_the_plan_says_how_long_each_network_and_all_will_take(
    tiny_data, tmp_path, monkeypatch, capsys
):
    """3 epochs of 60 s and of 30 s; and the teacher's answers, a second each, to the views met."""
    paces = {"resnet": reproduce.Pace(60, 1), "small-cnn": reproduce.Pace(30, 0)}
    trained, reported = [], []
    monkeypatch.setattr(reproduce, "RUNS_DIR", tmp_path / "runs")
    monkeypatch.setattr(reproduce, "measure_pace", lambda network, *_: paces[network])
    monkeypatch.setattr(
        reproduce, "run_all", lambda jobs, shared, _: trained.extend([shared, *jobs])
    )
    monkeypatch.setattr("analyze.main", reported.extend)
    words = ["--teachers", "resnet", "--device", "cpu", "--data-dir", str(tiny_data)]

    def planned(*more):
        reproduce.main([*words, *more])
        return capsys.readouterr().out

    views = 18 * (1 - (17 / 18) ** 3)
    student = 3 * 30 + 240 * views
    text = planned("--epochs", "3")
    for name, seconds in (("teacher-resnet", 180), ("baseline", 90), ("student-resnet", student)):
        assert f"  {name} seed 0: about {seconds / 60:.0f} min\n" in text
    assert f"about {(180 + 90 + student) / 60:.0f} min in all" in text
    shared, *jobs = trained
    assert [job.name for job in jobs] == ["teacher-resnet", "baseline", "student-resnet"]
    assert shared == ["--recipe", "notes", "--device", "cpu", "--epochs", "3", *words[-2:]]
    runs = tmp_path / "runs-3-epochs"
    assert reported == ["--runs", str(runs), "--out", str(runs / "report")]

    baseline, begun = (runs / "notes" / name / "seed-0" for name in ("baseline", "student-resnet"))
    for folder in (baseline, begun):
        folder.mkdir(parents=True)
        (folder / "log.csv").write_text("epoch\n1\n")
    student = 2 * 30 + 240 * (views - 1)  # the teacher has answered to the first epoch's
    teacher = runs / "notes" / "teacher-resnet" / "seed-0"
    teacher.mkdir(parents=True)
    (teacher / "summary.json").touch()
    trained.clear()
    why = f"{teacher} is kept without its weights; student-resnet cannot be taught by it; move"
    with pytest.raises(UserError, match=re.escape(why)):
        planned("--epochs", "3")
    (teacher / "best.pt").touch()
    text = planned("--epochs", "3")
    assert "  baseline seed 0: about 60 s\n" in text
    assert "  teacher-resnet seed 0: done already\n" in text
    assert f"  student-resnet seed 0: about {student / 60:.0f} min\n" in text
    # Kept without its checkpoints it is left as it is; with them it is looked at for damage.
    assert [job.name for job in trained[1:]] == ["baseline", "student-resnet"]
    (teacher / "last.pt").touch()
    planned("--epochs", "3")
    assert [job.name for job in trained[4:]] == ["teacher-resnet", "baseline", "student-resnet"]
    assert f"about {(60 + student) / 60:.0f} min in all" in text
    for name in ("summary.json", "last.pt"):  # a student that is done, and its teacher as well
        (begun / name).touch()
    planned("--epochs", "3")
    assert [job.name for job in trained[8:]] == ["teacher-resnet", "baseline", "student-resnet"]
    (teacher / "best.pt").unlink()  # made again from the other
    planned("--epochs", "3")
    assert [job.name for job in trained[12:]] == ["teacher-resnet", "baseline", "student-resnet"]
    del trained[11:]
    (teacher / "last.pt").rename(teacher / "previous.pt")  # from which nothing is
    planned("--epochs", "3")  # as its script would end for want of the teacher
    assert [job.name for job in trained[12:]] == ["baseline"]

    reported.clear()
    planned()  # of all epochs: the report has its usual place
    assert reported == ["--runs", str(tmp_path / "runs")]
    trained.clear()
    (baseline / "config.json").write_text(json.dumps(asdict(jobs[1].config) | {"lr": 0.5}))
    with pytest.raises(UserError, match=r"with other settings; lr: 0\.5 -> 0\.08;"):
        planned("--epochs", "3")
    assert trained == []
    (tmp_path / "runs-4-epochs").touch()  # no folder
    monkeypatch.setattr(reproduce, "measure_pace", lambda *_: pytest.fail("it is told first"))
    with pytest.raises(UserError, match="cannot write to "):
        planned("--epochs", "4")


def test_another_run_in_its_folder_is_refused_before_any_training(tmp_path):
    """As of a student of the published teacher, and of a try with settings of one's own."""
    teacher, baseline, student = reproduce.plan(tmp_path, [], [0], ["resnet"])

    def write(job, **settings):
        job.folder.mkdir(parents=True, exist_ok=True)
        config = asdict(job.config) | {"device_name": "CPU", "precision": "bfloat16"} | settings
        (job.folder / "config.json").write_text(json.dumps(config))

    for job in (teacher, baseline, student):
        reproduce.refuse_another_run(job)  # nothing there
    write(baseline)
    reproduce.refuse_another_run(baseline)
    write(baseline, lr=0.5)
    words = r"baseline.*with other settings; lr: 0.5 -> 0.08; move .* away, or .*--overwrite"
    with pytest.raises(UserError, match=words):
        reproduce.refuse_another_run(baseline)
    write(student, teacher_sha256="1f", teacher="old")
    words = "teacher_sha256: 1f -> not trained yet, teacher: old -> .*; move that folder away$"
    with pytest.raises(UserError, match=words):
        reproduce.refuse_another_run(student)
    write(teacher)
    summary, best = (teacher.folder / name for name in ("summary.json", "best.pt"))
    summary.write_text('{"weights_sha256": "1f"}')
    best.write_bytes(b"weights")
    reproduce.refuse_another_run(student)
    write(student, teacher_sha256=hashlib.sha256(b"weights").hexdigest())
    log, whole = teacher.folder / "log.csv", "epoch\n" + "1\n" * teacher.config.epochs
    log.write_text(whole)
    for damaged in ("", None):  # it will be made again, from the checkpoint
        summary.unlink() if damaged is None else summary.write_text(damaged)
        reproduce.refuse_another_run(student)
    for epochs, weights, words in (
        ("epoch\n1\n", b"weights", "-> not trained yet"),  # those weights are not its last
        (whole, b"of another run", f"-> {hashlib.sha256(b'of another run').hexdigest()}"),
    ):
        log.write_text(epochs)
        best.write_bytes(weights)
        with pytest.raises(UserError, match=f"teacher_sha256: .* {words}"):
            reproduce.refuse_another_run(student)


@pytest.mark.skipif(
    not (shutil.which("make") and (ROOT / "Makefile").exists()), reason="there is no make"
)
@pytest.mark.parametrize(
    ("variables", "flags"),
    [
        ([], "--recipe notes --seeds 0 --teachers resnet cnn --jobs 1"),
        (
            ["RECIPE=best", "SEEDS=0 1", "TEACHERS=resnet", "JOBS=2", "EPOCHS=3"],
            "--recipe best --seeds 0 1 --teachers resnet --jobs 2 --epochs 3",
        ),
    ],
)
def test_make_hands_its_variables_on(variables, flags, monkeypatch):
    outer = ("MAKEFLAGS", "MAKELEVEL", "RECIPE", "EPOCHS", "SEEDS", "TEACHERS", "JOBS")
    for name in outer:  # of the `make test` that this may be part of
        monkeypatch.delenv(name, raising=False)
    words = ["make", "--dry-run", "reproduce", *variables]
    printed = subprocess.check_output(words, cwd=ROOT, text=True)
    command = printed.partition("reproduce.py")[2].replace("\\\n", " ")
    assert command.split() == flags.split()


def test_a_short_look_is_never_taken_for_the_whole_runs():
    assert reproduce.runs_folder("notes", None) == reproduce.runs_folder("notes", 50)
    assert reproduce.runs_folder("notes", 50) == reproduce.RUNS_DIR
    assert reproduce.runs_folder("notes", 2).name == "runs-2-epochs"

"""Two processes on the CPU (gloo) against one; once started by torchrun itself."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from common.config import RESULTS_DIR
from common.run import load
from conftest import CHILD, ROOT, Child, Server, equal, only_line

# 33 images a batch: parts of 17 and 16, and a last batch of 9.
QUICK = ("--epochs", "2", "--batch-size", "33", "--device", "cpu", "--precision", "float32",
         "--lr", "0.02")  # fmt: skip


def run_two(
    server: Server, *words: object, own: tuple = ((), ()), faults: tuple = ((), ())
) -> list[Child]:
    """A script in two processes that share its work, each with words and faults of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        server.start(*words, *own[rank], faults=[["join", rank, 2, port], *faults[rank]])
        for rank in (0, 1)
    ]
    return [child.wait() for child in children]


def seen(*files):
    """Which (image, view) each step took, whatever process took them."""
    lines = (file.read_text().splitlines() for file in files)
    return [sorted(" ".join(parts).split()) for parts in zip(*lines, strict=True)]


def test_two_processes_do_the_work_of_one(server, tmp_path):
    marks = [tmp_path / name for name in ("of-one", "first-of-two", "second-of-two")]
    noted = [[["norm_only_watches"], ["note_batches", str(mark)]] for mark in marks]
    words = ("train_baseline.py", *QUICK, "--out")
    alone = server.run(*words, tmp_path / "one", faults=noted[0])
    first, second = run_two(server, *words, tmp_path / "two", faults=noted[1:])
    for child in (alone, first, second):
        assert child.code == 0 and child.err == "", child.err
    assert seen(marks[0]) == seen(*marks[1:]) and len(seen(marks[0])) == 16  # at every step
    one, two = (load(tmp_path / name / "last.pt") for name in ("one", "two"))
    for key, value in one["network"].items():
        # Statistics are the mean of those of the processes, whose parts differ by one image.
        allowed = 4e-3 if "running" in key else 1e-4
        torch.testing.assert_close(two["network"][key], value, rtol=allowed, atol=allowed / 100)
    log_one, log_two = (pd.read_csv(tmp_path / name / "log.csv") for name in ("one", "two"))
    columns = ["train_loss", "train_accuracy", "val_loss", "test_loss"]
    pd.testing.assert_frame_equal(log_one[columns], log_two[columns], rtol=1e-4)
    assert "2 processes" in first.out and "2/2 loss" in first.out
    assert second.out == ""  # one of them speaks


def test_a_loss_that_is_not_finite_in_one_process_stops_both(server, tmp_path):
    """Its value alone is not: gradients are averaged, losses are not."""
    for step in (3, 8):  # 8: the last of an epoch
        run = tmp_path / str(step)
        spoiled = [["spoil_loss", step, "value"]]
        for child in run_two(
            server, "train_baseline.py", *QUICK, "--out", run, faults=((), spoiled)
        ):
            assert child.code == 1
            assert f"not finite in epoch 1, step {step} of 8, at" in child.err
        assert not list(run.glob("*.pt"))


def test_a_mistake_in_the_loss_is_not_taken_for_a_lost_process(server, tmp_path):
    broken = [["break_loss", 2]]
    words = ("train_baseline.py", *QUICK, "--out", tmp_path)
    for child in run_two(server, *words, faults=(broken, broken)):
        assert child.code == 1 and "another process" not in child.err
        assert "The size of tensor a (7) must match the size of tensor b (10)" in child.err


def test_two_nodes_with_different_teachers_train_no_student(server, tmp_path):
    recipes = ("notes", "best")
    own = [("--teacher", RESULTS_DIR / each / "teacher-resnet" / "seed-0") for each in recipes]
    words = ("train_student.py", *QUICK, "--cutout", "2", "--out", tmp_path)
    for child in run_two(server, *words, own=own):
        assert child.code == 2
        assert "the processes are not of one run; teacher_sha256: " in only_line(child)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_process_that_dies_when_all_is_done_is_named_as_such(server, tmp_path):
    dies = [["kill_in_evaluation", 4]]  # the last
    words = ("train_baseline.py", *QUICK, "--out", tmp_path)
    left, dead = run_two(server, *words, faults=((), dies))
    assert dead.code == -signal.SIGKILL and left.code == 1
    assert "error: another process of this run is gone" in left.err
    assert (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("gone", [0, 1])
def test_a_process_that_dies_before_the_start_is_told_by_the_one_that_speaks(
    server, tmp_path, gone
):
    faults = [(), ()]
    faults[gone] = [["kill_in_load"]]
    children = run_two(server, "train_baseline.py", *QUICK, "--out", tmp_path, faults=faults)
    assert children[gone].code == -signal.SIGKILL and children[1 - gone].code == 1
    if gone:
        assert "another process of this run is gone" in only_line(children[0])
    assert not list(tmp_path.glob("*.pt"))


def test_two_processes_draw_in_a_resumed_run_what_they_would_have_drawn(server, tmp_path):
    """With dropout."""
    dropout = [["add_dropout"]]
    words = ("train_baseline.py", *QUICK, "--out")
    for child in run_two(server, *words, tmp_path / "whole", faults=(dropout, dropout)):
        assert child.code == 0, child.err
    dies = [*dropout, ["kill_in_step", 11]]
    run_two(server, *words, tmp_path / "run", faults=(dropout, dies))
    assert load(tmp_path / "run" / "last.pt")["epoch"] == 1
    for child in run_two(server, *words, tmp_path / "run", "--resume", faults=(dropout, dropout)):
        assert child.code == 0, child.err
    whole, run = (load(tmp_path / name / "last.pt") for name in ("whole", "run"))
    assert equal(run["network"], whole["network"])


def test_a_student_of_two_processes_can_be_killed_stopped_and_resumed(server, tiny, tmp_path):
    """A dead process ends the other; a signal to torchrun ends both; each time --resume goes on."""
    teacher, run = tmp_path / "teacher" / "best.pt", tmp_path / "student"
    teacher.parent.mkdir()
    shutil.copy(RESULTS_DIR / "notes" / "teacher-resnet" / "seed-0" / "best.pt", teacher)
    student = (*QUICK, "--epochs", "6", "--out", run, "--teacher", teacher)
    dies_in_second_epoch = [["kill_in_step", 11]]
    left, dead = run_two(server, "train_student.py", *student, faults=((), dies_in_second_epoch))
    assert dead.code == -signal.SIGKILL and left.code == 1
    assert "error: another process of this run is gone" in left.err
    assert load(run / "last.pt")["epoch"] == 1

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2", CHILD, tiny]
    command += [ROOT / "train_student.py", *student, "--data-dir", tiny, "--resume"]
    # loopback: a machine whose own name resolves to nothing passes too
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, env=environment
    ) as torchrun:
        deadline = time.monotonic() + 120
        while len((run / "log.csv").read_text().splitlines()) < 3:  # the header, two epochs
            time.sleep(0.02)
            assert torchrun.poll() is None, torchrun.communicate()
            assert time.monotonic() < deadline
        torchrun.send_signal(signal.SIGTERM)
        _, err = torchrun.communicate(timeout=120)
    assert torchrun.returncode != 0
    assert "torchrun --nproc-per-node 2" in err and "--resume" in err and "error:" not in err

    for child in run_two(server, "train_student.py", *student, "--resume"):
        assert child.code == 0, child.err
    log = pd.read_csv(run / "log.csv")
    assert log["epoch"].tolist() == [1, 2, 3, 4, 5, 6] and log["train_soft_loss"].notna().all()
    assert not list(teacher.parent.glob("logits-*"))  # a half of them is no use to anyone

"""Two processes on the CPU under torchrun (gloo) against one."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import torch

from common.config import RESULTS_DIR
from common.run import load
from conftest import ROOT

CHILD = ROOT / "tests" / "parallel_child.py"
# 33 images a batch: parts of 17 and 16, and a last batch of 9.
QUICK = ("--epochs", "2", "--batch-size", "33", "--precision", "float32", "--lr", "0.02")


def start(processes, tiny, out, script="train_baseline.py", *extra, **environment):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        launcher += ["--nproc-per-node", str(processes)]
    arguments = [*QUICK, "--data-dir", tiny, "--out", out, *extra]
    return subprocess.Popen(
        [*launcher, str(CHILD), str(tiny), str(ROOT / script), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # loopback: a machine whose own name resolves to nothing passes too
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment},
    )  # fmt: skip


def finish(process, code=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    return out, err


def seen(path, processes):
    """Which (image, view) the steps took, whatever process took them: one set a step."""
    files = [path.with_name(f"{path.name}-{k}").read_text().splitlines() for k in range(processes)]
    return [sorted(" ".join(parts).split()) for parts in zip(*files, strict=True)]


def test_two_processes_do_the_work_of_one(tiny, tmp_path):
    runs = []
    for count in (1, 2):
        out, marks = tmp_path / f"of-{count}", tmp_path / f"seen-{count}"
        text, _ = finish(start(count, tiny, out, NO_NORMS="1", SEEN=str(marks)))
        runs.append((load(out / "last.pt"), pd.read_csv(out / "log.csv"), seen(marks, count), text))
    (one, log_one, seen_one, _), (two, log_two, seen_two, text) = runs
    assert seen_one == seen_two and len(seen_one) == 16  # the same images at every step
    for key, value in one["network"].items():
        # Statistics are the mean of those of the processes, whose parts differ by one image.
        allowed = 4e-3 if "running" in key else 1e-4
        torch.testing.assert_close(two["network"][key], value, rtol=allowed, atol=allowed / 100)
    columns = ["train_loss", "train_accuracy", "val_loss", "test_loss"]
    pd.testing.assert_frame_equal(log_one[columns], log_two[columns], rtol=1e-4)
    assert text.count("2/2 train") == 1 and "2 processes" in text  # one of them speaks


def test_a_student_under_torchrun_can_be_killed_stopped_and_resumed(tiny, tmp_path):
    """A dead process ends the other; a signal ends both; each time --resume goes on."""
    teacher, run = tmp_path / "teacher" / "best.pt", tmp_path / "student"
    teacher.parent.mkdir()
    shutil.copy(RESULTS_DIR / "notes" / "teacher-resnet" / "seed-0" / "best.pt", teacher)
    student = (2, tiny, run, "train_student.py", "--teacher", teacher, "--epochs", "4")
    process = start(*student, DIE="1:11")  # in the second epoch
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "another process of this run is gone" in err or "stopped after epoch 1" in err
    assert load(run / "last.pt")["epoch"] == 1

    process = start(*student, "--resume")
    while len((run / "log.csv").read_text().splitlines()) < 3:  # the header, two epochs
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "torchrun --nproc-per-node 2" in err and "--resume" in err and "error:" not in err

    finish(start(*student, "--resume"))
    log = pd.read_csv(run / "log.csv")
    assert log["epoch"].tolist() == [1, 2, 3, 4] and log["train_soft_loss"].notna().all()
    assert not list(teacher.parent.glob("logits-*"))  # a half of them is no use to anyone

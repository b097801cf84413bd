"""The promises of the run folder, each with the fault injected for real.

A fault is put into a training script from outside, by faults.py; nothing in the product code
knows of it. What a stopped and resumed run left is compared, bit for bit, with what an
uninterrupted run left.
"""

import csv
import gzip
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.run import load, save
from conftest import CHILD, ROOT, Child, Server, equal, make_tiny, only_line

# Settings of where and how, not of what.
PLACES = ("out", "teacher", "resume", "overwrite", "git_commit")
TIMES = ("images_per_second", "seconds")  # columns of the log that no two runs share
QUICK = ("--epochs", "2", "--batch-size", "32", "--device", "cpu", "--precision", "float32",
         "--lr", "0.1")  # fmt: skip
SMALL = ["shrink_networks"]
STEPS = 4  # of an epoch: 120 images are left for training
SCRIPTS = ("train_teacher.py", "train_baseline.py", "train_student.py")
FILES = {
    "config.json", "log.csv", "last.pt", "previous.pt", "best.pt", "predictions.npz",
    "summary.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    make_tiny(data, training=130, test=20)
    yield from Server.serving(data, tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory) -> dict[str, Path]:
    """An uninterrupted run of each script."""
    folder = tmp_path_factory.mktemp("whole")
    whole = {script: folder / script for script in SCRIPTS}
    teacher = server.run("train_teacher.py", *QUICK, "--out", whole["train_teacher.py"])
    assert teacher.code == 0, teacher.err
    for run in [
        server.start(script, *QUICK, *extra(script, whole), "--out", whole[script])
        for script in SCRIPTS[1:]
    ]:
        assert run.wait().code == 0, run.err
    return whole


@pytest.fixture(scope="module")
def small(server, tmp_path_factory) -> Path:
    """An uninterrupted run of a small CNN that takes no longer than its files do."""
    folder = tmp_path_factory.mktemp("small")
    run = server.run("train_baseline.py", *QUICK, "--out", folder, faults=[SMALL])
    assert run.code == 0, run.err
    return folder


def extra(script: str, whole: dict[str, Path]) -> tuple:
    return ("--teacher", whole["train_teacher.py"]) if script == "train_student.py" else ()


def read_log(folder: Path) -> list[dict]:
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def read_checkpoint(path: Path) -> dict:
    """All that is in it but times and where and when it was made."""
    content = load(path)
    for row in content["rows"]:
        for key in TIMES:
            del row[key]
    content["config"] = {k: v for k, v in content["config"].items() if k not in PLACES}
    return content


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs differ in, bit for bit, but for times and places."""
    found = []
    a, b = (read_checkpoint(folder / "last.pt") for folder in (one, other))
    found += [f"last.pt: {key}" for key in a.keys() | b.keys() if not equal(a.get(key), b.get(key))]
    if read_log(one) != read_log(other):
        found.append("log.csv")
    if not equal(load(one / "best.pt"), load(other / "best.pt")):
        found.append("best.pt")
    a, b = (
        dict(np.load(folder / "predictions.npz", allow_pickle=False)) for folder in (one, other)
    )
    found += [f"predictions: {key}" for key in a.keys() | b.keys() if not equal(a[key], b[key])]
    a, b = (json.loads((folder / "summary.json").read_text()) for folder in (one, other))
    found += [f"summary: {key}" for key in a if key != "seconds" and a[key] != b[key]]
    a, b = (json.loads((folder / "config.json").read_text()) for folder in (one, other))
    found += [f"config: {key}" for key in a if key not in PLACES and a[key] != b[key]]
    return found


def in_folder(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def files_below(folders: dict[str, Path]) -> list[Path]:
    return [path for folder in folders.values() for path in folder.iterdir()]


# ---------------------------------------------------------------- killed at any moment

KILLS = {
    "mid-epoch": ["kill_in_step", STEPS + 3],
    "in evaluation": ["kill_in_evaluation", 4],
    "checkpoint half written": ["kill_in_write", "last.pt", 2],
    "checkpoint written, not renamed": ["kill_at_rename", "last.pt", 2, False],
    "checkpoint renamed, log not written": ["kill_at_rename", "last.pt", 2, True],
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_resumes_to_the_same_bits(kill, server, whole, tmp_path):
    teacher = tmp_path / "teacher"  # without the answers that an earlier student left
    teacher.mkdir()
    shutil.copy(whole["train_teacher.py"] / "best.pt", teacher)
    words = {script: [*QUICK, "--out", tmp_path / script] for script in SCRIPTS}
    words["train_student.py"] += ["--teacher", teacher]
    for run in [server.start(s, *words[s], faults=[KILLS[kill]]) for s in SCRIPTS]:
        assert run.wait().code == -signal.SIGKILL, run.err
    for run in [server.start(s, *words[s], "--resume") for s in SCRIPTS]:
        assert run.wait().code == 0, run.err
        assert run.err == ""
        safe = 2 if kill == "checkpoint renamed, log not written" else 1
        assert f"resumed after epoch {safe}\n" in run.out
    for script in SCRIPTS:
        assert differences(tmp_path / script, whole[script]) == []
        assert in_folder(tmp_path / script) == FILES


def test_killed_at_each_of_its_file_operations_a_run_resumes_to_the_same_bits(
    server, small, tmp_path
):
    """One after the other before every opening, renaming and removal, --overwrite's too."""

    def start(folder: Path, *more: str, faults: tuple = ()) -> Child:
        words = ("train_baseline.py", *QUICK, "--out", folder, *more)
        return server.start(*words, faults=[SMALL, *faults])

    kills, codes = 0, [-signal.SIGKILL]
    while 0 not in codes:
        numbers = range(kills + 1, kills + 5)
        folders = {number: shutil.copytree(small, tmp_path / str(number)) for number in numbers}
        runs = [
            start(folders[number], "--overwrite", faults=(["kill_at_file_operation", number],))
            for number in numbers
        ]
        codes = [run.wait().code for run in runs]
        assert set(codes) <= {-signal.SIGKILL, 0}
        kills += codes.count(-signal.SIGKILL)
        for folder, run in [(f, start(f, "--resume")) for f in folders.values()]:
            assert run.wait().code == 0 and run.err == "", run.err
            assert differences(folder, small) == []
            assert in_folder(folder) == FILES
    assert kills >= 25


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_an_interpreter_killed_from_outside_resumes_to_the_same_bits(
    device, server, whole, tmp_path
):
    """At whatever moment, on a GPU too where there is one."""

    def start(folder: Path, *more: str) -> subprocess.Popen:
        words = [*QUICK, "--out", folder, *more]
        words += ["--device", "cuda", "--deterministic"] if device == "cuda" else []
        command = [sys.executable, CHILD, server.data, ROOT / "train_baseline.py", *words]
        return subprocess.Popen(
            [*map(str, command), "--data-dir", str(server.data)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    with start(tmp_path / "run") as killed:
        assert any(line.startswith("  1/2 ") for line in killed.stdout)
        killed.kill()
    with start(tmp_path / "run", "--resume") as resumed:
        assert "resumed after epoch" in resumed.stdout.read()
    uninterrupted = whole["train_baseline.py"]
    if device == "cuda":
        uninterrupted = tmp_path / "whole"
        with start(uninterrupted) as run:
            assert "2/2" in run.stdout.read()
    assert differences(tmp_path / "run", uninterrupted) == []


def test_the_comparison_sees_forgotten_seeds_or_a_dropped_momentum(server, tmp_path):
    """The negative control. With dropout, for the plain networks draw nothing while they train."""
    dropout = ["add_dropout"]

    def start(folder: Path, *words: object, faults: tuple = ()) -> Child:
        words = (*QUICK, "--out", folder, *words)
        return server.start("train_baseline.py", *words, faults=[dropout, *faults])

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for run in start(whole), start(stopped, faults=(["kill_in_step", STEPS + 1],)):
        run.wait()

    names = ("nothing", "seeds", "momentum")
    folders = {name: shutil.copytree(stopped, tmp_path / name) for name in names}
    checkpoint = load(folders["momentum"] / "last.pt")
    for state in checkpoint["optimizer"]["state"].values():
        state["momentum_buffer"].zero_()
    save(folders["momentum"] / "last.pt", checkpoint)
    forgotten = {"seeds": (["forget_seeds"],)}
    for run in [
        start(folder, "--resume", faults=forgotten.get(name, ()))
        for name, folder in folders.items()
    ]:
        assert run.wait().code == 0, run.err
    assert differences(folders["nothing"], whole) == []
    for name in ("seeds", "momentum"):
        assert {"last.pt: network", "log.csv"} <= set(differences(folders[name], whole))


def test_another_thread_count_warns_and_goes_on(server, tmp_path):
    folder = tmp_path / "run"
    words = ("train_baseline.py", *QUICK, "--out", folder)
    server.run(*words, faults=[SMALL, ["kill_in_step", STEPS + 1]])
    run = server.run(*words, "--resume", faults=[SMALL, ["use_threads", 2]])
    assert run.code == 0 and "resumed after epoch 1" in run.out
    assert run.err.startswith("warning: threads: 1 -> 2; the run goes on")
    assert [row["epoch"] for row in read_log(folder)] == ["1", "2"]
    kept = json.loads((folder / "config.json").read_text())
    assert kept["threads"] == 1 and kept["resumed_with"] == [{"after_epoch": 1, "threads": 2}]
    assert load(folder / "last.pt")["config"] == kept
    # Of a finished run the number of threads no longer matters.
    again = server.run(*words, "--resume", faults=[SMALL, ["use_threads", 2]])
    assert again.code == 0 and "already complete" in again.out and again.err == ""


def test_a_finished_run_is_left_as_it_is(server, whole):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files_below(whole)}
    words = {s: (*QUICK, *extra(s, whole), "--out", whole[s]) for s in SCRIPTS}
    for run in [server.start(s, *words[s], "--resume") for s in SCRIPTS]:
        assert run.wait().code == 0 and "already complete" in run.out and run.err == ""
    for run in [server.start(s, *words[s]) for s in SCRIPTS]:
        assert run.wait().code == 2
        assert "holds a finished run; a run is never overwritten in silence;" in only_line(run)
    run = server.run(SCRIPTS[1], *words[SCRIPTS[1]], "--resume", "--lr", "0.2")
    assert run.code == 2 and "lr: 0.1 -> 0.2" in only_line(run)
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files_below(whole)}
    assert before == after


# ---------------------------------------------------------------- damaged and malicious files


@pytest.mark.parametrize("name", ["predictions.npz", "log.csv", "best.pt", "config.json"])
def test_a_cut_file_of_a_finished_run_is_made_again(server, small, tmp_path, name):
    folder = shutil.copytree(small, tmp_path / "run")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    run = server.run("train_baseline.py", *QUICK, "--resume", "--out", folder, faults=[SMALL])
    assert run.code == 0 and "resumed after epoch 2" in run.out and "/2 loss" not in run.out
    assert run.err.startswith("warning: ") and run.err.count("\n") == 1
    assert name in run.err and "made again from the checkpoint of epoch 2" in run.err
    assert differences(folder, small) == []


def test_predictions_that_are_not_the_logs_are_made_again(server, small, tmp_path):
    """Whole as a file, of whatever other weights."""
    folder = shutil.copytree(small, tmp_path / "run")
    with np.load(folder / "predictions.npz") as file:
        arrays = dict(file)
    arrays["logits_best"] = np.eye(10)[(arrays["labels"] + 1) % 10].astype(np.float32)
    np.savez_compressed(folder / "predictions.npz", **arrays)
    run = server.run("train_baseline.py", *QUICK, "--resume", "--out", folder, faults=[SMALL])
    assert run.code == 0 and run.err.count("\n") == 1
    assert "predictions.npz: its accuracy is 0.00 %, log.csv says" in run.err
    assert "made again from the checkpoint of epoch 2" in run.err
    assert differences(folder, small) == []


def tensor_bytes(path: Path) -> list[range]:
    """Where in a checkpoint file the bytes of its tensors are."""
    content, found = path.read_bytes(), []
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if "/data/" in part.filename:
                name, more = struct.unpack("<HH", content[part.header_offset + 26 :][:4])
                start = part.header_offset + 30 + name + more
                found.append(range(start, start + part.file_size))
    return found


def test_every_cut_and_every_flipped_byte_of_a_checkpoint_is_detected(whole, tmp_path):
    path = whole["train_baseline.py"] / "last.pt"
    content, damaged = path.read_bytes(), tmp_path / "damaged.pt"
    for cut in np.linspace(0, len(content) - 1, 20).astype(int):
        damaged.write_bytes(content[:cut])
        with pytest.raises(ValueError):
            load(damaged)
    positions = [i for part in tensor_bytes(path) for i in part]
    generator = np.random.default_rng(0)
    for position in generator.choice(positions, 50, replace=False):
        flipped = bytearray(content)
        flipped[position] ^= 1 << generator.integers(8)
        damaged.write_bytes(flipped)
        with pytest.raises(ValueError, match="is damaged"):
            load(damaged)
    damaged.write_bytes(content)
    load(damaged)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[tensor_bytes(path)[0][7]] ^= 16
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_never_trained_on(server, whole, tmp_path):
    """One: go on from the one before, and keep it until the next is there. Both: stop."""
    folder = tmp_path / "run"
    words = ("train_baseline.py", *QUICK, "--out", folder)
    server.run(*words, faults=[["kill_at_rename", "log.csv", 2, False]])
    flip_a_byte(folder / "last.pt")
    for kill in (["kill_at_rename", "last.pt", 1, False], ["kill_in_write", "last.pt", 1], None):
        run = server.run(*words, "--resume", faults=[kill] if kill else [])
        assert run.code == (-signal.SIGKILL if kill else 0), run.err
        warning = rf"warning: {folder}/last.pt cannot be loaded \(its part .* is damaged\); going "
        assert re.fullmatch(rf"{warning}on from {folder}/previous.pt, epoch 1\n", run.err)
    assert differences(folder, whole["train_baseline.py"]) == []

    (folder / "summary.json").unlink()
    flip_a_byte(folder / "last.pt")
    flip_a_byte(folder / "previous.pt")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    run = server.run(*words, "--resume")
    assert run.code == 2
    assert re.search(r"no checkpoint .* can be loaded; .*last.pt .*previous.pt", only_line(run))
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def torch_zip(path: Path, content: object) -> None:
    torch.save(content, path)


def torch_legacy(path: Path, content: object) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain_pickle(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch_zip, torch_legacy, plain_pickle])
def test_no_pickle_runs_code(write, server, whole, tmp_path):
    sprung, trapped = tmp_path / "sprung", tmp_path / "trapped.pt"
    write(trapped, Trap(sprung))
    if write is plain_pickle:
        pickle.loads(trapped.read_bytes())
    else:
        torch.load(trapped, weights_only=False)
    sprung.rmdir()  # the trap works

    baseline = shutil.copytree(whole["train_baseline.py"], tmp_path / "baseline")
    teacher = shutil.copytree(whole["train_teacher.py"], tmp_path / "teacher")
    (baseline / "summary.json").unlink()
    (answers,) = teacher.glob("logits-*.pt")
    for path in (trapped, baseline / "last.pt", baseline / "previous.pt", answers):
        write(path, {"arch": "resnet", "epoch": 2, "key": Trap(sprung)})
    student = ("train_student.py", *QUICK, "--epochs", "1", "--out", tmp_path / "student")
    runs = [
        server.start(*student, "--teacher", trapped),
        server.start("train_baseline.py", *QUICK, "--resume", "--out", baseline),
        server.start(*student, "--teacher", teacher),  # which finds the answers unusable
    ]
    assert [run.wait().code for run in runs] == [2, 2, 0]
    assert "cannot use" in only_line(runs[0]) and "can be loaded" in only_line(runs[1])
    assert not sprung.exists()


# ---------------------------------------------------------------- full disks, missing rights


@pytest.fixture(params=["full disk", "limit"])
def short_of_space(request, tmp_path):
    """A folder, and a function: the fault that makes the number-th write of a file in it fail.

    A full disk for real, where one can be mounted; and a limit on the file's size.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
    mounted = request.param == "full disk"
    if mounted and not _succeeds(mount):
        pytest.skip("no disk can be mounted here, to be filled")

    def fault(name: str, number: int, room: int) -> list:
        if mounted:
            return ["fill_disk", name, number, str(folder), room]
        return ["limit_file_size", name, number, room]

    yield folder, fault
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def test_a_full_disk_leaves_the_last_good_checkpoint(short_of_space, server, small):
    disk, fault = short_of_space
    cases = {  # file: (which time it is written, room left, epochs that are safe)
        "config.json": (1, 0, 0),
        "last.pt": (2, 5000, 1),
        "log.csv": (2, 0, 2),
        "best.pt": (1, 2000, 1),
        "predictions.npz": (1, 0, 2),
        "summary.json": (1, 0, 2),
    }
    words = {name: ("train_baseline.py", *QUICK, "--out", disk / name) for name in cases}
    for name, (number, room, epochs) in cases.items():
        run = server.run(*words[name], faults=[SMALL, fault(name, number, room)])
        (disk / "filler").unlink(missing_ok=True)
        assert run.code == 1, run.err
        where = f"{disk}/{name}/{name}"
        assert re.match(rf"error: cannot write {where}; \[Errno \d+\] .*; ", only_line(run))
        assert in_folder(disk / name) < FILES
        if epochs:
            assert load(disk / name / "last.pt")["epoch"] == epochs
    for name, run in {
        name: server.start(*words[name], "--resume", faults=[SMALL]) for name in cases
    }.items():
        assert run.wait().code == 0 and run.err == "", run.err
        assert differences(disk / name, small) == []


def test_no_room_for_a_checkpoint_is_found_before_training(short_of_space, server):
    disk, fault = short_of_space
    run = server.run("train_baseline.py", *QUICK, "--out", disk, faults=[fault("probe", 1, 1000)])
    assert run.code == 2 and f"cannot write to {disk}; " in only_line(run)
    assert in_folder(disk) <= {"filler"} and "1/2" not in run.out


def test_a_folder_without_write_permission_is_found_before_training(server, tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    faults = [] if os.geteuid() else [["deny_writes", str(folder)]]  # nothing is denied to root
    for out in (folder, folder / "run"):
        run = server.run("train_baseline.py", *QUICK, "--out", out, faults=faults)
        assert run.code == 2 and f"cannot use {out} as a run folder; " in only_line(run)
    assert not list(folder.iterdir())


# ---------------------------------------------------------------- signals


def test_a_signal_ends_each_script_and_the_printed_command_resumes_it(server, whole, tmp_path):
    signals = dict(zip(SCRIPTS, (signal.SIGTERM, signal.SIGINT, signal.SIGTERM), strict=True))
    folders = {script: tmp_path / f"{script} run" for script in SCRIPTS}  # to be quoted
    wait = ["await_signal_in_step", STEPS + 2]
    runs = {
        s: server.start(s, *QUICK, *extra(s, whole), "--out", folders[s], faults=[wait])
        for s in SCRIPTS
    }
    for script, run in runs.items():
        run.wait_for("waiting")
        os.kill(run.pid, signals[script])
        assert run.wait().code == 128 + signals[script]
        stopped, command = run.err.strip().splitlines()
        assert stopped == "stopped after epoch 1; go on with"
        python, path, *words = shlex.split(command)
        assert (python, path, words[-1]) == (sys.executable, str(ROOT / script), "--resume")
        assert in_folder(folders[script]) < FILES
        runs[script] = server.start(script, *words, data=False)
    for script, run in runs.items():
        assert run.wait().code == 0, run.err
        assert differences(folders[script], whole[script]) == []


BATCHES = STEPS + 1 + 2  # of an epoch, with those of evaluation: 10 held-out, 20 test images


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_is_seen_within_one_batch(number, server, whole, tmp_path):
    """In training, in both evaluations, in the last batch of all, and in asking the teacher."""
    teacher = shutil.copy(whole["train_teacher.py"] / "best.pt", tmp_path)
    cases = [("train_baseline.py", batch) for batch in (2, BATCHES + 1)]
    cases += [("train_baseline.py", BATCHES + STEPS + evaluation) for evaluation in (0, 1)]
    cases += [("train_baseline.py", 2 * BATCHES), ("train_student.py", 3)]
    runs = []
    for script, batch in cases:
        words = [*QUICK, "--out", tmp_path / f"{script}-{batch}"]
        words += ["--teacher", teacher] if script == "train_student.py" else []
        fault = ["signal_in_batch", batch, number]  # and SIGKILL in the batch after it
        runs.append((words, server.start(script, *words, faults=[fault])))
    for (script, batch), (words, run) in zip(cases, runs, strict=True):
        assert run.wait().code == 128 + number, run.err
        epochs = 0 if script == "train_student.py" else batch // BATCHES
        kept = f"after epoch {epochs}" if epochs else "before the end of epoch 1"
        assert f"stopped {kept}; go on with" in run.err and "--resume" in run.err
        if batch == 2 * BATCHES:  # nothing is left but to write the predictions
            run = server.run(script, *words, "--resume")
            assert run.code == 0 and "resumed after epoch 2" in run.out
            assert in_folder(words[-1]) == FILES


def test_a_signal_while_predictions_are_written_leaves_a_finished_run(server, small, tmp_path):
    """The loop of a shell that it is in ends all the same."""
    fault = ["kill_at_rename", "predictions.npz", 1, False, signal.SIGTERM]
    run = server.run("train_baseline.py", *QUICK, "--out", tmp_path, faults=[SMALL, fault])
    assert run.code == 143 and run.err == "" and "test accuracy: " in run.out
    assert differences(tmp_path, small) == []


def test_a_second_signal_ends_the_process_at_once(server, tmp_path):
    words = ("train_baseline.py", *QUICK, "--out", tmp_path)
    run = server.start(*words, faults=[["hang", "step", STEPS + 1]])
    run.wait_for("hanging")
    os.kill(run.pid, signal.SIGTERM)
    run.wait_for("a signal was seen")
    os.kill(run.pid, signal.SIGINT)
    assert run.wait().code == 130  # and not 143: the first one only asks
    run = server.run(*words, "--resume")
    assert run.code == 0 and "resumed after epoch 1" in run.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_before_training_ends_the_script_quietly(number, server, tmp_path):
    out = tmp_path / "run"
    run = server.start("train_baseline.py", *QUICK, "--out", out, faults=[["hang", "load", 1]])
    run.wait_for("hanging")
    os.kill(run.pid, number)
    assert run.wait().code == 128 + number and run.err == "" and not out.exists()


# ---------------------------------------------------------------- one writer


def test_a_second_writer_is_told_of_the_first_and_a_killed_one_frees_the_folder(
    server, whole, tmp_path
):
    words = ("train_baseline.py", *QUICK, "--out", tmp_path)
    first = server.start(*words, faults=[["hang", "step", STEPS + 1]])
    first.wait_for("hanging")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for more in ((), ("--resume",), ("--overwrite",)):
        second = server.run(*words, *more)
        assert second.code == 2
        holder = f"process {first.pid} on {socket.gethostname()} is writing to it"
        assert f"{tmp_path} is in use; {holder}; " in only_line(second)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    run = server.run(*words, "--resume")
    assert run.code == 0, run.err
    assert differences(tmp_path, whole["train_baseline.py"]) == []
    assert in_folder(tmp_path) == FILES


# ---------------------------------------------------------------- non-finite numbers


def test_a_non_finite_loss_or_gradient_stops_before_the_step(server, whole, tmp_path):
    words = {
        how: ("train_baseline.py", *QUICK, "--out", tmp_path / how)
        for how in ("nan", "inf", "value", "gradient")
    }
    for how, run in {
        how: server.start(*words[how], faults=[["spoil_loss", STEPS + 2, how]]) for how in words
    }.items():
        assert run.wait().code == 1
        where = f"not finite in epoch 2, step 2 of {STEPS}, at learning rate 0.1; "
        assert where in only_line(run) and "try a lower --lr" in only_line(run)
        assert load(tmp_path / how / "last.pt")["epoch"] == 1
        assert not (tmp_path / how / "previous.pt").exists()
    for how, run in {how: server.start(*words[how], "--resume") for how in words}.items():
        assert run.wait().code == 0, run.err
        assert differences(tmp_path / how, whole["train_baseline.py"]) == []


def test_outputs_that_the_last_step_of_an_epoch_made_infinite_reach_no_checkpoint(server, tmp_path):
    words = ("train_baseline.py", *QUICK, "--batch-size", "120", "--lr", "1e38", "--out", tmp_path)
    run = server.run(*words)
    assert run.code == 1
    assert "after epoch 1, step 1, at learning rate 1e+38; " in only_line(run)
    assert in_folder(tmp_path) == {"config.json"}


# ---------------------------------------------------------------- teachers


def test_unusable_teachers_are_refused(server, whole, tmp_path):
    good = load(whole["train_teacher.py"] / "best.pt")
    weights, head = good["weights"], list(good["weights"])[-2:]

    def saved(name: str, **changes: object) -> Path:
        save(tmp_path / name, good | changes)
        return tmp_path / name

    flipped = Path(shutil.copy(whole["train_teacher.py"] / "best.pt", tmp_path / "flipped.pt"))
    flip_a_byte(flipped)
    hundred = {key: torch.zeros(100, *weights[key].shape[1:]) for key in head}
    refused = {  # teacher: why
        tmp_path / "none.pt": "there is no such file; name the folder of a run",
        ROOT / "results" / "notes" / "teacher-resnet" / "seed-1": "though its run is here",
        tmp_path / ("long" * 100): "File name too long",
        whole["train_student.py"]: "it is the checkpoint of a student",
        whole["train_teacher.py"] / "last.pt": "a run, which has arch, role and weights; name the",
        flipped: "is damaged",
        saved("arch.pt", arch="cnn"): "its weights are not those of a cnn, as to ",
        saved("unknown.pt", arch="vit"): "none of resnet, cnn, small-cnn, deeper-cnn: enter it in",
        saved("classes.pt", weights=weights | hundred): "(100, 256), a resnet for 10 classes has",
        saved("nan.pt", weights=weights | {head[1]: weights[head[1]] * torch.nan}): "not finite",
        saved("odd.pt", arch=["resnet"]): "it is not the best.pt of a run",
        saved("text.pt", weights=weights | {head[1]: "zeros"}): "is not a tensor",
    }
    out = tmp_path / "run"
    runs = {
        teacher: server.start("train_student.py", *QUICK, "--teacher", teacher, "--out", out)
        for teacher in refused
    }
    for teacher, run in runs.items():
        assert run.wait().code == 2
        assert only_line(run).startswith("error: cannot use ") and refused[teacher] in run.err
        assert not out.exists()


def test_a_teacher_that_changed_since_the_run_began_is_refused(server, whole, tmp_path):
    teacher, out = tmp_path / "best.pt", tmp_path / "run"
    shutil.copy(whole["train_teacher.py"] / "best.pt", teacher)
    words = ("train_student.py", *QUICK, "--teacher", teacher, "--out", out)
    server.run(*words, faults=[["kill_in_step", STEPS + 1]])
    content = load(teacher)
    key = list(content["weights"])[-1]
    content["weights"][key] = content["weights"][key] + 1
    save(teacher, content)
    before = {path: path.read_bytes() for path in out.iterdir() if path.name != ".holder"}
    run = server.run(*words, "--resume")
    assert run.code == 2 and "other settings; teacher_sha256: " in only_line(run)
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    shutil.copy(whole["train_teacher.py"] / "best.pt", teacher)
    assert server.run(*words, "--resume").code == 0
    assert differences(out, whole["train_student.py"]) == []


# ---------------------------------------------------------------- bad requests, bad data


@pytest.mark.parametrize("script", SCRIPTS)
def test_bad_flags_are_one_line_and_touch_nothing(script, server, tmp_path):
    file, out = tmp_path / "file", tmp_path / "run"
    file.write_text("not a folder")
    requests = [
        ("--out", file), ("--out", file / "below"), ("--lr", "nan"), ("--epochs", "0"),
        ("--epoch", "3"), ("--recipe", "nots"), ("--resume", "--overwrite"),
        ("--batch-size", "60000"), ("--data-dir", tmp_path), ("--data-dir", "x" * 300),
    ]  # fmt: skip
    for run in [server.start(script, "--out", out, *r, data=False) for r in requests]:
        run.wait()
        assert run.code == 2, run.err
        assert only_line(run).count("; ") >= 2 and run.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "not a folder"


def test_a_request_that_cannot_be_met_overwrites_nothing(server, small, tmp_path):
    """97 images a step leave one of 55,000 for the last."""
    folder = shutil.copytree(small, tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.name in FILES}
    for flags in (("--batch-size", "97"), ("--batch-size", "1"), ("--seed", "-1")):
        run = server.run("train_baseline.py", *QUICK, *flags, "--overwrite", "--out", folder)
        assert run.code == 2 and f"{flags[0]}: '{flags[1]}' is not" in only_line(run)
    seed_4 = tmp_path / "seed-4"
    run = server.run("train_baseline.py", *QUICK, "--out", seed_4)
    assert run.code == 2 and "ends in seed-4, and --seed is 0" in only_line(run)
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.name in FILES}
    assert len(before) == len(FILES) and not seed_4.exists()


def test_damaged_data_is_named_by_each_script(server, tmp_path):
    data = shutil.copytree(server.data, tmp_path / "data")
    for damage in ("truncated", "swapped", "flipped"):
        file = data / "train-images-idx3-ubyte.gz"
        content = gzip.decompress((server.data / file.name).read_bytes())
        if damage == "truncated":
            file.write_bytes(file.read_bytes()[:1000])
        elif damage == "swapped":
            shutil.copy(data / "t10k-images-idx3-ubyte.gz", file)
        else:
            file.write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1]), 1))
        runs = [
            server.start(s, *QUICK, "--data-dir", data, "--out", tmp_path / "run", data=False)
            for s in SCRIPTS
        ]
        for run in runs:
            words = f"error: {file} is damaged, or of another data set; "
            assert run.wait().code == 2 and words in only_line(run)
    assert not (tmp_path / "run").exists()


def test_first_starts_at_once_and_killed_end_with_one_good_copy(server, tmp_path):
    def start(name: str, killed_after: int) -> Child:
        fetch = ["fetch_from", str(server.data), str(tmp_path / "data"), killed_after]
        words = (*QUICK, "--epochs", "1", "--out", tmp_path / name)
        return server.start("train_baseline.py", *words, faults=[fetch], data=False)

    assert start("killed", 2).wait().code == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "data").iterdir()}
    assert "fashion-mnist" not in left and any(name.startswith(".fetch-") for name in left)
    both = [start("one", 0), start("two", 0)]
    assert [run.wait().code for run in both] == [0, 0]
    assert sum(run.out.count("fetched") for run in both) == 1
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".lock", "fashion-mnist"}
    for path in (tmp_path / "data" / "fashion-mnist").iterdir():
        assert path.read_bytes() == (server.data / path.name).read_bytes()


def test_debug_shows_the_traceback_and_the_exit_code_stays(server, tmp_path):
    words = ("train_student.py", *QUICK, "--teacher", tmp_path / "none.pt", "--out", tmp_path / "r")
    run = server.run(*words, "--debug")
    assert run.code == 2 and run.err.startswith("Traceback ")
    assert run.err.splitlines()[-1] + "\n" == server.run(*words).err

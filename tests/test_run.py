import contextlib
import csv
import dataclasses
import errno
import io
import json
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import common.run
import train_baseline
from common.config import LOG_COLUMNS, RUNS_DIR, StudentConfig
from common.errors import UserError
from common.models import NETWORKS, Normalize, build
from common.run import (
    FILES,
    Run,
    describe,
    find_teachers,
    in_project,
    load,
    open_run,
    read_teacher,
    save,
    write_atomically,
)
from conftest import equal, quick_config

FACTS = {
    "role": "baseline", "name": "baseline", "parameters": 10, "threads": 1,
    "device": "cpu", "precision": "float32", "versions": {"torch": "1"},
}  # fmt: skip
PREDICTIONS = {
    f"{images}{what}": values
    for images in ("", "val_")
    for what, values in (("labels", np.arange(3)), ("logits_best", np.eye(3, 10)))
}


def config(**changes):
    return quick_config(**{"lr": 0.1, **changes})


def open_with(folder, facts=FACTS, **changes) -> Run:
    return Run(folder, config(**changes), facts)


def checkpoint_of(run, epoch=1):
    content = dict.fromkeys(("network", "optimizer", "best", "last"), {})
    return content | {"epoch": epoch, "rows": [row(i + 1) for i in range(epoch)]} | {
        "config": run.settings
    }  # fmt: skip


def row(epoch, **values):
    known = {"epoch": epoch, "train_soft_loss": None, "test_accuracy": 100.0}  # of PREDICTIONS
    return dict.fromkeys(LOG_COLUMNS, 0.5) | known | values


def begun(folder, done=1, **changes):
    """A folder as a run leaves it that was stopped after `done` epochs."""
    run = open_with(folder, **changes)
    run.save_config()
    for epoch in range(1, done + 1):
        run.save_checkpoint(checkpoint_of(run, epoch))
    run.save_log([row(i + 1) for i in range(done)])
    run.save_best({"weight": torch.ones(2)}, 1, 50.0)
    run.close()
    return folder


def finished(folder):
    begun(folder, 2)
    with open_run(folder, config(resume=True), FACTS) as run:
        run.finish(PREDICTIONS, {"epochs": 2})
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


# ---------------------------------------------------------------- one file


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def recorded(*arguments, name=name, original=original):
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(os, name, recorded)
    write_atomically(tmp_path / "file", b"new")
    assert calls == ["fsync", "replace", "fsync"]
    assert contents(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt(), ValueError()])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path, error, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")

    def fail(_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)

    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as failure:
        write_atomically(tmp_path / "file", b"half")
    assert contents(tmp_path) == {"file": b"old"}
    if expected is UserError:
        assert failure.value.exit_code == 1 and "No space left" in str(failure.value)


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    """Two students may leave their teacher's answers in one place at once."""
    texts = [bytes([letter]) * 200_000 for letter in b"ab"]

    def write(text):
        for _ in range(30):
            write_atomically(tmp_path / "file", text)

    threads = [threading.Thread(target=write, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "file").exists():
            assert (tmp_path / "file").read_bytes() in texts
    assert set(contents(tmp_path)) == {"file"}


def test_a_checkpoint_survives_the_round_trip_and_is_the_same_bytes_every_time(tmp_path):
    content = {"weights": {"a": torch.randn(3, 4)}, "rows": [{"lr": 0.1, "x": None}], "n": 3,
               "config": {"out": "\udcff"}}  # fmt: skip
    save(tmp_path / "one.pt", content)
    save(tmp_path / "two.pt", content)
    assert equal(load(tmp_path / "one.pt"), content)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_what_is_no_checkpoint_is_named_without_advice_to_trust_it(tmp_path):
    path = tmp_path / "file.pt"
    with pytest.raises(FileNotFoundError):
        load(path)
    for content in (b"", b"PK\x05\x06" + bytes(18), b"text", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(ValueError):
            load(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(ValueError, match="not one of our checkpoints"):
        load(path)
    with open(path, "wb") as file:  # as the path of a run's predictions.npz
        np.savez(file, labels=np.arange(3))
    with pytest.raises(ValueError, match="^it is no checkpoint$"):
        load(path)
    torch.save({"device": build}, path)
    with pytest.raises(ValueError, match="^it holds more than tensors and plain values"):
        load(path)


# ---------------------------------------------------------------- the log


numbers = st.floats(allow_nan=False, allow_infinity=False)
log_rows = st.lists(
    st.fixed_dictionaries({name: numbers for name in LOG_COLUMNS} | {"train_soft_loss": st.none()})
)


@given(rows=log_rows)
@settings(max_examples=50)
def test_the_log_gives_back_every_number_to_the_last_bit(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("run")
    with open_run(folder, config(), FACTS) as run:
        run.save_log(rows)
    text = (folder / "log.csv").read_bytes().decode()
    assert "\r" not in text and text.splitlines()[0] == ",".join(LOG_COLUMNS)
    read = list(csv.DictReader(io.StringIO(text)))
    assert [[r[name] for name in LOG_COLUMNS] for r in read] == [
        ["" if r[name] is None else repr(r[name]) for name in LOG_COLUMNS] for r in rows
    ]


# ---------------------------------------------------------------- resuming


def test_a_resumed_run_has_its_checkpoint_and_keeps_the_settings_it_began_with(tmp_path):
    begun(tmp_path, 2)
    before = contents(tmp_path)
    with open_run(tmp_path, config(resume=True), FACTS) as run:
        assert run.checkpoint["epoch"] == 2 and not run.complete
        assert run.settings == json.loads(before["config.json"]) and not run.settings["resume"]
        assert {**before, ".holder": None} == {**contents(tmp_path), ".holder": None}
    assert contents(tmp_path) == before
    assert load(tmp_path / "previous.pt")["epoch"] == 1


def test_an_empty_folder_and_one_killed_before_the_first_checkpoint_start_anew(tmp_path):
    for _ in range(2):
        with open_run(tmp_path, config(resume=True), FACTS) as run:
            assert run.checkpoint is None and not run.complete
            run.save_config()


def test_other_settings_are_refused_old_to_new(tmp_path):
    begun(tmp_path)
    before = contents(tmp_path)
    facts = FACTS | {"data_sha256": "1f", "threads": 2}
    with pytest.raises(UserError) as failure:
        open_with(tmp_path, facts, resume=True, lr=0.3, epochs=5)
    assert (
        str(failure.value).split("; ")[1]
        == "data_sha256: None -> 1f, epochs: 2 -> 5, lr: 0.1 -> 0.3"
    )
    assert contents(tmp_path) == before


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_a_commit_whose_files_were_changed_is_called_dirty(tmp_path, monkeypatch):
    monkeypatch.setattr(common.run, "ROOT", tmp_path)
    assert common.run.git_commit() is None
    who = ("-c", "user.name=me", "-c", "user.email=me@here")
    (tmp_path / "loss.py").write_text("")
    tag = (*who, "tag", "-a", "v1", "-m", "a version")  # the commit is not to be called by it
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "first"), tag):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    commit = common.run.git_commit()
    assert len(commit) == 40 and int(commit, 16)
    (tmp_path / "loss.py").write_text("changed")
    assert common.run.git_commit() == f"{commit}-dirty"
    (tmp_path / "copy").mkdir()  # of the code, in another's repository
    monkeypatch.setattr(common.run, "ROOT", tmp_path / "copy")
    assert common.run.git_commit() is None


def test_what_only_changes_bits_warns_and_what_changes_nothing_is_silent(tmp_path, capsys):
    begun(tmp_path)
    same = FACTS | {"teacher": "elsewhere", "git_commit": "1f"}
    open_with(tmp_path, same, resume=True, data_dir="elsewhere").close()
    assert capsys.readouterr().err == ""
    other = FACTS | {"threads": 2, "versions": {"torch": "2"}}
    open_with(tmp_path, other, resume=True, deterministic=True).close()
    warning = capsys.readouterr().err
    assert warning.startswith("warning: deterministic: False -> True, threads: 1 -> 2, versions: ")
    assert warning.count("\n") == 1
    open_with(tmp_path, FACTS | {"processes": 2}, resume=True).close()
    assert "processes: None -> 2" in capsys.readouterr().err
    other = FACTS | {"device": "cuda", "precision": "bfloat16"}
    open_with(tmp_path, other, resume=True).close()
    assert "device: cpu -> cuda, precision: float32 -> bfloat16" in capsys.readouterr().err
    other = FACTS | {"device_name": "an older one", "precision": "bfloat16"}
    open_with(tmp_path, other, resume=True).close()
    assert "precision: float32 -> bfloat16" in capsys.readouterr().err
    with pytest.raises(UserError, match="precision"):  # without another device it is a setting
        open_with(tmp_path, FACTS | {"precision": "bfloat16"}, resume=True)


# Those of device and precision are what the hardware gave: the facts of a run, see above.
SETTINGS = [
    field.name
    for field in dataclasses.fields(StudentConfig)
    if field.name not in ("device", "precision", "resume", "overwrite")
]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_but_places_is_one_that_a_resumed_run_keeps(tmp_path, capsys, name):
    begun = quick_config(StudentConfig)
    with open_run(tmp_path, begun, FACTS) as run:
        run.save_checkpoint(checkpoint_of(run))
    value = getattr(begun, name)
    other = (
        "other" if isinstance(value, str | None) else not value if value in (0, 1) else 2 * value
    )
    changed = dataclasses.replace(begun, resume=True, **{name: other})
    if name in ("data_dir", "out", "teacher", "deterministic"):
        Run(tmp_path, changed, FACTS).close()
        warned = capsys.readouterr().err
        assert warned.startswith("warning: deterministic: False -> True") == bool(warned)
        assert bool(warned) == (name == "deterministic")
    else:
        with pytest.raises(UserError, match=f" {name}: {value} -> {other}; "):
            Run(tmp_path, changed, FACTS)


def test_what_is_new_at_each_resume_is_recorded_once(tmp_path, capsys):
    begun(tmp_path, epochs=4)
    changes = []
    for epoch, threads in ((2, 2), (3, 2), (4, 4), (4, 8)):  # then nothing is left to train
        with open_run(tmp_path, config(resume=True, epochs=4), FACTS | {"threads": threads}) as run:
            run.save_checkpoint(checkpoint_of(run, epoch))
        changes.append(run.settings["resumed_with"])
    first, second = {"after_epoch": 1, "threads": 2}, {"after_epoch": 3, "threads": 4}
    assert changes == [[first], [first], [first, second], [first, second]]
    assert capsys.readouterr().err.count("threads: ") == 2


def test_other_bits_are_told_where_a_damaged_run_trains_again(tmp_path, capsys):
    """Its last checkpoint is lost, and so an epoch is trained, with other threads."""
    begun(tmp_path, epochs=2)
    (tmp_path / "summary.json").write_text("{}")
    open_with(tmp_path, FACTS | {"threads": 7}, resume=True, epochs=2).close()
    bits, damage = capsys.readouterr().err.splitlines()
    assert "made again from the checkpoint of epoch 1" in damage
    assert "threads: 1 -> 7; the run goes on, but its bits may differ from an" in bits


def test_a_run_without_a_checkpoint_yet_is_gone_on_with_by_its_settings_alone(tmp_path):
    run = open_with(tmp_path)
    run.save_config()
    run.close()
    open_with(tmp_path, resume=True).close()
    with pytest.raises(UserError, match="other settings; threads_of_mine: None -> 3;"):
        open_with(tmp_path, FACTS | {"threads_of_mine": 3}, resume=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*config\.json, so what the run was made"):
        open_with(tmp_path, resume=True)


def test_the_commit_of_a_resume_is_recorded_in_silence(tmp_path, capsys):
    """A run that goes on with other code is not that of the commit it began with alone."""
    run = open_with(tmp_path, FACTS | {"git_commit": "a"}, epochs=4)
    run.save_checkpoint(checkpoint_of(run))
    run.close()
    for commit, noted in (("a", None), ("b", [{"after_epoch": 1, "git_commit": "b"}])):
        facts = FACTS | {"git_commit": commit}
        with open_run(tmp_path, config(resume=True, epochs=4), facts) as run:
            assert run.settings.get("resumed_with") == noted
            assert run.settings["git_commit"] == "a"
    assert capsys.readouterr().err == ""


def test_a_file_that_is_no_checkpoint_of_a_run_is_named(tmp_path):
    begun(tmp_path, 2)
    for name in ("last.pt", "previous.pt"):
        save(tmp_path / name, {"epoch": 1})
    with pytest.raises(UserError, match="can be loaded; .*it is not a checkpoint of a run"):
        open_with(tmp_path, resume=True)


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_config_json_is_made_again_from_the_checkpoint(tmp_path, damage):
    path = begun(tmp_path) / "config.json"
    before = path.read_bytes()
    path.write_bytes(damage) if damage is not None else path.unlink()
    with contextlib.closing(open_with(tmp_path, resume=True)) as run:
        run.save_config()  # as fit does
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_run_is_not_gone_on_with(tmp_path):
    """What the checkpoint itself says counts, not the config.json beside it."""
    ours, other = begun(tmp_path / "ours"), tmp_path / "other"
    with open_run(other, config(seed=1), FACTS) as run:
        run.save_checkpoint(checkpoint_of(run))
    os.replace(other / "last.pt", ours / "last.pt")
    with pytest.raises(UserError, match="seed: 1 -> 0"):
        open_with(ours, resume=True)


def test_a_run_whose_checkpoints_are_gone_is_not_started_over_in_silence(tmp_path):
    (begun(tmp_path) / "last.pt").unlink()
    before = contents(tmp_path)
    with pytest.raises(
        UserError, match="it holds best.pt, log.csv, config.json of a run, but nothing to go on"
    ):
        open_with(tmp_path, resume=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_summary_makes_no_finished_run(tmp_path, damage):
    finished(tmp_path)
    with open_run(tmp_path, config(resume=True), FACTS) as run:
        assert run.complete and run.checkpoint is None
    (tmp_path / "summary.json").write_bytes(damage)
    with open_run(tmp_path, config(resume=True), FACTS) as run:
        assert not run.complete and run.checkpoint["epoch"] == 2


def test_a_finished_run_needs_no_checkpoint_but_its_settings(tmp_path, monkeypatch):
    """As the published runs are."""
    (finished(tmp_path) / "last.pt").unlink()
    (tmp_path / "previous.pt").unlink()
    monkeypatch.setattr(Run, "_probe", None)  # nor room for one
    open_with(tmp_path, resume=True).close()
    with pytest.raises(UserError, match="lr: 0.1 -> 0.3"):
        open_with(tmp_path, resume=True, lr=0.3)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="is damaged; .*config.json: .*; put that file back"):
        open_with(tmp_path, resume=True)


@pytest.mark.parametrize("whole", [True, False], ids=["with checkpoints", "without"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", None), ("config.json", b"{"), ("log.csv", None), ("log.csv", b"epoch\n"),
        ("predictions.npz", None), ("predictions.npz", b"PK"), ("best.pt", None),
        ("best.pt", b"PK"),
    ],
)  # fmt: skip
def test_a_finished_run_with_a_damaged_file_is_made_again_from_its_checkpoint(
    tmp_path, capsys, name, damage, whole
):
    finished(tmp_path)
    if not whole:
        (tmp_path / "last.pt").unlink()
        (tmp_path / "previous.pt").unlink()
    (tmp_path / name).unlink()
    if damage is not None:
        (tmp_path / name).write_bytes(damage)
    before = contents(tmp_path)
    if whole:
        with open_run(tmp_path, config(resume=True), FACTS) as run:
            assert not run.complete and run.checkpoint["epoch"] == 2
        assert f"{tmp_path / name}" in capsys.readouterr().err
        assert before.keys() - contents(tmp_path).keys() == {"summary.json"}
    elif (name, damage) == ("best.pt", None):  # as most of the published runs are
        with open_run(tmp_path, config(resume=True), FACTS) as run:
            assert run.complete
    else:
        with pytest.raises(UserError, match=f"is damaged; .*{name}") as caught:
            open_with(tmp_path, resume=True)
        assert caught.value.exit_code == 2 and contents(tmp_path) == before


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [make(tmp_path_factory.mktemp(make.__name__)) for make in (begun, finished)]


@given(name=st.sampled_from(["config.json", "log.csv", "summary.json"]), content=st.binary())
@settings(max_examples=60)
def test_random_bytes_are_a_line_or_made_again(folders, name, content):
    for folder in folders:
        before = contents(folder)
        (folder / name).write_bytes(content)
        try:
            open_with(folder, resume=True).close()
        except UserError as error:
            assert "\n" not in str(error) and error.exit_code == 2
            assert name == "config.json" and (folder / "summary.json").exists()
        finally:
            (folder / name).unlink(missing_ok=True)
            for each in before:
                (folder / each).write_bytes(before[each])


# ---------------------------------------------------------------- not overwriting


def test_nothing_is_overwritten_without_being_asked(tmp_path):
    for make, state, resume in (
        (begun, "an unfinished run", "go on with it"),
        (finished, "a finished run", "check it"),
    ):
        folder = make(tmp_path / make.__name__)
        before = contents(folder)
        words = f"holds {state}; .*; add --resume to {resume}, --overwrite"
        with pytest.raises(UserError, match=words):
            open_with(folder)
        assert contents(folder) == before


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_of_other_things_is_left_as_it_is(tmp_path, flags):
    """Such as one of runs, or of code."""
    finished(tmp_path / "baseline" / "seed-0")
    before = contents(tmp_path / "baseline" / "seed-0")
    (tmp_path / "model.py").touch()
    words = "holds no run but other things; baseline, model.py; choose another"
    with pytest.raises(UserError, match=words):
        open_with(tmp_path, **flags)
    assert {path.name for path in tmp_path.iterdir()} == {"baseline", "model.py"}  # no lock, either
    assert contents(tmp_path / "baseline" / "seed-0") == before
    own = tmp_path / "own"  # the output is sent to a file there, as by a cluster's scheduler
    own.mkdir()
    for name in ("train.log", "logits-1f.pt", ".DS_Store"):
        (own / name).touch()
    open_with(own, **flags).close()


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    finished(tmp_path)
    others = ("notes.txt", ".settings.tmp", "best.pt.bak")
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".last.pt.1f.tmp").write_text("of a killed process")
    (tmp_path / "logits-1f.pt").write_text("the old teacher's answers")
    with open_run(tmp_path, config(overwrite=True, seed=1), FACTS) as run:
        assert run.checkpoint is None and not run.complete
        assert set(contents(tmp_path)) == {*others, ".holder"}


def test_stopped_at_any_file_overwriting_leaves_the_old_run_or_none(tmp_path):
    """And never the old run's files beside the new one's."""
    for count in range(len(FILES) + 1):
        folder = finished(tmp_path / str(count))
        for name in FILES[:count]:
            (folder / name).unlink()
        if any((folder / name).exists() for name in ("last.pt", "previous.pt")):
            with pytest.raises(UserError, match="seed: 0 -> 1"):
                open_with(folder, resume=True, seed=1)
            open_with(folder, resume=True).close()
        else:
            assert not contents(folder)


# ---------------------------------------------------------------- the lock


def test_one_writer_at_a_time(tmp_path):
    with open_run(tmp_path, config(), FACTS):
        who = f"process {os.getpid()} on {socket.gethostname()} is writing to it"
        for _ in range(2):  # the refused one leaves lock and holder as they are
            with pytest.raises(UserError, match=f"is in use; {who}; "):
                open_with(tmp_path)
    with pytest.raises(ZeroDivisionError), open_run(tmp_path, config(), FACTS):
        raise ZeroDivisionError
    open_with(tmp_path).close()
    assert not contents(tmp_path)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / ".lock").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder in ("file", "file/run", "folder", "link/notes/baseline/seed-0"):
        folder = tmp_path / folder
        with pytest.raises(UserError, match=f"cannot use {folder} as a run folder; ") as failure:
            open_with(folder)
        assert failure.value.exit_code == 2
    assert f"a broken link to {tmp_path / 'nowhere'}; choose" in str(failure.value)


def test_the_command_that_resumes_is_quoted_and_says_resume_once(tmp_path, monkeypatch):
    words = ["train_student.py", "--out", "a b;c", "--overwrite", "--resume", "--loss", "kd"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "orig_argv", [".venv/bin/python", *words])
    with open_run(tmp_path, config(), FACTS) as run:
        command = run.resume_command
    assert command == ".venv/bin/python train_student.py --out 'a b;c' --loss kd --resume"
    assert shlex.split(command)[3] == "a b;c"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    torchrun = "torchrun --nproc-per-node 8 train_student.py --out 'a b;c' --loss kd --resume"
    assert run.resume_command == torchrun
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert run.resume_command.startswith(torchrun + "  # on each of 2 nodes")


# ---------------------------------------------------------------- teachers, facts


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Stand-ins for runs/ and results/."""
    for name in ("runs", "results"):
        monkeypatch.setattr(common.run, f"{name.upper()}_DIR", tmp_path / name)
    return tmp_path


def put(folder, complete=True):
    folder.mkdir(parents=True)
    (folder / "best.pt").touch()
    if complete:
        (folder / "summary.json").touch()
    return folder / "best.pt"


def test_the_default_teacher_is_ones_own_of_the_seed_else_a_published_one(places):
    student = quick_config(StudentConfig, seed=3)
    with pytest.raises(UserError, match="no teacher; .*; run `python train_teacher.py --recipe"):
        find_teachers(student)
    lowest = put(places / "results" / "notes" / "teacher-resnet" / "seed-2")
    put(places / "results" / "notes" / "teacher-resnet" / "seed-10")
    put(places / "results" / "best" / "teacher-resnet" / "seed-3")
    put(places / "runs" / "notes" / "teacher-cnn" / "seed-3")
    bare = places / "results" / "notes" / "teacher-resnet" / "seed-3"
    bare.mkdir()
    (bare / "summary.json").touch()  # published without its weights
    assert find_teachers(student) == [lowest]
    (bare / "summary.json").unlink()
    bare.rmdir()
    same_seed = put(places / "results" / "notes" / "teacher-resnet" / "seed-3")
    assert find_teachers(student) == [same_seed]
    own = put(places / "runs" / "notes" / "teacher-resnet" / "seed-3", complete=False)
    assert find_teachers(student) == [same_seed]  # its training goes on
    (own.parent / "summary.json").touch()
    assert find_teachers(student) == [own]
    both = StudentConfig.parse("", ["--teacher", str(lowest.parent), str(same_seed)])
    assert find_teachers(both) == [lowest, same_seed]  # of a folder, and of a file


def test_a_resumed_student_keeps_the_teacher_that_it_began_with(places, capsys):
    published = put(places / "results" / "notes" / "teacher-resnet" / "seed-0")
    own = put(places / "runs" / "notes" / "teacher-resnet" / "seed-0", complete=False)
    (own.parent / "config.json").touch()
    student = StudentConfig.parse("", ["--resume"])
    assert find_teachers(student) == [published]
    assert f"warning: {own.parent} is not finished: another teacher" in capsys.readouterr().err
    (own.parent / "summary.json").touch()
    assert find_teachers(student) == [own]  # it has not begun yet
    folder = places / "runs" / "notes" / "student-resnet" / "seed-0"
    folder.mkdir(parents=True)
    for recorded in (str(published), [str(published)]):  # of an older version, and of this one
        (folder / "config.json").write_text(json.dumps({"teacher": recorded}))
        assert find_teachers(student) == [published]
    assert find_teachers(StudentConfig.parse("", [])) == [own]
    (elsewhere := places / "elsewhere").mkdir()
    shutil.copy(folder / "config.json", elsewhere)
    (folder / "config.json").write_text(json.dumps({"teacher": [str(own)]}))
    there = StudentConfig.parse("", ["--resume", "--out", str(elsewhere)])
    assert find_teachers(there) == [published] and find_teachers(student) == [own]
    shutil.copy(elsewhere / "config.json", folder)
    published.unlink()
    assert capsys.readouterr().err == ""
    words = f"cannot resume {folder}; its teacher is gone ({published}); put that back, or say with"
    with pytest.raises(UserError, match=re.escape(words)):
        find_teachers(student)
    named = StudentConfig.parse("", ["--resume", "--teacher", str(own)])
    assert find_teachers(named) == [own] and capsys.readouterr().err == ""


def test_a_teacher_of_ones_own_without_weights_is_not_passed_over_in_silence(places, capsys):
    published = put(places / "results" / "notes" / "teacher-resnet" / "seed-0")
    own = put(places / "runs" / "notes" / "teacher-resnet" / "seed-0")
    (own.parent / "config.json").touch()
    student = StudentConfig.parse("", [])
    assert find_teachers(student) == [own] and capsys.readouterr().err == ""
    own.unlink()
    assert find_teachers(student) == [published]
    words = f"warning: {own.parent} has no best.pt: another teacher is taken\n"
    assert capsys.readouterr().err == words


def test_a_run_of_an_older_version_is_gone_on_with(tmp_path):
    """Its config.json lacks a setting that came later and is off."""
    run = open_with(tmp_path)
    run.save_checkpoint(checkpoint_of(run))
    run.close()
    open_with(tmp_path, FACTS | {"of_later": 0.0}, resume=True).close()
    with pytest.raises(UserError, match=r"of_later: None -> 0\.5"):
        open_with(tmp_path, FACTS | {"of_later": 0.5}, resume=True)


def test_a_teacher_comes_back_with_its_weights_and_digest(tmp_path):
    teacher = build("cnn")
    with open_run(tmp_path, config(arch="cnn"), FACTS | {"role": "teacher"}) as run:
        run.save_best(teacher.state_dict(), 1, 90.0)
    found = read_teacher(tmp_path / "best.pt")
    assert found.arch == "cnn" and equal(
        dict(found.network.state_dict()), dict(teacher.state_dict())
    )
    assert len(found.digest) == 64
    (tmp_path / "best.pt").unlink()
    (tmp_path / "summary.json").touch()
    with pytest.raises(UserError, match="is kept without its weights; name another with --teacher"):
        read_teacher(tmp_path / "best.pt")


def test_a_teacher_that_is_replaced_meanwhile_is_refused(tmp_path, monkeypatch):
    with open_run(tmp_path, config(arch="cnn"), FACTS | {"role": "teacher"}) as run:
        run.save_best(build("cnn").state_dict(), 1, 90.0)

        def load_and_replace(path):
            content = load(path)
            run.save_best(build("cnn").state_dict(), 2, 91.0)
            return content

        monkeypatch.setattr(common.run, "load", load_and_replace)
        with pytest.raises(UserError, match="replaced while it was read"):
            read_teacher(tmp_path / "best.pt")


def test_a_teacher_still_in_training_is_refused(tmp_path):
    """Its best.pt may change yet, and the student could not be resumed."""
    with open_run(tmp_path, config(arch="cnn"), FACTS | {"role": "teacher"}) as run:
        run.save_config()
        run.save_best(build("cnn").state_dict(), 1, 90.0)
        with pytest.raises(UserError, match="its training is not finished"):
            read_teacher(tmp_path / "best.pt")
        (tmp_path / "summary.json").touch()
        assert read_teacher(tmp_path / "best.pt").arch == "cnn"


def test_the_facts_of_a_run_can_be_written_and_read_again(tmp_path):
    facts = describe(build("small-cnn"), config(), "baseline", "1f")
    assert json.loads(json.dumps(facts)) == facts and facts["parameters"] == 175_018
    with open_run(tmp_path, config(), facts) as run:
        run.save_config()
        save(tmp_path / "file.pt", run.settings)
        assert load(tmp_path / "file.pt") == json.loads((tmp_path / "config.json").read_text())


def test_a_run_folder_in_the_project_is_recorded_from_there(tmp_path):
    for out, recorded in ((RUNS_DIR / "mine", "runs/mine"), (tmp_path, str(tmp_path.resolve()))):
        run = Run(tmp_path / "run", config(out=out), FACTS)
        assert run.settings["out"] == recorded
        run.close()


def test_a_folder_that_cannot_be_synced_loses_nothing(tmp_path, monkeypatch):
    """Some network mounts refuse it; any other failure is one."""
    refused, fsync = [errno.EINVAL], os.fsync

    def of_files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(refused[0], "refused")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    write_atomically(tmp_path / "file", b"new")
    assert contents(tmp_path) == {"file": b"new"}
    refused[0] = errno.EIO
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "file", b"newer")


def test_a_path_in_the_project_is_recorded_from_its_folder(tmp_path):
    assert in_project(RUNS_DIR / "notes" / "best.pt") == "runs/notes/best.pt"
    assert in_project(tmp_path / "best.pt") == str((tmp_path / "best.pt").resolve())


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "RuntimeError: "),  # no Normalize()
        (nn.Sequential(Normalize(), nn.Flatten(), nn.Linear(784, 11)), r"it makes \(1, 11\)"),
        (nn.Sequential(Normalize(), nn.Conv2d(1, 10, 28)), r"it makes \(1, 10, 1, 1\)"),
        (nn.Sequential(Normalize(), nn.Flatten(), nn.LSTM(784, 10)), "it makes a tuple"),
        (nn.Sequential(Normalize(), nn.Flatten(), nn.Linear(700, 10)), "shapes cannot be mult"),
    ],
)
def test_a_network_that_does_not_work_is_refused_before_its_run_has_a_folder(
    tiny_data, tmp_path, monkeypatch, network, words
):
    monkeypatch.setitem(NETWORKS, "tiny", lambda: network)
    folder = tmp_path / "run"
    flags = ["--arch", "tiny", "--data-dir", str(tiny_data), "--out", str(folder)]
    with pytest.raises(UserError, match=f"baseline-tiny: its network does not.*{words}") as caught:
        train_baseline.main(flags)
    assert "Normalize() of common/models.py" in str(caught.value) and caught.value.exit_code == 2
    assert not folder.exists()

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from common.errors import Interrupted, UserError, script, warn
from conftest import ROOT


def outcome(main, monkeypatch, capfd, *flags):
    """(exit code, lines on stderr) of a script."""
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])
    with pytest.raises(SystemExit) as stop:
        script(main)
    return stop.value.code, capfd.readouterr().err.splitlines()


def failing(error):
    def main():
        raise error

    return main


def test_a_failure_is_one_line_whatever_it_holds(monkeypatch, capfd):
    refused = failing(UserError("what\nhappened", "why;\r\n\x0b why", "do\u2028this"))
    assert outcome(refused, monkeypatch, capfd) == (
        2,
        ["error: what happened; why; why; do this"],
    )
    broken = failing(UserError("what", "why", "do", exit_code=1))
    assert outcome(broken, monkeypatch, capfd) == (1, ["error: what; why; do"])
    code, lines = outcome(failing(ZeroDivisionError("by\nzero")), monkeypatch, capfd)
    line = failing.__code__.co_firstlineno + 2
    assert code == 1 and lines == [
        f"error: unexpected failure in main (tests/test_errors.py, line {line}); "
        "ZeroDivisionError: by zero; add --debug for the traceback"
    ]


def test_a_full_gpu_is_no_failure_of_the_script(monkeypatch, capfd):
    full = failing(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 MiB."))
    assert outcome(full, monkeypatch, capfd) == (
        1,
        [
            "error: the GPU's memory is full; CUDA out of memory. Tried to allocate 20 MiB.; "
            "end what else is on it, use a lower --batch-size, or --device cpu"
        ],
    )


def test_a_failure_inside_a_library_names_the_line_of_ours_that_called_it(monkeypatch, capfd):
    def mine():
        functional.cross_entropy(torch.zeros(2, 3), torch.zeros(5).long())  # raised in torch

    _, (line,) = outcome(mine, monkeypatch, capfd)
    number = mine.__code__.co_firstlineno + 1
    assert f"failure in mine (tests/test_errors.py, line {number}); ValueError: " in line


def test_debug_shows_the_traceback_and_changes_no_exit_code(monkeypatch, capfd):
    for error, code in ((UserError("what", "why", "do"), 2), (ZeroDivisionError(), 1)):
        found, lines = outcome(failing(error), monkeypatch, capfd, "--debug")
        assert found == code and lines[0].startswith("Traceback")
        assert lines[-1].startswith("error: ")


def test_interruptions_have_the_exit_codes_of_their_signals(monkeypatch, capfd):
    assert outcome(failing(KeyboardInterrupt()), monkeypatch, capfd) == (130, [])
    assert outcome(failing(Interrupted(15)), monkeypatch, capfd) == (143, [])
    assert outcome(lambda: None, monkeypatch, capfd) == (0, [])
    assert outcome(lambda: 1, monkeypatch, capfd) == (1, [])


@pytest.mark.parametrize(
    ("second", "pause", "said"),
    [("SIGTERM", 0, "stopped"), ("SIGTERM", 0.7, "at once"), ("SIGINT", 0, "at once")],
)
def test_a_signal_that_comes_twice_at_once_is_one(second, pause, said):
    """As `timeout` sends it, to the process and its group; a later one ends it there and then."""
    code = f"""if True:
        import os, signal, time
        from common.errors import StopSignals, script
        def main():
            try:
                with StopSignals(at_once=lambda: print("at once", flush=True)) as stop:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep({pause})
                    os.kill(os.getpid(), signal.{second})
                    stop.check()
            finally:
                print("stopped")
        script(main)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{said}\n", "")
    number = signal.SIGTERM if said == "stopped" else getattr(signal, second)
    assert done.returncode == 128 + number


def run(code: str, stdout: object) -> subprocess.Popen:
    """Start a script in an interpreter of its own: what happens at its exit counts too."""
    text = f"from common.errors import script\ndef main():\n    {code}\nscript(main)"
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=ROOT,
        env=buffered,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full, run("print('lost')", full) as process:
        lines = process.stderr.read().splitlines()
    assert process.returncode == 1
    assert len(lines) == 1 and lines[0].startswith("error: ") and "No space left" in lines[0]


def test_a_reader_that_goes_away_ends_the_script_quietly():
    with run("\n    while True: print('more')", subprocess.PIPE) as process:
        assert process.stdout.readline() == "more\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_path_that_the_terminal_cannot_show_stops_nothing():
    with run(r"print('run \udcff \u4e2d')", subprocess.PIPE) as process:
        assert process.stdout.read().startswith(r"run \udcff ")
    assert process.returncode == 0


@pytest.mark.parametrize(("rank", "said"), [(None, True), ("0", True), ("1", False)])
def test_of_several_processes_the_first_alone_warns(rank, said, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    warn("of it")
    assert capsys.readouterr().err == "warning: of it\n" * said

"""Failures as one line on stderr: what happened, why, and what to do about it; and signals."""

import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Self

ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """A failure that a user can act on.

    exit_code is 2 for a request that cannot be met (found before any training) and 1 for
    something that broke on the way.
    """

    def __init__(self, what: str, why: str, what_to_do: str, exit_code: int = 2):
        super().__init__("; ".join(" ".join(part.split()) for part in (what, why, what_to_do)))
        self.exit_code = exit_code


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived. Of a training all up to its last finished epoch is on disk."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


class StopSignals:
    """SIGINT and SIGTERM end the run at the next `check`, at the latest at the end of the block; a
    second one calls `at_once` and ends the process. The same within half a second is no second
    one: `timeout`, `make` and batch systems signal a process and then its group."""

    def __init__(self, at_once: Callable[[], None] = lambda: None) -> None:
        self.received: int | None = None
        self.at_once = at_once

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if failure is None:
            self.check()

    def _handle(self, number: int, _: object) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = number, now
        elif number != self.received or now - self._since > 0.5:
            self.at_once()
            os._exit(128 + number)

    def check(self) -> None:
        if self.received is not None:
            raise Interrupted(self.received)


def warn(text: str) -> None:
    """Of several processes the first speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"warning: {text}\n")


def script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main`; print a failure as one line, after its traceback with `--debug`.

    Exit codes: 0, 1 and 2 as in UserError, 130 after SIGINT, 143 after SIGTERM, 141 when the
    reader of the output went away (`| head`).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = main() or 0
        sys.stdout.flush()  # what it fails with is reported here, and not at exit
    except Interrupted as stop:
        status = stop.exit_code
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 141
    except Exception as error:
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            what_to_do = "end what else is on it, use a lower --batch-size, or --device cpu"
            error = UserError("the GPU's memory is full", str(error), what_to_do, exit_code=1)
        if isinstance(error, UserError):
            status, text = error.exit_code, str(error)
        else:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            where = _innermost(error)
            status, text = 1, f"unexpected failure{where}; {text}; add --debug for the traceback"
        print(f"error: {text}", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)
    try:
        sys.stdout.flush()
    except OSError:  # the interpreter would try again at exit, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _innermost(error: Exception) -> str:
    """Where in the project it came from, in words: one that a user's own loss raised names that."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_relative_to(ROOT) and "site-packages" not in file.parts:
            return f" in {frame.name} ({file.relative_to(ROOT)}, line {frame.lineno})"
    return ""


def _interrupt(number: int, _: object) -> NoReturn:
    """SIGTERM as SIGINT is: temporary files are removed on the way out."""
    raise Interrupted(number)
